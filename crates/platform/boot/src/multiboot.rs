//! Multiboot 1 (Multiboot Specification 0.6.96): flat 32-bit protected mode without paging, a magic number in
//! `eax` and `ebx` pointing to the information structure.

use posada_memory::{Gpa, PAGE_SIZE};
use posada_vcpu::x86::{State, Table, gpr};

use crate::elf::{Elf, is_elf};
use crate::placement::Placement;
use crate::{Error, Kernel, Source, handover};

const FORMAT: &str = "multiboot image";
/// The header lies in this much of the file (section 3.1).
pub(crate) const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
const BOOTED_MAGIC: u32 = 0x2bad_b002;
const LOADER_NAME: &str = "Posada";
/// The protocol has no limit of its own; this keeps the line in low memory.
const COMMAND_LINE: usize = 0xffff;

/// Header flags (section 3.1.2): the lower half is mandatory, and a loader that does not know a bit must fail.
mod flags {
    pub(super) const ALIGN_MODULES: u32 = 1 << 0;
    pub(super) const MEMORY_INFO: u32 = 1 << 1;
    pub(super) const VIDEO_MODE: u32 = 1 << 2;
    pub(super) const MANDATORY: u32 = 0xffff;
    /// The header says itself where the image goes: the "a.out kludge".
    pub(super) const ADDRESSES: u32 = 1 << 16;
}

/// Bits of the information structure's first field (section 3.3).
mod info {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const COMMAND_LINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
    /// Size of the structure in doublewords, framebuffer fields included.
    pub(super) const WORDS: usize = 29;
}

/// A multiboot header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Where in the file it was found.
    offset: u64,
    flags: u32,
    /// `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr` and `entry_addr`, if present.
    addresses: Option<[u32; 5]>,
}

impl Header {
    /// Looks for a header with a valid checksum at each multiple of 4 bytes.
    pub(crate) fn find(head: &[u8]) -> Option<Self> {
        let head = &head[..head.len().min(SEARCH)];
        (0..head.len()).step_by(4).find_map(|offset| {
            let word = |index: usize| {
                let bytes = head.get(offset + index * 4..)?.first_chunk::<4>()?;
                Some(u32::from_le_bytes(*bytes))
            };
            let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
            if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
                return None;
            }
            let addresses = if flags & flags::ADDRESSES == 0 {
                None
            } else {
                Some([word(3)?, word(4)?, word(5)?, word(6)?, word(7)?])
            };
            Some(Self { offset: offset as u64, flags, addresses })
        })
    }

    /// Whether the header says itself where the image goes, be it an ELF file or not.
    pub(crate) fn has_addresses(&self) -> bool {
        self.addresses.is_some()
    }

    fn check(&self) -> Result<(), Error> {
        let known = flags::ALIGN_MODULES | flags::MEMORY_INFO | flags::VIDEO_MODE;
        let unknown = self.flags & flags::MANDATORY & !known;
        if unknown != 0 {
            let problem =
                format!("its header demands features that multiboot 1 does not have ({unknown:#06x})");
            return Err(Error::Unsupported { format: FORMAT, problem });
        }
        if self.flags & flags::VIDEO_MODE != 0 {
            tracing::warn!("the kernel asks for a video mode; this machine has no display");
        }
        Ok(())
    }

    /// Loads all and returns the state that the kernel starts in.
    pub(crate) fn load(
        &self,
        kernel: &Kernel,
        head: &[u8],
        placement: &mut Placement<'_>,
    ) -> Result<State, Error> {
        self.check()?;
        let entry = match self.addresses {
            Some(addresses) => self.load_flat(addresses, &kernel.image, placement)?,
            None if is_elf(head) => {
                let elf = Elf::parse(&kernel.image, head)?;
                let entry = elf.physical_entry()?;
                elf.load(&kernel.image, placement)?;
                entry
            }
            None => {
                let problem = "it is no ELF file, and its header does not say where to load it".into();
                return Err(Error::Corrupt { format: FORMAT, problem });
            }
        };
        let information = information(kernel, placement)?;
        let mut state = State::protected_mode(entry);
        state.gdtr = handover::gdt(placement, false)?;
        state.idtr = Table::default();
        state.gpr[gpr::RAX] = u64::from(BOOTED_MAGIC);
        state.gpr[gpr::RBX] = information.0;
        Ok(state)
    }

    /// Loads an image whose header has addresses (section 3.1.3), and returns the entry point.
    fn load_flat(
        &self,
        addresses: [u32; 5],
        source: &Source,
        placement: &mut Placement<'_>,
    ) -> Result<u32, Error> {
        let [header, load, load_end, bss_end, entry] = addresses.map(u64::from);
        let corrupt = |problem: String| Error::Corrupt { format: FORMAT, problem };
        // The file position of `load_addr` follows from that of the header.
        let offset =
            header.checked_sub(load).and_then(|before| self.offset.checked_sub(before)).ok_or_else(|| {
                corrupt(format!("its load address {load:#x} lies before the start of the file"))
            })?;
        let available = source.len().saturating_sub(offset);
        let size = match load_end {
            0 => available,
            end => end.checked_sub(load).ok_or_else(|| {
                corrupt(format!("its load end {end:#x} lies before its load address {load:#x}"))
            })?,
        };
        if size > available {
            let (what, needs) = ("its code".into(), offset + size);
            return Err(Error::Truncated { format: FORMAT, what, needs, has: source.len() });
        }
        let memory_size = match bss_end {
            0 => size,
            end => end.checked_sub(load).filter(|&memory| memory >= size).ok_or_else(|| {
                corrupt(format!("its bss end {end:#x} lies before the end of its code {:#x}", load + size))
            })?,
        };
        if entry.checked_sub(load).is_none_or(|at| at >= memory_size) {
            return Err(corrupt(format!("its entry point {entry:#x} lies outside its code")));
        }
        let at = placement.claim("the kernel", load, memory_size)?;
        placement.copy("the kernel", source, offset, size, at)?;
        placement.clear("the kernel", Gpa(load + size), memory_size - size)?;
        Ok(entry as u32)
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Puts the information structure and all that it points to into RAM.
fn information(kernel: &Kernel, placement: &mut Placement<'_>) -> Result<Gpa, Error> {
    let modules = load_modules(kernel, placement)?;
    let line = handover::command_line(placement, &kernel.append, COMMAND_LINE)?;
    let name = handover::command_line(placement, LOADER_NAME, COMMAND_LINE)?;
    // Each entry begins with its size, which does not count the field itself.
    let map = placement.entries(|start, size, kind| {
        words(&[20, start as u32, (start >> 32) as u32, size as u32, (size >> 32) as u32, kind as u32])
    });
    let map = map.concat();
    let map_at = placement.put("the multiboot memory map", &map, 16)?;

    let mut fields = [0; info::WORDS];
    fields[0] = info::MEMORY | info::COMMAND_LINE | info::MEMORY_MAP | info::LOADER_NAME;
    fields[1] = placement.map().kilobytes_below_640k();
    fields[2] = placement.map().kilobytes_above_1m();
    fields[4] = line.0 as u32;
    if !modules.is_empty() {
        let list = words(modules.as_flattened());
        fields[0] |= info::MODULES;
        fields[5] = modules.len() as u32;
        fields[6] = placement.put("the multiboot module list", &list, 16)?.0 as u32;
    }
    fields[11] = map.len() as u32;
    fields[12] = map_at.0 as u32;
    fields[16] = name.0 as u32;
    placement.put("the multiboot information", &words(&fields), 16)
}

/// Puts the modules behind the kernel, each at a page, and returns their entries in the module list.
fn load_modules(kernel: &Kernel, placement: &mut Placement<'_>) -> Result<Vec<[u32; 4]>, Error> {
    let mut entries = Vec::with_capacity(kernel.modules.len());
    for module in &kernel.modules {
        let size = module.source.len();
        let page = PAGE_SIZE as u64;
        // An empty module has a place too.
        let after = placement.end();
        let at = placement.lowest("a module", size.max(1), page, after)?;
        placement.copy("a module", &module.source, 0, size, at)?;
        let name = handover::command_line(placement, &module.name, COMMAND_LINE)?;
        entries.push([at.0 as u32, (at.0 + size) as u32, name.0 as u32, 0]);
    }
    Ok(entries)
}
