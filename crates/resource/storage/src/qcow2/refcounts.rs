//! Which clusters of the file are in use, and by how many (QEMU's `docs/interop/qcow2.txt`, "Host cluster management").
//!
//! The refcount table is in memory; refcount blocks come and go as L2 tables do. Nothing here is written to the file,
//! but for the space of new blocks, before [`Refcounts::write`].

use std::collections::HashMap;
use std::ops::Range;

use super::geometry::{Geometry, MAX_REFCOUNT_TABLE};
use super::header::{REFCOUNT_TABLE_AT, corrupt};
use super::tables::{past_end, read_entries};
use crate::file::HostFile;
use crate::{Error, Result};

/// How many bytes of refcount blocks are kept: with 16 bits and clusters of 64 KiB, those of 128 GiB of file.
const MEMORY: u64 = if cfg!(test) { 2 << 10 } else { 4 << 20 };
/// How many clusters past the end of the file may be marked as in use: what an interrupted writer leaves behind.
const MAX_BEYOND: u64 = 1 << 22;

#[derive(Debug)]
pub(crate) struct Refcounts {
    geometry: Geometry,
    table: Vec<u64>,
    table_at: u64,
    table_dirty: bool,
    /// Where the table was before it grew: the clusters, once the header names the new one.
    moved_from: Option<Range<u64>>,
    blocks: HashMap<usize, Block>,
    capacity: usize,
    /// Every cluster before this one is in use.
    hint: u64,
    /// No cluster from here on has ever been written to: they read as zeroes.
    fresh: u64,
    /// Clusters that are in use whatever their refcount says: the header and tables.
    reserved: Vec<Range<u64>>,
}

#[derive(Debug)]
struct Block {
    bytes: Box<[u8]>,
    dirty: bool,
    used: bool,
}

/// A run of clusters that was allocated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The first cluster.
    pub start: u64,
    /// How many.
    pub count: u64,
    /// Whether they read as zeroes.
    pub fresh: bool,
}

impl Refcounts {
    pub(crate) fn read(
        file: &HostFile,
        geometry: Geometry,
        table_at: u64,
        table_clusters: u64,
        reserved: Vec<Range<u64>>,
    ) -> Result<Self> {
        let entries = (table_clusters * geometry.cluster() / 8) as usize;
        let table = read_entries(file, table_at, entries, "refcount table")?.into_vec();
        let fresh = geometry.clusters(file.len()?);
        let capacity = (MEMORY / geometry.cluster()).max(4) as usize;
        Ok(Self {
            geometry,
            table,
            table_at,
            table_dirty: false,
            moved_from: None,
            blocks: HashMap::new(),
            capacity,
            hint: 0,
            fresh,
            reserved,
        })
    }

    /// Where the blocks lie: 0 for those that are missing.
    pub(crate) fn table(&self) -> &[u64] {
        &self.table
    }

    /// Where the table lies: clusters.
    pub(crate) fn table_place(&self) -> Range<u64> {
        let start = self.table_at >> self.geometry.cluster_bits;
        start..start + self.geometry.clusters(8 * self.table.len() as u64)
    }

    /// The end of what has ever been written to, in clusters.
    pub(crate) fn end(&self) -> u64 {
        self.fresh
    }

    fn place(&self, cluster: u64) -> (usize, u64) {
        let per_block = self.geometry.block_clusters();
        ((cluster / per_block) as usize, cluster % per_block)
    }

    /// How many refer to `cluster`.
    pub(crate) fn get(&mut self, file: &HostFile, cluster: u64) -> Result<u64> {
        let (index, at) = self.place(cluster);
        if self.table.get(index).is_none_or(|&entry| entry == 0) {
            return Ok(0);
        }
        let order = self.geometry.refcount_order;
        Ok(get(&self.load(file, index)?.bytes, order, at))
    }

    /// Sets how many refer to `cluster`.
    pub(crate) fn set(&mut self, file: &HostFile, cluster: u64, count: u64) -> Result<()> {
        let (index, at) = self.place(cluster);
        let order = self.geometry.refcount_order;
        if order < 6 && count >> (1 << order) != 0 {
            let problem = format!("cluster {cluster} has more references than its refcounts can count");
            return Err(corrupt(file.path(), problem));
        }
        if count == 0 {
            self.hint = self.hint.min(cluster);
        }
        let block = self.load_or_create(file, index)?;
        set(&mut block.bytes, order, at, count);
        block.dirty = true;
        Ok(())
    }

    /// One refers to `cluster` no more. Says whether nobody does now.
    pub(crate) fn release(&mut self, file: &HostFile, cluster: u64) -> Result<bool> {
        match self.get(file, cluster)? {
            0 => Err(corrupt(file.path(), format!("cluster {cluster} was in use and is counted as free"))),
            count => self.set(file, cluster, count - 1).map(|()| count == 1),
        }
    }

    /// Allocates at least one cluster, and at most `want` in a row.
    pub(crate) fn allocate(&mut self, file: &HostFile, want: u64) -> Result<Run> {
        let per_block = self.geometry.block_clusters();
        let order = self.geometry.refcount_order;
        let mut cluster = self.hint;
        loop {
            if cluster > self.fresh.saturating_add(MAX_BEYOND) {
                return Err(corrupt(file.path(), "its refcounts say that everything past its end is in use"));
            }
            let (index, first) = self.place(cluster);
            self.load_or_create(file, index)?;
            let block = self.blocks.get_mut(&index).expect("it was loaded");
            let Some(at) = (first..per_block).find(|&at| get(&block.bytes, order, at) == 0) else {
                cluster = (index as u64 + 1) * per_block;
                self.hint = cluster;
                continue;
            };
            let start = index as u64 * per_block + at;
            self.hint = start;
            if let Some(reserved) = self.reserved.iter().find(|reserved| reserved.contains(&start)) {
                cluster = reserved.end;
                self.hint = cluster;
                continue;
            }
            let fresh = start >= self.fresh;
            let mut limit = per_block.min(at + want);
            if !fresh {
                limit = limit.min(at + (self.fresh - start));
            }
            let next = self.reserved.iter().map(|reserved| reserved.start).filter(|&next| next > start).min();
            limit = limit.min(at + next.map_or(u64::MAX - at, |next| next - start));
            let mut end = at;
            while end < limit && get(&block.bytes, order, end) == 0 {
                set(&mut block.bytes, order, end, 1);
                end += 1;
            }
            block.dirty = true;
            let count = end - at;
            self.hint = start + count;
            self.fresh = self.fresh.max(start + count);
            if (start + count) << self.geometry.cluster_bits > 1 << 55 {
                return Err(corrupt(file.path(), "it cannot become any larger"));
            }
            return Ok(Run { start, count, fresh });
        }
    }

    /// Gives back clusters that nothing in the file refers to yet.
    pub(crate) fn give_back(&mut self, file: &HostFile, clusters: Range<u64>) {
        for cluster in clusters {
            // What cannot be given back is lost until a check, and harms nothing.
            let _ = self.set(file, cluster, 0);
        }
    }

    fn load(&mut self, file: &HostFile, index: usize) -> Result<&mut Block> {
        if !self.blocks.contains_key(&index) {
            let offset = self.table[index] & !0x1ff;
            if self.geometry.within(offset) != 0 {
                return Err(corrupt(file.path(), format!("its refcount block {index} lies at {offset:#x}")));
            }
            let mut bytes = vec![0; self.geometry.cluster() as usize].into_boxed_slice();
            if file.read_some(offset, &mut bytes)? < bytes.len() {
                return Err(past_end(file, "refcount block", offset));
            }
            self.insert(index, bytes, false);
        }
        let block = self.blocks.get_mut(&index).expect("it is there or was loaded");
        block.used = true;
        Ok(block)
    }

    fn insert(&mut self, index: usize, bytes: Box<[u8]>, dirty: bool) {
        if self.blocks.len() >= self.capacity {
            // One that is unchanged, and was not used since the last time.
            let victim = self.blocks.iter().find(|(_, block)| !block.dirty && !block.used);
            let victim = victim
                .or_else(|| self.blocks.iter().find(|(_, block)| !block.dirty))
                .map(|(&index, _)| index);
            victim.and_then(|index| self.blocks.remove(&index));
            self.blocks.values_mut().for_each(|block| block.used = false);
        }
        self.blocks.insert(index, Block { bytes, dirty, used: true });
    }

    fn load_or_create(&mut self, file: &HostFile, index: usize) -> Result<&mut Block> {
        if self.table.get(index).is_none_or(|&entry| entry == 0) {
            self.create(file, index)?;
        }
        self.load(file, index)
    }

    /// Makes a refcount block, past the end of everything, and if it can be where it counts itself.
    fn create(&mut self, file: &HostFile, index: usize) -> Result<()> {
        let per_block = self.geometry.block_clusters();
        if index >= self.table.len() {
            self.grow(file, index)?;
            if self.table[index] != 0 {
                return Ok(());
            }
        }
        let first = index as u64 * per_block;
        let at = if first + per_block > self.fresh { first.max(self.fresh) } else { self.fresh };
        self.fresh = at + 1;
        let mut bytes = vec![0; self.geometry.cluster() as usize].into_boxed_slice();
        let counts_itself = at >= first && at < first + per_block;
        if counts_itself {
            set(&mut bytes, self.geometry.refcount_order, at - first, 1);
        }
        // Now, so that a full host disk shows before anything depends on it.
        file.write(at << self.geometry.cluster_bits, &bytes)?;
        self.table[index] = at << self.geometry.cluster_bits;
        self.table_dirty = true;
        self.insert(index, bytes, true);
        if counts_itself { Ok(()) } else { self.set(file, at, 1) }
    }

    /// Makes room for entry `index` of the refcount table, at a new place.
    fn grow(&mut self, file: &HostFile, index: usize) -> Result<()> {
        let old = self.table_place();
        // The blocks that count the table itself need entries, too.
        let entries = (index as u64 + 1).max(self.table.len() as u64 * 3 / 2) + 8;
        let clusters = self.geometry.clusters(8 * entries);
        if clusters * self.geometry.cluster() > MAX_REFCOUNT_TABLE {
            return Err(Error::Unsupported {
                path: file.path().to_owned(),
                format: crate::Format::Qcow2,
                problem: "it cannot become any larger with clusters this small; convert it".to_owned(),
            });
        }
        let start = self.fresh;
        self.fresh += clusters;
        self.table.resize((clusters * self.geometry.cluster() / 8) as usize, 0);
        self.table_at = start << self.geometry.cluster_bits;
        self.table_dirty = true;
        self.reserved.push(start..start + clusters);
        // The header names the first of several places until all is written.
        self.moved_from.get_or_insert(old);
        for cluster in start..start + clusters {
            self.set(file, cluster, 1)?;
        }
        Ok(())
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.table_dirty || self.blocks.values().any(|block| block.dirty)
    }

    /// Writes what is changed, in an order that is right at any moment. Returns clusters that are free once all that
    /// is on stable storage.
    pub(crate) fn write(&mut self, file: &HostFile) -> Result<Option<Range<u64>>> {
        for (&index, block) in &mut self.blocks {
            if block.dirty {
                file.write(self.table[index] & !0x1ff, &block.bytes)?;
                block.dirty = false;
            }
        }
        if !self.table_dirty {
            return Ok(None);
        }
        file.sync()?;
        let bytes: Vec<_> = self.table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        file.write(self.table_at, &bytes)?;
        if self.moved_from.is_some() {
            file.sync()?;
            let clusters = self.geometry.clusters(bytes.len() as u64) as u32;
            let mut place = [0; 12];
            place[..8].copy_from_slice(&self.table_at.to_be_bytes());
            place[8..].copy_from_slice(&clusters.to_be_bytes());
            file.write(REFCOUNT_TABLE_AT, &place)?;
        }
        self.table_dirty = false;
        Ok(self.moved_from.take())
    }
}

/// The refcount at `at` of a block. Those of less than 8 bits begin at the lowest.
fn get(block: &[u8], order: u32, at: u64) -> u64 {
    let at = at as usize;
    match order {
        0..=2 => {
            let bits = 1 << order;
            let per_byte = 8 / bits;
            u64::from(block[at / per_byte] >> (at % per_byte * bits)) & ((1 << bits) - 1)
        }
        3 => block[at].into(),
        4 => crate::bytes::be16(block, at * 2).into(),
        5 => crate::bytes::be32(block, at * 4).into(),
        _ => crate::bytes::be64(block, at * 8),
    }
}

fn set(block: &mut [u8], order: u32, at: u64, count: u64) {
    let at = at as usize;
    match order {
        0..=2 => {
            let bits = 1 << order;
            let per_byte = 8 / bits;
            let shift = at % per_byte * bits;
            let mask = ((1u8 << bits) - 1) << shift;
            let byte = &mut block[at / per_byte];
            *byte = *byte & !mask | (count as u8) << shift;
        }
        3 => block[at] = count as u8,
        4 => block[at * 2..][..2].copy_from_slice(&(count as u16).to_be_bytes()),
        5 => block[at * 4..][..4].copy_from_slice(&(count as u32).to_be_bytes()),
        _ => block[at * 8..][..8].copy_from_slice(&count.to_be_bytes()),
    }
}

#[cfg(test)]
#[path = "refcounts_test.rs"]
mod tests;
