//! Where an operand is, and what size it has.

use iced_x86::{ConditionCode, Instruction, OpKind};

use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Step, is_memory, register_number};

/// Where the first operand is.
pub(super) trait Target {
    fn get<T: Int>(core: &mut Core, op: &Op) -> Step<T>;
    fn put<T: Int>(core: &mut Core, op: &Op, value: T) -> Step;
    /// Replaces the operand by `change` of it, which may run several times; returns what it was.
    fn replace<T: Int>(core: &mut Core, op: &Op, change: impl FnMut(T) -> T) -> Step<T>;
}

/// Register `dst`.
pub(super) struct InRegister;
/// The memory operand.
pub(super) struct InMemory;
/// The memory operand of an instruction with a `lock` prefix, or of `xchg`.
pub(super) struct Locked;

impl Target for InRegister {
    #[inline(always)]
    fn get<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
        Ok(core.reg(op.dst))
    }
    #[inline(always)]
    fn put<T: Int>(core: &mut Core, op: &Op, value: T) -> Step {
        core.set_reg(op.dst, value);
        Ok(())
    }
    #[inline(always)]
    fn replace<T: Int>(core: &mut Core, op: &Op, mut change: impl FnMut(T) -> T) -> Step<T> {
        let old = core.reg(op.dst);
        core.set_reg(op.dst, change(old));
        Ok(old)
    }
}

impl Target for InMemory {
    #[inline(always)]
    fn get<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
        core.read_op(op)
    }
    #[inline(always)]
    fn put<T: Int>(core: &mut Core, op: &Op, value: T) -> Step {
        core.write_op(op, value)
    }
    #[inline(always)]
    fn replace<T: Int>(core: &mut Core, op: &Op, mut change: impl FnMut(T) -> T) -> Step<T> {
        let offset = op.address(core);
        core.modify::<T, T>(op.segment, offset, |_, old| (change(old), old))
    }
}

impl Target for Locked {
    #[inline(always)]
    fn get<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
        core.read_op(op)
    }
    #[inline(always)]
    fn put<T: Int>(core: &mut Core, op: &Op, value: T) -> Step {
        core.write_op(op, value)
    }
    #[inline(always)]
    fn replace<T: Int>(core: &mut Core, op: &Op, change: impl FnMut(T) -> T) -> Step<T> {
        let offset = op.address(core);
        core.modify_locked(op.segment, offset, change)
    }
}

/// A register or memory operand that is only read: `src`, or the memory operand.
pub(super) trait Source {
    fn read<T: Int>(core: &mut Core, op: &Op) -> Step<T>;
}

/// Register `src`.
pub(super) struct FromRegister;
/// The immediate operand.
pub(super) struct Immediate;

impl Source for FromRegister {
    #[inline(always)]
    fn read<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
        Ok(core.reg(op.src))
    }
}

impl Source for InMemory {
    #[inline(always)]
    fn read<T: Int>(core: &mut Core, op: &Op) -> Step<T> {
        core.read_op(op)
    }
}

impl Source for Immediate {
    #[inline(always)]
    fn read<T: Int>(_: &mut Core, op: &Op) -> Step<T> {
        Ok(T::new(op.imm))
    }
}

/// The size of the first operand in bits.
pub(super) fn operand_bits(i: &Instruction) -> u32 {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size() as u32 * 8,
        _ => i.memory_size().size() as u32 * 8,
    }
}

/// The size of operand `n`, which is a register or in memory, in bits.
pub(super) fn bits_of(i: &Instruction, n: u32) -> u32 {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size() as u32 * 8,
        _ => i.memory_size().size() as u32 * 8,
    }
}

/// An operation with all of `instruction`'s operands where they belong: memory; the first operand's register as
/// `dst`, the second's as `src`, the third's as `aux`; the last immediate as `imm`.
pub(super) fn with_operands(run: crate::op::Run, i: &Instruction) -> Op {
    let mut op = Op::new(run, i);
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register => {
                let number = register_number(i.op_register(n));
                match n {
                    0 => op.dst = number,
                    1 => op.src = number,
                    _ => op.aux = number,
                }
            }
            kind if is_memory(kind) => {}
            OpKind::NearBranch16
            | OpKind::NearBranch32
            | OpKind::NearBranch64
            | OpKind::FarBranch16
            | OpKind::FarBranch32 => {}
            _ => op.imm = i.immediate(n),
        }
    }
    op
}

/// Whether the first operand is in memory.
pub(super) fn to_memory(i: &Instruction) -> bool {
    is_memory(i.op0_kind())
}

/// The number of the condition that an instruction depends on, as its opcode has it in the low four bits.
pub(super) fn condition(i: &Instruction) -> Option<u8> {
    match i.condition_code() {
        ConditionCode::None => None,
        code => Some(code as u8 - 1),
    }
}

/// Picks the version of a generic function for an operand size in bits.
macro_rules! sized {
    ($bits:expr, $function:ident $(::<$($arg:ty),+>)?) => {
        match $bits {
            8 => $function::<$($($arg,)+)? u8>,
            16 => $function::<$($($arg,)+)? u16>,
            32 => $function::<$($($arg,)+)? u32>,
            _ => $function::<$($($arg,)+)? u64>,
        }
    };
}
pub(super) use sized;

/// The same for functions that have no 8-bit version.
macro_rules! sized_wide {
    ($bits:expr, $function:ident $(::<$($arg:ty),+>)?) => {
        match $bits {
            16 => $function::<$($($arg,)+)? u16>,
            32 => $function::<$($($arg,)+)? u32>,
            _ => $function::<$($($arg,)+)? u64>,
        }
    };
}
pub(super) use sized_wide;

/// Picks the version of a function for a condition, its first generic parameter (a constant).
macro_rules! conditional {
    ($code:expr, $function:ident $(, $arg:ty)*) => {
        match $code {
            0 => $function::<0 $(, $arg)*>,
            1 => $function::<1 $(, $arg)*>,
            2 => $function::<2 $(, $arg)*>,
            3 => $function::<3 $(, $arg)*>,
            4 => $function::<4 $(, $arg)*>,
            5 => $function::<5 $(, $arg)*>,
            6 => $function::<6 $(, $arg)*>,
            7 => $function::<7 $(, $arg)*>,
            8 => $function::<8 $(, $arg)*>,
            9 => $function::<9 $(, $arg)*>,
            10 => $function::<10 $(, $arg)*>,
            11 => $function::<11 $(, $arg)*>,
            12 => $function::<12 $(, $arg)*>,
            13 => $function::<13 $(, $arg)*>,
            14 => $function::<14 $(, $arg)*>,
            _ => $function::<15 $(, $arg)*>,
        }
    };
}
pub(super) use conditional;
