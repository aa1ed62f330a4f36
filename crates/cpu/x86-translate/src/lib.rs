//! The binary translator: x86-64 guests at near native speed on x86-64 hosts, as an ordinary process.
//!
//! A Type II hypervisor examines the basic blocks of its guest, replaces the sensitive instructions by calls to
//! itself, and keeps the translated code in a cache. Here guest and host have the same instruction set, so most
//! instructions are copied as they are (*identity translation*): guest registers are in host registers, guest flags
//! in the host's, guest vectors in the host's. What is added are checks: each memory access goes through a software
//! TLB (`tlb`), each jump to another page through a table of known addresses (`jumps`). Whatever is not
//! copied is carried out by the interpreter of [`posada_x86`], one instruction at a time.
#![allow(unsafe_code)]

mod asm;
mod block;
mod cache;
mod classify;
mod context;
mod control;
mod entry;
mod filled;
mod fault;
mod flags;
mod groups;
mod helpers;
mod jumps;
mod memory;
mod registers;
mod sensitive;
mod stats;
mod tlb;
mod translator;
mod x87;

pub use stats::Stats;
pub use translator::{DEFAULT_CODE_CACHE, Translator};
