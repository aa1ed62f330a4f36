//! Where translated code finds the translation of what it jumps to: by linear address, in each view, with the
//! vector registers in the host's or not.
//!
//! An entry holds for as long as translations of addresses do, and the code at them; when either changes, entries
//! are forgotten.

use std::collections::HashSet;

use crate::filled::Filled;

/// One for each view without vectors, and one for each with them.
pub(crate) const TABLES: usize = 6;
/// Bits of an index.
pub(crate) const BITS: u8 = 18;
/// Entries in each table.
const ENTRIES: usize = 1 << BITS;
/// The low half of an address, multiplied by this: the upper bits of the low half of that are its index. 2^32 by the golden ratio.
pub(crate) const FACTOR: u32 = 0x9e37_79b1;

pub(crate) type Table = [Entry; ENTRIES];

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) linear: u64,
    pub(crate) host: u64,
}

/// Where an address is in a table.
pub(crate) fn index(linear: u64) -> usize {
    ((linear as u32).wrapping_mul(FACTOR) >> (32 - BITS)) as usize
}

/// An address that is not of this index. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    u64::from(index == 0)
}

/// The tables' account.
pub(crate) struct Jumps {
    filled: [Filled; TABLES],
    /// Pages that entries lead to.
    pages: HashSet<u64>,
}

impl Jumps {
    /// Prepares tables whose memory is all zeros.
    pub(crate) fn new(tables: &mut [Table; TABLES]) -> Self {
        for table in tables {
            table[0].linear = never(0);
        }
        Self { filled: std::array::from_fn(|_| Filled::new(ENTRIES)), pages: HashSet::new() }
    }

    /// Remembers that the code for `linear` is at `host`.
    pub(crate) fn insert(
        &mut self,
        tables: &mut [Table; TABLES],
        table: usize,
        linear: u64,
        host: u64,
        global: bool,
    ) {
        let n = index(linear);
        let entry = &mut tables[table][n];
        let before = entry.linear != never(n);
        *entry = Entry { linear, host };
        self.pages.insert(linear >> 12);
        if !self.filled[table].note(n, before, global) {
            self.clear(tables, true);
        }
    }

    /// Forgets everything, or all but what is in global pages.
    pub(crate) fn clear(&mut self, tables: &mut [Table; TABLES], all: bool) {
        for (filled, table) in self.filled.iter_mut().zip(tables) {
            filled.forget(all, |n| table[n].linear = never(n));
        }
        if all {
            self.pages.clear();
        }
    }

    /// Forgets what one table holds.
    pub(crate) fn clear_one(&mut self, tables: &mut [Table; TABLES], table: usize) {
        self.filled[table].forget(true, |n| tables[table][n].linear = never(n));
    }

    /// An entry depends on another page, besides the one that it leads to.
    pub(crate) fn add_page(&mut self, linear: u64) {
        self.pages.insert(linear >> 12);
    }

    /// Whether an entry may lead to a page.
    pub(crate) fn has_page(&self, linear: u64) -> bool {
        self.pages.contains(&(linear >> 12))
    }
}
