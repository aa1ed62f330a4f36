//! Who lies where in the guest's RAM when it starts.

use posada_memory::{Gpa, GuestRam, PAGE_SIZE};

use crate::{Error, MemoryMap, RegionKind, Source};

/// The boot protocols here speak 32-bit addresses.
const FOUR_GIB: u64 = 1 << 32;

/// Hands out guest RAM, so that nothing is put on top of anything else.
pub(crate) struct Placement<'a> {
    pub(crate) ram: &'a GuestRam,
    map: &'a MemoryMap,
    taken: Vec<Taken>,
}

struct Taken {
    start: u64,
    end: u64,
    what: String,
}

impl<'a> Placement<'a> {
    /// Everything below this is the interrupt table and the data area of firmware.
    pub(crate) const LOWEST: u64 = 0x1000;
    /// Where kernels and their modules begin.
    pub(crate) const MIB: u64 = 0x10_0000;

    pub(crate) fn new(ram: &'a GuestRam, map: &'a MemoryMap) -> Self {
        let bios = Taken { start: 0, end: Self::LOWEST, what: "the firmware's data area".into() };
        Self { ram, map, taken: vec![bios] }
    }

    pub(crate) fn map(&self) -> &'a MemoryMap {
        self.map
    }

    /// Takes a place that is not for us to choose.
    pub(crate) fn claim(&mut self, what: impl Into<String>, start: u64, size: u64) -> Result<Gpa, Error> {
        let what = what.into();
        let outside = |what| Error::OutsideRam { what, start: Gpa(start), size };
        let Some(end) = start.checked_add(size) else { return Err(outside(what)) };
        if !self.is_ram(start, end) {
            return Err(outside(what));
        }
        if let Some(taken) = self.taken.iter().find(|taken| start < taken.end && taken.start < end) {
            let other = format!("{} at {:#x}..{:#x}", taken.what, taken.start, taken.end);
            return Err(Error::Overlap { what, start: Gpa(start), size, other });
        }
        self.taken.push(Taken { start, end, what });
        Ok(Gpa(start))
    }

    /// Takes the lowest free place at or above `from`.
    pub(crate) fn lowest(&mut self, what: &str, size: u64, align: u64, from: u64) -> Result<Gpa, Error> {
        // A lowest place begins where RAM, or the space after something taken, begins.
        let ends = self.taken.iter().map(|taken| taken.end);
        let starts = self.map.ram().map(|region| region.start.0).chain(ends);
        let candidates =
            starts.chain([from]).filter_map(|start| start.max(from).checked_next_multiple_of(align));
        let best = candidates.filter(|&start| self.is_free(start, size, FOUR_GIB)).min();
        self.take(what, best, size, || format!("between {from:#x} and 4 GiB"))
    }

    /// Takes the highest free place that ends at or below `limit`, which is at most 4 GiB.
    pub(crate) fn highest(&mut self, what: &str, size: u64, align: u64, limit: u64) -> Result<Gpa, Error> {
        let limit = limit.min(FOUR_GIB);
        let starts = self.taken.iter().map(|taken| taken.start);
        let ends = self.map.ram().map(|region| region.end().0).chain(starts);
        let candidates = ends.chain([limit]).filter_map(|end| {
            let start = end.min(limit).checked_sub(size)?;
            Some(start - start % align)
        });
        let best = candidates.filter(|&start| self.is_free(start, size, limit)).max();
        self.take(what, best, size, || format!("below {limit:#x}"))
    }

    /// The first address above all that has been taken from 1 MiB up.
    pub(crate) fn end(&self) -> u64 {
        self.taken.iter().map(|taken| taken.end).max().unwrap_or(0).max(Self::MIB)
    }

    /// Whether a place could be claimed.
    pub(crate) fn is_free(&self, start: u64, size: u64, limit: u64) -> bool {
        let Some(end) = start.checked_add(size) else { return false };
        let apart = self.taken.iter().all(|taken| end <= taken.start || taken.end <= start);
        end <= limit && apart && self.is_ram(start, end)
    }

    fn is_ram(&self, start: u64, end: u64) -> bool {
        let announced = self.map.ram().any(|region| region.start.0 <= start && end <= region.end().0);
        let backed = self.ram.ranges().any(|(at, size)| at.0 <= start && end <= at.0 + size);
        announced && backed
    }

    fn take(
        &mut self,
        what: &str,
        start: Option<u64>,
        size: u64,
        searched: impl FnOnce() -> String,
    ) -> Result<Gpa, Error> {
        let start = start.ok_or_else(|| Error::NoRoom { what: what.into(), size, where_: searched() })?;
        self.taken.push(Taken { start, end: start + size, what: what.into() });
        Ok(Gpa(start))
    }

    /// Writes bytes to a place that was taken.
    pub(crate) fn write(&self, what: &str, at: Gpa, data: &[u8]) -> Result<(), Error> {
        let size = data.len() as u64;
        self.ram.write(at, data).map_err(|_| Error::OutsideRam { what: what.into(), start: at, size })
    }

    /// Takes the lowest free place of low memory for `data` and writes it there.
    pub(crate) fn put(&mut self, what: &str, data: &[u8], align: u64) -> Result<Gpa, Error> {
        let at = self.lowest(what, data.len() as u64, align, Self::LOWEST)?;
        self.write(what, at, data)?;
        Ok(at)
    }

    /// Copies a part of a file to a place that was taken.
    pub(crate) fn copy(
        &self,
        what: &str,
        source: &Source,
        offset: u64,
        size: u64,
        to: Gpa,
    ) -> Result<(), Error> {
        source.copy_to(offset, size, self.ram, to).map_err(|cause| Error::Read { what: what.into(), cause })
    }

    /// Clears a place that was taken: RAM is not empty when a guest reboots.
    pub(crate) fn clear(&self, what: &str, start: Gpa, size: u64) -> Result<(), Error> {
        const ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        let mut now = [0; PAGE_SIZE];
        let mut done = 0;
        while done < size {
            let step = (size - done).min(PAGE_SIZE as u64) as usize;
            let at = Gpa(start.0 + done);
            // Reading first leaves pages that the host has not lent yet as they are.
            let lost = |_| Error::OutsideRam { what: what.into(), start: at, size: step as u64 };
            self.ram.read(at, &mut now[..step]).map_err(lost)?;
            if now[..step] != ZEROS[..step] {
                self.write(what, at, &ZEROS[..step])?;
            }
            done += step as u64;
        }
        Ok(())
    }

    /// The memory map as entries of a boot protocol.
    pub(crate) fn entries<T>(&self, entry: impl Fn(u64, u64, RegionKind) -> T) -> Vec<T> {
        self.map.regions().iter().map(|region| entry(region.start.0, region.size, region.kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    fn guest() -> (GuestRam, MemoryMap) {
        let ram = GuestRam::new(&[(Gpa(0), 0xa_0000), (Gpa(0xc_0000), 0x34_0000)]).unwrap();
        let map = MemoryMap::new(vec![
            Region::between(0, 0x9_fc00, RegionKind::Ram),
            Region::between(0xe_0000, 0x10_0000, RegionKind::Reserved),
            Region::between(0x10_0000, 0x40_0000, RegionKind::Ram),
        ]);
        (ram, map.unwrap())
    }

    #[test]
    fn low_places_are_first_fit_around_what_is_taken() {
        let (ram, map) = guest();
        let mut placement = Placement::new(&ram, &map);
        placement.claim("kernel", 0x2000, 0x1800).unwrap();
        assert_eq!(placement.lowest("a", 0x800, 16, 0x1000).unwrap(), Gpa(0x1000));
        assert_eq!(placement.lowest("b", 0x1000, 16, 0x1000).unwrap(), Gpa(0x3800));
        assert_eq!(placement.lowest("c", 0x800, 16, 0x1000).unwrap(), Gpa(0x1800));
        assert_eq!(placement.lowest("d", 0xa_0000, 0x1000, 0x1000).unwrap(), Gpa(0x10_0000));
    }

    #[test]
    fn high_places_stay_below_the_limit_and_above_nothing_taken() {
        let (ram, map) = guest();
        let mut placement = Placement::new(&ram, &map);
        assert_eq!(placement.highest("a", 0x1001, 0x1000, u64::MAX).unwrap(), Gpa(0x3f_e000));
        assert_eq!(placement.highest("b", 0x1000, 0x1000, u64::MAX).unwrap(), Gpa(0x3f_d000));
        assert_eq!(placement.highest("c", 0x1000, 0x1000, 0x20_0800).unwrap(), Gpa(0x1f_f000));
        assert!(matches!(placement.highest("d", 0x40_0000, 0x1000, u64::MAX), Err(Error::NoRoom { .. })));
    }

    #[test]
    fn nothing_lies_in_a_hole_over_the_end_or_on_top_of_another() {
        let (ram, map) = guest();
        let mut placement = Placement::new(&ram, &map);
        for (start, size) in [(0x9_f000, 0x1000), (0xc_0000, 1), (0x3f_ffff, 2), (u64::MAX, 2), (1 << 40, 1)]
        {
            assert!(matches!(placement.claim("x", start, size), Err(Error::OutsideRam { .. })), "{start:#x}");
        }
        placement.claim("one", 0x10_0000, 0x1000).unwrap();
        assert!(matches!(placement.claim("two", 0x10_0fff, 1), Err(Error::Overlap { .. })));
        assert!(matches!(placement.claim("firmware", 0xfff, 1), Err(Error::Overlap { .. })));
    }
}
