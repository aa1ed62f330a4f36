//! How floating-point instructions run: operands as in `form`, `mxcsr` beside them, and its exceptions at the
//! end (AMD APM volume 1, section 4.10).

use iced_x86::Instruction;
use posada_vcpu::x86::cr4;

use super::form::{Form, Sse, SsePart, Vector, operands, rm};
use super::soft::{Env, Format, flag};
use crate::core::Core;
use crate::exception::vector;
use crate::int::Int;
use crate::op::{Op, Step, Stop};

/// A format, with the host's arithmetic for it.
pub(super) trait Real: Format {
    /// The integer that has its bits.
    type Bits: Int + bytemuck::Pod;
    /// In a [`Vector`].
    const LANES: usize = 128 / Self::WIDTH as usize;
    fn from_bits(bits: Self::Bits) -> Self;
    fn to_bits(self) -> Self::Bits;

    #[inline(always)]
    fn from_u64(bits: u64) -> Self {
        Self::from_bits(Self::Bits::new(bits))
    }
    #[inline(always)]
    fn to_u64(self) -> u64 {
        self.to_bits().zext()
    }
}

impl Real for f32 {
    type Bits = u32;
    #[inline(always)]
    fn from_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }
    #[inline(always)]
    fn to_bits(self) -> u32 {
        self.to_bits()
    }
}

impl Real for f64 {
    type Bits = u64;
    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.to_bits()
    }
}

/// Lane `n` of a vector, as bits.
#[inline(always)]
pub(super) fn lane<F: Real>(v: Vector, n: usize) -> u64 {
    let bit = n * F::WIDTH as usize;
    v[bit / 64 % 2] >> (bit % 64) & F::Bits::MASK
}

/// The vector whose lanes `lane` gives.
#[inline(always)]
pub(super) fn from_lanes<F: Real>(mut lane: impl FnMut(usize) -> u64) -> Vector {
    let mut result = [0; 2];
    for n in 0..F::LANES {
        let bit = n * F::WIDTH as usize;
        result[bit / 64 % 2] |= lane(n) << (bit % 64);
    }
    result
}

/// `v` with another first lane.
#[inline(always)]
pub(super) fn with_first<F: Real>(v: Vector, first: u64) -> Vector {
    [v[0] & !F::Bits::MASK | first, v[1]]
}

/// An operation as [`super::form::Binary`], on numbers.
pub(super) trait FloatBinary: 'static {
    fn apply(env: &mut Env, a: Vector, b: Vector, imm: u8) -> Vector;
}

impl Core {
    /// Ends the computation of an instruction: its flags go to `mxcsr`, and if one of them is unmasked, the
    /// instruction ends with an exception and writes nothing.
    #[inline(always)]
    pub(super) fn settle(&mut self, mut env: Env) -> Step {
        if env.flags() == 0 {
            return Ok(());
        }
        env.end_step();
        self.settle_raised(env.flags())
    }

    #[inline(never)]
    fn settle_raised(&mut self, raised: u32) -> Step {
        self.mxcsr |= raised;
        if raised & !(self.mxcsr >> flag::MASK_SHIFT) == 0 { Ok(()) } else { Err(self.float_exception()) }
    }

    /// `#XM`, or `#UD` where the system does not expect it.
    #[cold]
    pub(super) fn float_exception(&mut self) -> Stop {
        if self.cr4 & cr4::OSXMMEXCPT == 0 { self.ud() } else { self.raise(vector::XM, None) }
    }
}

fn registers<S: Form, B: FloatBinary>(core: &mut Core, op: &Op) -> Step {
    S::ready(core)?;
    let (a, b) = (S::get(core, op.src), S::get(core, op.aux));
    finish::<S, B>(core, op, a, b)
}

fn memory<S: Form, B: FloatBinary>(core: &mut Core, op: &Op) -> Step {
    S::ready(core)?;
    let b = S::load(core, op)?;
    let a = S::get(core, op.src);
    finish::<S, B>(core, op, a, b)
}

#[inline(always)]
fn finish<S: Form, B: FloatBinary>(core: &mut Core, op: &Op, a: Vector, b: Vector) -> Step {
    let mut env = Env::new(core.mxcsr);
    let result = B::apply(&mut env, a, b, op.imm as u8);
    core.settle(env)?;
    S::set(core, op.dst, result);
    Ok(())
}

/// `B` on whole registers of a form.
pub(super) fn by_form<S: Form, B: FloatBinary>(i: &Instruction) -> Option<Op> {
    Some(operands(i, rm(i), [registers::<S, B>, memory::<S, B>]))
}

/// `B` on whole XMM registers.
pub(super) fn packed<B: FloatBinary>(i: &Instruction) -> Option<Op> {
    by_form::<Sse, B>(i)
}

/// `B` on XMM registers, with one lane in memory.
pub(super) fn part<T: Int, B: FloatBinary>(i: &Instruction) -> Option<Op> {
    by_form::<SsePart<T>, B>(i)
}
