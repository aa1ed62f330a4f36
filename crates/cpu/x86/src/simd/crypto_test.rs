use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, bytes, guest};
use super::super::shift::to_u128;
use super::*;

/// The example of FIPS 197, appendix B: plaintext, key, ciphertext.
const PLAIN: [u8; 16] =
    [0x32, 0x43, 0xf6, 0xa8, 0x88, 0x5a, 0x30, 0x8d, 0x31, 0x31, 0x98, 0xa2, 0xe0, 0x37, 0x07, 0x34];
const KEY: [u8; 16] =
    [0x2b, 0x7e, 0x15, 0x16, 0x28, 0xae, 0xd2, 0xa6, 0xab, 0xf7, 0x15, 0x88, 0x09, 0xcf, 0x4f, 0x3c];
const CIPHER: [u8; 16] =
    [0x39, 0x25, 0x84, 0x1d, 0x02, 0xdc, 0x09, 0xfb, 0xdc, 0x11, 0x85, 0x97, 0x19, 0x6a, 0x0b, 0x32];

/// The eleven round keys, made as programs make them: with `aeskeygenassist`.
fn round_keys() -> Vec<Vector> {
    let mut keys = vec![bytes(&KEY)];
    for constant in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36_u32] {
        let before = keys[keys.len() - 1];
        let words: [u32; 4] = cast(before);
        let assist: [u32; 4] = cast(
            guest(|a| a.aeskeygenassist(xmm1, xmm0, constant)).xmm(0, before).xmm(1, [0; 2]).run().xmm(1),
        );
        let mut next = [words[0] ^ assist[3], 0, 0, 0];
        for n in 1..4 {
            next[n] = next[n - 1] ^ words[n];
        }
        keys.push(cast(next));
    }
    keys
}

#[test]
fn aes_encrypts_the_example_of_the_standard() {
    let keys = round_keys();
    let mut state = xor(bytes(&PLAIN), keys[0]);
    for key in &keys[1..10] {
        state = guest(|a| a.aesenc(xmm0, xmm1)).xmm(0, state).xmm(1, *key).run().xmm(0);
    }
    let state = guest(|a| a.aesenclast(xmm0, xmm1)).xmm(0, state).xmm(1, keys[10]).run().xmm(0);
    assert_eq!(state, bytes(&CIPHER));
}

#[test]
fn aes_decrypts_the_example_of_the_standard() {
    let keys = round_keys();
    let mut state = xor(bytes(&CIPHER), keys[10]);
    for key in keys[1..10].iter().rev() {
        let key = guest(|a| a.aesimc(xmm0, xmm1)).xmm(0, [0; 2]).xmm(1, *key).run().xmm(0);
        state = guest(|a| a.aesdec(xmm0, xmm1)).xmm(0, state).xmm(1, key).run().xmm(0);
    }
    let state = guest(|a| a.aesdeclast(xmm0, xmm1)).xmm(0, state).xmm(1, keys[0]).run().xmm(0);
    assert_eq!(state, bytes(&PLAIN));
}

#[test]
fn carryless_products_do_not_carry() {
    // (x + 1)(x + 1) = x^2 + 1; the immediate byte chooses halves.
    let run =
        |imm: u32| guest(|a| a.pclmulqdq(xmm0, xmm1, imm)).xmm(0, [3, 1 << 63]).xmm(1, [3, 2]).run().xmm(0);
    assert_eq!(run(0x00), [5, 0]);
    assert_eq!(run(0x01), [1 << 63, 1]);
    assert_eq!(run(0x11), [0, 1]);
}

#[test]
fn a_carryless_product_is_a_sum_of_shifts() {
    let (a, b) = (0xdead_beef_0123_4567_u64, 0x9876_5432_fedc_ba98_u64);
    let sum = (0..64).filter(|n| b >> n & 1 != 0).fold(0, |sum, n| sum ^ u128::from(a) << n);
    assert_eq!(carryless_product(a, b), sum);
    assert_eq!(to_u128(from_u128(sum)), sum);
}

/// SHA-256 of one padded block, made as programs make it: the functions of the instructions in turn.
#[test]
fn sha256_steps_hash_the_example_of_the_standard() {
    let mut block = [0_u8; 64];
    block[..4].copy_from_slice(b"abc\x80");
    block[63] = 24;
    let mut words: Vec<u32> =
        block.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect();
    while words.len() < 64 {
        let from = words.len() - 16;
        let four = |n: usize| -> Vector { cast([words[n], words[n + 1], words[n + 2], words[n + 3]]) };
        let first: [u32; 4] = cast(sha256_message_1(four(from), four(from + 4)));
        let w9: [u32; 4] = cast(four(from + 9));
        let sum: [u32; 4] = from_fn(|n| first[n].wrapping_add(w9[n]));
        words.extend(cast::<_, [u32; 4]>(sha256_message_2(cast(sum), four(from + 12))));
    }
    // The fractional parts of the roots of the first primes (FIPS 180-4, sections 4.2.2 and 5.3.3).
    let primes: Vec<u32> = (2..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let fraction = |root: f64| (root.fract() * f64::from(1 << 16) * f64::from(1 << 16)) as u32;
    let initial: Vec<u32> = primes[..8].iter().map(|p| fraction(f64::from(*p).sqrt())).collect();
    let with_constant: Vec<u32> =
        words.iter().zip(&primes).map(|(w, p)| w.wrapping_add(fraction(f64::from(*p).cbrt()))).collect();
    let [a, b, c, d, e, f, g, h]: [u32; 8] = initial.clone().try_into().expect("eight words");
    let mut abef: Vector = cast([f, e, b, a]);
    let mut cdgh: Vector = cast([h, g, d, c]);
    for pair in with_constant.chunks_exact(2) {
        let next = sha256_two_rounds(cdgh, abef, [pair[0], pair[1]]);
        (cdgh, abef) = (abef, next);
    }
    let ([f, e, b, a], [h, g, d, c]): ([u32; 4], [u32; 4]) = (cast(abef), cast(cdgh));
    let digest: Vec<u32> =
        [a, b, c, d, e, f, g, h].iter().zip(&initial).map(|(x, y)| x.wrapping_add(*y)).collect();
    assert_eq!(
        digest,
        [
            0xba78_16bf,
            0x8f01_cfea,
            0x4141_40de,
            0x5dae_2223,
            0xb003_61a3,
            0x9617_7a9c,
            0xb410_ff61,
            0xf200_15ad
        ]
    );
}
