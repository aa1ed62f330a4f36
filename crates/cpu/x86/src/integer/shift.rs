//! Shifts and rotations: `shl`, `shr`, `sar`, `rol`, `ror`, `rcl`, `rcr`, `shld`, `shrd`.
//!
//! Counts are cut to five bits, six with 64-bit operands; a count of zero leaves the flags alone. The manual
//! leaves OF undefined for counts above one, and AF always; here they are what Zen makes of them.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{
    InMemory, InRegister, Target, operand_bits, sized, sized_wide, to_memory, with_operands,
};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step};

const CL: u8 = 1;

/// What remains of a count.
fn mask(bits: u32) -> u8 {
    if bits == 64 { 63 } else { 31 }
}

/// The top bit.
#[inline(always)]
fn top<T: Int>(value: T) -> bool {
    value.zext() >> (T::BITS - 1) != 0
}

/// Whether the top two bits differ.
#[inline(always)]
fn top_two_differ<T: Int>(value: T) -> bool {
    let v = value.zext();
    (v ^ v << 1) >> (T::BITS - 1) & 1 != 0
}

/// One of the operations. The count is masked and not zero.
trait Shift {
    fn result<T: Int>(a: T, carry: bool, count: u32) -> T;
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T);
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

impl Shift for Shl {
    #[inline(always)]
    fn result<T: Int>(a: T, _: bool, count: u32) -> T {
        T::new(a.zext() << count)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T) {
        let out =
            if T::BITS == 64 { a.zext() >> (64 - count) } else { (a.zext() << count) >> (T::BITS & 63) };
        let cf = out & 1 != 0;
        core.flags.shifted(result, cf, top(result) != cf);
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn result<T: Int>(a: T, _: bool, count: u32) -> T {
        T::new(a.zext() >> count)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T) {
        core.flags.shifted(result, a.zext() >> (count - 1) & 1 != 0, top_two_differ(result));
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn result<T: Int>(a: T, _: bool, count: u32) -> T {
        T::new((a.sext() as i64 >> count) as u64)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T) {
        core.flags.shifted(result, a.sext() as i64 >> (count - 1) & 1 != 0, false);
    }
}

/// `a` turned left by `count`, which is below its size.
#[inline(always)]
fn turned_left<T: Int>(a: T, count: u32) -> T {
    let a = a.zext();
    if T::BITS == 64 { T::new(a.rotate_left(count)) } else { T::new(a << count | a >> (T::BITS - count)) }
}

impl Shift for Rol {
    #[inline(always)]
    fn result<T: Int>(a: T, _: bool, count: u32) -> T {
        turned_left(a, count % T::BITS)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, _: T, _: u32, result: T) {
        let cf = result.zext() & 1 != 0;
        core.flags.replace_cf_of(cf, top(result) != cf);
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn result<T: Int>(a: T, _: bool, count: u32) -> T {
        turned_left(a, (T::BITS - count % T::BITS) % T::BITS)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, _: T, _: u32, result: T) {
        core.flags.replace_cf_of(top(result), top_two_differ(result));
    }
}

/// The carry flag and `a` below it, turned left by `count` of their `T::BITS + 1` bits.
#[inline(always)]
fn turned_through_carry<T: Int>(a: T, carry: bool, count: u32) -> u128 {
    let value = u128::from(carry) << T::BITS | u128::from(a.zext());
    let mask = (1 << (T::BITS + 1)) - 1;
    (value << count | value >> (T::BITS + 1 - count)) & mask
}

fn rcl_count<T: Int>(count: u32) -> u32 {
    count % (T::BITS + 1)
}

fn rcr_count<T: Int>(count: u32) -> u32 {
    (T::BITS + 1 - rcl_count::<T>(count)) % (T::BITS + 1)
}

impl Shift for Rcl {
    #[inline(always)]
    fn result<T: Int>(a: T, carry: bool, count: u32) -> T {
        T::new(turned_through_carry(a, carry, rcl_count::<T>(count)) as u64)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T) {
        let turned = turned_through_carry(a, core.flags.cf(), rcl_count::<T>(count));
        let cf = turned >> T::BITS & 1 != 0;
        core.flags.replace_cf_of(cf, top(result) != cf);
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn result<T: Int>(a: T, carry: bool, count: u32) -> T {
        T::new(turned_through_carry(a, carry, rcr_count::<T>(count)) as u64)
    }
    #[inline(always)]
    fn flags<T: Int>(core: &mut Core, a: T, count: u32, result: T) {
        let turned = turned_through_carry(a, core.flags.cf(), rcr_count::<T>(count));
        core.flags.replace_cf_of(turned >> T::BITS & 1 != 0, top_two_differ(result));
    }
}

#[inline(always)]
fn apply<H: Shift, D: Target, T: Int>(core: &mut Core, op: &Op, count: u32) -> Step {
    let carry = core.flags.cf();
    let a = D::replace::<T>(core, op, |a| H::result(a, carry, count))?;
    H::flags(core, a, count, H::result(a, carry, count));
    Ok(())
}

/// By a constant, `aux`, which is not zero.
fn by_constant<H: Shift, D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    apply::<H, D, T>(core, op, u32::from(op.aux & 63))
}

fn by_cl<H: Shift, D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    let count = u32::from(core.reg::<u8>(CL) & mask(T::BITS));
    if count == 0 {
        return by_zero::<D, T>(core, op);
    }
    apply::<H, D, T>(core, op, count)
}

/// Even so the operand is written: a 32-bit register loses its upper half, memory must be writable.
fn by_zero<D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    D::replace::<T>(core, op, |a| a)?;
    Ok(())
}

fn lower_shift<H: Shift>(i: &Instruction) -> Op {
    let (bits, memory) = (operand_bits(i), to_memory(i));
    // By one, by an immediate, by cl.
    let count = match i.op1_kind() {
        OpKind::Register => None,
        _ => Some(i.immediate(1) as u8 & mask(bits)),
    };
    let run: Run = match (count, memory) {
        (None, false) => sized!(bits, by_cl::<H, InRegister>),
        (None, true) => sized!(bits, by_cl::<H, InMemory>),
        (Some(0), false) => sized!(bits, by_zero::<InRegister>),
        (Some(0), true) => sized!(bits, by_zero::<InMemory>),
        (Some(_), false) => sized!(bits, by_constant::<H, InRegister>),
        (Some(_), true) => sized!(bits, by_constant::<H, InMemory>),
    };
    let mut op = with_operands(run, i);
    op.aux = count.unwrap_or(0);
    op
}

/// A double shift; the count is masked and not zero. Result, CF and OF.
trait Double {
    fn shift<T: Int>(a: T, b: T, count: u32) -> (T, bool, bool);
}

struct Shld;
struct Shrd;

impl Double for Shld {
    #[inline(always)]
    fn shift<T: Int>(a: T, b: T, count: u32) -> (T, bool, bool) {
        if count >= T::BITS {
            // Only 16-bit operands can be shifted that far; undefined.
            let result = turned_left(b, count - T::BITS);
            let cf = count == T::BITS && a.zext() & 1 != 0;
            return (result, cf, cf);
        }
        let result = T::new(a.zext() << count | b.zext() >> (T::BITS - count));
        let cf = a.zext() >> (T::BITS - count) & 1 != 0;
        (result, cf, top(result) != cf)
    }
}

impl Double for Shrd {
    #[inline(always)]
    fn shift<T: Int>(a: T, b: T, count: u32) -> (T, bool, bool) {
        let result = if count >= T::BITS {
            turned_left(b, (2 * T::BITS - count) % T::BITS)
        } else {
            T::new(a.zext() >> count | b.zext() << (T::BITS - count))
        };
        // Beyond the operand's size this is zero, as on the processor.
        let cf = a.zext() >> (count - 1) & 1 != 0;
        (result, cf, top_two_differ(result))
    }
}

fn double<H: Double, D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    // The count is `cl` where `aux` says so, else the immediate.
    let count = if op.aux == CL { u32::from(core.reg::<u8>(CL)) } else { op.imm as u32 };
    let count = count & u32::from(mask(T::BITS));
    if count == 0 {
        return by_zero::<D, T>(core, op);
    }
    let b = core.reg::<T>(op.src);
    let a = D::replace(core, op, |a| H::shift(a, b, count).0)?;
    let (result, cf, of) = H::shift(a, b, count);
    core.flags.shifted(result, cf, of);
    Ok(())
}

fn lower_double<H: Double>(i: &Instruction) -> Op {
    let bits = operand_bits(i);
    let run: Run = if to_memory(i) {
        sized_wide!(bits, double::<H, InMemory>)
    } else {
        sized_wide!(bits, double::<H, InRegister>)
    };
    with_operands(run, i)
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    Some(match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => lower_shift::<Shl>(i),
        Mnemonic::Shr => lower_shift::<Shr>(i),
        Mnemonic::Sar => lower_shift::<Sar>(i),
        Mnemonic::Rol => lower_shift::<Rol>(i),
        Mnemonic::Ror => lower_shift::<Ror>(i),
        Mnemonic::Rcl => lower_shift::<Rcl>(i),
        Mnemonic::Rcr => lower_shift::<Rcr>(i),
        Mnemonic::Shld => lower_double::<Shld>(i),
        Mnemonic::Shrd => lower_double::<Shrd>(i),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "shift_test.rs"]
mod tests;
