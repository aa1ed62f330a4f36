//! The x87 unit (AMD APM volume 5).

use iced_x86::Instruction;

use crate::op::Op;

/// The operation that carries out `instruction`, if it is an x87 one.
pub(crate) fn lower(instruction: &Instruction) -> Option<Op> {
    let _ = instruction;
    None
}
