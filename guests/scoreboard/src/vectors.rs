//! Rows of floating point that is not scalar doubles: packed SSE, packed AVX2, and the x87.

use std::arch::asm;
use std::arch::x86_64::{
    __m128, __m256, _mm_add_ps, _mm_cvtss_f32, _mm_max_ps, _mm_min_ps, _mm_mul_ps, _mm_set_ps, _mm_set1_ps,
    _mm_shuffle_ps, _mm_sub_ps, _mm256_add_epi32, _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_ps,
    _mm256_cvtss_f32, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_shuffle_ps, _mm256_sub_ps, _mm256_xor_si256,
};
use std::hint::black_box;

use crate::random::{Random, mix};
use crate::row::{Failure, Row};

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new("packed-sse", "vector", 64, ROUNDS * VECTORS as u64, || {
            Ok(|| {
                // SAFETY: every 64-bit processor has SSE.
                Ok(unsafe { packed_sse() })
            })
        }),
        Row::new("packed-avx2", "vector", 64, ROUNDS * VECTORS as u64, || {
            if !is_x86_feature_detected!("avx2") {
                return Err(Failure::Absent("no-avx2"));
            }
            Ok(|| {
                // SAFETY: the processor has AVX2, and the system keeps its registers, as was just found out.
                Ok(unsafe { packed_avx2() })
            })
        }),
        Row::new("x87", "step", 64, X87_ROUNDS * NUMBERS as u64, x87_sums),
    ]
}

/// As many as a quarter of a first-level cache holds.
const VECTORS: usize = 512;

const ROUNDS: u64 = 12_000;

fn number(random: &mut Random) -> f32 {
    (random.next() >> 40) as f32 / (1 << 24) as f32
}

/// Loads, stores, and seven operations on each vector, over and over.
#[target_feature(enable = "sse")]
fn packed_sse() -> u64 {
    let mut random = Random::new(7);
    let mut number = || number(&mut random);
    let mut vectors: Vec<__m128> =
        (0..VECTORS).map(|_| _mm_set_ps(number(), number(), number(), number())).collect();
    let (factor, term) = (_mm_set1_ps(black_box(0.75)), _mm_set1_ps(black_box(0.125)));
    let (least, most) = (_mm_set1_ps(-8.0), _mm_set1_ps(8.0));
    for _ in 0..ROUNDS {
        for vector in &mut *vectors {
            let scaled = _mm_add_ps(_mm_mul_ps(*vector, factor), term);
            let turned = _mm_shuffle_ps::<0b00_11_10_01>(scaled, scaled);
            let mixed = _mm_sub_ps(scaled, _mm_mul_ps(turned, factor));
            *vector = _mm_min_ps(_mm_max_ps(mixed, least), most);
        }
        black_box(&mut *vectors);
    }
    let mut sum = 0;
    for vector in vectors {
        sum = mix(sum, u64::from(_mm_cvtss_f32(vector).to_bits()));
    }
    sum
}

/// The same with twice as many lanes, and two operations on integers.
#[target_feature(enable = "avx2")]
fn packed_avx2() -> u64 {
    let mut random = Random::new(8);
    let mut number = || number(&mut random);
    let mut vectors: Vec<__m256> = (0..VECTORS)
        .map(|_| {
            let numbers = [(); 8].map(|()| number());
            let [a, b, c, d, e, f, g, h] = numbers;
            _mm256_set_ps(a, b, c, d, e, f, g, h)
        })
        .collect();
    let (factor, term) = (_mm256_set1_ps(black_box(0.75)), _mm256_set1_ps(black_box(0.125)));
    let (least, most) = (_mm256_set1_ps(-8.0), _mm256_set1_ps(8.0));
    // Changes the last bits of a fraction only.
    let (low, bits) = (_mm256_set1_epi32(black_box(1)), _mm256_set1_epi32(black_box(2)));
    for _ in 0..ROUNDS {
        for vector in &mut *vectors {
            let scaled = _mm256_add_ps(_mm256_mul_ps(*vector, factor), term);
            let turned = _mm256_permute2f128_ps::<1>(scaled, scaled);
            let turned = _mm256_shuffle_ps::<0b00_11_10_01>(turned, turned);
            let mixed = _mm256_sub_ps(scaled, _mm256_mul_ps(turned, factor));
            let bent = _mm256_xor_si256(_mm256_add_epi32(_mm256_castps_si256(mixed), low), bits);
            *vector = _mm256_min_ps(_mm256_max_ps(_mm256_castsi256_ps(bent), least), most);
        }
        black_box(&mut *vectors);
    }
    let mut sum = 0;
    for vector in vectors {
        sum = mix(sum, u64::from(_mm256_cvtss_f32(vector).to_bits()));
    }
    sum
}

const NUMBERS: usize = 1024;

const X87_ROUNDS: u64 = 2_000;

/// A sum of products in 80 bits.
fn x87_sums() -> Result<impl FnMut() -> Result<u64, Failure>, Failure> {
    let mut random = Random::new(10);
    let mut numbers = || -> Vec<f64> { (0..NUMBERS).map(|_| f64::from(number(&mut random))).collect() };
    let (left, right) = (numbers(), numbers());
    Ok(move || {
        let mut sum = 0;
        for _ in 0..X87_ROUNDS {
            sum = mix(sum, x87_sum(black_box(&left), black_box(&right)).to_bits());
        }
        Ok(sum)
    })
}

/// Halves the sum and adds a product, for each pair of numbers.
fn x87_sum(left: &[f64], right: &[f64]) -> f64 {
    let half = 0.5_f64;
    let mut sum = 0.0_f64;
    // SAFETY: it reads as many numbers of both slices as the shorter one has, and writes `sum`; the stack of the x87 is
    // as empty afterwards as it was before.
    unsafe {
        asm!(
            "fldz",
            "2:",
            "fmul qword ptr [{half}]",
            "fld qword ptr [{left} + 8 * {index}]",
            "fmul qword ptr [{right} + 8 * {index}]",
            "faddp st(1), st",
            "inc {index}",
            "cmp {index}, {end}",
            "jb 2b",
            "fstp qword ptr [{sum}]",
            half = in(reg) &raw const half,
            left = in(reg) left.as_ptr(),
            right = in(reg) right.as_ptr(),
            index = inout(reg) 0_usize => _,
            end = in(reg) left.len().min(right.len()).max(1),
            sum = in(reg) &raw mut sum,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            options(nostack),
        );
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_x87_sums_what_doubles_sum() {
        // Few bits, so that nothing is rounded.
        assert_eq!(x87_sum(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]).to_bits(), 24.0_f64.to_bits());
    }

    #[test]
    fn packed_work_always_comes_to_the_same() {
        // SAFETY: every 64-bit processor has SSE.
        let (first, second) = unsafe { (packed_sse(), packed_sse()) };
        assert_eq!(first, second);
    }
}
