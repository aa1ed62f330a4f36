//! Whether refcounts are what the tables say.

use super::entry::{COPIED, Mapping, OFFSET};
use super::header::{BITMAPS, Bitmaps, Table};
use super::snapshots;
use super::tables::read_entries;
use super::{Qcow2, State};
use crate::{Error, Format, Result};

/// The largest file that is checked, in clusters: 16 TiB with clusters of 64 KiB.
const MAX_CLUSTERS: u64 = 1 << 28;
/// How many findings are told in words.
const MAX_TOLD: usize = 20;

/// What a check has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// Clusters that are counted and not used.
    pub leaks: u64,
    /// How many things are wrong.
    pub damage: u64,
    /// The first of them.
    pub told: Vec<String>,
    /// Those of them that are only about refcounts and flags, which can be set right.
    pub mendable: u64,
}

impl Found {
    fn wrong(&mut self, problem: impl FnOnce() -> String) {
        self.damage += 1;
        if self.told.len() < MAX_TOLD {
            self.told.push(problem());
        }
    }

    fn miscounted(&mut self, problem: impl FnOnce() -> String) {
        self.mendable += 1;
        self.wrong(problem);
    }
}

/// How many refer to each cluster of the file, by the tables.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) counts: Vec<u32>,
    pub(super) found: Found,
}

impl Counter {
    /// Counts a reference to each cluster that the bytes lie in.
    fn add(&mut self, bits: u32, offset: u64, length: u64, what: &str) {
        if length == 0 {
            return;
        }
        let first = offset >> bits;
        let last = offset.saturating_add(length - 1) >> bits;
        let Some(counts) = self.counts.get_mut(first as usize..=last as usize) else {
            return self.found.wrong(|| format!("{what} at {offset:#x} reaches past the end of the file"));
        };
        for count in counts {
            *count = count.saturating_add(1);
        }
    }
}

impl Qcow2 {
    /// Compares all refcounts with what the tables refer to. Nothing else uses the image meanwhile.
    pub(crate) fn check(&self) -> Result<Found> {
        let mut state = self.state_mut();
        let mut counter = self.count(&mut state)?;
        self.compare(&mut state, &mut counter)?;
        Ok(counter.found)
    }

    /// Counts the references to every cluster, as the file has them.
    pub(super) fn count(&self, state: &mut State) -> Result<Counter> {
        let end = self.geometry.clusters(self.file.len()?);
        if end > MAX_CLUSTERS {
            return Err(Error::Unsupported {
                path: self.file.path().to_owned(),
                format: Format::Qcow2,
                problem: format!(
                    "it has {end} clusters, more than can be checked here; use `qemu-img check`"
                ),
            });
        }
        let mut counter = Counter { counts: vec![0; end as usize], found: Found::default() };
        let bits = self.geometry.cluster_bits;
        let header = &self.header;
        counter.add(bits, 0, 1, "the header");
        let table = header.refcount_table;
        counter.add(bits, table.offset, table.entries << bits, "the refcount table");
        for &block in state.refcounts.table() {
            let offset = block & OFFSET;
            if self.geometry.within(offset) != 0 {
                counter.found.wrong(|| format!("a refcount block lies at {offset:#x}, inside a cluster"));
            } else if offset != 0 {
                counter.add(bits, offset, 1, "a refcount block");
            }
        }
        self.count_disk(state, &mut counter, header.l1, true)?;
        let (snapshots, length) = snapshots::read(&self.file, header)?;
        counter.add(bits, header.snapshots.offset, length, "the snapshot table");
        for snapshot in snapshots {
            self.count_disk(state, &mut counter, snapshot.l1, false)?;
        }
        if let (Some(bitmaps), true) = (header.bitmaps, header.autoclear & BITMAPS != 0) {
            self.count_bitmaps(&mut counter, bitmaps)?;
        }
        Ok(counter)
    }

    /// Counts what an L1 table leads to. `active` is the disk's own, as opposed to a snapshot's.
    fn count_disk(&self, state: &mut State, counter: &mut Counter, l1: Table, active: bool) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        counter.add(bits, l1.offset, l1.entries * 8, "an L1 table");
        let entries = read_entries(&self.file, l1.offset, l1.entries as usize, "L1 table")?;
        for entry in entries {
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            if self.geometry.within(offset) != 0 {
                counter.found.wrong(|| format!("the L1 entry {entry:#x} points inside a cluster"));
                continue;
            }
            counter.add(bits, offset, 1, "an L2 table");
            if active {
                self.check_copied(state, counter, entry, offset)?;
            }
            let Ok(table) = read_entries(&self.file, offset, self.geometry.l2_entries(), "L2 table") else {
                counter.found.wrong(|| format!("the L2 table at {offset:#x} cannot be read"));
                continue;
            };
            for entry in table {
                self.count_entry(state, counter, entry, active)?;
            }
        }
        Ok(())
    }

    fn count_entry(&self, state: &mut State, counter: &mut Counter, entry: u64, active: bool) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        match Mapping::decode(entry, &self.geometry) {
            Err(problem) => counter.found.wrong(|| problem),
            Ok(Mapping::Data(at, _) | Mapping::Zero(Some((at, _)))) => {
                counter.add(bits, at, 1, "data");
                if active {
                    self.check_copied(state, counter, entry, at)?;
                }
            }
            // Its last sector may end after the file.
            Ok(Mapping::Compressed(span)) => {
                let end = (counter.counts.len() as u64) << bits;
                let length = span.length.min(end.saturating_sub(span.offset)).max(1);
                counter.add(bits, span.offset, length, "compressed data");
            }
            Ok(Mapping::Unallocated | Mapping::Zero(None)) => {}
        }
        Ok(())
    }

    /// The flag says that the refcount is one.
    fn check_copied(&self, state: &mut State, counter: &mut Counter, entry: u64, offset: u64) -> Result<()> {
        let count = state.refcounts.get(&self.file, offset >> self.geometry.cluster_bits)?;
        if (count == 1) != (entry & COPIED != 0) {
            counter
                .found
                .miscounted(|| format!("the entry {entry:#x} has the wrong flag for a refcount of {count}"));
        }
        Ok(())
    }

    /// Counts what persistent bitmaps take (the same document, "Bitmaps").
    fn count_bitmaps(&self, counter: &mut Counter, bitmaps: Bitmaps) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let mut directory = vec![0; bitmaps.directory_size.min(64 << 20) as usize];
        let had = self.file.read_some(bitmaps.directory, &mut directory)?;
        directory.truncate(had);
        counter.add(bits, bitmaps.directory, bitmaps.directory_size, "the directory of bitmaps");
        let mut rest = &directory[..];
        for _ in 0..bitmaps.count {
            if rest.len() < 24 {
                counter.found.wrong(|| "the directory of bitmaps is incomplete".to_owned());
                return Ok(());
            }
            let (table, entries) = (crate::bytes::be64(rest, 0), crate::bytes::be32(rest, 8));
            let names = u64::from(crate::bytes::be16(rest, 18)) + u64::from(crate::bytes::be32(rest, 20));
            counter.add(bits, table, u64::from(entries) * 8, "the table of a bitmap");
            match read_entries(
                &self.file,
                table,
                (entries as usize).min(MAX_CLUSTERS as usize),
                "bitmap's table",
            ) {
                Ok(clusters) => {
                    for entry in clusters.iter().map(|entry| entry & OFFSET).filter(|&entry| entry != 0) {
                        counter.add(bits, entry, 1, "a bitmap");
                    }
                }
                Err(_) => {
                    counter.found.wrong(|| format!("the table of a bitmap at {table:#x} cannot be read"));
                }
            }
            rest = rest.get((24 + names).next_multiple_of(8) as usize..).unwrap_or_default();
        }
        Ok(())
    }

    /// Compares what was counted with what the file has counted.
    fn compare(&self, state: &mut State, counter: &mut Counter) -> Result<()> {
        for cluster in 0..counter.counts.len() {
            let (used, counted) =
                (counter.counts[cluster].into(), state.refcounts.get(&self.file, cluster as u64)?);
            if counted > used {
                counter.found.leaks += 1;
            } else if counted < used {
                let problem =
                    || format!("cluster {cluster} has {used} references and is counted {counted} times");
                counter.found.miscounted(problem);
            }
        }
        Ok(())
    }
}
