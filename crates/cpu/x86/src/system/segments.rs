//! Loading segment registers (AMD APM volume 2, sections 4.5 to 4.9).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use posada_vcpu::x86::Segment;

use super::descriptor::{is_null, name, rpl};
use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::{Op, Run, Step, is_memory, register_number};

/// Access rights of every segment in virtual-8086 mode: read-write data at privilege level 3.
const V8086_RIGHTS: u16 = 0xf3;

/// A segment of virtual-8086 mode.
pub(super) fn v8086_segment(selector: u16) -> Segment {
    Segment { attributes: V8086_RIGHTS, ..Segment::real_mode(selector) }
}

impl Core {
    /// What segment register `number` (not `cs`) will hold once it is loaded with `selector`, after all checks.
    pub(super) fn load_segment(&mut self, number: u8, selector: u16) -> Step<Segment> {
        if !self.protected() {
            return Ok(self.real_segment(number, selector));
        }
        if self.v8086() {
            return Ok(v8086_segment(selector));
        }
        if number == segment::SS {
            self.load_stack_segment(selector)
        } else {
            self.load_data_segment(selector)
        }
    }

    /// In real mode a load changes the base alone: limit and rights stay what they were, even those of protected
    /// mode. Only after a null selector there is nothing to stay.
    fn real_segment(&self, number: u8, selector: u16) -> Segment {
        let old = self.segments[usize::from(number)];
        if !old.present() {
            return Segment::real_mode(selector);
        }
        Segment { selector, base: u64::from(selector) << 4, ..old }
    }

    fn load_data_segment(&mut self, selector: u16) -> Step<Segment> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let descriptor = self.descriptor_or_gp(selector, 0)?;
        let privileged = self.cpl.max(rpl(selector)) <= descriptor.dpl() || descriptor.is_conforming();
        if !descriptor.is_readable() || !privileged {
            return Err(self.gp(name(selector)));
        }
        if !descriptor.present() {
            return Err(self.np(name(selector)));
        }
        self.mark_accessed(&descriptor)?;
        Ok(descriptor.segment())
    }

    fn load_stack_segment(&mut self, selector: u16) -> Step<Segment> {
        if is_null(selector) {
            // 64-bit code needs no stack segment, unless it is a user's.
            if self.long64 && self.cpl != 3 && rpl(selector) == self.cpl {
                let attributes = u16::from(self.cpl) << 5;
                return Ok(Segment { selector, attributes, ..Segment::default() });
            }
            return Err(self.gp(0));
        }
        self.load_stack_segment_for(self.cpl, selector)
    }

    /// A stack segment, not null, for code at privilege level `cpl`.
    pub(super) fn load_stack_segment_for(&mut self, cpl: u8, selector: u16) -> Step<Segment> {
        let descriptor = self.descriptor_or_gp(selector, 0)?;
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.is_writable() {
            return Err(self.gp(name(selector)));
        }
        if !descriptor.present() {
            return Err(self.ss_fault(name(selector)));
        }
        self.mark_accessed(&descriptor)?;
        Ok(descriptor.segment())
    }

    /// Puts into a segment register what [`load_segment`](Self::load_segment) has found. After a change of `ss`
    /// code may have to be decoded again.
    pub(super) fn install_segment(&mut self, number: u8, segment: Segment) {
        let index = usize::from(number);
        let resized = number == segment::SS && segment.db() != self.segments[index].db();
        self.segments[index] = segment;
        if resized {
            self.update_mode();
        } else {
            self.update_view(number);
        }
    }

    /// Goes on at `rip` of a code segment, at privilege level `cpl`; `ss` is in place already. Ends the block.
    #[inline]
    pub(super) fn set_code(&mut self, code: Segment, cpl: u8, rip: u64) {
        let selector = code.selector & !3 | u16::from(cpl);
        self.segments[usize::from(segment::CS)] = Segment { selector, ..code };
        self.cpl = cpl;
        self.set_rip(rip);
        self.update_code();
    }

    /// Goes on at `selector:offset` in real or virtual-8086 mode.
    pub(super) fn set_real_code(&mut self, selector: u16, offset: u64) {
        let code =
            if self.v8086() { v8086_segment(selector) } else { self.real_segment(segment::CS, selector) };
        self.segments[usize::from(segment::CS)] = code;
        self.set_rip(offset);
        self.update_code();
    }

    /// Holds interrupts off for one more instruction, so that a stack pointer can follow its segment.
    fn begin_stack_shadow(&mut self) {
        self.activity.mov_ss_shadow = true;
        self.slow = true;
    }
}

fn load(core: &mut Core, number: u8, selector: u16) -> Step {
    let loaded = core.load_segment(number, selector)?;
    core.install_segment(number, loaded);
    if number == segment::SS {
        core.begin_stack_shadow();
        return LEAVE;
    }
    Ok(())
}

fn mov_from_register(core: &mut Core, op: &Op) -> Step {
    let selector = core.reg(op.src);
    load(core, op.dst, selector)
}

fn mov_from_memory(core: &mut Core, op: &Op) -> Step {
    let selector = core.read_op(op)?;
    load(core, op.dst, selector)
}

/// To a register: all of it is written, with zeros above the selector.
fn mov_to_register<T: Int>(core: &mut Core, op: &Op) -> Step {
    let selector = core.segments[usize::from(op.src) % 6].selector;
    core.set_reg(op.dst, T::new(u64::from(selector)));
    Ok(())
}

fn mov_to_memory(core: &mut Core, op: &Op) -> Step {
    core.write_op(op, core.segments[usize::from(op.src) % 6].selector)
}

fn pop<T: Int>(core: &mut Core, op: &Op) -> Step {
    let selector = core.peek::<T>(0)?.zext() as u16;
    let loaded = core.load_segment(op.dst, selector)?;
    // The pop is from the old stack.
    core.set_stack_pointer(core.stack_pointer().wrapping_add(T::BYTES));
    core.install_segment(op.dst, loaded);
    if op.dst == segment::SS {
        core.begin_stack_shadow();
        return LEAVE;
    }
    Ok(())
}

/// `lds`, `les`, `lfs`, `lgs`, `lss`: a register and a segment register from memory.
fn load_far_pointer<T: Int>(core: &mut Core, op: &Op) -> Step {
    let (pointer, selector) = core.read_far_pointer::<T>(op)?;
    let loaded = core.load_segment(op.src, selector)?;
    core.set_reg(op.dst, pointer);
    core.install_segment(op.src, loaded);
    if op.src == segment::SS { LEAVE } else { Ok(()) }
}

impl Core {
    /// A far pointer in memory: offset, then selector.
    pub(super) fn read_far_pointer<T: Int>(&mut self, op: &Op) -> Step<(T, u16)> {
        let address = op.address(self);
        let wrap = u64::MAX >> op.address_shift;
        let offset = self.read::<T>(op.segment, address)?;
        let selector = self.read::<u16>(op.segment, address.wrapping_add(T::BYTES) & wrap)?;
        Ok((offset, selector))
    }
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let is_segment = |n: u32| i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register();
    match i.mnemonic() {
        Mnemonic::Mov if is_segment(0) => {
            let memory = is_memory(i.op1_kind());
            let mut op = Op::new(if memory { mov_from_memory } else { mov_from_register }, i);
            op.dst = register_number(i.op0_register());
            op.src = if memory { 0 } else { register_number(i.op1_register()) };
            Some(op)
        }
        Mnemonic::Mov if i.op_count() == 2 && is_segment(1) => {
            let run: Run = match i.op0_register() {
                _ if is_memory(i.op0_kind()) => mov_to_memory,
                r if r.size() == 2 => mov_to_register::<u16>,
                _ => mov_to_register::<u32>,
            };
            let mut op = Op::new(run, i);
            op.dst = register_number(i.op0_register());
            op.src = register_number(i.op1_register());
            Some(op)
        }
        Mnemonic::Pop if is_segment(0) => {
            let run: Run = match i.stack_pointer_increment() {
                2 => pop::<u16>,
                4 => pop::<u32>,
                _ => pop::<u64>,
            };
            let mut op = Op::new(run, i);
            op.dst = register_number(i.op0_register());
            // `pop cs` was an instruction of the 8086 alone.
            (op.dst != segment::CS).then_some(op)
        }
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            let run: Run = match i.op0_register().size() {
                2 => load_far_pointer::<u16>,
                4 => load_far_pointer::<u32>,
                _ => load_far_pointer::<u64>,
            };
            let mut op = Op::new(run, i);
            op.dst = register_number(i.op0_register());
            op.src = register_number(match i.mnemonic() {
                Mnemonic::Lds => Register::DS,
                Mnemonic::Les => Register::ES,
                Mnemonic::Lfs => Register::FS,
                Mnemonic::Lgs => Register::GS,
                _ => Register::SS,
            });
            Some(op)
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "segments_test.rs"]
mod tests;
