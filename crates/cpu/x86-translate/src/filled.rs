//! Which entries of a table are in use, so that forgetting them takes no longer than remembering did.

fn is_set(bits: &[u64], n: usize) -> bool {
    bits[n / 64] >> (n % 64) & 1 != 0
}

/// Of one table.
#[derive(Debug)]
pub(crate) struct Filled {
    /// Entries that may be in use: those of pages that only one process context has, and those of global pages.
    lists: [Vec<u32>; 2],
    /// A bit for each entry: it is a global page's.
    global: Box<[u64]>,
    len: usize,
}

impl Filled {
    /// For a table of `len` entries.
    pub(crate) fn new(len: usize) -> Self {
        Self { lists: Default::default(), global: vec![0; len.div_ceil(64)].into(), len }
    }

    fn is_global(&self, n: usize) -> bool {
        is_set(&self.global, n)
    }

    /// Entry `n` is in use now; `before`: it was.
    pub(crate) fn note(&mut self, n: usize, before: bool, global: bool) {
        if before && self.is_global(n) == global {
            return;
        }
        let bit = 1 << (n % 64);
        if global {
            self.global[n / 64] |= bit;
        } else {
            self.global[n / 64] &= !bit;
        }
        self.lists[usize::from(global)].push(n as u32);
    }

    /// Whether there is too much to keep account of: then everything must be forgotten.
    pub(crate) fn is_too_much(&self) -> bool {
        self.lists.iter().any(|list| list.len() > 2 * self.len)
    }

    /// Entry `n` is in use now, and is of one process context.
    pub(crate) fn add(&mut self, n: usize) {
        self.global[n / 64] &= !(1 << (n % 64));
        self.lists[0].push(n as u32);
    }

    /// Calls `forget` for each entry in use, some of them twice; without `all`, only for those of pages that are not
    /// global.
    pub(crate) fn forget(&mut self, all: bool, mut forget: impl FnMut(usize)) {
        let [own, global] = &mut self.lists;
        for n in own.drain(..) {
            let n = n as usize;
            if all || !is_set(&self.global, n) {
                forget(n);
            }
        }
        if all {
            global.drain(..).for_each(|n| forget(n as usize));
        }
    }
}
