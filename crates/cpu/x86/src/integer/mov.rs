//! Moves without arithmetic: `mov`, `movzx`, `movsx`, `movsxd`, `movnti`, `movbe`, `lea`, `bswap`, `cmovcc`,
//! `setcc`, the sign extensions of the accumulator, `xlat`.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::flat::{self, is_flat};
use super::operand::{
    FromRegister, Immediate, InMemory, InRegister, Source, Target, bits_of, condition, conditional,
    operand_bits, sized, sized_wide, to_memory, with_operands,
};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Mode, Op, Run, Step};

const RAX: u8 = 0;
const RDX: u8 = 2;
const RBX: usize = 3;

#[inline(never)]
fn mov<D: Target, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?;
    D::put(core, op, value)
}

fn load_flat<T: Int>(core: &mut Core, op: &Op) -> Step {
    let Some(value) = flat::load::<T>(core, op) else { return mov::<InRegister, InMemory, T>(core, op) };
    core.set_reg(op.dst, value);
    Ok(())
}

fn store_flat<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let Some(at) = flat::place::<T>(core, op) else { return mov::<InMemory, S, T>(core, op) };
    let value = S::read::<T>(core, op)?;
    flat::store(core, at, value);
    Ok(())
}

/// From a full 64-bit address.
fn load_absolute<T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = core.read::<T>(op.segment, op.imm)?;
    core.set_reg(op.dst, value);
    Ok(())
}

/// To a full 64-bit address.
fn store_absolute<T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<T>(op.src);
    core.write(op.segment, op.imm, value)
}

fn lower_mov(i: &Instruction, mode: Mode) -> Option<Op> {
    let general = |kind: OpKind, n: u32| kind != OpKind::Register || i.op_register(n).is_gpr();
    if !general(i.op0_kind(), 0) || !general(i.op1_kind(), 1) {
        // Segment, control and debug registers are somebody else's.
        return None;
    }
    let bits = operand_bits(i);
    let full = i.memory_displ_size() == 8;
    let run: Run = match i.code() {
        Code::Mov_AL_moffs8 | Code::Mov_AX_moffs16 | Code::Mov_EAX_moffs32 | Code::Mov_RAX_moffs64
            if full =>
        {
            sized!(bits, load_absolute)
        }
        Code::Mov_moffs8_AL | Code::Mov_moffs16_AX | Code::Mov_moffs32_EAX | Code::Mov_moffs64_RAX
            if full =>
        {
            sized!(bits, store_absolute)
        }
        _ if is_flat(i, mode) => match (to_memory(i), i.op1_kind()) {
            (true, OpKind::Register) => sized!(bits, store_flat::<FromRegister>),
            (true, _) => sized!(bits, store_flat::<Immediate>),
            (false, _) => sized!(bits, load_flat),
        },
        _ => match (to_memory(i), i.op1_kind()) {
            (true, OpKind::Register) => sized!(bits, mov::<InMemory, FromRegister>),
            (true, _) => sized!(bits, mov::<InMemory, Immediate>),
            (false, OpKind::Register) => sized!(bits, mov::<InRegister, FromRegister>),
            (false, OpKind::Memory) => sized!(bits, mov::<InRegister, InMemory>),
            (false, _) => sized!(bits, mov::<InRegister, Immediate>),
        },
    };
    Some(with_operands(run, i))
}

#[inline(never)]
fn zero_extend<S: Source, N: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<N>(core, op)?.zext();
    core.set_reg(op.dst, T::new(value));
    Ok(())
}

#[inline(never)]
fn sign_extend<S: Source, N: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<N>(core, op)?.sext();
    core.set_reg(op.dst, T::new(value));
    Ok(())
}

fn zero_extend_flat<N: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let Some(value) = flat::load::<N>(core, op) else { return zero_extend::<InMemory, N, T>(core, op) };
    core.set_reg(op.dst, T::new(value.zext()));
    Ok(())
}

fn sign_extend_flat<N: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let Some(value) = flat::load::<N>(core, op) else { return sign_extend::<InMemory, N, T>(core, op) };
    core.set_reg(op.dst, T::new(value.sext()));
    Ok(())
}

fn lower_extend(i: &Instruction, mode: Mode, signed: bool) -> Op {
    let bits = operand_bits(i);
    let register = i.op1_kind() == OpKind::Register;
    // `movsxd` reads 32 bits even where it keeps only 16.
    let from = if i.mnemonic() == Mnemonic::Movsxd { 32 } else { bits_of(i, 1) };
    let run: Run = match (signed, register, from) {
        (false, false, 8) if is_flat(i, mode) => sized_wide!(bits, zero_extend_flat::<u8>),
        (false, false, _) if is_flat(i, mode) => sized_wide!(bits, zero_extend_flat::<u16>),
        (true, false, 8) if is_flat(i, mode) => sized_wide!(bits, sign_extend_flat::<u8>),
        (true, false, 16) if is_flat(i, mode) => sized_wide!(bits, sign_extend_flat::<u16>),
        (true, false, _) if is_flat(i, mode) => sized_wide!(bits, sign_extend_flat::<u32>),
        (false, true, 8) => sized_wide!(bits, zero_extend::<FromRegister, u8>),
        (false, true, _) => sized_wide!(bits, zero_extend::<FromRegister, u16>),
        (false, false, 8) => sized_wide!(bits, zero_extend::<InMemory, u8>),
        (false, false, _) => sized_wide!(bits, zero_extend::<InMemory, u16>),
        (true, true, 8) => sized_wide!(bits, sign_extend::<FromRegister, u8>),
        (true, true, 16) => sized_wide!(bits, sign_extend::<FromRegister, u16>),
        (true, true, _) => sized_wide!(bits, sign_extend::<FromRegister, u32>),
        (true, false, 8) => sized_wide!(bits, sign_extend::<InMemory, u8>),
        (true, false, 16) => sized_wide!(bits, sign_extend::<InMemory, u16>),
        (true, false, _) => sized_wide!(bits, sign_extend::<InMemory, u32>),
    };
    with_operands(run, i)
}

fn lea<T: Int>(core: &mut Core, op: &Op) -> Step {
    let address = op.address(core);
    core.set_reg(op.dst, T::new(address));
    Ok(())
}

/// The bytes in reverse order.
fn swapped<T: Int>(value: T) -> T {
    T::new(value.zext().swap_bytes() >> (64 - T::BITS))
}

fn bswap<T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<T>(op.dst);
    // With 16 bits the manual calls the result undefined; processors give zero.
    core.set_reg(op.dst, if T::BITS == 16 { T::default() } else { swapped(value) });
    Ok(())
}

fn movbe<D: Target, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?;
    D::put(core, op, swapped(value))
}

fn cmov<const C: u8, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    // The source is read, and a 32-bit destination cleared above, whatever the condition.
    let value = S::read::<T>(core, op)?;
    let old = core.reg::<T>(op.dst);
    core.set_reg(op.dst, if core.flags.condition(C) { value } else { old });
    Ok(())
}

fn lower_cmov(i: &Instruction) -> Option<Op> {
    let code = condition(i)?;
    let register = i.op1_kind() == OpKind::Register;
    let run: Run = match (operand_bits(i), register) {
        (16, true) => conditional!(code, cmov, FromRegister, u16),
        (16, false) => conditional!(code, cmov, InMemory, u16),
        (32, true) => conditional!(code, cmov, FromRegister, u32),
        (32, false) => conditional!(code, cmov, InMemory, u32),
        (_, true) => conditional!(code, cmov, FromRegister, u64),
        (_, false) => conditional!(code, cmov, InMemory, u64),
    };
    Some(with_operands(run, i))
}

fn setcc<const C: u8, D: Target>(core: &mut Core, op: &Op) -> Step {
    let value = u8::from(core.flags.condition(C));
    D::put(core, op, value)
}

fn lower_setcc(i: &Instruction) -> Option<Op> {
    let code = condition(i)?;
    let run: Run = if to_memory(i) {
        conditional!(code, setcc, InMemory)
    } else {
        conditional!(code, setcc, InRegister)
    };
    Some(with_operands(run, i))
}

/// `cbw`, `cwde`, `cdqe`: the accumulator's lower half to all of it.
fn extend_accumulator<N: Int, T: Int>(core: &mut Core, _: &Op) -> Step {
    let value = core.reg::<N>(RAX).sext();
    core.set_reg(RAX, T::new(value));
    Ok(())
}

/// `cwd`, `cdq`, `cqo`: the accumulator's sign to all of `rdx`.
fn spread_sign<T: Int>(core: &mut Core, _: &Op) -> Step {
    let sign = (core.reg::<T>(RAX).sext() as i64) >> 63;
    core.set_reg(RDX, T::new(sign as u64));
    Ok(())
}

fn xlat(core: &mut Core, op: &Op) -> Step {
    let shift = op.address_shift & 63;
    let offset = core.registers[RBX].wrapping_add(core.reg::<u8>(RAX).zext()) << shift >> shift;
    let value = core.read::<u8>(op.segment, offset)?;
    core.set_reg(RAX, value);
    Ok(())
}

pub(super) fn lower(i: &Instruction, mode: Mode) -> Option<Op> {
    let bits = operand_bits(i);
    let plain = |run| Some(Op::new(run, i));
    match i.mnemonic() {
        Mnemonic::Mov => lower_mov(i, mode),
        Mnemonic::Movzx => Some(lower_extend(i, mode, false)),
        Mnemonic::Movsx | Mnemonic::Movsxd => Some(lower_extend(i, mode, true)),
        Mnemonic::Movnti => Some(with_operands(sized_wide!(bits, mov::<InMemory, FromRegister>), i)),
        Mnemonic::Movbe if to_memory(i) => {
            Some(with_operands(sized_wide!(bits, movbe::<InMemory, FromRegister>), i))
        }
        Mnemonic::Movbe => Some(with_operands(sized_wide!(bits, movbe::<InRegister, InMemory>), i)),
        Mnemonic::Lea => Some(with_operands(sized_wide!(bits, lea), i)),
        Mnemonic::Bswap => Some(with_operands(sized_wide!(bits, bswap), i)),
        Mnemonic::Cbw => plain(extend_accumulator::<u8, u16>),
        Mnemonic::Cwde => plain(extend_accumulator::<u16, u32>),
        Mnemonic::Cdqe => plain(extend_accumulator::<u32, u64>),
        Mnemonic::Cwd => plain(spread_sign::<u16>),
        Mnemonic::Cdq => plain(spread_sign::<u32>),
        Mnemonic::Cqo => plain(spread_sign::<u64>),
        Mnemonic::Xlatb => plain(xlat),
        Mnemonic::Cmovo
        | Mnemonic::Cmovno
        | Mnemonic::Cmovb
        | Mnemonic::Cmovae
        | Mnemonic::Cmove
        | Mnemonic::Cmovne
        | Mnemonic::Cmovbe
        | Mnemonic::Cmova
        | Mnemonic::Cmovs
        | Mnemonic::Cmovns
        | Mnemonic::Cmovp
        | Mnemonic::Cmovnp
        | Mnemonic::Cmovl
        | Mnemonic::Cmovge
        | Mnemonic::Cmovle
        | Mnemonic::Cmovg => lower_cmov(i),
        Mnemonic::Seto
        | Mnemonic::Setno
        | Mnemonic::Setb
        | Mnemonic::Setae
        | Mnemonic::Sete
        | Mnemonic::Setne
        | Mnemonic::Setbe
        | Mnemonic::Seta
        | Mnemonic::Sets
        | Mnemonic::Setns
        | Mnemonic::Setp
        | Mnemonic::Setnp
        | Mnemonic::Setl
        | Mnemonic::Setge
        | Mnemonic::Setle
        | Mnemonic::Setg => lower_setcc(i),
        _ => None,
    }
}

#[cfg(test)]
#[path = "mov_test.rs"]
mod tests;
