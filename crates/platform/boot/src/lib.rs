//! From a file to a running kernel: the boot protocols of x86 and the tables that a guest reads.
//!
//! A PC starts in real mode in its firmware, which loads a boot loader, which loads a kernel. [`load`] takes the
//! place of both: it puts a kernel, its modules and what they are told into guest RAM and returns the state in
//! which the kernel's protocol wants the processor. The protocol is found in the file's own bytes:
//!
//! | the file | protocol | entered in |
//! |---|---|---|
//! | Linux bzImage | Linux boot protocol 2.02 and later (Linux, Documentation/arch/x86/boot.rst) | 64-bit mode if it has such an entry, else protected mode |
//! | ELF with a PVH note | PVH (Xen, docs/misc/pvh.pandoc) | protected mode |
//! | ELF or any file with a multiboot header | Multiboot Specification 0.6.96 | protected mode |
//!
//! An ELF file with both a PVH note and a multiboot header is started by PVH: its note tells all that multiboot
//! would, and more (the ACPI tables, memory above 4 GiB).
//!
//! What firmware leaves in memory is here as well: the [memory map](MemoryMap), [`acpi`] tables, the
//! [MP table](mp), and the [data area and interrupt vectors](bios) of a BIOS.
//!
//! Files are not trusted. Whatever a file holds, the answer is a kernel in RAM or an [`Error`]; no part of it is
//! ever put outside RAM or on top of another, and nothing larger than guest RAM is allocated.
//!
//! ```
//! use posada_boot::{Kernel, MemoryMap, Region, RegionKind, Source};
//! use posada_memory::{Gpa, GuestRam};
//! use posada_vcpu::x86::gpr;
//!
//! // The smallest multiboot kernel: a header that says where it goes, and `hlt`.
//! let header: [u32; 8] =
//!     [0x1bad_b002, 1 << 16, 0u32.wrapping_sub(0x1bad_b002 + (1 << 16)), 0x10_0000, 0x10_0000, 0, 0, 0x10_0020];
//! let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
//! image.push(0xf4);
//!
//! let ram = GuestRam::new(&[(Gpa(0), 0x20_0000)])?;
//! let map = MemoryMap::new(vec![
//!     Region::between(0, 0xa_0000, RegionKind::Ram),
//!     Region::between(0x10_0000, 0x20_0000, RegionKind::Ram),
//! ])?;
//! let kernel = Kernel::new(Source::bytes(image)).append("quiet");
//! let loaded = posada_boot::load(&ram, &kernel, &map, None)?;
//! assert_eq!((loaded.state.rip, loaded.state.gpr[gpr::RAX]), (0x10_0020, 0x2bad_b002));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bios;
mod elf;
mod error;
mod handover;
mod linux;
mod map;
pub mod mp;
mod multiboot;
mod placement;
mod pvh;
mod source;

use std::fmt;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::State;

pub use error::Error;
pub use map::{MemoryMap, Region, RegionKind};
pub use source::Source;

use elf::Elf;
use linux::BzImage;
use multiboot::Header;
use placement::Placement;

/// What is to be booted.
#[derive(Debug)]
pub struct Kernel {
    image: Source,
    modules: Vec<Module>,
    append: String,
}

/// A file that the kernel finds in memory: Linux's initrd, a multiboot module.
#[derive(Debug)]
struct Module {
    source: Source,
    name: String,
}

impl Kernel {
    /// A kernel without modules and with an empty command line.
    pub fn new(image: Source) -> Self {
        Self { image, modules: Vec::new(), append: String::new() }
    }

    /// Adds an initrd. Linux gets all of them as one, so several archives add up; under PVH and multiboot each
    /// is a module of its own.
    #[must_use]
    pub fn initrd(self, source: Source) -> Self {
        self.module(source, "")
    }

    /// Adds a module with the string that multiboot and PVH pass along with it.
    #[must_use]
    pub fn module(mut self, source: Source, name: impl Into<String>) -> Self {
        self.modules.push(Module { source, name: name.into() });
        self
    }

    /// Sets the command line.
    #[must_use]
    pub fn append(mut self, line: impl Into<String>) -> Self {
        self.append = line.into();
        self
    }
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux's own, for bzImage files.
    Linux,
    /// An ELF file's PVH note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux => "Linux boot protocol",
            Self::Pvh => "PVH",
            Self::Multiboot => "multiboot",
        })
    }
}

/// A kernel that is in guest RAM.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the boot processor starts with.
    pub state: State,
    /// How the kernel was started.
    pub protocol: Protocol,
}

/// What was found in a file.
enum Image {
    Linux(BzImage),
    Pvh(Elf, u64),
    Multiboot(Header),
}

impl Image {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Linux(_) => Protocol::Linux,
            Self::Pvh(..) => Protocol::Pvh,
            Self::Multiboot(_) => Protocol::Multiboot,
        }
    }
}

/// Puts `kernel` and all it needs into `ram` and returns the state that it starts in.
///
/// `map` is the memory map that the kernel gets; nothing is placed outside its RAM regions or in the first page.
/// `rsdp` says where the ACPI tables begin. The kernel can be loaded again, for a reboot.
pub fn load(ram: &GuestRam, kernel: &Kernel, map: &MemoryMap, rsdp: Option<Gpa>) -> Result<Loaded, Error> {
    let head = kernel.image.head(multiboot::SEARCH);
    let head = head.map_err(|cause| Error::Read { what: "the kernel".into(), cause })?;
    let image = identify(&kernel.image, &head)?;
    let protocol = image.protocol();
    let mut placement = Placement::new(ram, map);
    let state = match image {
        Image::Linux(image) => image.load(kernel, &mut placement, rsdp)?,
        Image::Pvh(elf, entry) => pvh::load(&elf, entry, kernel, &mut placement, rsdp)?,
        Image::Multiboot(header) => header.load(kernel, &head, &mut placement)?,
    };
    tracing::debug!(%protocol, entry = format_args!("{:#x}", state.rip), "kernel loaded");
    Ok(Loaded { state, protocol })
}

fn identify(image: &Source, head: &[u8]) -> Result<Image, Error> {
    if linux::is_bzimage(head) {
        return BzImage::parse(head, image.len()).map(Image::Linux);
    }
    let multiboot = Header::find(head);
    if elf::is_elf(head) {
        // A multiboot header that says where to load the file makes its ELF header irrelevant.
        let elf = match multiboot {
            Some(header) if header.has_addresses() => return Ok(Image::Multiboot(header)),
            _ => Elf::parse(image, head)?,
        };
        if let Some(entry) = elf.pvh_entry {
            return Ok(Image::Pvh(elf, entry));
        }
    }
    multiboot.map(Image::Multiboot).ok_or_else(|| Error::NotAKernel { found: describe(head) })
}

/// What a file that cannot be booted looks like.
fn describe(head: &[u8]) -> String {
    let known: [(&[u8], &str); 11] = [
        (b"", "it is empty"),
        (b"\x7fELF", "it is an ELF file with neither a PVH note nor a multiboot header"),
        (b"\x1f\x8b", "it is compressed with gzip; unpack it first"),
        (b"\xfd7zXZ", "it is compressed with xz; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first"),
        (b"BZh", "it is compressed with bzip2; unpack it first"),
        (b"070701", "it is a cpio archive; give it as the initrd"),
        (b"MZ", "it is a DOS, Windows or EFI program"),
        (b"QFI\xfb", "it is a qcow2 disk image"),
        (b"!<arch>", "it is an archive; a Debian package holds its kernel inside"),
        (b"#!", "it is a script"),
    ];
    if head.is_empty() {
        return known[0].1.into();
    }
    if let Some((_, what)) = known[1..].iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*what).into();
    }
    if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        return "it begins with a boot sector, as a disk image does".into();
    }
    let start: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("it begins with the bytes {}", start.join(" "))
}
