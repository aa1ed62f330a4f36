//! Comparison, minimum and maximum of numbers (AMD APM volume 4).

use std::cmp::Ordering;
use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic as M};
use posada_vcpu::x86::rflags;

use super::float::{FloatBinary, Real, from_lanes, lane, packed, part, with_first};
use super::form::{Form, Sse, SsePart, Vector, operands, rm};
use super::soft::{Env, flag::IE, is_nan, is_signaling};
use crate::core::Core;
use crate::op::{Op, Step};

/// What [`compare`] and its users need of the host.
pub(super) trait Comparable: Real + PartialOrd {}
impl Comparable for f32 {}
impl Comparable for f64 {}

/// How `a` compares with `b`; `None` when one of them is a NaN. Signaling NaNs are invalid operands, quiet ones
/// only to relations that are `signaling`.
#[inline(always)]
fn compare<F: Comparable>(env: &mut Env, a: u64, b: u64, signaling: bool) -> Option<Ordering> {
    if is_nan::<F>(a) || is_nan::<F>(b) {
        if signaling || is_signaling::<F>(a) || is_signaling::<F>(b) {
            env.raise(IE);
        }
        return None;
    }
    let (a, b) = (env.operand::<F>(a), env.operand::<F>(b));
    env.note_denormal::<F>(a);
    env.note_denormal::<F>(b);
    F::from_u64(a).partial_cmp(&F::from_u64(b))
}

/// Whether the relation that `predicate` numbers holds (AMD APM volume 4, `cmpps` and `vcmpps`).
#[inline(always)]
fn holds<F: Comparable>(env: &mut Env, a: u64, b: u64, predicate: u8) -> bool {
    // Bit 4 only turns the signaling of quiet NaNs round.
    let signaling = matches!(predicate & 3, 1 | 2) != (predicate & 0x10 != 0);
    let order = compare::<F>(env, a, b, signaling);
    let positive = match predicate & 0xb {
        0 => order == Some(Ordering::Equal),
        1 => order == Some(Ordering::Less),
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        3 => order.is_none(),
        8 => order.is_none() || order == Some(Ordering::Equal),
        9 => order.is_none() || order == Some(Ordering::Less),
        10 => order != Some(Ordering::Greater),
        _ => false,
    };
    positive != (predicate & 4 != 0)
}

/// Lanes of ones where the relation holds.
struct Mask<F>(PhantomData<F>);
impl<F: Comparable> FloatBinary for Mask<F> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, imm: u8) -> Vector {
        from_lanes::<F>(|n| mask::<F>(env, lane::<F>(a, n), lane::<F>(b, n), imm))
    }
}

struct FirstMask<F>(PhantomData<F>);
impl<F: Comparable> FloatBinary for FirstMask<F> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, imm: u8) -> Vector {
        with_first::<F>(a, mask::<F>(env, lane::<F>(a, 0), lane::<F>(b, 0), imm))
    }
}

#[inline(always)]
fn mask<F: Comparable>(env: &mut Env, a: u64, b: u64, imm: u8) -> u64 {
    if holds::<F>(env, a, b, imm & 7) { F::SIGN | (F::SIGN - 1) } else { 0 }
}

/// The smaller (or `MAX` greater) of two numbers; the second when neither is, or when one is a NaN.
struct Extreme<F, const MAX: bool>(PhantomData<F>);
impl<F: Comparable, const MAX: bool> FloatBinary for Extreme<F, MAX> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        from_lanes::<F>(|n| extreme::<F, MAX>(env, lane::<F>(a, n), lane::<F>(b, n)))
    }
}

struct FirstExtreme<F, const MAX: bool>(PhantomData<F>);
impl<F: Comparable, const MAX: bool> FloatBinary for FirstExtreme<F, MAX> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        with_first::<F>(a, extreme::<F, MAX>(env, lane::<F>(a, 0), lane::<F>(b, 0)))
    }
}

#[inline(always)]
fn extreme<F: Comparable, const MAX: bool>(env: &mut Env, a: u64, b: u64) -> u64 {
    let wanted = if MAX { Ordering::Greater } else { Ordering::Less };
    let order = compare::<F>(env, a, b, true);
    env.operand::<F>(if order == Some(wanted) { a } else { b })
}

/// `ucomiss` and its kin: ZF, PF and CF tell greater (none), less (CF), equal (ZF), unordered (all).
fn set_flags<F: Comparable, const SIGNALING: bool>(core: &mut Core, op: &Op, b: Vector) -> Step {
    let a = core.xmm(op.src);
    let mut env = Env::new(core.mxcsr);
    let order = compare::<F>(&mut env, lane::<F>(a, 0), lane::<F>(b, 0), SIGNALING);
    core.settle(env)?;
    core.flags.set(match order {
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => rflags::CF,
        Some(Ordering::Equal) => rflags::ZF,
        None => rflags::ZF | rflags::PF | rflags::CF,
    });
    Ok(())
}

fn flags_by_register<F: Comparable, const SIGNALING: bool>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = core.xmm(op.aux);
    set_flags::<F, SIGNALING>(core, op, b)
}

fn flags_by_memory<F: Comparable, const SIGNALING: bool>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = SsePart::<F::Bits>::load(core, op)?;
    set_flags::<F, SIGNALING>(core, op, b)
}

fn to_flags<F: Comparable, const SIGNALING: bool>(i: &Instruction) -> Option<Op> {
    Some(operands(i, rm(i), [flags_by_register::<F, SIGNALING>, flags_by_memory::<F, SIGNALING>]))
}

/// `ptest`: ZF when no bit is common, CF when none of the second operand's is missing in the first.
fn test_bits(core: &mut Core, op: &Op, b: Vector) -> Step {
    let a = core.xmm(op.src);
    let zf = a[0] & b[0] | a[1] & b[1] == 0;
    let cf = !a[0] & b[0] | !a[1] & b[1] == 0;
    core.flags.set(if zf { rflags::ZF } else { 0 } | if cf { rflags::CF } else { 0 });
    Ok(())
}

fn test_register(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = core.xmm(op.aux);
    test_bits(core, op, b)
}

fn test_memory(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = Sse::load(core, op)?;
    test_bits(core, op, b)
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        M::Cmpps => packed::<Mask<f32>>(i),
        M::Cmppd => packed::<Mask<f64>>(i),
        M::Cmpss => part::<u32, FirstMask<f32>>(i),
        // `cmpsd` is a string instruction, too.
        M::Cmpsd if i.op0_register().is_xmm() => part::<u64, FirstMask<f64>>(i),
        M::Minps => packed::<Extreme<f32, false>>(i),
        M::Minpd => packed::<Extreme<f64, false>>(i),
        M::Minss => part::<u32, FirstExtreme<f32, false>>(i),
        M::Minsd => part::<u64, FirstExtreme<f64, false>>(i),
        M::Maxps => packed::<Extreme<f32, true>>(i),
        M::Maxpd => packed::<Extreme<f64, true>>(i),
        M::Maxss => part::<u32, FirstExtreme<f32, true>>(i),
        M::Maxsd => part::<u64, FirstExtreme<f64, true>>(i),
        M::Ucomiss => to_flags::<f32, false>(i),
        M::Ucomisd => to_flags::<f64, false>(i),
        M::Comiss => to_flags::<f32, true>(i),
        M::Comisd => to_flags::<f64, true>(i),
        M::Ptest => Some(operands(i, rm(i), [test_register, test_memory])),
        _ => None,
    }
}

#[cfg(test)]
#[path = "compare_test.rs"]
mod tests;
