//! Page tables: 32-bit, PAE and 4-level paging (AMD APM volume 2, chapter 5).

use posada_memory::{Gpa, PAGE_SIZE};
use posada_vcpu::x86::{cr0, cr4, efer};

use crate::core::Core;
use crate::mmu::{Access, Allowed, PAGE_MASK, Place, View};
use crate::model::Feature;
use crate::op::Step;

/// Bits of a page-table entry.
mod pte {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const NX: u64 = 1 << 63;
}

/// Bits of a page fault's error code.
mod error {
    pub(super) const P: u32 = 1 << 0;
    pub(super) const W: u32 = 1 << 1;
    pub(super) const U: u32 = 1 << 2;
    pub(super) const RSVD: u32 = 1 << 3;
    pub(super) const I: u32 = 1 << 4;
}

/// Physical addresses have this many bits, as CPUID leaf 0x8000_0008 says.
pub(crate) const PHYSICAL_BITS: u32 = 40;
/// The address bits of an 8-byte entry that must be zero.
const RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);
const FRAME: u64 = ((1 << PHYSICAL_BITS) - 1) & !PAGE_MASK;
/// The same outside long mode, where software may not use the bits above either.
const LEGACY_RESERVED: u64 = 0x7ff << 52;
/// What must be clear in the four pointers at the top of legacy PAE paging, which have no rights of their own.
pub(crate) const POINTER_RESERVED: u64 = RESERVED | LEGACY_RESERVED | pte::NX | 0x1e6;

/// One step down the page tables.
struct Level {
    /// Physical address of the entry.
    at: u64,
    entry: u64,
    wide: bool,
}

/// Where a walk ends.
struct Leaf {
    physical: u64,
    user: bool,
    writable: bool,
    no_execute: bool,
    global: bool,
    /// The page's size, as a power of two.
    size: u32,
}

/// Why a walk ends early: the entry was not present, or had a reserved bit set.
enum Broken {
    NotPresent,
    Reserved,
}

impl Core {
    pub(crate) fn table_entry(&self, at: u64, wide: bool) -> u64 {
        match Place::of(&self.connections.ram, at) {
            Place::Ram(offset) if wide => self.connections.ram.load::<u64>(offset),
            Place::Ram(offset) => u64::from(self.connections.ram.load::<u32>(offset)),
            Place::Device(physical) => {
                let mut data = [0; 8];
                let size = if wide { 8 } else { 4 };
                self.connections.bus.mmio_read(physical, &mut data[..size]);
                u64::from_le_bytes(data)
            }
        }
    }

    /// Sets accessed and dirty bits atomically; false when the entry has changed under the walk.
    fn mark(&self, level: &Level, bits: u64) -> bool {
        if level.entry & bits == bits {
            return true;
        }
        let ram = &self.connections.ram;
        let Some(offset) = ram.offset(Gpa(level.at)) else { return true };
        let (new, same) = (level.entry | bits, level.entry);
        if level.wide {
            ram.compare_exchange(offset, same, new).0 == same
        } else {
            ram.compare_exchange(offset, same as u32, new as u32).0 == same as u32
        }
    }

    fn walk(&self, linear: u64, levels: &mut Vec4) -> Result<Leaf, Broken> {
        let pae = self.cr4 & cr4::PAE != 0;
        let long = self.msrs.efer & efer::LMA != 0;
        let nx_reserved = if self.msrs.efer & efer::NXE == 0 { pte::NX } else { 0 };
        let (mut user, mut writable, mut no_execute) = (true, true, false);
        let (mut table, depth, index_bits) = match (long, pae) {
            (true, _) => (self.cr3 & FRAME, 4, 9),
            (false, true) => (self.cr3 & 0xffff_ffe0, 3, 9),
            (false, false) => (self.cr3 & 0xffff_f000, 2, 10),
        };
        let wide = long || pae;
        for level in (0..depth).rev() {
            let shift = 12 + level * index_bits;
            let index_mask = if depth == 3 && level == 2 { 3 } else { (1 << index_bits) - 1 };
            let index = linear >> shift & index_mask;
            let at = table + index * if wide { 8 } else { 4 };
            let entry = self.table_entry(at, wide);
            levels.push(Level { at, entry, wide });
            if entry & pte::P == 0 {
                return Err(Broken::NotPresent);
            }
            // The top level of PAE has no rights of its own, and must keep its other bits clear.
            let pointer = depth == 3 && level == 2;
            let pse = wide || self.cr4 & cr4::PSE != 0;
            let large = entry & pte::PS != 0 && level > 0 && pse;
            if wide {
                let mut reserved = RESERVED | nx_reserved | if long { 0 } else { LEGACY_RESERVED };
                if pointer {
                    reserved |= POINTER_RESERVED;
                } else if level == 3 || large && level == 2 && !self.model.has(Feature::Pages1G) {
                    reserved |= pte::PS;
                }
                if large && level < 3 && !pointer {
                    // Between the PAT bit and the frame.
                    reserved |= (1 << shift) - 0x2000;
                }
                if entry & reserved != 0 {
                    return Err(Broken::Reserved);
                }
            } else if large && entry & 1 << 21 != 0 {
                // PSE-36 puts address bits 39:32 into bits 20:13; bit 21 stays reserved.
                return Err(Broken::Reserved);
            }
            if !pointer {
                user &= entry & pte::US != 0;
                writable &= entry & pte::RW != 0;
                no_execute |= wide && entry & pte::NX != 0;
            }
            if level == 0 || large {
                let offset_mask = (1u64 << shift) - 1;
                let frame = match (wide, large) {
                    (false, true) => entry & 0xffc0_0000 | (entry & 0x1f_e000) << 19,
                    (false, false) => entry & 0xffff_f000,
                    _ => entry & FRAME & !offset_mask,
                };
                return Ok(Leaf {
                    physical: frame | linear & offset_mask,
                    user,
                    writable,
                    no_execute,
                    global: entry & pte::G != 0 && self.cr4 & cr4::PGE != 0,
                    size: shift,
                });
            }
            table = if wide { entry & FRAME } else { entry & 0xffff_f000 };
        }
        Err(Broken::NotPresent)
    }

    /// Translates `linear` through the page tables for one access, with the rights of `user` or of the
    /// supervisor, sets accessed and dirty bits, remembers the translation in `view`, and says where it leads.
    pub(crate) fn translate(&mut self, linear: u64, access: Access, user: bool, view: View) -> Step<Place> {
        if self.cr0 & cr0::PG == 0 {
            let place = Place::of(&self.connections.ram, linear);
            if let Place::Ram(offset) = place {
                let all = Allowed { read: true, write: true, execute: true, global: false, size: 12 };
                self.mmu.insert(view, linear, offset & !(PAGE_SIZE - 1), all);
            }
            return Ok(place);
        }
        let smap = self.mmu.smap && !user;
        self.counts.walks += 1;
        loop {
            let mut levels = Vec4::default();
            let no_execute = self.msrs.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0;
            let says_fetch = no_execute || self.cr4 & cr4::SMEP != 0;
            let bit = |bit: u32, on: bool| if on { bit } else { 0 };
            let fault = bit(error::W, access == Access::Write)
                | bit(error::U, user)
                | bit(error::I, access == Access::Execute && says_fetch);
            let leaf = match self.walk(linear, &mut levels) {
                Ok(leaf) => leaf,
                Err(Broken::NotPresent) => return Err(self.page_fault(fault, linear)),
                Err(Broken::Reserved) => {
                    return Err(self.page_fault(fault | error::P | error::RSVD, linear));
                }
            };
            let wp = self.cr0 & cr0::WP != 0;
            let read = if user { leaf.user } else { !(smap && leaf.user) };
            let write = read && (leaf.writable || !user && !wp);
            let smep = self.cr4 & cr4::SMEP != 0;
            let execute = !leaf.no_execute && if user { leaf.user } else { !(smep && leaf.user) };
            let granted = match access {
                Access::Read => read,
                Access::Write => write,
                Access::Execute => execute,
            };
            if !granted {
                return Err(self.page_fault(fault | error::P, linear));
            }
            let pointer_level = self.cr4 & cr4::PAE != 0 && self.msrs.efer & efer::LMA == 0;
            if !self.mark_walk(&levels, access, pointer_level) {
                continue;
            }
            let dirty = access == Access::Write || levels.last().is_some_and(|l| l.entry & pte::D != 0);
            let place = Place::of(&self.connections.ram, leaf.physical);
            if let Place::Ram(offset) = place {
                let allowed =
                    Allowed { read, write: write && dirty, execute, global: leaf.global, size: leaf.size };
                self.mmu.insert(view, linear, offset & !(PAGE_SIZE - 1), allowed);
            }
            return Ok(place);
        }
    }

    fn mark_walk(&self, levels: &Vec4, access: Access, pointer_level: bool) -> bool {
        let last = levels.len() - 1;
        levels.iter().enumerate().all(|(n, level)| {
            if pointer_level && n == 0 {
                return true;
            }
            let dirty = if n == last && access == Access::Write { pte::D } else { 0 };
            self.mark(level, pte::A | dirty)
        })
    }
}

/// The entries that a walk went through: four at most.
#[derive(Default)]
struct Vec4 {
    levels: [Option<Level>; 4],
    len: usize,
}

impl Vec4 {
    fn push(&mut self, level: Level) {
        self.levels[self.len] = Some(level);
        self.len += 1;
    }

    fn len(&self) -> usize {
        self.len
    }

    fn iter(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter().flatten()
    }

    fn last(&self) -> Option<&Level> {
        self.iter().last()
    }
}

#[cfg(test)]
#[path = "paging_test.rs"]
mod tests;
