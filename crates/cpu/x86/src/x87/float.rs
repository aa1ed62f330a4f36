//! 80-bit arithmetic with the x87's own rounding (AMD APM volume 1, sections 6.3 to 6.8).
//!
//! The unit rounds significands to 24, 53 or 64 bits while exponents keep the full range, and answers an
//! unmasked overflow with a rescaled result. No format of a general library does that, so operands are taken
//! apart here, worked on with 128-bit integers, and rounded once, in [`round`].

use posada_vcpu::x86::X87Register;

/// Exception flags, where the status word has them.
pub(super) mod flag {
    pub(crate) const IE: u16 = 1 << 0;
    pub(crate) const DE: u16 = 1 << 1;
    pub(crate) const ZE: u16 = 1 << 2;
    pub(crate) const OE: u16 = 1 << 3;
    pub(crate) const UE: u16 = 1 << 4;
    pub(crate) const PE: u16 = 1 << 5;
    pub(crate) const SF: u16 = 1 << 6;
    pub(crate) const ES: u16 = 1 << 7;
    pub(crate) const C0: u16 = 1 << 8;
    pub(crate) const C1: u16 = 1 << 9;
    pub(crate) const C2: u16 = 1 << 10;
    pub(crate) const C3: u16 = 1 << 14;
    pub(crate) const B: u16 = 1 << 15;
    /// The six that the control word can mask.
    pub(crate) const EXCEPTIONS: u16 = 0x3f;
}

const BIAS: i32 = 16383;
/// Added to or taken from the exponent of an unmasked underflow or overflow.
const RESCALE: i32 = 24576;
const J: u64 = 1 << 63;
const QUIET: u64 = 1 << 62;

pub(super) const INDEFINITE: X87Register = X87Register { significand: J | QUIET, sign_exponent: 0xffff };
pub(super) const ONE: X87Register = X87Register { significand: J, sign_exponent: 0x3fff };

/// Rounding control, as the control word numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    Nearest,
    Down,
    Up,
    Zero,
}

/// How results are rounded, and which exceptions are masked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Control {
    pub rounding: Rounding,
    /// Bits of the significand: 24, 53 or 64.
    pub precision: u32,
    /// Masked exceptions.
    pub masked: u16,
}

impl Control {
    pub(super) fn of(word: u16) -> Self {
        let rounding = match word >> 10 & 3 {
            0 => Rounding::Nearest,
            1 => Rounding::Down,
            2 => Rounding::Up,
            _ => Rounding::Zero,
        };
        let precision = match word >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Self { rounding, precision, masked: word & flag::EXCEPTIONS }
    }

    /// The same, to full precision: instructions that precision control does not touch.
    pub(super) fn full(self) -> Self {
        Self { precision: 64, ..self }
    }
}

/// A result, and the flags that it raises: exceptions, and C1 when it was rounded up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub value: X87Register,
    pub flags: u16,
}

impl Outcome {
    pub(super) fn exact(value: X87Register) -> Self {
        Self { value, flags: 0 }
    }

    pub(super) fn invalid() -> Self {
        Self { value: INDEFINITE, flags: flag::IE }
    }

    pub(super) fn with(self, flags: u16) -> Self {
        Self { flags: self.flags | flags, ..self }
    }
}

/// What kind of value a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Zero,
    Normal,
    Denormal,
    Infinity,
    Quiet,
    Signaling,
    /// Encodings that the 80387 and its successors refuse: the integer bit is clear where it should be set.
    Unsupported,
}

pub(super) fn class(value: X87Register) -> Class {
    let (exponent, significand) = (value.sign_exponent & 0x7fff, value.significand);
    match exponent {
        0 if significand == 0 => Class::Zero,
        0 => Class::Denormal,
        _ if significand & J == 0 => Class::Unsupported,
        0x7fff if significand == J => Class::Infinity,
        0x7fff if significand & QUIET != 0 => Class::Quiet,
        0x7fff => Class::Signaling,
        _ => Class::Normal,
    }
}

pub(super) fn negative(value: X87Register) -> bool {
    value.sign_exponent & 0x8000 != 0
}

pub(super) fn zero(sign: bool) -> X87Register {
    X87Register { significand: 0, sign_exponent: u16::from(sign) << 15 }
}

pub(super) fn infinity(sign: bool) -> X87Register {
    X87Register { significand: J, sign_exponent: u16::from(sign) << 15 | 0x7fff }
}

/// A finite, nonzero number: `significand * 2^(exponent - 63)`, top bit of the significand set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u64,
}

impl Number {
    /// Takes a normal or denormal register apart.
    pub(super) fn of(value: X87Register) -> Self {
        let biased = i32::from(value.sign_exponent & 0x7fff).max(1);
        let shift = value.significand.leading_zeros();
        Self {
            sign: negative(value),
            exponent: biased - BIAS - shift as i32,
            significand: value.significand << (shift & 63),
        }
    }
}

/// A format to round to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub precision: u32,
    /// The exponents of the smallest and the largest normal number.
    pub smallest: i32,
    pub largest: i32,
}

pub(super) const SINGLE: Format = Format { precision: 24, smallest: -126, largest: 127 };
pub(super) const DOUBLE: Format = Format { precision: 53, smallest: -1022, largest: 1023 };

/// A rounded number: `significand` has its top bit set unless it is denormal or zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounded {
    pub significand: u64,
    pub exponent: i32,
    pub overflow: bool,
    /// Tiny, and not normalised: the exponent is the format's smallest.
    pub denormal: bool,
    /// Tiny after rounding to the format's precision with an unbounded exponent.
    pub tiny: bool,
    pub inexact: bool,
    pub up: bool,
}

/// Rounds a 128-bit significand (top bit set, lower bits sticky) to `precision` bits: the 64-bit significand,
/// whether a carry moved the exponent, whether anything was lost, and whether the magnitude grew.
fn cut(sign: bool, significand: u128, precision: u32, rounding: Rounding) -> (u64, bool, bool, bool) {
    let drop = 128 - precision;
    let (kept, lost) = (significand >> drop, significand << precision);
    let half = 1u128 << 127;
    let inexact = lost != 0;
    let up = inexact
        && match rounding {
            Rounding::Nearest => lost > half || lost == half && kept & 1 != 0,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Zero => false,
        };
    let kept = kept + u128::from(up);
    let carry = kept >> precision != 0;
    let kept = if carry { kept >> 1 } else { kept };
    ((kept << (64 - precision)) as u64, carry, inexact, up)
}

/// Rounds `significand * 2^(exponent - 127)` to a format. `flush` is whether tiny results become denormal
/// (underflow is masked) or stay normalised.
pub(super) fn round_to(
    sign: bool,
    exponent: i32,
    significand: u128,
    format: Format,
    rounding: Rounding,
    denormalise: bool,
) -> Rounded {
    let (value, carry, inexact, up) = cut(sign, significand, format.precision, rounding);
    let after = exponent + i32::from(carry);
    if after < format.smallest || exponent < format.smallest && denormalise && value == 0 {
        if denormalise {
            let shift = (format.smallest - exponent) as u32;
            let shifted = shift_sticky(significand, shift);
            // The integer bit's place stays; what comes out may have fewer leading bits.
            let drop = 128 - format.precision;
            let (kept, lost) = (shifted >> drop, shifted << format.precision);
            let half = 1u128 << 127;
            let inexact = lost != 0;
            let up = inexact
                && match rounding {
                    Rounding::Nearest => lost > half || lost == half && kept & 1 != 0,
                    Rounding::Down => sign,
                    Rounding::Up => !sign,
                    Rounding::Zero => false,
                };
            let kept = (kept + u128::from(up)) << (64 - format.precision);
            let denormal = kept >> 63 == 0;
            return Rounded {
                significand: kept as u64,
                exponent: format.smallest,
                overflow: false,
                denormal,
                tiny: true,
                inexact,
                up,
            };
        }
        return Rounded {
            significand: value,
            exponent: after,
            overflow: false,
            denormal: false,
            tiny: true,
            inexact,
            up,
        };
    }
    Rounded {
        significand: value,
        exponent: after,
        overflow: after > format.largest,
        denormal: false,
        tiny: false,
        inexact,
        up,
    }
}

/// Shifts right; bits that fall out are kept as one sticky bit.
pub(super) fn shift_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// Rounds `significand * 2^(exponent - 127)`, top bit set, to a register as `control` says.
pub(super) fn round(sign: bool, exponent: i32, significand: u128, control: Control) -> Outcome {
    let format = Format { precision: control.precision, smallest: 1 - BIAS, largest: BIAS };
    let underflow_masked = control.masked & flag::UE != 0;
    let rounded = round_to(sign, exponent, significand, format, control.rounding, underflow_masked);
    let mut flags = if rounded.inexact { flag::PE } else { 0 };
    if rounded.inexact && rounded.up {
        flags |= flag::C1;
    }
    let pack = |biased: i32, significand: u64| X87Register {
        significand,
        sign_exponent: u16::from(sign) << 15 | (biased as u16 & 0x7fff),
    };
    if rounded.overflow {
        flags |= flag::OE;
        let rescaled = rounded.exponent + BIAS - RESCALE;
        if control.masked & flag::OE == 0 && rescaled > 0x7ffe {
            // `fscale` can go so far that even this does not bring the result back.
            return Outcome { value: infinity(sign), flags: flags | flag::PE | flag::C1 };
        }
        if control.masked & flag::OE == 0 {
            return Outcome { value: pack(rescaled, rounded.significand), flags };
        }
        let to_infinity = match control.rounding {
            Rounding::Nearest => true,
            Rounding::Down => sign,
            Rounding::Up => !sign,
            Rounding::Zero => false,
        };
        let value = if to_infinity {
            flags |= flag::C1;
            infinity(sign)
        } else {
            flags &= !flag::C1;
            pack(0x7ffe, u64::MAX << (64 - control.precision))
        };
        return Outcome { value, flags: flags | flag::PE };
    }
    if rounded.tiny {
        if !underflow_masked {
            flags |= flag::UE;
            if rounded.exponent + BIAS + RESCALE < 1 {
                return Outcome { value: zero(sign), flags: flags & !flag::C1 | flag::PE };
            }
            return Outcome { value: pack(rounded.exponent + BIAS + RESCALE, rounded.significand), flags };
        }
        if rounded.inexact {
            flags |= flag::UE;
        }
        let biased = i32::from(!rounded.denormal);
        return Outcome { value: pack(biased, rounded.significand), flags };
    }
    Outcome { value: pack(rounded.exponent + BIAS, rounded.significand), flags }
}

/// The result of a two-operand instruction with a NaN or an unsupported operand; `None` when there is none.
/// Of two NaNs the one with the larger significand is taken, quieted (AMD APM volume 1, section 6.8.2).
pub(super) fn nan(a: X87Register, b: X87Register) -> Option<Outcome> {
    let (ca, cb) = (class(a), class(b));
    if ca == Class::Unsupported || cb == Class::Unsupported {
        return Some(Outcome::invalid());
    }
    let is_nan = |c| matches!(c, Class::Quiet | Class::Signaling);
    if !is_nan(ca) && !is_nan(cb) {
        return None;
    }
    let flags = if ca == Class::Signaling || cb == Class::Signaling { flag::IE } else { 0 };
    let chosen = match (is_nan(ca), is_nan(cb)) {
        (true, false) => a,
        (false, true) => b,
        // A signaling NaN gives way to a quiet one.
        _ if ca == Class::Signaling && cb == Class::Quiet => b,
        _ if ca == Class::Quiet && cb == Class::Signaling => a,
        _ if a.significand != b.significand => {
            if a.significand > b.significand {
                a
            } else {
                b
            }
        }
        _ if negative(a) => b,
        _ => a,
    };
    Some(Outcome { value: quieted(chosen), flags })
}

/// The denormal-operand flag, if one of two operands is denormal.
pub(super) fn denormal(a: X87Register, b: X87Register) -> u16 {
    if class(a) == Class::Denormal || class(b) == Class::Denormal { flag::DE } else { 0 }
}

pub(super) fn add(a: X87Register, b: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = nan(a, b) {
        return outcome;
    }
    let flags = denormal(a, b);
    let (ca, cb) = (class(a), class(b));
    let outcome = match (ca, cb) {
        (Class::Infinity, Class::Infinity) if negative(a) != negative(b) => return Outcome::invalid(),
        (Class::Infinity, _) => Outcome::exact(a),
        (_, Class::Infinity) => Outcome::exact(b),
        (Class::Zero, Class::Zero) => {
            let sign =
                if negative(a) == negative(b) { negative(a) } else { control.rounding == Rounding::Down };
            Outcome::exact(zero(sign))
        }
        (Class::Zero, _) => renormalise(b, control),
        (_, Class::Zero) => renormalise(a, control),
        _ => add_numbers(Number::of(a), Number::of(b), control),
    };
    outcome.with(flags)
}

/// A number alone, rounded to the precision that is set.
fn renormalise(value: X87Register, control: Control) -> Outcome {
    let n = Number::of(value);
    round(n.sign, n.exponent, u128::from(n.significand) << 64, control)
}

fn add_numbers(a: Number, b: Number, control: Control) -> Outcome {
    let (a, b) = if (a.exponent, a.significand) >= (b.exponent, b.significand) { (a, b) } else { (b, a) };
    // One bit of headroom for the carry.
    let wide = |n: Number| u128::from(n.significand) << 63;
    let aligned = shift_sticky(wide(b), (a.exponent - b.exponent) as u32);
    let sum = if a.sign == b.sign { wide(a) + aligned } else { wide(a) - aligned };
    if sum == 0 {
        return Outcome::exact(zero(control.rounding == Rounding::Down));
    }
    let shift = sum.leading_zeros();
    round(a.sign, a.exponent + 1 - shift as i32, sum << shift, control)
}

pub(super) fn negate(value: X87Register) -> X87Register {
    X87Register { sign_exponent: value.sign_exponent ^ 0x8000, ..value }
}

pub(super) fn sub(a: X87Register, b: X87Register, control: Control) -> Outcome {
    // A NaN keeps its sign through a subtraction.
    nan(a, b).unwrap_or_else(|| add(a, negate(b), control))
}

pub(super) fn mul(a: X87Register, b: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = nan(a, b) {
        return outcome;
    }
    let flags = denormal(a, b);
    let sign = negative(a) != negative(b);
    let outcome = match (class(a), class(b)) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return Outcome::invalid(),
        (Class::Infinity, _) | (_, Class::Infinity) => Outcome::exact(infinity(sign)),
        (Class::Zero, _) | (_, Class::Zero) => Outcome::exact(zero(sign)),
        _ => {
            let (a, b) = (Number::of(a), Number::of(b));
            let product = u128::from(a.significand) * u128::from(b.significand);
            let shift = product.leading_zeros();
            round(sign, a.exponent + b.exponent + 1 - shift as i32, product << shift, control)
        }
    };
    outcome.with(flags)
}

pub(super) fn div(a: X87Register, b: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = nan(a, b) {
        return outcome;
    }
    let flags = denormal(a, b);
    let sign = negative(a) != negative(b);
    let outcome = match (class(a), class(b)) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return Outcome::invalid(),
        (Class::Infinity, _) => Outcome::exact(infinity(sign)),
        (Class::Zero, _) | (_, Class::Infinity) => Outcome::exact(zero(sign)),
        (_, Class::Zero) => return Outcome::exact(infinity(sign)).with(flag::ZE),
        _ => {
            let (a, b) = (Number::of(a), Number::of(b));
            let divisor = u128::from(b.significand);
            let dividend = u128::from(a.significand) << 64;
            let (high, rest) = (dividend / divisor, dividend % divisor);
            let (low, rest) = ((rest << 63) / divisor, (rest << 63) % divisor);
            // 64 or 65 bits of quotient, then 63 more, then what is left as a sticky bit.
            let quotient = high << 63 | low;
            let shift = quotient.leading_zeros();
            let significand = quotient << shift | u128::from(rest != 0);
            round(sign, a.exponent - b.exponent - shift as i32, significand, control)
        }
    };
    outcome.with(flags)
}

pub(super) fn sqrt(a: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = nan(a, a) {
        return outcome;
    }
    match class(a) {
        Class::Zero => return Outcome::exact(a),
        _ if negative(a) => return Outcome::invalid(),
        Class::Infinity => return Outcome::exact(a),
        _ => {}
    }
    let flags = denormal(a, a);
    let n = Number::of(a);
    // An even exponent halves exactly; an odd one lends the significand a bit.
    let odd = n.exponent.rem_euclid(2) != 0;
    let radicand = u128::from(n.significand) << if odd { 64 } else { 63 };
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    round(false, n.exponent.div_euclid(2), significand, control).with(flags)
}

/// Rounds to an integer in the same format: `frndint`.
pub(super) fn round_to_integer(a: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = nan(a, a) {
        return outcome;
    }
    if matches!(class(a), Class::Zero | Class::Infinity) {
        return Outcome::exact(a);
    }
    let flags = denormal(a, a);
    let n = Number::of(a);
    if n.exponent >= 63 {
        return Outcome::exact(a).with(flags);
    }
    let (integer, inexact, up) = integer_part(n, control.rounding);
    let mut flags = flags | if inexact { flag::PE } else { 0 };
    if inexact && up {
        flags |= flag::C1;
    }
    if integer == 0 {
        return Outcome { value: zero(n.sign), flags };
    }
    let shift = integer.leading_zeros();
    let value = X87Register {
        significand: (integer << (shift & 127) >> 64) as u64,
        sign_exponent: u16::from(n.sign) << 15 | (BIAS + 127 - shift as i32) as u16,
    };
    Outcome { value, flags }
}

/// The magnitude of a number below 2^64 rounded to an integer, whether anything was lost, and whether it grew.
pub(super) fn integer_part(n: Number, rounding: Rounding) -> (u128, bool, bool) {
    // The significand with 64 bits of fraction below it.
    let shift = 63 - n.exponent;
    let fixed = shift_sticky(u128::from(n.significand) << 63, shift as u32);
    let fixed_shift = 63;
    let (kept, lost) = (fixed >> fixed_shift, fixed & ((1 << fixed_shift) - 1));
    let half = 1u128 << (fixed_shift - 1);
    let up = lost != 0
        && match rounding {
            Rounding::Nearest => lost > half || lost == half && kept & 1 != 0,
            Rounding::Down => n.sign,
            Rounding::Up => !n.sign,
            Rounding::Zero => false,
        };
    (kept + u128::from(up), lost != 0, up)
}

/// How two values compare; `None` when unordered.
pub(super) fn compare(a: X87Register, b: X87Register) -> Option<std::cmp::Ordering> {
    use std::cmp::Ordering;
    if nan(a, b).is_some() {
        return None;
    }
    let zeros = class(a) == Class::Zero && class(b) == Class::Zero;
    if zeros {
        return Some(Ordering::Equal);
    }
    // A pseudo-denormal equals the normal number with exponent 1.
    let magnitude =
        |v: X87Register| ((v.sign_exponent & 0x7fff).max(u16::from(v.significand & J != 0)), v.significand);
    Some(match (negative(a), negative(b)) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => magnitude(a).cmp(&magnitude(b)),
        (true, true) => magnitude(b).cmp(&magnitude(a)),
    })
}

/// A signaling NaN made quiet; other values as they are.
pub(super) fn quieted(value: X87Register) -> X87Register {
    let quiet = if class(value) == Class::Signaling { QUIET } else { 0 };
    X87Register { significand: value.significand | quiet, ..value }
}

/// A single- or double-precision number in memory, widened: its bits, and the bits of its exponent and fraction.
/// A signaling NaN raises its flag, and is left signaling.
pub(super) fn widen(bits: u64, exponent_bits: u32, fraction_bits: u32) -> Outcome {
    let sign = bits >> (exponent_bits + fraction_bits) & 1 != 0;
    let field = bits >> fraction_bits & ((1 << exponent_bits) - 1);
    let fraction = (bits & ((1 << fraction_bits) - 1)) << (63 - fraction_bits);
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    let sign_bit = u16::from(sign) << 15;
    if field == (1 << exponent_bits) - 1 {
        let value = X87Register { significand: J | fraction, sign_exponent: sign_bit | 0x7fff };
        let flags = if class(value) == Class::Signaling { flag::IE } else { 0 };
        return Outcome { value, flags };
    }
    if field == 0 {
        if fraction == 0 {
            return Outcome::exact(zero(sign));
        }
        let shift = fraction.leading_zeros();
        let exponent = 1 - bias - shift as i32;
        let value = X87Register {
            significand: fraction << shift,
            sign_exponent: sign_bit | (exponent + BIAS) as u16,
        };
        return Outcome { value, flags: flag::DE };
    }
    let exponent = field as i32 - bias;
    Outcome::exact(X87Register {
        significand: J | fraction,
        sign_exponent: sign_bit | (exponent + BIAS) as u16,
    })
}

/// Narrows to a single- or double-precision number for memory: its bits, and the flags that it raises.
pub(super) fn narrow(value: X87Register, format: Format, control: Control) -> (u64, u16) {
    let fraction_bits = format.precision - 1;
    let exponent_bits = if format.precision == 24 { 8 } else { 11 };
    let all_ones = (1u64 << exponent_bits) - 1;
    let sign = u64::from(negative(value)) << (exponent_bits + fraction_bits);
    let fraction = |significand: u64| significand << 1 >> (64 - fraction_bits);
    let special = |significand: u64| sign | all_ones << fraction_bits | fraction(significand);
    match class(value) {
        Class::Zero => return (sign, 0),
        Class::Infinity => return (special(J), 0),
        Class::Quiet => return (special(value.significand), 0),
        Class::Signaling => return (special(value.significand | QUIET), flag::IE),
        Class::Unsupported => {
            let indefinite = all_ones << fraction_bits | 1 << (fraction_bits - 1);
            return (indefinite | 1 << (exponent_bits + fraction_bits), flag::IE);
        }
        Class::Normal | Class::Denormal => {}
    }
    let n = Number::of(value);
    let r = round_to(n.sign, n.exponent, u128::from(n.significand) << 64, format, control.rounding, true);
    let mut flags = if r.inexact { flag::PE } else { 0 };
    if r.inexact && r.up {
        flags |= flag::C1;
    }
    if r.overflow {
        let to_infinity = match control.rounding {
            Rounding::Nearest => true,
            Rounding::Down => n.sign,
            Rounding::Up => !n.sign,
            Rounding::Zero => false,
        };
        flags |= flag::OE | flag::PE;
        if to_infinity {
            return (special(J), flags | flag::C1);
        }
        return (sign | (all_ones - 1) << fraction_bits | ((1 << fraction_bits) - 1), flags & !flag::C1);
    }
    if r.tiny && (r.inexact || control.masked & flag::UE == 0) {
        flags |= flag::UE;
    }
    let field = if r.denormal { 0 } else { (r.exponent - format.smallest + 1) as u64 };
    (sign | field << fraction_bits | fraction(r.significand), flags)
}

#[cfg(test)]
#[path = "float_test.rs"]
mod tests;
