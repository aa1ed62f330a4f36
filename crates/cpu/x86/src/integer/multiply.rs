//! `mul`, `imul`, `div`, `idiv`.

use iced_x86::{Instruction, Mnemonic, OpKind};
use posada_vcpu::x86::rflags;

use super::operand::{FromRegister, InMemory, Source, operand_bits, sized, sized_wide, with_operands};
use crate::core::Core;
use crate::int::{HIGH_BYTE, Int};
use crate::op::{Op, Run, Step, is_memory};

const RAX: u8 = 0;
const RDX: u8 = 2;

/// Where the upper half of a product or dividend is: `ah` for bytes, otherwise the operand size of `rdx`.
#[inline(always)]
fn high<T: Int>() -> u8 {
    if T::BITS == 8 { HIGH_BYTE } else { RDX }
}

/// Sets a product of two full halves; CF and OF tell whether the upper one says anything.
#[inline(always)]
fn set_product<T: Int>(core: &mut Core, product: u128, overflow: bool) {
    core.set_reg(RAX, T::new(product as u64));
    core.set_reg(high::<T>(), T::new((product >> T::BITS) as u64));
    core.flags.replace_cf_of(overflow, overflow);
}

fn mul<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?;
    let product = u128::from(core.reg::<T>(RAX).zext()) * u128::from(b.zext());
    set_product::<T>(core, product, product >> T::BITS != 0);
    Ok(())
}

/// The full product, and whether it is more than its lower half sign-extended.
#[inline(always)]
fn signed_product<T: Int>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.sext() as i64) * i128::from(b.sext() as i64);
    (product, i128::from(T::new(product as u64).sext() as i64) != product)
}

fn imul<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?;
    let (product, overflow) = signed_product(core.reg::<T>(RAX), b);
    set_product::<T>(core, product as u128, overflow);
    Ok(())
}

fn imul_2<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?;
    let (product, overflow) = signed_product(core.reg::<T>(op.dst), b);
    core.set_reg(op.dst, T::new(product as u64));
    core.flags.replace_cf_of(overflow, overflow);
    Ok(())
}

fn imul_3<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let a = S::read::<T>(core, op)?;
    let (product, overflow) = signed_product(a, T::new(op.imm));
    core.set_reg(op.dst, T::new(product as u64));
    core.flags.replace_cf_of(overflow, overflow);
    Ok(())
}

/// Sets quotient and remainder, and the flags that the manual leaves undefined.
#[inline(always)]
fn set_quotient<T: Int>(core: &mut Core, quotient: T, remainder: T) {
    core.set_reg(RAX, quotient);
    core.set_reg(high::<T>(), remainder);
    core.flags.replace(rflags::SF | rflags::ZF | rflags::AF | rflags::PF, rflags::AF);
}

fn div<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?.zext();
    let (low, high) = (core.reg::<T>(RAX).zext(), core.reg::<T>(high::<T>()).zext());
    // The quotient fits exactly when the upper half is below the divisor; a divisor of zero never is above.
    if high >= b {
        return Err(core.de());
    }
    let (quotient, remainder) = if T::BITS == 64 && high != 0 {
        let (a, b) = (u128::from(high) << 64 | u128::from(low), u128::from(b));
        ((a / b) as u64, (a % b) as u64)
    } else {
        let a = if T::BITS == 64 { low } else { high << T::BITS | low };
        (a / b, a % b)
    };
    set_quotient::<T>(core, T::new(quotient), T::new(remainder));
    Ok(())
}

fn idiv<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = S::read::<T>(core, op)?.sext() as i64;
    let (low, high) = (core.reg::<T>(RAX), core.reg::<T>(high::<T>()));
    let divided = if T::BITS < 64 {
        let a = ((high.sext() << T::BITS) | low.zext()) as i64;
        a.checked_div(b).zip(a.checked_rem(b))
    } else if high.sext() as i64 == low.sext() as i64 >> 63 {
        let a = low.sext() as i64;
        a.checked_div(b).zip(a.checked_rem(b))
    } else {
        let (a, b) = ((u128::from(high.zext()) << 64 | u128::from(low.zext())) as i128, i128::from(b));
        a.checked_div(b).zip(a.checked_rem(b)).and_then(|(quotient, remainder)| {
            i64::try_from(quotient).ok().map(|quotient| (quotient, remainder as i64))
        })
    };
    let Some((quotient, remainder)) = divided else { return Err(core.de()) };
    if T::new(quotient as u64).sext() as i64 != quotient {
        return Err(core.de());
    }
    set_quotient::<T>(core, T::new(quotient as u64), T::new(remainder as u64));
    Ok(())
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let bits = operand_bits(i);
    let memory = (0..i.op_count()).any(|n| is_memory(i.op_kind(n)));
    let run: Run = match (i.mnemonic(), memory) {
        (Mnemonic::Mul, false) => sized!(bits, mul::<FromRegister>),
        (Mnemonic::Mul, true) => sized!(bits, mul::<InMemory>),
        (Mnemonic::Div, false) => sized!(bits, div::<FromRegister>),
        (Mnemonic::Div, true) => sized!(bits, div::<InMemory>),
        (Mnemonic::Idiv, false) => sized!(bits, idiv::<FromRegister>),
        (Mnemonic::Idiv, true) => sized!(bits, idiv::<InMemory>),
        (Mnemonic::Imul, memory) => match (i.op_count(), memory) {
            (1, false) => sized!(bits, imul::<FromRegister>),
            (1, true) => sized!(bits, imul::<InMemory>),
            (2, false) => sized_wide!(bits, imul_2::<FromRegister>),
            (2, true) => sized_wide!(bits, imul_2::<InMemory>),
            (_, false) => sized_wide!(bits, imul_3::<FromRegister>),
            (_, true) => sized_wide!(bits, imul_3::<InMemory>),
        },
        _ => return None,
    };
    let mut op = with_operands(run, i);
    if i.op_count() == 1 && i.op0_kind() == OpKind::Register {
        op.src = op.dst;
    }
    Some(op)
}

#[cfg(test)]
#[path = "multiply_test.rs"]
mod tests;
