//! Zeroes and discards: clusters without space.

use super::Qcow2;
use super::entry::{COPIED, Mapping, OFFSET, ZERO};
use crate::Result;

/// How many clusters one step changes at most.
const MAX_RUN: u64 = 4096;

static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// What is to become of whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Into {
    /// Zeroes, which need no space.
    Zero,
    /// Zeroes, and what has space keeps it.
    ZeroInPlace,
    /// Whatever needs no space.
    Nothing,
}

impl Qcow2 {
    /// Makes a range read as zeroes. The caller is inside the gate and has checked the range.
    pub(super) fn zero_range(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        let end = offset + length;
        // What reaches past the disk's end in the last cluster is nobody's.
        let whole_end =
            if end == self.geometry.size { end.next_multiple_of(self.geometry.cluster()) } else { end };
        let first = offset.next_multiple_of(self.geometry.cluster());
        let last = self.geometry.round_down(whole_end);
        if first >= last {
            return self.zero_part(offset, end);
        }
        self.zero_part(offset, first)?;
        self.change_clusters(first, last, if may_unmap { Into::Zero } else { Into::ZeroInPlace })?;
        self.zero_part(last.min(end), end)
    }

    /// Gives back the clusters that are wholly in a range.
    pub(super) fn discard_range(&self, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        let whole_end =
            if end == self.geometry.size { end.next_multiple_of(self.geometry.cluster()) } else { end };
        let first = offset.next_multiple_of(self.geometry.cluster());
        let last = self.geometry.round_down(whole_end);
        // Version 2 cannot say that a cluster is zeroes and not the backing file's.
        if first >= last || (self.geometry.version < 3 && self.backing.is_some()) {
            return Ok(());
        }
        self.change_clusters(first, last, Into::Nothing)
    }

    /// Writes zeroes, where there are none already.
    fn zero_part(&self, mut offset: u64, end: u64) -> Result<()> {
        while offset < end {
            let (extent, length) = self.extent_at(offset, end - offset)?;
            let length = if extent == crate::Extent::Zero { length } else { length.min(ZEROES.len() as u64) };
            if extent == crate::Extent::Data {
                self.write_runs(offset, &ZEROES[..length as usize])?;
            }
            offset += length;
        }
        Ok(())
    }

    fn change_clusters(&self, first: u64, last: u64, into: Into) -> Result<()> {
        if self.geometry.version < 3 && self.backing.is_some() {
            return self.zero_part(first, last.min(self.geometry.size));
        }
        let bits = self.geometry.cluster_bits;
        let mut cluster = first >> bits;
        while cluster < last >> bits {
            let in_table = (self.geometry.l2_entries() - self.geometry.indices(cluster << bits).1) as u64;
            let count = ((last >> bits) - cluster).min(in_table);
            cluster += self.change_run(cluster, count, into)?;
        }
        Ok(())
    }

    /// Changes up to `count` clusters, which one L2 table describes, and returns how many it has dealt with.
    fn change_run(&self, cluster: u64, count: u64, into: Into) -> Result<u64> {
        let (l1, l2) = self.geometry.indices(cluster << self.geometry.cluster_bits);
        if self.backing.is_none() && self.state().tables.l1(l1) & OFFSET == 0 {
            return Ok(count);
        }
        self.make_room()?;
        let count = count.min(MAX_RUN);
        let _claim = self.claims.claim(cluster..cluster + count);
        let mut state = self.state_mut();
        if self.backing.is_none() && state.tables.l1(l1) & OFFSET == 0 {
            return Ok(count);
        }
        self.own_table(&mut state, l1)?;
        for at in l2..l2 + count as usize {
            let old = state.tables.get(l1).expect("own_table has loaded it")[at];
            let new = self.emptied(old, into)?;
            self.relink(&mut state, l1, at, new)?;
        }
        Ok(count)
    }

    /// The entry that a cluster gets.
    fn emptied(&self, old: u64, into: Into) -> Result<u64> {
        let mapping = self.decode(old)?;
        if self.geometry.version < 3 {
            // There is no backing file: what has no space is zeroes.
            return Ok(0);
        }
        Ok(match mapping {
            Mapping::Unallocated if self.backing.is_none() => 0,
            Mapping::Data(at, true) | Mapping::Zero(Some((at, true))) if into == Into::ZeroInPlace => {
                at | COPIED | ZERO
            }
            _ if self.backing.is_none() && into == Into::Nothing => 0,
            _ => ZERO,
        })
    }
}
