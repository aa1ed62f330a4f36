//! `iret` in all its forms (AMD APM volume 3, `IRET`).

use iced_x86::{Instruction, Mnemonic};
use posada_vcpu::x86::{Segment, rflags};

use super::descriptor::{kind, name, rpl};
use super::segments::v8086_segment;
use super::task::Cause;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::op::{Op, Run, Step};

/// Instruction breakpoints that are on, in `dr7`.
const BREAKPOINTS: u64 = 0xff;

fn iret<T: Int>(core: &mut Core, op: &Op) -> Step {
    if core.long64 {
        core.iret_long::<T>()?;
    } else if !core.uses_descriptors() {
        core.iret_real::<T>()?;
    } else {
        core.iret_protected::<T>(op)?;
    }
    if core.activity.nmi_blocked {
        core.activity.nmi_blocked = false;
        core.slow |= core.activity.nmi_pending;
    }
    Ok(())
}

impl Core {
    /// The flags that the program at the current privilege level may change by an `iret` of operand size `T`.
    #[inline]
    fn iret_flags<T: Int>(&self) -> u64 {
        let mut mask = rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;
        if self.cpl == 0 {
            mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
        }
        if self.cpl <= self.iopl() || !self.protected() {
            mask |= rflags::IF;
        }
        mask & T::MASK
    }

    /// Takes the flags in `mask` from a popped image, and the arithmetic ones.
    #[inline]
    fn restore_flags(&mut self, image: u64, mask: u64) {
        self.flags.set(image);
        let mut system = self.system_flags & !mask | image & mask;
        if self.dr7 & BREAKPOINTS == 0 && self.system_flags & rflags::TF == 0 {
            // RF holds off an instruction breakpoint for one instruction. There is none, and no trap that pushes
            // the flags before that, and so nothing to tell whether RF was cleared already.
            system &= !rflags::RF;
        }
        self.set_system_flags(system);
    }

    /// In real and virtual-8086 mode.
    fn iret_real<T: Int>(&mut self) -> Step {
        if self.v8086() && self.iopl() < 3 {
            return Err(self.gp(0));
        }
        let offset = self.peek::<T>(0)?.zext();
        let selector = self.peek::<T>(T::BYTES)?.zext() as u16;
        let image = self.peek::<T>(2 * T::BYTES)?.zext();
        if offset > u64::from(self.segments[usize::from(segment::CS)].limit) {
            return Err(self.gp(0));
        }
        let mask = self.iret_flags::<T>();
        self.set_stack_pointer(self.stack_pointer().wrapping_add(3 * T::BYTES));
        self.restore_flags(image, mask);
        self.set_real_code(selector, offset);
        Ok(())
    }

    /// What `iret` pops in 64-bit mode: instruction pointer, code segment, flags, stack pointer, stack segment;
    /// read in the order in which the processor's page faults come.
    #[inline]
    fn peek_long_frame<T: Int>(&mut self) -> Step<[u64; 5]> {
        let mut frame = [0; 5];
        if let Some(at) = self.mmu.find_read(self.registers[4], 5 * T::BYTES) {
            for (value, at) in frame.iter_mut().zip((at..).step_by(T::BYTES as usize)) {
                *value = self.connections.ram.load::<T>(at).zext();
            }
            return Ok(frame);
        }
        for number in [2, 1, 0, 4, 3] {
            frame[number] = self.peek::<T>(number as u64 * T::BYTES)?.zext();
        }
        Ok(frame)
    }

    /// In 64-bit mode, where the stack pointer is always popped.
    fn iret_long<T: Int>(&mut self) -> Step {
        if self.system_flags & rflags::NT != 0 {
            return Err(self.gp(0));
        }
        let [rip, selector, image, pointer, stack_selector] = self.peek_long_frame::<T>()?;
        let (selector, stack_selector) = (selector as u16, stack_selector as u16);
        let code = self.return_code(selector)?;
        self.check_target(&code, rip)?;
        let cpl = rpl(selector);
        let stack = self.return_stack(stack_selector, cpl, &code)?;
        let outward = cpl > self.cpl;
        // Nothing can fail from here.
        let mask = self.iret_flags::<T>();
        self.restore_flags(image, mask);
        self.segments[usize::from(segment::SS)] = stack;
        self.set_code(code, cpl, rip);
        self.set_stack_pointer(pointer);
        if outward {
            self.drop_data_segments();
        }
        Ok(())
    }

    /// In protected and compatibility mode.
    fn iret_protected<T: Int>(&mut self, op: &Op) -> Step {
        if self.system_flags & rflags::NT != 0 {
            if self.long_active() {
                return Err(self.gp(0));
            }
            return self.iret_to_task(op);
        }
        let image = self.peek::<T>(2 * T::BYTES)?.zext();
        let selector = self.peek::<T>(T::BYTES)?.zext() as u16;
        let rip = self.peek::<T>(0)?.zext();
        if image & rflags::VM != 0 && self.cpl == 0 && !self.long_active() {
            return self.iret_to_v8086(rip, selector, image);
        }
        let cpl = rpl(selector);
        let (mut pointer, mut stack_selector) = (0, 0);
        if cpl != self.cpl {
            stack_selector = self.peek::<T>(4 * T::BYTES)?.zext() as u16;
            pointer = self.peek::<T>(3 * T::BYTES)?.zext();
        }
        let code = self.return_code(selector)?;
        self.check_target(&code, rip)?;
        let mask = self.iret_flags::<T>();
        if cpl == self.cpl {
            self.set_stack_pointer(self.stack_pointer().wrapping_add(3 * T::BYTES));
            self.restore_flags(image, mask);
            self.set_code(code, cpl, rip);
            return Ok(());
        }
        let stack = self.return_stack(stack_selector, cpl, &code)?;
        // Nothing can fail from here.
        self.restore_flags(image, mask);
        self.segments[usize::from(segment::SS)] = stack;
        self.set_code(code, cpl, rip);
        self.set_stack_pointer(pointer);
        self.drop_data_segments();
        Ok(())
    }

    /// From privilege level 0 to virtual-8086 mode. The operand size is 32 bits: the image has VM.
    fn iret_to_v8086(&mut self, offset: u64, selector: u16, image: u64) -> Step {
        let mut popped = [0_u32; 6];
        for (value, depth) in popped.iter_mut().zip((12..).step_by(4)) {
            *value = self.peek(depth)?;
        }
        if offset > 0xffff {
            return Err(self.gp(0));
        }
        let [pointer, ss, es, ds, fs, gs] = popped;
        let segment = |selector: u32| -> Segment { v8086_segment(selector as u16) };
        self.segments = [es, selector.into(), ss, ds, fs, gs].map(segment);
        let mask = self.iret_flags::<u32>() | rflags::VM | rflags::IF;
        self.cpl = 3;
        self.restore_flags(image, mask);
        self.set_rip(offset);
        self.registers[4] = u64::from(pointer);
        self.update_mode();
        Ok(())
    }

    /// Back to the task that the current one interrupted.
    #[cold]
    fn iret_to_task(&mut self, op: &Op) -> Step {
        let selector: u16 = self.read_system(self.tr.base)?;
        if selector & 4 != 0 || selector & !7 == 0 {
            return Err(self.ts(name(selector)));
        }
        let Some(tss) = self.descriptor(selector)? else { return Err(self.ts(name(selector))) };
        if !matches!(tss.kind(), kind::TSS_BUSY | kind::TSS16_BUSY) {
            return Err(self.ts(name(selector)));
        }
        if !tss.present() {
            return Err(self.np(name(selector)));
        }
        self.switch_task(&tss, Cause::Return, op.len)
    }
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.mnemonic() {
        Mnemonic::Iret => iret::<u16>,
        Mnemonic::Iretd => iret::<u32>,
        Mnemonic::Iretq => iret::<u64>,
        _ => return None,
    };
    Some(Op::new(run, i))
}

#[cfg(test)]
#[path = "iret_test.rs"]
mod tests;
