//! The memory-management unit: a software translation look-aside buffer (TLB).
//!
//! An entry says where in RAM a linear page lies, and for which kinds of access the page tables' word is already
//! known. Its tags are the page's address with a *generation* in the low bits, so that one comparison answers
//! "this page, this kind of access, not flushed since, and not crossing into the next page". Whose rights count
//! picks a part of the buffer (a *view*). What the buffer cannot answer goes the slow way, through the page
//! tables ([`crate::paging`]), to devices, and across pages.

use posada_memory::{Gpa, GuestRam, PAGE_SIZE};

pub(crate) const PAGE_MASK: u64 = PAGE_SIZE as u64 - 1;
/// Entries in each view's part.
const ENTRIES: usize = 1024;
const VIEWS: usize = 4;
/// Generations are counted up to here; then the buffer is emptied and counting begins again.
const LAST_GENERATION: u64 = PAGE_MASK - 1;
/// A tag that no access has: its low bits are no generation.
const NEVER: u64 = u64::MAX;
/// Process contexts whose translations are kept while others run.
const CONTEXTS: usize = 8;
/// No process-context identifier.
const NOBODY: u16 = u16::MAX;

/// What an access does. The values are the bits of a page fault's error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Whose rights a memory access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum View {
    /// CPL below 3, with user pages out of reach (SMAP).
    SupervisorGuarded = 0,
    /// CPL below 3.
    Supervisor = 1,
    /// CPL 3.
    User = 2,
    /// Any, where each access needs a closer look (alignment checks, data breakpoints): never buffered.
    Watched = 3,
}

#[derive(Clone, Copy)]
struct Entry {
    read: u64,
    write: u64,
    execute: u64,
    /// Added to a linear address, wrapping, this gives the offset in RAM.
    offset: usize,
    /// The page's tag in the generation of global pages, or [`NEVER`].
    global: u64,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, execute: NEVER, offset: 0, global: NEVER };

impl Entry {
    #[inline(always)]
    fn place(&self, linear: u64) -> usize {
        (linear as usize).wrapping_add(self.offset)
    }
}

/// Translations of one process context, known by their generation.
#[derive(Clone, Copy)]
struct Context {
    /// Process-context identifier.
    pcid: u16,
    generation: u64,
}

/// Regions that may have been mapped by large pages since the buffer was last emptied. Each has a place, found by its number and by
/// which half of the address space it is in; where several share one, others may seem to have large pages, too, but not the
/// other way round. A kernel maps all of RAM by large pages: they must not make a program's small ones look large.
struct LargePages<const PLACES: usize> {
    regions: Box<[u64; PLACES]>,
    /// The region's size, as a power of two.
    shift: u32,
}

impl<const PLACES: usize> LargePages<PLACES> {
    const NONE: u64 = u64::MAX;
    const SEVERAL: u64 = u64::MAX - 1;

    fn new(shift: u32) -> Self {
        Self { regions: Box::new([Self::NONE; PLACES]), shift }
    }

    /// The region that an address is in, and its place.
    fn region(&self, linear: u64) -> (u64, usize) {
        let (region, half) = (linear >> self.shift, PLACES / 2);
        (region, region as usize % half + if linear >> 63 == 0 { 0 } else { half })
    }

    fn mark(&mut self, linear: u64) {
        let (region, n) = self.region(linear);
        let place = &mut self.regions[n];
        *place = if [Self::NONE, region].contains(place) { region } else { Self::SEVERAL };
    }

    fn marked(&self, linear: u64) -> bool {
        let (region, n) = self.region(linear);
        [Self::SEVERAL, region].contains(&self.regions[n])
    }

    fn clear(&mut self) {
        self.regions.fill(Self::NONE);
    }
}

pub(crate) struct Mmu {
    entries: Box<[Entry; ENTRIES * VIEWS]>,
    /// Where the current view's part begins.
    start: usize,
    /// In the low 12 bits of every valid tag: which process context a translation belongs to, and that it has
    /// not been flushed since.
    generation: u64,
    /// The newest generation of any context.
    newest: u64,
    global_generation: u64,
    /// Contexts that can be gone back to; those used last come first.
    contexts: [Context; CONTEXTS],
    /// Pages of 2 MiB, or halves of 4 MiB.
    large: LargePages<4096>,
    /// Pages of 1 GiB.
    huge: LargePages<1024>,
    pub user: bool,
    pub smap: bool,
    alignment: bool,
    watch: bool,
    /// What has been forgotten since somebody asked.
    stale: Stale,
    /// The current code page: its tag, and the difference between its offset in RAM and its linear address.
    code_tag: u64,
    code_offset: usize,
    /// It is a global page.
    code_global: bool,
}

/// Translations of addresses that have been forgotten, and must be by all who have kept them elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stale {
    /// All of them.
    pub all: bool,
    /// All but those of global pages.
    pub context: bool,
    pages: [u64; Self::PAGES],
    count: usize,
}

impl Stale {
    /// Single pages that are told of; when there are more, all is forgotten.
    const PAGES: usize = 8;

    /// Whether nothing has been forgotten.
    #[inline]
    pub fn is_nothing(&self) -> bool {
        !self.all && !self.context && self.count == 0
    }

    /// Linear addresses of single pages.
    pub fn pages(&self) -> &[u64] {
        &self.pages[..self.count]
    }

    fn add_page(&mut self, linear: u64) {
        match self.pages.get_mut(self.count) {
            Some(page) => {
                *page = linear & !PAGE_MASK;
                self.count += 1;
            }
            None => self.all = true,
        }
    }
}

/// What the page tables allow, found by a walk; for an entry of the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub read: bool,
    pub write: bool,
    pub execute: bool,
    pub global: bool,
    /// The page's size, as a power of two.
    pub size: u32,
}

impl Mmu {
    pub(crate) fn new() -> Self {
        let entries = vec![EMPTY; ENTRIES * VIEWS].into_boxed_slice();
        Self {
            entries: entries.try_into().unwrap_or_else(|_| unreachable!("the length is the array's")),
            start: 0,
            generation: 0,
            newest: 0,
            global_generation: 0,
            contexts: [Context { pcid: NOBODY, generation: 0 }; CONTEXTS],
            large: LargePages::new(21),
            huge: LargePages::new(30),
            user: false,
            smap: false,
            alignment: false,
            watch: false,
            stale: Stale::default(),
            code_tag: NEVER,
            code_offset: 0,
            code_global: false,
        }
    }

    pub(crate) fn set_access(&mut self, user: bool, smap: bool) {
        (self.user, self.smap) = (user, smap);
        self.choose();
    }

    /// Whether unaligned accesses fault.
    pub(crate) fn set_alignment_check(&mut self, on: bool) {
        self.alignment = on;
        self.choose();
    }

    pub(crate) fn checks_alignment(&self) -> bool {
        self.alignment
    }

    /// Whether each data access must be looked at, for breakpoints.
    pub(crate) fn set_watch(&mut self, on: bool) {
        self.watch = on;
        self.choose();
    }

    pub(crate) fn watches(&self) -> bool {
        self.watch
    }

    fn choose(&mut self) {
        let view = if self.alignment || self.watch {
            View::Watched
        } else if self.user {
            View::User
        } else if self.smap {
            View::SupervisorGuarded
        } else {
            View::Supervisor
        };
        let start = view as usize * ENTRIES;
        if start != self.start {
            self.start = start;
            self.code_tag = NEVER;
        }
    }

    #[inline(always)]
    fn slot(start: usize, linear: u64) -> usize {
        (start + (linear as usize >> 12) % ENTRIES) % (ENTRIES * VIEWS)
    }

    /// Where a read of `size` bytes at `linear` is in RAM, if the buffer knows.
    #[inline(always)]
    pub(crate) fn find_read(&self, linear: u64, size: u64) -> Option<usize> {
        let entry = &self.entries[Self::slot(self.start, linear)];
        let tag = linear.wrapping_add(size - 1) & !PAGE_MASK | self.generation;
        (entry.read == tag).then(|| entry.place(linear))
    }

    /// Where a write of `size` bytes at `linear` is in RAM, if the buffer knows.
    #[inline(always)]
    pub(crate) fn find_write(&self, linear: u64, size: u64) -> Option<usize> {
        let entry = &self.entries[Self::slot(self.start, linear)];
        let tag = linear.wrapping_add(size - 1) & !PAGE_MASK | self.generation;
        (entry.write == tag).then(|| entry.place(linear))
    }

    /// Where the code at `linear` is in RAM, if the buffer knows.
    #[inline(always)]
    pub(crate) fn find_code(&mut self, linear: u64) -> Option<usize> {
        let tag = linear & !PAGE_MASK | self.generation;
        if self.code_tag == tag {
            return Some((linear as usize).wrapping_add(self.code_offset));
        }
        let entry = &self.entries[Self::slot(self.start, linear)];
        if entry.execute == tag {
            (self.code_tag, self.code_offset) = (tag, entry.offset);
            self.code_global = entry.global == (linear & !PAGE_MASK | self.global_generation);
            return Some(entry.place(linear));
        }
        None
    }

    /// A global page's entry outlives the flushes that a change of `cr3` brings: whether there is one for
    /// `linear`, which is brought up to date.
    pub(crate) fn revive_global(&mut self, linear: u64) -> bool {
        let page = linear & !PAGE_MASK;
        let entry = &mut self.entries[Self::slot(self.start, linear)];
        if entry.global != (page | self.global_generation) {
            return false;
        }
        let current = page | self.generation;
        let mut revived = false;
        for tag in [&mut entry.read, &mut entry.write, &mut entry.execute] {
            if *tag != NEVER && *tag != current {
                *tag = current;
                revived = true;
            }
        }
        revived
    }

    /// Remembers a translation. `view` is whose rights were asked about.
    pub(crate) fn insert(&mut self, view: View, linear: u64, page: usize, allowed: Allowed) {
        if view == View::Watched {
            return;
        }
        match allowed.size {
            12 => {}
            30 => self.huge.mark(linear),
            21 => self.large.mark(linear),
            _ => {
                self.large.mark(linear);
                self.large.mark(linear ^ 1 << 21);
            }
        }
        let base = linear & !PAGE_MASK;
        let tag = |allowed: bool| if allowed { base | self.generation } else { NEVER };
        let entry = Entry {
            read: tag(allowed.read),
            write: tag(allowed.write),
            execute: tag(allowed.execute),
            offset: page.wrapping_sub(base as usize),
            global: if allowed.global { base | self.global_generation } else { NEVER },
        };
        self.entries[Self::slot(view as usize * ENTRIES, linear)] = entry;
    }

    /// What has been forgotten since this was last asked.
    pub(crate) fn take_stale(&mut self) -> Stale {
        std::mem::take(&mut self.stale)
    }

    /// Whether the translation of `linear`, which must have just been looked up with the current rights, is that of
    /// a global page.
    pub(crate) fn is_global(&self, linear: u64) -> bool {
        // Another page may have taken the code page's entry.
        if self.code_tag == (linear & !PAGE_MASK | self.generation) {
            return self.code_global;
        }
        let entry = &self.entries[Self::slot(self.start, linear)];
        entry.global == (linear & !PAGE_MASK | self.global_generation)
    }

    /// The view that the current rights name, watched or not.
    pub(crate) fn view(&self) -> View {
        match self.start / ENTRIES {
            0 => View::SupervisorGuarded,
            1 => View::Supervisor,
            2 => View::User,
            _ => View::Watched,
        }
    }

    /// A load of `cr3`: from now on translations are those of the context `pcid`, 0 where there are none. Those
    /// that it had before are forgotten unless `keep` is set; global pages stay in any case.
    pub(crate) fn switch(&mut self, pcid: u16, keep: bool) {
        self.stale.context = true;
        self.code_tag = NEVER;
        let known = self.contexts.iter().position(|context| context.pcid == pcid);
        // The context used longest ago makes room.
        let slot = known.unwrap_or(CONTEXTS - 1);
        let generation = match known {
            Some(slot) if keep => self.contexts[slot].generation,
            _ => match self.new_generation() {
                Some(generation) => generation,
                None => return,
            },
        };
        self.contexts.copy_within(..slot, 1);
        self.contexts[0] = Context { pcid, generation };
        self.generation = generation;
    }

    /// Forgets all translations of one context but those of global pages; `current`: it is the one in use.
    pub(crate) fn flush_context(&mut self, pcid: u16, current: bool) {
        if current {
            self.switch(pcid, false);
        } else if let Some(slot) = self.contexts.iter().position(|context| context.pcid == pcid) {
            self.contexts[slot].pcid = NOBODY;
        }
    }

    /// Forgets all translations of all contexts but those of global pages; `pcid` is in use.
    pub(crate) fn flush_contexts(&mut self, pcid: u16) {
        self.contexts.fill(Context { pcid: NOBODY, generation: 0 });
        self.switch(pcid, false);
    }

    /// A generation that no translation has. `None`: there was none left, and the buffer is empty now.
    fn new_generation(&mut self) -> Option<u64> {
        if self.newest == LAST_GENERATION {
            self.empty();
            return None;
        }
        self.newest += 1;
        Some(self.newest)
    }

    /// Forgets all translations.
    pub(crate) fn flush_all(&mut self) {
        self.stale.all = true;
        self.code_tag = NEVER;
        self.contexts.fill(Context { pcid: NOBODY, generation: 0 });
        self.large.clear();
        self.huge.clear();
        if self.global_generation == LAST_GENERATION {
            return self.empty();
        }
        self.global_generation += 1;
        if let Some(generation) = self.new_generation() {
            self.generation = generation;
        }
    }

    /// Forgets all translations for good, and starts counting again.
    #[cold]
    fn empty(&mut self) {
        self.stale.all = true;
        self.entries.fill(EMPTY);
        self.contexts.fill(Context { pcid: NOBODY, generation: 0 });
        self.large.clear();
        self.huge.clear();
        (self.generation, self.newest, self.global_generation) = (0, 0, 0);
        self.code_tag = NEVER;
    }

    /// Forgets the translation of one page, global or not, in all contexts: `invlpg`. Of a large page the buffer
    /// has many parts, which are not looked for: everything goes.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if self.large.marked(linear) || self.huge.marked(linear) {
            return self.flush_all();
        }
        self.stale.add_page(linear);
        self.code_tag = NEVER;
        for view in 0..VIEWS {
            let entry = &mut self.entries[Self::slot(view * ENTRIES, linear)];
            *entry = EMPTY;
        }
    }
}

/// One part of an access that lies within a page: RAM at an offset, or a device at a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Ram(usize),
    Device(u64),
}

impl Place {
    pub(crate) fn of(ram: &GuestRam, physical: u64) -> Self {
        match ram.offset(Gpa(physical)) {
            Some(offset) => Self::Ram(offset),
            None => Self::Device(physical),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_page_stays_global_when_another_page_takes_its_entry() {
        let mut mmu = Mmu::new();
        let page = |linear: u64| (linear, linear | (ENTRIES as u64) << 12);
        let allowed = |global| Allowed { read: true, write: true, execute: true, size: 12, global };
        for global in [true, false] {
            let (code, data) = page(0x40_0000 + 0x1000 * u64::from(global));
            mmu.insert(mmu.view(), code, 0x1000, allowed(global));
            assert!(mmu.find_code(code + 5).is_some());
            mmu.insert(mmu.view(), data, 0x2000, allowed(!global));
            assert_eq!((mmu.find_code(code), mmu.is_global(code)), (Some(0x1000), global));
        }
    }

    #[test]
    fn large_pages_are_remembered_and_make_no_others_look_large() {
        const KERNEL: u64 = 0xffff_8880_0000_0000;
        let regions = || (0..256_u64).map(|n| n << 21);
        let mut pages = LargePages::<4096>::new(21);
        regions().for_each(|region| pages.mark(KERNEL + region));
        assert!(regions().all(|region| pages.marked(KERNEL + region + 0x1000)));
        assert!(regions().all(|region| !pages.marked(region)), "a program's are others");
        assert!(!pages.marked(KERNEL + (256 << 21)));
        // Two in one place, which do not forget each other.
        let far = KERNEL + (2048 << 21);
        pages.mark(far);
        assert!(pages.marked(far) && pages.marked(KERNEL));
        pages.clear();
        assert!(!pages.marked(KERNEL) && !pages.marked(far));
    }
}
