//! System instructions, and what comes between instructions: exceptions, interrupts, debugging (AMD APM volume
//! 2, and volume 3, chapter 4).

mod control;
mod cpuid;
mod debug;
mod io;
mod msr;
mod random;
mod tlb;

use iced_x86::Instruction;

use crate::core::Core;
use crate::op::{Mode, Op};

/// The operation that carries out `instruction`, if it is a system instruction.
pub(crate) fn lower(instruction: &Instruction, mode: Mode) -> Option<Op> {
    let _ = mode;
    control::lower(instruction)
        .or_else(|| io::lower(instruction))
        .or_else(|| msr::lower(instruction))
        .or_else(|| cpuid::lower(instruction))
        .or_else(|| random::lower(instruction))
        .or_else(|| tlb::lower(instruction))
}

/// Whether an instruction that goes on to the next one ends its block all the same, because it changes how the
/// next is decoded, or whether an interrupt comes before it.
pub(crate) fn ends_block(instruction: &Instruction) -> bool {
    let _ = instruction;
    false
}

impl Core {
    /// INIT: back to the reset state, but for what INIT keeps.
    pub(crate) fn init(&mut self) {}

    /// A start-up message: begins at `page << 12` in real mode, if waiting for it.
    pub(crate) fn start_up(&mut self, page: u8) {
        let _ = page;
    }

    /// Delivers the pending non-maskable interrupt.
    pub(crate) fn deliver_nmi(&mut self) {}

    /// Delivers a maskable interrupt from outside.
    pub(crate) fn deliver_external(&mut self, vector: u8) {
        let _ = vector;
    }

    /// Delivers [`Core::fault`], with double and triple faults.
    pub(crate) fn deliver_fault(&mut self) {
        self.activity.running = posada_vcpu::x86::Running::Shutdown;
        self.slow = true;
    }
}
