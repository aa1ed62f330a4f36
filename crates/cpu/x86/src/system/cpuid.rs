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

#[cfg(test)]
mod tests {
    use posada_vcpu::x86::gpr::{RAX, RBX, RCX, RDX};
    use posada_vcpu::x86::{State, cr4};

    use crate::testing::{Guest, Outcome};

    fn cpuid(guest: Guest, leaf: u64) -> Outcome {
        guest.reg(RAX, u64::MAX << 32 | leaf).reg(RBX, u64::MAX).code(|a| a.cpuid()).run()
    }

    #[test]
    fn answers_clear_the_upper_halves() {
        let outcome = cpuid(Guest::user(), 0x8000_0000);
        assert_eq!([RAX, RBX, RCX, RDX].map(|n| outcome.reg(n) >> 32), [0; 4]);
        assert_eq!(outcome.reg(RBX), 0x6874_7541);
    }

    #[test]
    fn the_family_is_the_one_that_reset_leaves() {
        assert_eq!(cpuid(Guest::user(), 1).reg(RAX), State::reset().gpr[RDX]);
    }

    #[test]
    fn programs_learn_whether_the_system_uses_xsave() {
        let osxsave = |guest| cpuid(guest, 1).reg(RCX) >> 27 & 1;
        assert_eq!(osxsave(Guest::user()), 0);
        assert_eq!(osxsave(Guest::user().with(|state| state.cr4 |= cr4::OSXSAVE)), 1);
    }
}
