//! Addition, multiplication, division, square root, and what is made of them (AMD APM volume 4).
//!
//! The host's arithmetic gives the result when it is sure to be the guest's: rounding to nearest, operands that
//! are normal numbers or zero, a normal result, and the precision flag either set already or known not to be
//! raised. All else goes to `soft`.

use std::array::from_fn;
use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic as M};

use super::float::{FloatBinary, Real, from_lanes, lane, packed, part, with_first};
use super::form::Vector;
use super::soft::{Env, flag};
use crate::int::Int;
use crate::op::Op;

/// An operation on two numbers.
pub(super) trait Arithmetic: 'static {
    /// The host's.
    fn host<F: Host>(a: F, b: F) -> F;
    /// Whether a zero that the host gave for normal or zero operands is exact.
    fn zero_is_exact(a: u64, b: u64) -> bool;
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
    fn lanes<A: Arithmetic>(env: &mut Env, a: Vector, b: Vector) -> Vector;
}

impl Host for f32 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn lanes<A: Arithmetic>(env: &mut Env, a: Vector, b: Vector) -> Vector {
        bytemuck::cast(lanes::<f32, A, 4>(env, bytemuck::cast(a), bytemuck::cast(b)))
    }
}

impl Host for f64 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn lanes<A: Arithmetic>(env: &mut Env, a: Vector, b: Vector) -> Vector {
        lanes::<f64, A, 2>(env, a, b)
    }
}

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

#[inline(always)]
fn lanes<F: Host, A: Arithmetic, const N: usize>(
    env: &mut Env,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> [F::Bits; N] {
    let result: [F; N] = from_fn(|n| A::host(F::from_bits(a[n]), F::from_bits(b[n])));
    let usual = (0..N).all(|n| {
        let (a, b, result) = (a[n].zext(), b[n].zext(), result[n].to_u64());
        let zero = result & !F::SIGN == 0 && A::zero_is_exact(a & !F::SIGN, b & !F::SIGN);
        is_usual::<F>(a) && is_usual::<F>(b) && (is_well_normal::<F>(result) || zero)
    });
    let exact = || {
        (0..N).all(|n| {
            result[n].to_u64() & !F::SIGN == 0
                || A::is_exact(F::from_bits(a[n]), F::from_bits(b[n]), result[n])
        })
    };
    if usual && host_will_do(env, exact) { result.map(F::to_bits) } else { slowly::<F, A, N>(env, a, b) }
}

#[inline(never)]
fn slowly<F: Real, A: Arithmetic, const N: usize>(
    env: &mut Env,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> [F::Bits; N] {
    from_fn(|n| F::Bits::new(A::soft::<F>(env, a[n].zext(), b[n].zext())))
}

/// One operation on one pair of numbers.
#[inline(always)]
pub(super) fn single<F: Host, A: Arithmetic>(env: &mut Env, a: u64, b: u64) -> u64 {
    lanes::<F, A, 1>(env, [F::Bits::new(a)], [F::Bits::new(b)])[0].zext()
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
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a + b
    }
    #[inline(always)]
    fn zero_is_exact(_: u64, _: u64) -> bool {
        true
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
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a - b
    }
    #[inline(always)]
    fn zero_is_exact(_: u64, _: u64) -> bool {
        true
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
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a * b
    }
    #[inline(always)]
    fn zero_is_exact(a: u64, b: u64) -> bool {
        a == 0 || b == 0
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
    #[inline(always)]
    fn host<F: Host>(a: F, b: F) -> F {
        a / b
    }
    #[inline(always)]
    fn zero_is_exact(a: u64, b: u64) -> bool {
        a == 0 && b != 0
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
    #[inline(always)]
    fn host<F: Host>(_: F, b: F) -> F {
        b.sqrt()
    }
    #[inline(always)]
    fn zero_is_exact(_: u64, _: u64) -> bool {
        true
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
        F::lanes::<A>(env, a, b)
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
        F::lanes::<Sqrt>(env, b, b)
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
