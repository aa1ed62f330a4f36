//! Guest memory: the RAM that a guest is lent, and every access to it.
//!
//! All of a guest's RAM is one anonymous host mapping, below 2 GiB of the host's addresses if there is room. A *guest physical address* ([`Gpa`]) finds its place
//! there through a short list of ranges, because a PC's RAM has holes; what comes out is an *offset* into the
//! mapping, which engines cache in their translation look-aside buffers. Accesses by offset are bounds-checked
//! and each is exactly one host access, so that several virtual CPUs see each other's memory with the ordering
//! that x86 promises (AMD APM volume 2, section 7.2), and locked instructions are the host's own.
//!
//! Each 4 KiB page carries a *mark*. A page with no mark is written at full speed; a mark makes a write report
//! itself, which is how engines learn that code which they have decoded or translated has changed, whoever
//! changed it: the same virtual CPU, another one, or a device. Virtual CPUs that have
//! [joined](GuestRam::join) are called then; those whose own code stores to memory are [lent](GuestRam::lend) the
//! pages that may be stored to without a look at the mark.
//!
//! ```
//! use posada_memory::{Gpa, GuestRam};
//!
//! let ram = GuestRam::new(&[(Gpa(0), 0x10_0000)])?;
//! let offset = ram.offset(Gpa(0x1000)).expect("inside RAM");
//! assert!(!ram.store(offset, 0x1234_5678_u32));
//! assert_eq!(ram.load::<u16>(offset), 0x5678);
//!
//! // Decoded code lives in this page now: the next store there says so, and the page's version moves on.
//! let page = offset >> 12;
//! let version = ram.watch_code(page);
//! assert!(ram.store(offset, 0x90_u8));
//! assert_ne!(ram.code_version(page), version);
//! # Ok::<(), posada_memory::Error>(())
//! ```
//!
//! This is one of the few rooms that may use `unsafe`. The argument for all of it is the same: the mapping
//! lives as long as the [`GuestRam`] does, every access is checked to lie inside it, and nothing in Rust holds
//! a reference to the bytes, so a guest or a device that changes them at any moment breaks no aliasing rule.
#![allow(unsafe_code)]

mod access;
mod barrier;
mod mapping;
mod marks;
mod members;
mod ram;

pub use access::Value;
pub use marks::PageMarks;
pub use members::Membership;
pub use ram::{Error, Gpa, GuestRam, PAGE_SIZE};
pub use vm_memory;
