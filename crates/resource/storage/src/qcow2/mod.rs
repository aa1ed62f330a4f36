//! qcow2, versions 2 and 3: QEMU's copy-on-write images (QEMU's `docs/interop/qcow2.txt`).
//!
//! # The order of writes
//!
//! Data go to the file at once, but for the order of metadata only [`flush`](Disk::flush) and a full cache see to it
//! (`writeback.rs`). Until then new L2 entries and refcounts are in memory only. They are written so that the file is
//! consistent at every moment, but for clusters that are counted and not used (leaks):
//!
//! 1. refcounts, and data; the host's flush;
//! 2. L2 tables; if L1 entries have changed the host's flush, and the L1 table;
//! 3. the host's flush; only now may clusters that became free be used again.
//!
//! # Threads
//!
//! The tables are behind a lock that is held for looking things up, never while data are read or written. A request that
//! changes how clusters are mapped first claims them (`claim.rs`). Every request holds the `gate` for reading; before
//! clusters that became free are used again the gate is held for writing once, so that nobody who has looked them up
//! before is still about to read or write them.

mod check;
mod claim;
mod compressed;
mod create;
mod entry;
mod geometry;
mod header;
mod read;
mod refcounts;
mod repair;
mod snapshots;
mod tables;
mod write;
mod writeback;
mod zero;

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use claim::Claims;
use compressed::Unpacked;
use geometry::Geometry;
use header::{AUTOCLEAR_AT, BITMAPS, CORRUPT, DIRTY, Header, corrupt};
use refcounts::Refcounts;
use tables::Tables;

pub(crate) use create::{Create, create};
pub(crate) use repair::Repair;

use crate::disk::check_range;
use crate::file::HostFile;
use crate::info::{Qcow2Info, SnapshotInfo};
use crate::{Disk, Error, Extent, Limits, Result};

/// An open image.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    file: HostFile,
    header: Header,
    geometry: Geometry,
    backing: Option<Arc<dyn Disk>>,
    state: RwLock<State>,
    claims: Claims,
    gate: RwLock<()>,
    /// Held by the one that writes metadata.
    writing: Mutex<()>,
    unpacked: Unpacked,
}

/// What changes while an image is open.
#[derive(Debug)]
struct State {
    tables: Tables,
    refcounts: Refcounts,
    /// Clusters that one reference fewer leads to, as soon as changed tables are written.
    unlinked: Vec<Freed>,
    /// The same, tables written, but not yet on stable storage.
    unsynced: Vec<Freed>,
    /// Where the next compressed cluster goes.
    packed_end: u64,
}

/// A cluster that something referred to.
#[derive(Clone, Copy, Debug)]
struct Freed {
    cluster: u64,
    /// Whether the host may have its space back.
    punch: bool,
}

impl Qcow2 {
    /// Opens an image whose header is known, with the disk that it takes unwritten data from.
    pub(crate) fn open(file: HostFile, header: Header, backing: Option<Arc<dyn Disk>>) -> Result<Self> {
        if file.is_writable() && header.incompatible & CORRUPT != 0 {
            let problem = "it is marked as damaged; try `posada disk check`, or open it with `ro` to save what is there";
            return Err(corrupt(file.path(), problem));
        }
        let mut image = Self::load(file, header, backing)?;
        if image.file.is_writable() {
            image.begin_writing()?;
        }
        Ok(image)
    }

    /// The same without any look at whether the last writer has finished: for checks and repairs.
    pub(crate) fn load(file: HostFile, header: Header, backing: Option<Arc<dyn Disk>>) -> Result<Self> {
        let geometry = header.geometry;
        let clusters = |table: header::Table, entry: u64| {
            let start = table.offset >> geometry.cluster_bits;
            start..start + geometry.clusters(table.entries * entry)
        };
        let reserved = vec![
            0..1,
            clusters(header.l1, 8),
            clusters(header.refcount_table, geometry.cluster()),
            clusters(header.snapshots, 40),
        ];
        let table = header.refcount_table;
        let state = State {
            tables: Tables::read(&file, header.l1.offset, &geometry)?,
            refcounts: Refcounts::read(&file, geometry, table.offset, table.entries, reserved)?,
            unlinked: Vec::new(),
            unsynced: Vec::new(),
            packed_end: 0,
        };
        Ok(Self {
            file,
            geometry,
            backing,
            state: RwLock::new(state),
            claims: Claims::default(),
            gate: RwLock::new(()),
            writing: Mutex::new(()),
            unpacked: Unpacked::new(&geometry),
            header,
        })
    }

    /// Makes an image good that its last writer left half-done, and says that what it does not know is out of date.
    fn begin_writing(&mut self) -> Result<()> {
        if self.header.incompatible & DIRTY != 0 {
            self.repair(Repair::All)?;
        }
        if self.geometry.version >= 3 && self.header.autoclear != 0 {
            self.file.write(AUTOCLEAR_AT, &0_u64.to_be_bytes())?;
            self.header.autoclear &= !BITMAPS;
        }
        Ok(())
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // A panic elsewhere has not left it half-changed in a way that matters more than going on.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_change(&self, offset: u64, length: u64) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::ReadOnly { path: self.file.path().to_owned() });
        }
        check_range(self, offset, length)
    }

    fn corrupt(&self, problem: impl Into<String>) -> Error {
        corrupt(self.file.path(), problem)
    }
}

/// What `posada disk info` tells of an image, but for its snapshots.
pub(crate) fn details(header: &Header) -> Qcow2Info {
    Qcow2Info {
        version: header.geometry.version,
        cluster_size: header.geometry.cluster(),
        compression: match header.compression {
            header::Compression::Deflate => "deflate",
            header::Compression::Zstd => "zstd",
        },
        refcount_bits: 1 << header.geometry.refcount_order,
        dirty: header.incompatible & DIRTY != 0,
        corrupt: header.incompatible & CORRUPT != 0,
        snapshots: Vec::new(),
    }
}

/// The snapshots in an image.
pub(crate) fn snapshots(file: &HostFile, header: &Header) -> Result<Vec<SnapshotInfo>> {
    let (snapshots, _) = snapshots::read(file, header)?;
    let told = |snapshot: snapshots::Snapshot| SnapshotInfo {
        id: snapshot.id,
        name: snapshot.name,
        date: snapshot.date,
    };
    Ok(snapshots.into_iter().map(told).collect())
}

/// Reads a header.
pub(crate) fn header(file: &HostFile) -> Result<Header> {
    Header::read(file)
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn is_read_only(&self) -> bool {
        !self.file.is_writable()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        let _inside = self.enter();
        self.read_runs(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_change(offset, data.len() as u64)?;
        let _inside = self.enter();
        self.write_runs(offset, data)
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.check_change(offset, length)?;
        let _inside = self.enter();
        self.zero_range(offset, length, may_unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_change(offset, length)?;
        let _inside = self.enter();
        self.discard_range(offset, length)
    }

    fn flush(&self) -> Result<()> {
        if self.is_read_only() { Ok(()) } else { self.flush_all() }
    }

    fn limits(&self) -> Limits {
        let cluster = self.geometry.cluster() as u32;
        Limits { physical_block: 4096, optimal_io: cluster.max(4096), discard_granularity: cluster }
    }

    fn extent(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        check_range(self, offset, length)?;
        let _inside = self.enter();
        self.extent_at(offset, length)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // Nobody is left to be told; what was not flushed may be lost. Once more for what the first has set free.
        let _ =
            self.flush().and_then(|()| if self.state().refcounts.is_dirty() { self.flush() } else { Ok(()) });
    }
}

#[cfg(test)]
#[path = "qcow2_test.rs"]
mod tests;
