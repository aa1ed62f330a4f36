//! Trigonometric, exponential and logarithmic instructions: within one unit in the last place, as the manual
//! promises, by way of 128-bit arithmetic.

use posada_vcpu::x86::X87Register;

use super::arithmetic::unary;
use super::float::{self, Class, Control, INDEFINITE, ONE, Outcome, class, flag, negative};
use super::wide::Wide;
use crate::core::Core;
use crate::op::{Op, Step};

/// Rounds a result that cannot be exact.
fn inexact(value: Wide, control: Control) -> Outcome {
    if value.is_zero() {
        return Outcome { value: float::zero(value.sign), flags: flag::PE };
    }
    float::round(value.sign, value.exponent, value.significand | 1, control.full())
}

/// What a one-operand function gives for operands that need no working out: NaNs, and zero, which stays.
fn special(a: X87Register) -> Option<Outcome> {
    float::nan(a, a).or_else(|| (class(a) == Class::Zero).then(|| Outcome::exact(a)))
}

/// `f2xm1`: two to the power of `st(0)`, less one, for magnitudes up to one.
pub(super) fn power(core: &mut Core, op: &Op) -> Step {
    unary(core, op, |a, control| {
        if let Some(outcome) = special(a) {
            return outcome;
        }
        let flags = float::denormal(a, a);
        let minus_one = X87Register { sign_exponent: 0xbffe, significand: 1 << 63 };
        match (class(a), a.sign_exponent & 0x7fff) {
            (Class::Infinity, _) if negative(a) => {
                Outcome::exact(X87Register { sign_exponent: 0xbfff, significand: 1 << 63 })
            }
            (Class::Infinity, _) => Outcome::exact(a),
            // Outside its domain the result is undefined; the operand stays.
            (_, 0x3fff..) if a.significand == 1 << 63 && a.sign_exponent & 0x7fff == 0x3fff => {
                Outcome::exact(if negative(a) { minus_one } else { ONE }).with(flag::PE)
            }
            (_, 0x3fff..) => Outcome::exact(a).with(flag::PE),
            _ => inexact(Wide::of(a).mul(Wide::LN_2).exp_m1(), control).with(flags),
        }
    })
}

/// Reduces an angle below 2^63 to within an eighth of a turn of a multiple of a quarter turn: which multiple,
/// and the rest. A quarter turn is what the hardware takes for one, so that large angles come out alike.
fn reduce(a: X87Register) -> (u64, Wide) {
    let angle = Wide { sign: false, ..Wide::of(a) };
    let quarter = Wide::PI_66.scaled(-1);
    let count = angle.div(quarter).nearest();
    // The product is taken in two parts, each of which is exact.
    let (high, low) = (count >> 32 << 32, count & 0xffff_ffff);
    let rest = angle.sub(Wide::integer(high).mul(quarter)).sub(Wide::integer(low).mul(quarter));
    (count, rest)
}

/// Sine and cosine of an angle.
fn sine_cosine(a: X87Register) -> (Wide, Wide) {
    let (count, rest) = reduce(a);
    let (s, c) = (rest.sin().below(), rest.cos().below());
    let (s, c) = match count & 3 {
        0 => (s, c),
        1 => (c, s.negated()),
        2 => (s.negated(), c.negated()),
        _ => (c.negated(), s),
    };
    (if negative(a) { s.negated() } else { s }, c)
}

fn too_large(a: X87Register) -> bool {
    class(a) == Class::Normal && a.sign_exponent & 0x7fff >= 0x3fff + 63
}

/// `fsin`, `fcos` (`aux` 1), `fsincos` (2) and `fptan` (3).
pub(super) fn trigonometric(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let pushes = op.aux >= 2;
    let a = core.st(0);
    core.x87.status &= !flag::C2;
    if core.x87_empty(0) || pushes && !core.x87_empty(7) {
        core.x87_note(op, None);
        let overflow = !core.x87_empty(0);
        core.x87_set_c1(overflow);
        if core.x87_raise(flag::IE | flag::SF) {
            core.set_st(0, INDEFINITE);
            if pushes {
                core.x87_set_top(core.x87_top().wrapping_sub(1));
                core.set_st(0, INDEFINITE);
            }
        }
        return Ok(());
    }
    core.x87_note(op, None);
    if too_large(a) {
        core.x87.status |= flag::C2;
        core.x87_set_c1(false);
        return Ok(());
    }
    let control = core.x87_control();
    let (first, second) = trigonometric_values(a, op.aux, control);
    if core.x87_deliver(0, first)
        && let Some(second) = second
    {
        core.x87_set_top(core.x87_top().wrapping_sub(1));
        core.set_st(0, second.value);
        core.x87_raise(second.flags);
    }
    Ok(())
}

fn trigonometric_values(a: X87Register, which: u8, control: Control) -> (Outcome, Option<Outcome>) {
    let both = |outcome: Outcome| (outcome, (which >= 2).then_some(outcome));
    if let Some(outcome) = float::nan(a, a) {
        return both(outcome);
    }
    if class(a) == Class::Infinity {
        return both(Outcome::invalid());
    }
    let one = Outcome::exact(ONE);
    if class(a) == Class::Zero {
        return match which {
            0 => (Outcome::exact(a), None),
            1 => (one, None),
            _ => (Outcome::exact(a), Some(one)),
        };
    }
    let flags = float::denormal(a, a);
    let (s, c) = sine_cosine(a);
    let rounded = |value| inexact(value, control).with(flags);
    match which {
        0 => (rounded(s), None),
        1 => (rounded(c), None),
        2 => (rounded(s), Some(rounded(c))),
        _ => (rounded(s.div(c)), Some(one)),
    }
}

/// The two-operand functions: `st(1)` is replaced and the stack popped. `aux`: 0 `fyl2x`, 1 `fyl2xp1`, 2 `fpatan`.
pub(super) fn binary(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) || core.x87_empty(1) {
        if core.x87_underflow() {
            core.set_st(1, INDEFINITE);
            core.x87_pop();
        }
        return Ok(());
    }
    let (x, y) = (core.st(0), core.st(1));
    let control = core.x87_control();
    let outcome = float::nan(y, x).unwrap_or_else(|| {
        let outcome = match op.aux {
            0 => logarithm(x, y, control),
            1 => logarithm_plus_one(x, y, control),
            _ => arc_tangent(x, y, control),
        };
        if outcome.flags & (flag::IE | flag::ZE) != 0 { outcome } else { outcome.with(float::denormal(x, y)) }
    });
    if core.x87_deliver(1, outcome) {
        core.x87_pop();
    }
    Ok(())
}

/// `y * log2(x)`.
fn logarithm(x: X87Register, y: X87Register, control: Control) -> Outcome {
    let sign = |s| negative(y) != s;
    match (class(x), class(y)) {
        (Class::Zero, Class::Zero) => Outcome::invalid(),
        (Class::Zero, Class::Infinity) => Outcome::exact(float::infinity(sign(true))),
        (Class::Zero, _) => Outcome::exact(float::infinity(sign(true))).with(flag::ZE),
        _ if negative(x) => Outcome::invalid(),
        (Class::Infinity, Class::Zero) => Outcome::invalid(),
        (Class::Infinity, _) => Outcome::exact(float::infinity(negative(y))),
        (_, class_y) => {
            let log = Wide::of(x).log2();
            match class_y {
                Class::Infinity if log.is_zero() => Outcome::invalid(),
                Class::Infinity => Outcome::exact(float::infinity(sign(log.sign))),
                Class::Zero => Outcome::exact(float::zero(sign(!log.is_zero() && log.sign))),
                _ if log.is_zero() => Outcome::exact(float::zero(negative(y))),
                _ => {
                    let product = log.mul(Wide::of(y));
                    // The logarithm of a power of two is an integer, and the product may be exact.
                    if x.significand == 1 << 63 && class(x) == Class::Normal {
                        let (exponent, significand) = (product.exponent, product.significand);
                        let outcome = float::round(product.sign, exponent, significand, control.full());
                        // Hardware calls it inexact all the same, and then a tiny one is an underflow.
                        let tiny = class(outcome.value) == Class::Denormal;
                        outcome.with(flag::PE | if tiny { flag::UE } else { 0 })
                    } else {
                        inexact(product, control)
                    }
                }
            }
        }
    }
}

/// `y * log2(x + 1)`.
fn logarithm_plus_one(x: X87Register, y: X87Register, control: Control) -> Outcome {
    match (class(x), class(y)) {
        (Class::Zero, Class::Infinity) => Outcome::invalid(),
        (Class::Zero, _) => Outcome::exact(float::zero(negative(x) != negative(y))),
        (Class::Infinity, _) if negative(x) => Outcome::invalid(),
        (Class::Infinity, Class::Zero) => Outcome::invalid(),
        (Class::Infinity, _) => Outcome::exact(float::infinity(negative(y))),
        (_, Class::Infinity) => Outcome::exact(float::infinity(negative(x) != negative(y))),
        (_, Class::Zero) => Outcome::exact(float::zero(negative(x) != negative(y))),
        _ => {
            let wide = Wide::of(x);
            if wide.sign && wide.exponent >= 0 {
                // At or below minus one there is no logarithm. The manual leaves the result open; hardware gives
                // the operand back.
                return Outcome::exact(x).with(flag::PE);
            }
            inexact(wide.log2_p1().mul(Wide::of(y)), control)
        }
    }
}

/// The angle of the point (x, y).
fn arc_tangent(x: X87Register, y: X87Register, control: Control) -> Outcome {
    let turn = |quarters: u64, eighths: u64| {
        let angle = Wide::PI.mul(Wide::integer(quarters * 2 + eighths)).scaled(-2);
        let outcome = inexact(Wide { sign: negative(y), ..angle }, control);
        Outcome { value: outcome.value, flags: outcome.flags }
    };
    let zero = Outcome::exact(float::zero(negative(y)));
    match (class(y), class(x)) {
        (Class::Infinity, Class::Infinity) => {
            if negative(x) {
                turn(1, 1)
            } else {
                turn(0, 1)
            }
        }
        (Class::Infinity, _) | (_, Class::Zero) if class(y) != Class::Zero => turn(1, 0),
        (_, Class::Infinity) | (Class::Zero, _) => {
            if negative(x) {
                turn(2, 0)
            } else {
                zero
            }
        }
        _ => {
            let (wx, wy) = (Wide { sign: false, ..Wide::of(x) }, Wide { sign: false, ..Wide::of(y) });
            let steep = wy.sub(wx);
            let half = Wide::PI.scaled(-1);
            let angle = if !steep.sign && !steep.is_zero() {
                half.sub(wx.div(wy).atan().below())
            } else {
                wy.div(wx).atan().below()
            };
            let angle = if negative(x) { Wide::PI.sub(angle) } else { angle };
            inexact(Wide { sign: negative(y), ..angle }, control)
        }
    }
}
