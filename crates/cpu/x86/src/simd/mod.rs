//! MMX, SSE and their successors (AMD APM volumes 4 and 5).
//!
//! Each group lowers its instructions with a table: mnemonic, form, operation. What registers and memory an
//! instruction touches, and whether it may be carried out at all, is the business of its form (`form`).

// Whether a conversion is exact is this room's very subject.
#![allow(clippy::cast_precision_loss, clippy::float_cmp)]
// The rows of a table have one signature, whether they need all of it or not.
#![allow(clippy::unnecessary_wraps)]

mod approximate;
mod arithmetic;
mod compare;
mod convert;
mod crypto;
mod float;
mod form;
#[cfg(test)]
mod guest_test;
mod insert;
mod lanes;
mod moves;
mod native;
mod shift;
mod shuffle;
mod soft;
mod string;
mod table;

use iced_x86::Instruction;

pub use native::{Code, Memory, Native, Operands};

use crate::op::Op;

/// The bits of `mxcsr` that exist.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// The operation that carries out `instruction`, if it is a media instruction.
pub(crate) fn lower(instruction: &Instruction) -> Option<Op> {
    let groups = [
        moves::lower,
        lanes::lower,
        shift::lower,
        shuffle::lower,
        insert::lower,
        arithmetic::lower,
        compare::lower,
        convert::lower,
        approximate::lower,
        string::lower,
        crypto::lower,
        native::lower,
    ];
    groups.into_iter().find_map(|group| group(instruction))
}
