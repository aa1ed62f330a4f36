//! General-purpose instructions (AMD APM volume 3, chapter 3).

mod alu;

use iced_x86::Instruction;

use crate::model::Model;
use crate::op::{Mode, Op};

/// The operation that carries out `instruction`, if it is a general-purpose one.
pub(crate) fn lower(instruction: &Instruction, mode: Mode, model: &Model) -> Option<Op> {
    let _ = (mode, model);
    alu::lower(instruction)
}
