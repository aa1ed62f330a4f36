//! Packing, interleaving, shuffling, blending, widening (AMD APM volumes 4 and 5).

use std::array::from_fn;
use std::marker::PhantomData;

use bytemuck::cast;
use iced_x86::Instruction;

use super::form::{Binary, Form, Mmx, Sse, SsePart, Vector, by_form, mmx_or_sse, operands, sse};
use super::lanes::halves;
use super::table::table;
use crate::core::Core;
use crate::op::{Op, Step};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    pack(i).or_else(|| shuffle(i)).or_else(|| widen(i)).or_else(|| blend(i)).or_else(|| variable_blend(i))
}

fn pack(i: &Instruction) -> Option<Op> {
    table! { i;
        Packsswb => halves(pack_i16_to_i8_m128i);
        Packssdw => halves(pack_i32_to_i16_m128i);
        Packuswb => halves(pack_i16_to_u8_m128i);
        Packusdw => sse(|a, b| pack_doublewords(a, b));
        Punpcklbw => low(unpack_low_i8_m128i);
        Punpcklwd => low(unpack_low_i16_m128i);
        Punpckldq => low(unpack_low_i32_m128i);
        Punpcklqdq => sse(|a, b| [a[0], b[0]]);
        Punpckhbw => high(unpack_high_i8_m128i);
        Punpckhwd => high(unpack_high_i16_m128i);
        Punpckhdq => high(unpack_high_i32_m128i);
        Punpckhqdq => sse(|a, b| [a[1], b[1]]);
        Unpcklps => sse(unpack_low_i32_m128i);
        Unpcklpd => sse(|a, b| [a[0], b[0]]);
        Unpckhps => sse(unpack_high_i32_m128i);
        Unpckhpd => sse(|a, b| [a[1], b[1]]);
    }
}

/// Interleaving of low halves: the MMX instructions read no more of memory than they use.
fn low<B: Binary>(i: &Instruction) -> Option<Op> {
    if i.op0_register().is_mm() { by_form::<Mmx<u32>, B>(i) } else { sse::<B>(i) }
}

/// Interleaving of high halves.
fn high<B: Binary>(i: &Instruction) -> Option<Op> {
    mmx_or_sse::<HighOfMmx<B>, B>(i)
}

/// The high half of an MMX register, where the operation looks for that of an XMM register.
struct HighOfMmx<B>(PhantomData<B>);

impl<B: Binary> Binary for HighOfMmx<B> {
    #[inline(always)]
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector {
        B::apply([0, a[0] >> 32], [0, b[0] >> 32], imm)
    }
}

fn pack_doublewords(a: Vector, b: Vector) -> Vector {
    let (a, b): ([i32; 4], [i32; 4]) = (cast(a), cast(b));
    let words: [u16; 8] = from_fn(|n| (if n < 4 { a[n] } else { b[n - 4] }).clamp(0, 0xffff) as u16);
    cast(words)
}

fn shuffle(i: &Instruction) -> Option<Op> {
    table! { i;
        Pshufd => sse(|_, b, imm| doublewords(b, b, imm));
        Shufps => sse(|a, b, imm| doublewords(a, b, imm));
        Shufpd => sse(|a, b, imm| [a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]]);
        Pshuflw => sse(|_, b, imm| [words(b[0], imm), b[1]]);
        Pshufhw => sse(|_, b, imm| [b[0], words(b[1], imm)]);
        Pshufw => mmx(|_, b, imm| [words(b[0], imm), 0]);
        Pshufb => bytes_by_form(|a, b| cast(bytes::<16>(cast(a), cast(b))));
    }
}

fn mmx<B: Binary>(i: &Instruction) -> Option<Op> {
    by_form::<Mmx, B>(i)
}

/// Two doublewords of the first source and two of the second, as the fields of `imm` say.
#[inline(always)]
fn doublewords(a: Vector, b: Vector, imm: u8) -> Vector {
    let field = |from: Vector, n: u8| {
        let place = imm >> (2 * n) & 3;
        from[usize::from(place >> 1)] >> (32 * (place & 1)) & 0xffff_ffff
    };
    [field(a, 0) | field(a, 1) << 32, field(b, 2) | field(b, 3) << 32]
}

/// Four words of `from`, as the fields of `imm` say.
#[inline(always)]
fn words(from: u64, imm: u8) -> u64 {
    (0..4).fold(0, |all, n| all | (from >> (16 * (imm >> (2 * n) & 3)) & 0xffff) << (16 * n))
}

/// `pshufb`: bytes of the first source, by the place that each byte of the second says, or zero.
#[inline(always)]
fn bytes<const N: usize>(from: [u8; N], places: [u8; N]) -> [u8; N] {
    places.map(|place| if place & 0x80 != 0 { 0 } else { from[usize::from(place) % N] })
}

fn bytes_by_form<B: Binary>(i: &Instruction) -> Option<Op> {
    struct OnMmx;
    impl Binary for OnMmx {
        #[inline(always)]
        fn apply(a: Vector, b: Vector, _: u8) -> Vector {
            [cast(bytes::<8>(cast(a[0]), cast(b[0]))), 0]
        }
    }
    mmx_or_sse::<OnMmx, B>(i)
}

fn widen(i: &Instruction) -> Option<Op> {
    table! { i;
        Pmovzxbw => part::<u64>(|_, b| cast(low_lanes::<u8, 8>(b).map(u16::from)));
        Pmovzxbd => part::<u32>(|_, b| cast(low_lanes::<u8, 4>(b).map(u32::from)));
        Pmovzxbq => part::<u16>(|_, b| cast(low_lanes::<u8, 2>(b).map(u64::from)));
        Pmovzxwd => part::<u64>(|_, b| cast(low_lanes::<u16, 4>(b).map(u32::from)));
        Pmovzxwq => part::<u32>(|_, b| cast(low_lanes::<u16, 2>(b).map(u64::from)));
        Pmovzxdq => part::<u64>(|_, b| cast(low_lanes::<u32, 2>(b).map(u64::from)));
        Pmovsxbw => part::<u64>(|_, b| cast(low_lanes::<i8, 8>(b).map(i16::from)));
        Pmovsxbd => part::<u32>(|_, b| cast(low_lanes::<i8, 4>(b).map(i32::from)));
        Pmovsxbq => part::<u16>(|_, b| cast(low_lanes::<i8, 2>(b).map(i64::from)));
        Pmovsxwd => part::<u64>(|_, b| cast(low_lanes::<i16, 4>(b).map(i32::from)));
        Pmovsxwq => part::<u32>(|_, b| cast(low_lanes::<i16, 2>(b).map(i64::from)));
        Pmovsxdq => part::<u64>(|_, b| cast(low_lanes::<i32, 2>(b).map(i64::from)));
    }
}

fn part<T: crate::int::Int, B: Binary>(i: &Instruction) -> Option<Op> {
    by_form::<SsePart<T>, B>(i)
}

/// The first `N` lanes.
#[inline(always)]
fn low_lanes<T: bytemuck::Pod, const N: usize>(v: Vector) -> [T; N] {
    let lanes: &[T] = bytemuck::cast_slice(&v);
    from_fn(|n| lanes[n])
}

fn blend(i: &Instruction) -> Option<Op> {
    table! { i;
        Pblendw => sse(|a, b, imm| blend_lanes::<u16, 8>(a, b, imm));
        Blendps => sse(|a, b, imm| blend_lanes::<u32, 4>(a, b, imm));
        Blendpd => sse(|a, b, imm| blend_lanes::<u64, 2>(a, b, imm));
    }
}

/// Lanes of the second source where `imm` has a one, else of the first.
#[inline(always)]
fn blend_lanes<T: bytemuck::Pod, const N: usize>(a: Vector, b: Vector, imm: u8) -> Vector {
    let mut result = a;
    let lanes: &mut [T] = bytemuck::cast_slice_mut(&mut result);
    let others: [T; N] = low_lanes(b);
    for n in 0..N {
        if imm >> n & 1 != 0 {
            lanes[n] = others[n];
        }
    }
    result
}

/// `pblendvb`, `blendvps`, `blendvpd`: the lanes of the second source where `xmm0` is negative.
fn variable_blend(i: &Instruction) -> Option<Op> {
    table! { i;
        Pblendvb => by_sign(|_, mask| spread::<i8>(mask, |lane| lane >> 7));
        Blendvps => by_sign(|_, mask| spread::<i32>(mask, |lane| lane >> 31));
        Blendvpd => by_sign(|_, mask| spread::<i64>(mask, |lane| lane >> 63));
    }
}

#[inline(always)]
fn spread<T: bytemuck::Pod>(v: Vector, sign: impl Fn(T) -> T) -> Vector {
    let mut result = v;
    for lane in bytemuck::cast_slice_mut::<u64, T>(&mut result) {
        *lane = sign(*lane);
    }
    result
}

/// `S` makes the mask from the register that `imm` names.
fn by_sign<S: Binary>(i: &Instruction) -> Option<Op> {
    let mut op = operands(i, 1, [blend_registers::<Sse, S>, blend_memory::<Sse, S>]);
    op.imm = 0;
    Some(op)
}

fn blend_registers<F: Form, S: Binary>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let b = F::get(core, op.aux);
    finish_blend::<F, S>(core, op, b);
    Ok(())
}

fn blend_memory<F: Form, S: Binary>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let b = F::load(core, op)?;
    finish_blend::<F, S>(core, op, b);
    Ok(())
}

#[inline(always)]
fn finish_blend<F: Form, S: Binary>(core: &mut Core, op: &Op, b: Vector) {
    let (a, mask) = (F::get(core, op.src), S::apply([0; 2], F::get(core, op.imm as u8), 0));
    F::set(core, op.dst, [b[0] & mask[0] | a[0] & !mask[0], b[1] & mask[1] | a[1] & !mask[1]]);
}
