//! System instructions, and what comes between instructions: exceptions, interrupts, debugging (AMD APM volume
//! 2, and volume 3, chapter 4).

// Handlers all have the same signature, whether they can fault or not.
#![allow(clippy::unnecessary_wraps)]
// In a test's program every instruction looks like the next.
#![cfg_attr(test, allow(clippy::redundant_closure_for_method_calls))]

mod control;
mod cpuid;
mod debug;
mod descriptor;
mod far;
#[cfg(test)]
mod fixture;
#[cfg(test)]
#[path = "hostile_test.rs"]
mod hostile;
mod interrupt;
mod io;
mod iret;
mod msr;
pub(crate) mod random;
mod reset;
mod segments;
mod stack;
mod syscall;
mod tables;
mod task;
mod tlb;
mod xsave;

use iced_x86::{Instruction, Mnemonic, Register};

use crate::op::{Mode, Op};

/// The operation that carries out `instruction`, if it is a system instruction.
pub(crate) fn lower(instruction: &Instruction, mode: Mode) -> Option<Op> {
    let _ = mode;
    segments::lower(instruction)
        .or_else(|| far::lower(instruction))
        .or_else(|| iret::lower(instruction))
        .or_else(|| syscall::lower(instruction))
        .or_else(|| interrupt::lower(instruction))
        .or_else(|| tables::lower(instruction))
        .or_else(|| control::lower(instruction))
        .or_else(|| debug::lower(instruction))
        .or_else(|| io::lower(instruction))
        .or_else(|| msr::lower(instruction))
        .or_else(|| cpuid::lower(instruction))
        .or_else(|| random::lower(instruction))
        .or_else(|| tlb::lower(instruction))
        .or_else(|| xsave::lower(instruction))
}

/// Whether an instruction that goes on to the next one ends its block all the same, because it changes how the
/// next is decoded, or whether an interrupt comes before it.
pub(crate) fn ends_block(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        // The size of the stack, and the shadow that follows.
        Mnemonic::Mov | Mnemonic::Pop => instruction.op0_register() == Register::SS,
        Mnemonic::Lss | Mnemonic::Sti | Mnemonic::Hlt => true,
        _ => false,
    }
}
