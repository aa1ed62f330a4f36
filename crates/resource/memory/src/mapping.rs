//! The host's memory that RAM is made of.

use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Where [`Mapping::new`] puts what fits: from here up to [`LOW_END`].
const LOW_START: usize = 64 << 20;
/// Addresses below this have none of bits 63:31.
pub(crate) const LOW_END: usize = 1 << 31;
/// Places are multiples of this, and so of the host's large pages.
const STEP: usize = 16 << 20;

/// Anonymous memory, all zeros, of which the host lends a page when it is first touched; given back when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: a mapping belongs to whoever has the value, not to a thread, and nothing here reads or writes its memory.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// What may be done with it.
    pub(crate) const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
    const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

    /// `len` bytes, not zero: below [`LOW_END`] if there is room, for engines that have a use for short addresses, and
    /// anywhere else if not.
    pub(crate) fn new(len: usize) -> Result<Self, Errno> {
        let last = LOW_END.checked_sub(len);
        let mut places = last.into_iter().flat_map(|last| (LOW_START..=last).step_by(STEP));
        places.find_map(|at| Self::at(at, len)).map_or_else(|| Self::anywhere(len), Ok)
    }

    /// At this address, if nothing is there.
    fn at(at: usize, len: usize) -> Option<Self> {
        let flags = Self::FLAGS | MapFlags::FIXED_NOREPLACE;
        let wanted = ptr::without_provenance_mut(at);
        // SAFETY: where something is the kernel refuses, or chooses another place; nothing that exists is touched.
        let start = unsafe { mmap_anonymous(wanted, len, Self::PROTECTION, flags) }.ok()?;
        // A kernel that does not know the flag takes the address for a wish.
        Some(Self { start: start.cast(), len }).filter(|mapping| mapping.start.addr() == at)
    }

    fn anywhere(len: usize) -> Result<Self, Errno> {
        // SAFETY: the kernel chooses where; nothing that exists is touched.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, Self::PROTECTION, Self::FLAGS) }?;
        Ok(Self { start: start.cast(), len })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Asks for large pages, which spare the host most of its own translations. It may have none, which costs only speed.
    pub(crate) fn ask_for_large_pages(&self) {
        // SAFETY: the advice is about this mapping, and changes none of its bytes.
        let _ = unsafe { madvise(self.start.cast(), self.len, Advice::LinuxHugepage) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this type, and whoever used it is gone with the value. A failure would leave it
        // mapped, which harms nobody.
        let _ = unsafe { munmap(self.start.cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_low_and_all_of_it_apart() {
        let mappings = [1 << 20, 512 << 20, 512 << 20].map(|len| Mapping::new(len).unwrap());
        for mapping in &mappings {
            let (start, end) = (mapping.start().addr(), mapping.start().addr() + mapping.len);
            assert!(start >= LOW_START && end <= LOW_END, "{start:#x}");
            let apart = |other: &&Mapping| {
                let other_start = other.start().addr();
                other_start >= end || other_start + other.len <= start
            };
            assert_eq!(mappings.iter().filter(apart).count(), mappings.len() - 1);
        }
    }

    #[test]
    fn what_does_not_fit_is_elsewhere() {
        let mapping = Mapping::new(LOW_END).unwrap();
        assert!(mapping.start().addr() >= LOW_END);
    }
}
