//! String comparison: `pcmpestri`, `pcmpestrm`, `pcmpistri`, `pcmpistrm` (AMD APM volume 4,
//! section 1.5; SDM volume 2B, section 4.1).

use bytemuck::cast;
use iced_x86::{Instruction, Mnemonic as M};
use posada_vcpu::x86::rflags;

use super::form::{Form, SseUnaligned, Vector, operands, rm};
use crate::core::Core;
use crate::op::{Op, Run};

/// Where the lengths of the strings come from.
trait Lengths: 'static {
    /// Elements of both operands that count, of `N`.
    fn of(core: &Core, a: &[i32], b: &[i32]) -> (usize, usize);
}

/// Up to the first zero element.
struct Implicit;
impl Lengths for Implicit {
    fn of(_: &Core, a: &[i32], b: &[i32]) -> (usize, usize) {
        let length = |string: &[i32]| string.iter().position(|x| *x == 0).unwrap_or(string.len());
        (length(a), length(b))
    }
}

/// The magnitudes of `eax` and `edx`.
struct Explicit;
impl Lengths for Explicit {
    fn of(core: &Core, a: &[i32], b: &[i32]) -> (usize, usize) {
        let length =
            |number, all: usize| (core.reg::<u32>(number) as i32).unsigned_abs().min(all as u32) as usize;
        (length(0, a.len()), length(2, b.len()))
    }
}

/// The magnitudes of `rax` and `rdx`.
struct Explicit64;
impl Lengths for Explicit64 {
    fn of(core: &Core, a: &[i32], b: &[i32]) -> (usize, usize) {
        let length =
            |number, all: usize| (core.reg::<u64>(number) as i64).unsigned_abs().min(all as u64) as usize;
        (length(0, a.len()), length(2, b.len()))
    }
}

/// The elements of a vector, as the low two bits of the immediate byte say: bytes or words, signed or not. Returns
/// how many there are.
fn elements(v: Vector, imm: u8, to: &mut [i32; 16]) -> usize {
    let (bytes, words): ([u8; 16], [u16; 8]) = (cast(v), cast(v));
    let wide = imm & 1 != 0;
    let count = if wide { 8 } else { 16 };
    for (n, element) in to[..count].iter_mut().enumerate() {
        *element = match imm & 3 {
            0 => i32::from(bytes[n]),
            1 => i32::from(words[n]),
            2 => i32::from(bytes[n] as i8),
            _ => i32::from(words[n] as i16),
        };
    }
    count
}

/// One bit for each element of `b`: what the aggregation in bits 3:2 finds there. Elements from the lengths on do
/// not count.
fn aggregate(a: &[i32], b: &[i32], lengths: (usize, usize), imm: u8) -> u32 {
    let (valid_a, valid_b) = (&a[..lengths.0], &b[..lengths.1]);
    let gather =
        |found: &dyn Fn(usize) -> bool| (0..b.len()).fold(0, |all, n| all | u32::from(found(n)) << n);
    match imm >> 2 & 3 {
        // Equal any: a set of characters.
        0 => gather(&|n| valid_b.get(n).is_some_and(|x| valid_a.contains(x))),
        // Ranges: pairs of least and greatest.
        1 => gather(&|n| {
            valid_b
                .get(n)
                .is_some_and(|x| valid_a.chunks_exact(2).any(|pair| (pair[0]..=pair[1]).contains(x)))
        }),
        // Equal each: where both have ended they are equal.
        2 => gather(&|n| valid_a.get(n) == valid_b.get(n)),
        // Equal ordered: a substring that begins here, or is cut off by the end of the register.
        _ => gather(&|n| {
            let room = valid_a.len().min(b.len() - n);
            valid_b.get(n..).is_some_and(|rest| rest.starts_with(&valid_a[..room])) || room == 0
        }),
    }
}

/// Compares and sets the flags; returns the bits found and the number of elements.
fn compare<L: Lengths>(core: &mut Core, op: &Op, b: Vector) -> (u32, u32) {
    let imm = op.imm as u8;
    let (mut first, mut second) = ([0; 16], [0; 16]);
    let count = elements(core.xmm(op.src), imm, &mut first);
    elements(b, imm, &mut second);
    let (first, second) = (&first[..count], &second[..count]);
    let lengths = L::of(core, first, second);
    let found = aggregate(first, second, lengths, imm);
    let all = u32::MAX >> (32 - count);
    let result = match imm >> 4 & 3 {
        1 => !found & all,
        3 => found ^ ((1 << lengths.1) - 1),
        _ => found,
    };
    let flag = |on: bool, flag: u64| if on { flag } else { 0 };
    core.flags.set(
        flag(result != 0, rflags::CF)
            | flag(lengths.1 < count, rflags::ZF)
            | flag(lengths.0 < count, rflags::SF)
            | flag(result & 1 != 0, rflags::OF),
    );
    (result, count as u32)
}

/// The place of the first element found, or of the last, to `ecx`; the number of elements if there is none.
fn index<L: Lengths>(core: &mut Core, op: &Op, b: Vector) {
    let (result, count) = compare::<L>(core, op, b);
    let place = match result {
        0 => count,
        _ if op.imm & 0x40 != 0 => result.ilog2(),
        _ => result.trailing_zeros(),
    };
    core.set_reg(1, place);
}

/// The bits found, or as many elements of ones, to `xmm0`.
fn mask<L: Lengths>(core: &mut Core, op: &Op, b: Vector) {
    let (result, count) = compare::<L>(core, op, b);
    let vector = if op.imm & 0x40 == 0 {
        [u64::from(result), 0]
    } else {
        let width = 128 / count;
        let ones = u64::MAX >> (64 - width);
        let per_half = count / 2;
        let half = |bits: u32| {
            (0..per_half).filter(|n| bits >> n & 1 != 0).fold(0, |all, n| all | ones << (n * width))
        };
        [half(result), half(result >> per_half)]
    };
    core.set_xmm(0, vector);
}

macro_rules! forms {
    ($finish:ident::<$lengths:ident>) => {{
        let by_register: Run = |core, op| {
            core.sse_ready()?;
            let b = core.xmm(op.aux);
            $finish::<$lengths>(core, op, b);
            Ok(())
        };
        let by_memory: Run = |core, op| {
            core.sse_ready()?;
            let b = SseUnaligned::load(core, op)?;
            $finish::<$lengths>(core, op, b);
            Ok(())
        };
        [by_register, by_memory]
    }};
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run = match i.mnemonic() {
        M::Pcmpistri => forms!(index::<Implicit>),
        M::Pcmpistrm => forms!(mask::<Implicit>),
        M::Pcmpestri => forms!(index::<Explicit>),
        M::Pcmpestrm => forms!(mask::<Explicit>),
        M::Pcmpestri64 => forms!(index::<Explicit64>),
        M::Pcmpestrm64 => forms!(mask::<Explicit64>),
        _ => return None,
    };
    Some(operands(i, rm(i), run))
}

#[cfg(test)]
#[path = "string_test.rs"]
mod tests;
