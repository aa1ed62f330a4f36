//! Binary floating point to the last bit and flag: rounding modes, denormals-are-zero, flush-to-zero and the six
//! exceptions of `mxcsr` (IEEE 754; AMD APM volume 1, sections 4.8 to 4.10).
//!
//! A result is worked out as a 128-bit significand whose last bit is also set when anything nonzero lies below
//! it ("sticky"), and [`Env::round`] makes a number of the format of it. Numbers of either format travel as
//! their bits, in the low end of a `u64`.

/// Exception flags and control bits of `mxcsr`; a mask is its flag's bit, shifted left by 7.
pub(super) mod flag {
    pub(crate) const IE: u32 = 1 << 0;
    pub(crate) const DE: u32 = 1 << 1;
    pub(crate) const ZE: u32 = 1 << 2;
    pub(crate) const OE: u32 = 1 << 3;
    pub(crate) const UE: u32 = 1 << 4;
    pub(crate) const PE: u32 = 1 << 5;
    pub(crate) const DAZ: u32 = 1 << 6;
    pub(crate) const PM: u32 = 1 << 12;
    pub(crate) const RC: u32 = 3 << 13;
    pub(crate) const FTZ: u32 = 1 << 15;
    pub(crate) const MASK_SHIFT: u32 = 7;
    pub(crate) const EXCEPTIONS: u32 = 0x3f;
    /// Those that are found before anything is computed.
    pub(crate) const EARLY: u32 = IE | DE | ZE;
}
use flag::{DE, IE, OE, PE, UE, ZE};

/// `f32` or `f64`.
pub(super) trait Format: Copy + 'static {
    /// Bits of the significand, the implied one included.
    const PRECISION: u32;
    const WIDTH: u32;

    const SIGN: u64 = 1 << (Self::WIDTH - 1);
    /// Exponent bits all ones: infinity.
    const INFINITY: u64 = Self::SIGN - Self::SMALLEST_NORMAL;
    const SMALLEST_NORMAL: u64 = 1 << (Self::PRECISION - 1);
    const FRACTION: u64 = Self::SMALLEST_NORMAL - 1;
    const QUIET: u64 = 1 << (Self::PRECISION - 2);
    /// The NaN that invalid operations give.
    const DEFAULT_NAN: u64 = Self::SIGN | Self::INFINITY | Self::QUIET;
    const BIAS: i32 = (1 << (Self::WIDTH - Self::PRECISION - 1)) - 1;
    /// Exponent of the smallest normal number.
    const MIN_EXPONENT: i32 = 1 - Self::BIAS;
}

impl Format for f32 {
    const PRECISION: u32 = 24;
    const WIDTH: u32 = 32;
}

impl Format for f64 {
    const PRECISION: u32 = 53;
    const WIDTH: u32 = 64;
}

#[inline(always)]
pub(super) fn is_nan<F: Format>(bits: u64) -> bool {
    bits & !F::SIGN > F::INFINITY
}

#[inline(always)]
pub(super) fn is_signaling<F: Format>(bits: u64) -> bool {
    is_nan::<F>(bits) && bits & F::QUIET == 0
}

#[inline(always)]
pub(super) fn is_denormal<F: Format>(bits: u64) -> bool {
    (bits & !F::SIGN).wrapping_sub(1) < F::FRACTION
}

/// A number taken apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Zero,
    /// `significand * 2^(exponent - 63)`, the significand's top bit set.
    Finite,
    Infinite,
}

#[derive(Clone, Copy)]
struct Number {
    negative: bool,
    class: Class,
    exponent: i32,
    significand: u64,
}

impl Number {
    /// Takes apart what is no NaN.
    fn of<F: Format>(bits: u64) -> Self {
        let magnitude = bits & !F::SIGN;
        let mut number =
            Self { negative: bits & F::SIGN != 0, class: Class::Finite, exponent: 0, significand: 0 };
        if magnitude == 0 {
            number.class = Class::Zero;
        } else if magnitude == F::INFINITY {
            number.class = Class::Infinite;
        } else {
            let biased = (magnitude >> (F::PRECISION - 1)) as i32;
            let implied = if biased == 0 { 0 } else { F::SMALLEST_NORMAL };
            let significand = magnitude & F::FRACTION | implied;
            let shift = significand.leading_zeros();
            number.significand = significand << shift;
            number.exponent = biased.max(1) - F::BIAS - (shift as i32 - (64 - F::PRECISION as i32));
        }
        number
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

impl Rounding {
    /// As `mxcsr` and immediate bytes number them.
    pub(super) fn of(code: u32) -> Self {
        match code & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }

    /// Whether a magnitude is rounded up. `rest` is what is cut off, as a fraction of 2^128; `odd` the last bit
    /// kept.
    fn away(self, negative: bool, odd: bool, rest: u128) -> bool {
        const HALF: u128 = 1 << 127;
        match self {
            Self::Nearest => rest > HALF || rest == HALF && odd,
            Self::Down => negative && rest != 0,
            Self::Up => !negative && rest != 0,
            Self::Zero => false,
        }
    }
}

/// `value >> by`, with the last bit set when any bit that is shifted out is.
fn shift_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// `mxcsr` while one instruction is carried out: what it says, and the flags raised so far.
pub(super) struct Env {
    pub mxcsr: u32,
    raised: u32,
    /// Raised by the steps of the instruction that are over.
    settled: u32,
}

impl Env {
    pub(super) fn new(mxcsr: u32) -> Self {
        Self { mxcsr, raised: 0, settled: 0 }
    }

    #[inline(always)]
    pub(super) fn raise(&mut self, flags: u32) {
        self.raised |= flags;
    }

    /// All flags raised.
    #[inline(always)]
    pub(super) fn flags(&self) -> u32 {
        self.raised | self.settled
    }

    /// Ends a step of an instruction all of whose lanes are computed in steps. False if one of its exceptions is
    /// unmasked: there will be no further step. One that is found before computing keeps all lanes from it.
    pub(super) fn end_step(&mut self) -> bool {
        let unmasked = self.raised & !(self.mxcsr >> flag::MASK_SHIFT) & flag::EXCEPTIONS;
        self.settled |= if unmasked & flag::EARLY != 0 { self.raised & flag::EARLY } else { self.raised };
        self.raised = 0;
        unmasked == 0
    }

    fn masked(&self, flag: u32) -> bool {
        self.mxcsr & flag << flag::MASK_SHIFT != 0
    }

    pub(super) fn rounding(&self) -> Rounding {
        Rounding::of(self.mxcsr >> 13)
    }

    pub(super) fn denormals_are_zero(&self) -> bool {
        self.mxcsr & flag::DAZ != 0
    }

    /// An operand as denormals-are-zero lets it be seen.
    #[inline(always)]
    pub(super) fn operand<F: Format>(&self, bits: u64) -> u64 {
        if self.denormals_are_zero() && is_denormal::<F>(bits) { bits & F::SIGN } else { bits }
    }

    /// The result if an operand is a NaN: the first that is, made quiet.
    #[inline(always)]
    pub(super) fn nan<F: Format>(&mut self, a: u64, b: u64) -> Option<u64> {
        if !is_nan::<F>(a) && !is_nan::<F>(b) {
            return None;
        }
        if is_signaling::<F>(a) || is_signaling::<F>(b) {
            self.raise(IE);
        }
        Some(F::QUIET | if is_nan::<F>(a) { a } else { b })
    }

    pub(super) fn invalid<F: Format>(&mut self) -> u64 {
        self.raise(IE);
        F::DEFAULT_NAN
    }

    /// Notes a denormal operand.
    #[inline(always)]
    pub(super) fn note_denormal<F: Format>(&mut self, bits: u64) {
        if is_denormal::<F>(bits) {
            self.raise(DE);
        }
    }

    fn zero<F: Format>(negative: bool) -> u64 {
        if negative { F::SIGN } else { 0 }
    }

    fn infinity<F: Format>(negative: bool) -> u64 {
        Self::zero::<F>(negative) | F::INFINITY
    }

    /// The number of the format for `significand * 2^(exponent - 127)`; the significand is not zero and its
    /// last bit is sticky.
    fn round<F: Format>(&mut self, negative: bool, exponent: i32, significand: u128) -> u64 {
        let mode = self.rounding();
        let shift = significand.leading_zeros();
        let (exponent, significand) = (exponent - shift as i32, significand << shift);
        let sign = Self::zero::<F>(negative);
        let cut = |significand: u128| {
            let kept = (significand >> (128 - F::PRECISION)) as u64;
            let rest = significand << F::PRECISION;
            (kept + u64::from(mode.away(negative, kept & 1 != 0, rest)), rest != 0)
        };
        // As if the exponent had no bounds. A carry out of the significand moves the exponent on by itself.
        let (kept, inexact) = cut(significand);
        let carried = kept >> F::PRECISION != 0;
        if exponent + i32::from(carried) < F::MIN_EXPONENT {
            return self.round_tiny::<F>(sign, exponent, significand, inexact);
        }
        if inexact {
            self.raise(PE);
        }
        if exponent + i32::from(carried) > F::BIAS {
            // Unmasked, only the significand tells whether the result is inexact.
            self.raise(if self.masked(OE) { OE | PE } else { OE });
            let to_infinity = match mode {
                Rounding::Nearest => true,
                Rounding::Down => negative,
                Rounding::Up => !negative,
                Rounding::Zero => false,
            };
            return sign | (F::INFINITY - u64::from(!to_infinity));
        }
        // The implied bit of `kept` adds one to the exponent field.
        sign | (((exponent + F::BIAS - 1) as u64) << (F::PRECISION - 1)).wrapping_add(kept)
    }

    /// The rest of [`round`](Self::round) for results that are tiny after rounding; `inexact` had the exponent no
    /// bounds.
    #[cold]
    fn round_tiny<F: Format>(&mut self, sign: u64, exponent: i32, significand: u128, inexact: bool) -> u64 {
        if !self.masked(UE) {
            // An exception even when exact. Nobody sees the result.
            self.raise(if inexact { UE | PE } else { UE });
            return sign;
        }
        if self.mxcsr & flag::FTZ != 0 {
            self.raise(UE | PE);
            return sign;
        }
        let denormal = shift_sticky(significand, (F::MIN_EXPONENT - exponent) as u32);
        let kept = (denormal >> (128 - F::PRECISION)) as u64;
        let rest = denormal << F::PRECISION;
        if rest != 0 {
            self.raise(UE | PE);
        }
        sign | (kept + u64::from(self.rounding().away(sign != 0, kept & 1 != 0, rest)))
    }

    pub(super) fn add<F: Format>(&mut self, a: u64, b: u64) -> u64 {
        self.sum::<F>(a, b, false)
    }

    pub(super) fn sub<F: Format>(&mut self, a: u64, b: u64) -> u64 {
        self.sum::<F>(a, b, true)
    }

    fn sum<F: Format>(&mut self, a: u64, b: u64, subtract: bool) -> u64 {
        let (a, b) = (self.operand::<F>(a), self.operand::<F>(b));
        if let Some(nan) = self.nan::<F>(a, b) {
            return nan;
        }
        let (x, mut y) = (Number::of::<F>(a), Number::of::<F>(b));
        y.negative ^= subtract;
        if x.class == Class::Infinite && y.class == Class::Infinite && x.negative != y.negative {
            return self.invalid::<F>();
        }
        self.note_denormal::<F>(a);
        self.note_denormal::<F>(b);
        match (x.class, y.class) {
            (Class::Infinite, _) => Self::infinity::<F>(x.negative),
            (_, Class::Infinite) => Self::infinity::<F>(y.negative),
            (Class::Zero, Class::Zero) => {
                let negative = if x.negative == y.negative { x.negative } else { self.zero_is_negative() };
                Self::zero::<F>(negative)
            }
            (Class::Zero, _) => self.round::<F>(y.negative, y.exponent, u128::from(y.significand) << 64),
            (_, Class::Zero) => self.round::<F>(x.negative, x.exponent, u128::from(x.significand) << 64),
            _ => {
                let (x, y) = if x.exponent >= y.exponent { (x, y) } else { (y, x) };
                let large = u128::from(x.significand) << 63;
                let small = u128::from(y.significand) << 63;
                self.combine::<F>((x.negative, x.exponent + 1, large), (y.negative, y.exponent + 1, small))
            }
        }
    }

    /// The sum of two numbers `(negative, exponent, significand)`, as for [`round`](Self::round); the first has
    /// no smaller exponent, and the top bits of both significands are clear.
    fn combine<F: Format>(&mut self, x: (bool, i32, u128), y: (bool, i32, u128)) -> u64 {
        let small = shift_sticky(y.2, (x.1 - y.1) as u32);
        let (negative, sum) = if x.0 == y.0 {
            (x.0, x.2 + small)
        } else if x.2 >= small {
            (x.0, x.2 - small)
        } else {
            (y.0, small - x.2)
        };
        if sum == 0 {
            return Self::zero::<F>(self.zero_is_negative());
        }
        self.round::<F>(negative, x.1, sum)
    }

    /// The sign of a zero that is the sum of opposites.
    fn zero_is_negative(&self) -> bool {
        self.rounding() == Rounding::Down
    }

    pub(super) fn mul<F: Format>(&mut self, a: u64, b: u64) -> u64 {
        let (a, b) = (self.operand::<F>(a), self.operand::<F>(b));
        if let Some(nan) = self.nan::<F>(a, b) {
            return nan;
        }
        let (x, y) = (Number::of::<F>(a), Number::of::<F>(b));
        let negative = x.negative != y.negative;
        if matches!((x.class, y.class), (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite)) {
            return self.invalid::<F>();
        }
        self.note_denormal::<F>(a);
        self.note_denormal::<F>(b);
        match (x.class, y.class) {
            (Class::Infinite, _) | (_, Class::Infinite) => Self::infinity::<F>(negative),
            (Class::Zero, _) | (_, Class::Zero) => Self::zero::<F>(negative),
            _ => {
                let product = u128::from(x.significand) * u128::from(y.significand);
                self.round::<F>(negative, x.exponent + y.exponent + 1, product)
            }
        }
    }

    pub(super) fn div<F: Format>(&mut self, a: u64, b: u64) -> u64 {
        let (a, b) = (self.operand::<F>(a), self.operand::<F>(b));
        if let Some(nan) = self.nan::<F>(a, b) {
            return nan;
        }
        let (x, y) = (Number::of::<F>(a), Number::of::<F>(b));
        let negative = x.negative != y.negative;
        if x.class == y.class && x.class != Class::Finite {
            return self.invalid::<F>();
        }
        if x.class == Class::Finite && y.class == Class::Zero {
            self.raise(ZE);
            return Self::infinity::<F>(negative);
        }
        self.note_denormal::<F>(a);
        self.note_denormal::<F>(b);
        match (x.class, y.class) {
            (Class::Infinite, _) | (_, Class::Zero) => Self::infinity::<F>(negative),
            (Class::Zero, _) | (_, Class::Infinite) => Self::zero::<F>(negative),
            _ => {
                let (dividend, divisor) = (u128::from(x.significand) << 64, u128::from(y.significand));
                // Between 2^63 and 2^65, for a value between 1/2 and 2.
                let (quotient, remainder) = (dividend / divisor, dividend % divisor);
                let significand = quotient << 62 | u128::from(remainder != 0);
                self.round::<F>(negative, x.exponent - y.exponent + 1, significand)
            }
        }
    }

    pub(super) fn sqrt<F: Format>(&mut self, a: u64) -> u64 {
        let a = self.operand::<F>(a);
        if let Some(nan) = self.nan::<F>(a, a) {
            return nan;
        }
        let x = Number::of::<F>(a);
        if x.class == Class::Zero {
            return a;
        }
        if x.negative {
            return self.invalid::<F>();
        }
        self.note_denormal::<F>(a);
        if x.class == Class::Infinite {
            return a;
        }
        // An even exponent, and a radicand whose root has 64 bits.
        let odd = x.exponent & 1;
        let radicand = u128::from(x.significand) << (63 + odd);
        let root = radicand.isqrt();
        let sticky = u128::from(root * root != radicand);
        self.round::<F>(false, (x.exponent - odd) / 2, root << 64 | sticky)
    }

    /// A number of another format: `cvtss2sd`, `cvtsd2ss`.
    pub(super) fn convert<From: Format, To: Format>(&mut self, bits: u64) -> u64 {
        let a = self.operand::<From>(bits);
        if let Some(nan) = self.nan::<From>(a, a) {
            let payload = (nan & From::FRACTION) << (64 - From::PRECISION) >> (64 - To::PRECISION);
            let sign = if nan & From::SIGN != 0 { To::SIGN } else { 0 };
            return sign | To::INFINITY | payload;
        }
        let x = Number::of::<From>(a);
        self.note_denormal::<From>(a);
        match x.class {
            Class::Zero => Self::zero::<To>(x.negative),
            Class::Infinite => Self::infinity::<To>(x.negative),
            Class::Finite => self.round::<To>(x.negative, x.exponent, u128::from(x.significand) << 64),
        }
    }

    /// A signed integer as a number of the format.
    pub(super) fn of_integer<F: Format>(&mut self, value: i64) -> u64 {
        if value == 0 {
            return 0;
        }
        self.round::<F>(value < 0, 63, u128::from(value.unsigned_abs()) << 64)
    }

    /// The integer nearest in the way of `mode`, in `bits` bits; what none can hold is invalid and gives the
    /// smallest integer.
    pub(super) fn integer_of<F: Format>(&mut self, value: u64, mode: Rounding, bits: u32) -> i64 {
        let value = self.operand::<F>(value);
        let indefinite = i64::MIN >> (64 - bits);
        if is_nan::<F>(value) {
            self.raise(IE);
            return indefinite;
        }
        let x = Number::of::<F>(value);
        if x.class == Class::Zero {
            return 0;
        }
        if x.class == Class::Infinite || x.exponent > 63 {
            self.raise(IE);
            return indefinite;
        }
        let (whole, rest) = split(x);
        let magnitude = whole + u128::from(mode.away(x.negative, whole & 1 != 0, rest));
        let limit = 1_u128 << (bits - 1);
        if magnitude > limit || magnitude == limit && !x.negative {
            self.raise(IE);
            return indefinite;
        }
        if rest != 0 {
            self.raise(PE);
        }
        if x.negative { (magnitude as i64).wrapping_neg() } else { magnitude as i64 }
    }

    /// The nearest integer in the way of `mode`, in the same format; whether it is inexact is told only where
    /// `precise`.
    pub(super) fn round_to_integer<F: Format>(&mut self, value: u64, mode: Rounding, precise: bool) -> u64 {
        let value = self.operand::<F>(value);
        if let Some(nan) = self.nan::<F>(value, value) {
            return nan;
        }
        let x = Number::of::<F>(value);
        if x.class != Class::Finite || x.exponent >= F::PRECISION as i32 - 1 {
            return value;
        }
        let (whole, rest) = split(x);
        let whole = whole as u64 + u64::from(mode.away(x.negative, whole & 1 != 0, rest));
        if rest != 0 && precise {
            self.raise(PE);
        }
        let sign = value & F::SIGN;
        if whole == 0 {
            return sign;
        }
        // Small enough to be exact.
        let exponent = whole.ilog2();
        let fraction = whole << (F::PRECISION - 1 - exponent) & F::FRACTION;
        sign | ((exponent as i32 + F::BIAS) as u64) << (F::PRECISION - 1) | fraction
    }
}

/// The whole part of a finite number below 2^64, and the rest as a fraction of 2^128.
fn split(x: Number) -> (u128, u128) {
    let significand = u128::from(x.significand);
    if x.exponent >= 0 {
        let fraction_bits = 63 - x.exponent as u32;
        (
            significand >> fraction_bits,
            if fraction_bits == 0 { 0 } else { significand << (128 - fraction_bits) },
        )
    } else {
        // Below one: the top bit of the significand stands for 2^exponent.
        (0, shift_sticky(significand << 64, (-1 - x.exponent) as u32))
    }
}
