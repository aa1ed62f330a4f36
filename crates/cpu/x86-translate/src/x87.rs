//! The x87 unit and its MMX registers in translated code.
//!
//! In a user's view x87 and MMX instructions run on the host's unit. It is given the guest's state only when a block
//! that has such instructions runs: each begins the first of them by calling `Routines::x87`, which loads the
//! state, and then is a mere return until translated code is left. Then the state, if it was loaded, goes back to
//! where the interpreter finds it.
//!
//! This holds as long as all x87 exceptions are masked; otherwise x87 instructions are the interpreter's, which
//! delivers `#MF` with all that a handler looks at.
//!
//! The *error pointers*, which tell where the last instruction and its operand were, are for such a handler alone.
//! The host's would be addresses of translated code and of the host's memory, of which nothing must get out, and
//! AMD's processors themselves keep none in `fxsave` unless an exception is pending; Intel's set the data pointer
//! only on an unmasked one. So translated code leaves the guest's as they are, and they are exact again from the
//! first instruction that can raise an exception, for the interpreter sets them. The instructions that load or store
//! them (`fldenv`, `fnstenv`, `fnsave`, `frstor`, `fxsave`, `xsave` ...) are the interpreter's, too.

use std::arch::asm;

use posada_vcpu::x86::{X87, X87Register};

/// What `xsave` writes for the x87 unit: the legacy part, and the header.
#[repr(C, align(64))]
pub(crate) struct Area([u64; 72]);

/// Index of the registers, two words each, the top of stack first.
const REGISTERS: usize = 4;
/// Index of the header: which components are there.
const HEADER: usize = 64;
/// Bits of the control word that can be changed, and one that is always set.
const CONTROL: u16 = 0x1f3f;
const CONTROL_FIXED: u16 = 0x40;

impl Area {
    /// Prepares for `xrstor` what the unit holds.
    pub(crate) fn put(&mut self, x87: &X87) {
        self.0[0] = u64::from(x87.control) | u64::from(x87.status) << 16 | u64::from(x87.occupied) << 32;
        (self.0[1], self.0[2], self.0[3]) = (0, 0, 0x1f80);
        let top = usize::from(x87.status >> 11 & 7);
        for n in 0..8 {
            let register = x87.registers[(top + n) & 7];
            self.0[REGISTERS + 2 * n] = register.significand;
            self.0[REGISTERS + 2 * n + 1] = u64::from(register.sign_exponent);
        }
        (self.0[HEADER], self.0[HEADER + 1]) = (1, 0);
    }

    /// Takes what `xsave` has written; the error pointers stay.
    fn take(&self, x87: &mut X87) {
        let words = self.0[0];
        x87.control = words as u16 & CONTROL | CONTROL_FIXED;
        x87.status = (words >> 16) as u16;
        x87.occupied = (words >> 32) as u8;
        let top = usize::from(x87.status >> 11 & 7);
        for n in 0..8 {
            let at = REGISTERS + 2 * n;
            x87.registers[(top + n) & 7] =
                X87Register { significand: self.0[at], sign_exponent: self.0[at + 1] as u16 };
        }
    }

    /// Takes the unit's state out of the host's, which is left as a program finds it when it begins.
    pub(crate) fn save(&mut self, x87: &mut X87) {
        // SAFETY: the area is as large and as aligned as component 0 demands; the host has `xsave`, as it has AVX.
        // `fninit` leaves the unit as the ABI wants it.
        unsafe {
            asm!(
                "xsave64 [{area}]",
                "fninit",
                area = in(reg) self.0.as_mut_ptr(),
                in("eax") 1,
                in("edx") 0,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
                out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
                options(nostack),
            );
        }
        self.take(x87);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_from_the_host_as_it_went() {
        let mut state = X87 {
            control: 0x27f,
            status: 3 << 11 | 0x4121,
            occupied: 0b1010_0110,
            opcode: 0x123,
            instruction: 0x1234_5678_9abc,
            data: 0xabc,
            ..X87::default()
        };
        for (n, register) in state.registers.iter_mut().enumerate() {
            *register = X87Register { significand: 1 << 63 | n as u64, sign_exponent: 0x3fff + n as u16 };
        }
        let before = state.clone();
        let mut area = Area([0; 72]);
        area.put(&state);
        // SAFETY: the area holds a valid state; `save` takes it away again at once.
        unsafe { asm!("xrstor64 [{}]", in(reg) area.0.as_ptr(), in("eax") 1, in("edx") 0, options(nostack)) };
        area.save(&mut state);
        assert_eq!(state, before);
    }
}
