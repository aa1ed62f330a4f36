//! The ways out of blocks that are seldom taken, one *stub* each.
//!
//! What a block does seldom would make it long, and long code is slow code: caches hold less of it. So a stub is only a
//! call of the monitor and its own number, in a part of the code cache of its own; all else is in a table here, in
//! terms of the guest, for [`crate::translator`] to look at.

use crate::block::{Access, Mode};
use crate::flags::Flags;

/// The bytes of a stub: a call, and the number.
pub(crate) const LEN: usize = 9;

/// One way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stub {
    /// Where the arithmetic flags are.
    pub(crate) flags: Flags,
    /// The guest's next instruction, as a distance from the running page.
    pub(crate) next: i32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// The instruction is the interpreter's.
    Interpret,
    /// Attention was asked for.
    Attention,
    /// A jump within the page that may be tied to its target: where its distance is.
    Tie { hole: u32 },
    /// An access that the TLB does not know. When it does, the check at `retry` is done again.
    Access { access: Access, view: u8, retry: u32 },
    /// The same for a group of accesses. If they do not lie in one page, the jump at `hole` is led to the rest of the
    /// block without groups.
    Group { access: Access, mode: Mode, retry: u32, hole: u32 },
    /// A jump to the linear address in `r10`, which the table of jumps does not know. When it does, it is looked up
    /// again, at `retry`.
    Find { mode: Mode, retry: u32 },
}

/// The code of the stub with this number, which will be at `at`; `monitor` is what it calls.
pub(crate) fn code(number: u32, at: usize, monitor: usize) -> [u8; LEN] {
    const CALL: u8 = 0xe8;
    let distance = (monitor as i64 - at as i64 - 5) as i32;
    let mut code = [CALL; LEN];
    code[1..5].copy_from_slice(&distance.to_le_bytes());
    code[5..].copy_from_slice(&number.to_le_bytes());
    code
}
