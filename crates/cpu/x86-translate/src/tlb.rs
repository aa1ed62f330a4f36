//! The translation look-aside buffer that translated code looks into by itself.
//!
//! One for each view; the entry is found by the page's number. An entry's tag is the page's linear address, so that the
//! exclusive or of tag and address is an offset into the page if the tag is the page's, and a large number if it is not:
//! one comparison tells, and whether the access would cross into the next page. There are tags for reads and tags for
//! writes, and two ways to say where the page is, for different operands. The interpreter's own buffer
//! ([`posada_x86`]) and the page tables stand behind it.
//!
//! There is no entry for writes to a page that holds translated code: such a write must be seen. Pages are lent for
//! writing, and given back when a virtual CPU wants to watch one of them ([`GuestRam::lend`]).
//!
//! [`GuestRam::lend`]: posada_memory::GuestRam::lend

use std::mem::offset_of;
use std::ptr::NonNull;

use crate::context::Context;
use crate::filled::Filled;
use crate::memory;

/// Entries: bits 31:12 of an address are its index.
pub(crate) const ENTRIES: usize = 1 << 20;
/// An index is to be shifted by this, to be an offset.
pub(crate) const SHIFT: u8 = 3;
/// Where the parts are in [`Tables`].
pub(crate) const READ: i32 = offset_of!(Tables, read) as i32;
pub(crate) const WRITE: i32 = offset_of!(Tables, write) as i32;
pub(crate) const DELTA: i32 = offset_of!(Tables, delta) as i32;
pub(crate) const HOST: i32 = offset_of!(Tables, host) as i32;
const PAGE_MASK: u64 = 0xfff;

/// The parts of entries, one array each: an index is scaled by 8 in an operand, and neighbours share cache lines.
#[repr(C)]
pub(crate) struct Tables {
    /// The linear address of a page that may be read.
    pub(crate) read: [u64; ENTRIES],
    /// The linear address of a page that may be written; then `read` has it, too.
    pub(crate) write: [u64; ENTRIES],
    /// From the page's linear addresses to the host's.
    pub(crate) delta: [u64; ENTRIES],
    /// Where the page is in the host's memory.
    pub(crate) host: [u64; ENTRIES],
}

impl Tables {
    fn is_used(&self, n: usize) -> bool {
        self.read[n] != never(n)
    }

    fn forget(&mut self, n: usize) {
        self.read[n] = never(n);
        self.write[n] = never(n);
    }
}

/// A tag that no address with this index has. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    if index == 0 { 1 << 12 } else { 0 }
}

fn index(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// Neighbours among a table's entries whose parts take a page of the host's memory each.
const NEIGHBOURS: usize = 512;
/// How many groups of neighbours may be in use, in all tables: 16 MiB.
const MOST_GROUPS: usize = 1024;

/// The tables' account.
pub(crate) struct Tlb {
    filled: [Filled; 3],
    /// Groups of neighbours that are in use, and how many these are.
    groups: [[bool; ENTRIES / NEIGHBOURS]; 3],
    used_groups: usize,
    /// Entries that may be for writes.
    written: [Vec<u32>; 3],
}

impl Tlb {
    /// Prepares a context whose memory is all zeros.
    pub(crate) fn new(context: &mut Context) -> Self {
        for tables in &mut context.tlb {
            tables.forget(0);
        }
        context.forget_stacks();
        Self {
            filled: std::array::from_fn(|_| Filled::new(ENTRIES)),
            groups: [[false; _]; 3],
            used_groups: 0,
            written: Default::default(),
        }
    }

    /// Remembers that `linear`'s page is at `host`.
    pub(crate) fn insert(
        &mut self,
        context: &mut Context,
        (view, write): (u8, bool),
        linear: u64,
        host: u64,
        global: bool,
    ) {
        let (n, page) = (index(linear), linear & !PAGE_MASK);
        if !std::mem::replace(&mut self.groups[usize::from(view)][n / NEIGHBOURS], true) {
            self.used_groups += 1;
            if self.used_groups > MOST_GROUPS {
                self.give_back(context);
                return self.insert(context, (view, write), linear, host, global);
            }
        }
        let written = &self.written[usize::from(view)];
        if self.filled[usize::from(view)].is_too_much() || written.len() > 2 * ENTRIES {
            self.forget(context, true);
        }
        let tables = &mut context.tlb[usize::from(view)];
        let before = tables.is_used(n);
        if tables.read[n] != page || tables.host[n] != host {
            tables.write[n] = never(n);
        }
        tables.read[n] = page;
        let written = &mut self.written[usize::from(view)];
        if write && tables.write[n] != page {
            tables.write[n] = page;
            written.push(n as u32);
        }
        tables.delta[n] = host.wrapping_sub(page);
        tables.host[n] = host;
        self.filled[usize::from(view)].note(n, before, global);
    }

    /// Remembers `linear`'s page as that of the view's stack, if it is known, for writes if need be; whether it is.
    pub(crate) fn set_stack(context: &mut Context, (view, write): (u8, bool), linear: u64) -> bool {
        let (tables, n, page) = (&context.tlb[usize::from(view)], index(linear), linear & !PAGE_MASK);
        let writable = tables.write[n] == page;
        let known = if write { writable } else { tables.read[n] == page };
        if known {
            context.set_stack(view, page, writable, tables.delta[n]);
        }
        known
    }

    /// Forgets everything, or all but global pages.
    pub(crate) fn clear(&mut self, context: &mut Context, all: bool) {
        context.forget_stacks();
        self.forget(context, all);
    }

    /// [`clear`](Self::clear) to make room: what is forgotten is true still. So the pages of stacks are not, as code that has looked
    /// at one counts on it until something changes.
    fn forget(&mut self, context: &mut Context, all: bool) {
        for (filled, tables) in self.filled.iter_mut().zip(&mut context.tlb) {
            filled.forget(all, |n| tables.forget(n));
        }
        if all {
            self.written.iter_mut().for_each(Vec::clear);
        }
    }

    /// Forgets everything, and gives the tables' memory back to the host.
    fn give_back(&mut self, context: &mut Context) {
        self.forget(context, true);
        self.groups = [[false; _]; 3];
        self.used_groups = 0;
        let tables = NonNull::from(&mut context.tlb);
        // SAFETY: the context is in such a mapping, and nobody but us has it; each part is made of numbers.
        unsafe { memory::zero(tables.cast(), size_of_val(&context.tlb)) };
        for tables in &mut context.tlb {
            tables.forget(0);
        }
    }

    /// Forgets where writes go.
    pub(crate) fn clear_writes(&mut self, context: &mut Context) {
        context.forget_stacks();
        for (written, tables) in self.written.iter_mut().zip(&mut context.tlb) {
            for n in written.drain(..).map(|n| n as usize) {
                tables.write[n] = never(n);
            }
        }
    }

    /// Forgets one page.
    pub(crate) fn clear_page(context: &mut Context, linear: u64) {
        context.forget_stacks();
        let n = index(linear);
        for tables in &mut context.tlb {
            if tables.read[n] == linear & !PAGE_MASK {
                tables.forget(n);
            }
        }
    }

    /// Forgets where writes to pages go that `watched` says of, by their address in the host's memory.
    pub(crate) fn protect(&mut self, context: &mut Context, watched: impl Fn(u64) -> bool) {
        context.forget_stacks();
        for (written, tables) in self.written.iter_mut().zip(&mut context.tlb) {
            written.retain(|n| {
                let n = *n as usize;
                if tables.write[n] != never(n) && watched(tables.host[n]) {
                    tables.write[n] = never(n);
                }
                tables.write[n] != never(n)
            });
        }
    }
}

#[cfg(test)]
#[path = "tlb_test.rs"]
mod tests;
