//! Single lanes into and out of vectors: `pinsr*`, `pextr*`, `insertps`, `extractps` (AMD APM volume 4).

use iced_x86::{Instruction, Mnemonic as M};

use super::form::{Binary, Form, Mmx, Sse, SsePart, Vector, by_form, operands, rm};
use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step, is_memory, register_number};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        M::Pinsrw if i.op0_register().is_mm() => {
            Some(operands(i, rm(i), [insert::<Mmx, u16, 3>, insert_memory::<Mmx, u16, 3>]))
        }
        M::Pinsrb => Some(operands(i, rm(i), [insert::<Sse, u8, 15>, insert_memory::<Sse, u8, 15>])),
        M::Pinsrw => Some(operands(i, rm(i), [insert::<Sse, u16, 7>, insert_memory::<Sse, u16, 7>])),
        M::Pinsrd => Some(operands(i, rm(i), [insert::<Sse, u32, 3>, insert_memory::<Sse, u32, 3>])),
        M::Pinsrq => Some(operands(i, rm(i), [insert::<Sse, u64, 1>, insert_memory::<Sse, u64, 1>])),
        M::Insertps if is_memory(i.op_kind(rm(i))) => by_form::<SsePart<u32>, InsertFloat<true>>(i),
        M::Insertps => by_form::<Sse, InsertFloat<false>>(i),
        _ => extract(i),
    }
}

/// `v` with `value` as its lane `n`.
#[inline(always)]
fn with_lane<T: Int>(mut v: Vector, n: u64, value: T) -> Vector {
    let bit = n * u64::from(T::BITS);
    let half = &mut v[(bit / 64) as usize % 2];
    *half = *half & !(T::MASK << (bit % 64)) | value.zext() << (bit % 64);
    v
}

#[inline(always)]
fn lane<T: Int>(v: Vector, n: u64) -> T {
    let bit = n * u64::from(T::BITS);
    T::new(v[(bit / 64) as usize % 2] >> (bit % 64))
}

fn insert<F: Form, T: Int, const LAST: u64>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = T::new(core.reg::<u64>(op.aux));
    let a = F::get(core, op.src);
    F::set(core, op.dst, with_lane(a, op.imm & LAST, value));
    Ok(())
}

fn insert_memory<F: Form, T: Int, const LAST: u64>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = core.read_op::<T>(op)?;
    let a = F::get(core, op.src);
    F::set(core, op.dst, with_lane(a, op.imm & LAST, value));
    Ok(())
}

/// `insertps`: a lane of the second source (its only one, in memory) into a lane of the first, then zeros.
struct InsertFloat<const MEMORY: bool>;

impl<const MEMORY: bool> Binary for InsertFloat<MEMORY> {
    #[inline(always)]
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector {
        let from = if MEMORY { 0 } else { u64::from(imm >> 6) };
        let mut result = with_lane(a, u64::from(imm >> 4 & 3), lane::<u32>(b, from));
        for n in (0..4).filter(|n| imm >> n & 1 != 0) {
            result = with_lane(result, n, 0_u32);
        }
        result
    }
}

fn extract(i: &Instruction) -> Option<Op> {
    let run: [Run; 2] = match i.mnemonic() {
        M::Pextrw if i.op1_register().is_mm() => [take::<Mmx, u16, 3>, put::<u16, 3>],
        M::Pextrb => [take::<Sse, u8, 15>, put::<u8, 15>],
        M::Pextrw => [take::<Sse, u16, 7>, put::<u16, 7>],
        M::Pextrd | M::Extractps => [take::<Sse, u32, 3>, put::<u32, 3>],
        M::Pextrq => [take::<Sse, u64, 1>, put::<u64, 1>],
        _ => return None,
    };
    let memory = is_memory(i.op0_kind());
    let mut op = Op::new(run[usize::from(memory)], i);
    if !memory {
        op.dst = register_number(i.op0_register());
    }
    op.src = register_number(i.op1_register());
    op.imm = u64::from(i.immediate8());
    Some(op)
}

/// To a general-purpose register, zero-extended to its full size.
fn take<F: Form, T: Int, const LAST: u64>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = F::take(core, op.src);
    core.set_reg(op.dst, lane::<T>(value, op.imm & LAST).zext());
    Ok(())
}

fn put<T: Int, const LAST: u64>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.xmm(op.src);
    core.write_op(op, lane::<T>(value, op.imm & LAST))
}
