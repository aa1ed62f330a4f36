//! What the monitor wants to know about writes to a page.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::PAGE_SIZE;
use crate::members::{Members, Membership};

/// The page holds code that an engine has decoded or translated.
const CODE: u32 = 1;
/// All virtual CPUs know of the code: no store can miss the mark any more.
const SETTLED: u32 = 2;
/// The page has been lent to an engine, whose code stores to it without a look at the mark.
const LENT: u32 = 4;
/// Who keeps the log of written pages has not been told of a write to this one.
const UNLOGGED: u32 = 8;
/// What is added to a page's word for the next version.
const VERSION: u32 = 16;
const MARKS: u32 = VERSION - 1;

/// Marks and a code version for each page, shared by all virtual CPUs and devices.
///
/// It also is the *dirty bitmap* that `vm-memory` reports its writes to, so that a device which writes to guest
/// memory through that crate's interface invalidates code like any store of a virtual CPU.
#[derive(Clone, Debug)]
pub struct PageMarks {
    /// Each page's version and marks in one word, so that they change together.
    pages: Arc<[AtomicU32]>,
    /// Counts the writes that hit code, of all pages.
    epoch: Arc<AtomicU64>,
    members: Arc<Members>,
    /// Pages that have been written since the log was last taken.
    log: Arc<Mutex<Vec<usize>>>,
    /// Where the bytes that this view speaks of begin, in bytes from the start of RAM.
    start: usize,
}

impl PageMarks {
    pub(crate) fn new(bytes: usize) -> Self {
        let pages = (0..bytes.div_ceil(PAGE_SIZE)).map(|_| AtomicU32::new(0)).collect();
        Self { pages, epoch: Arc::default(), members: Arc::default(), log: Arc::default(), start: 0 }
    }

    pub(crate) fn starting_at(&self, start: usize) -> Self {
        Self { start, ..self.clone() }
    }

    pub(crate) fn join(&self, call: Box<dyn Fn() + Send + Sync>) -> Membership {
        Membership::new(&self.members, call)
    }

    /// Whether a write to `page` must be reported with [`written`](Self::written).
    #[inline(always)]
    pub(crate) fn is_marked(&self, page: usize) -> bool {
        self.pages[page].load(Ordering::Relaxed) & (CODE | UNLOGGED) != 0
    }

    /// Whether `page` holds watched code.
    #[inline(always)]
    pub(crate) fn is_code(&self, page: usize) -> bool {
        self.pages[page].load(Ordering::Relaxed) & CODE != 0
    }

    /// [`is_marked`](Self::is_marked) without a look at how many pages there are.
    ///
    /// # Safety
    /// `page` must be below the number of pages.
    #[inline(always)]
    pub(crate) unsafe fn is_marked_unchecked(&self, page: usize) -> bool {
        // SAFETY: the caller promises that the page exists.
        unsafe { self.pages.get_unchecked(page) }.load(Ordering::Relaxed) & (CODE | UNLOGGED) != 0
    }

    /// A write to `page` has happened: drops its marks, tells everyone, and returns whether it held code.
    #[cold]
    pub(crate) fn written(&self, page: usize) -> bool {
        self.note(page);
        let moved =
            |word: u32| (word & CODE != 0).then(|| (word & (LENT | UNLOGGED | !MARKS)).wrapping_add(VERSION));
        let had_code = self.pages[page].fetch_update(Ordering::AcqRel, Ordering::Acquire, moved).is_ok();
        if had_code {
            self.epoch.fetch_add(1, Ordering::AcqRel);
            self.members.code_written();
        }
        had_code
    }

    /// Puts a page that is written into the log, if there is one.
    fn note(&self, page: usize) {
        if self.pages[page].load(Ordering::Relaxed) & UNLOGGED != 0
            && self.pages[page].fetch_and(!UNLOGGED, Ordering::AcqRel) & UNLOGGED != 0
        {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(page);
        }
    }

    pub(crate) fn log_writes(&self) {
        for page in self.pages.iter() {
            page.fetch_or(UNLOGGED, Ordering::AcqRel);
        }
    }

    pub(crate) fn take_written(&self, pages: &mut Vec<usize>) {
        let first = pages.len();
        pages.append(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
        for page in &pages[first..] {
            self.pages[*page].fetch_or(UNLOGGED, Ordering::AcqRel);
        }
    }

    #[inline]
    pub(crate) fn watch_code(&self, page: usize) -> u32 {
        let word = &self.pages[page];
        let mut seen = word.load(Ordering::Acquire);
        if seen & SETTLED == 0 {
            seen = word.fetch_or(CODE, Ordering::AcqRel) | CODE;
            self.settle(word, seen);
        }
        seen & !MARKS
    }

    #[cold]
    fn settle(&self, word: &AtomicU32, seen: u32) {
        if seen & SETTLED == 0 {
            self.members.settle(seen & LENT != 0);
            // If the version has moved on meanwhile, this code is stale already.
            let settled = (seen | SETTLED) & !LENT;
            let _ = word.compare_exchange(seen, settled, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Lends `page`, unless it holds watched code.
    pub(crate) fn lend(&self, page: usize) -> bool {
        let lent = |word: u32| (word & CODE == 0).then_some(word | LENT);
        let is_lent = self.pages[page].fetch_update(Ordering::AcqRel, Ordering::Relaxed, lent).is_ok();
        if is_lent {
            self.note(page);
        }
        is_lent
    }

    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn version(&self, page: usize) -> u32 {
        self.pages[page].load(Ordering::Acquire) & !MARKS
    }
}

impl WithBitmapSlice<'_> for PageMarks {
    type S = Self;
}

impl BitmapSlice for PageMarks {}

impl Bitmap for PageMarks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        // A device's write is seen before its look at the marks is.
        fence(Ordering::SeqCst);
        let first = self.start.saturating_add(offset) / PAGE_SIZE;
        let last = self.start.saturating_add(offset).saturating_add(len - 1) / PAGE_SIZE;
        for page in first..=last.min(self.pages.len().saturating_sub(1)) {
            if self.is_marked(page) {
                self.written(page);
            }
        }
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        // Dirty pages are not logged; `true` is the answer that loses nothing.
        true
    }

    fn slice_at(&self, offset: usize) -> Self {
        self.starting_at(self.start.saturating_add(offset))
    }
}
