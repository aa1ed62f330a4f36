use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, doubles, guest, singles};
use super::super::soft::flag::{DAZ, DE, FTZ, IE, OE, PE, UE, ZE};
use super::*;
use crate::exception::vector;

/// All exceptions masked, rounding to nearest.
const MASKED: u32 = 0x1f80;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const DEFAULT_NAN: u64 = 0xfff8_0000_0000_0000;

/// One scalar operation: the result's bits, and the flags raised.
fn run<A: Arithmetic>(mxcsr: u32, a: f64, b: f64) -> (u64, u32) {
    let mut env = Env::new(mxcsr);
    (single::<f64, A>(&mut env, a.to_bits(), b.to_bits()), env.flags())
}

#[test]
fn exact_results_raise_nothing() {
    assert_eq!(run::<Add>(MASKED, 1.5, 2.25), (3.75_f64.to_bits(), 0));
    assert_eq!(run::<Sub>(MASKED, 1.5, 1.5), (0, 0));
    assert_eq!(run::<Mul>(MASKED, 1.5, -2.5), ((-3.75_f64).to_bits(), 0));
    assert_eq!(run::<Div>(MASKED, 7.5, 2.5), (3.0_f64.to_bits(), 0));
    assert_eq!(run::<Sqrt>(MASKED, 2.25, 2.25), (1.5_f64.to_bits(), 0));
}

#[test]
fn inexact_results_say_so() {
    assert_eq!(run::<Add>(MASKED, 1.0, 1e-30), (1.0_f64.to_bits(), PE));
    assert_eq!(run::<Mul>(MASKED, 0.1, 0.1).1, PE);
    assert_eq!(run::<Div>(MASKED, 1.0, 3.0).1, PE);
    assert_eq!(run::<Sqrt>(MASKED, 2.0, 2.0).1, PE);
}

#[test]
fn rounding_goes_the_way_that_mxcsr_says() {
    let third = (1.0_f64 / 3.0).to_bits();
    for (mode, up, up_if_negative) in [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 0, 0)] {
        let mxcsr = MASKED | mode << 13;
        assert_eq!(run::<Div>(mxcsr, 1.0, 3.0), (third + up, PE), "mode {mode}");
        assert_eq!(run::<Div>(mxcsr, -1.0, 3.0), (1 << 63 | (third + up_if_negative), PE), "mode {mode}");
    }
}

#[test]
fn opposites_sum_to_a_zero_that_is_negative_only_when_rounding_down() {
    for (mode, zero) in [(0, 0), (1, 1 << 63), (2, 0), (3, 0)] {
        assert_eq!(run::<Add>(MASKED | mode << 13, 2.5, -2.5), (zero, 0), "mode {mode}");
    }
}

#[test]
fn overflow_gives_infinity_or_the_greatest_number() {
    for (mode, positive, negative) in [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)] {
        let mxcsr = MASKED | mode << 13;
        assert_eq!(run::<Add>(mxcsr, f64::MAX, f64::MAX), (INFINITY - positive, OE | PE));
        assert_eq!(run::<Mul>(mxcsr, f64::MIN, f64::MAX), (1 << 63 | (INFINITY - negative), OE | PE));
    }
}

#[test]
fn tiny_results_underflow_only_when_inexact() {
    assert_eq!(run::<Mul>(MASKED, f64::MIN_POSITIVE, 0.5), (1 << 51, 0));
    assert_eq!(run::<Mul>(MASKED, f64::MIN_POSITIVE, 1e-3).1, UE | PE);
}

#[test]
fn tininess_is_found_after_rounding() {
    // Just below the smallest normal number, by half of the last place that a normal number has: rounded to 53
    // bits it is no longer tiny.
    let (a, b) = (f64::from_bits(0x3fef_ffff_ffff_ffff), f64::from_bits(0x0010_0000_0000_0000));
    assert_eq!(run::<Mul>(MASKED, a, b), (0x0010_0000_0000_0000, UE | PE));
    let (a, b) = (f64::from_bits(0x3fff_ffff_ffff_fffe), f64::from_bits(0x0008_0000_0000_0001));
    let (result, flags) = run::<Mul>(MASKED, a, b);
    assert_eq!((result, flags), (0x0010_0000_0000_0001, PE | DE));
}

#[test]
fn unmasked_underflow_comes_from_exact_results_too() {
    let mxcsr = MASKED & !(UE << 7);
    assert_eq!(run::<Mul>(mxcsr, f64::MIN_POSITIVE, 0.5).1, UE);
}

#[test]
fn flush_to_zero_flushes_all_that_is_tiny() {
    assert_eq!(run::<Mul>(MASKED | FTZ, -f64::MIN_POSITIVE, 0.5), (1 << 63, UE | PE));
    // Not while underflow is unmasked.
    assert_eq!(run::<Mul>(MASKED & !(UE << 7) | FTZ, f64::MIN_POSITIVE, 0.5).1, UE);
}

#[test]
fn denormal_operands_are_noted_or_taken_for_zero() {
    let denormal = f64::from_bits(5);
    assert_eq!(run::<Add>(MASKED, denormal, 1.0), (1.0_f64.to_bits(), DE | PE));
    assert_eq!(run::<Add>(MASKED | DAZ, denormal, 1.0), (1.0_f64.to_bits(), 0));
    assert_eq!(run::<Div>(MASKED | DAZ, 1.0, -denormal), (1 << 63 | INFINITY, ZE));
}

#[test]
fn invalid_operations_give_the_default_nan() {
    let inf = f64::INFINITY;
    for (result, flags) in [
        run::<Sub>(MASKED, inf, inf),
        run::<Mul>(MASKED, 0.0, inf),
        run::<Div>(MASKED, 0.0, 0.0),
        run::<Div>(MASKED, inf, -inf),
        run::<Sqrt>(MASKED, -1.0, -1.0),
    ] {
        assert_eq!((result, flags), (DEFAULT_NAN, IE));
    }
    assert_eq!(run::<Sqrt>(MASKED, -0.0, -0.0), (1 << 63, 0));
}

#[test]
fn division_by_zero_gives_infinity() {
    assert_eq!(run::<Div>(MASKED, -1.0, 0.0), (1 << 63 | INFINITY, ZE));
    assert_eq!(run::<Div>(MASKED, f64::INFINITY, 0.0), (INFINITY, 0));
}

#[test]
fn the_first_nan_wins_and_becomes_quiet() {
    let (quiet, signaling) = (f64::from_bits(0x7ff8_0000_0000_0011), f64::from_bits(0xfff0_0000_0000_0022));
    let quieted = 0xfff8_0000_0000_0022;
    assert_eq!(run::<Add>(MASKED, quiet, signaling), (quiet.to_bits(), IE));
    assert_eq!(run::<Add>(MASKED, signaling, quiet), (quieted, IE));
    // Subtraction does not turn its sign.
    assert_eq!(run::<Sub>(MASKED, 1.0, signaling), (quieted, IE));
    assert_eq!(run::<Sub>(MASKED, 1.0, quiet), (quiet.to_bits(), 0));
    // A NaN hides a denormal operand.
    assert_eq!(run::<Add>(MASKED, quiet, f64::from_bits(1)), (quiet.to_bits(), 0));
}

#[test]
fn an_unmasked_exception_keeps_the_result_from_being_written() {
    let outcome = guest(|a| a.divsd(xmm0, xmm1))
        .xmm(0, doubles([1.0, 9.0]))
        .xmm(1, doubles([0.0, 0.0]))
        .mxcsr(MASKED & !(ZE << 7))
        .run();
    assert_eq!(outcome.fault(), Some((vector::XM, None)));
    assert_eq!(outcome.xmm(0), doubles([1.0, 9.0]));
    assert_eq!(outcome.state.mxcsr, MASKED & !(ZE << 7) | ZE);
}

#[test]
fn an_unmasked_exception_that_no_handler_expects_is_an_invalid_opcode() {
    let outcome = guest(|a| a.divsd(xmm0, xmm1))
        .xmm(0, doubles([1.0, 0.0]))
        .mxcsr(0)
        .with(|state| state.cr4 &= !posada_vcpu::x86::cr4::OSXMMEXCPT)
        .run();
    assert_eq!(outcome.fault(), Some((vector::UD, None)));
}

#[test]
fn an_early_exception_in_one_lane_keeps_the_others_from_being_computed() {
    let run = |masks: u32| {
        guest(|a| a.divps(xmm0, xmm1))
            .xmm(0, singles([1.0, 1.0, 1.0, 1.0]))
            .xmm(1, singles([3.0, 0.0, 1.0, 1.0]))
            .mxcsr(masks)
            .run()
            .state
            .mxcsr
            & 0x3f
    };
    assert_eq!(run(MASKED), PE | ZE);
    assert_eq!(run(MASKED & !(PE << 7)), PE | ZE);
    assert_eq!(run(MASKED & !(ZE << 7)), ZE);
}

#[test]
fn scalar_operations_leave_the_other_lanes() {
    let outcome = guest(|a| a.addss(xmm0, xmm1).and_then(|()| a.sqrtsd(xmm2, xmm1)))
        .xmm(0, singles([1.0, 2.0, 3.0, 4.0]))
        .xmm(1, doubles([4.0, 5.0]))
        .xmm(2, doubles([0.0, 7.0]))
        .run();
    assert_eq!(outcome.xmm(0), singles([1.0, 2.0, 3.0, 4.0]));
    assert_eq!(outcome.xmm(2), doubles([2.0, 7.0]));
}

#[test]
fn horizontal_operations_take_neighbours() {
    let outcome = guest(|a| {
        a.haddps(xmm0, xmm3)?;
        a.hsubps(xmm1, xmm3)?;
        a.addsubps(xmm2, xmm3)
    })
    .xmm(0, singles([1.0, 2.0, 3.0, 4.0]))
    .xmm(1, singles([1.0, 2.0, 3.0, 5.0]))
    .xmm(2, singles([1.0, 2.0, 3.0, 4.0]))
    .xmm(3, singles([10.0, 20.0, 30.0, 50.0]))
    .run();
    assert_eq!(outcome.xmm(0), singles([3.0, 7.0, 30.0, 80.0]));
    assert_eq!(outcome.xmm(1), singles([-1.0, -2.0, -10.0, -20.0]));
    assert_eq!(outcome.xmm(2), singles([-9.0, 22.0, -27.0, 54.0]));
}

#[test]
fn dot_products_heed_both_masks() {
    let outcome = guest(|a| a.dpps(xmm0, xmm1, 0b1011_0110))
        .xmm(0, singles([1.0, 2.0, f32::NAN, 4.0]))
        .xmm(1, singles([10.0, 10.0, 10.0, 10.0]))
        .run();
    assert_eq!(outcome.xmm(0), singles([0.0, 70.0, 70.0, 0.0]));
}

/// Numbers of all kinds, with many that lie at an edge of something.
fn numbers<F: Real>() -> impl FnMut() -> u64 {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let random = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let fraction = match random >> 60 & 3 {
            0 => random & F::FRACTION,
            1 => (random & 0xff) << (F::PRECISION - 9),
            2 => random & 3,
            _ => F::FRACTION - (random & 3),
        };
        let exponents = F::INFINITY >> (F::PRECISION - 1);
        let exponent = match random >> 56 & 3 {
            0 => random >> 30 & exponents,
            1 => random >> 30 & 1,
            2 => exponents - (random >> 30 & 3),
            _ => F::BIAS as u64 - 32 + (random >> 30 & 63),
        };
        let sign = if random >> 55 & 1 != 0 { F::SIGN } else { 0 };
        sign | exponent << (F::PRECISION - 1) | fraction
    }
}

/// The fast way must not be seen: it gives what `soft` gives, flags included.
fn agree<F: Host, A: Arithmetic>() {
    let mut next = numbers::<F>();
    for _ in 0..100_000 {
        let (a, b) = (next(), next());
        for mxcsr in [MASKED, MASKED | PE, MASKED & !(PE << 7) | PE, MASKED | PE | 2 << 13] {
            let (mut fast, mut slow) = (Env::new(mxcsr), Env::new(mxcsr));
            let results = (single::<F, A>(&mut fast, a, b), A::soft::<F>(&mut slow, a, b));
            assert_eq!(results.0, results.1, "{a:#x} {b:#x} {mxcsr:#x}");
            assert_eq!(fast.flags() | mxcsr & PE, slow.flags() | mxcsr & PE, "{a:#x} {b:#x} {mxcsr:#x}");
            assert!(mxcsr & PE << 7 != 0 || fast.flags() == slow.flags(), "unmasked: {a:#x} {b:#x}");
        }
    }
}

#[test]
fn the_host_adds_as_the_guest_does() {
    agree::<f32, Add>();
    agree::<f64, Add>();
    agree::<f32, Sub>();
    agree::<f64, Sub>();
}

#[test]
fn the_host_multiplies_as_the_guest_does() {
    agree::<f32, Mul>();
    agree::<f64, Mul>();
}

#[test]
fn the_host_divides_as_the_guest_does() {
    agree::<f32, Div>();
    agree::<f64, Div>();
}

#[test]
fn the_host_takes_roots_as_the_guest_does() {
    agree::<f32, Sqrt>();
    agree::<f64, Sqrt>();
}
