//! Control registers, and the changes of mode that they bring (AMD APM volume 2, sections 3.1, 5.3, 14.5 and
//! 14.6; volume 3, `mov crn`, `clts`).

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{cr0, cr4, efer, rflags};

use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::model::Feature;
use crate::op::{Op, Step, register_number};
use crate::paging::PHYSICAL_BITS;

/// All bits of `cr0` that exist; writes to the rest are ignored.
const CR0: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// `cr3`: do not flush what the new process context has in the TLB.
const KEEP: u64 = 1 << 63;
/// `cr3`: the process-context identifier.
const PCID: u64 = 0xfff;

/// Bits of `cr4` beside the feature that brings them.
const CR4: &[(u64, Feature)] = &[
    (cr4::TSD, Feature::Tsc),
    (cr4::DE, Feature::De),
    (cr4::PSE, Feature::Pse),
    (cr4::PAE, Feature::Pae),
    (cr4::MCE, Feature::Mce),
    (cr4::PGE, Feature::Pge),
    (cr4::PCE, Feature::Fpu),
    (cr4::OSFXSR, Feature::Fxsr),
    (cr4::OSXMMEXCPT, Feature::Sse),
    (cr4::UMIP, Feature::Umip),
    (cr4::FSGSBASE, Feature::Fsgsbase),
    (cr4::PCIDE, Feature::Pcid),
    (cr4::OSXSAVE, Feature::Xsave),
    (cr4::SMEP, Feature::Smep),
    (cr4::SMAP, Feature::Smap),
];

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            let mut op = Op::new(read_control, i);
            op.dst = register_number(i.op0_register());
            op.src = control_number(i.op1_register())?;
            Some(op)
        }
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
            let mut op = Op::new(write_control, i);
            op.dst = control_number(i.op0_register())?;
            op.src = register_number(i.op1_register());
            Some(op)
        }
        Code::Clts => Some(Op::new(clts, i)),
        Code::Clac => Some(Op::new(access_check::<false>, i)),
        Code::Stac => Some(Op::new(access_check::<true>, i)),
        _ => None,
    }
}

/// `clac` and `stac`: RFLAGS.AC, by which the supervisor reaches user pages in spite of SMAP.
fn access_check<const SET: bool>(core: &mut Core, _: &Op) -> Step {
    if core.cpl != 0 {
        return Err(core.ud());
    }
    let others = core.system_flags & !rflags::AC;
    core.set_system_flags(others | if SET { rflags::AC } else { 0 });
    Ok(())
}

/// Those that exist; the others are `#UD`.
fn control_number(register: iced_x86::Register) -> Option<u8> {
    let number = register_number(register);
    matches!(number, 0 | 2 | 3 | 4 | 8).then_some(number)
}

fn read_control(core: &mut Core, op: &Op) -> Step {
    core.need_ring_0()?;
    let value = match op.src {
        0 => core.cr0,
        2 => core.cr2,
        3 => core.cr3,
        4 => core.cr4,
        _ => u64::from(core.connections.interrupts.cr8() & 15),
    };
    if core.long64 {
        core.set_reg::<u64>(op.dst, value);
    } else {
        core.set_reg::<u32>(op.dst, value as u32);
    }
    Ok(())
}

fn write_control(core: &mut Core, op: &Op) -> Step {
    core.need_ring_0()?;
    let value = if core.long64 { core.reg::<u64>(op.src) } else { u64::from(core.reg::<u32>(op.src)) };
    match op.dst {
        0 => core.write_cr0(value),
        2 => {
            core.cr2 = value;
            Ok(())
        }
        3 => core.write_cr3(value),
        4 => core.write_cr4(value),
        _ => {
            if value > 15 {
                return Err(core.gp(0));
            }
            core.connections.interrupts.set_cr8(value as u8);
            (core.slow, core.interrupts_wait) = (true, true);
            LEAVE
        }
    }
}

fn clts(core: &mut Core, _: &Op) -> Step {
    core.need_ring_0()?;
    core.cr0 &= !cr0::TS;
    core.update_mode();
    LEAVE
}

impl Core {
    /// `#GP(0)` at any CPL but 0; virtual-8086 mode is CPL 3.
    #[inline]
    pub(super) fn need_ring_0(&mut self) -> Step {
        if self.cpl != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// Legacy PAE paging: `cr3` names four pointers rather than a page table.
    fn uses_pointers(&self, cr0: u64, cr4: u64) -> bool {
        cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && self.msrs.efer & efer::LME == 0
    }

    /// The four pointers of legacy PAE paging must have their reserved bits clear.
    fn check_pointers(&mut self, cr3: u64) -> Step {
        for n in 0..4 {
            let entry = self.table_entry((cr3 & 0xffff_ffe0) + n * 8, true);
            if entry & 1 != 0 && entry & crate::paging::POINTER_RESERVED != 0 {
                return Err(self.gp(0));
            }
        }
        Ok(())
    }

    /// Writes `cr0` with all checks; on success the mode may be another.
    pub(super) fn write_cr0(&mut self, value: u64) -> Step {
        let has = |bit| value & bit != 0;
        if value >> 32 != 0 || has(cr0::PG) && !has(cr0::PE) || has(cr0::NW) && !has(cr0::CD) {
            return Err(self.gp(0));
        }
        let value = value & CR0 | cr0::ET;
        let changed = value ^ self.cr0;
        let long = self.msrs.efer & efer::LME != 0;
        if changed & cr0::PG != 0 {
            if has(cr0::PG) {
                if long {
                    // Long mode begins in a code segment that is not a 64-bit one.
                    let cs = self.segments[usize::from(segment::CS)];
                    if self.cr4 & cr4::PAE == 0 || cs.long() {
                        return Err(self.gp(0));
                    }
                }
            } else if self.long64 || self.cr4 & cr4::PCIDE != 0 {
                return Err(self.gp(0));
            }
        }
        if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && self.uses_pointers(value, self.cr4) {
            self.check_pointers(self.cr3)?;
        }
        self.cr0 = value;
        if long && has(cr0::PG) {
            self.msrs.efer |= efer::LMA;
        } else {
            self.msrs.efer &= !efer::LMA;
        }
        // The TLB holds rights as WP had them.
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.mmu.flush_all();
        }
        self.update_mode();
        LEAVE
    }

    /// Writes `cr3` with all checks.
    fn write_cr3(&mut self, value: u64) -> Step {
        let pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value & KEEP != 0;
        let value = if pcid { value & !KEEP } else { value };
        if self.long_active() && value >> PHYSICAL_BITS != 0 {
            return Err(self.gp(0));
        }
        if self.uses_pointers(self.cr0, self.cr4) {
            self.check_pointers(value)?;
        }
        self.cr3 = value;
        self.mmu.switch(self.pcid(), keep);
        LEAVE
    }

    /// The process-context identifier in use; 0 where there are none.
    pub(super) fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & PCID) as u16 } else { 0 }
    }

    /// Writes `cr4` with all checks.
    fn write_cr4(&mut self, value: u64) -> Step {
        let known =
            CR4.iter().filter(|(_, feature)| self.model.has(*feature)).fold(0, |all, (bit, _)| all | bit);
        let changed = value ^ self.cr4;
        let gone = changed & self.cr4;
        let new = changed & value;
        if value & !known != 0
            || self.long_active() && gone & cr4::PAE != 0
            || new & cr4::PCIDE != 0 && (!self.long_active() || self.cr3 & PCID != 0)
        {
            return Err(self.gp(0));
        }
        if changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 && self.uses_pointers(self.cr0, value)
        {
            self.check_pointers(self.cr3)?;
        }
        self.cr4 = value;
        if changed & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP | cr4::PCIDE) != 0 {
            self.mmu.flush_all();
        }
        self.update_mode();
        LEAVE
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
