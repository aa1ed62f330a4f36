//! The MP configuration table (Intel MultiProcessor Specification 1.4), by which systems from before ACPI, and those
//! told to do without it, find processors and interrupt controllers.

use std::ops::Range;

use posada_memory::{Gpa, GuestRam};

use crate::Error;
use crate::acpi::Machine;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
/// Specification revision 1.4.
const REVISION: u8 = 4;
/// An integrated local APIC.
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x20;
/// Processor signature, and its features: FPU and APIC.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;

const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
/// All local APICs.
const ALL: u8 = 0xff;

/// What an interrupt entry assigns (table 4-10).
mod kind {
    pub(super) const INT: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXT_INT: u8 = 3;
}

/// Polarity and trigger mode (table 4-11).
mod flags {
    pub(super) const CONFORMS: u16 = 0;
    pub(super) const LEVEL_HIGH: u16 = 0b1101;
    pub(super) const LEVEL_LOW: u16 = 0b1111;
}

/// Writes the table and the pointer to it to `area` of guest RAM, which must lie in the 64 KiB below 1 MiB, where
/// systems search for the pointer.
pub fn write(ram: &GuestRam, machine: &Machine, area: &Range<Gpa>) -> Result<(), Error> {
    let table = table(machine);
    let at = area.start.0 + POINTER_LEN as u64;
    let mut bytes = pointer(at as u32);
    bytes.extend(table);
    let (start, size) = (area.start, bytes.len());
    let failed = || Error::Tables { what: "MP table", start, size, end: area.end };
    if start.0.checked_add(size as u64).is_none_or(|end| end > area.end.0) {
        return Err(failed());
    }
    ram.write(start, &bytes).map_err(|_| failed())
}

/// Makes all bytes add up to zero.
fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
}

/// The floating pointer structure (section 4.1).
fn pointer(table: u32) -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(table.to_le_bytes());
    // One paragraph; no default configuration, but a table; virtual wire mode.
    pointer.extend([(POINTER_LEN / 16) as u8, REVISION, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    pointer
}

fn table(machine: &Machine) -> Vec<u8> {
    let (entries, count) = entries(machine);
    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"POSADA  ");
    table.extend(b"PC          ");
    // No table of the manufacturer's.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(machine.local_apic.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    set_checksum(&mut table, 7);
    table
}

/// All entries, ascending by type as they must be, and how many they are (section 4.3).
fn entries(machine: &Machine) -> (Vec<u8>, u16) {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in 0..machine.cpus {
        // Usable; the first is the boot processor.
        let mut processor = vec![0, id, APIC_VERSION, 1 | u8::from(id == 0) << 1];
        processor.extend(SIGNATURE.to_le_bytes());
        processor.extend(FEATURES.to_le_bytes());
        processor.extend([0; 8]);
        entries.push(processor);
    }
    for (id, name) in [(PCI_BUS, b"PCI   "), (ISA_BUS, b"ISA   ")] {
        entries.push([&[1, id][..], name].concat());
    }
    let io_apic = machine.io_apic;
    let address = io_apic.address.to_le_bytes();
    entries.push([&[2, io_apic.id, IO_APIC_VERSION, 1][..], &address].concat());
    let interrupt = |entry, kind, flags: u16, bus, source, apic, input| {
        let [low, high] = flags.to_le_bytes();
        vec![entry, kind, low, high, bus, source, apic, input]
    };
    for irq in (0..16).filter(|&irq| irq != io_apic.timer_pin) {
        let flags = if irq == machine.power.sci { flags::LEVEL_HIGH } else { flags::CONFORMS };
        let input = if irq == 0 { io_apic.timer_pin } else { irq };
        entries.push(interrupt(3, kind::INT, flags, ISA_BUS, irq, io_apic.id, input));
    }
    for route in &machine.pci.interrupts {
        let (source, input) = (route.device << 2 | route.pin & 3, route.input as u8);
        entries.push(interrupt(3, kind::INT, flags::LEVEL_LOW, PCI_BUS, source, io_apic.id, input));
    }
    entries.push(interrupt(4, kind::EXT_INT, flags::CONFORMS, ISA_BUS, 0, ALL, 0));
    entries.push(interrupt(4, kind::NMI, flags::CONFORMS, ISA_BUS, 0, ALL, 1));
    let count = entries.len() as u16;
    (entries.concat(), count)
}
