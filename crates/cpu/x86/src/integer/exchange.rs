//! Exchanges: `xchg`, `xadd`, `cmpxchg`, `cmpxchg8b`, `cmpxchg16b`.

use iced_x86::{Instruction, Mnemonic};

use super::operand::{InMemory, InRegister, Locked, Target, operand_bits, sized, to_memory, with_operands};
use crate::core::Core;
use crate::int::Int;
use crate::mmu::{Access, Place};
use crate::op::{Op, Run, Step};
use posada_vcpu::x86::rflags;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

/// With memory always under a bus lock, prefix or not.
fn xchg<D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    let new = core.reg::<T>(op.src);
    let old = D::replace(core, op, |_| new)?;
    core.set_reg(op.src, old);
    Ok(())
}

fn xadd<D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    let b = core.reg::<T>(op.src);
    let sum = |a: T| T::new(a.zext().wrapping_add(b.zext()));
    let a = D::replace(core, op, sum)?;
    core.set_reg(op.src, a);
    if op.dst == op.src {
        core.set_reg(op.dst, sum(a));
    }
    core.flags.add(a, b, sum(a));
    Ok(())
}

/// A register destination that differs is not written at all, not even with its own value.
fn cmpxchg_register<T: Int>(core: &mut Core, op: &Op) -> Step {
    let (accumulator, old) = (core.reg::<T>(RAX), core.reg::<T>(op.dst));
    if accumulator == old {
        let new = core.reg::<T>(op.src);
        core.set_reg(op.dst, new);
    } else {
        core.set_reg(RAX, old);
    }
    core.flags.sub(accumulator, old, T::new(accumulator.zext().wrapping_sub(old.zext())));
    Ok(())
}

fn cmpxchg<D: Target, T: Int>(core: &mut Core, op: &Op) -> Step {
    let (accumulator, new) = (core.reg::<T>(RAX), core.reg::<T>(op.src));
    let old = D::replace(core, op, |old| if old == accumulator { new } else { old })?;
    if old != accumulator {
        core.set_reg(RAX, old);
    }
    core.flags.sub(accumulator, old, T::new(accumulator.zext().wrapping_sub(old.zext())));
    Ok(())
}

fn set_zf(core: &mut Core, equal: bool) {
    core.flags.replace(rflags::ZF, if equal { rflags::ZF } else { 0 });
}

fn cmpxchg8b(core: &mut Core, op: &Op) -> Step {
    let pair =
        |core: &Core, high, low| u64::from(core.reg::<u32>(high)) << 32 | u64::from(core.reg::<u32>(low));
    let (expected, new) = (pair(core, RDX, RAX), pair(core, RCX, RBX));
    let offset = op.address(core);
    let old = core.modify_locked(op.segment, offset, |old: u64| if old == expected { new } else { old })?;
    if old != expected {
        core.set_reg(RAX, old as u32);
        core.set_reg(RDX, (old >> 32) as u32);
    }
    set_zf(core, old == expected);
    Ok(())
}

fn cmpxchg16b(core: &mut Core, op: &Op) -> Step {
    let pair =
        |core: &Core, high, low| u128::from(core.reg::<u64>(high)) << 64 | u128::from(core.reg::<u64>(low));
    let (expected, new) = (pair(core, RDX, RAX), pair(core, RCX, RBX));
    let offset = op.address(core);
    let linear = core.linear(op.segment, offset, 16, true)?;
    if linear & 15 != 0 {
        return Err(core.gp(0));
    }
    let old = match core.place(op.segment, linear, Access::Write)? {
        Place::Ram(at) => {
            let (old, code) = core.connections.ram.compare_exchange_16(at, expected, new);
            core.code_changed |= code;
            old
        }
        Place::Device(_) => {
            let [low, high] = core.read_128(op.segment, offset, true)?;
            let old = u128::from(high) << 64 | u128::from(low);
            if old == expected {
                core.write_128(op.segment, offset, [new as u64, (new >> 64) as u64], true)?;
            }
            old
        }
    };
    if old != expected {
        core.set_reg(RAX, old as u64);
        core.set_reg(RDX, (old >> 64) as u64);
    }
    set_zf(core, old == expected);
    Ok(())
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let (bits, memory, lock) = (operand_bits(i), to_memory(i), i.has_lock_prefix());
    let run: Run = match i.mnemonic() {
        Mnemonic::Xchg if memory => sized!(bits, xchg::<Locked>),
        Mnemonic::Xchg => sized!(bits, xchg::<InRegister>),
        Mnemonic::Xadd if lock => sized!(bits, xadd::<Locked>),
        Mnemonic::Xadd if memory => sized!(bits, xadd::<InMemory>),
        Mnemonic::Xadd => sized!(bits, xadd::<InRegister>),
        Mnemonic::Cmpxchg if lock => sized!(bits, cmpxchg::<Locked>),
        Mnemonic::Cmpxchg if memory => sized!(bits, cmpxchg::<InMemory>),
        Mnemonic::Cmpxchg => sized!(bits, cmpxchg_register),
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    };
    Some(with_operands(run, i))
}

#[cfg(test)]
#[path = "exchange_test.rs"]
mod tests;
