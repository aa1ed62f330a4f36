//! Integer arithmetic, logic and comparison in lanes (AMD APM volume 4, and volume 5 for MMX).
//!
//! Where the host's baseline (SSE2) has the very instruction, it does the work.

use iced_x86::Instruction;

use super::form::{Vector, mmx_or_sse, sse};
use super::table::table;
use crate::op::Op;

/// The same operation on MMX and XMM registers.
fn both<B: super::form::Binary>(i: &Instruction) -> Option<Op> {
    mmx_or_sse::<B, B>(i)
}

/// Operations whose XMM result has the half made from the first source, then the half made from the second: on
/// MMX registers it has the low half of each.
struct Halves<B>(std::marker::PhantomData<B>);

impl<B: super::form::Binary> super::form::Binary for Halves<B> {
    #[inline(always)]
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector {
        let [from_a, from_b] = B::apply(a, b, imm);
        [from_a & 0xffff_ffff | from_b << 32, 0]
    }
}

/// See [`Halves`].
pub(super) fn halves<B: super::form::Binary>(i: &Instruction) -> Option<Op> {
    mmx_or_sse::<Halves<B>, B>(i)
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    logic(i).or_else(|| add(i)).or_else(|| multiply(i)).or_else(|| compare(i)).or_else(|| horizontal(i))
}

fn logic(i: &Instruction) -> Option<Op> {
    table! { i;
        Pand => both(|a, b| [a[0] & b[0], a[1] & b[1]]);
        Pandn => both(|a, b| [!a[0] & b[0], !a[1] & b[1]]);
        Por => both(|a, b| [a[0] | b[0], a[1] | b[1]]);
        Pxor => both(|a, b| [a[0] ^ b[0], a[1] ^ b[1]]);
        Andps => sse(|a, b| [a[0] & b[0], a[1] & b[1]]);
        Andpd => sse(|a, b| [a[0] & b[0], a[1] & b[1]]);
        Andnps => sse(|a, b| [!a[0] & b[0], !a[1] & b[1]]);
        Andnpd => sse(|a, b| [!a[0] & b[0], !a[1] & b[1]]);
        Orps => sse(|a, b| [a[0] | b[0], a[1] | b[1]]);
        Orpd => sse(|a, b| [a[0] | b[0], a[1] | b[1]]);
        Xorps => sse(|a, b| [a[0] ^ b[0], a[1] ^ b[1]]);
        Xorpd => sse(|a, b| [a[0] ^ b[0], a[1] ^ b[1]]);
    }
}

fn add(i: &Instruction) -> Option<Op> {
    table! { i;
        Paddb => both(add_i8_m128i);
        Paddw => both(add_i16_m128i);
        Paddd => both(add_i32_m128i);
        Paddq => both(|a, b| [a[0].wrapping_add(b[0]), a[1].wrapping_add(b[1])]);
        Paddsb => both(add_saturating_i8_m128i);
        Paddsw => both(add_saturating_i16_m128i);
        Paddusb => both(add_saturating_u8_m128i);
        Paddusw => both(add_saturating_u16_m128i);
        Psubb => both(sub_i8_m128i);
        Psubw => both(sub_i16_m128i);
        Psubd => both(sub_i32_m128i);
        Psubq => both(|a, b| [a[0].wrapping_sub(b[0]), a[1].wrapping_sub(b[1])]);
        Psubsb => both(sub_saturating_i8_m128i);
        Psubsw => both(sub_saturating_i16_m128i);
        Psubusb => both(sub_saturating_u8_m128i);
        Psubusw => both(sub_saturating_u16_m128i);
        Pavgb => both(average_u8_m128i);
        Pavgw => both(average_u16_m128i);
        Pabsb => both([i8; 16] |_, b| b.wrapping_abs());
        Pabsw => both([i16; 8] |_, b| b.wrapping_abs());
        Pabsd => both([i32; 4] |_, b| b.wrapping_abs());
        Psignb => both([i8; 16] |a, b| a.wrapping_mul(b.signum()));
        Psignw => both([i16; 8] |a, b| a.wrapping_mul(b.signum()));
        Psignd => both([i32; 4] |a, b| a.wrapping_mul(b.signum()));
    }
}

fn multiply(i: &Instruction) -> Option<Op> {
    table! { i;
        Pmullw => both(mul_i16_keep_low_m128i);
        Pmulhw => both(mul_i16_keep_high_m128i);
        Pmulhuw => both(mul_u16_keep_high_m128i);
        Pmuludq => both(mul_widen_u32_odd_m128i);
        Pmaddwd => both(mul_i16_horizontal_add_m128i);
        Pmulld => sse([u32; 4] |a, b| a.wrapping_mul(b));
        Pmuldq => sse([u64; 2] |a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64);
        Pmulhrsw => both([i16; 8] |a, b| ((i32::from(a) * i32::from(b) + 0x4000) >> 15) as i16);
        Pmaddubsw => both([u16; 8] |a, b| multiply_bytes(a, b));
    }
}

/// Unsigned bytes by signed bytes: the saturated sum of the two products.
fn multiply_bytes(a: u16, b: u16) -> u16 {
    let ([a0, a1], [b0, b1]) = (a.to_le_bytes(), b.to_le_bytes());
    let product = |a: u8, b: u8| i16::from(a) * i16::from(b as i8);
    product(a0, b0).saturating_add(product(a1, b1)) as u16
}

fn compare(i: &Instruction) -> Option<Op> {
    table! { i;
        Pcmpeqb => both(cmp_eq_mask_i8_m128i);
        Pcmpeqw => both(cmp_eq_mask_i16_m128i);
        Pcmpeqd => both(cmp_eq_mask_i32_m128i);
        Pcmpeqq => sse([u64; 2] |a, b| if a == b { u64::MAX } else { 0 });
        Pcmpgtb => both(cmp_gt_mask_i8_m128i);
        Pcmpgtw => both(cmp_gt_mask_i16_m128i);
        Pcmpgtd => both(cmp_gt_mask_i32_m128i);
        Pcmpgtq => sse([i64; 2] |a, b| if a > b { -1 } else { 0 });
        Pminub => both(min_u8_m128i);
        Pmaxub => both(max_u8_m128i);
        Pminsw => both(min_i16_m128i);
        Pmaxsw => both(max_i16_m128i);
        Pminsb => sse([i8; 16] |a, b| a.min(b));
        Pmaxsb => sse([i8; 16] |a, b| a.max(b));
        Pminuw => sse([u16; 8] |a, b| a.min(b));
        Pmaxuw => sse([u16; 8] |a, b| a.max(b));
        Pminsd => sse([i32; 4] |a, b| a.min(b));
        Pmaxsd => sse([i32; 4] |a, b| a.max(b));
        Pminud => sse([u32; 4] |a, b| a.min(b));
        Pmaxud => sse([u32; 4] |a, b| a.max(b));
    }
}

fn horizontal(i: &Instruction) -> Option<Op> {
    table! { i;
        Psadbw => both(sum_of_u8_abs_diff_m128i);
        Phaddw => halves(|a, b| pairs(a, b, i16::wrapping_add));
        Phaddd => halves(|a, b| pairs(a, b, i32::wrapping_add));
        Phaddsw => halves(|a, b| pairs(a, b, i16::saturating_add));
        Phsubw => halves(|a, b| pairs(a, b, i16::wrapping_sub));
        Phsubd => halves(|a, b| pairs(a, b, i32::wrapping_sub));
        Phsubsw => halves(|a, b| pairs(a, b, i16::saturating_sub));
        Phminposuw => sse(|_, b| least_word(b));
        Mpsadbw => sse(|a, b, imm| sums_of_differences(a, b, imm));
    }
}

/// `operation` on each pair of neighbours: those of the first source, then those of the second.
#[inline(always)]
fn pairs<T: bytemuck::Pod>(a: Vector, b: Vector, operation: impl Fn(T, T) -> T) -> Vector {
    let mut result = [0; 2];
    let sources = [a, b];
    let (lanes, sources): (&mut [T], &[T]) =
        (bytemuck::cast_slice_mut(&mut result), bytemuck::cast_slice(&sources));
    for (n, lane) in lanes.iter_mut().enumerate() {
        *lane = operation(sources[2 * n], sources[2 * n + 1]);
    }
    result
}

/// The smallest word, then the first place where it is.
fn least_word(b: Vector) -> Vector {
    let words: [u16; 8] = bytemuck::cast(b);
    // The place breaks ties: the lowest wins.
    let least = words.iter().zip(0..).map(|(word, n)| u32::from(*word) << 3 | n).min().unwrap_or(0);
    [u64::from(least >> 3 | (least & 7) << 16), 0]
}

/// Eight sums of the absolute differences of four bytes: one block of the second source against the eight that
/// begin at neighbouring bytes of the first.
fn sums_of_differences(a: Vector, b: Vector, imm: u8) -> Vector {
    let (a, b): ([u8; 16], [u8; 16]) = (bytemuck::cast(a), bytemuck::cast(b));
    let (from_a, from_b) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    let sums: [u16; 8] = std::array::from_fn(|n| {
        (0..4).map(|byte| u16::from(a[from_a + n + byte].abs_diff(b[from_b + byte]))).sum()
    });
    bytemuck::cast(sums)
}

#[cfg(test)]
#[path = "lanes_test.rs"]
mod tests;
