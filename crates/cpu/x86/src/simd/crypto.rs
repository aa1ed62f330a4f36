//! AES rounds, carry-less multiplication and SHA steps (AMD APM volume 4; FIPS 197; FIPS 180-4).

use std::array::from_fn;

use bytemuck::cast;
use iced_x86::{Instruction, Mnemonic};

use super::form::{Binary, Form, SseUnaligned, Vector, by_form, operands, sse};
use super::shift::from_u128;
use super::table::table;
use crate::core::Core;
use crate::op::{Op, Step};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    table! { i;
        Aesenc => sse(|a, b| xor(mix_columns(substitute(shift_rows(a, 1), &S_BOX)), b));
        Aesenclast => sse(|a, b| xor(substitute(shift_rows(a, 1), &S_BOX), b));
        Aesdec => sse(|a, b| xor(unmix_columns(substitute(shift_rows(a, 3), &INVERSE_S_BOX)), b));
        Aesdeclast => sse(|a, b| xor(substitute(shift_rows(a, 3), &INVERSE_S_BOX), b));
        Aesimc => sse(|_, b| unmix_columns(b));
        Aeskeygenassist => sse(|_, b, imm| assist_key(b, imm));
        Pclmulqdq => sse(|a, b, imm| {
            from_u128(carryless_product(a[usize::from(imm & 1)], b[usize::from(imm >> 4 & 1)]))
        });
        Sha1rnds4 => unaligned(|a, b, imm| sha1_rounds(a, b, imm));
        Sha1nexte => unaligned(|a, b| [b[0], b[1].wrapping_add((((a[1] >> 32) as u32).rotate_left(30) as u64) << 32)]);
        Sha1msg1 => unaligned(|a, b| [a[0] ^ b[1], a[1] ^ a[0]]);
        Sha1msg2 => unaligned(|a, b| sha1_message(a, b));
        Sha256msg1 => unaligned(|a, b| sha256_message_1(a, b));
        Sha256msg2 => unaligned(|a, b| sha256_message_2(a, b));
    }
    .or_else(|| {
        (i.mnemonic() == Mnemonic::Sha256rnds2)
            .then(|| operands(i, 1, [sha256_rounds_register, sha256_rounds_memory]))
    })
}

/// The SHA instructions of AMD processors do not mind unaligned memory.
fn unaligned<B: Binary>(i: &Instruction) -> Option<Op> {
    by_form::<SseUnaligned, B>(i)
}

fn xor(a: Vector, b: Vector) -> Vector {
    [a[0] ^ b[0], a[1] ^ b[1]]
}

/// Doubles a polynomial over GF(2), modulo the one of AES.
const fn double(byte: u8) -> u8 {
    byte << 1 ^ if byte & 0x80 != 0 { 0x1b } else { 0 }
}

/// FIPS 197, section 5.1.1: the multiplicative inverse, then an affine transformation.
const S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    // `p` runs through all powers of 3, `q` through those of its inverse.
    let (mut p, mut q) = (1_u8, 1_u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        table[p as usize] =
            q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    table[0] = 0x63;
    table
};

const INVERSE_S_BOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        table[S_BOX[n] as usize] = n as u8;
        n += 1;
    }
    table
};

fn substitute(v: Vector, table: &[u8; 256]) -> Vector {
    let bytes: [u8; 16] = cast(v);
    cast(bytes.map(|byte| table[usize::from(byte)]))
}

/// Row `n` (every fourth byte from `n` on) moves by `n * by` columns: 1 to encrypt, 3 to decrypt.
fn shift_rows(v: Vector, by: usize) -> Vector {
    let bytes: [u8; 16] = cast(v);
    cast::<[u8; 16], _>(from_fn(|n| bytes[(n + 4 * by * (n % 4)) % 16]))
}

/// [`double`], of each byte of a column.
fn double_column(column: u32) -> u32 {
    let top = column >> 7 & 0x0101_0101;
    ((column & 0x7f7f_7f7f) << 1) ^ (top * 0x1b)
}

/// FIPS 197, section 5.1.3.
fn mix_column(column: u32) -> u32 {
    let (doubled, tripled) = (double_column(column), double_column(column) ^ column);
    doubled ^ tripled.rotate_right(8) ^ column.rotate_right(16) ^ column.rotate_right(24)
}

fn mix_columns(v: Vector) -> Vector {
    cast(cast::<_, [u32; 4]>(v).map(mix_column))
}

/// FIPS 197, section 5.3.3: the factors 14, 11, 13, 9 are those of [`mix_columns`] after 5, 0, 4, 0.
fn unmix_columns(v: Vector) -> Vector {
    let columns: [u32; 4] = cast(v);
    cast(columns.map(|column| {
        let quadrupled = double_column(double_column(column));
        mix_column(column ^ quadrupled ^ quadrupled.rotate_right(16))
    }))
}

/// The S-box's part of two steps of the key expansion.
fn assist_key(b: Vector, constant: u8) -> Vector {
    let words: [u32; 4] = cast(substitute(b, &S_BOX));
    let rotated = |word: u32| word.rotate_right(8) ^ u32::from(constant);
    cast([words[1], rotated(words[1]), words[3], rotated(words[3])])
}

/// The product of polynomials over GF(2).
fn carryless_product(a: u64, b: u64) -> u128 {
    // The products of `a` by all polynomials of four bits.
    let mut multiples = [0_u128; 16];
    for n in 1..16 {
        multiples[n] = if n & 1 != 0 { multiples[n - 1] ^ u128::from(a) } else { multiples[n / 2] << 1 };
    }
    (0..16).rev().fold(0, |sum, digit| sum << 4 ^ multiples[(b >> (4 * digit)) as usize & 15])
}

/// FIPS 180-4, section 4.1.1, the function of one quarter of the rounds.
fn sha1_function(quarter: u8, b: u32, c: u32, d: u32) -> u32 {
    match quarter {
        0 => b & c ^ !b & d,
        2 => b & c ^ b & d ^ c & d,
        _ => b ^ c ^ d,
    }
}

/// Four rounds. The first source is A to D, from the top; the second the message with E added to its first word.
fn sha1_rounds(state: Vector, message: Vector, imm: u8) -> Vector {
    const CONSTANTS: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];
    let ([mut d, mut c, mut b, mut a], message): ([u32; 4], [u32; 4]) = (cast(state), cast(message));
    let (quarter, mut e) = (imm & 3, 0_u32);
    for word in message.into_iter().rev() {
        let next = sha1_function(quarter, b, c, d)
            .wrapping_add(a.rotate_left(5))
            .wrapping_add(word)
            .wrapping_add(e)
            .wrapping_add(CONSTANTS[usize::from(quarter)]);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    cast([d, c, b, a])
}

/// The last step of four words of the message schedule, each of which needs the third before it.
fn sha1_message(a: Vector, b: Vector) -> Vector {
    let (a, b): ([u32; 4], [u32; 4]) = (cast(a), cast(b));
    let w16 = (a[3] ^ b[2]).rotate_left(1);
    let w17 = (a[2] ^ b[1]).rotate_left(1);
    let w18 = (a[1] ^ b[0]).rotate_left(1);
    let w19 = (a[0] ^ w16).rotate_left(1);
    cast([w19, w18, w17, w16])
}

/// The functions of FIPS 180-4, section 4.1.2, that shift last.
fn small_sigma(x: u32, first: u32, second: u32, shift: u32) -> u32 {
    x.rotate_right(first) ^ x.rotate_right(second) ^ x >> shift
}

fn sha256_message_1(a: Vector, b: Vector) -> Vector {
    let (a, b): ([u32; 4], [u32; 4]) = (cast(a), cast(b));
    let next = [a[1], a[2], a[3], b[0]];
    cast::<[u32; 4], _>(from_fn(|n| a[n].wrapping_add(small_sigma(next[n], 7, 18, 3))))
}

fn sha256_message_2(a: Vector, b: Vector) -> Vector {
    let (mut w, b): ([u32; 4], [u32; 4]) = (cast(a), cast(b));
    let mut before = [b[2], b[3], 0, 0];
    for n in 0..4 {
        w[n] = w[n].wrapping_add(small_sigma(before[n], 17, 19, 10));
        if n < 2 {
            before[n + 2] = w[n];
        }
    }
    cast(w)
}

/// Two rounds: C, D, G, H are in the first operand, A, B, E, F in the second, from the top. What they become
/// after two rounds is A, B, E, F as they were: only the new ones are the result.
fn sha256_two_rounds(cdgh: Vector, abef: Vector, words: [u32; 2]) -> Vector {
    let [mut h, mut g, mut d, mut c]: [u32; 4] = cast(cdgh);
    let [mut f, mut e, mut b, mut a]: [u32; 4] = cast(abef);
    for word in words {
        let sigma_1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let sigma_0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let first = (e & f ^ !e & g).wrapping_add(sigma_1).wrapping_add(word).wrapping_add(h);
        let second = (a & b ^ a & c ^ b & c).wrapping_add(sigma_0);
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
    }
    cast([f, e, b, a])
}

/// The words with their constants are in `xmm0`.
fn sha256_rounds(core: &mut Core, op: &Op, abef: Vector) {
    let words = core.xmm(0)[0];
    let result = sha256_two_rounds(core.xmm(op.src), abef, [words as u32, (words >> 32) as u32]);
    core.set_xmm(op.dst, result);
}

fn sha256_rounds_register(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = core.xmm(op.aux);
    sha256_rounds(core, op, b);
    Ok(())
}

fn sha256_rounds_memory(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let b = SseUnaligned::load(core, op)?;
    sha256_rounds(core, op, b);
    Ok(())
}

#[cfg(test)]
#[path = "crypto_test.rs"]
mod tests;
