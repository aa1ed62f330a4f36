//! Numbers with 128 bits of significand, to work transcendental functions out in.

use posada_vcpu::x86::X87Register;

use super::float::{Number, shift_sticky};

/// The bit that the significand of a number other than zero has set.
const TOP: u128 = 1 << 127;

/// Zero, or `significand * 2^(exponent - 127)` with the top bit of the significand set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u128,
}

impl Wide {
    pub(super) const ZERO: Self = Self { sign: false, exponent: 0, significand: 0 };
    pub(super) const ONE: Self = Self::constant(0, TOP);
    pub(super) const LN_2: Self = Self::constant(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
    /// 1 / ln 2.
    pub(super) const LOG2_E: Self = Self::constant(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);
    pub(super) const PI: Self = Self::constant(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
    /// Pi cut to the 66 bits that the hardware reduces angles with.
    pub(super) const PI_66: Self = Self::constant(1, 0xc90f_daa2_2168_c234_c000_0000_0000_0000);

    const fn constant(exponent: i32, significand: u128) -> Self {
        Self { sign: false, exponent, significand }
    }

    pub(super) fn integer(value: u64) -> Self {
        Self::normal(false, 127, u128::from(value))
    }

    pub(super) fn of(value: X87Register) -> Self {
        if value.significand == 0 {
            return Self { sign: super::float::negative(value), ..Self::ZERO };
        }
        let n = Number::of(value);
        Self { sign: n.sign, exponent: n.exponent, significand: u128::from(n.significand) << 64 }
    }

    fn normal(sign: bool, exponent: i32, significand: u128) -> Self {
        if significand == 0 {
            return Self { sign, ..Self::ZERO };
        }
        let shift = significand.leading_zeros();
        Self { sign, exponent: exponent - shift as i32, significand: significand << shift }
    }

    pub(super) fn is_zero(self) -> bool {
        self.significand == 0
    }

    pub(super) fn negated(self) -> Self {
        Self { sign: !self.sign, ..self }
    }

    /// Times two to the power of `by`.
    pub(super) fn scaled(self, by: i32) -> Self {
        Self { exponent: self.exponent + by, ..self }
    }

    pub(super) fn add(self, other: Self) -> Self {
        if self.is_zero() {
            return other;
        }
        if other.is_zero() {
            return self;
        }
        let (a, b) = if (self.exponent, self.significand) >= (other.exponent, other.significand) {
            (self, other)
        } else {
            (other, self)
        };
        let aligned = shift_sticky(b.significand >> 1, (a.exponent - b.exponent) as u32);
        let wide = a.significand >> 1;
        let sum = if a.sign == b.sign { wide + aligned } else { wide - aligned };
        Self::normal(a.sign, a.exponent + 1, sum)
    }

    pub(super) fn sub(self, other: Self) -> Self {
        self.add(other.negated())
    }

    pub(super) fn mul(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Self { sign: self.sign != other.sign, ..Self::ZERO };
        }
        let low = u128::from(u64::MAX);
        let (a1, a0) = (self.significand >> 64, self.significand & low);
        let (b1, b0) = (other.significand >> 64, other.significand & low);
        let middle = ((a0 * b0) >> 64) + ((a1 * b0) & low) + ((a0 * b1) & low);
        let high = a1 * b1 + ((a1 * b0) >> 64) + ((a0 * b1) >> 64) + (middle >> 64);
        Self::normal(
            self.sign != other.sign,
            self.exponent + other.exponent + 1,
            high | u128::from(middle as u64 != 0),
        )
    }

    /// Division; the divisor is not zero.
    pub(super) fn div(self, other: Self) -> Self {
        if self.is_zero() {
            return Self { sign: self.sign != other.sign, ..Self::ZERO };
        }
        let (mut rest, divisor) = (self.significand, other.significand);
        let mut exponent = self.exponent - other.exponent;
        let mut high = false;
        if rest < divisor {
            high = rest >> 127 != 0;
            rest <<= 1;
            exponent -= 1;
        }
        let mut quotient = 0u128;
        for _ in 0..128 {
            quotient <<= 1;
            if high || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                quotient |= 1;
            }
            high = rest >> 127 != 0;
            rest <<= 1;
        }
        Self {
            sign: self.sign != other.sign,
            exponent,
            significand: quotient | u128::from(rest != 0 || high),
        }
    }

    /// The next number nearer to zero, for a result that lies a little below what its series adds up to.
    pub(super) fn below(self) -> Self {
        match self.significand {
            0 => self,
            TOP => Self { exponent: self.exponent - 1, significand: u128::MAX, ..self },
            significand => Self { significand: significand - 1, ..self },
        }
    }

    /// Rounded to the nearest integer: below 2^64.
    pub(super) fn nearest(self) -> u64 {
        match self.exponent {
            ..=-2 => 0,
            -1 => 1,
            e => {
                let shift = (127 - e) as u32;
                ((self.significand >> shift) + (self.significand >> (shift - 1) & 1)) as u64
            }
        }
    }

    /// `first + first * ratio(1) + first * ratio(1) * ratio(2) + …` until it no longer matters.
    pub(super) fn series(first: Self, ratio: impl Fn(u64) -> Self) -> Self {
        let (mut sum, mut term) = (first, first);
        for k in 1..200 {
            term = term.mul(ratio(k));
            if term.is_zero() || term.exponent < sum.exponent - 130 {
                break;
            }
            sum = sum.add(term);
        }
        sum
    }

    /// e to the power of self, less one; for magnitudes below one.
    pub(super) fn exp_m1(self) -> Self {
        Self::series(self, |k| self.div(Self::integer(k + 1)))
    }

    /// The inverse hyperbolic tangent, for magnitudes well below one.
    pub(super) fn atanh(self) -> Self {
        let square = self.mul(self);
        Self::series(self, |k| square.mul(Self::integer(2 * k - 1)).div(Self::integer(2 * k + 1)))
    }

    /// The base-2 logarithm of a positive number.
    pub(super) fn log2(self) -> Self {
        // A fraction between the square roots of a half and of two keeps the series short and never cancels.
        let big = self.significand > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
        let fraction = Self { exponent: if big { -1 } else { 0 }, sign: false, ..self };
        let power = self.exponent + i32::from(big);
        let z = fraction.sub(Self::ONE).div(fraction.add(Self::ONE));
        let whole = Self { sign: power < 0, ..Self::integer(u64::from(power.unsigned_abs())) };
        z.atanh().scaled(1).mul(Self::LOG2_E).add(whole)
    }

    /// The base-2 logarithm of one more than self.
    pub(super) fn log2_p1(self) -> Self {
        if self.exponent > -4 {
            return self.add(Self::ONE).log2();
        }
        self.div(self.add(Self::integer(2))).atanh().scaled(1).mul(Self::LOG2_E)
    }

    /// The sine of a magnitude of at most about one.
    pub(super) fn sin(self) -> Self {
        let square = self.mul(self).negated();
        Self::series(self, |k| square.div(Self::integer(2 * k * (2 * k + 1))))
    }

    /// The cosine of a magnitude of at most about one.
    pub(super) fn cos(self) -> Self {
        let square = self.mul(self).negated();
        Self::series(Self::ONE, |k| square.div(Self::integer(2 * k * (2 * k - 1))))
    }

    /// The arc tangent of a number between zero and one.
    pub(super) fn atan(self) -> Self {
        // Above tan(pi / 8): a quarter turn and the rest of the way.
        if self.exponent >= -2 && self.sub(Self::constant(-2, 0xd413_cccf_e779_9211_65f6_26cd_d52a_fa7c)).sign
        {
            return self.atan_series();
        }
        if self.exponent < -2 {
            return self.atan_series();
        }
        let rest = self.sub(Self::ONE).div(self.add(Self::ONE));
        Self::PI.scaled(-2).add(rest.atan_series())
    }

    fn atan_series(self) -> Self {
        let square = self.mul(self).negated();
        Self::series(self, |k| square.mul(Self::integer(2 * k - 1)).div(Self::integer(2 * k + 1)))
    }
}
