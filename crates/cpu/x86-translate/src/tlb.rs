//! The translation look-aside buffer that translated code looks into by itself.
//!
//! One for each view; the entry is found by the page's number. An entry's tag is the page's linear address, so that the
//! exclusive or of tag and address is an offset into the page if the tag is the page's, and a large number if it is not:
//! one comparison tells, and whether the access would cross into the next page. There are tags for reads and tags for
//! writes, and the distance to where the page is in the host's memory. The interpreter's own buffer ([`posada_x86`]) and
//! the page tables stand behind it.
//!
//! Most accesses are aligned, and then one number can be both tag and way, if the page's address in the host's memory is below
//! 2^31: the distance to there. The sum of that and an address is where the access goes, if bits 63:31 of it are zero; one look
//! tells, and by the lowest bits whether it is aligned.
//!
//! There is no entry for writes to a page that holds translated code: such a write must be seen. Pages are lent for
//! writing, and given back when a virtual CPU wants to watch one of them ([`GuestRam::lend`]).
//!
//! [`GuestRam::lend`]: posada_memory::GuestRam::lend

use std::mem::offset_of;
use std::ptr::NonNull;

use posada_x86::View;

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
const DELTA: i32 = offset_of!(Tables, delta) as i32;
pub(crate) const LOW_READ: i32 = offset_of!(Tables, low_read) as i32;
pub(crate) const LOW_WRITE: i32 = offset_of!(Tables, low_write) as i32;
/// Where the distances of all pages are that may be read; `low`: RAM has low addresses.
pub(crate) const fn distances(low: bool) -> i32 {
    if low { LOW_READ } else { DELTA }
}

/// Bits that are zero in where an access goes by the [`LOW_READ`] or [`LOW_WRITE`] of its page, and not for any other.
pub(crate) const NOT_LOW: i32 = i32::MIN;

/// These, and the bits that are zero in multiples of `grain`, a power of two.
pub(crate) const fn low_mask(grain: u16) -> i32 {
    NOT_LOW | (grain as i32 - 1)
}

const PAGE_MASK: u64 = 0xfff;

/// The parts of entries, one array each: an index is scaled by 8 in an operand, and neighbours share cache lines.
#[repr(C)]
pub(crate) struct Tables {
    /// From the linear addresses of a page that may be read to the host's, if these are low.
    low_read: LowTable,
    /// The same for a page that may be written.
    low_write: LowTable,
    /// The linear address of a page that may be read.
    pub(crate) read: [u64; ENTRIES],
    /// The linear address of a page that may be written; then `read` has it, too.
    pub(crate) write: [u64; ENTRIES],
    /// From the page's linear addresses to the host's, if these are not low.
    delta: [u64; ENTRIES],
}

/// Entries of addresses whose bit 31 is not set, and of the others.
#[repr(C)]
struct LowTable([[u64; ENTRIES / 2]; 2]);

impl LowTable {
    /// With these bit 31 of no sum is zero.
    const NEVER: [u64; 2] = [1 << 31, 0];

    fn half(n: usize) -> usize {
        n / (ENTRIES / 2)
    }

    fn get(&self, n: usize) -> u64 {
        self.0[Self::half(n)][n % (ENTRIES / 2)]
    }

    fn entry(&mut self, n: usize) -> &mut u64 {
        &mut self.0[Self::half(n)][n % (ENTRIES / 2)]
    }

    fn forget(&mut self, n: usize) {
        *self.entry(n) = Self::NEVER[Self::half(n)];
    }

    fn knows(&self, n: usize) -> bool {
        self.get(n) != Self::NEVER[Self::half(n)]
    }
}

impl Tables {
    /// Parts whose numbers are this at first, offsets and lengths in bytes; all others are zeros.
    pub(crate) const FILLING: u64 = LowTable::NEVER[0];
    pub(crate) const FILLED: [(usize, usize); 2] = {
        const { assert!(LowTable::NEVER[1] == 0) };
        let half = size_of::<LowTable>() / 2;
        [(offset_of!(Self, low_read), half), (offset_of!(Self, low_write), half)]
    };

    fn is_used(&self, n: usize) -> bool {
        self.read[n] != never(n)
    }

    fn forget(&mut self, n: usize) {
        self.read[n] = never(n);
        self.low_read.forget(n);
        self.forget_write(n);
    }

    fn forget_write(&mut self, n: usize) {
        // What nobody has written to takes no memory.
        if self.write[n] != never(n) {
            self.write[n] = never(n);
            self.low_write.forget(n);
        }
    }

    /// The distance from entry `n`'s page to the host's memory.
    fn distance(&self, n: usize) -> u64 {
        if self.low_read.knows(n) { self.low_read.get(n) } else { self.delta[n] }
    }

    /// Lets entry `n`, of which nothing is known, be `page`'s, for reads.
    fn set_read(&mut self, n: usize, page: u64, host: u64) {
        self.read[n] = page;
        let distance = host.wrapping_sub(page);
        if is_low(host) { *self.low_read.entry(n) = distance } else { self.delta[n] = distance }
    }

    /// And for writes.
    fn set_write(&mut self, n: usize, page: u64, host: u64) {
        self.write[n] = page;
        if is_low(host) {
            *self.low_write.entry(n) = host.wrapping_sub(page);
        }
    }
}

fn is_low(host: u64) -> bool {
    host & i64::from(NOT_LOW) as u64 == 0
}

/// A tag that no address with this index has. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    if index == 0 { 1 << 12 } else { 0 }
}

/// Which of a context's tables are a view's.
pub(crate) const fn place(view: u8) -> usize {
    View::User as usize - view as usize
}

fn index(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// Neighbours among a table's entries whose parts take a page of the host's memory each.
const NEIGHBOURS: usize = 512;
/// How many groups of neighbours may be in use, in all tables: 15 MiB.
const MOST_GROUPS: usize = 640;

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
    /// Prepares a context that has just been allocated.
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
        let (n, page, place) = (index(linear), linear & !PAGE_MASK, place(view));
        if !std::mem::replace(&mut self.groups[place][n / NEIGHBOURS], true) {
            self.used_groups += 1;
            if self.used_groups > MOST_GROUPS {
                self.give_back(context);
                return self.insert(context, (view, write), linear, host, global);
            }
        }
        let written = &self.written[place];
        if self.filled[place].is_too_much() || written.len() > 2 * ENTRIES {
            self.forget(context, true);
        }
        let tables = &mut context.tlb[place];
        let before = tables.is_used(n);
        if tables.read[n] != page || tables.distance(n) != host.wrapping_sub(page) {
            tables.forget(n);
            tables.set_read(n, page, host);
        }
        let written = &mut self.written[place];
        if write && tables.write[n] != page {
            tables.set_write(n, page, host);
            written.push(n as u32);
        }
        self.filled[place].note(n, before, global);
    }

    /// Whether the page of `linear` is known, and has a low address.
    pub(crate) fn knows_low(context: &Context, (view, write): (u8, bool), linear: u64) -> bool {
        let tables = &context.tlb[place(view)];
        let table = if write { &tables.low_write } else { &tables.low_read };
        is_low(linear.wrapping_add(table.get(index(linear))))
    }

    /// Remembers `linear`'s page as that of the view's stack, if it is known, for writes if need be; whether it is.
    pub(crate) fn set_stack(context: &mut Context, (view, write): (u8, bool), linear: u64) -> bool {
        let (tables, n, page) = (&context.tlb[place(view)], index(linear), linear & !PAGE_MASK);
        let writable = tables.write[n] == page;
        let known = if write { writable } else { tables.read[n] == page };
        if known {
            context.set_stack(view, page, writable, tables.distance(n));
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
        let given_back = unsafe { memory::give_back(tables.cast(), size_of_val(&context.tlb)) };
        let touched = if given_back { 1 } else { ENTRIES };
        for tables in &mut context.tlb {
            (0..touched).for_each(|n| tables.forget(n));
        }
    }

    /// Forgets where writes go.
    pub(crate) fn clear_writes(&mut self, context: &mut Context) {
        context.forget_stacks();
        for (written, tables) in self.written.iter_mut().zip(&mut context.tlb) {
            for n in written.drain(..).map(|n| n as usize) {
                tables.forget_write(n);
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
                if tables.write[n] != never(n) && watched(tables.write[n].wrapping_add(tables.distance(n))) {
                    tables.forget_write(n);
                }
                tables.write[n] != never(n)
            });
        }
    }
}

#[cfg(test)]
#[path = "tlb_test.rs"]
mod tests;
