//! What the monitor wants to know about writes to a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::PAGE_SIZE;

/// The page holds code that an engine has decoded or translated.
const CODE: u8 = 1;

/// One mark and one code version a page, shared by all virtual CPUs and devices.
///
/// It also is the *dirty bitmap* that `vm-memory` reports its writes to, so that a device which writes to guest
/// memory through that crate's interface invalidates code like any store of a virtual CPU.
#[derive(Clone, Debug)]
pub struct PageMarks {
    pages: Arc<[Page]>,
    /// Counts the writes that hit code, of all pages.
    epoch: Arc<AtomicU64>,
    /// Where the bytes that this view speaks of begin, in bytes from the start of RAM.
    start: usize,
}

#[derive(Debug, Default)]
struct Page {
    version: AtomicU32,
    mark: AtomicU8,
}

impl PageMarks {
    pub(crate) fn new(bytes: usize) -> Self {
        let pages = (0..bytes.div_ceil(PAGE_SIZE)).map(|_| Page::default()).collect();
        Self { pages, epoch: Arc::default(), start: 0 }
    }

    pub(crate) fn starting_at(&self, start: usize) -> Self {
        Self { start, ..self.clone() }
    }

    /// Whether a write to `page` must be reported with [`written`](Self::written).
    #[inline(always)]
    pub(crate) fn is_marked(&self, page: usize) -> bool {
        self.pages[page].mark.load(Ordering::Relaxed) != 0
    }

    /// [`is_marked`](Self::is_marked) without a look at how many pages there are.
    ///
    /// # Safety
    /// `page` must be below the number of pages.
    #[inline(always)]
    pub(crate) unsafe fn is_marked_unchecked(&self, page: usize) -> bool {
        // SAFETY: the caller promises that the page exists.
        unsafe { self.pages.get_unchecked(page) }.mark.load(Ordering::Relaxed) != 0
    }

    /// A write to `page` has happened: drops its marks and returns whether it held code.
    #[cold]
    pub(crate) fn written(&self, page: usize) -> bool {
        let page = &self.pages[page];
        let had_code = page.mark.swap(0, Ordering::AcqRel) & CODE != 0;
        if had_code {
            page.version.fetch_add(1, Ordering::AcqRel);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        had_code
    }

    pub(crate) fn watch_code(&self, page: usize) -> u32 {
        let page = &self.pages[page];
        page.mark.fetch_or(CODE, Ordering::AcqRel);
        page.version.load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn version(&self, page: usize) -> u32 {
        self.pages[page].version.load(Ordering::Acquire)
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
