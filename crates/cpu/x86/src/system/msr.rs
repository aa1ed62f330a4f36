//! Model-specific registers (AMD APM volume 2, appendix A), time and performance counters.
//!
//! A register that a processor like ours has, but that does nothing here, reads as it would where it is idle and
//! takes any write; a register that it does not have is `#GP(0)`.

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{cr0, cr4, efer, gpr};

use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::model::Feature;
use crate::op::{Op, Step, register_number};
use crate::paging::PHYSICAL_BITS;

/// Numbers of the registers.
#[allow(clippy::module_inception)]
mod msr {
    pub(super) const P5_MC_ADDR: u32 = 0x0;
    pub(super) const P5_MC_TYPE: u32 = 0x1;
    pub(super) const TSC: u32 = 0x10;
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const EBL_CR_POWERON: u32 = 0x2a;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const PRED_CMD: u32 = 0x49;
    pub(super) const UPDATE_TRIGGER: u32 = 0x79;
    pub(super) const PATCH_LEVEL: u32 = 0x8b;
    pub(super) const MTRR_CAP: u32 = 0xfe;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const MCG_CAP: u32 = 0x179;
    pub(super) const MCG_STATUS: u32 = 0x17a;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUGCTL: u32 = 0x1d9;
    pub(super) const LAST_BRANCH: u32 = 0x1db;
    pub(super) const LAST_EXCEPTION_TO: u32 = 0x1de;
    pub(super) const MTRR_VARIABLE: u32 = 0x200;
    pub(super) const MTRR_VARIABLE_LAST: u32 = 0x20f;
    pub(super) const MTRR_FIX_64K: u32 = 0x250;
    pub(super) const MTRR_FIX_16K: u32 = 0x258;
    pub(super) const MTRR_FIX_16K_LAST: u32 = 0x259;
    pub(super) const MTRR_FIX_4K: u32 = 0x268;
    pub(super) const MTRR_FIX_4K_LAST: u32 = 0x26f;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub(super) const MC0_CTL: u32 = 0x400;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const X2APIC: u32 = 0x800;
    pub(super) const X2APIC_LAST: u32 = 0x8ff;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const SFMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
    pub(super) const PERF_EVENT_0: u32 = 0xc001_0000;
    pub(super) const PERF_COUNTER_3: u32 = 0xc001_0007;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    pub(super) const IORR_BASE_0: u32 = 0xc001_0016;
    pub(super) const TOP_MEM: u32 = 0xc001_001a;
    pub(super) const TOP_MEM2: u32 = 0xc001_001d;
    pub(super) const NB_CFG: u32 = 0xc001_001f;
    pub(super) const PATCH_LOADER: u32 = 0xc001_0020;
    pub(super) const INT_PENDING: u32 = 0xc001_0055;
    pub(super) const MMIO_CONF_BASE: u32 = 0xc001_0058;
    pub(super) const VM_CR: u32 = 0xc001_0114;
    pub(super) const LS_CFG: u32 = 0xc001_1020;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
    pub(super) const EX_CFG: u32 = 0xc001_102c;
}

/// EFER: automatic isolation of indirect branches.
const AUTOIBRS: u64 = 1 << 21;
/// Eight variable ranges, fixed ranges, write-combining.
const MTRR_CAPABILITIES: u64 = 8 | 1 << 8 | 1 << 10;
/// Banks of machine-check registers; none of them ever reports anything.
const BANKS: u32 = 6;
/// The microcode's patch level.
const MICROCODE: u64 = 0x0a00_11d1;
/// HWCR: the time-stamp counter counts at a constant rate.
const TSC_FREQ_SEL: u64 = 1 << 24;
/// DE_CFG: `lfence` serializes.
const LFENCE_SERIALIZES: u64 = 1 << 1;
/// VM_CR: SVM is off, and stays off.
const SVM_LOCKED_OFF: u64 = 1 << 4 | 1 << 3;
/// Bits of an address that physical memory does not have.
const BEYOND: u64 = !((1 << PHYSICAL_BITS) - 1);

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.code() {
        Code::Rdmsr => Some(Op::new(rdmsr, i)),
        Code::Wrmsr => Some(Op::new(wrmsr, i)),
        Code::Rdtsc => Some(Op::new(rdtsc, i)),
        Code::Rdtscp => Some(Op::new(rdtscp, i)),
        Code::Rdpmc => Some(Op::new(rdpmc, i)),
        Code::Rdpid_r32 | Code::Rdpid_r64 => {
            let mut op = Op::new(rdpid, i);
            op.dst = register_number(i.op0_register());
            Some(op)
        }
        _ => None,
    }
}

fn rdmsr(core: &mut Core, _: &Op) -> Step {
    core.need_ring_0()?;
    let number = core.reg::<u32>(gpr::RCX as u8);
    match core.read_msr(number) {
        Some(value) => {
            tracing::trace!(target: "cpu", "rdmsr {number:#x} = {value:#x}");
            core.set_wide(value);
            Ok(())
        }
        None => {
            tracing::debug!(target: "cpu", "rdmsr {number:#x}: no such register");
            Err(core.gp(0))
        }
    }
}

fn wrmsr(core: &mut Core, _: &Op) -> Step {
    core.need_ring_0()?;
    let number = core.reg::<u32>(gpr::RCX as u8);
    let value = u64::from(core.reg::<u32>(gpr::RDX as u8)) << 32 | u64::from(core.reg::<u32>(gpr::RAX as u8));
    match core.write_msr(number, value) {
        Some(()) => {
            tracing::trace!(target: "cpu", "wrmsr {number:#x}, {value:#x}");
            LEAVE
        }
        None => {
            tracing::debug!(target: "cpu", "wrmsr {number:#x}, {value:#x}: refused");
            Err(core.gp(0))
        }
    }
}

/// With `cr4.TSD` time is only for the supervisor, or whoever is in real mode.
fn check_time(core: &mut Core) -> Step {
    let denied = core.cr4 & cr4::TSD != 0 && core.cpl != 0;
    if denied { Err(core.gp(0)) } else { Ok(()) }
}

fn rdtsc(core: &mut Core, _: &Op) -> Step {
    check_time(core)?;
    core.set_wide(core.tsc());
    Ok(())
}

fn rdtscp(core: &mut Core, _: &Op) -> Step {
    check_time(core)?;
    core.set_wide(core.tsc());
    core.set_reg(gpr::RCX as u8, core.msrs.tsc_aux as u32);
    Ok(())
}

fn rdpid(core: &mut Core, op: &Op) -> Step {
    core.set_reg::<u64>(op.dst, core.msrs.tsc_aux);
    Ok(())
}

/// The four counters are there, and stand still.
fn rdpmc(core: &mut Core, _: &Op) -> Step {
    let denied = core.cr4 & cr4::PCE == 0 && core.cpl != 0 && core.cr0 & cr0::PE != 0;
    if denied || core.reg::<u32>(gpr::RCX as u8) > 3 {
        return Err(core.gp(0));
    }
    core.set_wide(0);
    Ok(())
}

/// Memory types that MTRRs know: uncacheable, write-combining, -through, -protected, -back.
fn mtrr_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Eight memory types; the PAT knows one more, "uncached minus".
fn all_types(value: u64, known: impl Fn(u64) -> bool) -> bool {
    value.to_le_bytes().into_iter().all(|byte| known(u64::from(byte)))
}

impl Core {
    /// `edx:eax`, with the upper halves cleared.
    pub(super) fn set_wide(&mut self, value: u64) {
        self.set_reg(gpr::RAX as u8, value as u32);
        self.set_reg(gpr::RDX as u8, (value >> 32) as u32);
    }

    /// Reads a model-specific register; `None` where there is none, or it cannot be read.
    fn read_msr(&self, number: u32) -> Option<u64> {
        let m = &self.msrs;
        Some(match number {
            msr::APIC_BASE | msr::X2APIC..=msr::X2APIC_LAST => {
                self.connections.interrupts.read_msr(number).ok()?
            }
            msr::TSC_DEADLINE => match self.connections.interrupts.read_msr(number).ok()? {
                0 => 0,
                deadline => deadline.wrapping_add(m.tsc_offset),
            },
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST => m.tsc_adjust,
            msr::TSC_AUX => m.tsc_aux,
            msr::EFER => m.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::SFMASK => m.sfmask,
            msr::FS_BASE => self.segments[usize::from(segment::FS)].base,
            msr::GS_BASE => self.segments[usize::from(segment::GS)].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            msr::MISC_ENABLE => m.misc_enable,
            msr::DEBUGCTL => m.debugctl,
            msr::PAT => m.pat,
            msr::MTRR_CAP => MTRR_CAPABILITIES,
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            msr::MTRR_VARIABLE..=msr::MTRR_VARIABLE_LAST => {
                let n = (number - msr::MTRR_VARIABLE) as usize;
                m.mtrr_variable[n / 2][n % 2]
            }
            msr::MCG_CAP => u64::from(BANKS),
            msr::MCG_STATUS => m.mcg_status,
            msr::PATCH_LEVEL => MICROCODE,
            msr::HWCR => TSC_FREQ_SEL,
            msr::DE_CFG => LFENCE_SERIALIZES,
            msr::VM_CR => SVM_LOCKED_OFF,
            _ if let Some(n) = fixed_range(number) => m.mtrr_fixed[n],
            _ if idle(number) => 0,
            _ => return None,
        })
    }

    /// Writes a model-specific register; `None` where there is none, or it does not take the value.
    fn write_msr(&mut self, number: u32, value: u64) -> Option<()> {
        let when = |good: bool| good.then_some(());
        let canonical = || when(Core::is_canonical(value));
        match number {
            msr::APIC_BASE | msr::X2APIC..=msr::X2APIC_LAST => {
                self.connections.interrupts.write_msr(number, value).ok()?;
                (self.slow, self.interrupts_wait) = (true, true);
            }
            msr::TSC_DEADLINE => self.write_deadline(value)?,
            msr::TSC => {
                let change = value.wrapping_sub(self.tsc());
                self.adjust_tsc(change);
            }
            msr::TSC_ADJUST => {
                let change = value.wrapping_sub(self.msrs.tsc_adjust);
                self.adjust_tsc(change);
            }
            msr::TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            msr::EFER => self.write_efer(value)?,
            msr::STAR => self.msrs.star = value,
            msr::LSTAR => {
                canonical()?;
                self.msrs.lstar = value;
            }
            msr::CSTAR => {
                canonical()?;
                self.msrs.cstar = value;
            }
            msr::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            msr::FS_BASE | msr::GS_BASE => {
                canonical()?;
                let number = if number == msr::FS_BASE { segment::FS } else { segment::GS };
                self.segments[usize::from(number)].base = value;
                self.update_view(number);
            }
            msr::KERNEL_GS_BASE => {
                canonical()?;
                self.msrs.kernel_gs_base = value;
            }
            msr::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            msr::SYSENTER_ESP => self.msrs.sysenter_esp = value,
            msr::SYSENTER_EIP => self.msrs.sysenter_eip = value,
            msr::MISC_ENABLE => self.msrs.misc_enable = value,
            // Last-branch recording and branch single-stepping.
            msr::DEBUGCTL => {
                when(value & !0x3f == 0)?;
                self.msrs.debugctl = value;
            }
            msr::PAT => {
                when(all_types(value, |kind| mtrr_type(kind) || kind == 7))?;
                self.msrs.pat = value;
            }
            msr::MTRR_DEF_TYPE => {
                when(mtrr_type(value & 0xff) && value & !0xcff == 0)?;
                self.msrs.mtrr_def_type = value;
            }
            msr::MTRR_VARIABLE..=msr::MTRR_VARIABLE_LAST => {
                let n = (number - msr::MTRR_VARIABLE) as usize;
                let reserved = BEYOND | if n.is_multiple_of(2) { 0xf00 } else { 0x7ff };
                when(value & reserved == 0 && (n % 2 == 1 || mtrr_type(value & 0xff)))?;
                self.msrs.mtrr_variable[n / 2][n % 2] = value;
            }
            msr::MCG_STATUS => {
                when(value & !7 == 0)?;
                self.msrs.mcg_status = value;
            }
            // A barrier for indirect branches, of which nothing was predicted.
            msr::PRED_CMD => when(self.model.has(Feature::Ibpb) && value & !1 == 0)?,
            msr::UPDATE_TRIGGER | msr::PATCH_LOADER | msr::PATCH_LEVEL | msr::HWCR | msr::DE_CFG => {}
            _ if let Some(n) = fixed_range(number) => {
                when(all_types(value, mtrr_type))?;
                self.msrs.mtrr_fixed[n] = value;
            }
            _ if bank(number) == Some(1) => when(value == 0)?,
            _ if idle(number) => {}
            _ => return None,
        }
        Some(())
    }

    /// Sets the deadline of the local APIC's timer, which counts as the clock does: without our offset.
    fn write_deadline(&mut self, value: u64) -> Option<()> {
        let deadline = match value {
            // It is off.
            0 => 0,
            _ => value.wrapping_sub(self.msrs.tsc_offset).cast_signed().max(1).cast_unsigned(),
        };
        self.connections.interrupts.write_msr(msr::TSC_DEADLINE, deadline).ok()?;
        (self.slow, self.interrupts_wait) = (true, true);
        Some(())
    }

    /// Moves the time-stamp counter, and keeps `TSC_ADJUST` in step. A deadline that waits does not move with it.
    fn adjust_tsc(&mut self, change: u64) {
        let deadline = self.read_msr(msr::TSC_DEADLINE).unwrap_or(0);
        self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(change);
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(change);
        if deadline != 0 {
            // Nothing to be done where there is no such timer.
            let _ = self.write_deadline(deadline);
        }
    }

    fn write_efer(&mut self, value: u64) -> Option<()> {
        let m = &self.model;
        let known = efer::SCE
            | efer::LME
            | efer::LMA
            | if m.has(Feature::Nx) { efer::NXE } else { 0 }
            | if m.has(Feature::AutoIbrs) { AUTOIBRS } else { 0 };
        let old = self.msrs.efer;
        let mode = (value ^ old) & efer::LME != 0;
        if value & !known != 0 || mode && self.cr0 & cr0::PG != 0 {
            return None;
        }
        // LMA follows from LME and paging, and from nothing else.
        let value = value & !efer::LMA | old & efer::LMA;
        self.msrs.efer = value;
        if (value ^ old) & efer::NXE != 0 {
            self.mmu.flush_all();
        }
        Some(())
    }
}

/// Which of the eleven registers for fixed ranges this is.
fn fixed_range(number: u32) -> Option<usize> {
    match number {
        msr::MTRR_FIX_64K => Some(0),
        msr::MTRR_FIX_16K..=msr::MTRR_FIX_16K_LAST => Some((number - msr::MTRR_FIX_16K) as usize + 1),
        msr::MTRR_FIX_4K..=msr::MTRR_FIX_4K_LAST => Some((number - msr::MTRR_FIX_4K) as usize + 3),
        _ => None,
    }
}

/// Which register of a machine-check bank this is: control, status, address, miscellaneous.
fn bank(number: u32) -> Option<u32> {
    (msr::MC0_CTL..msr::MC0_CTL + 4 * BANKS).contains(&number).then_some(number & 3)
}

/// Registers that read as zero and ignore writes.
fn idle(number: u32) -> bool {
    bank(number).is_some()
        || matches!(
            number,
            msr::P5_MC_ADDR
                | msr::P5_MC_TYPE
                | msr::PLATFORM_ID
                | msr::EBL_CR_POWERON
                | msr::LAST_BRANCH..=msr::LAST_EXCEPTION_TO
                | msr::PERF_EVENT_0..=msr::PERF_COUNTER_3
                | msr::SYSCFG
                | msr::IORR_BASE_0..=msr::TOP_MEM
                | msr::TOP_MEM2
                | msr::NB_CFG
                | msr::INT_PENDING
                | msr::MMIO_CONF_BASE
                | msr::LS_CFG..=msr::EX_CFG
        )
}

#[cfg(test)]
#[path = "msr_test.rs"]
mod tests;
