//! Between an engine and a board.
//!
//! An *engine* carries out a guest's instructions; a *board* is what the guest believes it runs on. This room
//! holds all that the two say to each other, and nothing of either:
//!
//! - [`Vcpu`]: run until something must be decided outside ([`Exit`]), and give or take the whole state.
//! - [`x86::State`]: that state, one plain struct, the same for every engine. Snapshots, migration, the debugger
//!   and a change of engine all go through it.
//! - [`Bus`]: ports and memory-mapped registers, called by the engine while it runs.
//! - [`Interrupts`]: what the board's local APIC has for this virtual CPU; [`Attention`] tells the engine to look.
//! - [`Clock`]: the guest's time, from which its time-stamp counter is read.
//! - `conformance` (a feature): the small guests that every engine must run alike.
//!
//! ```
//! use posada_vcpu::{Attention, Bus, NoInterrupts, x86};
//!
//! // A board with nothing on it: reads float high, writes are lost.
//! struct Empty;
//! impl Bus for Empty {}
//!
//! let reset = x86::State::reset();
//! assert_eq!((reset.segments.cs.base + reset.rip), 0xffff_fff0);
//! let mut data = [0; 2];
//! Empty.port_read(0x3f8, &mut data);
//! assert_eq!(data, [0xff; 2]);
//! let attention = Attention::default();
//! attention.kick();
//! assert!(attention.is_raised());
//! # let _ = NoInterrupts;
//! ```
#![forbid(unsafe_code)]

mod activity;
mod attention;
mod bus;
mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod vcpu;
pub mod x86;

pub use activity::Activity;
pub use attention::{Alarm, Attention};
pub use bus::{Bus, Event, Interrupts, MsrError, NoInterrupts};
pub use clock::Clock;
pub use vcpu::{Connections, Error, Exit, Vcpu};
