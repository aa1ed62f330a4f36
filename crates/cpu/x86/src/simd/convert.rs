//! Conversions between numbers and integers, and rounding to integers (AMD APM volumes 4 and 5).

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::arithmetic::{host_will_do, is_usual, is_well_normal};
use super::float::{FloatBinary, Real, by_form, from_lanes, lane, packed, part, with_first};
use super::form::{Form, Mmx, Sse, SsePart, Vector, operands, rm};
use super::soft::{Env, Rounding, flag::PE};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step, is_memory};

/// Which way a conversion to an integer rounds.
#[inline(always)]
fn mode<const TRUNCATE: bool>(env: &Env) -> Rounding {
    if TRUNCATE { Rounding::Zero } else { env.rounding() }
}

/// A number as a `BITS`-bit integer.
#[inline(always)]
fn to_integer<F: Real, const BITS: u32, const TRUNCATE: bool>(env: &mut Env, value: u64) -> u64 {
    if TRUNCATE && F::WIDTH == 64 && is_usual::<F>(value) {
        // The host truncates as the guest does what fits.
        let number = f64::from_bits(value);
        let limit = (1_u64 << (BITS - 1)) as f64;
        if number > -limit && number < limit {
            let whole = number as i64;
            if whole as f64 != number {
                env.raise(PE);
            }
            return whole as u64;
        }
    }
    let rounding = mode::<TRUNCATE>(env);
    env.integer_of::<F>(value, rounding, BITS) as u64
}

/// A signed integer as a number.
#[inline(always)]
fn from_integer<F: Real>(env: &mut Env, value: i64) -> u64 {
    if F::WIDTH == 64 && value.unsigned_abs() < 1 << 53 {
        return (value as f64).to_bits();
    }
    if F::WIDTH == 32 && value.unsigned_abs() < 1 << 24 {
        return u64::from((value as f32).to_bits());
    }
    if host_will_do(env, || false) {
        let number = value as f64;
        return if F::WIDTH == 64 { number.to_bits() } else { u64::from((value as f32).to_bits()) };
    }
    env.of_integer::<F>(value)
}

#[inline(always)]
fn widen(env: &mut Env, value: u64) -> u64 {
    if is_usual::<f32>(value) {
        return f64::from(f32::from_bits(value as u32)).to_bits();
    }
    env.convert::<f32, f64>(value)
}

#[inline(always)]
fn narrow(env: &mut Env, value: u64) -> u64 {
    let number = f64::from_bits(value);
    let result = number as f32;
    let bits = u64::from(result.to_bits());
    let usual = is_usual::<f64>(value) && (is_well_normal::<f32>(bits) || number == 0.0);
    if usual && host_will_do(env, || f64::from(result) == number) {
        return bits;
    }
    env.convert::<f64, f32>(value)
}

macro_rules! conversions {
    ($($(#[$doc:meta])* $name:ident $(<const $truncate:ident>)?: |$env:ident, $a:pat_param, $b:ident, $imm:pat_param| $result:expr;)*) => {
        $(
            $(#[$doc])*
            struct $name $(<const $truncate: bool>)?;
            impl $(<const $truncate: bool>)? FloatBinary for $name $(<$truncate>)? {
                fn apply($env: &mut Env, $a: Vector, $b: Vector, $imm: u8) -> Vector {
                    $result
                }
            }
        )*
    };
}

conversions! {
    DoublewordsToSingles: |env, _, b, _| {
        from_lanes::<f32>(|n| from_integer::<f32>(env, signed(lane::<f32>(b, n))))
    };
    DoublewordsToDoubles: |env, _, b, _| {
        from_lanes::<f64>(|n| from_integer::<f64>(env, signed(lane::<f32>(b, n))))
    };
    SinglesToDoublewords<const TRUNCATE>: |env, _, b, _| {
        from_lanes::<f32>(|n| to_integer::<f32, 32, TRUNCATE>(env, lane::<f32>(b, n)) & 0xffff_ffff)
    };
    DoublesToDoublewords<const TRUNCATE>: |env, _, b, _| {
        let low = to_integer::<f64, 32, TRUNCATE>(env, b[0]) & 0xffff_ffff;
        [low | to_integer::<f64, 32, TRUNCATE>(env, b[1]) << 32, 0]
    };
    SinglesToDoubles: |env, _, b, _| from_lanes::<f64>(|n| widen(env, lane::<f32>(b, n)));
    DoublesToSingles: |env, _, b, _| {
        let low = narrow(env, b[0]);
        [low | narrow(env, b[1]) << 32, 0]
    };
    SingleToDouble: |env, a, b, _| with_first::<f64>(a, widen(env, lane::<f32>(b, 0)));
    DoubleToSingle: |env, a, b, _| with_first::<f32>(a, narrow(env, b[0]));
    /// Two doublewords of an MMX register to the low half of an XMM register.
    LowDoublewordsToSingles: |env, a, b, _| {
        let low = from_integer::<f32>(env, signed(lane::<f32>(b, 0)));
        [low | from_integer::<f32>(env, signed(lane::<f32>(b, 1))) << 32, a[1]]
    };
    /// The low half of an XMM register to an MMX register.
    LowSinglesToDoublewords<const TRUNCATE>: |env, _, b, _| {
        let low = to_integer::<f32, 32, TRUNCATE>(env, lane::<f32>(b, 0)) & 0xffff_ffff;
        [low | to_integer::<f32, 32, TRUNCATE>(env, lane::<f32>(b, 1)) << 32, 0]
    };
}

fn signed(doubleword: u64) -> i64 {
    i64::from(doubleword as i32)
}

/// `roundps` and its kin: all lanes, or the first.
struct Round<F, const FIRST: bool>(PhantomData<F>);
impl<F: Real, const FIRST: bool> FloatBinary for Round<F, FIRST> {
    fn apply(env: &mut Env, a: Vector, b: Vector, imm: u8) -> Vector {
        let mode = if imm & 4 != 0 { env.rounding() } else { Rounding::of(u32::from(imm)) };
        let precise = imm & 8 == 0;
        if FIRST {
            with_first::<F>(a, env.round_to_integer::<F>(lane::<F>(b, 0), mode, precise))
        } else {
            from_lanes::<F>(|n| env.round_to_integer::<F>(lane::<F>(b, n), mode, precise))
        }
    }
}

/// `cvtsi2ss`, `cvtsi2sd`: a general-purpose register or memory to the first lane.
fn integer_to_number<F: Real, T: Int>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.reg::<T>(op.aux);
    finish_number::<F, T>(core, op, value)
}

fn integer_in_memory_to_number<F: Real, T: Int>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.read_op::<T>(op)?;
    finish_number::<F, T>(core, op, value)
}

#[inline(always)]
fn finish_number<F: Real, T: Int>(core: &mut Core, op: &Op, value: T) -> Step {
    let mut env = Env::new(core.mxcsr);
    let number = from_integer::<F>(&mut env, value.sext() as i64);
    core.settle(env)?;
    let a = core.xmm(op.src);
    core.set_xmm(op.dst, with_first::<F>(a, number));
    Ok(())
}

/// `cvtss2si` and its kin: the first lane or memory to a general-purpose register.
fn number_to_integer<F: Real, const BITS: u32, const TRUNCATE: bool>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.xmm(op.aux);
    finish_integer::<F, BITS, TRUNCATE>(core, op, lane::<F>(value, 0))
}

fn number_in_memory_to_integer<F: Real, const BITS: u32, const TRUNCATE: bool>(
    core: &mut Core,
    op: &Op,
) -> Step {
    core.sse_ready()?;
    let value = core.read_op::<F::Bits>(op)?;
    finish_integer::<F, BITS, TRUNCATE>(core, op, value.zext())
}

#[inline(always)]
fn finish_integer<F: Real, const BITS: u32, const TRUNCATE: bool>(
    core: &mut Core,
    op: &Op,
    value: u64,
) -> Step {
    let mut env = Env::new(core.mxcsr);
    let integer = to_integer::<F, BITS, TRUNCATE>(&mut env, value);
    core.settle(env)?;
    if BITS == 32 {
        core.set_reg(op.dst, integer as u32);
    } else {
        core.set_reg(op.dst, integer);
    }
    Ok(())
}

/// Between MMX and XMM registers. An MMX register is used even where the other operand is in memory.
fn to_mmx_registers<B: FloatBinary>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    core.mmx_ready()?;
    let value = core.xmm(op.aux);
    finish_mmx::<B>(core, op, value)
}

fn to_mmx_memory<T: Form, B: FloatBinary>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    core.mmx_ready()?;
    let value = T::load(core, op)?;
    finish_mmx::<B>(core, op, value)
}

#[inline(always)]
fn finish_mmx<B: FloatBinary>(core: &mut Core, op: &Op, value: Vector) -> Step {
    let mut env = Env::new(core.mxcsr);
    let result = B::apply(&mut env, [0; 2], value, 0);
    // Processors do this much even when an exception follows.
    core.enter_mmx();
    core.settle(env)?;
    core.set_mm(op.dst, result[0]);
    Ok(())
}

/// `T` loads the memory operand.
fn to_mmx<T: Form, B: FloatBinary>(i: &Instruction) -> Option<Op> {
    Some(operands(i, rm(i), [to_mmx_registers::<B>, to_mmx_memory::<T, B>]))
}

fn from_mmx_registers<B: FloatBinary>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    core.mmx_ready()?;
    let (a, b) = (core.xmm(op.src), Mmx::<u64>::get(core, op.aux));
    let mut env = Env::new(core.mxcsr);
    let result = B::apply(&mut env, a, b, 0);
    core.enter_mmx();
    core.settle(env)?;
    core.set_xmm(op.dst, result);
    Ok(())
}

fn from_mmx<B: FloatBinary>(i: &Instruction) -> Option<Op> {
    if is_memory(i.op1_kind()) {
        // No MMX register is used: nothing but an SSE instruction.
        by_form::<SsePart<u64>, B>(i)
    } else {
        Some(operands(i, rm(i), [from_mmx_registers::<B>, from_mmx_registers::<B>]))
    }
}

fn from_general<F: Real>(i: &Instruction) -> Option<Op> {
    let wide = match i.op1_kind() {
        OpKind::Register => i.op1_register().size() == 8,
        _ => i.memory_size().size() == 8,
    };
    Some(operands(
        i,
        1,
        if wide {
            [integer_to_number::<F, u64>, integer_in_memory_to_number::<F, u64>]
        } else {
            [integer_to_number::<F, u32>, integer_in_memory_to_number::<F, u32>]
        },
    ))
}

fn to_general<F: Real, const TRUNCATE: bool>(i: &Instruction) -> Option<Op> {
    let run: [Run; 2] = if i.op0_register().size() == 8 {
        [number_to_integer::<F, 64, TRUNCATE>, number_in_memory_to_integer::<F, 64, TRUNCATE>]
    } else {
        [number_to_integer::<F, 32, TRUNCATE>, number_in_memory_to_integer::<F, 32, TRUNCATE>]
    };
    Some(operands(i, rm(i), run))
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        M::Cvtdq2ps => packed::<DoublewordsToSingles>(i),
        M::Cvtdq2pd => part::<u64, DoublewordsToDoubles>(i),
        M::Cvtps2dq => packed::<SinglesToDoublewords<false>>(i),
        M::Cvttps2dq => packed::<SinglesToDoublewords<true>>(i),
        M::Cvtpd2dq => packed::<DoublesToDoublewords<false>>(i),
        M::Cvttpd2dq => packed::<DoublesToDoublewords<true>>(i),
        M::Cvtps2pd => part::<u64, SinglesToDoubles>(i),
        M::Cvtpd2ps => packed::<DoublesToSingles>(i),
        M::Cvtss2sd => part::<u32, SingleToDouble>(i),
        M::Cvtsd2ss => part::<u64, DoubleToSingle>(i),
        M::Cvtsi2ss => from_general::<f32>(i),
        M::Cvtsi2sd => from_general::<f64>(i),
        M::Cvtss2si => to_general::<f32, false>(i),
        M::Cvttss2si => to_general::<f32, true>(i),
        M::Cvtsd2si => to_general::<f64, false>(i),
        M::Cvttsd2si => to_general::<f64, true>(i),
        M::Cvtpi2ps => from_mmx::<LowDoublewordsToSingles>(i),
        M::Cvtpi2pd => from_mmx::<DoublewordsToDoubles>(i),
        M::Cvtps2pi => to_mmx::<SsePart<u64>, LowSinglesToDoublewords<false>>(i),
        M::Cvttps2pi => to_mmx::<SsePart<u64>, LowSinglesToDoublewords<true>>(i),
        M::Cvtpd2pi => to_mmx::<Sse, DoublesToDoublewords<false>>(i),
        M::Cvttpd2pi => to_mmx::<Sse, DoublesToDoublewords<true>>(i),
        M::Roundps => packed::<Round<f32, false>>(i),
        M::Roundpd => packed::<Round<f64, false>>(i),
        M::Roundss => part::<u32, Round<f32, true>>(i),
        M::Roundsd => part::<u64, Round<f64, true>>(i),
        _ => None,
    }
}

#[cfg(test)]
#[path = "convert_test.rs"]
mod tests;
