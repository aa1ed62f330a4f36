//! Where translated code finds the translation of what it jumps to: by linear address, in each view, with the
//! vector registers in the host's or not.
//!
//! An entry holds for as long as translations of addresses do, and the code at them; when either changes, entries
//! are forgotten.
//!
//! Whenever entries are forgotten another *epoch* begins, for users or for supervisors: theirs lasts for as long as nothing but
//! what users see is forgotten. That happens with each change of the address space, so what is found then is found again
//! by the page: an address belongs to a [`CodePage`] in this epoch, and that page has code that is [`Known`] whatever
//! its address is by now. Only a page that is not known takes the monitor.
//!
//! A direct jump to another page need not look into the table at all: it is one of the [`Links`], which say in which epoch the page
//! that it leads to was there last.

use std::collections::HashSet;

use posada_x86::View;

use crate::alarm::NO_EPOCH;
use crate::block::Mode;
use crate::context::{Context, unknown_page};
use crate::filled::Filled;

/// One for each view without vectors, and one for each with them.
pub(crate) const TABLES: usize = 6;
/// Bits of an index, at most, and of that of what is known.
pub(crate) const BITS: u8 = 18;
/// Entries in each table.
const ENTRIES: usize = 1 << BITS;

/// Bits of an index into one table. A kernel jumps to less than all programs together, and a table takes memory.
pub(crate) const fn bits(table: usize) -> u8 {
    if table == NOTED_TABLE { BITS } else { 16 }
}

/// The bits of an address whose complement is its index, where they are: what is near is near in the table, too. Hardly ever do
/// two jumps lead to places that differ in the lowest bits alone.
///
/// Nothing may have the index 0, which is where everything is looked for once the alarm has rung: so that must not be where
/// functions begin, which are aligned. Hence the complement.
pub(crate) const fn mask(table: usize) -> u32 {
    ((1 << bits(table)) - 1) << LOWEST
}

/// The lowest bit of an address that is part of its index.
const LOWEST: u32 = 2;
/// An address's masked bits are to be shifted by this, to be the offset of an entry.
pub(crate) const SHIFT: u8 = (ENTRY_SHIFT - LOWEST) as u8;

/// The low half of a key, multiplied by this: the upper bits of the low half of that are its index. 2^32 by the golden ratio.
pub(crate) const FACTOR: u32 = 0x9e37_79b1;

pub(crate) type Table = [Entry; ENTRIES];

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) linear: u64,
    pub(crate) host: u64,
}

/// Links, at most.
pub(crate) const LINKS: usize = 1 << 20;

/// What is known of direct jumps to other pages, the *links*. All zeros: nothing. What is looked at each time is by itself, so that
/// caches hold more of it.
#[repr(C)]
pub(crate) struct Links {
    /// The epoch in which that page was where the jump leads.
    pub(crate) epochs: [u32; LINKS],
    /// The page, or zero: then the code that it leads to depends on more than that.
    pub(crate) pages: [u32; LINKS],
    /// From the running page.
    pub(crate) distances: [i32; LINKS],
}

/// Bits of the index of a [`CodePage`]: the page number's lowest.
const PAGE_BITS: u8 = 14;
pub(crate) type CodePages = [CodePage; 1 << PAGE_BITS];
/// What cuts a page number to an index.
pub(crate) const PAGE_INDEX: i32 = (1 << PAGE_BITS) - 1;

/// Which page is at a linear address, by the numbers that [`crate::cache`] gives them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CodePage {
    pub(crate) linear: u64,
    /// It is for this epoch.
    pub(crate) epoch: u32,
    pub(crate) page: u32,
}

/// The code for a place in a page, for one mode.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Known {
    /// The page, the mode and the place, as [`key`] has it.
    pub(crate) key: u64,
    pub(crate) host: u64,
}

pub(crate) type KnownCode = [Known; ENTRIES];

/// Where the page is in a key.
pub(crate) const KEY_PAGE: u8 = KEY_MODE + Mode::BITS as u8;
/// Where the mode is in it.
pub(crate) const KEY_MODE: u8 = 12;

/// What [`Known`] code is found by.
fn key(page: u32, mode: Mode, linear: u64) -> u64 {
    u64::from(page) << KEY_PAGE | mode.key() << KEY_MODE | linear & 0xfff
}

/// The table that translated code puts entries into by itself: of users with vectors.
pub(crate) const NOTED_TABLE: usize = Mode::ALL.jumps();
/// How many of these entries it may have put before somebody has taken note of them.
pub(crate) const MOST_NOTED: usize = 1 << 14;

/// The entries that translated code has put into [`NOTED_TABLE`].
#[repr(C)]
pub(crate) struct Noted {
    pub(crate) count: u32,
    /// Their addresses' masked bits.
    pub(crate) entries: [u32; MOST_NOTED],
}

/// The size of an [`Entry`], as a shift.
const ENTRY_SHIFT: u32 = size_of::<Entry>().trailing_zeros();

/// Which epoch is for a view: an index into the context's.
pub(crate) fn epoch(view: u8) -> usize {
    usize::from(view != View::User as u8)
}

/// Where a key is among what is known.
fn hash(key: u64) -> usize {
    ((key as u32).wrapping_mul(FACTOR) >> (32 - BITS)) as usize
}

/// Where an address is in a table.
pub(crate) fn index(linear: u64, table: usize) -> usize {
    (!(linear as u32) & mask(table)) as usize >> LOWEST
}

/// An address that is not of index `n`. Zero is one, except for its own.
fn never(n: usize, table: usize) -> u64 {
    u64::from(n == index(0, table)) << LOWEST
}

fn table_of_supervisors(table: usize) -> bool {
    epoch((table % 3) as u8) != 0
}

fn begin_epoch(context: &mut Context, n: usize) {
    context.epochs[n] += 1;
    if context.epochs[n] == NO_EPOCH {
        // None of those that come now may be one that a link is of.
        forget_numbers(context, LINKS);
        for page in &mut context.code_pages[n] {
            page.epoch = 0;
        }
        context.epochs[n] = 1;
    }
    context.alarm().set(context.epochs);
}

/// Forgets what is known of the first links, of so many, and of code: the numbers of links and pages are others' now.
pub(crate) fn forget_numbers(context: &mut Context, links: usize) {
    context.links.epochs[..links].fill(0);
    context.links.pages[..links].fill(0);
    context.known.fill(Known { key: 0, host: 0 });
}

/// The tables' account.
pub(crate) struct Jumps {
    filled: [Filled; TABLES],
    /// Pages that entries lead to.
    pages: HashSet<u64>,
    /// A table of supervisors has entries that are not of global pages.
    supervisors_own: bool,
}

impl Jumps {
    /// Prepares tables whose memory is all zeros.
    pub(crate) fn new(context: &mut Context) -> Self {
        for (number, table) in context.jumps.iter_mut().enumerate() {
            let zero = index(0, number);
            table[zero].linear = never(zero, number);
            // Once the alarm has rung, zero is looked for here, too, as is everything.
            table[0].linear = unknown_page();
        }
        // What is all zeros is of no epoch.
        context.epochs = [1; 2];
        context.alarm().set(context.epochs);
        Self {
            filled: std::array::from_fn(|_| Filled::new(ENTRIES)),
            pages: HashSet::new(),
            supervisors_own: false,
        }
    }

    /// Remembers that the code for `linear` is at `host`, unless that is where nothing may be; whether it does.
    pub(crate) fn insert(
        &mut self,
        context: &mut Context,
        table: usize,
        linear: u64,
        host: u64,
        global: bool,
    ) -> bool {
        if self.filled[table].is_too_much() {
            self.clear(context, true);
        }
        let n = index(linear, table);
        if n == 0 {
            return false;
        }
        let entry = &mut context.jumps[table][n];
        let before = entry.linear != never(n, table);
        *entry = Entry { linear, host };
        self.pages.insert(linear >> 12);
        self.supervisors_own |= !global && table_of_supervisors(table);
        self.filled[table].note(n, before, global);
        true
    }

    /// Remembers the code for `linear` by its page, which has this number.
    pub(crate) fn know(context: &mut Context, mode: Mode, linear: u64, host: u64, page: u32) {
        let n = epoch(mode.view);
        let epoch = context.epochs[n];
        let number = (linear >> 12) as usize % context.code_pages[n].len();
        context.code_pages[n][number] = CodePage { linear: linear & !0xfff, epoch, page };
        let key = key(page, mode, linear);
        context.known[hash(key)] = Known { key, host };
    }

    /// Takes note of what translated code has put into a table.
    pub(crate) fn take_note(&mut self, context: &mut Context) {
        let count = std::mem::take(&mut context.noted.count) as usize;
        for entry in &context.noted.entries[..count.min(MOST_NOTED)] {
            self.filled[NOTED_TABLE].add((entry >> LOWEST) as usize);
        }
    }

    /// Forgets everything, or all but what is in global pages.
    pub(crate) fn clear(&mut self, context: &mut Context, all: bool) {
        self.take_note(context);
        for (number, (filled, table)) in self.filled.iter_mut().zip(&mut context.jumps).enumerate() {
            filled.forget(all, |n| table[n].linear = never(n, number));
        }
        if all {
            self.pages.clear();
        }
        begin_epoch(context, 0);
        if std::mem::take(&mut self.supervisors_own) || all {
            begin_epoch(context, 1);
        }
    }

    /// Forgets what one table holds.
    pub(crate) fn clear_one(&mut self, context: &mut Context, table: usize) {
        self.take_note(context);
        self.filled[table].forget(true, |n| context.jumps[table][n].linear = never(n, table));
        begin_epoch(context, usize::from(table_of_supervisors(table)));
    }

    /// Notes that what `link` leads to, at `distance` from the running page, is in this page, in this epoch of a view's.
    pub(crate) fn link(context: &mut Context, link: u32, view: u8, page: u32, distance: i32) {
        let epoch = context.epochs[epoch(view)];
        let (links, n) = (&mut context.links, link as usize);
        (links.epochs[n], links.pages[n], links.distances[n]) = (epoch, page, distance);
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

#[cfg(test)]
#[path = "jumps_test.rs"]
mod tests;
