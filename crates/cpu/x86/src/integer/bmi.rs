//! Bit manipulation with three operands (BMI1, BMI2) and additions with two carry chains (ADX).

use iced_x86::{Instruction, Mnemonic, OpKind};
use posada_vcpu::x86::rflags;

use super::operand::{FromRegister, InMemory, Source, with_operands};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step};

const RDX: u8 = 2;

/// VEX encodings do not exist in real and virtual-8086 mode.
#[inline(always)]
fn demand_vex(core: &mut Core) -> Step {
    if core.uses_descriptors() { Ok(()) } else { Err(core.ud()) }
}

/// An operation on `a`, the register or memory operand, and `b`, a register; sets flags by itself.
trait Operation {
    fn apply<T: Int>(core: &mut Core, a: T, b: T) -> T;
}

macro_rules! operation {
    ($name:ident, |$core:ident, $a:ident, $b:ident| $body:expr) => {
        struct $name;
        impl Operation for $name {
            #[inline(always)]
            fn apply<T: Int>($core: &mut Core, a: T, b: T) -> T {
                let ($a, $b) = (a.zext(), b.zext());
                let result: T = $body;
                result
            }
        }
    };
}

/// Sets the flags from a result, and CF.
fn logic<T: Int>(core: &mut Core, result: u64, cf: bool) -> T {
    core.flags.result_with(T::new(result), cf, false);
    T::new(result)
}

operation!(Andn, |core, a, b| logic(core, a & !b, false));
operation!(Blsi, |core, a, _b| logic(core, a & a.wrapping_neg(), a != 0));
operation!(Blsmsk, |core, a, _b| logic(core, a ^ a.wrapping_sub(1), a == 0));
operation!(Blsr, |core, a, _b| logic(core, a & a.wrapping_sub(1), a == 0));
operation!(Bzhi, |core, a, b| {
    let keep = (b & 0xff) as u32;
    logic(core, if keep < T::BITS { a & ((1 << keep) - 1) } else { a }, keep >= T::BITS)
});
operation!(Bextr, |core, a, b| {
    let (start, length) = ((b & 0xff) as u32, (b >> 8 & 0xff) as u32);
    let from_start = a.checked_shr(start).unwrap_or(0);
    let result = if length < 64 { from_start & ((1 << length) - 1) } else { from_start };
    // Defined: ZF from the result, CF and OF clear. Zen sets AF, clears SF, and has the result's parity.
    let parity = (result as u8).count_ones().is_multiple_of(2);
    let zero = if result == 0 { rflags::ZF } else { 0 };
    core.flags.set(zero | rflags::AF | if parity { rflags::PF } else { 0 });
    T::new(result)
});
operation!(Pdep, |_core, a, b| {
    // Here `a` is the mask and `b` the source.
    let (mut mask, mut bits, mut result) = (a, b, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if bits & 1 != 0 { lowest } else { 0 };
        bits >>= 1;
        mask ^= lowest;
    }
    T::new(result)
});
operation!(Pext, |_core, a, b| {
    let (mut mask, mut result, mut bit) = (a, 0, 1);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= if b & lowest != 0 { bit } else { 0 };
        bit <<= 1;
        mask ^= lowest;
    }
    T::new(result)
});
operation!(Sarx, |_core, a, b| { T::new((T::new(a).sext() as i64 >> (b & u64::from(T::BITS - 1))) as u64) });
operation!(Shlx, |_core, a, b| T::new(a << (b & u64::from(T::BITS - 1))));
operation!(Shrx, |_core, a, b| T::new(a >> (b & u64::from(T::BITS - 1))));
operation!(Rorx, |_core, a, b| {
    let count = (b & u64::from(T::BITS - 1)) as u32;
    let shifted_out = if count == 0 { 0 } else { a << (T::BITS - count) };
    T::new(a >> count | shifted_out)
});

/// `a` is register `src` or memory, `b` register `aux`.
fn with_register<O: Operation, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    demand_vex(core)?;
    let a = S::read::<T>(core, op)?;
    let b = core.reg::<T>(op.aux);
    let result = O::apply(core, a, b);
    core.set_reg(op.dst, result);
    Ok(())
}

/// `b` is the immediate.
fn with_immediate<O: Operation, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    demand_vex(core)?;
    let a = S::read::<T>(core, op)?;
    let result = O::apply(core, a, T::new(op.imm));
    core.set_reg(op.dst, result);
    Ok(())
}

/// Where among the operands `a` is; the other register, if there is one, is `b`.
fn lower_operation<O: Operation>(i: &Instruction, a: u32) -> Op {
    let wide = i.op0_register().is_gpr64();
    let memory = i.op_kind(a) == OpKind::Memory;
    let immediate = i.op_count() == 3 && i.op2_kind() == OpKind::Immediate8;
    let run: Run = match (immediate, memory, wide) {
        (false, false, false) => with_register::<O, FromRegister, u32>,
        (false, false, true) => with_register::<O, FromRegister, u64>,
        (false, true, false) => with_register::<O, InMemory, u32>,
        (false, true, true) => with_register::<O, InMemory, u64>,
        (true, false, false) => with_immediate::<O, FromRegister, u32>,
        (true, false, true) => with_immediate::<O, FromRegister, u64>,
        (true, true, false) => with_immediate::<O, InMemory, u32>,
        (true, true, true) => with_immediate::<O, InMemory, u64>,
    };
    let mut op = with_operands(run, i);
    if a == 2 {
        (op.src, op.aux) = (op.aux, op.src);
    }
    op
}

/// `dst` gets the upper half of the product and `aux` the lower; where both are one register, the upper stays.
fn mulx<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    demand_vex(core)?;
    let a = S::read::<T>(core, op)?;
    let product = u128::from(a.zext()) * u128::from(core.reg::<T>(RDX).zext());
    core.set_reg(op.aux, T::new(product as u64));
    core.set_reg(op.dst, T::new((product >> T::BITS) as u64));
    Ok(())
}

fn lower_mulx(i: &Instruction) -> Op {
    let wide = i.op0_register().is_gpr64();
    let run: Run = match (i.op2_kind() == OpKind::Memory, wide) {
        (false, false) => mulx::<FromRegister, u32>,
        (false, true) => mulx::<FromRegister, u64>,
        (true, false) => mulx::<InMemory, u32>,
        (true, true) => mulx::<InMemory, u64>,
    };
    let mut op = with_operands(run, i);
    (op.src, op.aux) = (op.aux, op.src);
    op
}

/// `adcx`, whose carry is CF, and `adox`, whose carry is OF.
fn add_chain<const OVERFLOW: bool, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = u128::from(S::read::<T>(core, op)?.zext());
    let carry = if OVERFLOW { core.flags.of() } else { core.flags.cf() };
    let sum = u128::from(core.reg::<T>(op.dst).zext()) + b + u128::from(carry);
    core.set_reg(op.dst, T::new(sum as u64));
    let out = sum >> T::BITS != 0;
    if OVERFLOW {
        let cf = core.flags.cf();
        core.flags.replace_cf_of(cf, out);
    } else {
        core.flags.replace_cf(out);
    }
    Ok(())
}

fn lower_add_chain<const OVERFLOW: bool>(i: &Instruction) -> Op {
    let wide = i.op0_register().is_gpr64();
    let run: Run = match (i.op1_kind() == OpKind::Memory, wide) {
        (false, false) => add_chain::<OVERFLOW, FromRegister, u32>,
        (false, true) => add_chain::<OVERFLOW, FromRegister, u64>,
        (true, false) => add_chain::<OVERFLOW, InMemory, u32>,
        (true, true) => add_chain::<OVERFLOW, InMemory, u64>,
    };
    with_operands(run, i)
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    Some(match i.mnemonic() {
        Mnemonic::Andn => lower_operation::<Andn>(i, 2),
        Mnemonic::Blsi => lower_operation::<Blsi>(i, 1),
        Mnemonic::Blsmsk => lower_operation::<Blsmsk>(i, 1),
        Mnemonic::Blsr => lower_operation::<Blsr>(i, 1),
        Mnemonic::Bzhi => lower_operation::<Bzhi>(i, 1),
        Mnemonic::Bextr if i.op2_kind() == OpKind::Register => lower_operation::<Bextr>(i, 1),
        Mnemonic::Pdep => lower_operation::<Pdep>(i, 2),
        Mnemonic::Pext => lower_operation::<Pext>(i, 2),
        Mnemonic::Sarx => lower_operation::<Sarx>(i, 1),
        Mnemonic::Shlx => lower_operation::<Shlx>(i, 1),
        Mnemonic::Shrx => lower_operation::<Shrx>(i, 1),
        Mnemonic::Rorx => lower_operation::<Rorx>(i, 1),
        Mnemonic::Mulx => lower_mulx(i),
        Mnemonic::Adcx => lower_add_chain::<false>(i),
        Mnemonic::Adox => lower_add_chain::<true>(i),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "bmi_test.rs"]
pub(super) mod tests;
