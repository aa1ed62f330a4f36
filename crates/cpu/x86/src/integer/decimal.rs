//! Decimal arithmetic outside 64-bit mode: `aaa`, `aas`, `aad`, `aam`, `daa`, `das`.
//!
//! Flags that the manual leaves undefined come from the addition or subtraction within, as on Zen.

use iced_x86::{Instruction, Mnemonic};

use crate::core::Core;
use crate::int::HIGH_BYTE;
use crate::op::{Op, Run, Step};
use posada_vcpu::x86::rflags;

const AL: u8 = 0;
const AX: u8 = 0;
const AH: u8 = HIGH_BYTE;

/// Sets AF and CF, when the other flags are already there.
fn set_carries(core: &mut Core, af: bool, cf: bool) {
    let bits = if af { rflags::AF } else { 0 } | if cf { rflags::CF } else { 0 };
    core.flags.replace(rflags::AF | rflags::CF, bits);
}

/// `daa` and `das`: packed digits.
fn packed<const SUBTRACT: bool>(core: &mut Core, _: &Op) -> Step {
    let al = core.reg::<u8>(AL);
    let low = al & 15 > 9 || core.flags.af();
    let high = al > 0x99 || core.flags.cf();
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let result = if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) };
    core.set_reg(AL, result);
    if SUBTRACT {
        core.flags.sub(al, by, result);
    } else {
        core.flags.add(al, by, result);
    }
    set_carries(core, low, high || SUBTRACT && low && al < 6);
    Ok(())
}

/// `aaa` and `aas`: one unpacked digit.
fn unpacked<const SUBTRACT: bool>(core: &mut Core, _: &Op) -> Step {
    let (al, ax) = (core.reg::<u8>(AL), core.reg::<u16>(AX));
    let adjust = al & 15 > 9 || core.flags.af();
    let by = if adjust { 0x106 } else { 0 };
    let result = if SUBTRACT { ax.wrapping_sub(by) } else { ax.wrapping_add(by) };
    core.set_reg(AX, result & 0xff0f);
    if SUBTRACT {
        core.flags.sub(ax, by, result);
    } else {
        core.flags.add(ax, by, result);
    }
    set_carries(core, adjust, adjust);
    Ok(())
}

/// After a multiplication; the base is `imm`.
fn aam(core: &mut Core, op: &Op) -> Step {
    let (al, base) = (core.reg::<u8>(AL), op.imm as u8);
    if base == 0 {
        return Err(core.de());
    }
    core.set_reg(AH, al / base);
    core.set_reg(AL, al % base);
    core.flags.logic(al % base);
    Ok(())
}

/// Before a division; the base is `imm`.
fn aad(core: &mut Core, op: &Op) -> Step {
    let (al, tens) = (core.reg::<u8>(AL), core.reg::<u8>(AH).wrapping_mul(op.imm as u8));
    let result = al.wrapping_add(tens);
    core.set_reg(AX, u16::from(result));
    core.flags.add(al, tens, result);
    Ok(())
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.mnemonic() {
        Mnemonic::Daa => packed::<false>,
        Mnemonic::Das => packed::<true>,
        Mnemonic::Aaa => unpacked::<false>,
        Mnemonic::Aas => unpacked::<true>,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    if i.op_count() > 0 {
        op.imm = u64::from(i.immediate8());
    }
    Some(op)
}

#[cfg(test)]
#[path = "decimal_test.rs"]
mod tests;
