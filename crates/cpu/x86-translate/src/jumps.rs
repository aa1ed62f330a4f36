//! Where translated code finds the translation of what it jumps to: by linear address, in each view.
//!
//! An entry holds for as long as translations of addresses do, and the code at them; when either changes, entries
//! are forgotten.

/// Entries in each table: the low bits of an address are its index.
pub(crate) const ENTRIES: usize = 1 << 16;

pub(crate) type Table = [Entry; ENTRIES];

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) linear: u64,
    pub(crate) host: u64,
}

/// An address that is not of this index. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    u64::from(index == 0)
}

/// Which entries are in use.
#[derive(Default)]
pub(crate) struct Filled {
    entries: [Vec<u16>; 3],
}

impl Filled {
    /// Prepares tables whose memory is all zeros.
    pub(crate) fn new(tables: &mut [Table; 3]) -> Self {
        for table in tables {
            table[0].linear = never(0);
        }
        Self::default()
    }

    pub(crate) fn insert(&mut self, tables: &mut [Table; 3], view: usize, linear: u64, host: u64) {
        let n = linear as usize % ENTRIES;
        let entry = &mut tables[view][n];
        if entry.linear == never(n) {
            self.entries[view].push(n as u16);
        }
        *entry = Entry { linear, host };
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, tables: &mut [Table; 3]) {
        for (filled, table) in self.entries.iter_mut().zip(tables) {
            for n in filled.drain(..) {
                table[usize::from(n)].linear = never(usize::from(n));
            }
        }
    }
}
