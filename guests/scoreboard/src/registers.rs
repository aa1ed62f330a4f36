//! Rows that stay in registers and the first-level caches: calls, arithmetic, floating point.

use std::arch::asm;
use std::hint::black_box;

use crate::random::{Random, mix};
use crate::row::Row;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new("call", "call", 64, CALLS, || Ok(|| Ok(fibonacci(black_box(FIBONACCI))))),
        Row::new("addition", "addition", 64, ADDITIONS, || Ok(|| Ok(additions()))),
        Row::new("integer", "step", 64, STEPS, || Ok(|| Ok(integer(black_box(1))))),
        Row::new("indirect-call", "call", 64, INDIRECT_CALLS as u64, indirect_calls),
        Row::new("scalar-double", "step", 64, BODY_STEPS, || Ok(|| Ok(bodies(black_box(BODY_STEPS))))),
    ]
}

const FIBONACCI: u64 = 29;

/// `fibonacci(29)` is 832,040 calls of itself with two leaves for every value: 2 F(30) - 1.
const CALLS: u64 = 1_664_079;

/// The recursion that everybody knows; what it does is call and return.
#[inline(never)]
fn fibonacci(n: u64) -> u64 {
    // Nothing may become a loop.
    if n < 2 { n } else { black_box(fibonacci(n - 1)) + black_box(fibonacci(n - 2)) }
}

const ADDITIONS: u64 = 16 << 20;

/// Additions each of which needs the one before: on the host, one in each cycle of the processor's clock.
fn additions() -> u64 {
    let mut sum = 0_u64;
    for _ in 0..ADDITIONS / 16 {
        // SAFETY: it changes nothing but these registers.
        unsafe {
            asm!(".rept 16", "add {sum}, {one}", ".endr", sum = inout(reg) sum, one = in(reg) 1_u64,
                options(nomem, nostack, pure));
        }
    }
    sum
}

const STEPS: u64 = 3_000_000;

/// Shifts, rotations, exclusive ors, additions, a multiplication: each needs the one before.
fn integer(seed: u64) -> u64 {
    let (mut a, mut b) = (seed, 0x9e3779b97f4a7c15_u64);
    for step in 0..STEPS {
        a ^= a << 13;
        b = b.wrapping_add(a).rotate_left(17);
        a ^= a >> 7;
        b ^= step;
        a ^= a << 17;
        b = b.wrapping_mul(0x2545f4914f6cdd1d);
        a = a.wrapping_add(b);
    }
    a ^ b
}

const INDIRECT_CALLS: usize = 1 << 20;

/// Functions through a table, in an order that no predictor learns.
fn indirect_calls() -> Result<impl FnMut() -> Result<u64, crate::row::Failure>, crate::row::Failure> {
    const TABLE: [fn(u64) -> u64; 16] = [
        function::<1>,
        function::<3>,
        function::<5>,
        function::<7>,
        function::<9>,
        function::<11>,
        function::<13>,
        function::<15>,
        function::<17>,
        function::<19>,
        function::<21>,
        function::<23>,
        function::<25>,
        function::<27>,
        function::<29>,
        function::<31>,
    ];
    let mut random = Random::new(1);
    let order: Vec<u8> = (0..INDIRECT_CALLS).map(|_| random.below(TABLE.len()) as u8).collect();
    Ok(move || {
        let table = black_box(&TABLE);
        Ok(black_box(&order).iter().fold(1, |value, index| table[usize::from(*index & 15)](value)))
    })
}

#[inline(never)]
fn function<const N: u64>(value: u64) -> u64 {
    value.wrapping_mul(N).wrapping_add(N) ^ (value >> 9)
}

const BODY_STEPS: u64 = 100_000;

/// A body in space.
#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Five bodies that attract each other: multiplications, divisions and square roots of doubles.
fn bodies(steps: u64) -> u64 {
    const DT: f64 = 1.0 / 1024.0;
    let mut random = Random::new(5);
    let mut number = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
    let mut bodies = [(); 5].map(|()| Body {
        place: [(); 3].map(|()| 40.0 * number() - 20.0),
        speed: [(); 3].map(|()| number() - 0.5),
        mass: 1.0 + number(),
    });
    for _ in 0..steps {
        for i in 0..bodies.len() {
            for j in i + 1..bodies.len() {
                let (a, b) = (bodies[i], bodies[j]);
                let d = [0, 1, 2].map(|axis| a.place[axis] - b.place[axis]);
                // A little is added, for no two bodies shall come too close.
                let squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.0625;
                let pull = DT / (squared * squared.sqrt());
                for axis in 0..3 {
                    bodies[i].speed[axis] -= d[axis] * b.mass * pull;
                    bodies[j].speed[axis] += d[axis] * a.mass * pull;
                }
            }
        }
        for body in &mut bodies {
            for axis in 0..3 {
                body.place[axis] += DT * body.speed[axis];
            }
        }
    }
    bodies.iter().flat_map(|body| body.place).fold(0, |sum, value| mix(sum, value.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fibonacci_is_what_it_is_known_to_be() {
        assert_eq!(fibonacci(FIBONACCI), 514_229);
    }

    #[test]
    fn bodies_move_and_always_alike() {
        assert_eq!(bodies(10), bodies(10));
        assert_ne!(bodies(10), bodies(11));
    }
}
