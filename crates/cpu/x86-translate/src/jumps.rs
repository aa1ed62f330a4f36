//! Where translated code finds the translation of what it jumps to: by linear address, in each view, with the
//! vector registers in the host's or not.
//!
//! An entry holds for as long as translations of addresses do, and the code at them; when either changes, entries
//! are forgotten.
//!
//! A direct jump to another page need not look into the table each time: it is a [`Link`], which says in which *epoch*
//! that was done last. Whenever entries are forgotten another epoch begins, for users or for supervisors: theirs lasts for
//! as long as nothing but what users see is forgotten. A link of another epoch has to be found in the table again; then,
//! as a rule, it leads where it led before.

use std::collections::HashSet;

use posada_x86::View;

use crate::context::Context;
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

/// Links, at most.
pub(crate) const LINKS: usize = 1 << 20;

/// What is known of a direct jump to another page. All zeros: nothing.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// The epoch in which the table of jumps had what follows.
    pub(crate) epoch: u32,
    /// The code that it leads to: the low half of its address, as the table has it.
    pub(crate) code: u32,
    /// From the running page.
    pub(crate) distance: i32,
    unused: u32,
}

/// Which epoch is for a view: an index into the context's.
pub(crate) fn epoch(view: u8) -> usize {
    usize::from(view != View::User as u8)
}

/// Where an address is in a table.
pub(crate) fn index(linear: u64) -> usize {
    ((linear as u32).wrapping_mul(FACTOR) >> (32 - BITS)) as usize
}

/// An address that is not of this index. Zero is one, except for the first entry.
fn never(index: usize) -> u64 {
    u64::from(index == 0)
}

fn table_of_supervisors(table: usize) -> bool {
    epoch((table % 3) as u8) != 0
}

fn begin_epoch(context: &mut Context, n: usize) {
    context.epochs[n] = context.epochs[n].wrapping_add(1);
    if context.epochs[n] == 0 {
        // None of those that come now may be one that a link is of.
        forget_links(context);
        context.epochs[n] = 1;
    }
}

/// Forgets what is known of all links.
pub(crate) fn forget_links(context: &mut Context) {
    context.links.fill(Link { epoch: 0, code: 0, distance: 0, unused: 0 });
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
        for table in &mut context.jumps {
            table[0].linear = never(0);
        }
        // What is all zeros is of no epoch.
        context.epochs = [1; 2];
        Self {
            filled: std::array::from_fn(|_| Filled::new(ENTRIES)),
            pages: HashSet::new(),
            supervisors_own: false,
        }
    }

    /// Remembers that the code for `linear` is at `host`.
    pub(crate) fn insert(
        &mut self,
        context: &mut Context,
        table: usize,
        linear: u64,
        host: u64,
        global: bool,
    ) {
        let n = index(linear);
        let entry = &mut context.jumps[table][n];
        let before = entry.linear != never(n);
        *entry = Entry { linear, host };
        self.pages.insert(linear >> 12);
        self.supervisors_own |= !global && table_of_supervisors(table);
        if !self.filled[table].note(n, before, global) {
            self.clear(context, true);
        }
    }

    /// Forgets everything, or all but what is in global pages.
    pub(crate) fn clear(&mut self, context: &mut Context, all: bool) {
        for (filled, table) in self.filled.iter_mut().zip(&mut context.jumps) {
            filled.forget(all, |n| table[n].linear = never(n));
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
        self.filled[table].forget(true, |n| context.jumps[table][n].linear = never(n));
        begin_epoch(context, usize::from(table_of_supervisors(table)));
    }

    /// Notes that the table has what `link` leads to: the code at `distance` from the running page, for a view.
    pub(crate) fn link(context: &mut Context, link: u32, view: u8, code: usize, distance: i32) {
        let epoch = context.epochs[epoch(view)];
        context.links[link as usize] = Link { epoch, code: code as u32, distance, unused: 0 };
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
