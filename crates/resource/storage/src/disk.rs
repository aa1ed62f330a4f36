//! What a disk is to those that read and write it.

use std::fmt::Debug;

use crate::Result;

/// Bytes in a sector, the unit of a disk's size.
pub const SECTOR: u64 = 512;

/// A disk of a fixed size, whatever file it lies in.
///
/// Offsets and lengths are bytes and need no alignment. What reaches past [`size`](Disk::size) is an error and changes
/// nothing. All methods can be called by several threads at once. Requests that overlap in time and place have an
/// unspecified order, but each sector then holds what one of them wrote.
///
/// What was written is read back at once; it is on stable storage after a [`flush`](Disk::flush) that began later.
/// After an error of a write, the range holds old or new bytes; nothing outside of it has changed.
pub trait Disk: Send + Sync + Debug {
    /// Bytes, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// Whether every request that would change it is refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes the range read as zeroes. With `may_unmap` its space may be given back; without, what had space keeps it.
    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()>;

    /// Says that nobody needs what the range holds. It may read as before or as zeroes afterwards.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Waits until what was written before the call is on stable storage.
    fn flush(&self) -> Result<()>;

    /// What suits it best.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// What lies at `offset`, and how far that goes, at most `length` bytes. `length` is not zero.
    ///
    /// It is a hint for those that copy: [`Extent::Data`] may well be zeroes.
    fn extent(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        check_range(self, offset, length)?;
        Ok((Extent::Data, length))
    }
}

/// What a range of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Bytes that have to be read.
    Data,
    /// Zeroes for sure.
    Zero,
}

/// Sizes in bytes that a guest may want to know. All are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Below this, a write makes the host read first.
    pub physical_block: u32,
    /// A good size for requests.
    pub optimal_io: u32,
    /// Discards smaller than this, or not aligned to it, free nothing.
    pub discard_granularity: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { physical_block: 4096, optimal_io: 65536, discard_granularity: 4096 }
    }
}

/// Flushes a disk that nobody will write to any more, and leaves the image as small as it can be. Dropping a disk does
/// so, too, but tells nobody of an error.
pub fn close(disk: &dyn Disk) -> Result<()> {
    disk.flush()?;
    // Once more, for what the first has set free.
    disk.flush()
}

/// Refuses a range that is not wholly inside `disk`.
pub(crate) fn check_range<D: Disk + ?Sized>(disk: &D, offset: u64, length: u64) -> Result<()> {
    if offset.checked_add(length).is_none_or(|end| end > disk.size()) {
        return Err(crate::Error::OutOfRange { offset, length, size: disk.size() });
    }
    Ok(())
}
