//! The register stack, and how instructions end: with a result, or with an exception (AMD APM volume 1,
//! sections 6.2 and 6.8).

use posada_vcpu::x86::{X87Register, cr0};

use super::float::{Class, Control, INDEFINITE, Outcome, class, flag};
use crate::core::Core;
use crate::exception::vector;
use crate::op::{Op, Step};

impl Core {
    /// What every x87 instruction begins with that does not wait for pending exceptions.
    pub(super) fn x87_available(&mut self) -> Step {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.nm());
        }
        Ok(())
    }

    /// What every waiting x87 instruction begins with: an exception that an earlier one left is delivered now.
    pub(super) fn x87_begin(&mut self) -> Step {
        self.x87_available()?;
        self.x87_pending()
    }

    /// Delivers an unmasked x87 exception that is pending: `#MF`. (Without CR0.NE a PC routes it outside the
    /// processor; no guest of a 64-bit machine does that, and `#MF` is delivered all the same.)
    pub(crate) fn x87_pending(&mut self) -> Step {
        if self.x87.status & flag::ES != 0 {
            return Err(self.raise(vector::MF, None));
        }
        Ok(())
    }

    /// Notes where an instruction that may fault later was; `data` is its memory operand.
    pub(super) fn x87_note(&mut self, op: &Op, data: Option<(u8, u64)>) {
        self.x87.instruction = self.rip().wrapping_sub(u64::from(op.len));
        self.x87.instruction_selector = self.segments[1].selector;
        self.x87.opcode = op.imm as u16;
        if let Some((segment, offset)) = data {
            self.x87.data = offset;
            self.x87.data_selector = self.segments[usize::from(segment)].selector;
        }
    }

    pub(super) fn x87_control(&self) -> Control {
        Control::of(self.x87.control)
    }

    pub(super) fn x87_top(&self) -> u8 {
        (self.x87.status >> 11 & 7) as u8
    }

    pub(super) fn x87_set_top(&mut self, top: u8) {
        self.x87.status = self.x87.status & !0x3800 | u16::from(top & 7) << 11;
    }

    fn physical(&self, i: u8) -> usize {
        usize::from(self.x87_top().wrapping_add(i) & 7)
    }

    pub(super) fn x87_empty(&self, i: u8) -> bool {
        self.x87.occupied >> self.physical(i) & 1 == 0
    }

    /// `st(i)`, whatever its tag.
    pub(super) fn st(&self, i: u8) -> X87Register {
        self.x87.registers[self.physical(i)]
    }

    pub(super) fn set_st(&mut self, i: u8, value: X87Register) {
        let at = self.physical(i);
        self.x87.registers[at] = value;
        self.x87.occupied |= 1 << at;
    }

    pub(super) fn x87_free(&mut self, i: u8) {
        let at = self.physical(i);
        self.x87.occupied &= !(1 << at);
    }

    pub(super) fn x87_pop(&mut self) {
        self.x87_free(0);
        self.x87_set_top(self.x87_top().wrapping_add(1));
    }

    /// Raises exception flags; with an unmasked one among them, the next waiting instruction will fault.
    /// Returns whether the result may be delivered: not after an unmasked invalid, denormal or zero-divide.
    pub(super) fn x87_raise(&mut self, flags: u16) -> bool {
        self.x87.status |= flags & (flag::EXCEPTIONS | flag::SF);
        let unmasked = flags & flag::EXCEPTIONS & !self.x87.control;
        if unmasked != 0 {
            self.x87.status |= flag::ES | flag::B;
        }
        unmasked & (flag::IE | flag::DE | flag::ZE) == 0
    }

    pub(super) fn x87_set_c1(&mut self, on: bool) {
        self.x87.status = self.x87.status & !flag::C1 | if on { flag::C1 } else { 0 };
    }

    /// A register that should hold something was empty. Returns whether the masked response, the indefinite
    /// value, is to be delivered.
    pub(super) fn x87_underflow(&mut self) -> bool {
        self.x87_set_c1(false);
        self.x87_raise(flag::IE | flag::SF)
    }

    /// Delivers a result to `st(i)` with its flags; returns whether it was written.
    pub(super) fn x87_deliver(&mut self, i: u8, outcome: Outcome) -> bool {
        let mut flags = outcome.flags;
        // Pre-computation exceptions that are not masked keep the later ones from happening.
        let early = flags & (flag::IE | flag::DE | flag::ZE) & !self.x87.control;
        if early != 0 {
            flags &= flag::IE | flag::DE | flag::ZE;
        }
        self.x87_set_c1(flags & flag::C1 != 0);
        let written = self.x87_raise(flags);
        if written {
            self.set_st(i, outcome.value);
        }
        written
    }

    /// Pushes a value with its flags: a load. A full stack gives the indefinite value instead.
    pub(super) fn x87_push(&mut self, outcome: Outcome) {
        let full = !self.x87_empty(7);
        let outcome = if full {
            self.x87_set_c1(true);
            if !self.x87_raise(flag::IE | flag::SF) {
                return;
            }
            INDEFINITE
        } else {
            self.x87_set_c1(false);
            // A denormal operand is loaded even where that is not masked.
            if !self.x87_raise(outcome.flags) && outcome.flags & flag::IE != 0 {
                return;
            }
            outcome.value
        };
        self.x87_set_top(self.x87_top().wrapping_sub(1));
        self.set_st(0, outcome);
    }

    /// The full tag of physical register `at`: 0 valid, 1 zero, 2 special, 3 empty.
    pub(crate) fn x87_tag(&self, at: usize) -> u16 {
        if self.x87.occupied >> at & 1 == 0 {
            return 3;
        }
        match class(self.x87.registers[at]) {
            Class::Normal => 0,
            Class::Zero => 1,
            _ => 2,
        }
    }

    /// The full tag word.
    pub(super) fn x87_tag_word(&self) -> u16 {
        (0..8).map(|at| self.x87_tag(at) << (2 * at)).sum()
    }

    /// Works out ES and B from flags and masks, after either was loaded.
    pub(super) fn x87_update_summary(&mut self) {
        let pending = self.x87.status & !self.x87.control & flag::EXCEPTIONS != 0;
        self.x87.status &= !(flag::ES | flag::B);
        if pending {
            self.x87.status |= flag::ES | flag::B;
        }
    }
}
