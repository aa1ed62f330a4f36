//! Single bits, bit scans and counts: `bt`, `bts`, `btr`, `btc`, `bsf`, `bsr`, `popcnt`, `lzcnt`, `tzcnt`,
//! `crc32`.

use iced_x86::{Instruction, Mnemonic, OpKind};
use posada_vcpu::x86::rflags;

use super::operand::{
    FromRegister, InMemory, InRegister, Locked, Source, Target, bits_of, operand_bits, sized, sized_wide,
    to_memory, with_operands,
};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step};

/// What becomes of the bit that CF gets.
trait Change {
    const WRITES: bool = true;
    fn change(value: u64, bit: u64) -> u64;
}

struct Keep;
struct Set;
struct Reset;
struct Complement;

impl Change for Keep {
    const WRITES: bool = false;
    #[inline(always)]
    fn change(value: u64, _: u64) -> u64 {
        value
    }
}

impl Change for Set {
    #[inline(always)]
    fn change(value: u64, bit: u64) -> u64 {
        value | bit
    }
}

impl Change for Reset {
    #[inline(always)]
    fn change(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}

impl Change for Complement {
    #[inline(always)]
    fn change(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

#[inline(always)]
fn change_bit<C: Change, D: Target, T: Int>(core: &mut Core, op: &Op, index: u64) -> Step {
    let bit = 1 << (index % u64::from(T::BITS));
    let old = if C::WRITES {
        D::replace::<T>(core, op, |value| T::new(C::change(value.zext(), bit)))?
    } else {
        D::get::<T>(core, op)?
    };
    core.flags.replace_cf(old.zext() & bit != 0);
    Ok(())
}

fn bit_by_register<C: Change, T: Int>(core: &mut Core, op: &Op) -> Step {
    let index = core.reg::<T>(op.src).zext();
    change_bit::<C, InRegister, T>(core, op, index)
}

fn bit_by_immediate<C: Change, D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    change_bit::<C, D, T>(core, op, op.imm)
}

/// The register is a signed index into a string of bits, of which the memory operand is the middle.
fn bit_string<C: Change, const LOCKED: bool, T: Int>(core: &mut Core, op: &Op) -> Step {
    let index = core.reg::<T>(op.src).sext() as i64;
    let element = index >> T::BITS.trailing_zeros();
    let shift = op.address_shift & 63;
    let offset = op.address(core).wrapping_add((element as u64).wrapping_mul(T::BYTES)) << shift >> shift;
    let bit = 1 << (index as u64 % u64::from(T::BITS));
    let change = |value: T| T::new(C::change(value.zext(), bit));
    let old = if !C::WRITES {
        core.read::<T>(op.segment, offset)?
    } else if LOCKED {
        core.modify_locked(op.segment, offset, change)?
    } else {
        core.modify(op.segment, offset, |_, value| (change(value), value))?
    };
    core.flags.replace_cf(old.zext() & bit != 0);
    Ok(())
}

fn lower_bit<C: Change>(i: &Instruction) -> Op {
    let bits = operand_bits(i);
    let lock = i.has_lock_prefix();
    let run: Run = match (to_memory(i), i.op1_kind() == OpKind::Register) {
        (false, true) => sized_wide!(bits, bit_by_register::<C>),
        (false, false) => sized_wide!(bits, bit_by_immediate::<C, InRegister>),
        (true, false) if lock => sized_wide!(bits, bit_by_immediate::<C, Locked>),
        (true, false) => sized_wide!(bits, bit_by_immediate::<C, InMemory>),
        (true, true) => match (bits, lock) {
            (16, false) => bit_string::<C, false, u16>,
            (32, false) => bit_string::<C, false, u32>,
            (_, false) => bit_string::<C, false, u64>,
            (16, true) => bit_string::<C, true, u16>,
            (32, true) => bit_string::<C, true, u32>,
            (_, true) => bit_string::<C, true, u64>,
        },
    };
    with_operands(run, i)
}

/// `bsf` and `bsr`. A source of zero leaves the destination alone, its upper half included.
fn scan<const REVERSE: bool, S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?.zext();
    if value == 0 {
        core.flags.set(rflags::ZF | rflags::PF);
        return Ok(());
    }
    let index = if REVERSE { value.ilog2() } else { value.trailing_zeros() };
    core.set_reg(op.dst, T::new(u64::from(index)));
    // Only ZF is defined; Zen has the parity of the index as well.
    core.flags.set(if index.count_ones().is_multiple_of(2) { rflags::PF } else { 0 });
    Ok(())
}

fn scan_forward<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    scan::<false, S, T>(core, op)
}

fn scan_reverse<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    scan::<true, S, T>(core, op)
}

fn popcnt<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?.zext();
    core.set_reg(op.dst, T::new(u64::from(value.count_ones())));
    core.flags.set(if value == 0 { rflags::ZF } else { 0 });
    Ok(())
}

/// Sets the result of `lzcnt` or `tzcnt`: CF if there was no bit, ZF if the result is zero. OF stays.
#[inline(always)]
fn set_count<T: Int>(core: &mut Core, op: &Op, count: u32) {
    core.set_reg(op.dst, T::new(u64::from(count)));
    let cf = if count == T::BITS { rflags::CF } else { 0 };
    let zf = if count == 0 { rflags::ZF } else { 0 };
    let kept = if core.flags.of() { rflags::OF } else { 0 };
    core.flags.set(cf | zf | kept);
}

fn lzcnt<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?.zext();
    set_count::<T>(core, op, value.leading_zeros() - (64 - T::BITS));
    Ok(())
}

fn tzcnt<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?.zext();
    set_count::<T>(core, op, value.trailing_zeros().min(T::BITS));
    Ok(())
}

/// CRC-32C of each byte: the polynomial 0x1edc6f41, bits reversed.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32<S: Source, N: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<N>(core, op)?.zext();
    let mut crc = core.reg::<u32>(op.dst);
    for byte in &value.to_le_bytes()[..N::BYTES as usize] {
        crc = crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)];
    }
    // A 64-bit destination is cleared above, too.
    core.set_reg(op.dst, crc);
    Ok(())
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let bits = operand_bits(i);
    let register = i.op1_kind() == OpKind::Register;
    let run: Run = match (i.mnemonic(), register) {
        (Mnemonic::Bt, _) => return Some(lower_bit::<Keep>(i)),
        (Mnemonic::Bts, _) => return Some(lower_bit::<Set>(i)),
        (Mnemonic::Btr, _) => return Some(lower_bit::<Reset>(i)),
        (Mnemonic::Btc, _) => return Some(lower_bit::<Complement>(i)),
        (Mnemonic::Bsf, true) => sized_wide!(bits, scan_forward::<FromRegister>),
        (Mnemonic::Bsf, false) => sized_wide!(bits, scan_forward::<InMemory>),
        (Mnemonic::Bsr, true) => sized_wide!(bits, scan_reverse::<FromRegister>),
        (Mnemonic::Bsr, false) => sized_wide!(bits, scan_reverse::<InMemory>),
        (Mnemonic::Popcnt, true) => sized_wide!(bits, popcnt::<FromRegister>),
        (Mnemonic::Popcnt, false) => sized_wide!(bits, popcnt::<InMemory>),
        (Mnemonic::Lzcnt, true) => sized_wide!(bits, lzcnt::<FromRegister>),
        (Mnemonic::Lzcnt, false) => sized_wide!(bits, lzcnt::<InMemory>),
        (Mnemonic::Tzcnt, true) => sized_wide!(bits, tzcnt::<FromRegister>),
        (Mnemonic::Tzcnt, false) => sized_wide!(bits, tzcnt::<InMemory>),
        (Mnemonic::Crc32, true) => sized!(bits_of(i, 1), crc32::<FromRegister>),
        (Mnemonic::Crc32, false) => sized!(bits_of(i, 1), crc32::<InMemory>),
        _ => return None,
    };
    Some(with_operands(run, i))
}

#[cfg(test)]
#[path = "bits_test.rs"]
mod tests;
