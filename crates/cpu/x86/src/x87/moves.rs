//! Loads, stores and exchanges (AMD APM volume 5, chapter 2).

use posada_vcpu::x86::X87Register;

use super::float::{self, Class, INDEFINITE, Number, Outcome, class, flag, negative};
use crate::core::Core;
use crate::op::{Op, Step};

/// A real operand in memory; `op.src` is its size in bytes, 4 or 8.
pub(super) fn load_real(core: &mut Core, op: &Op, offset: u64) -> Step<Outcome> {
    Ok(if op.src == 4 {
        let bits = core.read::<u32>(op.segment, offset)?;
        float::widen(u64::from(bits), 8, 23)
    } else {
        float::widen(core.read::<u64>(op.segment, offset)?, 11, 52)
    })
}

/// An integer operand in memory; `op.src` is its size in bytes plus 16: 18, 20 or 24.
pub(super) fn load_integer(core: &mut Core, op: &Op, offset: u64) -> Step<Outcome> {
    let value = match op.src {
        18 => i64::from(core.read::<u16>(op.segment, offset)? as i16),
        20 => i64::from(core.read::<u32>(op.segment, offset)? as i32),
        _ => core.read::<u64>(op.segment, offset)? as i64,
    };
    Ok(from_integer(value))
}

pub(super) fn from_integer(value: i64) -> Outcome {
    if value == 0 {
        return Outcome::exact(float::zero(false));
    }
    let (sign, magnitude) = (value < 0, value.unsigned_abs());
    let shift = magnitude.leading_zeros();
    Outcome::exact(X87Register {
        significand: magnitude << shift,
        sign_exponent: u16::from(sign) << 15 | (16383 + 63 - shift as u16),
    })
}

/// `fld` of 4 or 8 bytes, `fild`.
pub(super) fn load(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let mut outcome =
        if op.src < 16 { load_real(core, op, offset)? } else { load_integer(core, op, offset)? };
    outcome.value = float::quieted(outcome.value);
    core.x87_note(op, Some((op.segment, offset)));
    core.x87_push(outcome);
    Ok(())
}

/// `fld` of ten bytes.
pub(super) fn load_extended(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let mut bytes = [0; 10];
    core.read_bytes(op.segment, offset, 8, &mut bytes)?;
    core.x87_note(op, Some((op.segment, offset)));
    core.x87_push(Outcome::exact(from_bytes(bytes)));
    Ok(())
}

pub(super) fn from_bytes(bytes: [u8; 10]) -> X87Register {
    let [a, b, c, d, e, f, g, h, i, j] = bytes;
    X87Register {
        significand: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        sign_exponent: u16::from_le_bytes([i, j]),
    }
}

pub(super) fn to_bytes(value: X87Register) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&value.significand.to_le_bytes());
    bytes[8..].copy_from_slice(&value.sign_exponent.to_le_bytes());
    bytes
}

/// `fld st(src)`.
pub(super) fn load_register(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(op.src) {
        if core.x87_underflow() {
            core.x87_set_top(core.x87_top().wrapping_sub(1));
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    core.x87_push(Outcome::exact(core.st(op.src)));
    Ok(())
}

/// `fld1` and the other constants, numbered as their opcodes are by `aux`.
pub(super) fn load_constant(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    // 128 bits of each significand, so that every rounding mode finds its neighbour.
    let control = core.x87_control().full();
    let (exponent, significand) = match op.aux {
        0 => (0, 1u128 << 127),
        1 => (1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4c),
        2 => (0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89),
        3 => (1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
        4 => (-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178),
        5 => (-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af),
        _ => {
            core.x87_push(Outcome::exact(float::zero(false)));
            return Ok(());
        }
    };
    let mut outcome = float::round(false, exponent, significand, control);
    outcome.flags = 0;
    core.x87_push(outcome);
    Ok(())
}

/// Whether a store may go on; an empty register stores the indefinite value if that is masked.
fn value_to_store(core: &mut Core) -> Option<X87Register> {
    if !core.x87_empty(0) {
        return Some(core.st(0));
    }
    core.x87_underflow().then_some(INDEFINITE)
}

/// `fst` and `fstp` to 4 or 8 bytes (`src`), `aux` pops.
pub(super) fn store(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    // A fault of the store comes before any change.
    let linear = core.linear(op.segment, offset, u64::from(op.src), true)?;
    core.check_store(op.segment, linear, u64::from(op.src), u64::from(op.src))?;
    core.x87_note(op, Some((op.segment, offset)));
    let Some(value) = value_to_store(core) else { return Ok(()) };
    let format = if op.src == 4 { float::SINGLE } else { float::DOUBLE };
    let underflowed = core.x87_empty(0);
    let (bits, flags) = float::narrow(value, format, core.x87_control());
    // An unmasked exception other than the loss of precision keeps the number from being stored, and so rounded.
    let kept_back = flags & (flag::IE | flag::OE | flag::UE) & !core.x87.control != 0;
    if !underflowed {
        let flags = if kept_back { flags & !(flag::PE | flag::C1) } else { flags };
        core.x87_set_c1(flags & flag::C1 != 0);
        core.x87_raise(flags);
    }
    if kept_back {
        return Ok(());
    }
    if op.src == 4 {
        core.write(op.segment, offset, bits as u32)?;
    } else {
        core.write(op.segment, offset, bits)?;
    }
    if op.aux != 0 {
        core.x87_pop();
    }
    Ok(())
}

/// `fstp` to ten bytes.
pub(super) fn store_extended(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let linear = core.linear(op.segment, offset, 10, true)?;
    core.check_store(op.segment, linear, 10, 8)?;
    core.x87_note(op, Some((op.segment, offset)));
    let Some(value) = value_to_store(core) else { return Ok(()) };
    if !core.x87_empty(0) {
        core.x87_set_c1(false);
    }
    core.write_bytes(op.segment, offset, 8, &to_bytes(value))?;
    core.x87_pop();
    Ok(())
}

/// `fist`, `fistp` and `fisttp`: `src` is the size in bytes, `aux` bit 0 pops, bit 1 truncates.
pub(super) fn store_integer(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let size = u64::from(op.src);
    let linear = core.linear(op.segment, offset, size, true)?;
    core.check_store(op.segment, linear, size, size)?;
    core.x87_note(op, Some((op.segment, offset)));
    let Some(value) = value_to_store(core) else { return Ok(()) };
    let underflowed = core.x87_empty(0);
    let bits = u32::from(op.src) * 8;
    let rounding = if op.aux & 2 != 0 { float::Rounding::Zero } else { core.x87_control().rounding };
    let (integer, flags) = to_integer(value, bits, rounding);
    if !underflowed {
        core.x87_set_c1(flags & flag::C1 != 0);
        if !core.x87_raise(flags) {
            return Ok(());
        }
    }
    match op.src {
        2 => core.write(op.segment, offset, integer as u16)?,
        4 => core.write(op.segment, offset, integer as u32)?,
        _ => core.write(op.segment, offset, integer as u64)?,
    }
    if op.aux & 1 != 0 {
        core.x87_pop();
    }
    Ok(())
}

/// Rounds to an integer of `bits` bits; what does not fit is the integer indefinite, and invalid.
fn to_integer(value: X87Register, bits: u32, rounding: float::Rounding) -> (i64, u16) {
    let indefinite = (i64::MIN >> (64 - bits), flag::IE);
    match class(value) {
        Class::Zero => return (0, 0),
        Class::Normal | Class::Denormal => {}
        _ => return indefinite,
    }
    let n = Number::of(value);
    if n.exponent > 63 {
        return indefinite;
    }
    let (magnitude, inexact, up) = float::integer_part(n, rounding);
    let limit = 1u128 << (bits - 1);
    if magnitude > limit || magnitude == limit && !n.sign {
        return indefinite;
    }
    let mut flags = if inexact { flag::PE } else { 0 };
    if inexact && up {
        flags |= flag::C1;
    }
    let magnitude = magnitude as i64;
    (if n.sign { magnitude.wrapping_neg() } else { magnitude }, flags)
}

/// `fbld`: eighteen binary-coded decimal digits and a sign.
pub(super) fn load_decimal(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let mut bytes = [0; 10];
    core.read_bytes(op.segment, offset, 8, &mut bytes)?;
    core.x87_note(op, Some((op.segment, offset)));
    let magnitude = bytes[..9]
        .iter()
        .rev()
        .fold(0i64, |sum, byte| sum * 100 + i64::from(byte >> 4) * 10 + i64::from(byte & 15));
    let mut outcome = from_integer(magnitude);
    if bytes[9] & 0x80 != 0 {
        outcome.value.sign_exponent |= 0x8000;
    }
    core.x87_push(outcome);
    Ok(())
}

/// `fbstp`: stores eighteen binary-coded decimal digits and a sign, and pops.
pub(super) fn store_decimal(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    let offset = op.address(core);
    let linear = core.linear(op.segment, offset, 10, true)?;
    core.check_store(op.segment, linear, 10, 8)?;
    core.x87_note(op, Some((op.segment, offset)));
    let Some(value) = value_to_store(core) else { return Ok(()) };
    let underflowed = core.x87_empty(0);
    let (integer, mut flags) = to_integer(value, 64, core.x87_control().rounding);
    let fits = flags & flag::IE == 0 && integer.unsigned_abs() < 1_000_000_000_000_000_000;
    let mut bytes = [0u8; 10];
    if fits {
        let mut rest = integer.unsigned_abs();
        for byte in &mut bytes[..9] {
            *byte = (rest % 10) as u8 | ((rest / 10 % 10) as u8) << 4;
            rest /= 100;
        }
        bytes[9] = u8::from(negative(value)) << 7;
    } else {
        flags = flag::IE;
        bytes[7..].copy_from_slice(&[0xc0, 0xff, 0xff]);
    }
    if !underflowed {
        core.x87_set_c1(flags & flag::C1 != 0);
        if !core.x87_raise(flags) {
            return Ok(());
        }
    }
    core.write_bytes(op.segment, offset, 8, &bytes)?;
    core.x87_pop();
    Ok(())
}

/// `aux` of [`store_register`] for `fstpnce`.
pub(super) const NO_CHECK: u8 = 2;

/// `fst st(dst)`, `fstp st(dst)` (`aux` 1) and `fstpnce st(dst)` ([`NO_CHECK`]), which minds no empty register.
pub(super) fn store_register(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) && op.aux == NO_CHECK {
        core.x87_set_c1(false);
        core.x87_pop();
        return Ok(());
    }
    let empty = core.x87_empty(0);
    let Some(value) = value_to_store(core) else { return Ok(()) };
    if !empty {
        core.x87_set_c1(false);
    }
    core.set_st(op.dst, value);
    if op.aux != 0 {
        core.x87_pop();
    }
    Ok(())
}

/// `fxch st(src)`.
pub(super) fn exchange(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    let (empty_a, empty_b) = (core.x87_empty(0), core.x87_empty(op.src));
    if (empty_a || empty_b) && !core.x87_underflow() {
        return Ok(());
    }
    let value = |core: &Core, i, empty| if empty { INDEFINITE } else { core.st(i) };
    let (a, b) = (value(core, 0, empty_a), value(core, op.src, empty_b));
    if !empty_a && !empty_b {
        core.x87_set_c1(false);
    }
    core.set_st(0, b);
    core.set_st(op.src, a);
    Ok(())
}

/// `fcmovcc st(0), st(src)`: `aux` is the condition as `jcc` encodes it.
pub(super) fn conditional(core: &mut Core, op: &Op) -> Step {
    core.x87_begin()?;
    core.x87_note(op, None);
    if core.x87_empty(0) || core.x87_empty(op.src) {
        if core.x87_underflow() {
            core.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    if core.flags.condition(op.aux) {
        core.set_st(0, core.st(op.src));
    }
    Ok(())
}
