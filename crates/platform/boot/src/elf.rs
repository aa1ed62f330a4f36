//! ELF files: their notes and their loadable parts (System V ABI, chapter 5).

use object::LittleEndian;
use object::elf::{EM_386, EM_X86_64, ET_DYN, ET_EXEC, FileHeader32, FileHeader64, PF_X, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};
use posada_memory::Gpa;

use crate::placement::Placement;
use crate::source::Stream;
use crate::{Error, Source};

const FORMAT: &str = "ELF kernel";
/// More than any kernel has; a file that promises more wastes our time.
const MAX_SEGMENTS: u16 = 128;
/// As above, for the notes.
const MAX_NOTES: u64 = 1 << 20;

/// What of an ELF file matters to a boot loader.
#[derive(Debug)]
pub(crate) struct Elf {
    /// Where execution begins, a virtual address as the file has it.
    entry: u64,
    segments: Vec<Segment>,
    /// The 32-bit entry that a `XEN_ELFNOTE_PHYS32_ENTRY` note gives.
    pub(crate) pvh_entry: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    executable: bool,
}

pub(crate) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

fn corrupt(problem: impl Into<String>) -> Error {
    Error::Corrupt { format: FORMAT, problem: problem.into() }
}

fn unsupported(problem: impl Into<String>) -> Error {
    Error::Unsupported { format: FORMAT, problem: problem.into() }
}

impl Elf {
    pub(crate) fn parse(source: &Source, head: &[u8]) -> Result<Self, Error> {
        const CLASS: usize = 4;
        const DATA: usize = 5;
        if head.get(DATA) != Some(&1) {
            return Err(unsupported("it is not little-endian, so it is no x86 kernel"));
        }
        match head.get(CLASS) {
            Some(1) => Self::parse_class::<FileHeader32<LittleEndian>>(source),
            Some(2) => Self::parse_class::<FileHeader64<LittleEndian>>(source),
            _ => Err(corrupt("its class is neither 32-bit nor 64-bit")),
        }
    }

    fn parse_class<H: FileHeader<Endian = LittleEndian>>(source: &Source) -> Result<Self, Error> {
        let endian = LittleEndian;
        let cache = ReadCache::new(Stream::new(source));
        let data = &cache;
        let header = H::parse(data).map_err(|error| corrupt(error.to_string()))?;
        let machine = header.e_machine(endian);
        if machine != EM_386 && machine != EM_X86_64 {
            return Err(unsupported(format!("it is for machine {}, not x86", machine.0)));
        }
        let kind = header.e_type(endian);
        if kind != ET_EXEC && kind != ET_DYN {
            return Err(unsupported("it is no executable, but an object or core file"));
        }
        let count = header.e_phnum(endian);
        if count > MAX_SEGMENTS {
            return Err(corrupt(format!(
                "it promises {count} program headers, and {MAX_SEGMENTS} are too many"
            )));
        }
        let offset: u64 = header.e_phoff(endian).into();
        let needs = offset.saturating_add(u64::from(count) * size_of::<H::ProgramHeader>() as u64);
        if needs > source.len() {
            let what = "its program header table".into();
            return Err(Error::Truncated { format: FORMAT, what, needs, has: source.len() });
        }
        let headers = header.program_headers(endian, data).map_err(|error| corrupt(error.to_string()))?;
        let mut elf = Self { entry: header.e_entry(endian).into(), segments: Vec::new(), pvh_entry: None };
        for header in headers {
            let kind = header.p_type(endian);
            if kind == PT_LOAD {
                elf.segments.extend(segment::<H>(header, source.len())?);
            } else if kind == PT_NOTE && elf.pvh_entry.is_none() {
                elf.pvh_entry = pvh_note::<H, _>(header, data)?;
            }
        }
        if elf.segments.is_empty() {
            return Err(unsupported("it has no loadable segment"));
        }
        Ok(elf)
    }

    /// Puts all segments at their physical addresses.
    pub(crate) fn load(&self, source: &Source, placement: &mut Placement<'_>) -> Result<(), Error> {
        for segment in &self.segments {
            let what = format!("the ELF segment at file offset {:#x}", segment.offset);
            let at = placement.claim(what, segment.physical_address, segment.memory_size)?;
            placement.copy("an ELF segment", source, segment.offset, segment.file_size, at)?;
            let rest = Gpa(at.0 + segment.file_size);
            placement.clear("an ELF segment", rest, segment.memory_size - segment.file_size)?;
        }
        Ok(())
    }

    /// The physical address of the file's entry point, which kernels give as a virtual address or, when they
    /// are entered before paging, as a physical one.
    pub(crate) fn physical_entry(&self) -> Result<u32, Error> {
        let entry = self.entry;
        let inside =
            |start: u64, segment: &Segment| entry.checked_sub(start).filter(|&at| at < segment.memory_size);
        let by_virtual = self.segments.iter().find_map(|segment| {
            let at = inside(segment.virtual_address, segment)?;
            segment.physical_address.checked_add(at).filter(|_| segment.executable)
        });
        let by_physical =
            self.segments.iter().find_map(|segment| inside(segment.physical_address, segment).map(|_| entry));
        let physical = by_virtual.or(by_physical);
        physical
            .and_then(|entry| u32::try_from(entry).ok())
            .ok_or_else(|| corrupt(format!("its entry point {entry:#x} lies in no segment below 4 GiB")))
    }

    /// The entry point that the PVH note gives.
    pub(crate) fn checked_pvh_entry(&self, entry: u64) -> Result<u32, Error> {
        let inside = |segment: &Segment| {
            entry.checked_sub(segment.physical_address).is_some_and(|at| at < segment.memory_size)
        };
        u32::try_from(entry)
            .ok()
            .filter(|_| self.segments.iter().any(inside))
            .ok_or_else(|| corrupt(format!("its PVH entry point {entry:#x} lies in no segment below 4 GiB")))
    }
}

fn segment<H: FileHeader<Endian = LittleEndian>>(
    header: &H::ProgramHeader,
    len: u64,
) -> Result<Option<Segment>, Error> {
    let endian = LittleEndian;
    let segment = Segment {
        offset: header.p_offset(endian).into(),
        virtual_address: header.p_vaddr(endian).into(),
        physical_address: header.p_paddr(endian).into(),
        file_size: header.p_filesz(endian).into(),
        memory_size: header.p_memsz(endian).into(),
        executable: header.p_flags(endian) & PF_X != object::elf::ProgramFlags(0),
    };
    let Segment { offset, physical_address, file_size, memory_size, .. } = segment;
    if memory_size == 0 {
        return Ok(None);
    }
    if file_size > memory_size {
        return Err(corrupt(format!(
            "its segment at {physical_address:#x} has {file_size:#x} bytes in the file and only \
             {memory_size:#x} in memory"
        )));
    }
    let needs = offset.saturating_add(file_size);
    if needs > len {
        let what = format!("its segment at {physical_address:#x}");
        return Err(Error::Truncated { format: FORMAT, what, needs, has: len });
    }
    Ok(Some(segment))
}

/// Looks for `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, public/elfnote.h): 4 or 8 bytes.
fn pvh_note<'data, H: FileHeader<Endian = LittleEndian>, R: ReadRef<'data>>(
    header: &H::ProgramHeader,
    data: R,
) -> Result<Option<u64>, Error> {
    const PHYS32_ENTRY: u32 = 18;
    let size: u64 = header.p_filesz(LittleEndian).into();
    if size > MAX_NOTES {
        return Err(corrupt(format!("its notes have {size:#x} bytes, and {MAX_NOTES:#x} are too many")));
    }
    let Ok(Some(mut notes)) = header.notes(LittleEndian, data) else {
        return Ok(None);
    };
    while let Ok(Some(note)) = notes.next() {
        if note.name() == b"Xen" && note.n_type(LittleEndian).0 == PHYS32_ENTRY {
            return match *note.desc() {
                [a, b, c, d] => Ok(Some(u64::from(u32::from_le_bytes([a, b, c, d])))),
                [a, b, c, d, e, f, g, h] => Ok(Some(u64::from_le_bytes([a, b, c, d, e, f, g, h]))),
                _ => Err(corrupt("its PVH note holds neither 4 nor 8 bytes")),
            };
        }
    }
    Ok(None)
}
