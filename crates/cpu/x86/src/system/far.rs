//! Far jumps, calls and returns, through call gates and to other privilege levels (AMD APM volume 2, section
//! 4.11, and volume 3, `CALL (Far)`, `JMP (Far)`, `RET (Far)`).

use iced_x86::{Code, Instruction, OpKind};
use posada_vcpu::x86::Segment;

use super::descriptor::{Descriptor, is_null, kind, name, rpl};
use super::stack::{Stack, null_stack_segment};
use super::task::Cause;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::{Op, Run, Step};

/// The most parameters that a call gate copies.
const PARAMETERS: usize = 31;

/// `call`, or else `jmp`.
type IsCall = bool;

impl Core {
    fn cs(&self) -> &Segment {
        &self.segments[usize::from(segment::CS)]
    }

    /// `#GP(0)` unless code can be at `rip` of `code`.
    #[inline]
    pub(super) fn check_target(&mut self, code: &Segment, rip: u64) -> Step {
        let inside = if self.long_active() && code.long() {
            Self::is_canonical(rip)
        } else {
            rip <= u64::from(code.limit)
        };
        if inside { Ok(()) } else { Err(self.gp(0)) }
    }

    /// A far jump or call of operand size `T`.
    fn far_transfer<T: Int>(&mut self, selector: u16, offset: u64, call: IsCall, op: &Op) -> Step {
        if !self.uses_descriptors() {
            if offset > u64::from(self.cs().limit) {
                return Err(self.gp(0));
            }
            if call {
                let mut stack = self.current_stack(0);
                let frame = [u64::from(self.cs().selector), self.rip()];
                self.push_frame::<T>(&mut stack, &frame)?;
                self.set_stack_pointer(stack.pointer);
            }
            self.set_real_code(selector, offset);
            return Ok(());
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let target = self.descriptor_or_gp(selector, 0)?;
        if target.is_code() {
            return self.far_to_code::<T>(&target, offset, call);
        }
        match (target.kind(), self.long_active()) {
            (kind::CALL_GATE, true) => self.far_through_gate::<u64>(&target, call),
            (kind::CALL_GATE, false) => self.far_through_gate::<u32>(&target, call),
            (kind::CALL_GATE16, false) => self.far_through_gate::<u16>(&target, call),
            (kind::TASK_GATE | kind::TSS | kind::TSS16, false) => self.far_to_task(&target, call, op),
            _ => Err(self.gp(name(selector))),
        }
    }

    fn far_to_code<T: Int>(&mut self, target: &Descriptor, offset: u64, call: IsCall) -> Step {
        let allowed = if target.is_conforming() {
            target.dpl() <= self.cpl
        } else {
            target.dpl() == self.cpl && rpl(target.selector) <= self.cpl
        };
        let code = target.segment();
        if !allowed || self.long_active() && code.long() && code.db() {
            return Err(self.gp(name(target.selector)));
        }
        if !target.present() {
            return Err(self.np(name(target.selector)));
        }
        self.check_target(&code, offset)?;
        self.mark_accessed(target)?;
        self.set_code_at_same_level::<T>(code, offset, call)
    }

    /// Goes on at `offset` of a code segment; a call pushes the return address first, of operand size `T`, on the
    /// stack as the new code sees it.
    fn set_code_at_same_level<T: Int>(&mut self, code: Segment, offset: u64, call: IsCall) -> Step {
        if !call {
            self.set_code(code, self.cpl, offset);
            return Ok(());
        }
        let (segment, pointer) = (self.segments[usize::from(segment::SS)], self.registers[4]);
        let mut stack = if self.long_active() && code.long() {
            Stack::long(segment, pointer, 0)
        } else {
            Stack::new(segment, pointer, 0)
        };
        let selector = u64::from(self.cs().selector);
        self.push_frame::<T>(&mut stack, &[selector, self.rip()])?;
        self.set_code(code, self.cpl, offset);
        self.set_stack_pointer(stack.pointer);
        Ok(())
    }

    /// Through a call gate of operand size `T`.
    fn far_through_gate<T: Int>(&mut self, gate: &Descriptor, call: IsCall) -> Step {
        if gate.dpl() < self.cpl.max(rpl(gate.selector)) {
            return Err(self.gp(name(gate.selector)));
        }
        let mut offset = gate.gate_offset();
        let long = self.long_active();
        if long {
            offset |= self.upper_half(gate.selector, 0)? << 32;
        }
        if !gate.present() {
            return Err(self.np(name(gate.selector)));
        }
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let target = self.descriptor_or_gp(selector, 0)?;
        let code = target.segment();
        let inward = !target.is_conforming() && target.dpl() < self.cpl;
        if !target.is_code()
            || target.dpl() > self.cpl
            || inward && !call
            || long && (!code.long() || code.db())
        {
            return Err(self.gp(name(selector)));
        }
        if !target.present() {
            return Err(self.np(name(selector)));
        }
        self.check_target(&code, offset)?;
        self.mark_accessed(&target)?;
        if inward {
            return self.call_inward::<T>(gate, code, target.dpl(), offset);
        }
        self.set_code_at_same_level::<T>(code, offset, call)
    }

    /// A call to a more privileged level: on its own stack, with the parameters copied there.
    fn call_inward<T: Int>(&mut self, gate: &Descriptor, code: Segment, cpl: u8, offset: u64) -> Step {
        let ss = u64::from(self.segments[usize::from(segment::SS)].selector);
        let cs = u64::from(self.cs().selector);
        let mut frame = [0; PARAMETERS + 4];
        frame[..2].copy_from_slice(&[ss, self.registers[4]]);
        let mut len = 2;
        if T::BITS < 64 {
            for number in (0..(gate.raw >> 32) & 0x1f).rev() {
                frame[len] = self.peek::<T>(number * T::BYTES)?.zext();
                len += 1;
            }
        }
        frame[len..len + 2].copy_from_slice(&[cs, self.rip()]);
        len += 2;
        let stack = self.as_supervisor(|core| {
            let mut stack = if T::BITS == 64 {
                let pointer = core.tss_stack_pointer(4 + u64::from(cpl) * 8, 0)?;
                Stack::long(null_stack_segment(cpl), pointer, 0)
            } else {
                core.inner_stack(cpl, 0)?
            };
            core.push_frame::<T>(&mut stack, &frame[..len])?;
            Ok(stack)
        })?;
        self.segments[usize::from(segment::SS)] = stack.segment;
        self.set_code(code, cpl, offset);
        self.set_stack_pointer(stack.pointer);
        Ok(())
    }

    /// To a TSS, or to a task gate, which names one.
    #[cold]
    fn far_to_task(&mut self, target: &Descriptor, call: IsCall, op: &Op) -> Step {
        if target.dpl() < self.cpl.max(rpl(target.selector)) {
            return Err(self.gp(name(target.selector)));
        }
        let mut tss = *target;
        if target.kind() == kind::TASK_GATE {
            if !target.present() {
                return Err(self.np(name(target.selector)));
            }
            let selector = target.gate_selector();
            if is_null(selector) || selector & 4 != 0 {
                return Err(self.gp(name(selector)));
            }
            tss = self.descriptor_or_gp(selector, 0)?;
        }
        if !matches!(tss.kind(), kind::TSS | kind::TSS16) {
            return Err(self.gp(name(tss.selector)));
        }
        if !tss.present() {
            return Err(self.np(name(tss.selector)));
        }
        self.switch_task(&tss, if call { Cause::Call } else { Cause::Jump }, op.len)
    }

    /// The code segment that a far return or `iret` goes back to, at the privilege level that its RPL says.
    #[inline]
    pub(super) fn return_code(&mut self, selector: u16) -> Step<Segment> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let target = self.descriptor_or_gp(selector, 0)?;
        let to = rpl(selector);
        let level = if target.is_conforming() { target.dpl() <= to } else { target.dpl() == to };
        let code = target.segment();
        if !target.is_code() || to < self.cpl || !level || self.long_active() && code.long() && code.db() {
            return Err(self.gp(name(selector)));
        }
        if !target.present() {
            return Err(self.np(name(selector)));
        }
        self.mark_accessed(&target)?;
        Ok(code)
    }

    /// The stack segment for code at `cpl`, which a return goes back to. 64-bit code needs none, but for a user's.
    #[inline]
    pub(super) fn return_stack(&mut self, selector: u16, cpl: u8, code: &Segment) -> Step<Segment> {
        if !is_null(selector) {
            return self.load_stack_segment_for(cpl, selector);
        }
        if self.long_active() && code.long() && cpl != 3 && rpl(selector) == cpl {
            return Ok(null_stack_segment(cpl));
        }
        Err(self.gp(0))
    }

    /// On a return to a less privileged level: forgets the data segments that it may not use.
    #[inline]
    pub(super) fn drop_data_segments(&mut self) {
        for number in [segment::ES, segment::DS, segment::FS, segment::GS] {
            let s = &self.segments[usize::from(number)];
            let conforming = s.kind() & 0xc == 0xc;
            if s.is_user() && s.dpl() < self.cpl && !conforming {
                self.segments[usize::from(number)] = Segment::default();
                self.update_view(number);
            }
        }
    }

    /// A far return of operand size `T` that drops `extra` bytes of parameters.
    fn far_return<T: Int>(&mut self, extra: u64) -> Step {
        // In the order in which the processor's page faults come.
        let selector = self.peek::<T>(T::BYTES)?.zext() as u16;
        let offset = self.peek::<T>(0)?.zext();
        let after = self.stack_pointer().wrapping_add(2 * T::BYTES + extra);
        if !self.uses_descriptors() {
            if offset > u64::from(self.cs().limit) {
                return Err(self.gp(0));
            }
            self.set_stack_pointer(after);
            self.set_real_code(selector, offset);
            return Ok(());
        }
        let cpl = rpl(selector);
        let (mut pointer, mut stack_selector) = (0, 0);
        if cpl != self.cpl {
            stack_selector = self.peek::<T>(3 * T::BYTES + extra)?.zext() as u16;
            pointer = self.peek::<T>(2 * T::BYTES + extra)?.zext();
        }
        let code = self.return_code(selector)?;
        self.check_target(&code, offset)?;
        if cpl == self.cpl {
            self.set_stack_pointer(after);
            self.set_code(code, cpl, offset);
            return Ok(());
        }
        let stack = self.return_stack(stack_selector, cpl, &code)?;
        self.segments[usize::from(segment::SS)] = stack;
        self.set_code(code, cpl, offset);
        self.set_stack_pointer(pointer.wrapping_add(extra));
        self.drop_data_segments();
        Ok(())
    }
}

/// To an immediate far pointer: the offset is the immediate, the selector takes the displacement's place.
fn immediate<T: Int, const CALL: IsCall>(core: &mut Core, op: &Op) -> Step {
    core.far_transfer::<T>(op.disp as u16, op.imm, CALL, op)
}

/// To a far pointer in memory with an offset of size `P`, with operand size `T`.
fn memory<P: Int, T: Int, const CALL: IsCall>(core: &mut Core, op: &Op) -> Step {
    let (offset, selector) = core.read_far_pointer::<P>(op)?;
    core.far_transfer::<T>(selector, offset.zext(), CALL, op)
}

fn ret<T: Int>(core: &mut Core, op: &Op) -> Step {
    core.far_return::<T>(op.imm)
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.code() {
        Code::Jmp_ptr1616 => immediate::<u16, false>,
        Code::Jmp_ptr1632 => immediate::<u32, false>,
        Code::Call_ptr1616 => immediate::<u16, true>,
        Code::Call_ptr1632 => immediate::<u32, true>,
        Code::Jmp_m1616 => memory::<u16, u16, false>,
        Code::Jmp_m1632 | Code::Jmp_m1664 => memory::<u32, u32, false>,
        Code::Call_m1616 => memory::<u16, u16, true>,
        Code::Call_m1632 => memory::<u32, u32, true>,
        // On AMD processors a 64-bit operand size reads a 32-bit offset, and pushes 64 bits.
        Code::Call_m1664 => memory::<u32, u64, true>,
        Code::Retfw | Code::Retfw_imm16 => ret::<u16>,
        Code::Retfd | Code::Retfd_imm16 => ret::<u32>,
        Code::Retfq | Code::Retfq_imm16 => ret::<u64>,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    match i.op0_kind() {
        OpKind::FarBranch16 => {
            op.imm = u64::from(i.far_branch16());
            op.disp = i32::from(i.far_branch_selector());
        }
        OpKind::FarBranch32 => {
            op.imm = u64::from(i.far_branch32());
            op.disp = i32::from(i.far_branch_selector());
        }
        OpKind::Immediate16 if i.op_count() == 1 => op.imm = u64::from(i.immediate16()),
        _ => {}
    }
    Some(op)
}

#[cfg(test)]
#[path = "far_test.rs"]
mod tests;
