//! Sensitive instructions that a kernel carries out all the time, without leaving the cache.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::asm::{Condition, Op};
use crate::block::{Access, Address, ForInterpreter, Outcome, Writer};
use crate::context::offset;
use crate::context::register::{R11, RAX};
use crate::helpers::help;
use crate::registers;

const INTERRUPT_FLAG: i32 = 1 << 9;
const ACCESS_FLAG: i32 = 1 << 18;
/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: i32 = 0x8d5;

impl Writer<'_> {
    /// An instruction that tells or changes something that is not the host's; `None` if it is not one that is known
    /// here. True: the block ends with it.
    pub(crate) fn sensitive(&mut self, i: &Instruction) -> Option<Result<bool, ForInterpreter>> {
        let kernel = self.is_supervisor();
        let outcome = match i.mnemonic() {
            Mnemonic::Pushfq if i.code() == Code::Pushfq => {
                self.push_flags();
                Ok(())
            }
            Mnemonic::Popfq if i.code() == Code::Popfq => {
                self.pop_flags();
                Ok(())
            }
            Mnemonic::Cli if kernel => {
                self.asm.store_context_value(offset::INTERRUPT_FLAG, 0);
                Ok(())
            }
            Mnemonic::Sti if kernel && self.ends_page() => Err(ForInterpreter),
            Mnemonic::Sti if kernel => {
                self.leave_if_interrupts_wait();
                self.asm.store_context_value(offset::INTERRUPT_FLAG, INTERRUPT_FLAG);
                Ok(())
            }
            Mnemonic::Swapgs if kernel => {
                let (gs, kernel_gs) = (offset::BASES + 8, offset::BASES + 16);
                self.asm.with_context(Op::Load, RAX, gs);
                self.asm.with_context(Op::Load, R11, kernel_gs);
                self.asm.store_context(gs, R11);
                self.asm.store_context(kernel_gs, RAX);
                Ok(())
            }
            Mnemonic::Stac | Mnemonic::Clac if kernel => {
                let value = if i.mnemonic() == Mnemonic::Stac { ACCESS_FLAG } else { 0 };
                // What follows is translated for another view.
                self.flags_wanted();
                self.asm.store_context_value(offset::ACCESS_FLAG, value);
                self.go_to_another_view();
                return Some(Ok(true));
            }
            Mnemonic::Mov if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() => {
                self.store_selector(i)
            }
            Mnemonic::Rdtsc => {
                self.before_writing(1 << 0 | 1 << 2);
                self.help(help::TSC);
                Ok(())
            }
            // One of them has the name of an SSE instruction.
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq
                if i.is_string_instruction() =>
            {
                self.string(i, help::MOVE)
            }
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                self.string(i, help::STORE)
            }
            _ => return None,
        };
        Some(outcome.map(|()| false))
    }

    /// Has a helper do something; what it leaves is the interpreter's.
    fn help(&mut self, what: u32) {
        self.flags_lost();
        self.asm.unsigned(R11, what);
        self.call_help();
        self.forget_groups();
        self.asm.test(true, R11);
        let hole = self.asm.jump_if(Condition::E);
        self.interpret_if(hole);
    }

    fn string(&mut self, i: &Instruction, what: u32) -> Outcome {
        // 64-bit addresses, and no other segment.
        let plain = (0..i.op_count()).all(|n| match i.op_kind(n) {
            OpKind::MemorySegRSI => !matches!(i.memory_segment(), Register::FS | Register::GS),
            OpKind::MemoryESRDI => true,
            OpKind::Register => i.op_register(n).is_gpr(),
            _ => false,
        });
        if !plain || i.op0_kind() != OpKind::MemoryESRDI {
            return Err(ForInterpreter);
        }
        let size = match i.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Stosb => 1,
            Mnemonic::Movsw | Mnemonic::Stosw => 2,
            Mnemonic::Movsd | Mnemonic::Stosd => 4,
            _ => 8,
        };
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        // Recipes may need what the helper changes.
        self.before_writing(1 << 1 | 1 << 6 | 1 << 7);
        self.help(what | size << 4 | if repeated { help::REPEATED } else { 0 });
        Ok(())
    }

    fn leave_if_interrupts_wait(&mut self) {
        self.flags_lost();
        self.asm.compare_context_with_zero(offset::INTERRUPTS_WAIT);
        let hole = self.asm.jump_if(Condition::NE);
        self.interpret_if(hole);
    }

    fn store_selector(&mut self, i: &Instruction) -> Outcome {
        let selector = offset::SELECTORS + 8 * i.op1_register().number() as i32;
        if i.op0_kind() == OpKind::Register {
            let to = i.op0_register();
            let number = registers::number(to).filter(|_| to.size() > 2).ok_or(ForInterpreter)?;
            self.before_writing(1 << number);
            self.asm.with_context(Op::Load, R11, selector);
            self.store_guest(number, R11);
        } else {
            let address = self.memory_operand(i)?;
            let place = self.access(Access::new(address, 2, true));
            self.asm.with_context(Op::Load, R11, selector);
            self.asm.store_place_16(place, R11);
        }
        Ok(())
    }

    fn push_flags(&mut self) {
        self.flags_wanted();
        self.asm.push_flags_to_r11();
        self.asm.store_context(offset::TEMPORARY, R11);
        // After a look into the TLB they are in memory, whatever they were.
        self.flags_lost();
        let place = self.access(Access::new(Address::on_stack(-8), 8, true));
        self.asm.with_context(Op::Load, R11, offset::TEMPORARY);
        self.asm.with_value(Op::And, false, R11, ARITHMETIC);
        for flags in [offset::SYSTEM_FLAGS, offset::INTERRUPT_FLAG, offset::ACCESS_FLAG] {
            self.asm.with_context(Op::Or, R11, flags);
        }
        self.asm.store_place(place, R11);
        self.move_stack(-8);
    }

    fn pop_flags(&mut self) {
        self.flags_lost();
        let place = self.access(Access::new(Address::on_stack(0), 8, false));
        self.asm.with_place(Op::Load, RAX, place);
        // Only the interrupt flag may change, besides the arithmetic ones, and only to 0 while an interrupt waits.
        self.asm.mov(R11, RAX);
        for flags in [offset::SYSTEM_FLAGS, offset::ACCESS_FLAG] {
            self.asm.with_context(Op::Xor, R11, flags);
        }
        let may_change = if self.is_supervisor() {
            INTERRUPT_FLAG
        } else {
            self.asm.with_context(Op::Xor, R11, offset::INTERRUPT_FLAG);
            0
        };
        self.asm.with_value(Op::And, true, R11, !(ARITHMETIC | may_change));
        let hole = self.asm.jump_if(Condition::NE);
        self.interpret_if(hole);
        if self.is_supervisor() {
            self.leave_if_interrupts_wait();
            self.asm.mov(R11, RAX);
            self.asm.with_value(Op::And, false, R11, INTERRUPT_FLAG);
            self.asm.store_context(offset::INTERRUPT_FLAG, R11);
        }
        self.asm.rax_to_saved_flags(offset::FLAGS);
        self.flags_saved();
        let stack = registers::host(4).unwrap_or(R11);
        self.asm.add_to(stack, stack, 8);
    }
}
