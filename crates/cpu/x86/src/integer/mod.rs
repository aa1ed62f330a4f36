//! General-purpose instructions (AMD APM volume 3, chapter 3).
//!
//! Each group's `lower` picks, for one instruction, the function that carries it out, specialised for the
//! operand size and for where the operands are. Flags that the manual leaves undefined come out as on Zen
//! processors.
#![allow(clippy::unnecessary_wraps, reason = "all operations have one type, whether they can fault or not")]

mod alu;
mod bits;
mod bmi;
mod branch;
mod decimal;
mod exchange;
mod fence;
mod flag;
mod flat;
mod fuse;
mod mov;
mod multiply;
mod operand;
mod shift;
mod stack;
mod string;

use iced_x86::Instruction;

use crate::model::Model;
use crate::op::{Mode, Op};

pub(crate) use flag::hint;
pub(crate) use fuse::fuse;
pub(crate) use string::PIECE;

/// The operation that carries out `instruction`, if it is a general-purpose one.
pub(crate) fn lower(instruction: &Instruction, mode: Mode, model: &Model) -> Option<Op> {
    let _ = model;
    alu::lower(instruction, mode)
        .or_else(|| mov::lower(instruction, mode))
        .or_else(|| branch::lower(instruction, mode))
        .or_else(|| stack::lower(instruction, mode))
        .or_else(|| shift::lower(instruction))
        .or_else(|| exchange::lower(instruction))
        .or_else(|| fence::lower(instruction))
        .or_else(|| multiply::lower(instruction))
        .or_else(|| string::lower(instruction))
        .or_else(|| bits::lower(instruction))
        .or_else(|| bmi::lower(instruction))
        .or_else(|| flag::lower(instruction))
        .or_else(|| decimal::lower(instruction))
}
