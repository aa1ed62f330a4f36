//! Writing: in place, or to new clusters.

use std::cell::RefCell;

use super::entry::{COPIED, Mapping, OFFSET};
use super::refcounts::Run;
use super::{Freed, Qcow2, State};
use crate::{Disk, Extent, Result};

/// How many clusters one step allocates at most: the fewer, the less others wait.
const MAX_RUN: u64 = 256;

thread_local! {
    /// What is read from old clusters to be written to new ones.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What a step of a write has to do.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Write to this offset of the file.
    InPlace(u64),
    /// Fill new clusters.
    New(Target),
}

/// Clusters that are to take the place of others.
#[derive(Clone, Copy, Debug)]
struct Target {
    run: Run,
    /// Whether they were allocated for this, or had been kept.
    allocated: bool,
}

impl Qcow2 {
    /// Writes `data`, run by run. The caller is inside the gate and has checked the range.
    pub(super) fn write_runs(&self, mut offset: u64, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let done = match self.in_place(offset, data.len() as u64)? {
                Some((at, length)) => {
                    self.file.write(at, &data[..length as usize])?;
                    length
                }
                None => self.write_new(offset, data)?,
            };
            offset += done;
            data = &data[done as usize..];
        }
        Ok(())
    }

    /// Where `offset` can be overwritten, if it can, and for how many bytes.
    fn in_place(&self, offset: u64, length: u64) -> Result<Option<(u64, u64)>> {
        let (l1, first) = self.geometry.indices(offset);
        let state = self.state();
        if state.tables.l1(l1) & COPIED == 0 {
            return Ok(None);
        }
        let Some(entries) = state.tables.get(l1) else { return Ok(None) };
        let within = self.geometry.within(offset);
        let Mapping::Data(at, true) = self.decode(entries[first])? else { return Ok(None) };
        let mut end = self.geometry.cluster();
        for &entry in &entries[first + 1..] {
            if end - within >= length || entry != (at + end) | COPIED {
                break;
            }
            end += self.geometry.cluster();
        }
        self.refuse_nonsense(&state, at, end)?;
        Ok(Some((at + within, length.min(end - within))))
    }

    /// A damaged or hostile image may say that data lie where its own tables are, or far behind its end.
    fn refuse_nonsense(&self, state: &State, at: u64, length: u64) -> Result<()> {
        let header = &self.header;
        let cluster = self.geometry.cluster();
        let tables = [
            (0, cluster),
            (header.l1.offset, header.l1.entries * 8),
            (header.refcount_table.offset, header.refcount_table.entries * cluster),
            (header.snapshots.offset, header.snapshots.entries * 40),
        ];
        if tables.iter().any(|&(start, size)| at < start + size && start < at + length) {
            return Err(self.corrupt(format!("data at {at:#x} would lie in its own tables")));
        }
        if at + length > state.refcounts.end() << self.geometry.cluster_bits {
            return Err(super::tables::past_end(&self.file, "data", at));
        }
        Ok(())
    }

    pub(super) fn decode(&self, entry: u64) -> Result<Mapping> {
        Mapping::decode(entry, &self.geometry).map_err(|problem| self.corrupt(problem))
    }

    /// Writes the first part of `data` to clusters that this may need to allocate. Returns how much.
    fn write_new(&self, offset: u64, data: &[u8]) -> Result<u64> {
        self.make_room()?;
        let cluster = self.geometry.cluster();
        let first = offset >> self.geometry.cluster_bits;
        let in_table = self.geometry.l2_entries() as u64 - self.geometry.indices(offset).1 as u64;
        let wanted = self.geometry.clusters(self.geometry.within(offset) + data.len() as u64);
        let wanted = wanted.min(in_table).min(MAX_RUN);
        let claim = self.claims.claim(first..first + wanted);
        let target = match self.prepare(offset, wanted)? {
            Step::InPlace(at) => {
                let length = (cluster - self.geometry.within(offset)).min(data.len() as u64);
                self.file.write(at, &data[..length as usize])?;
                return Ok(length);
            }
            Step::New(target) => target,
        };
        let length = (target.run.count * cluster - self.geometry.within(offset)).min(data.len() as u64);
        let data = &data[..length as usize];
        if let Err(error) = self.fill(offset, data, &target).and_then(|()| self.link(first, &target)) {
            if target.allocated {
                let clusters = target.run.start..target.run.start + target.run.count;
                self.state_mut().refcounts.give_back(&self.file, clusters);
            }
            return Err(error);
        }
        drop(claim);
        Ok(length)
    }

    /// Finds out what to do with the cluster at `offset` and those after it that need the same.
    fn prepare(&self, offset: u64, wanted: u64) -> Result<Step> {
        let (l1, first) = self.geometry.indices(offset);
        let mut state = self.state_mut();
        self.own_table(&mut state, l1)?;
        let entries = state.tables.get(l1).expect("own_table has loaded it");
        match self.decode(entries[first])? {
            Mapping::Data(at, true) => {
                self.refuse_nonsense(&state, at, self.geometry.cluster())?;
                return Ok(Step::InPlace(at + self.geometry.within(offset)));
            }
            Mapping::Zero(Some((at, true))) => {
                self.refuse_nonsense(&state, at, self.geometry.cluster())?;
                let run = Run { start: at >> self.geometry.cluster_bits, count: 1, fresh: false };
                return Ok(Step::New(Target { run, allocated: false }));
            }
            _ => {}
        }
        let mut count = 1;
        while count < wanted && self.needs_new(entries[first + count as usize])? {
            count += 1;
        }
        let run = state.refcounts.allocate(&self.file, count)?;
        Ok(Step::New(Target { run, allocated: true }))
    }

    fn needs_new(&self, entry: u64) -> Result<bool> {
        Ok(!matches!(self.decode(entry)?, Mapping::Data(_, true) | Mapping::Zero(Some((_, true)))))
    }

    /// Sees to it that the L2 table is in memory and that only this disk refers to it.
    pub(super) fn own_table(&self, state: &mut State, l1: usize) -> Result<()> {
        let entry = state.tables.l1(l1);
        let old = entry & OFFSET;
        if old != 0 {
            state.tables.load(l1, &self.file, &self.geometry)?;
            if entry & COPIED != 0 {
                return Ok(());
            }
        }
        let run = state.refcounts.allocate(&self.file, 1)?;
        let at = run.start << self.geometry.cluster_bits;
        // Now, so that a full host disk shows before anything depends on it.
        let space = self.file.write_zeroes_plainly(at, self.geometry.cluster());
        if let Err(error) = space {
            state.refcounts.give_back(&self.file, run.start..run.start + 1);
            return Err(error);
        }
        state.tables.set_l1(l1, at | COPIED);
        if old == 0 {
            state.tables.insert(l1, vec![0; self.geometry.l2_entries()].into_boxed_slice());
        } else {
            state.unlinked.push(Freed { cluster: old >> self.geometry.cluster_bits, punch: false });
        }
        state.tables.rewrite(l1);
        Ok(())
    }

    /// Writes `data` to new clusters, and around it what they have to hold.
    fn fill(&self, offset: u64, data: &[u8], target: &Target) -> Result<()> {
        let cluster = self.geometry.cluster();
        let head = self.geometry.within(offset);
        let end = offset + data.len() as u64;
        let tail = end.next_multiple_of(cluster) - end;
        let at = target.run.start << self.geometry.cluster_bits;
        self.copy_old(offset - head, head, at, target)?;
        self.file.write(at + head, data)?;
        self.copy_old(end, tail, at + head + data.len() as u64, target)
    }

    /// Copies what lies at `offset` of the disk to `at` in the file: less than a cluster.
    fn copy_old(&self, offset: u64, length: u64, at: u64, target: &Target) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        // The last cluster may reach past the end of the disk.
        let inside = self.size().saturating_sub(offset).min(length);
        let (extent, run) = match inside {
            0 => (Extent::Zero, length),
            inside => self.extent_at(offset, inside)?,
        };
        if extent == Extent::Zero && run >= inside {
            return if target.run.fresh { Ok(()) } else { self.file.write_zeroes(at, length, false) };
        }
        // Taken, for a backing file copies on this thread, too.
        let mut buffer = SCRATCH.take();
        buffer.clear();
        buffer.resize(length as usize, 0);
        let read = self.read_runs(offset, &mut buffer[..inside as usize]);
        let done = read.and_then(|()| self.file.write(at, &buffer));
        SCRATCH.set(buffer);
        done
    }

    /// Lets the disk's clusters from `first` be those that were filled.
    fn link(&self, first: u64, target: &Target) -> Result<()> {
        let mut state = self.state_mut();
        let (l1, l2) = self.geometry.indices(first << self.geometry.cluster_bits);
        // It may have been forgotten meanwhile.
        self.own_table(&mut state, l1)?;
        for at in 0..target.run.count as usize {
            let new = ((target.run.start + at as u64) << self.geometry.cluster_bits) | COPIED;
            self.relink(&mut state, l1, l2 + at, new)?;
        }
        Ok(())
    }

    /// Changes an L2 entry, and notes what it referred to.
    pub(super) fn relink(&self, state: &mut State, l1: usize, l2: usize, new: u64) -> Result<()> {
        let old = state.tables.get(l1).expect("own_table has loaded it")[l2];
        if old == new {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits;
        let kept = new & OFFSET;
        match self.decode(old)? {
            Mapping::Data(at, copied) | Mapping::Zero(Some((at, copied))) if at != kept => {
                state.unlinked.push(Freed { cluster: at >> bits, punch: copied });
            }
            Mapping::Compressed(span) => {
                let clusters = span.offset >> bits..=(span.offset + span.length - 1) >> bits;
                state.unlinked.extend(clusters.map(|cluster| Freed { cluster, punch: true }));
            }
            _ => {}
        }
        state.tables.set(l1, l2, new);
        Ok(())
    }
}
