//! The memory map that firmware reports: `INT 15h, AX=E820h` (ACPI 6.5, section 15).

use posada_memory::Gpa;

use crate::Error;

/// What a range of physical addresses is, with the numbers that E820, PVH and multiboot share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Memory for the guest to use as it likes.
    Ram = 1,
    /// Not to be used: firmware, registers, configuration space.
    Reserved = 2,
    /// ACPI tables; memory once they have been read.
    Acpi = 3,
    /// ACPI non-volatile storage.
    Nvs = 4,
}

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first address.
    pub start: Gpa,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: RegionKind,
}

impl Region {
    /// A range from `start` up to, not including, `end`.
    pub fn between(start: u64, end: u64, kind: RegionKind) -> Self {
        Self { start: Gpa(start), size: end.saturating_sub(start), kind }
    }

    /// The first address after it.
    pub fn end(&self) -> Gpa {
        Gpa(self.start.0 + self.size)
    }
}

/// The memory map: ascending regions, apart. What no region covers is address space for devices.
///
/// ```
/// use posada_boot::{MemoryMap, Region, RegionKind::{Ram, Reserved}};
///
/// let map = MemoryMap::new(vec![
///     Region::between(0, 0x9_fc00, Ram),
///     Region::between(0x9_fc00, 0xa_0000, Reserved),
///     Region::between(0x10_0000, 0x800_0000, Ram),
/// ])?;
/// assert_eq!(map.kilobytes_below_640k(), 639);
/// assert_eq!(map.kilobytes_above_1m(), 127 * 1024);
/// # Ok::<(), posada_boot::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<Region>,
}

impl MemoryMap {
    /// As many regions as the Linux zero page has room for.
    pub const MAX_REGIONS: usize = 128;

    /// A map of `regions`: ascending, apart, none empty, at most [`MAX_REGIONS`](Self::MAX_REGIONS).
    pub fn new(regions: Vec<Region>) -> Result<Self, Error> {
        let bad = |problem: String| Error::Map { problem };
        if regions.len() > Self::MAX_REGIONS {
            return Err(bad(format!("{} regions; at most {} fit", regions.len(), Self::MAX_REGIONS)));
        }
        let mut end = 0;
        for region in &regions {
            let Region { start, size, kind } = *region;
            if size == 0 || start.0.checked_add(size).is_none() {
                return Err(bad(format!("{kind:?} region at {start} has a size of {size:#x}")));
            }
            if start.0 < end {
                return Err(bad(format!("{kind:?} region at {start} begins before {end:#x}")));
            }
            end = start.0 + size;
        }
        Ok(Self { regions })
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The regions that are RAM, ascending.
    pub fn ram(&self) -> impl DoubleEndedIterator<Item = &Region> {
        self.regions.iter().filter(|region| region.kind == RegionKind::Ram)
    }

    /// Conventional memory: RAM from address 0, in KiB, at most 640.
    pub fn kilobytes_below_640k(&self) -> u32 {
        let first = self.ram().find(|region| region.start.0 == 0);
        first.map_or(0, |region| (region.size / 1024).min(640) as u32)
    }

    /// Extended memory: RAM from 1 MiB to the first hole, in KiB.
    pub fn kilobytes_above_1m(&self) -> u32 {
        const MIB: u64 = 0x10_0000;
        let region = self.ram().find(|region| region.start.0 <= MIB && region.end().0 > MIB);
        region.map_or(0, |region| u32::try_from((region.end().0 - MIB) / 1024).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_out_of_order_empty_or_endless_are_refused() {
        let ram = |start, end| Region::between(start, end, RegionKind::Ram);
        let endless = Region { start: Gpa(u64::MAX), size: 2, kind: RegionKind::Ram };
        for regions in
            [vec![ram(8, 16), ram(0, 8)], vec![ram(0, 8), ram(4, 16)], vec![ram(8, 8)], vec![endless]]
        {
            assert!(matches!(MemoryMap::new(regions.clone()), Err(Error::Map { .. })), "{regions:?}");
        }
        let many = (0..129).map(|i| ram(i * 2, i * 2 + 1)).collect();
        assert!(matches!(MemoryMap::new(many), Err(Error::Map { .. })));
    }
}
