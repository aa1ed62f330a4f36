//! The forms that media instructions come in: which registers, where memory operands may lie, what of the
//! destination is written. The lane operations know nothing of it: they work on 128-bit pieces.

use std::marker::PhantomData;

use iced_x86::{Instruction, OpKind};
use posada_vcpu::x86::{X87Register, cr0, cr4};

use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step, Stop, is_memory, register_number};

/// A 128-bit piece of a register or of memory, low half first. An MMX register is one with a zero high half.
pub(super) type Vector = [u64; 2];

/// What operand registers hold, and where memory operands may lie.
pub(super) trait Form: 'static {
    /// Whether the instruction may be carried out now: `#UD`, `#NM`, or a waiting x87 exception.
    fn ready(core: &mut Core) -> Step;
    fn get(core: &Core, number: u8) -> Vector;
    /// As [`get`](Self::get), at the end of an instruction that writes no register of this form.
    fn take(core: &mut Core, number: u8) -> Vector {
        Self::get(core, number)
    }
    /// Ends the instruction: writes the destination, and all that goes with it.
    fn set(core: &mut Core, number: u8, value: Vector);
    /// Reads the memory operand.
    fn load(core: &mut Core, op: &Op) -> Step<Vector>;
}

/// XMM registers; memory operands are aligned.
pub(super) struct Sse;
/// XMM registers; the memory operand is one of `T`, with no need of alignment, zero-extended.
pub(super) struct SsePart<T>(PhantomData<T>);
/// XMM registers; memory operands need no alignment.
pub(super) struct SseUnaligned;
/// MMX registers; the memory operand is one of `T`, zero-extended.
pub(super) struct Mmx<T = u64>(PhantomData<T>);

impl Core {
    /// The exception that every SSE instruction raises while [`Core::sse_off`] (AMD APM volume 2, section 11.2).
    #[cold]
    #[inline(never)]
    pub(super) fn sse_unavailable(&mut self) -> Stop {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 { self.ud() } else { self.nm() }
    }

    #[inline(always)]
    pub(super) fn sse_ready(&mut self) -> Step {
        if self.sse_off { Err(self.sse_unavailable()) } else { Ok(()) }
    }

    /// Whether an MMX instruction may be carried out now.
    #[inline(always)]
    pub(super) fn mmx_ready(&mut self) -> Step {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.mmx_unavailable());
        }
        self.x87_pending()
    }

    #[cold]
    #[inline(never)]
    fn mmx_unavailable(&mut self) -> Stop {
        if self.cr0 & cr0::EM != 0 { self.ud() } else { self.nm() }
    }

    /// What every MMX instruction but `emms` does to the x87 unit: the top of stack is 0, no register is empty
    /// (AMD APM volume 1, section 5.12).
    #[inline(always)]
    pub(super) fn enter_mmx(&mut self) {
        self.x87.status &= !0x3800;
        self.x87.occupied = 0xff;
    }

    #[inline(always)]
    pub(super) fn mm(&self, number: u8) -> u64 {
        self.x87.registers[usize::from(number & 7)].significand
    }

    /// Writes an MMX register; sign and exponent of the x87 register become ones.
    #[inline(always)]
    pub(super) fn set_mm(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        self.x87.registers[usize::from(number & 7)] =
            X87Register { significand: value, sign_exponent: 0xffff };
    }

    #[inline(always)]
    pub(super) fn xmm(&self, number: u8) -> Vector {
        let register = &self.ymm[usize::from(number & 15)];
        [register[0], register[1]]
    }

    /// Writes an XMM register; the upper half of the YMM register stays.
    #[inline(always)]
    pub(super) fn set_xmm(&mut self, number: u8, value: Vector) {
        let register = &mut self.ymm[usize::from(number & 15)];
        (register[0], register[1]) = (value[0], value[1]);
    }
}

macro_rules! sse_form {
    ($form:ty $(, $bound:ident)?; |$core:ident, $op:ident| $load:expr) => {
        impl $(<$bound: Int>)? Form for $form {
            #[inline(always)]
            fn ready(core: &mut Core) -> Step {
                core.sse_ready()
            }
            #[inline(always)]
            fn get(core: &Core, number: u8) -> Vector {
                core.xmm(number)
            }
            #[inline(always)]
            fn set(core: &mut Core, number: u8, value: Vector) {
                core.set_xmm(number, value);
            }
            #[inline(always)]
            fn load($core: &mut Core, $op: &Op) -> Step<Vector> {
                $load
            }
        }
    };
}

sse_form!(Sse; |core, op| {
    let offset = op.address(core);
    core.read_128(op.segment, offset, true)
});
sse_form!(SseUnaligned; |core, op| {
    let offset = op.address(core);
    core.read_128(op.segment, offset, false)
});
sse_form!(SsePart<T>, T; |core, op| Ok([core.read_op::<T>(op)?.zext(), 0]));

impl<T: Int> Form for Mmx<T> {
    #[inline(always)]
    fn ready(core: &mut Core) -> Step {
        core.mmx_ready()
    }
    #[inline(always)]
    fn get(core: &Core, number: u8) -> Vector {
        [core.mm(number), 0]
    }
    #[inline(always)]
    fn take(core: &mut Core, number: u8) -> Vector {
        core.enter_mmx();
        Self::get(core, number)
    }
    #[inline(always)]
    fn set(core: &mut Core, number: u8, value: Vector) {
        core.set_mm(number, value[0]);
    }
    #[inline(always)]
    fn load(core: &mut Core, op: &Op) -> Step<Vector> {
        Ok([core.read_op::<T>(op)?.zext(), 0])
    }
}

/// An operation on one piece of each source. What has one source takes the second; what has no immediate
/// operand does not look at it.
pub(super) trait Binary: 'static {
    fn apply(a: Vector, b: Vector, imm: u8) -> Vector;
}

fn registers<S: Form, B: Binary>(core: &mut Core, op: &Op) -> Step {
    S::ready(core)?;
    let (a, b) = (S::get(core, op.src), S::get(core, op.aux));
    S::set(core, op.dst, B::apply(a, b, op.imm as u8));
    Ok(())
}

fn memory<S: Form, B: Binary>(core: &mut Core, op: &Op) -> Step {
    S::ready(core)?;
    let b = S::load(core, op)?;
    let a = S::get(core, op.src);
    S::set(core, op.dst, B::apply(a, b, op.imm as u8));
    Ok(())
}

/// The operation of an instruction whose operands are a destination, perhaps a first source (else the
/// destination is), then at place `rm` a register or memory, and perhaps an immediate byte. `run` is by
/// register, by memory. Handlers find them in `dst`, `src`, `aux` and `imm`.
pub(super) fn operands(i: &Instruction, rm: u32, run: [Run; 2]) -> Op {
    let memory = is_memory(i.op_kind(rm));
    let mut op = Op::new(run[usize::from(memory)], i);
    op.dst = register_number(i.op0_register());
    op.src = register_number(i.op_register(rm.saturating_sub(1)));
    if !memory {
        op.aux = register_number(i.op_register(rm));
    }
    op.imm = u64::from(has_immediate(i)) * u64::from(i.immediate8());
    op
}

/// Whether the last operand is an immediate byte.
pub(super) fn has_immediate(i: &Instruction) -> bool {
    i.op_kinds().last() == Some(OpKind::Immediate8)
}

/// The place of the last operand that is no immediate byte.
pub(super) fn rm(i: &Instruction) -> u32 {
    i.op_count() - 1 - u32::from(has_immediate(i))
}

/// `B` on whole registers of a form.
pub(super) fn by_form<S: Form, B: Binary>(i: &Instruction) -> Option<Op> {
    Some(operands(i, rm(i), [registers::<S, B>, memory::<S, B>]))
}

/// `B` on XMM registers.
pub(super) fn sse<B: Binary>(i: &Instruction) -> Option<Op> {
    by_form::<Sse, B>(i)
}

/// `M` on MMX registers, or `B` on XMM registers.
pub(super) fn mmx_or_sse<M: Binary, B: Binary>(i: &Instruction) -> Option<Op> {
    if i.op0_register().is_mm() { by_form::<Mmx, M>(i) } else { by_form::<Sse, B>(i) }
}

#[cfg(test)]
#[path = "form_test.rs"]
mod tests;
