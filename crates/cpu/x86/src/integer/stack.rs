//! The stack: `push`, `pop`, `pusha`, `popa`, `pushf`, `popf`, `enter`, `leave`.

use iced_x86::{Instruction, Mnemonic, OpKind};
use posada_vcpu::x86::rflags;

use super::flat;
use super::operand::{FromRegister, Immediate, InMemory, Source, sized_wide, to_memory, with_operands};
use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::mmu::Access;
use crate::op::{Mode, Op, Run, Step};

const RSP: u8 = 4;
const RBP: u8 = 5;

#[inline(never)]
fn push<S: Source, T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = S::read::<T>(core, op)?;
    core.push(value)
}

fn push_flat(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<u64>(op.src);
    if flat::push(core, value).is_none() {
        return push::<FromRegister, u64>(core, op);
    }
    Ok(())
}

/// A segment register's selector, zero-extended.
fn push_selector<T: Int>(core: &mut Core, op: &Op) -> Step {
    let selector = core.segments[usize::from(op.src) % 6].selector;
    core.push(T::new(u64::from(selector)))
}

fn pop_flat(core: &mut Core, op: &Op) -> Step {
    let pointer = core.registers[usize::from(RSP)];
    let Some(value) = flat::load_at::<u64>(core, pointer) else { return pop::<u64>(core, op) };
    core.registers[usize::from(RSP)] = pointer.wrapping_add(8);
    core.set_reg(op.dst, value);
    Ok(())
}

#[inline(never)]
fn pop<T: Int>(core: &mut Core, op: &Op) -> Step {
    // `pop rsp` ends with what was popped, not with what popping leaves.
    let value = core.pop::<T>()?;
    core.set_reg(op.dst, value);
    Ok(())
}

/// An address that depends on the stack pointer means the stack pointer after the pop.
fn pop_memory<T: Int>(core: &mut Core, op: &Op) -> Step {
    let before = core.registers[usize::from(RSP)];
    let value = core.pop::<T>()?;
    let result = core.write_op(op, value);
    if result.is_err() {
        core.registers[usize::from(RSP)] = before;
    }
    result
}

/// A place in the stack, `depth` bytes below its top.
fn below(core: &Core, depth: u64) -> u64 {
    let mask = u64::MAX >> (64 - u32::from(core.mode.stack_bits));
    core.stack_pointer().wrapping_sub(depth) & mask
}

fn pusha<T: Int>(core: &mut Core, _: &Op) -> Step {
    for number in 0..8 {
        let at = below(core, (u64::from(number) + 1) * T::BYTES);
        let value = core.reg::<T>(number);
        core.write(segment::SS, at, value)?;
    }
    core.set_stack_pointer(below(core, 8 * T::BYTES));
    Ok(())
}

/// A fault in the middle leaves the registers that were popped before it, as on the processor: popped again they
/// are the same.
fn popa<T: Int>(core: &mut Core, _: &Op) -> Step {
    for number in (0..8).rev() {
        let at = below(core, (7 - u64::from(number)).wrapping_mul(T::BYTES).wrapping_neg());
        let value = core.read::<T>(segment::SS, at)?;
        // The stack pointer is read like the others, and then not taken.
        if number != RSP {
            core.set_reg(number, value);
        }
    }
    core.set_stack_pointer(below(core, (8 * T::BYTES).wrapping_neg()));
    Ok(())
}

fn pushf<T: Int>(core: &mut Core, _: &Op) -> Step {
    if core.v8086() && core.iopl() < 3 {
        return Err(core.gp(0));
    }
    let value = core.rflags() & !(rflags::VM | rflags::RF);
    core.push(T::new(value))
}

fn popf<T: Int>(core: &mut Core, _: &Op) -> Step {
    let virtual_8086 = core.v8086();
    if virtual_8086 && core.iopl() < 3 {
        return Err(core.gp(0));
    }
    let popped = core.pop::<T>()?.zext();
    let mut system = rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if !core.protected() || core.cpl == 0 {
        system |= rflags::IF | rflags::IOPL;
    } else if core.cpl <= core.iopl() || virtual_8086 {
        system |= rflags::IF;
    }
    // A 16-bit operand reaches no higher flags.
    system &= T::MASK;
    core.flags.set(popped);
    let before = core.system_flags;
    core.set_system_flags((before & !system | popped & system) & !rflags::RF);
    let changed = before ^ core.system_flags;
    if changed & !(rflags::DF | rflags::NT | rflags::ID | rflags::IOPL) != 0 {
        return LEAVE;
    }
    Ok(())
}

/// `imm` bytes of locals, `aux` levels of enclosing frames.
fn enter<T: Int>(core: &mut Core, op: &Op) -> Step {
    let mask = u64::MAX >> (64 - u32::from(core.mode.stack_bits));
    let frame = below(core, T::BYTES);
    let base = core.reg::<T>(RBP);
    core.write(segment::SS, frame, base)?;
    let mut top = frame;
    if op.aux > 0 {
        let mut display = core.registers[usize::from(RBP)];
        for _ in 1..op.aux {
            display = display.wrapping_sub(T::BYTES) & mask;
            let enclosing = core.read::<T>(segment::SS, display)?;
            top = top.wrapping_sub(T::BYTES) & mask;
            core.write(segment::SS, top, enclosing)?;
        }
        top = top.wrapping_sub(T::BYTES) & mask;
        core.write(segment::SS, top, T::new(frame))?;
    }
    let end = top.wrapping_sub(op.imm) & mask;
    // The new top of the stack must be good for a push, or this faults already.
    let linear = core.linear(segment::SS, end, T::BYTES, true)?;
    core.check_alignment(segment::SS, linear, T::BYTES)?;
    core.probe(segment::SS, linear, T::BYTES, Access::Write)?;
    core.set_reg(RBP, T::new(frame));
    core.set_stack_pointer(end);
    Ok(())
}

fn leave<T: Int>(core: &mut Core, _: &Op) -> Step {
    let mask = u64::MAX >> (64 - u32::from(core.mode.stack_bits));
    let frame = core.registers[usize::from(RBP)] & mask;
    let base = core.read::<T>(segment::SS, frame)?;
    core.set_stack_pointer(frame.wrapping_add(T::BYTES));
    core.set_reg(RBP, base);
    Ok(())
}

fn lower_push(i: &Instruction, mode: Mode, bits: u32) -> Op {
    let register = i.op0_kind() == OpKind::Register;
    let run: Run = if register && i.op0_register().is_segment_register() {
        sized_wide!(bits, push_selector)
    } else if register && bits == 64 && mode.code_bits == 64 {
        push_flat
    } else if register {
        sized_wide!(bits, push::<FromRegister>)
    } else if to_memory(i) {
        sized_wide!(bits, push::<InMemory>)
    } else {
        sized_wide!(bits, push::<Immediate>)
    };
    let mut op = with_operands(run, i);
    op.src = op.dst;
    op
}

pub(super) fn lower(i: &Instruction, mode: Mode) -> Option<Op> {
    let bits = i.stack_pointer_increment().unsigned_abs() * 8;
    Some(match i.mnemonic() {
        Mnemonic::Push => lower_push(i, mode, bits),
        // A segment register is loaded with all that goes with it: somebody else's.
        Mnemonic::Pop if i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register() => {
            return None;
        }
        Mnemonic::Pop if to_memory(i) => with_operands(sized_wide!(bits, pop_memory), i),
        Mnemonic::Pop if bits == 64 && mode.code_bits == 64 => with_operands(pop_flat, i),
        Mnemonic::Pop => with_operands(sized_wide!(bits, pop), i),
        Mnemonic::Pusha => Op::new(pusha::<u16>, i),
        Mnemonic::Pushad => Op::new(pusha::<u32>, i),
        Mnemonic::Popa => Op::new(popa::<u16>, i),
        Mnemonic::Popad => Op::new(popa::<u32>, i),
        Mnemonic::Pushf => Op::new(pushf::<u16>, i),
        Mnemonic::Pushfd => Op::new(pushf::<u32>, i),
        Mnemonic::Pushfq => Op::new(pushf::<u64>, i),
        Mnemonic::Popf => Op::new(popf::<u16>, i),
        Mnemonic::Popfd => Op::new(popf::<u32>, i),
        Mnemonic::Popfq => Op::new(popf::<u64>, i),
        Mnemonic::Enter => {
            use iced_x86::Code;
            let run: Run = match i.code() {
                Code::Enterw_imm16_imm8 => enter::<u16>,
                Code::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            };
            let mut op = Op::new(run, i);
            op.imm = u64::from(i.immediate16());
            op.aux = i.immediate8_2nd() & 31;
            op
        }
        Mnemonic::Leave => {
            use iced_x86::Code;
            let run: Run = match i.code() {
                Code::Leavew => leave::<u16>,
                Code::Leaved => leave::<u32>,
                _ => leave::<u64>,
            };
            Op::new(run, i)
        }
        _ => return None,
    })
}

#[cfg(test)]
#[path = "stack_test.rs"]
mod tests;
