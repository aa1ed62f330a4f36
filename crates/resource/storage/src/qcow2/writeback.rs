//! Bringing metadata to the file, in the order that `mod.rs` describes.

use std::sync::{MutexGuard, PoisonError};

use super::entry::OFFSET;
use super::{Freed, Qcow2};
use crate::Result;

impl Qcow2 {
    /// Everything that was written before is on stable storage when this returns. The caller is not inside the gate.
    pub(super) fn flush_all(&self) -> Result<()> {
        let writing = self.lock_writing();
        self.write_metadata(&writing)?;
        let freed = std::mem::take(&mut self.state_mut().unsynced);
        if let Err(error) = self.file.sync() {
            self.state_mut().unsynced.extend(freed);
            return Err(error);
        }
        drop(writing);
        self.release(freed)
    }

    /// Writes metadata if much of it is changed. The caller may be inside the gate, and has no claim.
    pub(super) fn make_room(&self) -> Result<()> {
        if !self.state().tables.is_full() {
            return Ok(());
        }
        let writing = self.lock_writing();
        // Somebody else may have done so meanwhile.
        if self.state().tables.is_full() { self.write_metadata(&writing) } else { Ok(()) }
    }

    fn lock_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_metadata(&self, _writing: &MutexGuard<'_, ()>) -> Result<()> {
        let (jobs, l1, freed) = {
            let mut state = self.state_mut();
            if !state.tables.is_dirty() && !state.refcounts.is_dirty() && state.unlinked.is_empty() {
                return Ok(());
            }
            self.file.extend(state.refcounts.end() << self.geometry.cluster_bits)?;
            if let Some(old_table) = state.refcounts.write(&self.file)? {
                state.unlinked.extend(old_table.map(|cluster| Freed { cluster, punch: true }));
            }
            (state.tables.take_l2(), state.tables.take_l1(), std::mem::take(&mut state.unlinked))
        };
        let written = || -> Result<()> {
            // What the tables will refer to, and that it is counted.
            self.file.sync()?;
            for job in &jobs {
                job.write(&self.file)?;
            }
            if let Some((range, bytes)) = &l1 {
                self.file.sync()?;
                self.file.write(self.header.l1.offset + 8 * range.start as u64, bytes)?;
            }
            Ok(())
        };
        let result = written();
        let mut state = self.state_mut();
        match result {
            Ok(()) => {
                state.tables.written(&jobs);
                state.unsynced.extend(freed);
            }
            Err(_) => {
                state.tables.not_written(jobs, l1.map(|(range, _)| range));
                state.unlinked.extend(freed);
            }
        }
        result
    }

    /// Counts one reference less to each, now that nothing on stable storage refers to them.
    fn release(&self, mut freed: Vec<Freed>) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        // Whoever has looked them up is done after this.
        drop(self.gate.write().unwrap_or_else(PoisonError::into_inner));
        self.unpacked.clear();
        freed.sort_unstable_by_key(|freed| freed.cluster);
        let bits = self.geometry.cluster_bits;
        let mut hole: Option<std::ops::Range<u64>> = None;
        let mut state = self.state_mut();
        for Freed { cluster, punch } in freed {
            if !state.refcounts.release(&self.file, cluster)? || !punch {
                continue;
            }
            // Under the lock, for somebody could allocate it right after.
            match &mut hole {
                Some(hole) if hole.end == cluster => hole.end += 1,
                _ => {
                    if let Some(hole) = hole.replace(cluster..cluster + 1) {
                        self.file.punch(hole.start << bits, (hole.end - hole.start) << bits)?;
                    }
                }
            }
        }
        if let Some(hole) = hole {
            self.file.punch(hole.start << bits, (hole.end - hole.start) << bits)?;
        }
        Ok(())
    }

    /// Whether an L1 entry leads anywhere.
    pub(super) fn has_table(&self, l1: usize) -> bool {
        self.state().tables.l1(l1) & OFFSET != 0
    }
}
