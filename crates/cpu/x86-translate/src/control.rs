//! Instructions that load the control words of SSE and x87: they may run on the host as long as what they load
//! masks all exceptions.

use iced_x86::Instruction;

use crate::asm::{Condition, Op, Place, Sum};
use crate::block::{Access, ForInterpreter, Outcome, Writer};
use crate::context::offset;
use crate::context::register::{R11, RAX};

/// `mxcsr`: the masks, and the bits that do not exist.
const MXCSR_LOOK: i32 = 0xffff_1f80_u32 as i32;
const MXCSR_MASKS: i32 = 0x1f80;
/// The masks in the x87 unit's control word.
const X87_MASKS: i32 = 0x3f;

impl Writer<'_> {
    /// Makes sure that the x87 unit's state is the guest's.
    pub(crate) fn ensure_x87(&mut self) {
        if !self.x87_loaded {
            self.asm.call_context(offset::LOAD_X87);
            self.x87_loaded = true;
        }
    }

    /// `ldmxcsr`.
    pub(crate) fn load_mxcsr(&mut self, i: &Instruction) -> Outcome {
        if !self.mode.vectors || self.mode.unmasked {
            return Err(ForInterpreter);
        }
        let address = self.memory_operand(i)?;
        self.operand_address(Access::new(address, 4, false));
        self.asm.load_double();
        self.leave_unless(MXCSR_LOOK, MXCSR_MASKS);
        self.asm.store_context(offset::TEMPORARY, RAX);
        self.asm.load_mxcsr(offset::TEMPORARY);
        Ok(())
    }

    /// `fldcw`.
    pub(crate) fn load_x87_control(&mut self, i: &Instruction) -> Outcome {
        if !self.mode.vectors || !self.mode.x87 {
            return Err(ForInterpreter);
        }
        let address = self.memory_operand(i)?;
        self.ensure_x87();
        self.operand_address(Access::new(address, 2, false));
        self.asm.load_word();
        self.leave_unless(X87_MASKS, X87_MASKS);
        self.asm.store_context(offset::TEMPORARY, RAX);
        self.asm.load_x87_control(offset::TEMPORARY);
        Ok(())
    }

    /// Finds where an access goes in the host's memory: all of it is in `rax` then, and the flags are lost.
    fn operand_address(&mut self, access: Access) {
        self.flags_lost();
        let Place { index, displacement } = self.access(access);
        let sum = Sum { base: Some(RAX), index: index.map(|index| (index, 0)), displacement };
        self.asm.lea(true, RAX, sum);
    }

    /// The current instruction is the interpreter's unless `rax` has `value` in the bits `look`. Changes `r11`;
    /// the flags are lost.
    fn leave_unless(&mut self, look: i32, value: i32) {
        self.asm.mov(R11, RAX);
        self.asm.with_value(Op::And, false, R11, look);
        self.asm.with_value(Op::Cmp, false, R11, value);
        let hole = self.asm.jump_if(Condition::NE);
        self.interpret_if(hole);
    }
}
