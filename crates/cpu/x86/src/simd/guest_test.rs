//! What the tests of this room share: guests with SSE switched on, and vectors from lanes.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use posada_vcpu::x86::cr4;

use super::form::Vector;
use crate::testing::{Guest, Outcome};

/// A 64-bit guest at CPL 3 with SSE and its exceptions on.
pub(super) fn guest(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    Guest::user().with(|state| state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT).code(code)
}

pub(super) trait Registers {
    /// An XMM register to begin with; the upper half of its YMM register is all ones.
    fn xmm(self, number: usize, value: Vector) -> Self;
    fn mxcsr(self, value: u32) -> Self;
}

impl Registers for Guest {
    fn xmm(self, number: usize, value: Vector) -> Self {
        self.with(|state| state.ymm[number] = [value[0], value[1], u64::MAX, u64::MAX])
    }

    fn mxcsr(self, value: u32) -> Self {
        self.with(|state| state.mxcsr = value)
    }
}

impl Outcome {
    /// An XMM register, whose YMM register must not have lost its upper half.
    pub(super) fn xmm(&self, number: usize) -> Vector {
        let [low, high, upper @ ..] = self.state.ymm[number];
        assert_eq!(upper, [u64::MAX; 2], "SSE instructions leave the upper half of ymm{number}");
        [low, high]
    }
}

/// Four numbers in a vector.
pub(super) fn singles(lanes: [f32; 4]) -> Vector {
    bytemuck::cast(lanes.map(f32::to_bits))
}

/// Two numbers in a vector.
pub(super) fn doubles(lanes: [f64; 2]) -> Vector {
    lanes.map(f64::to_bits)
}

/// Sixteen bytes in a vector.
pub(super) fn bytes(lanes: &[u8; 16]) -> Vector {
    bytemuck::cast(*lanes)
}

/// Eight words in a vector.
pub(super) fn words(lanes: [u16; 8]) -> Vector {
    bytemuck::cast(lanes)
}
