//! Reading: from a place on the disk to where it lies.

use super::Qcow2;
use super::entry::{Mapping, OFFSET};
use crate::{Extent, Result};

/// What lies somewhere on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The backing file has it, or it is zeroes.
    Beneath,
    Zero,
    /// At this offset of the file.
    File(u64),
    /// In a compressed cluster, whose L2 entry this is.
    Packed(u64),
}

impl Qcow2 {
    /// Fills `buffer`, run by run. The caller is inside the gate and has checked the range.
    pub(super) fn read_runs(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let (place, length) = self.look_up(offset, buffer.len() as u64)?;
            let (part, rest) = buffer.split_at_mut(length as usize);
            self.read_place(place, offset, part)?;
            buffer = rest;
            offset += length;
        }
        Ok(())
    }

    fn read_place(&self, place: Place, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match place {
            Place::Beneath => self.read_beneath(offset, buffer),
            Place::Zero => {
                buffer.fill(0);
                Ok(())
            }
            Place::File(at) => self.read_file(at, buffer),
            Place::Packed(entry) => self.read_packed(entry, self.geometry.within(offset), buffer),
        }
    }

    /// Reads what the backing file has; it may be shorter than this disk.
    fn read_beneath(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(backing) = &self.backing else {
            buffer.fill(0);
            return Ok(());
        };
        let has = backing.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (part, rest) = buffer.split_at_mut(has);
        rest.fill(0);
        if part.is_empty() { Ok(()) } else { backing.read(offset, part) }
    }

    fn read_file(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let had = self.file.read_some(at, buffer)?;
        if had < buffer.len() {
            // The last cluster of the file may be incomplete, and then ends with zeroes; no other may be missing.
            let end = self.file.len()?;
            let last = self.geometry.clusters(end) << self.geometry.cluster_bits;
            if at + buffer.len() as u64 > last {
                return Err(super::tables::past_end(&self.file, "data", at + had as u64));
            }
            buffer[had..].fill(0);
        }
        Ok(())
    }

    /// Where `offset` lies, and how far it goes on like that, at most `length`.
    pub(super) fn look_up(&self, offset: u64, length: u64) -> Result<(Place, u64)> {
        let (l1, _) = self.geometry.indices(offset);
        // To the end of what this L2 table describes.
        let shift = self.geometry.l1_shift();
        let length = length.min((((l1 as u64) + 1) << shift) - offset);
        {
            let state = self.state();
            if state.tables.l1(l1) & OFFSET == 0 {
                return Ok((Place::Beneath, length));
            }
            if let Some(entries) = state.tables.get(l1) {
                return self.run(entries, offset, length);
            }
        }
        let mut state = self.state_mut();
        state.tables.load(l1, &self.file, &self.geometry)?;
        let entries = state.tables.get(l1).expect("it was loaded");
        self.run(entries, offset, length)
    }

    fn run(&self, entries: &[u64], offset: u64, length: u64) -> Result<(Place, u64)> {
        let (_, first) = self.geometry.indices(offset);
        let within = self.geometry.within(offset);
        let place = self.place(entries[first], within)?;
        let mut end = self.geometry.cluster() - within;
        for &entry in &entries[first + 1..] {
            if end >= length || !self.goes_on(place, end, entry)? {
                break;
            }
            end += self.geometry.cluster();
        }
        Ok((place, length.min(end)))
    }

    fn place(&self, entry: u64, within: u64) -> Result<Place> {
        let mapping = Mapping::decode(entry, &self.geometry).map_err(|problem| self.corrupt(problem))?;
        Ok(match mapping {
            Mapping::Unallocated => Place::Beneath,
            Mapping::Zero(_) => Place::Zero,
            Mapping::Data(at, _) => Place::File(at + within),
            Mapping::Compressed(_) => Place::Packed(entry),
        })
    }

    /// Whether the cluster of `entry` continues what began `distance` bytes before it.
    fn goes_on(&self, place: Place, distance: u64, entry: u64) -> Result<bool> {
        Ok(match (place, self.place(entry, 0)?) {
            (Place::File(from), Place::File(at)) => from + distance == at,
            (Place::Packed(_), _) => false,
            (place, next) => place == next,
        })
    }

    pub(super) fn extent_at(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        let (place, length) = self.look_up(offset, length)?;
        match (place, &self.backing) {
            (Place::Zero, _) | (Place::Beneath, None) => Ok((Extent::Zero, length)),
            (Place::Beneath, Some(backing)) => match backing.size().saturating_sub(offset) {
                0 => Ok((Extent::Zero, length)),
                has => backing.extent(offset, length.min(has)),
            },
            _ => Ok((Extent::Data, length)),
        }
    }
}
