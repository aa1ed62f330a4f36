//! Shifts of lanes and of whole registers (AMD APM volumes 4 and 5).

use iced_x86::{Instruction, Mnemonic};

use super::form::{Binary, Vector, has_immediate, mmx_or_sse, sse};
use super::table::table;
use crate::op::Op;

fn both<B: Binary>(i: &Instruction) -> Option<Op> {
    mmx_or_sse::<B, B>(i)
}

/// The shift by an immediate count that corresponds to one by a vector's low half.
struct ByImmediate<B>(std::marker::PhantomData<B>);

impl<B: Binary> Binary for ByImmediate<B> {
    #[inline(always)]
    fn apply(_: Vector, value: Vector, imm: u8) -> Vector {
        B::apply(value, [u64::from(imm), 0], 0)
    }
}

fn by_count<B: Binary>(i: &Instruction) -> Option<Op> {
    if has_immediate(i) { both::<ByImmediate<B>>(i) } else { both::<B>(i) }
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    table! { i;
        Psllw => by_count(shl_all_u16_m128i);
        Pslld => by_count(shl_all_u32_m128i);
        Psllq => by_count(shl_all_u64_m128i);
        Psrlw => by_count(shr_all_u16_m128i);
        Psrld => by_count(shr_all_u32_m128i);
        Psrlq => by_count(shr_all_u64_m128i);
        Psraw => by_count(shr_all_i16_m128i);
        Psrad => by_count(shr_all_i32_m128i);
        Pslldq => sse(|_, b, imm| from_u128(to_u128(b).checked_shl(u32::from(imm) * 8).unwrap_or(0)));
        Psrldq => sse(|_, b, imm| from_u128(to_u128(b).checked_shr(u32::from(imm) * 8).unwrap_or(0)));
    }
    .or_else(|| if i.mnemonic() == Mnemonic::Palignr { mmx_or_sse::<AlignHalf, Align>(i) } else { None })
}

pub(super) fn to_u128(v: Vector) -> u128 {
    u128::from(v[0]) | u128::from(v[1]) << 64
}

pub(super) fn from_u128(v: u128) -> Vector {
    [v as u64, (v >> 64) as u64]
}

/// `palignr`: the second source's bytes from a place on, then the first's.
struct Align;
impl Binary for Align {
    #[inline(always)]
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector {
        let shift = u32::from(imm) * 8;
        let low = to_u128(b).checked_shr(shift).unwrap_or(0);
        let high = if shift < 128 {
            to_u128(a).checked_shl(128 - shift).unwrap_or(0)
        } else {
            to_u128(a).checked_shr(shift - 128).unwrap_or(0)
        };
        from_u128(low | high)
    }
}

/// `palignr` on MMX registers.
struct AlignHalf;
impl Binary for AlignHalf {
    #[inline(always)]
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector {
        let both = u128::from(b[0]) | u128::from(a[0]) << 64;
        [both.checked_shr(u32::from(imm) * 8).unwrap_or(0) as u64, 0]
    }
}
