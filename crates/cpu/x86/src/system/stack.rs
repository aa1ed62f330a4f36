//! Stacks other than the current one, and frames on them.

use posada_vcpu::x86::Segment;

use crate::access::holds;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::Step;

/// A stack that a frame is pushed on before it becomes, or stays, the current one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    pub segment: Segment,
    pub pointer: u64,
    /// Cuts the pointer to the stack's size.
    mask: u64,
    /// Error code of the stack faults that it may cause.
    error: u16,
}

impl Stack {
    /// The stack in `segment` outside 64-bit mode, to be used from `pointer` down.
    pub(super) fn new(segment: Segment, pointer: u64, error: u16) -> Self {
        let mask = if segment.db() { 0xffff_ffff } else { 0xffff };
        Self { segment, pointer: pointer & mask, mask, error }
    }

    /// A stack of 64-bit mode; `segment` is for show.
    pub(super) fn long(segment: Segment, pointer: u64, error: u16) -> Self {
        Self { segment, pointer, mask: u64::MAX, error }
    }

    fn is_long(&self) -> bool {
        self.mask == u64::MAX
    }
}

impl Core {
    /// The current stack; `error` is the error code of the stack faults that it may cause.
    pub(super) fn current_stack(&self, error: u16) -> Stack {
        let segment = self.segments[usize::from(segment::SS)];
        if self.long64 {
            Stack::long(segment, self.registers[4], error)
        } else {
            Stack::new(segment, self.registers[4], error)
        }
    }

    /// The linear address of `size` bytes at `offset` of a stack, if they may be there.
    fn on_stack(&mut self, stack: &Stack, offset: u64, size: u64) -> Step<u64> {
        if stack.is_long() {
            if !Self::is_canonical(offset) || !Self::is_canonical(offset.wrapping_add(size - 1)) {
                return Err(self.ss_fault(stack.error));
            }
            return Ok(offset);
        }
        let s = &stack.segment;
        let writable = !self.uses_descriptors() || s.present() && s.kind() & 0xa == 2;
        if !writable || !holds(s, offset, size) {
            return Err(self.ss_fault(stack.error));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Pushes values of an operand size, the first one first. The rights to memory are the
    /// current ones.
    #[inline]
    pub(super) fn push_frame<T: Int>(&mut self, stack: &mut Stack, values: &[u64]) -> Step {
        let size = T::BYTES * values.len() as u64;
        let bottom = stack.pointer.wrapping_sub(size) & stack.mask;
        if bottom < stack.pointer {
            let linear = self.on_stack(stack, bottom, size)?;
            if let Some(at) = self.mmu.find_write(linear, size) {
                let mut code = false;
                for (value, at) in values.iter().rev().zip((at..).step_by(T::BYTES as usize)) {
                    code |= self.connections.ram.store(at, T::new(*value));
                }
                if code {
                    self.code_written();
                }
                stack.pointer = bottom;
                return Ok(());
            }
        }
        // A 64-bit stack is pushed on from compatibility mode, too, whose own addresses have 32 bits.
        let mask = self.linear_mask;
        if stack.is_long() {
            self.linear_mask = u64::MAX;
        }
        let result = self.push_frame_slow::<T>(stack, values);
        self.linear_mask = mask;
        result
    }

    /// Value by value: the frame wraps around, crosses pages, or lies in one not seen yet. As on hardware a fault
    /// leaves what was pushed before it in memory, below the stack pointer.
    #[cold]
    fn push_frame_slow<T: Int>(&mut self, stack: &mut Stack, values: &[u64]) -> Step {
        let mut pointer = stack.pointer;
        for value in values {
            pointer = pointer.wrapping_sub(T::BYTES) & stack.mask;
            let linear = self.on_stack(stack, pointer, T::BYTES)?;
            self.write_slow(segment::SS, linear, T::new(*value))?;
        }
        stack.pointer = pointer;
        Ok(())
    }

    /// The value `depth` bytes above the top of the current stack.
    #[inline]
    pub(super) fn peek<T: Int>(&mut self, depth: u64) -> Step<T> {
        let offset = self.stack_pointer().wrapping_add(depth) & self.stack_mask();
        self.read(segment::SS, offset)
    }

    /// The stack for a more privileged level `cpl`, from the current task's TSS outside long mode (AMD APM
    /// volume 2, section 12.2.3). `ext` is bit 0 of error codes.
    pub(super) fn inner_stack(&mut self, cpl: u8, ext: u16) -> Step<Stack> {
        use super::descriptor::{is_null, name, rpl};
        let (selector, pointer) = if self.tr.kind() & 8 != 0 {
            let at = 4 + u64::from(cpl) * 8;
            self.tss_holds(at + 5, ext)?;
            let pointer: u32 = self.read_system(self.tr.base.wrapping_add(at))?;
            (self.read_system::<u16>(self.tr.base.wrapping_add(at + 4))?, u64::from(pointer))
        } else {
            let at = 2 + u64::from(cpl) * 4;
            self.tss_holds(at + 3, ext)?;
            let pointer: u16 = self.read_system(self.tr.base.wrapping_add(at))?;
            (self.read_system::<u16>(self.tr.base.wrapping_add(at + 2))?, u64::from(pointer))
        };
        if is_null(selector) {
            return Err(self.ts(ext));
        }
        let error = name(selector) | ext;
        let Some(descriptor) = self.descriptor(selector)? else { return Err(self.ts(error)) };
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.is_writable() {
            return Err(self.ts(error));
        }
        if !descriptor.present() {
            return Err(self.ss_fault(error));
        }
        self.mark_accessed(&descriptor)?;
        Ok(Stack::new(descriptor.segment(), pointer, error))
    }

    /// A stack pointer from the 64-bit TSS, `at` bytes into it.
    pub(super) fn tss_stack_pointer(&mut self, at: u64, ext: u16) -> Step<u64> {
        self.tss_holds(at + 7, ext)?;
        self.read_system(self.tr.base.wrapping_add(at))
    }

    /// `#TS` unless the TSS has a byte there.
    fn tss_holds(&mut self, at: u64, ext: u16) -> Step {
        if !self.tr.present() || at > u64::from(self.tr.limit) {
            return Err(self.ts(super::descriptor::name(self.tr.selector) | ext));
        }
        Ok(())
    }
}

/// What `ss` holds after a change of privilege in long mode: null, but for the privilege level.
pub(super) fn null_stack_segment(cpl: u8) -> Segment {
    Segment { selector: u16::from(cpl), attributes: u16::from(cpl) << 5, ..Segment::default() }
}
