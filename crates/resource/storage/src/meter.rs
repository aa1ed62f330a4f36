//! What is asked of a disk, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Disk, Extent, Limits, Result};

/// What has been asked of a disk so far. Requests that failed are errors, and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Bytes that they have read.
    pub read_bytes: u64,
    /// Writes, those of zeroes included.
    pub writes: u64,
    /// Bytes that they have written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes that they have discarded.
    pub discarded_bytes: u64,
    /// Requests of any kind that failed.
    pub errors: u64,
}

/// How many requests of one kind, and of how many bytes.
#[derive(Debug, Default)]
struct Tally {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    fn get(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Tells what has been asked of a disk, while it is in use.
#[derive(Debug, Default)]
pub struct Meter {
    reads: Tally,
    writes: Tally,
    flushes: Tally,
    discards: Tally,
    errors: AtomicU64,
}

impl Meter {
    /// The counts up to now. Requests that are under way are not in them, or only in part.
    pub fn counts(&self) -> Counts {
        let (reads, read_bytes) = self.reads.get();
        let (writes, written_bytes) = self.writes.get();
        let (discards, discarded_bytes) = self.discards.get();
        let (flushes, _) = self.flushes.get();
        let errors = self.errors.load(Ordering::Relaxed);
        Counts { reads, read_bytes, writes, written_bytes, flushes, discards, discarded_bytes, errors }
    }

    fn count<T>(&self, tally: &Tally, bytes: u64, result: Result<T>) -> Result<T> {
        if result.is_ok() {
            tally.requests.fetch_add(1, Ordering::Relaxed);
            tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// Counts from now on what is asked of `disk` by way of the disk that this gives.
///
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("disk.img");
/// use posada_storage::{Format, NewImage, Options, create, metered, open};
///
/// create(&path, &NewImage::new(Format::Raw, 1 << 20))?;
/// let (disk, meter) = metered(open(&path, &Options::default())?);
/// disk.read(0, &mut [0; 512])?;
/// assert_eq!((meter.counts().reads, meter.counts().read_bytes), (1, 512));
/// # Ok::<(), posada_storage::Error>(())
/// ```
pub fn metered(disk: Arc<dyn Disk>) -> (Arc<dyn Disk>, Arc<Meter>) {
    let meter = Arc::<Meter>::default();
    (Arc::new(Metered { disk, meter: Arc::clone(&meter) }), meter)
}

/// A disk that counts.
#[derive(Debug)]
struct Metered {
    disk: Arc<dyn Disk>,
    meter: Arc<Meter>,
}

impl Disk for Metered {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.meter.count(&self.meter.reads, length, self.disk.read(offset, buffer))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.meter.count(&self.meter.writes, data.len() as u64, self.disk.write(offset, data))
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.meter.count(&self.meter.writes, length, self.disk.write_zeroes(offset, length, may_unmap))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.meter.count(&self.meter.discards, length, self.disk.discard(offset, length))
    }

    fn flush(&self) -> Result<()> {
        self.meter.count(&self.meter.flushes, 0, self.disk.flush())
    }

    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn extent(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        self.disk.extent(offset, length)
    }
}

#[cfg(test)]
#[path = "meter_test.rs"]
mod tests;
