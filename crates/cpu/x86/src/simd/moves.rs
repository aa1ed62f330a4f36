//! Moves between registers and memory (AMD APM volumes 4 and 5).

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::form::{Binary, Form, Mmx, Sse, SsePart, SseUnaligned, Vector, by_form, has_immediate, sse};
use super::table::table;
use crate::core::Core;
use crate::int::Int;
use crate::mmu::Access;
use crate::op::{Op, Run, Step, is_memory, register_number};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    if is_memory(i.op0_kind()) {
        return store(i);
    }
    whole(i)
        .or_else(|| partial(i))
        .or_else(|| to_vector(i))
        .or_else(|| to_general(i))
        .or_else(|| between_files(i))
}

/// Moves of a whole register.
fn whole(i: &Instruction) -> Option<Op> {
    table! { i;
        Movaps => sse(|_, b| b);
        Movapd => sse(|_, b| b);
        Movdqa => sse(|_, b| b);
        Movntdqa => sse(|_, b| b);
        Movups => unaligned(|_, b| b);
        Movupd => unaligned(|_, b| b);
        Movdqu => unaligned(|_, b| b);
        Lddqu => unaligned(|_, b| b);
        Movshdup => sse(|_, b| [b[0] >> 32 | b[0] & !0xffff_ffff, b[1] >> 32 | b[1] & !0xffff_ffff]);
        Movsldup => sse(|_, b| [b[0] << 32 | b[0] & 0xffff_ffff, b[1] << 32 | b[1] & 0xffff_ffff]);
    }
}

fn unaligned<B: Binary>(i: &Instruction) -> Option<Op> {
    by_form::<SseUnaligned, B>(i)
}

/// Moves of a part of a register, the rest of which stays or becomes zero.
fn partial(i: &Instruction) -> Option<Op> {
    const LOW: u64 = 0xffff_ffff;
    // From memory the scalar moves clear the rest of the register; between registers they leave it.
    if i.op1_kind() == OpKind::Register {
        table! { i;
            Movss => sse(|a, b| [b[0] & LOW | a[0] & !LOW, a[1]]);
            Movsd => sse(|a, b| [b[0], a[1]]);
            Movhlps => sse(|a, b| [b[1], a[1]]);
            Movlhps => sse(|a, b| [a[0], b[0]]);
            Movddup => sse(|_, b| [b[0], b[0]]);
        }
    } else {
        table! { i;
            Movss => part::<u32>(|_, b| b);
            Movsd => part::<u64>(|_, b| b);
            Movlps => part::<u64>(|a, b| [b[0], a[1]]);
            Movlpd => part::<u64>(|a, b| [b[0], a[1]]);
            Movhps => part::<u64>(|a, b| [a[0], b[0]]);
            Movhpd => part::<u64>(|a, b| [a[0], b[0]]);
            Movddup => part::<u64>(|_, b| [b[0], b[0]]);
        }
    }
}

fn part<T: Int, B: Binary>(i: &Instruction) -> Option<Op> {
    // `movsd` is a string instruction, too.
    if i.op0_register().is_xmm() { by_form::<SsePart<T>, B>(i) } else { None }
}

/// Takes the low half, clears the high one.
struct Low;
impl Binary for Low {
    #[inline(always)]
    fn apply(_: Vector, b: Vector, _: u8) -> Vector {
        [b[0], 0]
    }
}

/// `movd` and `movq` to vector registers.
fn to_vector(i: &Instruction) -> Option<Op> {
    let wide = match i.mnemonic() {
        M::Movd => false,
        M::Movq => true,
        _ => return None,
    };
    let mmx = i.op0_register().is_mm();
    if !mmx && !i.op0_register().is_xmm() {
        return None;
    }
    if i.op1_kind() == OpKind::Register && i.op1_register().is_gpr() {
        let run: Run = match (mmx, wide) {
            (false, false) => from_general::<Sse, u32>,
            (false, true) => from_general::<Sse, u64>,
            (true, false) => from_general::<Mmx, u32>,
            (true, true) => from_general::<Mmx, u64>,
        };
        return Some(register_operands(i, run));
    }
    match (mmx, wide) {
        (false, false) => by_form::<SsePart<u32>, Low>(i),
        (false, true) => by_form::<SsePart<u64>, Low>(i),
        (true, false) => by_form::<Mmx<u32>, Low>(i),
        (true, true) => by_form::<Mmx, Low>(i),
    }
}

fn register_operands(i: &Instruction, run: Run) -> Op {
    let mut op = Op::new(run, i);
    op.dst = register_number(i.op0_register());
    op.src = register_number(i.op1_register());
    op.imm = if has_immediate(i) { u64::from(i.immediate8()) } else { 0 };
    op
}

fn from_general<F: Form, T: Int>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = core.reg::<T>(op.src);
    F::set(core, op.dst, [value.zext(), 0]);
    Ok(())
}

/// What a general-purpose register gets from a vector: `movd`, `movq`, and the masks of signs.
fn to_general(i: &Instruction) -> Option<Op> {
    if i.op1_kind() != OpKind::Register {
        return None;
    }
    let mmx = i.op1_register().is_mm();
    let run: Run = match i.mnemonic() {
        M::Movd if mmx => take::<Mmx, u32>,
        M::Movq if mmx => take::<Mmx, u64>,
        M::Movd => take::<Sse, u32>,
        M::Movq => take::<Sse, u64>,
        M::Pmovmskb if mmx => take_mask::<Mmx, 8>,
        M::Pmovmskb => take_mask::<Sse, 8>,
        M::Movmskps => take_mask::<Sse, 32>,
        M::Movmskpd => take_mask::<Sse, 64>,
        _ => return None,
    };
    Some(register_operands(i, run))
}

fn take<F: Form, T: Int>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = F::take(core, op.src);
    core.set_reg(op.dst, T::new(value[0]));
    Ok(())
}

fn take_mask<F: Form, const BITS: u32>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = F::take(core, op.src);
    core.set_reg(op.dst, signs::<BITS>(value[0]) | signs::<BITS>(value[1]) << (64 / BITS));
    Ok(())
}

/// The top bits of the lanes of one half, gathered.
#[inline(always)]
fn signs<const BITS: u32>(half: u64) -> u32 {
    match BITS {
        // Each sign is moved to its place in the top byte by one of the factor's bits; none collide.
        8 => ((half & 0x8080_8080_8080_8080).wrapping_mul(0x0002_0408_1020_4081) >> 56) as u32,
        32 => (half >> 31 & 1 | half >> 62 & 2) as u32,
        _ => (half >> 63) as u32,
    }
}

fn store(i: &Instruction) -> Option<Op> {
    let source = i.op1_register();
    let mmx = source.is_mm();
    let run: Run = match i.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq => store_whole::<true>,
        M::Movups | M::Movupd | M::Movdqu => store_whole::<false>,
        M::Movd if mmx => store_part::<Mmx, u32, 0>,
        M::Movss | M::Movd => store_part::<Sse, u32, 0>,
        M::Movq | M::Movntq if mmx => store_part::<Mmx, u64, 0>,
        M::Movsd | M::Movq | M::Movlps | M::Movlpd if source.is_xmm() => store_part::<Sse, u64, 0>,
        M::Movhps | M::Movhpd => store_part::<Sse, u64, 1>,
        M::Movnti if source.size() == 4 => store_general::<u32>,
        M::Movnti => store_general::<u64>,
        M::Maskmovq => return Some(masked(i, store_masked::<Mmx, 8>)),
        M::Maskmovdqu => return Some(masked(i, store_masked::<Sse, 16>)),
        M::Stmxcsr => store_mxcsr,
        M::Ldmxcsr => load_mxcsr,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    if i.op_count() > 1 {
        op.src = register_number(source);
    }
    Some(op)
}

fn store_whole<const ALIGNED: bool>(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let offset = op.address(core);
    let value = core.xmm(op.src);
    core.write_128(op.segment, offset, value, ALIGNED)
}

fn store_part<F: Form, T: Int, const HALF: usize>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value = F::get(core, op.src);
    core.write_op(op, T::new(value[HALF]))?;
    F::take(core, op.src);
    Ok(())
}

/// `movnti` needs no SSE state.
fn store_general<T: Int>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<T>(op.src);
    core.write_op(op, value)
}

fn masked(i: &Instruction, run: Run) -> Op {
    let mut op = Op::new(run, i);
    op.src = register_number(i.op1_register());
    op.aux = register_number(i.op2_register());
    op
}

/// Stores the bytes whose mask bytes are negative, at `rdi`. As processors do it, all of the operand must be
/// writable, whatever the mask, and MMX registers are in use even when it is not.
fn store_masked<F: Form, const BYTES: u64>(core: &mut Core, op: &Op) -> Step {
    F::ready(core)?;
    let value: [u8; 16] = bytemuck::cast(F::take(core, op.src));
    let mask: [u8; 16] = bytemuck::cast(F::get(core, op.aux));
    let offset = op.address(core);
    let linear = core.linear(op.segment, offset, BYTES, true)?;
    // Sixteen bytes are stored as two times eight.
    core.check_alignment(op.segment, linear, BYTES.min(8))?;
    core.probe(op.segment, linear, BYTES, Access::Write)?;
    for n in (0..BYTES).filter(|n| mask[*n as usize] & 0x80 != 0) {
        core.write(op.segment, offset.wrapping_add(n), value[n as usize])?;
    }
    Ok(())
}

fn store_mxcsr(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.mxcsr;
    core.write_op(op, value)
}

fn load_mxcsr(core: &mut Core, op: &Op) -> Step {
    core.sse_ready()?;
    let value = core.read_op::<u32>(op)?;
    if value & !super::MXCSR_MASK != 0 {
        return Err(core.gp(0));
    }
    core.mxcsr = value;
    Ok(())
}

/// Moves between MMX and XMM registers, and the end of MMX code.
fn between_files(i: &Instruction) -> Option<Op> {
    let run: Run = match i.mnemonic() {
        M::Movq2dq => |core, op| {
            core.sse_ready()?;
            core.mmx_ready()?;
            let value = Mmx::<u64>::take(core, op.src);
            core.set_xmm(op.dst, value);
            Ok(())
        },
        M::Movdq2q => |core, op| {
            core.sse_ready()?;
            core.mmx_ready()?;
            let value = core.xmm(op.src);
            core.set_mm(op.dst, value[0]);
            Ok(())
        },
        M::Emms => |core, _| {
            core.mmx_ready()?;
            core.enter_mmx();
            core.x87.occupied = 0;
            Ok(())
        },
        _ => return None,
    };
    Some(register_operands(i, run))
}

#[cfg(test)]
#[path = "moves_test.rs"]
mod tests;
