//! Debugging: debug registers, breakpoints, single-stepping (AMD APM volume 2, chapter 13).
//!
//! While anything is armed the interpreter carries out one instruction at a time, and memory accesses take the
//! slow way past [`Core::note_data_access`]. What they hit is gathered as bits of `dr6`, and becomes a trap when
//! the instruction is over.

use iced_x86::{Code, Instruction, Register};
use posada_vcpu::x86::{Running, cr4, rflags};

use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::exception::vector;
use crate::op::{Op, Step, register_number};

/// Bits of `dr6`.
mod dr6 {
    /// Breakpoints 0 to 3 were hit.
    pub(super) const B: u64 = 0xf;
    /// An access to a debug register while `dr7.GD` was set.
    pub(super) const BD: u64 = 1 << 13;
    /// A single step.
    pub(super) const BS: u64 = 1 << 14;
    /// A task switch.
    pub(super) const BT: u64 = 1 << 15;
    /// Always set.
    pub(super) const FIXED: u64 = 0xffff_0ff0;
}

/// Bits of `dr7`.
mod dr7 {
    /// Accesses to debug registers are faults.
    pub(super) const GD: u64 = 1 << 13;
    /// All that can be changed: two enabling bits and four of kind and length for each breakpoint, LE, GE, GD.
    pub(super) const WRITABLE: u64 = 0xffff_23ff;
    /// Always set.
    pub(super) const FIXED: u64 = 1 << 10;
}

/// What a breakpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Execute,
    Write,
    Port,
    ReadOrWrite,
}

/// One of the four, if it is on.
struct Breakpoint {
    kind: Kind,
    address: u64,
    len: u64,
}

impl Breakpoint {
    /// Whether it and `size` bytes at `address` overlap. Its own address is rounded down to its length.
    fn overlaps(&self, address: u64, size: u64) -> bool {
        let start = self.address & !(self.len - 1);
        address.wrapping_sub(start) < self.len || start.wrapping_sub(address) < size
    }
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.code() {
        Code::Mov_r32_dr | Code::Mov_r64_dr => {
            let mut op = Op::new(read_debug, i);
            op.dst = register_number(i.op0_register());
            op.src = debug_number(i.op1_register())?;
            Some(op)
        }
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
            let mut op = Op::new(write_debug, i);
            op.dst = debug_number(i.op0_register())?;
            op.src = register_number(i.op1_register());
            Some(op)
        }
        _ => None,
    }
}

/// `dr8` to `dr15` are `#UD`.
fn debug_number(register: Register) -> Option<u8> {
    let number = register_number(register);
    (number < 8).then_some(number)
}

/// Whether a debug register may be accessed now; the number of the register that it really is.
fn check_access(core: &mut Core, number: u8) -> Step<u8> {
    core.need_ring_0()?;
    // `dr4` and `dr5` are other names of `dr6` and `dr7`, unless debugging extensions are on.
    let number = match number {
        4 | 5 if core.cr4 & cr4::DE != 0 => return Err(core.ud()),
        4 | 5 => number + 2,
        _ => number,
    };
    if core.dr7 & dr7::GD != 0 {
        core.note_debug_exception(dr6::BD);
        return Err(core.raise(vector::DB, None));
    }
    Ok(number)
}

fn read_debug(core: &mut Core, op: &Op) -> Step {
    let value = match check_access(core, op.src)? {
        6 => core.dr6,
        7 => core.dr7,
        n => core.breakpoints[usize::from(n & 3)],
    };
    if core.long64 {
        core.set_reg::<u64>(op.dst, value);
    } else {
        core.set_reg::<u32>(op.dst, value as u32);
    }
    Ok(())
}

fn write_debug(core: &mut Core, op: &Op) -> Step {
    let number = check_access(core, op.dst)?;
    let value = if core.long64 { core.reg::<u64>(op.src) } else { u64::from(core.reg::<u32>(op.src)) };
    if number >= 6 && value >> 32 != 0 {
        return Err(core.gp(0));
    }
    match number {
        6 => core.dr6 = value & (dr6::B | dr6::BD | dr6::BS | dr6::BT) | dr6::FIXED,
        7 => core.dr7 = value & dr7::WRITABLE | dr7::FIXED,
        n => core.breakpoints[usize::from(n & 3)] = value,
    }
    core.update_debug();
    LEAVE
}

impl Core {
    /// Breakpoint `n`, if it is on.
    fn breakpoint(&self, n: usize) -> Option<Breakpoint> {
        if self.dr7 >> (2 * n) & 3 == 0 {
            return None;
        }
        let kind = match self.dr7 >> (16 + 4 * n) & 3 {
            0 => Kind::Execute,
            1 => Kind::Write,
            2 => Kind::Port,
            _ => Kind::ReadOrWrite,
        };
        let len = match self.dr7 >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some(Breakpoint { kind, address: self.breakpoints[n], len })
    }

    /// The breakpoints that satisfy `hit`, as bits of `dr6`.
    fn breakpoints_hit(&self, hit: impl Fn(&Breakpoint) -> bool) -> u64 {
        (0..4).filter(|n| self.breakpoint(*n).is_some_and(|b| hit(&b))).fold(0, |bits, n| bits | 1 << n)
    }

    /// Works out again what `dr7` and `cr4` ask for: after any change of debug registers.
    pub(crate) fn update_debug(&mut self) {
        self.debugging = self.breakpoints_hit(|_| true) != 0;
        let data = self.breakpoints_hit(|b| matches!(b.kind, Kind::Write | Kind::ReadOrWrite)) != 0;
        self.mmu.set_watch(data);
        self.slow |= self.debugging;
    }

    /// Notes why a debug exception comes; with it accesses to debug registers become possible again.
    fn note_debug_exception(&mut self, why: u64) {
        self.dr6 |= why;
        self.dr7 &= !dr7::GD;
    }

    /// Delivers a debug exception.
    fn debug_exception(&mut self, why: u64) {
        self.note_debug_exception(why);
        self.activity.running = Running::Running;
        self.raise(vector::DB, None);
        self.deliver_fault();
    }

    /// After an instruction that has loaded TF, and is itself the step.
    pub(super) fn step_at_once(&mut self) {
        if self.system_flags & rflags::TF != 0 {
            self.entered = true;
            self.debug_exception(dr6::BS);
        }
    }

    /// Whether the next instruction must be carried out alone: single-stepping, breakpoints, a shadow.
    pub(crate) fn needs_stepping(&self) -> bool {
        self.debugging
            || self.activity.sti_shadow
            || self.activity.mov_ss_shadow
            || self.debug_pending != 0
            || self.system_flags & (rflags::TF | rflags::RF) != 0
    }

    /// Begins an instruction that is carried out alone. True: an instruction breakpoint was hit instead, and its
    /// fault delivered; this cannot happen in the shadow of a load of `ss` (`shadow`).
    pub(crate) fn begin_instruction(&mut self, shadow: bool) -> bool {
        self.debug_hits = 0;
        self.entered = false;
        // RF lasts for one instruction. A fault of this one sets it anew in the flags that it pushes.
        let resumed = self.system_flags & rflags::RF != 0;
        self.system_flags &= !rflags::RF;
        if !self.debugging || resumed || shadow {
            return false;
        }
        let base = if self.long64 { 0 } else { self.segments[usize::from(segment::CS)].base };
        let linear = base.wrapping_add(self.rip()) & self.linear_mask;
        let hits = self.breakpoints_hit(|b| b.kind == Kind::Execute && b.address == linear);
        if hits != 0 {
            self.debug_exception(hits);
        }
        hits != 0
    }

    /// Debug traps after an instruction that was carried out alone; `stepping`: TF was set before it.
    pub(crate) fn end_of_instruction(&mut self, stepping: bool) {
        self.debug_pending |= self.debug_hits;
        if self.activity.mov_ss_shadow {
            // Until the instruction after a load of `ss` is done, data breakpoints wait, too, and there is no
            // single step.
            return;
        }
        let mut hits = std::mem::take(&mut self.debug_pending);
        // Entering a handler clears TF; a program steps over `int` and `syscall`, not into them.
        if stepping && !self.entered {
            hits |= dr6::BS;
        }
        if hits != 0 {
            self.debug_exception(hits);
        }
    }

    /// Notes a data access for the breakpoints it hits.
    pub(crate) fn note_data_access(&mut self, linear: u64, size: u64, write: bool) {
        self.debug_hits |= self.breakpoints_hit(|b| {
            (b.kind == Kind::ReadOrWrite || b.kind == Kind::Write && write) && b.overlaps(linear, size)
        });
    }

    /// Notes a port access for the breakpoints it hits.
    pub(super) fn note_port_access(&mut self, port: u16, size: u64) {
        if self.debugging && self.cr4 & cr4::DE != 0 {
            self.debug_hits |=
                self.breakpoints_hit(|b| b.kind == Kind::Port && b.overlaps(u64::from(port), size));
        }
    }
}

#[cfg(test)]
#[path = "debug_test.rs"]
mod tests;
