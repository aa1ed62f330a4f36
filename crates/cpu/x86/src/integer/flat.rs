//! The quick way to memory: operands of 64-bit code outside `fs` and `gs`, where offsets are linear addresses,
//! when the TLB knows where they are.
//!
//! Functions here say `None` before anything has changed. Then the caller does its work the careful way, as a
//! last call, so that it needs no stack frame of its own.

use iced_x86::Instruction;

use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::{Mode, Op, is_memory};

/// Whether the memory operand of `i`, if it has one, is of this kind.
pub(super) fn is_flat(i: &Instruction, mode: Mode) -> bool {
    // Any operation will do to learn of the operand.
    let op = Op::new(crate::decode::invalid, i);
    let based = op.segment == segment::FS || op.segment == segment::GS;
    let memory = i.op_kinds().any(is_memory);
    mode.code_bits == 64 && memory && op.address_shift == 0 && !based
}

/// The linear address of the operand.
#[inline(always)]
fn address(core: &Core, op: &Op) -> u64 {
    let base = core.registers[usize::from(op.base)];
    let index = core.registers[usize::from(op.index)].wrapping_shl(u32::from(op.scale));
    base.wrapping_add(index).wrapping_add(op.disp as i64 as u64)
}

/// The operand's value.
#[inline(always)]
pub(super) fn load<T: Int>(core: &Core, op: &Op) -> Option<T> {
    load_at(core, address(core, op))
}

/// The value at a linear address.
#[inline(always)]
pub(super) fn load_at<T: Int>(core: &Core, linear: u64) -> Option<T> {
    let at = core.mmu.find_read(linear, T::BYTES)?;
    Some(core.connections.ram.load(at))
}

/// Where in RAM the operand is, for a write.
#[inline(always)]
pub(super) fn place<T: Int>(core: &Core, op: &Op) -> Option<usize> {
    core.mmu.find_write(address(core, op), T::BYTES)
}

/// Stores to where [`place`] said.
#[inline(always)]
pub(super) fn store<T: Int>(core: &mut Core, at: usize, value: T) {
    if core.connections.ram.store_in_page(at, value) {
        core.code_written();
    }
}

/// Pushes onto the stack of 64-bit code.
#[inline(always)]
pub(super) fn push<T: Int>(core: &mut Core, value: T) -> Option<()> {
    let pointer = core.registers[4].wrapping_sub(T::BYTES);
    let at = core.mmu.find_write(pointer, T::BYTES)?;
    store(core, at, value);
    core.registers[4] = pointer;
    Some(())
}
