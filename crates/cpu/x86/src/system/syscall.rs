//! Fast system calls (AMD APM volume 2, section 6.1, and volume 3): `syscall`, `sysret`, `sysenter`, `sysexit`,
//! `swapgs` and the bases of `fs` and `gs`.

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{Segment, cr4, efer, rflags};

use super::descriptor::is_null;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::{Op, Run, Step, register_number};

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;
const FS: usize = segment::FS as usize;
const GS: usize = segment::GS as usize;
const SS: usize = segment::SS as usize;

/// Access rights of privilege level 3, to be added to those of level 0.
const USER: u16 = 3 << 5;

fn user(segment: Segment) -> Segment {
    Segment { selector: segment.selector | 3, attributes: segment.attributes | USER, ..segment }
}

impl Core {
    /// Begins a system call at `rip` of flat code and stack segments, without a look at their descriptors.
    #[inline]
    fn enter_kernel(&mut self, code: Segment, rip: u64, clear: u64) {
        self.flags.set(self.flags.bits() & !clear);
        self.set_system_flags(self.system_flags & !(clear & !rflags::FIXED | rflags::RF));
        self.segments[SS] = Segment::flat_data((code.selector & !3).wrapping_add(8));
        self.set_code(code, 0, rip);
    }

    /// `#GP(0)` except in protected mode at privilege level 0.
    fn needs_kernel(&mut self) -> Step {
        if self.protected() && self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }
}

fn syscall(core: &mut Core, _: &Op) -> Step {
    if core.msrs.efer & efer::SCE == 0 {
        return Err(core.ud());
    }
    let selector = (core.msrs.star >> 32) as u16 & !3;
    core.registers[RCX] = core.rip();
    if core.long_active() {
        core.registers[R11] = core.rflags() & !rflags::RF;
        let target = if core.long64 { core.msrs.lstar } else { core.msrs.cstar };
        core.enter_kernel(Segment::flat_code64(selector), target, core.msrs.sfmask);
        core.entered = core.msrs.sfmask & rflags::TF != 0;
    } else {
        let target = core.msrs.star & 0xffff_ffff;
        core.enter_kernel(Segment::flat_code32(selector), target, rflags::VM | rflags::IF);
    }
    Ok(())
}

fn sysret<T: Int>(core: &mut Core, _: &Op) -> Step {
    if core.msrs.efer & efer::SCE == 0 {
        return Err(core.ud());
    }
    core.needs_kernel()?;
    let selector = (core.msrs.star >> 48) as u16;
    if core.long64 {
        core.set_rflags(core.registers[R11] & !(rflags::RF | rflags::VM));
    } else {
        core.set_system_flags(core.system_flags | rflags::IF);
    }
    // The stack segment gets its selector, and keeps the rest, even if that is no use to a 32-bit program.
    let stack = Segment { selector: selector.wrapping_add(8), ..core.segments[SS] };
    core.segments[SS] = user(stack);
    let (code, rip) = if T::BITS == 64 && core.long64 {
        (Segment::flat_code64(selector.wrapping_add(16)), core.registers[RCX])
    } else {
        (Segment::flat_code32(selector), core.registers[RCX] & 0xffff_ffff)
    };
    core.set_code(user(code), 3, rip);
    // Unlike `iret`, which lets the program carry out an instruction first.
    core.step_at_once();
    Ok(())
}

/// On AMD processors outside long mode only.
fn sysenter(core: &mut Core, _: &Op) -> Step {
    if core.long_active() {
        return Err(core.ud());
    }
    let selector = core.msrs.sysenter_cs as u16 & !3;
    if !core.protected() || is_null(selector) {
        return Err(core.gp(0));
    }
    core.registers[RSP] = core.msrs.sysenter_esp & 0xffff_ffff;
    let target = core.msrs.sysenter_eip & 0xffff_ffff;
    core.enter_kernel(Segment::flat_code32(selector), target, rflags::VM | rflags::IF);
    Ok(())
}

fn sysexit(core: &mut Core, _: &Op) -> Step {
    core.needs_kernel()?;
    if core.long_active() {
        return Err(core.ud());
    }
    let selector = core.msrs.sysenter_cs as u16 & !3;
    if is_null(selector) {
        return Err(core.gp(0));
    }
    let rip = core.registers[RDX] & 0xffff_ffff;
    core.registers[RSP] = core.registers[RCX] & 0xffff_ffff;
    core.segments[SS] = user(Segment::flat_data(selector.wrapping_add(24)));
    core.set_code(user(Segment::flat_code32(selector.wrapping_add(16))), 3, rip);
    Ok(())
}

fn swapgs(core: &mut Core, _: &Op) -> Step {
    if !core.long64 {
        return Err(core.ud());
    }
    if core.cpl != 0 {
        return Err(core.gp(0));
    }
    std::mem::swap(&mut core.segments[GS].base, &mut core.msrs.kernel_gs_base);
    core.views[GS].base = core.segments[GS].base;
    Ok(())
}

fn needs_fsgsbase(core: &mut Core) -> Step {
    if core.long64 && core.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(core.ud()) }
}

fn read_base<T: Int, const NUMBER: usize>(core: &mut Core, op: &Op) -> Step {
    needs_fsgsbase(core)?;
    core.set_reg(op.dst, T::new(core.segments[NUMBER].base));
    Ok(())
}

fn write_base<T: Int, const NUMBER: usize>(core: &mut Core, op: &Op) -> Step {
    needs_fsgsbase(core)?;
    let base = core.reg::<T>(op.dst).zext();
    if !Core::is_canonical(base) {
        return Err(core.gp(0));
    }
    core.segments[NUMBER].base = base;
    core.views[NUMBER].base = base;
    Ok(())
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.code() {
        Code::Syscall => syscall,
        Code::Sysretd => sysret::<u32>,
        Code::Sysretq => sysret::<u64>,
        Code::Sysenter => sysenter,
        Code::Sysexitd | Code::Sysexitq => sysexit,
        Code::Swapgs => swapgs,
        Code::Rdfsbase_r32 => read_base::<u32, FS>,
        Code::Rdfsbase_r64 => read_base::<u64, FS>,
        Code::Rdgsbase_r32 => read_base::<u32, GS>,
        Code::Rdgsbase_r64 => read_base::<u64, GS>,
        Code::Wrfsbase_r32 => write_base::<u32, FS>,
        Code::Wrfsbase_r64 => write_base::<u64, FS>,
        Code::Wrgsbase_r32 => write_base::<u32, GS>,
        Code::Wrgsbase_r64 => write_base::<u64, GS>,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    op.dst = register_number(i.op0_register());
    Some(op)
}

#[cfg(test)]
#[path = "syscall_test.rs"]
mod tests;
