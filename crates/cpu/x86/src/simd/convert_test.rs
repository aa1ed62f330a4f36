use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, doubles, guest, singles};
use super::super::soft::flag::{DAZ, IE};
use super::*;

/// `cvtsd2si` or `cvttsd2si` to 64 bits, with the flags raised.
fn to_quadword(value: f64, mxcsr: u32, truncate: bool) -> (i64, u32) {
    let outcome = guest(|a| if truncate { a.cvttsd2si(rax, xmm0) } else { a.cvtsd2si(rax, xmm0) })
        .xmm(0, doubles([value, 0.0]))
        .mxcsr(mxcsr)
        .run();
    (outcome.reg(0) as i64, outcome.state.mxcsr & 0x3f)
}

#[test]
fn integers_are_rounded_or_truncated() {
    for (value, nearest, truncated) in [(2.5, 2, 2), (3.5, 4, 3), (-2.5, -2, -2), (-0.6, -1, 0), (0.4, 0, 0)]
    {
        assert_eq!(to_quadword(value, 0x1f80, false), (nearest, PE), "{value}");
        assert_eq!(to_quadword(value, 0x1f80, true), (truncated, PE), "{value}");
    }
    assert_eq!(to_quadword(-7.0, 0x1f80, true), (-7, 0));
    assert_eq!(to_quadword(-2.5, 0x1f80 | 1 << 13, false), (-3, PE));
    assert_eq!(to_quadword(2.5, 0x1f80 | 2 << 13, false), (3, PE));
}

#[test]
fn what_no_integer_can_hold_is_invalid() {
    let limit = 2.0_f64.powi(63);
    assert_eq!(to_quadword(-limit, 0x1f80, true), (i64::MIN, 0));
    for value in [limit, -limit * 1.1, f64::INFINITY, f64::NAN] {
        assert_eq!(to_quadword(value, 0x1f80, true), (i64::MIN, IE), "{value}");
        assert_eq!(to_quadword(value, 0x1f80, false), (i64::MIN, IE), "{value}");
    }
    let outcome = guest(|a| a.cvttsd2si(eax, xmm0)).xmm(0, doubles([3e9, 0.0])).run();
    assert_eq!((outcome.reg(0), outcome.state.mxcsr & 0x3f), (0x8000_0000, IE));
}

#[test]
fn the_largest_number_that_fits_after_truncation_fits() {
    let run = |value: f64| {
        let outcome = guest(|a| a.cvttsd2si(eax, xmm0)).xmm(0, doubles([value, 0.0])).run();
        (outcome.reg(0), outcome.state.mxcsr & 0x3f)
    };
    assert_eq!(run(2_147_483_647.9), (0x7fff_ffff, PE));
    assert_eq!(run(-2_147_483_648.9), (0x8000_0000, PE));
    assert_eq!(run(-2_147_483_649.0), (0x8000_0000, IE));
}

#[test]
fn denormals_are_inexact_unless_taken_for_zero() {
    assert_eq!(to_quadword(f64::from_bits(1), 0x1f80, true), (0, PE));
    assert_eq!(to_quadword(f64::from_bits(1), 0x1f80 | DAZ, true), (0, 0));
}

#[test]
fn integers_become_the_nearest_numbers() {
    let outcome = guest(|a| a.cvtsi2sd(xmm0, rax).and_then(|()| a.cvtsi2ss(xmm1, ecx)))
        .reg(0, i64::MAX as u64)
        .reg(1, (-3_i32) as u32 as u64)
        .xmm(0, [0, 7])
        .xmm(1, [u64::MAX, 8])
        .run();
    assert_eq!(outcome.xmm(0), [(2.0_f64.powi(63)).to_bits(), 7]);
    assert_eq!(outcome.xmm(1), [0xffff_ffff_0000_0000 | u64::from((-3.0_f32).to_bits()), 8]);
    assert_eq!(outcome.state.mxcsr & 0x3f, PE);
}

#[test]
fn formats_change_by_lanes() {
    let outcome = guest(|a| {
        a.cvtps2pd(xmm0, xmm3)?;
        a.cvtpd2ps(xmm1, xmm4)?;
        a.cvtdq2pd(xmm2, xmm5)
    })
    .xmm(0, [0; 2])
    .xmm(1, [1; 2])
    .xmm(2, [2; 2])
    .xmm(3, singles([1.5, -2.5, 3.0, 4.0]))
    .xmm(4, doubles([0.5, -4.0]))
    .xmm(5, [0xffff_fffe_0000_0001, 99])
    .run();
    assert_eq!(outcome.xmm(0), doubles([1.5, -2.5]));
    assert_eq!(outcome.xmm(1), singles([0.5, -4.0, 0.0, 0.0]));
    assert_eq!(outcome.xmm(2), doubles([1.0, -2.0]));
}

#[test]
fn nans_keep_their_sign_and_the_top_of_their_payload() {
    let mut env = Env::new(0x1f80);
    assert_eq!(narrow(&mut env, 0xfff0_0000_2000_0001), 0xffc0_0001);
    assert_eq!(env.flags(), IE);
    let mut env = Env::new(0x1f80);
    assert_eq!(widen(&mut env, 0x7fc0_0001), 0x7ff8_0000_2000_0000);
    assert_eq!(env.flags(), 0);
}

#[test]
fn rounding_to_integers_has_its_own_mode_and_may_keep_quiet() {
    let run = |imm: u32, mxcsr: u32| {
        let outcome = guest(|a| a.roundsd(xmm0, xmm1, imm))
            .xmm(0, [0, 3])
            .xmm(1, doubles([-2.5, 0.0]))
            .mxcsr(mxcsr)
            .run();
        assert_eq!(outcome.xmm(0)[1], 3);
        (f64::from_bits(outcome.xmm(0)[0]), outcome.state.mxcsr & 0x3f)
    };
    assert_eq!(run(0, 0x1f80), (-2.0, PE));
    assert_eq!(run(1, 0x1f80), (-3.0, PE));
    assert_eq!(run(8 | 3, 0x1f80), (-2.0, 0));
    assert_eq!(run(4, 0x1f80 | 1 << 13), (-3.0, PE));
}

#[test]
fn rounding_to_zero_keeps_the_sign() {
    let mut env = Env::new(0x1f80);
    assert_eq!(env.round_to_integer::<f64>((-0.3_f64).to_bits(), Rounding::Nearest, true), 1 << 63);
    assert_eq!(env.round_to_integer::<f64>((-0.3_f64).to_bits(), Rounding::Down, true), (-1.0_f64).to_bits());
}

#[test]
fn conversions_to_mmx_registers_take_the_x87_unit() {
    let outcome = guest(|a| a.cvtps2pi(mm2, xmm0))
        .xmm(0, singles([1.5, -7.0, 0.0, 0.0]))
        .with(|state| state.x87.status = 3 << 11)
        .run();
    assert_eq!(outcome.state.x87.registers[2].significand, 0xffff_fff9_0000_0002);
    assert_eq!((outcome.state.x87.status, outcome.state.x87.occupied), (0, 0xff));
}

#[test]
fn conversions_from_memory_leave_the_x87_unit_alone() {
    let at = crate::testing::DATA;
    let outcome = guest(|a| a.cvtpi2ps(xmm0, qword_ptr(rbx)))
        .reg(3, at)
        .memory(at, &[1, 0, 0, 0, 2, 0, 0, 0])
        .xmm(0, [0, 9])
        .with(|state| state.x87.status = 3 << 11)
        .run();
    assert_eq!(outcome.xmm(0), [singles([1.0, 2.0, 0.0, 0.0])[0], 9]);
    assert_eq!((outcome.state.x87.status, outcome.state.x87.occupied), (3 << 11, 0));
}
