//! Rounded to 53 bits, x87 arithmetic on ordinary numbers is the host's double arithmetic.

use super::*;
use crate::x87::wide::Wide;

const DOUBLE_CONTROL: Control =
    Control { rounding: Rounding::Nearest, precision: 53, masked: flag::EXCEPTIONS };

fn from_f64(value: f64) -> X87Register {
    widen(value.to_bits(), 11, 52).value
}

fn to_f64(value: X87Register) -> f64 {
    f64::from_bits(narrow(value, DOUBLE, DOUBLE_CONTROL).0)
}

/// A fixed sequence of doubles with exponents between -300 and 300.
fn doubles() -> impl Iterator<Item = (f64, f64)> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let exponent = 1023 - 150 + seed % 300;
        f64::from_bits(seed & (1 << 63 | ((1 << 52) - 1)) | exponent << 52)
    };
    (0..20_000).map(move |_| (next(), next()))
}

#[test]
fn arithmetic_rounded_to_double_precision_is_the_hosts() {
    for (a, b) in doubles() {
        let (x, y) = (from_f64(a), from_f64(b));
        assert_eq!(to_f64(add(x, y, DOUBLE_CONTROL).value), a + b, "{a} + {b}");
        assert_eq!(to_f64(sub(x, y, DOUBLE_CONTROL).value), a - b, "{a} - {b}");
        assert_eq!(to_f64(mul(x, y, DOUBLE_CONTROL).value), a * b, "{a} * {b}");
        assert_eq!(to_f64(div(x, y, DOUBLE_CONTROL).value), a / b, "{a} / {b}");
        assert_eq!(to_f64(sqrt(from_f64(a.abs()), DOUBLE_CONTROL).value), a.abs().sqrt(), "sqrt {a}");
    }
}

#[test]
fn addition_of_near_opposites_is_exact() {
    for (a, _) in doubles() {
        let b = -f64::from_bits(a.to_bits() + 3);
        let sum = add(from_f64(a), from_f64(b), DOUBLE_CONTROL);
        assert_eq!((to_f64(sum.value), sum.flags), (a + b, 0));
    }
}

#[test]
fn narrowing_to_single_rounds_and_denormalises_as_the_host_does() {
    for (a, _) in doubles() {
        for scale in [1.0, 1e-38, 1e-44] {
            let value = a * scale;
            let (bits, flags) = narrow(from_f64(value), SINGLE, DOUBLE_CONTROL);
            assert_eq!(bits as u32, (value as f32).to_bits(), "{value}");
            assert_eq!(flags & flag::PE != 0, f64::from(value as f32) != value);
        }
    }
}

#[test]
fn rounding_to_an_integer_follows_the_rounding_control() {
    for (value, nearest, down, up, zero) in [
        (2.5, 2.0, 2.0, 3.0, 2.0),
        (-2.5, -2.0, -3.0, -2.0, -2.0),
        (0.3, 0.0, 0.0, 1.0, 0.0),
        (-3.7, -4.0, -4.0, -3.0, -3.0),
    ] {
        for (rounding, expected) in
            [(Rounding::Nearest, nearest), (Rounding::Down, down), (Rounding::Up, up), (Rounding::Zero, zero)]
        {
            let outcome = round_to_integer(from_f64(value), Control { rounding, ..DOUBLE_CONTROL });
            assert_eq!(to_f64(outcome.value), expected, "{value} {rounding:?}");
            assert_eq!(outcome.flags & flag::PE, flag::PE);
        }
    }
}

#[test]
fn overflow_gives_infinity_or_the_largest_number() {
    let largest = X87Register { significand: u64::MAX, sign_exponent: 0x7ffe };
    let control = Control { precision: 64, ..DOUBLE_CONTROL };
    let up = mul(largest, largest, control);
    assert_eq!((class(up.value), up.flags), (Class::Infinity, flag::OE | flag::PE | flag::C1));
    let down = mul(largest, largest, Control { rounding: Rounding::Zero, ..control });
    assert_eq!((down.value, down.flags), (largest, flag::OE | flag::PE));
    let rescaled = mul(largest, largest, Control { masked: 0, ..control });
    assert_eq!(rescaled.flags & flag::OE, flag::OE);
    assert_eq!(
        rescaled.value.sign_exponent,
        16383 + 32767 - 24576,
        "the exponent is brought back into range"
    );
}

#[test]
fn wide_functions_agree_with_the_hosts_library() {
    let value = |w: Wide| to_f64(round(w.sign, w.exponent, w.significand, DOUBLE_CONTROL).value);
    let near = |a: f64, b: f64, what: &str| assert!((a - b).abs() <= b.abs() * 4e-16, "{what}: {a} {b}");
    for (a, _) in doubles() {
        let x = (a.to_bits() & ((1 << 52) - 1)) as f64 / (1u64 << 52) as f64 * 0.78 + 1e-3;
        let w = Wide::of(from_f64(x));
        near(value(w.sin()), x.sin(), "sin");
        near(value(w.cos()), x.cos(), "cos");
        near(value(w.atan()), x.atan(), "atan");
        near(value(w.exp_m1()), x.exp_m1(), "exp_m1");
        near(value(Wide::of(from_f64(a.abs())).log2()), a.abs().log2(), "log2");
    }
}
