//! Entries of L1 and L2 tables (QEMU's `docs/interop/qcow2.txt`, "L1 table entry", "L2 table entry").

use super::geometry::Geometry;
use crate::SECTOR;

/// The bits of an entry that are an offset.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Nothing else refers to it: it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeroes, whatever the offset.
pub(crate) const ZERO: u64 = 1;

/// What an L2 entry says of a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// It is the backing file's, or zeroes.
    Unallocated,
    /// Zeroes. Space in the file may be kept for it, which only it has if the flag is set.
    Zero(Option<(u64, bool)>),
    /// It lies at this offset; only it, if the flag is set.
    Data(u64, bool),
    /// It is packed into these bytes of the file.
    Compressed(Span),
}

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    pub offset: u64,
    pub length: u64,
}

impl Mapping {
    /// Reads an entry, or says what is wrong with it.
    pub(crate) fn decode(entry: u64, geometry: &Geometry) -> Result<Self, String> {
        if entry & COMPRESSED != 0 {
            let shift = 62 - (geometry.cluster_bits - 8);
            let sectors = (entry & (COMPRESSED - 1)) >> shift;
            let offset = entry & ((1 << shift) - 1) & (OFFSET | 0x1ff);
            return Ok(Self::Compressed(Span { offset, length: (sectors + 1) * SECTOR - offset % SECTOR }));
        }
        let offset = entry & OFFSET;
        if geometry.within(offset) != 0 {
            return Err(format!("the L2 entry {entry:#x} points inside a cluster"));
        }
        let copied = entry & COPIED != 0;
        if entry & ZERO != 0 {
            if geometry.version < 3 {
                return Err(format!("the L2 entry {entry:#x} is of a kind that version 2 does not have"));
            }
            return Ok(Self::Zero((offset != 0).then_some((offset, copied))));
        }
        Ok(if offset == 0 { Self::Unallocated } else { Self::Data(offset, copied) })
    }

    /// The entry for `length` bytes at `offset` that a cluster is packed into.
    pub(crate) fn compressed(span: Span, geometry: &Geometry) -> Option<u64> {
        let shift = 62 - (geometry.cluster_bits - 8);
        let sectors = (span.offset % SECTOR + span.length).div_ceil(SECTOR) - 1;
        let fits = span.offset >> shift == 0 && sectors < 1 << (geometry.cluster_bits - 8);
        fits.then_some(COMPRESSED | sectors << shift | span.offset)
    }
}
