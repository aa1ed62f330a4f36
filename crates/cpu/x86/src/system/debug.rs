//! Debugging: breakpoint registers, single-stepping (AMD APM volume 2, chapter 13).

use crate::core::Core;

impl Core {
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

    /// Notes a port access for the breakpoints it hits.
    pub(super) fn note_port_access(&mut self, port: u16, size: u64) {
        let _ = (port, size);
    }
}
