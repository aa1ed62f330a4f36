//! The L1 table and those L2 tables that are in memory.
//!
//! The L1 table is whole. L2 tables come when they are needed and go when others need the room, those that were not used
//! for a while first (the clock algorithm). One that was changed stays until it is written.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::entry::OFFSET;
use super::geometry::Geometry;
use super::header::corrupt;
use crate::bytes::be64;
use crate::file::HostFile;
use crate::{Error, Result};

/// How many bytes of L2 tables are kept: with clusters of 64 KiB, those of 128 GiB of disk.
/// Tests have so little that tables come and go.
const MEMORY: u64 = if cfg!(test) { 2 << 10 } else { 16 << 20 };

#[derive(Debug)]
pub(crate) struct Tables {
    slots: Vec<Slot>,
    /// The L1 indices of the L2 tables in memory.
    loaded: Vec<usize>,
    hand: usize,
    capacity: usize,
    /// How many of them are changed.
    dirty: usize,
    /// Which L1 entries are changed.
    l1_dirty: Option<Range<usize>>,
}

#[derive(Debug, Default)]
struct Slot {
    entry: u64,
    table: Option<Box<L2>>,
}

/// An L2 table in memory.
#[derive(Debug)]
pub(crate) struct L2 {
    entries: Box<[u64]>,
    dirty: Option<Range<usize>>,
    /// Changes of it are being written, so the file is not yet up to date.
    writing: bool,
    used: AtomicBool,
}

/// A part of an L2 table, as it is to be written.
#[derive(Debug)]
pub(crate) struct Job {
    index: usize,
    entries: Range<usize>,
    offset: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Reads the L1 table, as much as the disk needs.
    pub(crate) fn read(file: &HostFile, offset: u64, geometry: &Geometry) -> Result<Self> {
        let entries = read_entries(file, offset, geometry.l1_entries() as usize, "L1 table")?;
        let slots = entries.iter().map(|&entry| Slot { entry, table: None }).collect();
        let capacity = (MEMORY / geometry.cluster()).max(4) as usize;
        Ok(Self { slots, loaded: Vec::new(), hand: 0, capacity, dirty: 0, l1_dirty: None })
    }

    pub(crate) fn l1(&self, index: usize) -> u64 {
        self.slots[index].entry
    }

    pub(crate) fn set_l1(&mut self, index: usize, entry: u64) {
        self.slots[index].entry = entry;
        widen(&mut self.l1_dirty, index..index + 1);
    }

    /// The entries of an L2 table that is in memory.
    pub(crate) fn get(&self, index: usize) -> Option<&[u64]> {
        let table = self.slots[index].table.as_ref()?;
        if !table.used.load(Ordering::Relaxed) {
            table.used.store(true, Ordering::Relaxed);
        }
        Some(&table.entries)
    }

    /// Reads the L2 table that the L1 entry points to, unless it is in memory.
    pub(crate) fn load(&mut self, index: usize, file: &HostFile, geometry: &Geometry) -> Result<()> {
        if self.slots[index].table.is_some() {
            return Ok(());
        }
        let offset = self.slots[index].entry & OFFSET;
        if offset == 0 || geometry.within(offset) != 0 {
            return Err(corrupt(file.path(), format!("L1 entry {index} points to {offset:#x}")));
        }
        let entries = read_entries(file, offset, geometry.l2_entries(), "L2 table")?;
        self.insert(index, entries);
        Ok(())
    }

    /// Takes a table into memory.
    pub(crate) fn insert(&mut self, index: usize, entries: Box<[u64]>) {
        while self.loaded.len() >= self.capacity && self.evict() {}
        let table = L2 { entries, dirty: None, writing: false, used: AtomicBool::new(true) };
        self.slots[index].table = Some(Box::new(table));
        self.loaded.push(index);
    }

    /// Forgets a table that is neither changed nor used lately, if there is one.
    fn evict(&mut self) -> bool {
        for _ in 0..2 * self.loaded.len() {
            self.hand = if self.hand < self.loaded.len() { self.hand } else { 0 };
            let slot = &mut self.slots[self.loaded[self.hand]];
            let table = slot.table.as_ref().expect("it is in the list of those in memory");
            if table.dirty.is_none() && !table.writing && !table.used.swap(false, Ordering::Relaxed) {
                slot.table = None;
                self.loaded.swap_remove(self.hand);
                return true;
            }
            self.hand += 1;
        }
        false
    }

    /// Changes an entry of a table that is in memory.
    pub(crate) fn set(&mut self, index: usize, at: usize, entry: u64) {
        let table = self.slots[index].table.as_mut().expect("the caller has loaded it");
        table.entries[at] = entry;
        self.dirty += usize::from(table.dirty.is_none());
        widen(&mut table.dirty, at..at + 1);
    }

    /// Takes all of a table that is in memory as changed: it has a new place.
    pub(crate) fn rewrite(&mut self, index: usize) {
        let table = self.slots[index].table.as_mut().expect("the caller has loaded it");
        self.dirty += usize::from(table.dirty.is_none());
        table.dirty = Some(0..table.entries.len());
    }

    /// Whether so much is changed that it should be written.
    pub(crate) fn is_full(&self) -> bool {
        self.dirty > self.capacity / 2
    }

    /// Whether anything is changed.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty > 0 || self.l1_dirty.is_some()
    }

    /// Takes what is changed in L2 tables, to be written by the caller, who then says how that went.
    pub(crate) fn take_l2(&mut self) -> Vec<Job> {
        let mut jobs = Vec::with_capacity(self.dirty);
        for &index in &self.loaded {
            let slot = &mut self.slots[index];
            let table = slot.table.as_mut().expect("it is in the list of those in memory");
            let Some(entries) = table.dirty.take() else { continue };
            table.writing = true;
            let bytes = to_bytes(&table.entries[entries.clone()]);
            jobs.push(Job {
                index,
                offset: (slot.entry & OFFSET) + 8 * entries.start as u64,
                entries,
                bytes,
            });
        }
        self.dirty = 0;
        jobs
    }

    /// The part of the L1 table that is changed: its first entry, and its bytes.
    pub(crate) fn take_l1(&mut self) -> Option<(Range<usize>, Vec<u8>)> {
        let range = self.l1_dirty.take()?;
        let entries: Vec<_> = self.slots[range.clone()].iter().map(|slot| slot.entry).collect();
        Some((range, to_bytes(&entries)))
    }

    /// The jobs are done.
    pub(crate) fn written(&mut self, jobs: &[Job]) {
        for job in jobs {
            if let Some(table) = &mut self.slots[job.index].table {
                table.writing = false;
            }
        }
    }

    /// The jobs were not done, or not all of them.
    pub(crate) fn not_written(&mut self, jobs: Vec<Job>, l1: Option<Range<usize>>) {
        for job in jobs {
            let table = self.slots[job.index].table.as_mut().expect("it stays while it is being written");
            table.writing = false;
            self.dirty += usize::from(table.dirty.is_none());
            widen(&mut table.dirty, job.entries);
        }
        if let Some(range) = l1 {
            widen(&mut self.l1_dirty, range);
        }
    }
}

impl Job {
    pub(crate) fn write(&self, file: &HostFile) -> Result<()> {
        file.write(self.offset, &self.bytes)
    }
}

fn widen(range: &mut Option<Range<usize>>, more: Range<usize>) {
    *range = Some(match range.take() {
        Some(range) => range.start.min(more.start)..range.end.max(more.end),
        None => more,
    });
}

fn to_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Reads a table of numbers, all of which must be in the file.
pub(crate) fn read_entries(file: &HostFile, offset: u64, count: usize, what: &str) -> Result<Box<[u64]>> {
    // Before there is memory for it: a header may promise anything.
    if offset.saturating_add(count as u64 * 8) > file.len()? {
        return Err(past_end(file, what, offset));
    }
    let mut bytes = vec![0; count * 8];
    let had = file.read_some(offset, &mut bytes)?;
    if had < bytes.len() {
        return Err(past_end(file, what, offset));
    }
    Ok((0..count).map(|at| be64(&bytes, at * 8)).collect())
}

pub(crate) fn past_end(file: &HostFile, what: &str, offset: u64) -> Error {
    let end = file.len().unwrap_or(0);
    corrupt(
        file.path(),
        format!("its {what} at {offset:#x} reaches past the end of the file ({end:#x}); is it complete?"),
    )
}
