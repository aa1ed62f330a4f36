//! Linux's own boot protocol: bzImage files (Linux, Documentation/arch/x86/boot.rst).
//!
//! The kernel is entered by the 64-bit protocol where it offers that, by the 32-bit one otherwise. Its real-mode
//! part, which asks the BIOS what it must know, is not run: the *zero page* built here has the answers.

use linux_loader::loader::bootparam::{
    LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header,
};
use posada_memory::vm_memory::ByteValued;
use posada_memory::{Gpa, PAGE_SIZE};
use posada_vcpu::x86::{State, Table, gpr};

use crate::placement::Placement;
use crate::{Error, Kernel, Module, Source, handover};

const FORMAT: &str = "Linux kernel";
/// Where the setup header begins in the file.
const HEADER: usize = 0x1f1;
/// The 64-bit entry is this far into the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// A loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;
/// Highest address of an initrd before protocol 2.03.
const OLD_INITRD_MAX: u32 = 0x37ff_ffff;
/// Longest command line before protocol 2.06.
const OLD_COMMAND_LINE: usize = 255;

/// A bzImage's header and what it means.
pub(crate) struct BzImage {
    header: setup_header,
    /// Where the protected-mode code begins in the file.
    code_offset: u64,
    code_size: u64,
}

/// Whether the file has the boot sector signature and the header's magic number.
pub(crate) fn is_bzimage(head: &[u8]) -> bool {
    head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS")
}

impl BzImage {
    pub(crate) fn parse(head: &[u8], len: u64) -> Result<Self, Error> {
        let unsupported = |problem: String| Error::Unsupported { format: FORMAT, problem };
        // The header ends where its own first jump leads to (field `jump`).
        let end = 0x202 + usize::from(head.get(0x201).copied().unwrap_or(0));
        let mut header = setup_header::default();
        let size = size_of::<setup_header>().min(end - HEADER);
        let bytes = head.get(HEADER..HEADER + size).ok_or_else(|| Error::Truncated {
            format: FORMAT,
            what: "the setup header".into(),
            needs: (HEADER + size) as u64,
            has: len,
        })?;
        header.as_mut_slice()[..size].copy_from_slice(bytes);

        let version = header.version;
        if version < 0x0202 || header.loadflags & LOADED_HIGH == 0 {
            let (major, minor) = (version >> 8, version & 0xff);
            let problem = format!(
                "it is a zImage or so old (boot protocol {major}.{minor}) that it starts in real mode and \
                 needs a BIOS; use a bzImage"
            );
            return Err(unsupported(problem));
        }
        let start = header.code32_start;
        if u64::from(start) < Placement::MIB {
            let problem = format!(
                "its protected-mode entry at {start:#x} lies in low memory, so it starts in real mode and needs \
                 a BIOS"
            );
            return Err(unsupported(problem));
        }
        let sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
        let code_offset = (sectors + 1) * 512;
        // The size is counted in paragraphs; not every builder fills up the last one.
        let paragraphs = match version {
            ..0x0204 => u64::from(header.syssize as u16),
            _ => u64::from(header.syssize),
        };
        let promised = (paragraphs * 16).saturating_sub(15);
        let needs = code_offset + promised.max(ENTRY_64);
        if len < needs {
            let what = "its compressed code".into();
            return Err(Error::Truncated { format: FORMAT, what, needs, has: len });
        }
        let image = Self { header, code_offset, code_size: len - code_offset };
        image.check()?;
        Ok(image)
    }

    fn check(&self) -> Result<(), Error> {
        let corrupt = |problem: String| Err(Error::Corrupt { format: FORMAT, problem });
        let header = &self.header;
        let (alignment, payload, length) =
            (header.kernel_alignment, header.payload_offset, header.payload_length);
        if self.relocatable() && !alignment.is_power_of_two() {
            return corrupt(format!("its alignment {alignment:#x} is no power of two"));
        }
        if header.version >= 0x0208 && u64::from(payload) + u64::from(length) > self.code_size {
            return corrupt(format!(
                "its payload at {payload:#x} + {length:#x} runs past the {:#x} bytes of its code",
                self.code_size
            ));
        }
        Ok(())
    }

    fn relocatable(&self) -> bool {
        self.header.version >= 0x0205 && self.header.relocatable_kernel != 0
    }

    fn bits_64(&self) -> bool {
        self.header.version >= 0x020c && self.header.xloadflags & XLF_KERNEL_64 != 0
    }

    /// Takes the place for the kernel: the one it prefers, or any that it can be moved to. It needs more room
    /// than its file has, as it unpacks itself.
    fn place(&self, placement: &mut Placement<'_>) -> Result<Gpa, Error> {
        let (mut preferred, mut size) = (u64::from(self.header.code32_start), self.code_size);
        if self.header.version >= 0x020a {
            size = size.max(u64::from(self.header.init_size));
            if self.header.pref_address != 0 {
                preferred = self.header.pref_address;
            }
        }
        if self.relocatable() && !placement.is_free(preferred, size, 1 << 32) {
            let align = u64::from(self.header.kernel_alignment).max(PAGE_SIZE as u64);
            return placement.lowest("the kernel", size, align, Placement::MIB);
        }
        if preferred >= 1 << 32 {
            let problem = format!("it must be loaded at {preferred:#x}, above 4 GiB");
            return Err(Error::Unsupported { format: FORMAT, problem });
        }
        placement.claim("the kernel", preferred, size)
    }

    fn initrd_limit(&self) -> u64 {
        let max = if self.header.version >= 0x0203 { self.header.initrd_addr_max } else { OLD_INITRD_MAX };
        u64::from(max) + 1
    }

    fn command_line_limit(&self) -> usize {
        match (self.header.version, self.header.cmdline_size) {
            (..0x0206, _) | (_, 0) => OLD_COMMAND_LINE,
            (_, size) => size as usize,
        }
    }

    /// Loads all and returns the state that the kernel starts in.
    pub(crate) fn load(
        self,
        kernel: &Kernel,
        placement: &mut Placement<'_>,
        rsdp: Option<Gpa>,
    ) -> Result<State, Error> {
        let code = self.place(placement)?;
        placement.copy("the kernel", &kernel.image, self.code_offset, self.code_size, code)?;
        let initrd = load_initrd(&kernel.modules, placement, self.initrd_limit())?;
        let line = handover::command_line(placement, &kernel.append, self.command_line_limit())?;
        let zero_page = self.zero_page(placement, code, initrd, line, rsdp);
        let zero_page = placement.put("the zero page", zero_page.as_slice(), PAGE_SIZE as u64)?;
        let mut state = if self.bits_64() {
            let tables = handover::identity_map(placement)?;
            State::long_mode(code.0 + ENTRY_64, tables.0)
        } else {
            State::protected_mode(code.0 as u32)
        };
        state.gdtr = handover::gdt(placement, self.bits_64())?;
        state.idtr = Table::default();
        state.gpr[gpr::RSI] = zero_page.0;
        Ok(state)
    }

    fn zero_page(
        &self,
        placement: &Placement<'_>,
        code: Gpa,
        initrd: Option<(Gpa, u64)>,
        line: Gpa,
        rsdp: Option<Gpa>,
    ) -> boot_params {
        let mut header = self.header;
        header.type_of_loader = UNKNOWN_LOADER;
        header.code32_start = code.0 as u32;
        header.cmd_line_ptr = line.0 as u32;
        header.setup_data = 0;
        if let Some((start, size)) = initrd {
            header.ramdisk_image = start.0 as u32;
            header.ramdisk_size = size as u32;
        }
        let entries =
            placement.entries(|addr, size, kind| boot_e820_entry { addr, size, r#type: kind as u32 });
        // A zeroed `screen_info` says that there is no display.
        let mut params = boot_params { hdr: header, ..boot_params::default() };
        let extended = placement.map().kilobytes_above_1m();
        params.alt_mem_k = extended;
        params.screen_info.ext_mem_k = extended.min(0xfc00) as u16;
        params.acpi_rsdp_addr = rsdp.map_or(0, |at| at.0);
        params.e820_entries = entries.len() as u8;
        let mut table = params.e820_table;
        table[..entries.len()].copy_from_slice(&entries);
        params.e820_table = table;
        params
    }
}

/// Puts all initrd files into RAM, one after the other, as high as the kernel allows.
///
/// Linux unpacks archives that follow each other if each begins at a multiple of 4 bytes.
fn load_initrd(
    modules: &[Module],
    placement: &mut Placement<'_>,
    limit: u64,
) -> Result<Option<(Gpa, u64)>, Error> {
    let padded = |source: &Source| source.len().checked_next_multiple_of(4);
    let no_room = |size| Error::NoRoom { what: "the initrd".into(), size, where_: "below 4 GiB".into() };
    let mut size = 0u64;
    for module in modules {
        let sum = padded(&module.source).and_then(|len| size.checked_add(len));
        size = sum.filter(|&sum| sum < 1 << 32).ok_or_else(|| no_room(module.source.len()))?;
    }
    if size == 0 {
        return Ok(None);
    }
    let start = placement.highest("the initrd", size, PAGE_SIZE as u64, limit)?;
    let mut at = start.0;
    for module in modules {
        let len = module.source.len();
        placement.copy("the initrd", &module.source, 0, len, Gpa(at))?;
        let padding = len.next_multiple_of(4) - len;
        placement.clear("the initrd", Gpa(at + len), padding)?;
        at += len + padding;
    }
    Ok(Some((start, size)))
}
