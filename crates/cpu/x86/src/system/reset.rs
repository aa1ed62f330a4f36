//! INIT and start-up (AMD APM volume 2, sections 14.1.3 and 16.5).

use posada_vcpu::x86::{Running, Segment, State, cr0};

use crate::core::{Core, segment};

impl Core {
    /// INIT: back to the reset state, but for floating point, caches and model-specific registers. All but the
    /// boot processor then wait for a start-up message.
    pub(crate) fn init(&mut self) {
        let mut state = State::reset();
        state.cr0 = cr0::ET | self.cr0 & (cr0::CD | cr0::NW);
        (state.xcr0, state.mxcsr, state.ymm) = (self.xcr0, self.mxcsr, self.ymm);
        state.x87 = self.x87.clone();
        state.msrs = self.msrs.clone();
        state.msrs.efer = 0;
        if self.connections.index != 0 {
            state.activity.running = Running::WaitForStartUp;
        }
        self.load_state(&state);
    }

    /// A start-up message: begins at `page << 12` in real mode, if waiting for it.
    pub(crate) fn start_up(&mut self, page: u8) {
        if self.activity.running != Running::WaitForStartUp {
            return;
        }
        self.activity.running = Running::Running;
        let code = Segment { attributes: 0x9b, ..Segment::real_mode(u16::from(page) << 8) };
        self.segments[usize::from(segment::CS)] = code;
        self.set_rip(0);
        self.update_mode();
    }
}

#[cfg(test)]
#[path = "reset_test.rs"]
mod tests;
