//! `rcpps`, `rsqrtps` and their scalar kin: approximations to 11 bits and a half, as the host's processor makes
//! them, so that every engine on one host agrees (AMD APM volume 4). They raise no exception and heed no rounding.

use std::marker::PhantomData;

use bytemuck::cast;
use iced_x86::{Instruction, Mnemonic as M};
use safe_arch::m128;

use super::form::{Binary, SsePart, Vector, by_form, sse};
use crate::op::Op;

struct All<A>(PhantomData<A>);
struct First<A>(PhantomData<A>);

trait Approximation: 'static {
    fn of(values: m128) -> m128;
}

struct Reciprocal;
impl Approximation for Reciprocal {
    fn of(values: m128) -> m128 {
        safe_arch::reciprocal_m128(values)
    }
}

struct ReciprocalRoot;
impl Approximation for ReciprocalRoot {
    fn of(values: m128) -> m128 {
        safe_arch::reciprocal_sqrt_m128(values)
    }
}

impl<A: Approximation> Binary for All<A> {
    fn apply(_: Vector, b: Vector, _: u8) -> Vector {
        cast(A::of(cast(b)))
    }
}

impl<A: Approximation> Binary for First<A> {
    fn apply(a: Vector, b: Vector, _: u8) -> Vector {
        let all: Vector = cast(A::of(cast(b)));
        [all[0] & 0xffff_ffff | a[0] & !0xffff_ffff, a[1]]
    }
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        M::Rcpps => sse::<All<Reciprocal>>(i),
        M::Rcpss => by_form::<SsePart<u32>, First<Reciprocal>>(i),
        M::Rsqrtps => sse::<All<ReciprocalRoot>>(i),
        M::Rsqrtss => by_form::<SsePart<u32>, First<ReciprocalRoot>>(i),
        _ => None,
    }
}
