//! Addition, multiplication, division, square root, and what is made of them (AMD APM volume 4).
//!
//! The host's arithmetic gives the result when it is sure to be the guest's: rounding to nearest, operands that
//! are normal numbers or zero, a normal result, and the precision flag either set already or known not to be
//! raised. All else goes to `soft`.

use std::marker::PhantomData;

use bytemuck::cast;
use iced_x86::{Instruction, Mnemonic as M};

use super::float::{FloatBinary, Real, from_lanes, lane, packed, part, with_first};
use super::form::Vector;
use super::soft::{Env, Format, flag};
use crate::int::Int;
use crate::op::Op;

/// An operation on two numbers.
pub(super) trait Arithmetic: 'static {
    /// The host's.
    fn host<F: Host>(a: F, b: F) -> F;
    /// Whether a zero that the host gave for normal or zero operands is exact only if an operand is zero.
    const ZERO_NEEDS_ZERO: bool;
    /// Whether the host's result, a normal number, is exact.
    fn is_exact<F: Host>(a: F, b: F, result: F) -> bool;
    fn soft<F: Real>(env: &mut Env, a: u64, b: u64) -> u64;
}

/// What [`Arithmetic::host`] is made of.
pub(super) trait Host:
    Real
    + PartialEq
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn sqrt(self) -> Self;
    /// Whether all lanes of the host's result are the guest's, its precision flag apart.
    fn all_will_do<A: Arithmetic>(a: Vector, b: Vector, result: Vector) -> bool;
}

macro_rules! host {
    ($type:ty, $vector:ty, $splat:ident, $eq:ident, $le:ident, $and:ident, $or:ident, $signs:ident) => {
        impl Host for $type {
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn all_will_do<A: Arithmetic>(a: Vector, b: Vector, result: Vector) -> bool {
                use safe_arch::{$and, $eq, $le, $or, $splat};
                let (a, b, result): ($vector, $vector, $vector) = (cast(a), cast(b), cast(result));
                let magnitude =
                    |x| $and(x, $splat(<$type>::from_u64(!<$type as Format>::SIGN & Self::Bits::MASK)));
                let between = |least: $type, x| {
                    let x = magnitude(x);
                    $and($le($splat(least), x), $le(x, $splat(<$type>::MAX)))
                };
                let is_zero = |x| $eq(x, $splat(0.0));
                let is_usual = |x| $or(is_zero(x), between(<$type>::MIN_POSITIVE, x));
                let mut zero = is_zero(result);
                if A::ZERO_NEEDS_ZERO {
                    zero = $and(zero, $or(is_zero(a), is_zero(b)));
                }
                let good = $or(zero, between(2.0 * <$type>::MIN_POSITIVE, result));
                let all = $and(good, $and(is_usual(a), is_usual(b)));
                safe_arch::$signs(all) == (1 << Self::LANES) - 1
            }
        }
    };
}

host!(
    f32,
    safe_arch::m128,
    set_splat_m128,
    cmp_eq_mask_m128,
    cmp_le_mask_m128,
    bitand_m128,
    bitor_m128,
    move_mask_m128
);
host!(
    f64,
    safe_arch::m128d,
    set_splat_m128d,
    cmp_eq_mask_m128d,
    cmp_le_mask_m128d,
    bitand_m128d,
    bitor_m128d,
    move_mask_m128d
);

/// Whether the host's result can be the guest's: it rounds to nearest, and either a raised precision flag
/// changes nothing, or `is_exact` says that none is.
#[inline(always)]
pub(super) fn host_will_do(env: &Env, is_exact: impl FnOnce() -> bool) -> bool {
    const INEXACT_IS_FREE: u32 = flag::PE | flag::PM;
    env.mxcsr & (flag::RC | INEXACT_IS_FREE) == INEXACT_IS_FREE || env.mxcsr & flag::RC == 0 && is_exact()
}

/// Zero, or neither denormal nor infinite nor a NaN.
#[inline(always)]
pub(super) fn is_usual<F: Real>(bits: u64) -> bool {
    let magnitude = bits & !F::SIGN;
    magnitude == 0 || magnitude.wrapping_sub(F::SMALLEST_NORMAL) < F::INFINITY - F::SMALLEST_NORMAL
}

/// A finite number well above the denormal ones: it was not tiny before it was rounded, either.
#[inline(always)]
pub(super) fn is_well_normal<F: Real>(bits: u64) -> bool {
    (bits & !F::SIGN).wrapping_sub(2 * F::SMALLEST_NORMAL) < F::INFINITY - 2 * F::SMALLEST_NORMAL
}

/// One operation on one pair of numbers.
#[inline(always)]
pub(super) fn single<F: Host, A: Arithmetic>(env: &mut Env, a: u64, b: u64) -> u64 {
    let (x, y) = (F::from_u64(a), F::from_u64(b));
    let number = A::host(x, y);
    let result = number.to_u64();
    let zero_operand = || a & !F::SIGN == 0 || b & !F::SIGN == 0;
    let zero = result & !F::SIGN == 0 && (!A::ZERO_NEEDS_ZERO || zero_operand());
    let usual = is_usual::<F>(a) && is_usual::<F>(b) && (is_well_normal::<F>(result) || zero);
    if usual && host_will_do(env, || zero || A::is_exact(x, y, number)) {
        result
    } else {
        A::soft::<F>(env, a, b)
    }
}

/// One operation on all lanes.
#[inline(always)]
fn all<F: Host, A: Arithmetic>(env: &mut Env, a: Vector, b: Vector) -> Vector {
    let host = |n| A::host(F::from_u64(lane::<F>(a, n)), F::from_u64(lane::<F>(b, n)));
    let result = from_lanes::<F>(|n| host(n).to_u64());
    if F::all_will_do::<A>(a, b, result) && host_will_do(env, || false) {
        result
    } else {
        each::<F, A>(env, a, b)
    }
}

#[inline(never)]
fn each<F: Host, A: Arithmetic>(env: &mut Env, a: Vector, b: Vector) -> Vector {
    from_lanes::<F>(|n| single::<F, A>(env, lane::<F>(a, n), lane::<F>(b, n)))
}

/// The significand of a normal number without its trailing zeros.
fn odd_part<F: Real>(number: F) -> u64 {
    let significand = number.to_u64() & F::FRACTION | F::SMALLEST_NORMAL;
    significand >> significand.trailing_zeros()
}

fn odd_product<F: Real>(a: F, b: F) -> u128 {
    u128::from(odd_part(a)) * u128::from(odd_part(b))
}

pub(super) struct Add;
impl Arithmetic for Add {
    const ZERO_NEEDS_ZERO: bool = false;
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a + b
    }
    fn is_exact<F: Host>(a: F, b: F, sum: F) -> bool {
        // What each operand lost on its way into the sum.
        let from_b = sum - a;
        let from_a = sum - from_b;
        a == from_a && b == from_b
    }
    fn soft<F: Real>(env: &mut Env, a: u64, b: u64) -> u64 {
        env.add::<F>(a, b)
    }
}

pub(super) struct Sub;
impl Arithmetic for Sub {
    const ZERO_NEEDS_ZERO: bool = false;
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a - b
    }
    fn is_exact<F: Host>(a: F, b: F, difference: F) -> bool {
        let from_b = a - difference;
        let from_a = difference + from_b;
        a == from_a && b == from_b
    }
    fn soft<F: Real>(env: &mut Env, a: u64, b: u64) -> u64 {
        env.sub::<F>(a, b)
    }
}

pub(super) struct Mul;
impl Arithmetic for Mul {
    const ZERO_NEEDS_ZERO: bool = true;
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a * b
    }
    fn is_exact<F: Host>(a: F, b: F, _: F) -> bool {
        odd_product(a, b) >> F::PRECISION == 0
    }
    fn soft<F: Real>(env: &mut Env, a: u64, b: u64) -> u64 {
        env.mul::<F>(a, b)
    }
}

pub(super) struct Div;
impl Arithmetic for Div {
    const ZERO_NEEDS_ZERO: bool = true;
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a / b
    }
    fn is_exact<F: Host>(a: F, b: F, quotient: F) -> bool {
        // Apart from a power of two, which the quotient cannot be wrong by.
        odd_product(quotient, b) == u128::from(odd_part(a))
    }
    fn soft<F: Real>(env: &mut Env, a: u64, b: u64) -> u64 {
        env.div::<F>(a, b)
    }
}

/// Of the second operand.
pub(super) struct Sqrt;
impl Arithmetic for Sqrt {
    const ZERO_NEEDS_ZERO: bool = false;
    #[inline(always)]
    fn host<F: Host>(_: F, b: F) -> F {
        b.sqrt()
    }
    fn is_exact<F: Host>(_: F, b: F, root: F) -> bool {
        odd_product(root, root) == u128::from(odd_part(b))
    }
    fn soft<F: Real>(env: &mut Env, _: u64, b: u64) -> u64 {
        env.sqrt::<F>(b)
    }
}

/// `A` on all lanes.
struct All<F, A>(PhantomData<(F, A)>);
impl<F: Host, A: Arithmetic> FloatBinary for All<F, A> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        all::<F, A>(env, a, b)
    }
}

/// `A` on the first lane; the others come from the first source.
struct First<F, A>(PhantomData<(F, A)>);
impl<F: Host, A: Arithmetic> FloatBinary for First<F, A> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        with_first::<F>(a, single::<F, A>(env, lane::<F>(a, 0), lane::<F>(b, 0)))
    }
}

/// `A` on all lanes, the root's first operand being of no account.
struct AllRoots<F>(PhantomData<F>);
impl<F: Host> FloatBinary for AllRoots<F> {
    #[inline(always)]
    fn apply(env: &mut Env, _: Vector, b: Vector, _: u8) -> Vector {
        all::<F, Sqrt>(env, b, b)
    }
}

struct FirstRoot<F>(PhantomData<F>);
impl<F: Host> FloatBinary for FirstRoot<F> {
    #[inline(always)]
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        let b = lane::<F>(b, 0);
        with_first::<F>(a, single::<F, Sqrt>(env, b, b))
    }
}

/// Differences in even lanes, sums in odd ones.
struct AddSub<F>(PhantomData<F>);
impl<F: Host> FloatBinary for AddSub<F> {
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        from_lanes::<F>(|n| {
            let (a, b) = (lane::<F>(a, n), lane::<F>(b, n));
            if n % 2 == 0 { single::<F, Sub>(env, a, b) } else { single::<F, Add>(env, a, b) }
        })
    }
}

/// `A` on each pair of neighbours: those of the first source, then those of the second.
struct Pairs<F, A>(PhantomData<(F, A)>);
impl<F: Host, A: Arithmetic> FloatBinary for Pairs<F, A> {
    fn apply(env: &mut Env, a: Vector, b: Vector, _: u8) -> Vector {
        from_lanes::<F>(|n| {
            let (from, n) = if n < F::LANES / 2 { (a, 2 * n) } else { (b, 2 * n - F::LANES) };
            single::<F, A>(env, lane::<F>(from, n), lane::<F>(from, n + 1))
        })
    }
}

/// `dpps`, `dppd`: the sum of the products that the high half of `imm` chooses, in the lanes that its low half
/// chooses.
struct DotProduct<F>(PhantomData<F>);
impl<F: Host> FloatBinary for DotProduct<F> {
    fn apply(env: &mut Env, a: Vector, b: Vector, imm: u8) -> Vector {
        let products = from_lanes::<F>(|n| {
            if imm >> (4 + n) & 1 != 0 { single::<F, Mul>(env, lane::<F>(a, n), lane::<F>(b, n)) } else { 0 }
        });
        if !env.end_step() {
            return products;
        }
        let mut pair = |n| single::<F, Add>(env, lane::<F>(products, n), lane::<F>(products, n + 1));
        let mut sum = pair(0);
        if F::LANES == 4 {
            let other = pair(2);
            if !env.end_step() {
                return products;
            }
            sum = single::<F, Add>(env, sum, other);
        }
        from_lanes::<F>(|n| if imm >> n & 1 != 0 { sum } else { 0 })
    }
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        M::Addps => packed::<All<f32, Add>>(i),
        M::Addpd => packed::<All<f64, Add>>(i),
        M::Addss => part::<u32, First<f32, Add>>(i),
        M::Addsd => part::<u64, First<f64, Add>>(i),
        M::Subps => packed::<All<f32, Sub>>(i),
        M::Subpd => packed::<All<f64, Sub>>(i),
        M::Subss => part::<u32, First<f32, Sub>>(i),
        M::Subsd => part::<u64, First<f64, Sub>>(i),
        M::Mulps => packed::<All<f32, Mul>>(i),
        M::Mulpd => packed::<All<f64, Mul>>(i),
        M::Mulss => part::<u32, First<f32, Mul>>(i),
        M::Mulsd => part::<u64, First<f64, Mul>>(i),
        M::Divps => packed::<All<f32, Div>>(i),
        M::Divpd => packed::<All<f64, Div>>(i),
        M::Divss => part::<u32, First<f32, Div>>(i),
        M::Divsd => part::<u64, First<f64, Div>>(i),
        M::Sqrtps => packed::<AllRoots<f32>>(i),
        M::Sqrtpd => packed::<AllRoots<f64>>(i),
        M::Sqrtss => part::<u32, FirstRoot<f32>>(i),
        M::Sqrtsd => part::<u64, FirstRoot<f64>>(i),
        M::Addsubps => packed::<AddSub<f32>>(i),
        M::Addsubpd => packed::<AddSub<f64>>(i),
        M::Haddps => packed::<Pairs<f32, Add>>(i),
        M::Haddpd => packed::<Pairs<f64, Add>>(i),
        M::Hsubps => packed::<Pairs<f32, Sub>>(i),
        M::Hsubpd => packed::<Pairs<f64, Sub>>(i),
        M::Dpps => packed::<DotProduct<f32>>(i),
        M::Dppd => packed::<DotProduct<f64>>(i),
        _ => None,
    }
}

#[cfg(test)]
#[path = "arithmetic_test.rs"]
mod tests;
