//! The RAM itself.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, mmap::MmapRegionBuilder};

use crate::access::{self, Value};
use crate::mapping::{LOW_END, Mapping};
use crate::marks::PageMarks;
use crate::members::Membership;

/// The smallest page of x86, in bytes: the grain of marks, of RAM ranges and of every translation.
pub const PAGE_SIZE: usize = 4096;

/// A guest physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What can go wrong when RAM is set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A range is empty, unaligned, or out of order.
    #[error("RAM range {start} + {size:#x}: ranges must be non-empty, page-aligned, ascending and apart")]
    BadRange {
        /// Where the range was to begin.
        start: Gpa,
        /// Its size in bytes.
        size: u64,
    },
    /// The host would not map as much memory.
    #[error("could not reserve {size:#x} bytes of host memory for guest RAM: {cause}; ask for less memory")]
    Map {
        /// How much was asked for, in bytes.
        size: u64,
        /// What the host said.
        cause: String,
    },
    /// An access outside RAM.
    #[error("no RAM at {start} + {size:#x}")]
    OutOfRange {
        /// Where the access began.
        start: Gpa,
        /// Its size in bytes.
        size: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    size: u64,
    /// Where its first byte is in the mapping.
    offset: usize,
}

/// All the RAM of one guest. Clones share it.
#[derive(Clone)]
pub struct GuestRam {
    base: *mut u8,
    len: usize,
    marks: PageMarks,
    ranges: Arc<[Range]>,
    view: GuestMemoryMmap<PageMarks>,
    split: Arc<Mutex<()>>,
    /// Keeps the mapping alive.
    _mapping: Arc<Mapping>,
}

// SAFETY: `base` points into a mapping that `_mapping` keeps, and every access through it is a single machine
// access of memory that no Rust reference covers, so threads may share and send it.
unsafe impl Send for GuestRam {}
// SAFETY: as above.
unsafe impl Sync for GuestRam {}

impl fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestRam")
            .field("len", &self.len)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

impl GuestRam {
    /// RAM at the given guest physical ranges (start, size in bytes): ascending, apart, in whole pages.
    /// It reads as zeros, and the host lends a page only when it is first touched.
    pub fn new(ranges: &[(Gpa, u64)]) -> Result<Self, Error> {
        let mut placed: Vec<Range> = Vec::with_capacity(ranges.len());
        let mut total = 0u64;
        for &(start, size) in ranges {
            let bad = Error::BadRange { start, size };
            let aligned = start.0.is_multiple_of(PAGE_SIZE as u64) && size.is_multiple_of(PAGE_SIZE as u64);
            let after = placed.last().is_none_or(|last| last.start + last.size <= start.0);
            if size == 0 || !aligned || !after || start.0.checked_add(size).is_none() {
                return Err(bad);
            }
            placed.push(Range { start: start.0, size, offset: total as usize });
            total += size;
        }
        let failed = |cause: String| Error::Map { size: total, cause };
        let len = usize::try_from(total).map_err(|e| failed(e.to_string()))?;
        if len == 0 {
            return Err(Error::BadRange { start: Gpa(0), size: 0 });
        }
        let mapping = Mapping::new(len).map_err(|e| failed(e.to_string()))?;
        mapping.ask_for_large_pages();
        let base = mapping.start();
        let marks = PageMarks::new(len);
        let mut regions = Vec::with_capacity(placed.len());
        for range in &placed {
            let builder =
                MmapRegionBuilder::new_with_bitmap(range.size as usize, marks.starting_at(range.offset))
                    .with_mmap_prot(Mapping::PROTECTION.bits() as i32);
            // SAFETY: the range lies inside the mapping just made (their sizes add up to its length), which
            // outlives the view: both live in the same struct, and clones share both.
            let builder = unsafe { builder.with_raw_mmap_pointer(base.add(range.offset)) };
            let region = builder.build().map_err(|e| failed(e.to_string()))?;
            let region = GuestRegionMmap::new(region, GuestAddress(range.start))
                .ok_or(Error::BadRange { start: Gpa(range.start), size: range.size })?;
            regions.push(region);
        }
        let view = GuestMemoryMmap::from_regions(regions).map_err(|e| failed(e.to_string()))?;
        let split = Arc::default();
        Ok(Self { base, len, marks, ranges: placed.into(), view, split, _mapping: Arc::new(mapping) })
    }

    /// The size of all RAM in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no RAM; never true, as [`new`](Self::new) refuses it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ranges of RAM: guest physical start and size in bytes, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (Gpa, u64)> + '_ {
        self.ranges.iter().map(|range| (Gpa(range.start), range.size))
    }

    /// The same RAM as `vm-memory` sees it, for crates that speak its interface (loaders, virtqueues). Writes
    /// through it are marked like every other.
    pub fn view(&self) -> &GuestMemoryMmap<PageMarks> {
        &self.view
    }

    /// Where the byte at `gpa` is in RAM, or `None` where there is no RAM. All of a 4 KiB page is RAM or none.
    #[inline]
    pub fn offset(&self, gpa: Gpa) -> Option<usize> {
        self.ranges.iter().find_map(|range| {
            let inside = gpa.0.wrapping_sub(range.start);
            (inside < range.size).then(|| range.offset + inside as usize)
        })
    }

    /// The guest physical address of the byte at `offset`: the inverse of [`offset`](Self::offset).
    pub fn gpa(&self, offset: usize) -> Option<Gpa> {
        self.ranges.iter().find_map(|range| {
            let inside = offset.wrapping_sub(range.offset) as u64;
            (inside < range.size).then(|| Gpa(range.start + inside))
        })
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len - size_of::<T>(), "offset outside RAM");
        // SAFETY: `offset + size_of::<T>()` was just checked to lie inside the mapping (RAM is at least a page).
        unsafe { self.base.add(offset) }
    }

    /// Whether the pages of a write of `size` bytes, not zero, had code; drops their marks. The write must lie
    /// inside RAM.
    #[inline(always)]
    fn wrote(&self, offset: usize, size: usize) -> bool {
        let (first, last) = (offset / PAGE_SIZE, (offset + size - 1) / PAGE_SIZE);
        let mut code = false;
        if self.marks.is_marked(first) {
            code |= self.marks.written(first);
        }
        if last != first && self.marks.is_marked(last) {
            code |= self.marks.written(last);
        }
        code
    }

    /// One load. `offset` comes from [`offset`](Self::offset); the access must not run past the end of RAM
    /// (it panics), and crossing a page means the next page of *RAM*, which the caller has to want.
    #[inline(always)]
    pub fn load<T: Value>(&self, offset: usize) -> T {
        // SAFETY: `pointer` has checked the place.
        unsafe { T::load(self.pointer::<T>(offset)) }
    }

    /// One store, bounds as [`load`](Self::load). Returns whether the page held watched code: its version has
    /// then moved on, and the caller must not go on executing what it decoded from there.
    #[inline(always)]
    pub fn store<T: Value>(&self, offset: usize, value: T) -> bool {
        // SAFETY: `pointer` has checked the place.
        unsafe { T::store(self.pointer::<T>(offset), value) };
        self.wrote(offset, size_of::<T>())
    }

    /// [`load`](Self::load) of 16 bytes, low half first.
    #[inline(always)]
    pub fn load_16(&self, offset: usize) -> [u64; 2] {
        // SAFETY: `pointer` has checked the place.
        unsafe { access::load_16(self.pointer::<u128>(offset)) }
    }

    /// [`store`](Self::store) of 16 bytes, low half first.
    #[inline(always)]
    pub fn store_16(&self, offset: usize, value: [u64; 2]) -> bool {
        // SAFETY: `pointer` has checked the place.
        unsafe { access::store_16(self.pointer::<u128>(offset), value) };
        self.wrote(offset, 16)
    }

    /// A [`store`](Self::store) that is known to lie in one page: where it crosses into the next, that page's
    /// mark goes unnoticed.
    #[inline(always)]
    pub fn store_in_page<T: Value>(&self, offset: usize, value: T) -> bool {
        // SAFETY: `pointer` has checked the place.
        unsafe { T::store(self.pointer::<T>(offset), value) };
        // SAFETY: as the place lies inside RAM, so does its page.
        let marked = unsafe { self.marks.is_marked_unchecked(offset / PAGE_SIZE) };
        marked && self.marks.written(offset / PAGE_SIZE)
    }

    /// Compare-and-exchange under the host's bus lock: the value before, and whether watched code was hit.
    /// A failed exchange writes nothing new, yet counts as a write, as it does on the real processor.
    #[inline(always)]
    pub fn compare_exchange<T: Value>(&self, offset: usize, old: T, new: T) -> (T, bool) {
        // SAFETY: `pointer` has checked the place.
        let seen = unsafe { T::compare_exchange(self.pointer::<T>(offset), old, new) };
        (seen, self.wrote(offset, size_of::<T>()))
    }

    /// [`compare_exchange`](Self::compare_exchange) of 16 bytes; `offset` must be a multiple of 16 (it panics).
    pub fn compare_exchange_16(&self, offset: usize, old: u128, new: u128) -> (u128, bool) {
        assert!(offset.is_multiple_of(16), "offset not aligned to 16");
        // SAFETY: `pointer` has checked the place; the mapping is page-aligned, so the pointer is aligned too.
        let seen = unsafe { access::compare_exchange_16(self.pointer::<u128>(offset), old, new) };
        (seen, self.wrote(offset, 16))
    }

    /// Replaces the value at `offset` by `change(value)` atomically: the value before, and whether watched code
    /// was hit. `change` may run several times.
    #[inline(always)]
    pub fn update<T: Value>(&self, offset: usize, mut change: impl FnMut(T) -> T) -> (T, bool) {
        let mut old = self.load::<T>(offset);
        loop {
            let (seen, code) = self.compare_exchange(offset, old, change(old));
            if seen == old {
                return (old, code);
            }
            old = seen;
        }
    }

    /// Copies `len` bytes from offset `from` to offset `to` as a processor does that moves them one by one,
    /// upwards: where the destination begins within the source, the bytes between the two repeat. Bounds and
    /// result as for [`load`](Self::load) and [`store`](Self::store), of the whole.
    pub fn copy_upwards(&self, from: usize, to: usize, len: usize) -> bool {
        if len == 0 {
            return false;
        }
        assert!(len <= self.len && from.max(to) <= self.len - len, "bytes outside RAM");
        if to <= from || to - from >= len {
            // SAFETY: both places were just checked to lie inside the mapping; `copy` allows them to overlap.
            unsafe { std::ptr::copy(self.base.add(from), self.base.add(to), len) };
        } else {
            // The distance doubles with each step, for what was copied repeats, too.
            let mut done = 0;
            while done < len {
                let step = (to + done - from).min(len - done);
                // SAFETY: both places lie inside the mapping, `to + done + step` being at most `to + len`; the
                // first ends where the second begins, or before.
                unsafe {
                    std::ptr::copy_nonoverlapping(self.base.add(from), self.base.add(to + done), step);
                }
                done += step;
            }
        }
        self.wrote_many(to, len)
    }

    /// Stores `value` `count` times from `offset` upwards. Bounds and result as for [`store`](Self::store), of
    /// the whole.
    pub fn fill<T: Value>(&self, offset: usize, value: T, count: usize) -> bool {
        let len =
            count.checked_mul(size_of::<T>()).filter(|len| *len <= self.len && offset <= self.len - len);
        let Some(len) = len else { panic!("bytes outside RAM") };
        if len == 0 {
            return false;
        }
        for n in 0..count {
            // SAFETY: `offset + len` was just checked to lie inside the mapping.
            unsafe { T::store(self.base.add(offset + n * size_of::<T>()), value) };
        }
        self.wrote_many(offset, len)
    }

    /// Whether any of the pages of a write of `len` bytes, not zero, had code; drops their marks.
    fn wrote_many(&self, offset: usize, len: usize) -> bool {
        let mut code = false;
        for page in offset / PAGE_SIZE..=(offset + len - 1) / PAGE_SIZE {
            if self.marks.is_marked(page) {
                code |= self.marks.written(page);
            }
        }
        code
    }

    /// Takes a place among the virtual CPUs, whose stores the others may have to wait for, and who must learn of
    /// writes to code: `call` makes it look up from its work soon, and is called by any thread.
    pub fn join(&self, call: impl Fn() + Send + Sync + 'static) -> Membership {
        self.marks.join(Box::new(call))
    }

    /// Marks `page` (an offset divided by [`PAGE_SIZE`]) as holding decoded code and returns its code version.
    /// Read the bytes *after* this, so that no write slips in between. Not to be called [inside](Membership::enter).
    pub fn watch_code(&self, page: usize) -> u32 {
        self.marks.watch_code(page)
    }

    /// The code version of `page`: what [`watch_code`](Self::watch_code) returned, until the page is written.
    #[inline(always)]
    pub fn code_version(&self, page: usize) -> u32 {
        self.marks.version(page)
    }

    /// A number that moves on when the code version of any page does.
    #[inline(always)]
    pub fn code_epoch(&self) -> u64 {
        self.marks.epoch()
    }

    /// Whether a write to `page` would have to be told of: it holds watched code.
    #[inline(always)]
    pub fn is_watched(&self, page: usize) -> bool {
        self.marks.is_code(page)
    }

    /// From now on keeps a log of the pages that are written.
    pub fn log_writes(&self) {
        self.marks.log_writes();
    }

    /// Adds to `pages` those of the log, each once, in no order: written, or [lent](Self::lend), since this was last
    /// called. Who was lent a page must have given it back before, for what is written to it then is not seen.
    pub fn take_written(&self, pages: &mut Vec<usize>) {
        self.marks.take_written(pages);
    }

    /// Whether a page of this RAM holds the same bytes as that of another, which has it, too. Bytes that are written
    /// meanwhile may be taken for what they were, or will be.
    pub fn same_page(&self, other: &Self, page: usize) -> bool {
        let at = page * PAGE_SIZE;
        assert!(at < self.len && at < other.len, "page outside RAM");
        let [mut a, mut b] = [[0_u8; PAGE_SIZE]; 2];
        // SAFETY: both pages were just seen to lie inside their mappings, which hold whole pages; the arrays are
        // distinct from them. A racing write can tear the copies, as the documentation says.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(at), a.as_mut_ptr(), PAGE_SIZE);
            std::ptr::copy_nonoverlapping(other.base.add(at), b.as_mut_ptr(), PAGE_SIZE);
        }
        a == b
    }

    /// Where the byte at `offset` is in the host's memory, for engines whose code accesses guest memory by itself:
    /// at most up to the end of its page, and never a store to a page that has not been [lent](Self::lend). `None`:
    /// outside RAM.
    pub fn host_address(&self, offset: usize) -> Option<usize> {
        (offset < self.len).then(|| self.base as usize + offset)
    }

    /// Whether all [host addresses](Self::host_address) are below 2^31.
    pub fn is_low(&self) -> bool {
        self.base as usize + self.len <= LOW_END
    }

    /// [`host_address`](Self::host_address) of a place whose page may be stored to until it is asked for, by a
    /// [member](Self::join) that is [inside](Membership::enter). `None`: outside RAM, or the page holds watched
    /// code.
    pub fn lend(&self, offset: usize) -> Option<usize> {
        self.host_address(offset).filter(|_| self.marks.lend(offset / PAGE_SIZE))
    }

    /// The page of RAM that a [host address](Self::host_address) lies in.
    pub fn page_at_host(&self, address: usize) -> usize {
        address.wrapping_sub(self.base as usize) / PAGE_SIZE
    }

    /// For a locked operation on two pages that are no neighbours in RAM, for which the host has none: while the
    /// guard lives, nobody else makes one.
    pub fn lock_split(&self) -> MutexGuard<'_, ()> {
        self.split.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, gpa: Gpa, len: usize) -> Result<usize, Error> {
        let error = Error::OutOfRange { start: gpa, size: len };
        self.ranges
            .iter()
            .find_map(|range| {
                let inside = gpa.0.wrapping_sub(range.start);
                (inside < range.size && len as u64 <= range.size - inside)
                    .then(|| range.offset + inside as usize)
            })
            .ok_or(error)
    }

    /// Gives whole pages back to the host, which lends them anew, as zeroes, when they are next touched. The bytes must
    /// lie in one range of RAM.
    pub fn release(&self, gpa: Gpa, len: usize) -> Result<(), Error> {
        let offset = self.span(gpa, len)?;
        if !gpa.0.is_multiple_of(PAGE_SIZE as u64) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Error::OutOfRange { start: gpa, size: len });
        }
        // SAFETY: `span` has checked that the pages lie inside the mapping, which is private, anonymous memory that no
        // Rust reference covers; the advice turns them into zeroes, as a write of zeroes would.
        let released = unsafe {
            rustix::mm::madvise(self.base.add(offset).cast(), len, rustix::mm::Advice::LinuxDontNeed)
        };
        vm_memory::bitmap::Bitmap::mark_dirty(&self.marks, offset, len);
        released.map_err(|_| Error::OutOfRange { start: gpa, size: len })
    }

    /// Copies guest memory at `gpa` into `data`. The bytes must lie in one range of RAM.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), Error> {
        let offset = self.span(gpa, data.len())?;
        // SAFETY: `span` has checked that the bytes lie inside the mapping; `data` is a distinct Rust slice.
        // A racing guest write can tear the copy, which a copy of guest memory always may.
        unsafe { std::ptr::copy_nonoverlapping(self.base.add(offset), data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    /// Copies `data` to guest memory at `gpa`. The bytes must lie in one range of RAM.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let offset = self.span(gpa, data.len())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.base.add(offset), data.len()) };
        vm_memory::bitmap::Bitmap::mark_dirty(&self.marks, offset, data.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    fn pc() -> GuestRam {
        GuestRam::new(&[(Gpa(0), 0xa0000), (Gpa(0x10_0000), 0x10_0000)]).unwrap()
    }

    #[test]
    fn holes_have_no_offset() {
        let ram = pc();
        assert_eq!(ram.offset(Gpa(0x9_ffff)), Some(0x9_ffff));
        assert_eq!(ram.offset(Gpa(0xa_0000)), None);
        assert_eq!(ram.offset(Gpa(0x10_0000)), Some(0xa_0000));
        assert_eq!(ram.offset(Gpa(0x20_0000)), None);
        assert_eq!(ram.gpa(0xa_0000), Some(Gpa(0x10_0000)));
        assert_eq!(ram.gpa(0x1a_0000), None);
    }

    #[test]
    fn unaligned_and_page_crossing_values_round_trip() {
        let ram = pc();
        for offset in [0, 1, 0xfff, 0x1ffd, 0x1a_0000 - 8] {
            assert!(!ram.store(offset, 0x0123_4567_89ab_cdef_u64));
            assert_eq!(ram.load::<u64>(offset), 0x0123_4567_89ab_cdef);
            assert_eq!(ram.load::<u8>(offset), 0xef);
            assert_eq!(ram.compare_exchange(offset, 0xcdef_u16, 0x1111).0, 0xcdef);
            assert_eq!(ram.compare_exchange(offset, 0xcdef_u16, 0x2222).0, 0x1111);
            assert_eq!(ram.update(offset, |v: u32| v + 1).0, 0x89ab_1111);
            assert_eq!(ram.load::<u32>(offset), 0x89ab_1112);
        }
        for offset in [0, 3, 0xff1, 0x1a_0000 - 16] {
            assert!(!ram.store_16(offset, [1, 2]));
            assert_eq!((ram.load::<u64>(offset), ram.load::<u64>(offset + 8)), (1, 2));
            assert_eq!(ram.load_16(offset), [1, 2]);
        }
    }

    #[test]
    fn sixteen_bytes_exchange_whole() {
        let ram = pc();
        let (a, b) = (u128::MAX / 3, u128::MAX / 5);
        assert_eq!(ram.compare_exchange_16(0x40, 0, a).0, 0);
        assert_eq!(ram.compare_exchange_16(0x40, b, b).0, a);
        assert_eq!(ram.compare_exchange_16(0x40, a, b).0, a);
        assert_eq!(ram.load::<u64>(0x48), (b >> 64) as u64);
    }

    #[test]
    fn the_log_has_each_page_once_that_was_written_or_lent() {
        let (ram, other) = (pc(), pc());
        ram.log_writes();
        let taken = || {
            let mut pages = Vec::new();
            ram.take_written(&mut pages);
            pages.sort_unstable();
            pages
        };
        assert!(taken().is_empty());
        for _ in 0..2 {
            ram.watch_code(3);
            assert!(!ram.store(0x1ffc, 1_u64), "no code there");
            assert!(ram.store(0x3000, 1_u8), "code there");
            assert!(!ram.store_in_page(0x1000, 1_u8));
            ram.lend(0x5123);
            ram.write(Gpa(0x7000), &[1]).unwrap();
            assert_eq!(taken(), [1, 2, 3, 5, 7]);
            assert!(taken().is_empty());
        }
        assert!(!ram.same_page(&other, 7));
        other.write(Gpa(0x7000), &[1]).unwrap();
        assert!(ram.same_page(&other, 7));
        let mut pages = Vec::new();
        other.take_written(&mut pages);
        assert!(pages.is_empty(), "nobody has asked for a log of this one");
    }

    #[test]
    #[should_panic(expected = "outside RAM")]
    fn a_load_past_the_end_is_refused() {
        let ram = pc();
        let _: u64 = ram.load(ram.len() - 7);
    }

    type Write = fn(&GuestRam);

    #[test]
    fn every_kind_of_write_moves_a_watched_page_on() {
        let ram = pc();
        let page = ram.offset(Gpa(0x10_1000)).unwrap() >> 12;
        let writes: [Write; 6] = [
            |ram| assert!(ram.store(0xa_1ffc, 1_u64)),
            |ram| assert!(ram.store_16(0xa_0ff1, [1, 2])),
            |ram| assert!(ram.store(0xa_0fff, 1_u16)),
            |ram| assert!(ram.compare_exchange(0xa_1000, 7_u8, 7).1),
            |ram| ram.write(Gpa(0x10_0ff0), &[1; 0x1000]).unwrap(),
            |ram| ram.view().write_obj(5_u32, GuestAddress(0x10_1010)).unwrap(),
        ];
        for write in writes {
            let version = ram.watch_code(page);
            assert_eq!(ram.code_version(page), version);
            write(&ram);
            assert_ne!(ram.code_version(page), version);
        }
        assert!(!ram.store(0xa_1000, 1_u8), "an unwatched page reports nothing");
    }

    #[test]
    fn an_overlapping_copy_upwards_repeats_what_lies_between() {
        for distance in 1..9 {
            let ram = pc();
            let at = |n: usize| 0x2ff0 + n;
            for n in 0..100 {
                ram.store(at(n), n as u8);
            }
            ram.copy_upwards(at(0), at(distance), 60);
            for n in 0..60 {
                assert_eq!(ram.load::<u8>(at(distance + n)), (n % distance) as u8);
            }
            assert_eq!(ram.load::<u8>(at(distance + 60)), (distance + 60) as u8);
        }
    }

    #[test]
    fn a_copy_downwards_or_apart_moves_the_bytes_as_they_were() {
        for (from, to) in [(100_usize, 93), (100, 100), (100, 160), (300, 0)] {
            let ram = pc();
            for n in 0..400 {
                ram.store(n, (n % 251) as u8);
            }
            ram.copy_upwards(from, to, 60);
            for n in 0..60 {
                assert_eq!(ram.load::<u8>(to + n), ((from + n) % 251) as u8);
            }
        }
    }

    #[test]
    fn a_fill_stores_whole_values() {
        let ram = pc();
        assert!(!ram.fill(0xffd, 0x0302_0100_u32, 3));
        assert_eq!((ram.load::<u8>(0xffc), ram.load::<u8>(0x1009)), (0, 0));
        assert_eq!(ram.load::<u64>(0xffd), 0x0302_0100_0302_0100);
        assert_eq!(ram.load::<u32>(0x1005), 0x0302_0100);
        let version = ram.watch_code(1);
        assert!(ram.fill(0xff0, 0_u8, 17) && ram.code_version(1) != version);
        ram.watch_code(1);
        assert!(ram.copy_upwards(0, 0xff0, 17) && !ram.copy_upwards(0, 0xff0, 16));
        assert!(!ram.fill(ram.len(), 0_u8, 0) && !ram.copy_upwards(ram.len(), 0, 0));
    }

    #[test]
    #[should_panic(expected = "outside RAM")]
    fn a_copy_past_the_end_is_refused() {
        let ram = pc();
        ram.copy_upwards(0, ram.len() - 7, 8);
    }

    #[test]
    #[should_panic(expected = "outside RAM")]
    fn a_fill_past_the_end_is_refused() {
        let ram = pc();
        ram.fill(ram.len() - 7, 0_u64, 1);
    }

    #[test]
    fn bad_ranges_are_refused() {
        for ranges in [
            &[][..],
            &[(Gpa(0), 0)],
            &[(Gpa(1), 4096)],
            &[(Gpa(0), 100)],
            &[(Gpa(4096), 4096), (Gpa(0), 4096)],
            &[(Gpa(0), 8192), (Gpa(4096), 4096)],
            &[(Gpa(u64::MAX - 4095), 8192)],
        ] {
            assert!(matches!(GuestRam::new(ranges), Err(Error::BadRange { .. })), "{ranges:?}");
        }
        assert!(matches!(GuestRam::new(&[(Gpa(0), 1 << 60)]), Err(Error::Map { .. })));
    }

    #[test]
    fn released_pages_read_as_zeroes_and_move_their_code_on() {
        let ram = pc();
        ram.write(Gpa(0x1000), &[7; 0x3000]).unwrap();
        let version = ram.watch_code(2);
        ram.release(Gpa(0x2000), 0x1000).unwrap();
        assert_eq!([0x1fff, 0x2000, 0x2fff, 0x3000].map(|at| ram.load::<u8>(at)), [7, 0, 0, 7]);
        assert_ne!(ram.code_version(2), version);
        for (gpa, len) in [(0x1800, 0x1000), (0x1000, 0x800), (0x9_f000, 0x2000), (0xa_0000, 0x1000)] {
            assert!(ram.release(Gpa(gpa), len).is_err(), "{gpa:#x}");
        }
    }

    #[test]
    fn copies_stay_inside_one_range() {
        let ram = pc();
        assert!(ram.write(Gpa(0x9_fffe), &[1, 2]).is_ok());
        assert!(ram.write(Gpa(0x9_fffe), &[1, 2, 3]).is_err());
        assert!(ram.read(Gpa(u64::MAX), &mut [0; 2]).is_err());
        let mut back = [0; 2];
        ram.read(Gpa(0x9_fffe), &mut back).unwrap();
        assert_eq!(back, [1, 2]);
    }
}
