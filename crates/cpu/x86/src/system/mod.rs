//! System instructions, and what comes between instructions: exceptions, interrupts, debugging (AMD APM volume
//! 2, and volume 3, chapter 4).

use iced_x86::Instruction;

use crate::core::Core;
use crate::op::{Mode, Op};

/// The operation that carries out `instruction`, if it is a system instruction.
pub(crate) fn lower(instruction: &Instruction, mode: Mode) -> Option<Op> {
    let _ = (instruction, mode);
    None
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

    /// Whether the next instruction must be carried out alone: single-stepping, breakpoints, a shadow.
    pub(crate) fn needs_stepping(&self) -> bool {
        self.activity.sti_shadow || self.activity.mov_ss_shadow
    }

    /// Whether an instruction breakpoint is hit at the instruction pointer; delivers its fault.
    pub(crate) fn instruction_breakpoint(&mut self) -> bool {
        false
    }

    /// Debug traps after an instruction that was carried out alone; `stepping`: TF was set before it.
    pub(crate) fn end_of_instruction(&mut self, stepping: bool) {
        let _ = stepping;
    }

    /// Notes a data access for the breakpoints it hits.
    pub(crate) fn note_data_access(&mut self, linear: u64, size: u64, write: bool) {
        let _ = (linear, size, write);
    }
}
