//! Page tables of guests, built entry by entry.

use posada_memory::GuestRam;

/// Bits of a page-table entry (AMD APM volume 2, section 5.4.1).
pub(crate) mod pte {
    #![allow(missing_docs)]
    pub(crate) const P: u64 = 1 << 0;
    pub(crate) const RW: u64 = 1 << 1;
    pub(crate) const US: u64 = 1 << 2;
    pub(crate) const A: u64 = 1 << 5;
    pub(crate) const D: u64 = 1 << 6;
    pub(crate) const PS: u64 = 1 << 7;
    pub(crate) const G: u64 = 1 << 8;
    pub(crate) const NX: u64 = 1 << 63;
    /// Present, writable, the user's.
    pub(crate) const ALL: u64 = P | RW | US;
}

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// Two levels of 4-byte entries.
    Bits32,
    /// Three levels of 8-byte entries, legacy PAE.
    Pae,
    /// Four levels, long mode.
    Long,
}

impl Paging {
    /// All three.
    pub(crate) const ALL: [Self; 3] = [Self::Bits32, Self::Pae, Self::Long];

    fn levels(self) -> u32 {
        match self {
            Self::Bits32 => 2,
            Self::Pae => 3,
            Self::Long => 4,
        }
    }

    fn index_bits(self) -> u32 {
        if self == Self::Bits32 { 10 } else { 9 }
    }

    /// The size in bytes of the pages that an entry of `level` maps: 4 KiB at level 0.
    pub(crate) fn page_size(self, level: u32) -> u64 {
        1 << (12 + level * self.index_bits())
    }
}

/// Tables under construction.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    paging: Paging,
    /// Physical address of the top table: the value of `cr3`.
    pub root: u64,
    next: u64,
}

impl Tables {
    /// Empty tables in the zeroed RAM from physical address `start` on.
    pub(crate) fn new(paging: Paging, start: u64) -> Self {
        Self { paging, root: start, next: start + 0x1000 }
    }

    fn read(&self, ram: &GuestRam, at: u64) -> u64 {
        let at = at as usize;
        if self.paging == Paging::Bits32 { u64::from(ram.load::<u32>(at)) } else { ram.load(at) }
    }

    fn write(&self, ram: &GuestRam, at: u64, entry: u64) {
        if self.paging == Paging::Bits32 {
            ram.store(at as usize, entry as u32);
        } else {
            ram.store(at as usize, entry);
        }
    }

    /// Physical address of the entry for `linear` at `level`, 0 being that of 4 KiB pages. Tables above it are
    /// made where they are missing, with all rights.
    pub(crate) fn entry(&mut self, ram: &GuestRam, linear: u64, level: u32) -> u64 {
        let (size, bits) = (if self.paging == Paging::Bits32 { 4 } else { 8 }, self.paging.index_bits());
        let mut table = self.root;
        let mut at = self.paging.levels();
        loop {
            at -= 1;
            let index = linear >> (12 + at * bits) & ((1 << bits) - 1);
            let index = if self.paging == Paging::Pae && at == 2 { index & 3 } else { index };
            let entry = table + index * size;
            if at == level {
                return entry;
            }
            let value = self.read(ram, entry);
            assert!(value & pte::PS == 0 || at == 3, "a large page is in the way of {linear:#x}");
            if value & pte::P == 0 {
                // The top level of PAE has no rights of its own.
                let rights = if self.paging == Paging::Pae && at == 2 { pte::P } else { pte::ALL };
                self.write(ram, entry, self.next | rights);
                table = self.next;
                self.next += 0x1000;
            } else {
                table = value & 0x000f_ffff_ffff_f000;
            }
        }
    }

    /// Maps the page at `linear` to `physical` with these bits. At a `level` above 0 the caller gives
    /// [`pte::PS`], or it is the next table's address.
    pub(crate) fn map(&mut self, ram: &GuestRam, linear: u64, physical: u64, level: u32, bits: u64) {
        let entry = self.entry(ram, linear, level);
        self.write(ram, entry, physical | bits);
    }

    /// The entry for `linear` at `level`, as the processor has left it.
    pub(crate) fn look(&mut self, ram: &GuestRam, linear: u64, level: u32) -> u64 {
        let entry = self.entry(ram, linear, level);
        self.read(ram, entry)
    }
}
