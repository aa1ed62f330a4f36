//! Structures that the first instructions of a kernel rely on: descriptors and page tables.

use posada_memory::Gpa;
use posada_vcpu::x86::Table;

use crate::Error;
use crate::placement::Placement;

/// Null, unused, code at 0x10 and data at 0x18: the selectors `__BOOT_CS` and `__BOOT_DS` of the Linux boot
/// protocol, flat, ring 0, as [`State::protected_mode`](posada_vcpu::x86::State::protected_mode) and
/// [`long_mode`](posada_vcpu::x86::State::long_mode) have them loaded.
const DATA: u64 = 0x00cf_9300_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const CODE_64: u64 = 0x00af_9b00_0000_ffff;

/// Puts a descriptor table into low memory and returns what `gdtr` holds.
pub(crate) fn gdt(placement: &mut Placement<'_>, bits_64: bool) -> Result<Table, Error> {
    let entries = [0, 0, if bits_64 { CODE_64 } else { CODE_32 }, DATA];
    let bytes: Vec<u8> = entries.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    let at = placement.put("the boot GDT", &bytes, 16)?;
    Ok(Table { base: at.0, limit: bytes.len() as u16 - 1 })
}

/// Puts page tables into low memory that map the first 4 GiB onto themselves, in pages of 2 MiB
/// (AMD APM volume 2, section 5.3), and returns what `cr3` holds.
pub(crate) fn identity_map(placement: &mut Placement<'_>) -> Result<Gpa, Error> {
    const PAGE: u64 = 4096;
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let at = placement.lowest("the boot page tables", 6 * PAGE, PAGE, Placement::LOWEST)?;
    let (pointers, directories) = (at.0 + PAGE, at.0 + 2 * PAGE);
    let mut tables = vec![0u64; 6 * 512];
    tables[0] = pointers | PRESENT_WRITABLE;
    for gib in 0..4 {
        tables[512 + gib] = (directories + gib as u64 * PAGE) | PRESENT_WRITABLE;
    }
    for (page, entry) in tables[1024..].iter_mut().enumerate() {
        *entry = (page as u64) << 21 | LARGE | PRESENT_WRITABLE;
    }
    let bytes: Vec<u8> = tables.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    placement.write("the boot page tables", at, &bytes)?;
    Ok(at)
}

/// Puts the command line into low memory, with the zero that ends it.
pub(crate) fn command_line(placement: &mut Placement<'_>, line: &str, limit: usize) -> Result<Gpa, Error> {
    if let Some(position) = line.bytes().position(|byte| byte == 0) {
        return Err(Error::CommandLineZero { position });
    }
    if line.len() > limit {
        return Err(Error::CommandLineTooLong { length: line.len(), limit });
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    placement.put("the command line", &bytes, 16)
}
