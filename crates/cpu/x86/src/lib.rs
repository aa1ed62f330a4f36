//! The x86 architecture and its reference interpreter: the oracle for every other engine.
//!
//! Follows the AMD64 Architecture Programmer's Manual (APM), volumes 1 to 5, and where the two agree the Intel
//! Software Developer's Manual (SDM). Where AMD and Intel differ the guest sees an AMD processor.
//!
//! How one instruction goes: [`Interpreter`] translates the instruction pointer through the software TLB
//! (`mmu`, `paging`), finds the block of predecoded operations there (`cache`), or decodes one (`decode`), and
//! calls each operation's function, which lives with its group: `integer`, `system`, `x87`, `simd`. Memory
//! operands go through `access`.
#![forbid(unsafe_code)]

mod access;
mod assist;
mod cache;
mod core;
mod cpuid;
mod decode;
mod exception;
mod flags;
mod int;
mod integer;
mod interpreter;
mod mmu;
mod model;
mod op;
mod paging;
mod simd;
mod spread;
mod system;
#[cfg(test)]
#[allow(dead_code)]
mod testing;
mod x87;

pub use assist::{Assist, Between, View};
pub use core::Counts;
pub use interpreter::Interpreter;
pub use mmu::Stale;
pub use model::{Model, ModelError};
pub use simd::{Code as NativeCode, Memory as NativeMemory, Native, Operands as NativeOperands};
pub use spread::Spread;
pub use system::random::Random;
