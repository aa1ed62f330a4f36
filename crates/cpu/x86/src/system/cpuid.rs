//! `cpuid` (AMD APM volume 3, appendix E); the answers are in [`crate::cpuid`].

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{cr4, gpr};

use crate::core::Core;
use crate::cpuid::{Circumstances, answer, xsave_size};
use crate::op::{Op, Step};

/// `IA32_APIC_BASE`, and its bit that enables the local APIC.
const APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    (i.code() == Code::Cpuid).then(|| Op::new(cpuid, i))
}

fn cpuid(core: &mut Core, _: &Op) -> Step {
    let base = core.connections.interrupts.read_msr(APIC_BASE);
    let now = Circumstances {
        index: core.connections.index,
        count: core.connections.count,
        apic_enabled: base.is_ok_and(|base| base & APIC_ENABLED != 0),
        osxsave: core.cr4 & cr4::OSXSAVE != 0,
        xsave_size: xsave_size(core.xcr0),
    };
    let (leaf, subleaf) = (core.reg::<u32>(gpr::RAX as u8), core.reg::<u32>(gpr::RCX as u8));
    let [eax, ebx, ecx, edx] = answer(&core.model, &now, leaf, subleaf);
    tracing::trace!(target: "cpu", "cpuid {leaf:#x}.{subleaf:x} = {eax:#x} {ebx:#x} {ecx:#x} {edx:#x}");
    for (number, value) in [(gpr::RAX, eax), (gpr::RBX, ebx), (gpr::RCX, ecx), (gpr::RDX, edx)] {
        core.set_reg(number as u8, value);
    }
    Ok(())
}
