//! Arithmetic and logic of one or two operands: `add`, `or`, `adc`, `sbb`, `and`, `sub`, `xor`, `cmp`, `test`,
//! `inc`, `dec`, `neg`, `not`.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::flat::{self, is_flat};
use super::operand::{
    FromRegister, Immediate, InMemory, InRegister, Locked, Source, Target, operand_bits, sized, to_memory,
    with_operands,
};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Mode, Op, Run, Step};

/// One of the operations: what becomes of two operands, and of the flags.
pub(super) trait Binary {
    /// Whether the result is written back; `cmp` and `test` only set flags.
    const WRITES: bool = true;
    fn result<T: Int>(a: T, b: T, carry: bool) -> T;
    fn flags<T: Int>(core: &mut Core, a: T, b: T, result: T);
}

macro_rules! binary {
    ($name:ident, $writes:literal, |$a:ident, $b:ident, $carry:ident| $result:expr, $flags:ident) => {
        pub(super) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn result<T: Int>(a: T, b: T, $carry: bool) -> T {
                let ($a, $b) = (a.zext(), b.zext());
                T::new($result)
            }
            #[inline(always)]
            fn flags<T: Int>(core: &mut Core, a: T, b: T, result: T) {
                binary!(@$flags core, a, b, result);
            }
        }
    };
    (@logic $core:ident, $a:ident, $b:ident, $result:ident) => {{
        let _ = ($a, $b);
        $core.flags.logic($result);
    }};
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

#[inline(never)]
fn binary<B: Binary, D: Target, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?;
    let carry = core.flags.cf();
    let a = if B::WRITES { D::replace(core, op, |a| B::result(a, b, carry))? } else { D::get(core, op)? };
    B::flags(core, a, b, B::result(a, b, carry));
    Ok(())
}

fn register_flat<B: Binary, T: Int>(core: &mut Core, op: &Op) -> Step {
    let Some(b) = flat::load::<T>(core, op) else { return binary::<B, InRegister, InMemory, T>(core, op) };
    let (a, carry) = (core.reg::<T>(op.dst), core.flags.cf());
    let result = B::result(a, b, carry);
    if B::WRITES {
        core.set_reg(op.dst, result);
    }
    B::flags(core, a, b, result);
    Ok(())
}

fn flat_with<B: Binary, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let carry = core.flags.cf();
    if B::WRITES {
        let Some(at) = flat::place::<T>(core, op) else { return binary::<B, InMemory, S, T>(core, op) };
        let a = core.connections.ram.load::<T>(at);
        let b = S::read::<T>(core, op)?;
        let result = B::result(a, b, carry);
        flat::store(core, at, result);
        B::flags(core, a, b, result);
    } else {
        let Some(a) = flat::load::<T>(core, op) else { return binary::<B, InMemory, S, T>(core, op) };
        let b = S::read::<T>(core, op)?;
        B::flags(core, a, b, B::result(a, b, carry));
    }
    Ok(())
}

fn lower_binary<B: Binary>(i: &Instruction, mode: Mode) -> Op {
    let bits = operand_bits(i);
    let register = i.op1_kind() == OpKind::Register;
    let flat = is_flat(i, mode);
    let run: Run = match (to_memory(i), register) {
        (true, true) if i.has_lock_prefix() => sized!(bits, binary::<B, Locked, FromRegister>),
        (true, false) if i.has_lock_prefix() => sized!(bits, binary::<B, Locked, Immediate>),
        (true, true) if flat => sized!(bits, flat_with::<B, FromRegister>),
        (true, false) if flat => sized!(bits, flat_with::<B, Immediate>),
        (false, false) if flat => sized!(bits, register_flat::<B>),
        (true, true) => sized!(bits, binary::<B, InMemory, FromRegister>),
        (true, false) => sized!(bits, binary::<B, InMemory, Immediate>),
        (false, true) => sized!(bits, binary::<B, InRegister, FromRegister>),
        (false, false) if i.op1_kind() == OpKind::Memory => sized!(bits, binary::<B, InRegister, InMemory>),
        (false, false) => sized!(bits, binary::<B, InRegister, Immediate>),
    };
    with_operands(run, i)
}

/// An operation of one operand.
pub(super) trait Unary {
    fn result<T: Int>(a: T) -> T;
    fn flags<T: Int>(core: &mut Core, a: T, result: T);
}

pub(super) struct Inc;
pub(super) struct Dec;
pub(super) struct Neg;
pub(super) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        T::new(a.zext().wrapping_add(1))
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, _: T, result: T) {
        core.flags.inc(result);
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        T::new(a.zext().wrapping_sub(1))
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, _: T, result: T) {
        core.flags.dec(result);
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        T::new(a.zext().wrapping_neg())
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, result: T) {
        core.flags.sub(T::default(), a, result);
    }
}

impl Unary for Not {
    #[inline(always)]
    fn result<T: Int>(a: T) -> T {
        T::new(!a.zext())
    }
    #[inline(always)]
    fn flags<T: Int>(_: &mut Core, _: T, _: T) {}
}

fn unary<U: Unary, D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    let a = D::replace::<T>(core, op, U::result)?;
    U::flags(core, a, U::result(a));
    Ok(())
}

fn lower_unary<U: Unary>(i: &Instruction) -> Op {
    let bits = operand_bits(i);
    let run: Run = match to_memory(i) {
        true if i.has_lock_prefix() => sized!(bits, unary::<U, Locked>),
        true => sized!(bits, unary::<U, InMemory>),
        false => sized!(bits, unary::<U, InRegister>),
    };
    with_operands(run, i)
}

pub(super) fn lower(i: &Instruction, mode: Mode) -> Option<Op> {
    Some(match i.mnemonic() {
        Mnemonic::Add => lower_binary::<Add>(i, mode),
        Mnemonic::Or => lower_binary::<Or>(i, mode),
        Mnemonic::Adc => lower_binary::<Adc>(i, mode),
        Mnemonic::Sbb => lower_binary::<Sbb>(i, mode),
        Mnemonic::And => lower_binary::<And>(i, mode),
        Mnemonic::Sub => lower_binary::<Sub>(i, mode),
        Mnemonic::Xor => lower_binary::<Xor>(i, mode),
        Mnemonic::Cmp => lower_binary::<Cmp>(i, mode),
        Mnemonic::Test => lower_binary::<Test>(i, mode),
        Mnemonic::Inc => lower_unary::<Inc>(i),
        Mnemonic::Dec => lower_unary::<Dec>(i),
        Mnemonic::Neg => lower_unary::<Neg>(i),
        Mnemonic::Not => lower_unary::<Not>(i),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "alu_test.rs"]
mod tests;
