//! Near branches: `jmp`, `call`, `ret`, `jcc`, `jcxz`, `loop` (AMD APM volume 3, chapter 3; volume 1, section
//! 3.7).
//!
//! A branch to where no code can be faults as the branch, before it has changed anything.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::flat;
use super::operand::{
    FromRegister, InMemory, Source, condition, conditional, operand_bits, sized_wide, with_operands,
};
use crate::core::{Core, segment};
use crate::int::Int;
use crate::mmu::Access;
use crate::op::{Mode, Op, Run, Step, Stop, is_memory};

const RCX: u8 = 1;

/// Checks where a branch of operand size `T` leads, and cuts it to that size.
#[inline(always)]
fn target<T: Int>(core: &mut Core, to: u64) -> Step<u64> {
    if T::BITS == 64 {
        return if Core::is_canonical(to) { Ok(to) } else { Err(core.gp(0)) };
    }
    let to = to & T::MASK;
    if !core.long64 && to > u64::from(core.segments[usize::from(segment::CS)].limit) {
        return Err(core.gp(0));
    }
    Ok(to)
}

/// Where a relative branch leads.
#[inline(always)]
fn relative<T: Int>(core: &mut Core, op: &Op) -> Step<u64> {
    let to = core.rip().wrapping_add(op.imm);
    target::<T>(core, to)
}

/// Takes a branch in the middle of a block of 64-bit code.
#[inline(always)]
pub(super) fn branch_to(core: &mut Core, to: u64) -> Step {
    let to = target::<u64>(core, to)?;
    core.set_rip(to);
    BRANCH
}

fn jmp<T: Int>(core: &mut Core, op: &Op) -> Step {
    let to = relative::<T>(core, op)?;
    core.set_rip(to);
    Ok(())
}

fn jmp_indirect<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let to = S::read::<T>(core, op)?.zext();
    let to = target::<T>(core, to)?;
    core.set_rip(to);
    Ok(())
}

/// Branches that do not end their block when they are not taken, end it so when they are.
const BRANCH: Step = Err(Stop::Branch);

fn jcc<const C: u8, T: Int>(core: &mut Core, op: &Op) -> Step {
    if core.flags.condition(C) {
        let to = relative::<T>(core, op)?;
        core.set_rip(to);
        return BRANCH;
    }
    Ok(())
}

fn call_flat(core: &mut Core, op: &Op) -> Step {
    let next = core.rip();
    let to = next.wrapping_add(op.imm);
    if !Core::is_canonical(to) || flat::push(core, next).is_none() {
        return call::<u64>(core, op);
    }
    core.set_rip(to);
    Ok(())
}

#[inline(never)]
fn call<T: Int>(core: &mut Core, op: &Op) -> Step {
    let to = relative::<T>(core, op).or_else(|fault| stack_first::<T>(core, fault))?;
    core.push(T::new(core.rip()))?;
    core.set_rip(to);
    Ok(())
}

/// A call pushes before it goes where it cannot: the fault is the stack's if that has one, too.
#[cold]
fn stack_first<T: Int>(core: &mut Core, stop: Stop) -> Step<u64> {
    let fault = core.fault;
    let top = core.stack_pointer().wrapping_sub(T::BYTES) & core.stack_mask();
    let linear = core.linear(segment::SS, top, T::BYTES, true)?;
    core.check_alignment(segment::SS, linear, T::BYTES)?;
    core.probe(segment::SS, linear, T::BYTES, Access::Write)?;
    core.fault = fault;
    Err(stop)
}

fn call_indirect<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let to = S::read::<T>(core, op)?.zext();
    let to = target::<T>(core, to).or_else(|fault| stack_first::<T>(core, fault))?;
    core.push(T::new(core.rip()))?;
    core.set_rip(to);
    Ok(())
}

fn ret_flat(core: &mut Core, op: &Op) -> Step {
    let pointer = core.registers[4];
    let to = match flat::load_at::<u64>(core, pointer) {
        Some(to) if Core::is_canonical(to) => to,
        _ => return ret::<u64>(core, op),
    };
    core.registers[4] = pointer.wrapping_add(8);
    core.set_rip(to);
    Ok(())
}

/// `ret`, which drops `imm` bytes of arguments.
#[inline(never)]
fn ret<T: Int>(core: &mut Core, op: &Op) -> Step {
    let pointer = core.stack_pointer();
    let to = core.read::<T>(segment::SS, pointer)?.zext();
    let to = target::<T>(core, to)?;
    core.set_stack_pointer(pointer.wrapping_add(T::BYTES).wrapping_add(op.imm));
    core.set_rip(to);
    Ok(())
}

/// `jcxz` and its like: `C` is the size of the count.
fn jump_if_no_count<C: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    if core.reg::<C>(RCX) == C::default() {
        let to = relative::<T>(core, op)?;
        core.set_rip(to);
        return BRANCH;
    }
    Ok(())
}

/// What ZF must be, besides a count left, for a `loop` to be taken.
const ANY: u8 = 0;
const ZERO: u8 = 1;
const NOT_ZERO: u8 = 2;

fn count_down<const WHILE: u8, C: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let count = C::new(core.reg::<C>(RCX).zext().wrapping_sub(1));
    let goes_on = WHILE == ANY || core.flags.zf() == (WHILE == ZERO);
    if count != C::default() && goes_on {
        let to = relative::<T>(core, op)?;
        core.set_reg(RCX, count);
        core.set_rip(to);
        return BRANCH;
    }
    core.set_reg(RCX, count);
    Ok(())
}

/// The operand size of a relative branch, and its distance from the next instruction.
fn distance(i: &Instruction) -> (u32, u64) {
    let next = i.len() as u64;
    match i.op0_kind() {
        OpKind::NearBranch16 => (16, u64::from(i.near_branch16()).wrapping_sub(next)),
        OpKind::NearBranch32 => (32, u64::from(i.near_branch32()).wrapping_sub(next)),
        _ => (64, i.near_branch64().wrapping_sub(next)),
    }
}

fn lower_relative(i: &Instruction, pick: impl Fn(u32) -> Run) -> Op {
    let (bits, distance) = distance(i);
    let mut op = Op::new(pick(bits), i);
    op.imm = distance;
    op
}

fn lower_loop<const WHILE: u8>(i: &Instruction) -> Op {
    use Code as C;
    let count_bits = match i.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 16,
        C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX => 64,
        _ => 32,
    };
    lower_relative(i, |bits| match count_bits {
        16 => sized_wide_loop::<WHILE, u16>(bits),
        32 => sized_wide_loop::<WHILE, u32>(bits),
        _ => sized_wide_loop::<WHILE, u64>(bits),
    })
}

fn sized_wide_loop<const WHILE: u8, C: Int>(bits: u32) -> Run {
    match bits {
        16 => count_down::<WHILE, C, u16>,
        32 => count_down::<WHILE, C, u32>,
        _ => count_down::<WHILE, C, u64>,
    }
}

fn lower_jcc(i: &Instruction) -> Option<Op> {
    let code = condition(i)?;
    Some(lower_relative(i, |bits| match bits {
        16 => conditional!(code, jcc, u16),
        32 => conditional!(code, jcc, u32),
        _ => conditional!(code, jcc, u64),
    }))
}

fn lower_indirect(i: &Instruction, is_call: bool) -> Op {
    let bits = operand_bits(i);
    let mut op = with_operands(
        match (is_call, is_memory(i.op0_kind())) {
            (false, false) => sized_wide!(bits, jmp_indirect::<FromRegister>),
            (false, true) => sized_wide!(bits, jmp_indirect::<InMemory>),
            (true, false) => sized_wide!(bits, call_indirect::<FromRegister>),
            (true, true) => sized_wide!(bits, call_indirect::<InMemory>),
        },
        i,
    );
    op.src = op.dst;
    op
}

fn lower_ret(i: &Instruction, mode: Mode) -> Op {
    if i.code() == Code::Retnq && mode.code_bits == 64 {
        return Op::new(ret_flat, i);
    }
    let bits = match i.code() {
        Code::Retnw | Code::Retnw_imm16 => 16,
        Code::Retnd | Code::Retnd_imm16 => 32,
        _ => 64,
    };
    let mut op = Op::new(sized_wide!(bits, ret), i);
    if i.op_count() > 0 {
        op.imm = u64::from(i.immediate16());
    }
    op
}

pub(super) fn lower(i: &Instruction, mode: Mode) -> Option<Op> {
    Some(match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_short_or_near() => lower_relative(i, |bits| sized_wide!(bits, jmp)),
        Mnemonic::Jmp if i.is_jmp_near_indirect() => lower_indirect(i, false),
        Mnemonic::Call
            if i.is_call_near() && mode.code_bits == 64 && i.op0_kind() == OpKind::NearBranch64 =>
        {
            lower_relative(i, |_| call_flat)
        }
        Mnemonic::Call if i.is_call_near() => lower_relative(i, |bits| sized_wide!(bits, call)),
        Mnemonic::Call if i.is_call_near_indirect() => lower_indirect(i, true),
        Mnemonic::Ret => lower_ret(i, mode),
        Mnemonic::Jcxz => lower_relative(i, |bits| sized_wide!(bits, jump_if_no_count::<u16>)),
        Mnemonic::Jecxz => lower_relative(i, |bits| sized_wide!(bits, jump_if_no_count::<u32>)),
        Mnemonic::Jrcxz => lower_relative(i, |bits| sized_wide!(bits, jump_if_no_count::<u64>)),
        Mnemonic::Loop => lower_loop::<ANY>(i),
        // Prefixes that mean nothing here have their meaning all the same, on AMD processors.
        Mnemonic::Loope | Mnemonic::Loopne if i.has_repne_prefix() => lower_loop::<NOT_ZERO>(i),
        Mnemonic::Loope | Mnemonic::Loopne if i.has_rep_prefix() => lower_loop::<ZERO>(i),
        Mnemonic::Loope => lower_loop::<ZERO>(i),
        Mnemonic::Loopne => lower_loop::<NOT_ZERO>(i),
        _ if i.is_jcc_short_or_near() => return lower_jcc(i),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "branch_test.rs"]
mod tests;
