//! Two instructions in one operation: a comparison or the like, and the conditional branch after it.
//!
//! The operation's length is the branch's. So a fault of the branch finds the instruction pointer at the branch,
//! when the comparison is done; a fault of the comparison, which only one in memory can have, sets it back.
//! The branch's distance is in the upper half of `imm`, the comparison's immediate in the lower; `aux` is the
//! comparison's length.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{Add, And, Binary, Cmp, Dec, Inc, Sub, Test, Unary};
use super::branch::branch_to;
use super::flat::{self, is_flat};
use super::operand::{FromRegister, Source, condition, conditional, operand_bits, with_operands};
use crate::core::Core;
use crate::int::{Int, RIP};
use crate::op::{Mode, Op, Run, Step};

/// The lower half of the immediate.
struct Low;

impl Source for Low {
    #[inline(always)]
    fn read<T: Int>(_: &mut Core, op: &Op) -> Step<T> {
        Ok(T::new(op.imm as i32 as u64))
    }
}

/// Goes where the branch leads, if its condition `C` holds.
#[inline(always)]
fn branch<const C: u8>(core: &mut Core, op: &Op) -> Step {
    if core.flags.condition(C) {
        let to = core.rip().wrapping_add((op.imm as i64 >> 32) as u64);
        return branch_to(core, to);
    }
    Ok(())
}

fn binary<const C: u8, B: Binary, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?;
    let a = core.reg::<T>(op.dst);
    let result = B::result(a, b, false);
    if B::WRITES {
        core.set_reg(op.dst, result);
    }
    B::flags(core, a, b, result);
    branch::<C>(core, op)
}

fn unary<const C: u8, U: Unary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let a = core.reg::<T>(op.dst);
    let result = U::result(a);
    core.set_reg(op.dst, result);
    U::flags(core, a, result);
    branch::<C>(core, op)
}

/// `cmp` or `test` of memory.
fn memory<const C: u8, B: Binary, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let a = match flat::load::<T>(core, op) {
        Some(a) => a,
        None => load_carefully::<T>(core, op)?,
    };
    let b = S::read::<T>(core, op)?;
    B::flags(core, a, b, B::result(a, b, false));
    branch::<C>(core, op)
}

#[cold]
#[inline(never)]
fn load_carefully<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
    let result = core.read_op::<T>(op);
    if result.is_err() {
        // The branch has not been reached.
        core.set_rip(core.rip().wrapping_sub(u64::from(op.aux)));
        core.instructions = core.instructions.wrapping_sub(1);
    }
    result
}

fn pick_binary<B: Binary>(i: &Instruction, code: u8) -> Option<Run> {
    Some(match (operand_bits(i), i.op1_kind() == OpKind::Register) {
        (32, true) => conditional!(code, binary, B, FromRegister, u32),
        (32, false) => conditional!(code, binary, B, Low, u32),
        (64, true) => conditional!(code, binary, B, FromRegister, u64),
        (64, false) => conditional!(code, binary, B, Low, u64),
        _ => return None,
    })
}

fn pick_compare<B: Binary>(i: &Instruction, code: u8) -> Option<Run> {
    Some(match (operand_bits(i), i.op1_kind() == OpKind::Register) {
        (8, true) => conditional!(code, binary, B, FromRegister, u8),
        (8, false) => conditional!(code, binary, B, Low, u8),
        _ => return pick_binary::<B>(i, code),
    })
}

fn pick_unary<U: Unary>(i: &Instruction, code: u8) -> Option<Run> {
    Some(match operand_bits(i) {
        32 => conditional!(code, unary, U, u32),
        64 => conditional!(code, unary, U, u64),
        _ => return None,
    })
}

fn pick_memory<B: Binary>(i: &Instruction, code: u8) -> Option<Run> {
    Some(match (operand_bits(i), i.op1_kind() == OpKind::Register) {
        (8, true) => conditional!(code, memory, B, FromRegister, u8),
        (8, false) => conditional!(code, memory, B, Low, u8),
        (32, true) => conditional!(code, memory, B, FromRegister, u32),
        (32, false) => conditional!(code, memory, B, Low, u32),
        (64, true) => conditional!(code, memory, B, FromRegister, u64),
        (64, false) => conditional!(code, memory, B, Low, u64),
        _ => return None,
    })
}

/// One operation for `first` and `second`, which follows it, if there is one.
pub(crate) fn fuse(first: &Instruction, second: &Instruction, mode: Mode) -> Option<Op> {
    if mode.code_bits != 64
        || !second.is_jcc_short_or_near()
        || second.op0_kind() != OpKind::NearBranch64
        || first.has_lock_prefix()
    {
        return None;
    }
    let code = condition(second)?;
    let in_memory = first.op0_kind() == OpKind::Memory;
    let run = match (first.mnemonic(), in_memory) {
        _ if first.op1_kind() == OpKind::Memory && first.op_count() == 2 => return None,
        (Mnemonic::Cmp, false) => pick_compare::<Cmp>(first, code)?,
        (Mnemonic::Test, false) => pick_compare::<Test>(first, code)?,
        (Mnemonic::Cmp, true) if is_flat(first, mode) => pick_memory::<Cmp>(first, code)?,
        (Mnemonic::Test, true) if is_flat(first, mode) => pick_memory::<Test>(first, code)?,
        (Mnemonic::Sub, false) => pick_binary::<Sub>(first, code)?,
        (Mnemonic::Add, false) => pick_binary::<Add>(first, code)?,
        (Mnemonic::And, false) => pick_binary::<And>(first, code)?,
        (Mnemonic::Dec, false) => pick_unary::<Dec>(first, code)?,
        (Mnemonic::Inc, false) => pick_unary::<Inc>(first, code)?,
        _ => return None,
    };
    let mut op = with_operands(run, first);
    let distance = second.near_branch64().wrapping_sub(second.len() as u64);
    op.imm = distance << 32 | op.imm & 0xffff_ffff;
    op.aux = op.len;
    op.len = second.len() as u8;
    if op.base == RIP {
        // While the operation runs, the instruction pointer is past the branch.
        op.disp = op.disp.wrapping_sub(second.len() as i32);
    }
    Some(op)
}

#[cfg(test)]
#[path = "fuse_test.rs"]
mod tests;
