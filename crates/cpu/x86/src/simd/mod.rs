//! MMX, SSE and their successors (AMD APM volumes 4 and 5).

use iced_x86::Instruction;

use crate::op::Op;

/// The operation that carries out `instruction`, if it is a media instruction.
pub(crate) fn lower(instruction: &Instruction) -> Option<Op> {
    let _ = instruction;
    None
}
