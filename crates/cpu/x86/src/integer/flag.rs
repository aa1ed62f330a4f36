//! Single flags, and instructions that do nothing: `clc`, `stc`, `cmc`, `cld`, `std`, `lahf`, `sahf`, `salc`,
//! `nop` and the hints.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};
use posada_vcpu::x86::rflags;

use crate::core::Core;
use crate::int::HIGH_BYTE;
use crate::model::Model;
use crate::op::{Op, Run, Step};

const AH: u8 = HIGH_BYTE;
const AL: u8 = 0;

fn clc(core: &mut Core, _: &Op) -> Step {
    core.flags.replace_cf(false);
    Ok(())
}

fn stc(core: &mut Core, _: &Op) -> Step {
    core.flags.replace_cf(true);
    Ok(())
}

fn cmc(core: &mut Core, _: &Op) -> Step {
    let carry = core.flags.cf();
    core.flags.replace_cf(!carry);
    Ok(())
}

fn cld(core: &mut Core, _: &Op) -> Step {
    core.system_flags &= !rflags::DF;
    Ok(())
}

fn std(core: &mut Core, _: &Op) -> Step {
    core.system_flags |= rflags::DF;
    Ok(())
}

fn lahf(core: &mut Core, _: &Op) -> Step {
    let low = (core.flags.bits() | rflags::FIXED) as u8;
    core.set_reg(AH, low);
    Ok(())
}

fn sahf(core: &mut Core, _: &Op) -> Step {
    let low = u64::from(core.reg::<u8>(AH));
    core.flags.replace(rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF, low);
    Ok(())
}

/// The undocumented one: `al` becomes all CF.
fn salc(core: &mut Core, _: &Op) -> Step {
    let all = if core.flags.cf() { 0xff_u8 } else { 0 };
    core.set_reg(AL, all);
    Ok(())
}

fn nop(_: &mut Core, _: &Op) -> Step {
    Ok(())
}

/// Instructions whose opcodes were set aside to do nothing on processors that do not know them: these are
/// carried out as that, whatever the model announces.
pub(crate) fn hint(i: &Instruction, model: &Model) -> Option<Op> {
    let does_nothing = match i.mnemonic() {
        // The prefetches' opcode is not set aside with a register as operand.
        Mnemonic::Reservednop => !matches!(
            i.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        ),
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Cldemote
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => true,
        Mnemonic::Endbr32 | Mnemonic::Endbr64 => !model.announces(CpuidFeature::CET_IBT),
        Mnemonic::Rdsspd | Mnemonic::Rdsspq => !model.announces(CpuidFeature::CET_SS),
        _ => false,
    };
    does_nothing.then(|| Op::new(nop, i))
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.mnemonic() {
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => std,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        _ => return None,
    };
    Some(Op::new(run, i))
}

#[cfg(test)]
#[path = "flag_test.rs"]
mod tests;
