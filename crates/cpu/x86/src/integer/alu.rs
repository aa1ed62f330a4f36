//! Two-operand arithmetic and logic: `add`, `or`, `adc`, `sbb`, `and`, `sub`, `xor`, `cmp`, `test`.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step, is_memory, register_number};

/// One of the operations: computes a result from two operands and sets the flags.
trait Binary {
    /// Whether the result is written back; `cmp` and `test` only set flags.
    const WRITES: bool = true;
    fn apply<T: Int>(core: &mut Core, a: T, b: T) -> T;
    /// The result alone, for atomic updates, where it may have to be worked out several times.
    fn result<T: Int>(a: T, b: T, carry: bool) -> T;
}

macro_rules! binary {
    ($name:ident, $writes:literal, |$a:ident, $b:ident, $carry:ident| $result:expr, $flags:ident) => {
        struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn result<T: Int>(a: T, b: T, $carry: bool) -> T {
                let ($a, $b) = (a.zext(), b.zext());
                T::new($result)
            }
            #[inline(always)]
            fn apply<T: Int>(core: &mut Core, a: T, b: T) -> T {
                let result = Self::result(a, b, core.flags.cf());
                binary!(@$flags core, a, b, result);
                result
            }
        }
    };
    (@logic $core:ident, $a:ident, $b:ident, $result:ident) => { $core.flags.logic($result) };
    (@add $core:ident, $a:ident, $b:ident, $result:ident) => { $core.flags.add($a, $b, $result) };
    (@sub $core:ident, $a:ident, $b:ident, $result:ident) => { $core.flags.sub($a, $b, $result) };
}

binary!(Add, true, |a, b, _carry| a.wrapping_add(b), add);
binary!(Or, true, |a, b, _carry| a | b, logic);
binary!(Adc, true, |a, b, carry| a.wrapping_add(b).wrapping_add(u64::from(carry)), add);
binary!(Sbb, true, |a, b, carry| a.wrapping_sub(b).wrapping_sub(u64::from(carry)), sub);
binary!(And, true, |a, b, _carry| a & b, logic);
binary!(Sub, true, |a, b, _carry| a.wrapping_sub(b), sub);
binary!(Xor, true, |a, b, _carry| a ^ b, logic);
binary!(Cmp, false, |a, b, _carry| a.wrapping_sub(b), sub);
binary!(Test, false, |a, b, _carry| a & b, logic);

fn register_register<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let (a, b) = (core.reg::<T>(op.dst), core.reg::<T>(op.src));
    let result = B::apply(core, a, b);
    if B::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(())
}

fn register_immediate<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let a = core.reg::<T>(op.dst);
    let result = B::apply(core, a, T::new(op.imm));
    if B::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(())
}

fn register_memory<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = core.read_op::<T>(op)?;
    let a = core.reg::<T>(op.dst);
    let result = B::apply(core, a, b);
    if B::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(())
}

fn memory_with<B: Binary, T: Int>(core: &mut Core, op: &Op, b: T) -> Step {
    if B::WRITES {
        let offset = op.address(core);
        core.modify::<T, ()>(op.segment, offset, |core, a| (B::apply(core, a, b), ()))
    } else {
        let a = core.read_op::<T>(op)?;
        B::apply(core, a, b);
        Ok(())
    }
}

fn memory_register<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = core.reg::<T>(op.src);
    memory_with::<B, T>(core, op, b)
}

fn memory_immediate<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    memory_with::<B, T>(core, op, T::new(op.imm))
}

fn locked_with<B: Binary, T: Int>(core: &mut Core, op: &Op, b: T) -> Step {
    let (offset, carry) = (op.address(core), core.flags.cf());
    let a = core.modify_locked::<T>(op.segment, offset, |a| B::result(a, b, carry))?;
    B::apply(core, a, b);
    Ok(())
}

fn locked_register<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = core.reg::<T>(op.src);
    locked_with::<B, T>(core, op, b)
}

fn locked_immediate<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    locked_with::<B, T>(core, op, T::new(op.imm))
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let bits = operand_bits(i);
    match i.mnemonic() {
        Mnemonic::Add => binary::<Add>(i, bits),
        Mnemonic::Or => binary::<Or>(i, bits),
        Mnemonic::Adc => binary::<Adc>(i, bits),
        Mnemonic::Sbb => binary::<Sbb>(i, bits),
        Mnemonic::And => binary::<And>(i, bits),
        Mnemonic::Sub => binary::<Sub>(i, bits),
        Mnemonic::Xor => binary::<Xor>(i, bits),
        Mnemonic::Cmp => binary::<Cmp>(i, bits),
        Mnemonic::Test => binary::<Test>(i, bits),
        _ => None,
    }
}

/// The size of the first operand in bits.
pub(super) fn operand_bits(i: &Instruction) -> u32 {
    match i.op0_kind() {
        OpKind::Register => i.op0_register().size() as u32 * 8,
        _ => i.memory_size().size() as u32 * 8,
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

fn binary<B: Binary>(i: &Instruction, bits: u32) -> Option<Op> {
    let memory = is_memory(i.op0_kind());
    let run: Run = match (memory, i.op1_kind()) {
        (true, OpKind::Register) if i.has_lock_prefix() => sized!(bits, locked_register::<B>),
        (true, OpKind::Register) => sized!(bits, memory_register::<B>),
        (true, _) if i.has_lock_prefix() => sized!(bits, locked_immediate::<B>),
        (true, _) => sized!(bits, memory_immediate::<B>),
        (false, OpKind::Register) => sized!(bits, register_register::<B>),
        (false, OpKind::Memory) => sized!(bits, register_memory::<B>),
        (false, _) => sized!(bits, register_immediate::<B>),
    };
    let mut op = Op::new(run, i);
    if !memory {
        op.dst = register_number(i.op0_register());
    }
    if i.op1_kind() == OpKind::Register {
        op.src = register_number(i.op1_register());
    } else if !is_memory(i.op1_kind()) {
        op.imm = i.immediate(1);
    }
    Some(op)
}
