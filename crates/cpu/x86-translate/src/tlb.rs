//! The translation look-aside buffer that translated code looks into by itself.
//!
//! One for reads and one for writes of each view; the entry is found by the page's number. An entry's tag is the
//! page's linear address, so that the exclusive or of tag and address is an offset into the page if the tag is the
//! page's, and a large number if it is not: one comparison tells, and whether the access would cross into the next
//! page. The interpreter's own buffer ([`posada_x86`]) and the page tables stand behind it.
//!
//! There is no entry for writes to a page that holds translated code: such a write must be seen. Pages are lent for
//! writing, and given back when a virtual CPU wants to watch one of them ([`GuestRam::lend`]).
//!
//! [`GuestRam::lend`]: posada_memory::GuestRam::lend

use crate::filled::Filled;

/// Entries in each table.
pub(crate) const ENTRIES: usize = 1 << 14;
/// A linear address, shifted right by this, and masked by [`INDEX_MASK`], is an entry's offset in its table.
pub(crate) const INDEX_SHIFT: u8 = 12 - 4;
pub(crate) const INDEX_MASK: i32 = (ENTRIES as i32 - 1) << 4;
const PAGE_MASK: u64 = 0xfff;

pub(crate) type Table = [Entry; ENTRIES];

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// The page's linear address.
    pub(crate) tag: u64,
    /// Where the page is in the host's memory.
    pub(crate) host: u64,
}

/// A tag that no address with this index has. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    if index == 0 { 1 << 12 } else { 0 }
}

fn index(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// The tables' account.
pub(crate) struct Tlb {
    filled: [[Filled; 2]; 3],
}

impl Tlb {
    /// Prepares tables whose memory is all zeros.
    pub(crate) fn new(tables: &mut [[Table; 2]; 3]) -> Self {
        for table in tables.iter_mut().flatten() {
            table[0].tag = never(0);
        }
        Self { filled: std::array::from_fn(|_| std::array::from_fn(|_| Filled::new(ENTRIES))) }
    }

    /// Remembers that `linear`'s page is at `host`.
    pub(crate) fn insert(
        &mut self,
        tables: &mut [[Table; 2]; 3],
        (view, write): (usize, bool),
        linear: u64,
        host: u64,
        global: bool,
    ) {
        let n = index(linear);
        let entry = &mut tables[view][usize::from(write)][n];
        let before = entry.tag != never(n);
        *entry = Entry { tag: linear & !PAGE_MASK, host };
        if !self.filled[view][usize::from(write)].note(n, before, global) {
            self.clear(tables, true);
        }
    }

    /// Forgets everything, or all but global pages.
    pub(crate) fn clear(&mut self, tables: &mut [[Table; 2]; 3], all: bool) {
        for (filled, table) in self.filled.iter_mut().flatten().zip(tables.iter_mut().flatten()) {
            filled.forget(all, |n| table[n].tag = never(n));
        }
    }

    /// Forgets where writes go.
    pub(crate) fn clear_writes(&mut self, tables: &mut [[Table; 2]; 3]) {
        for ([_, filled], [_, table]) in self.filled.iter_mut().zip(tables) {
            filled.forget(true, |n| table[n].tag = never(n));
        }
    }

    /// Forgets one page.
    pub(crate) fn clear_page(tables: &mut [[Table; 2]; 3], linear: u64) {
        let n = index(linear);
        for table in tables.iter_mut().flatten() {
            if table[n].tag == linear & !PAGE_MASK {
                table[n].tag = never(n);
            }
        }
    }

    /// Forgets where writes to pages go that `watched` says of, by their address in the host's memory.
    pub(crate) fn protect(&mut self, tables: &mut [[Table; 2]; 3], watched: impl Fn(u64) -> bool) {
        for (filled, table) in self.filled.iter().zip(tables.iter_mut()) {
            filled[1].each(|n| {
                if table[1][n].tag != never(n) && watched(table[1][n].host) {
                    table[1][n].tag = never(n);
                }
            });
        }
    }
}
