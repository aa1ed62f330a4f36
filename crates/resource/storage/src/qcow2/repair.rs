//! Setting refcounts right.

use super::Qcow2;
use super::check::{Counter, Found};
use super::entry::{COPIED, Mapping, OFFSET};
use super::header::{CORRUPT, DIRTY, INCOMPATIBLE_AT};
use crate::Result;

/// What is to be set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Clusters that are counted and not used: they become free.
    Leaks,
    /// That, and refcounts that are too low, and the flags that go with them.
    All,
}

impl Qcow2 {
    /// Repairs what can be, and says what was wrong before. If anything is damaged that is not asked to be repaired, or
    /// cannot be, nothing is changed: what looks like a leak may be what a damaged table has lost.
    pub(crate) fn repair(&self, what: Repair) -> Result<Found> {
        let mut counter = self.count(&mut self.state_mut())?;
        let mut found = self.check()?;
        let in_the_way = match what {
            Repair::Leaks => found.damage,
            Repair::All => found.damage - found.mendable,
        };
        if in_the_way > 0 {
            if what == Repair::All {
                let problem = found.told.swap_remove(0);
                return Err(
                    self.corrupt(format!("{problem}; `qemu-img check -r all` may save what is there"))
                );
            }
            return Ok(found);
        }
        self.set_counts(&mut counter)?;
        self.flush_all()?;
        if what == Repair::All {
            self.set_flags()?;
            self.flush_all()?;
            if self.header.incompatible & (DIRTY | CORRUPT) != 0 {
                let features = self.header.incompatible & !(DIRTY | CORRUPT);
                self.file.write(INCOMPATIBLE_AT, &features.to_be_bytes())?;
                self.file.sync()?;
            }
        }
        Ok(found)
    }

    fn set_counts(&self, counter: &mut Counter) -> Result<()> {
        let mut state = self.state_mut();
        for (cluster, &used) in counter.counts.iter().enumerate() {
            let cluster = cluster as u64;
            if state.refcounts.get(&self.file, cluster)? != u64::from(used) {
                state.refcounts.set(&self.file, cluster, used.into())?;
            }
        }
        Ok(())
    }

    /// Sets the flags of the disk's own tables by the refcounts.
    fn set_flags(&self) -> Result<()> {
        for l1 in 0..self.geometry.l1_entries() as usize {
            if !self.has_table(l1) {
                continue;
            }
            let mut state = self.state_mut();
            let entry = state.tables.l1(l1);
            let right = self.flagged(&mut state, entry, entry & OFFSET)?;
            if right != entry {
                state.tables.set_l1(l1, right);
            }
            state.tables.load(l1, &self.file, &self.geometry)?;
            for at in 0..self.geometry.l2_entries() {
                let entry = state.tables.get(l1).expect("it was loaded")[at];
                let (Mapping::Data(offset, _) | Mapping::Zero(Some((offset, _)))) = self.decode(entry)?
                else {
                    continue;
                };
                let right = self.flagged(&mut state, entry, offset)?;
                if right != entry {
                    state.tables.set(l1, at, right);
                }
            }
            drop(state);
            self.make_room()?;
        }
        Ok(())
    }

    fn flagged(&self, state: &mut super::State, entry: u64, offset: u64) -> Result<u64> {
        let count = state.refcounts.get(&self.file, offset >> self.geometry.cluster_bits)?;
        Ok(if count == 1 { entry | COPIED } else { entry & !COPIED })
    }
}
