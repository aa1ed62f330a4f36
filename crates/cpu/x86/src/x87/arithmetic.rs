//! Arithmetic and comparison (AMD APM volume 5, chapter 2).

use std::cmp::Ordering;

use posada_vcpu::x86::X87Register;

use super::float::{self, Class, Control, INDEFINITE, Number, Outcome, Rounding, class, flag, negative};
use super::moves::{load_integer, load_real};
use crate::core::Core;
use crate::op::{Op, Step};

type Binary = fn(X87Register, X87Register, Control) -> Outcome;

/// The six operations, as the opcode's reg field numbers them (2 and 3 compare).
const OPERATIONS: [Option<Binary>; 8] = [
    Some(float::add),
    Some(float::mul),
    None,
    None,
    Some(float::sub),
    Some(|a, b, c| float::sub(b, a, c)),
    Some(float::div),
    Some(|a, b, c| float::div(b, a, c)),
];

/// `st(dst) = st(dst) op st(src)`; `aux` 0 to 7 names the operation, bit 7 asks for a pop afterwards.
pub(super) fn registers(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    let written = if core.x87_empty(op.dst) || core.x87_empty(op.src) {
        let masked = core.x87_underflow();
        if masked {
            core.set_st(op.dst, INDEFINITE);
        }
        masked
    } else {
        let (a, b) = (core.st(op.dst), core.st(op.src));
        operate(core, op.dst, op.aux, a, b, 0)
    };
    if written && op.aux & 0x80 != 0 {
        core.x87_pop();
    }
    Ok(())
}

/// `st(0) = st(0) op memory`, or a comparison with memory; `src` is the operand's kind for
/// [`load_real`] and [`load_integer`].
pub(super) fn memory(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let operand = match op.src {
        4 | 8 => load_real(core, op, offset)?,
        _ => load_integer(core, op, offset)?,
    };
    core.x87_note(op, Some((op.segment, offset)));
    if core.x87_empty(0) {
        let compares = matches!(op.aux & 7, 2 | 3);
        if compares {
            set_condition(core, None);
        }
        if !core.x87_underflow() {
            return Ok(());
        }
        if !compares {
            core.set_st(0, INDEFINITE);
        }
    } else if matches!(op.aux & 7, 2 | 3) {
        let flags = compare_flags(core.st(0), operand, false);
        if !finish_compare(core, flags, core.st(0), operand.value) {
            return Ok(());
        }
    } else {
        let a = core.st(0);
        operate(core, 0, op.aux, a, operand.value, operand.flags);
        return Ok(());
    }
    if op.aux & 7 == 3 {
        core.x87_pop();
    }
    Ok(())
}

fn operate(core: &mut Core, dst: u8, operation: u8, a: X87Register, b: X87Register, flags: u16) -> bool {
    let control = core.x87_control();
    let Some(run) = OPERATIONS[usize::from(operation & 7)] else { return false };
    let mut outcome = run(a, b, control).with(flags);
    // A NaN, an invalid operation or a division by zero leaves no room for a denormal operand.
    if float::nan(a, b).is_some() || outcome.flags & (flag::IE | flag::ZE) != 0 {
        outcome.flags &= !flag::DE;
    }
    if outcome.flags & flag::IE != 0 {
        outcome.flags &= !(flag::ZE | flag::PE);
    }
    core.x87_deliver(dst, outcome)
}

fn compare_flags(a: X87Register, b: Outcome, quiet: bool) -> u16 {
    let is_bad = |v| match class(v) {
        Class::Quiet => !quiet,
        Class::Signaling | Class::Unsupported => true,
        _ => false,
    };
    if is_bad(a) || is_bad(b.value) || b.flags & flag::IE != 0 {
        return flag::IE;
    }
    let any_nan = |v| class(v) == Class::Quiet;
    if any_nan(a) || any_nan(b.value) { 0 } else { float::denormal(a, b.value) | b.flags & flag::DE }
}

/// Raises a comparison's flags and sets the condition codes, as unordered after an invalid operand even where that
/// is not masked; returns whether the instruction may pop.
fn finish_compare(core: &mut Core, flags: u16, a: X87Register, b: X87Register) -> bool {
    core.x87_set_c1(false);
    set_condition(core, if flags & flag::IE != 0 { None } else { float::compare(a, b) });
    core.x87_raise(flags)
}

fn set_condition(core: &mut Core, order: Option<Ordering>) {
    let codes = match order {
        Some(Ordering::Greater) => 0,
        Some(Ordering::Less) => flag::C0,
        Some(Ordering::Equal) => flag::C3,
        None => flag::C0 | flag::C2 | flag::C3,
    };
    core.x87.status = core.x87.status & !(flag::C0 | flag::C2 | flag::C3) | codes;
}

/// `fcom`, `fucom` and their popping forms with `st(src)`; `aux`: pops in bits 1:0, bit 2 quiet, bit 3 sets `rflags`.
pub(super) fn compare(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    let to_rflags = op.aux & 8 != 0;
    let done = if core.x87_empty(0) || core.x87_empty(op.src) {
        if to_rflags {
            core.flags.set(0x45);
        } else {
            set_condition(core, None);
        }
        core.x87_underflow()
    } else {
        let (a, b) = (core.st(0), core.st(op.src));
        let flags = compare_flags(a, Outcome::exact(b), op.aux & 4 != 0);
        if to_rflags {
            let order = if flags & flag::IE != 0 { None } else { float::compare(a, b) };
            core.flags.set(match order {
                Some(Ordering::Greater) => 0,
                Some(Ordering::Less) => 0x01,
                Some(Ordering::Equal) => 0x40,
                None => 0x45,
            });
            core.x87_raise(flags)
        } else {
            finish_compare(core, flags, a, b)
        }
    };
    if done {
        for _ in 0..op.aux & 3 {
            core.x87_pop();
        }
    }
    Ok(())
}

/// `ftst`: compares with zero.
pub(super) fn test(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) {
        set_condition(core, None);
        core.x87_underflow();
        return Ok(());
    }
    let (a, zero) = (core.st(0), float::zero(false));
    let flags = compare_flags(a, Outcome::exact(zero), false);
    finish_compare(core, flags, a, zero);
    Ok(())
}

/// `fxam`: says what kind of value `st(0)` holds.
pub(super) fn examine(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    let value = core.st(0);
    let codes = if core.x87_empty(0) {
        flag::C3 | flag::C0
    } else {
        match class(value) {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => flag::C0,
            Class::Normal => flag::C2,
            Class::Infinity => flag::C2 | flag::C0,
            Class::Zero => flag::C3,
            Class::Denormal => flag::C3 | flag::C2,
        }
    };
    let sign = if negative(value) { flag::C1 } else { 0 };
    core.x87.status = core.x87.status & !(flag::C0 | flag::C1 | flag::C2 | flag::C3) | codes | sign;
    Ok(())
}

/// Runs a one-operand operation on `st(0)`.
pub(super) fn unary(core: &mut Core, op: &Op, run: impl FnOnce(X87Register, Control) -> Outcome) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) {
        if core.x87_underflow() {
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let outcome = run(core.st(0), core.x87_control());
    core.x87_deliver(0, outcome);
    Ok(())
}

pub(super) fn square_root(core: &mut Core, op: &Op) -> Step {
    unary(core, op, float::sqrt)
}

pub(super) fn round_to_integer(core: &mut Core, op: &Op) -> Step {
    unary(core, op, float::round_to_integer)
}

pub(super) fn absolute(core: &mut Core, op: &Op) -> Step {
    unary(core, op, |a, _| Outcome::exact(X87Register { sign_exponent: a.sign_exponent & 0x7fff, ..a }))
}

pub(super) fn change_sign(core: &mut Core, op: &Op) -> Step {
    unary(core, op, |a, _| Outcome::exact(float::negate(a)))
}

/// `fscale`: multiplies `st(0)` by two to the integer part of `st(1)`.
pub(super) fn scale(core: &mut Core, op: &Op) -> Step {
    if core.x87_empty(1) && core.x87_available().is_ok() && core.x87.status & flag::ES == 0 {
        core.x87_note(op, None);
        if core.x87_underflow() {
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let by = core.st(1);
    unary(core, op, |a, control| scaled(a, by, control.full()))
}

fn scaled(a: X87Register, by: X87Register, control: Control) -> Outcome {
    if let Some(outcome) = float::nan(a, by) {
        return outcome;
    }
    let flags = float::denormal(a, by);
    let outcome = match (class(a), class(by)) {
        (Class::Infinity, Class::Infinity) if negative(by) => return Outcome::invalid(),
        (Class::Zero, Class::Infinity) if !negative(by) => return Outcome::invalid(),
        (_, Class::Infinity) if negative(by) => Outcome::exact(float::zero(negative(a))),
        (_, Class::Infinity) => Outcome::exact(float::infinity(negative(a))),
        (Class::Infinity | Class::Zero, _) => Outcome::exact(a),
        // A pseudo-denormal leaves as the normal number that it is.
        (_, Class::Zero) if a.sign_exponent & 0x7fff == 0 && a.significand >> 63 != 0 => {
            Outcome::exact(X87Register { sign_exponent: a.sign_exponent | 1, ..a })
        }
        (_, Class::Zero) => Outcome::exact(a),
        _ => {
            let by = Number::of(by);
            // Beyond this every result has left the range of exponents anyway.
            let distance = if by.exponent > 17 {
                0x2_0000
            } else if by.exponent < 0 {
                0
            } else {
                (by.significand >> (63 - by.exponent)) as i32
            };
            let n = Number::of(a);
            let distance = if by.sign { -distance } else { distance };
            float::round(n.sign, n.exponent + distance, u128::from(n.significand) << 64, control)
        }
    };
    outcome.with(flags)
}

/// `fxtract`: `st(0)` becomes its exponent, and its significand is pushed.
pub(super) fn extract(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) || !core.x87_empty(7) {
        let overflow = !core.x87_empty(0);
        core.x87_set_c1(overflow);
        if core.x87_raise(flag::IE | flag::SF) {
            core.set_st(0, INDEFINITE);
            core.x87_set_top(core.x87_top().wrapping_sub(1));
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let a = core.st(0);
    let (exponent, significand) = match (float::nan(a, a), class(a)) {
        (Some(outcome), _) => (outcome, outcome),
        (_, Class::Infinity) => (Outcome::exact(float::infinity(false)), Outcome::exact(a)),
        (_, Class::Zero) => (Outcome::exact(float::infinity(true)).with(flag::ZE), Outcome::exact(a)),
        _ => {
            let n = Number::of(a);
            let significand =
                X87Register { significand: n.significand, sign_exponent: u16::from(n.sign) << 15 | 0x3fff };
            let flags = float::denormal(a, a);
            (super::moves::from_integer(i64::from(n.exponent)).with(flags), Outcome::exact(significand))
        }
    };
    if core.x87_deliver(0, exponent) {
        core.x87_set_top(core.x87_top().wrapping_sub(1));
        core.set_st(0, significand.value);
    }
    Ok(())
}

/// A pseudo-denormal as the normal number that it stands for.
fn normalised(a: X87Register) -> X87Register {
    let pseudo = a.sign_exponent & 0x7fff == 0 && a.significand >> 63 != 0;
    X87Register { sign_exponent: a.sign_exponent | u16::from(pseudo), ..a }
}

/// `fprem` and `fprem1` (`aux` 1): the partial remainder of `st(0)` by `st(1)`.
pub(super) fn remainder(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    // Without a quotient the other condition codes stay.
    core.x87.status &= !flag::C2;
    if core.x87_empty(0) || core.x87_empty(1) {
        if core.x87_underflow() {
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let (a, b) = (core.st(0), core.st(1));
    let (outcome, quotient) = partial_remainder(a, b, op.aux == 1, core.x87_control().full());
    let written = core.x87_deliver(0, outcome);
    if written {
        match quotient {
            Quotient::None => {}
            Quotient::Unfinished => {
                core.x87.status &= !(flag::C0 | flag::C1 | flag::C3);
                core.x87.status |= flag::C2;
            }
            Quotient::Low(q) => {
                core.x87.status &= !(flag::C0 | flag::C1 | flag::C3);
                let code = |bit: u64, flag: u16| if q >> bit & 1 != 0 { flag } else { 0 };
                core.x87.status |= code(2, flag::C0) | code(1, flag::C3) | code(0, flag::C1);
            }
        }
    }
    Ok(())
}

/// What a partial remainder says of the quotient.
enum Quotient {
    /// There is none: the operands were no numbers.
    None,
    /// The reduction is not complete.
    Unfinished,
    /// Its low bits.
    Low(u64),
}

/// The remainder and the quotient.
fn partial_remainder(a: X87Register, b: X87Register, nearest: bool, control: Control) -> (Outcome, Quotient) {
    if let Some(outcome) = float::nan(a, b) {
        return (outcome, Quotient::None);
    }
    let flags = float::denormal(a, b);
    match (class(a), class(b)) {
        (Class::Infinity, _) | (_, Class::Zero) => return (Outcome::invalid(), Quotient::None),
        (Class::Zero, _) | (_, Class::Infinity) => {
            return (Outcome::exact(normalised(a)).with(flags), Quotient::Low(0));
        }
        _ => {}
    }
    let (x, y) = (Number::of(a), Number::of(b));
    let distance = x.exponent - y.exponent;
    if distance < -1 || distance < 0 && !nearest {
        let n = float::round(x.sign, x.exponent, u128::from(x.significand) << 64, control);
        return (n.with(flags), Quotient::Low(0));
    }
    let divisor = u128::from(y.significand);
    // A reduction by 64 or more is left unfinished, with the exponent brought down by 32 to 63.
    let complete = distance < 64;
    let (dividend, exponent) = if distance < 0 {
        // Half the divisor's exponent: worked on one binary place further down.
        (u128::from(x.significand), x.exponent)
    } else {
        let by = if complete { distance } else { 32 + distance % 32 };
        (u128::from(x.significand) << by, if complete { y.exponent } else { x.exponent - by })
    };
    let divisor = if distance < 0 { divisor << 1 } else { divisor };
    let (mut quotient, mut rest) = (dividend / divisor, dividend % divisor);
    let mut sign = x.sign;
    if nearest && complete {
        let twice = rest << 1;
        if twice > divisor || twice == divisor && quotient & 1 != 0 {
            quotient += 1;
            rest = divisor - rest;
            sign = !sign;
        }
    }
    let quotient = if complete { Quotient::Low(quotient as u64) } else { Quotient::Unfinished };
    if rest == 0 {
        return (Outcome::exact(float::zero(x.sign)).with(flags), quotient);
    }
    let shift = rest.leading_zeros();
    let down = Control { rounding: Rounding::Nearest, ..control };
    let outcome = float::round(sign, exponent + 64 - shift as i32, rest << shift, down);
    (outcome.with(flags), quotient)
}
