//! The tables by which a guest learns what machine it is on (ACPI specification 6.5).
//!
//! A board describes itself with a [`Machine`]; [`write()`] turns that into tables in the firmware area below
//! 1 MiB, where an operating system looks for them if its boot protocol does not tell (section 5.2.5.1).
//!
//! | table | section | says |
//! |---|---|---|
//! | RSDP, XSDT | 5.2.5, 5.2.8 | where the others are |
//! | FADT, FACS | 5.2.9, 5.2.10 | power management registers, reset register, legacy devices |
//! | MADT | 5.2.12 | processors and interrupt controllers |
//! | MCFG | PCI Firmware Specification 3.3, section 4.1.2 | PCI configuration space in memory |
//! | DSDT | 5.2.11 | devices that cannot be found by looking, in AML |

mod dsdt;
mod tables;

use std::ops::RangeInclusive;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, facs::FACS};
use posada_memory::{Gpa, GuestRam};

use crate::Error;

const OEM_ID: [u8; 6] = *b"POSADA";
const OEM_TABLE_ID: [u8; 8] = *b"POSADAPC";
const OEM_REVISION: u32 = 1;

/// What the tables say about a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The number of processors; their APIC IDs count from 0.
    pub cpus: u8,
    /// Where each processor finds its own local APIC.
    pub local_apic: u32,
    /// The I/O APIC, with interrupts from 0.
    pub io_apic: IoApic,
    /// Power management.
    pub power: Power,
    /// The PCI root.
    pub pci: Pci,
    /// Serial ports.
    pub serial: Vec<Serial>,
    /// Whether there is an 8042 with a keyboard (interrupt 1).
    pub keyboard: bool,
    /// Whether the 8042 has a mouse (interrupt 12).
    pub mouse: bool,
}

/// An I/O APIC.
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    /// Its APIC ID.
    pub id: u8,
    /// Where its registers are.
    pub address: u32,
    /// The pin that the timer (ISA interrupt 0) is wired to.
    pub timer_pin: u8,
}

/// The fixed registers of ACPI (section 4.8.3), all I/O ports.
#[derive(Clone, Copy, Debug)]
pub struct Power {
    /// PM1a event block: status and enable, two bytes each.
    pub event: u16,
    /// PM1a control register, two bytes.
    pub control: u16,
    /// Power management timer, four bytes, 32 bits wide.
    pub timer: u16,
    /// System control interrupt, level-triggered, active high.
    pub sci: u8,
    /// What `SLP_TYP` must be to power off.
    pub off: u8,
    /// The reset register, one byte, and the value that resets.
    pub reset: (u16, u8),
    /// Where the RTC has the century.
    pub century: u8,
}

/// The PCI root bus and what it decodes.
#[derive(Clone, Debug)]
pub struct Pci {
    /// Where configuration space is in memory: 1 MiB for each bus, from bus 0.
    pub configuration: u32,
    /// The highest bus number.
    pub last_bus: u8,
    /// I/O ports for devices.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Memory below 4 GiB for devices.
    pub memory: RangeInclusive<u32>,
    /// Memory above 4 GiB for devices.
    pub memory_64: Option<RangeInclusive<u64>>,
    /// Where the interrupt pins lead: one entry for each device and pin in use.
    pub interrupts: Vec<PciInterrupt>,
}

/// Where an interrupt pin of a PCI device leads.
#[derive(Clone, Copy, Debug)]
pub struct PciInterrupt {
    /// Device number on the root bus.
    pub device: u8,
    /// 0 for INTA# to 3 for INTD#.
    pub pin: u8,
    /// The input of the I/O APIC, level-triggered, active low.
    pub input: u32,
}

/// A 16550 serial port.
#[derive(Clone, Copy, Debug)]
pub struct Serial {
    /// The first of its eight I/O ports.
    pub port: u16,
    /// Its ISA interrupt.
    pub irq: u8,
}

/// Writes all tables to `area` of guest RAM and returns where they begin: the address of the RSDP.
///
/// `area` must lie in the upper 128 KiB of the first mebibyte, where systems search for the RSDP.
pub fn write(ram: &GuestRam, machine: &Machine, area: &std::ops::Range<Gpa>) -> Result<Gpa, Error> {
    let start = area.start;
    let mut image = Image { start, bytes: Vec::new() };
    // The RSDP must be found, so it comes first; what it points to is known last.
    image.add(16, &[0; size_of::<Rsdp>()]);
    let facs = image.add(64, &bytes(&FACS::new()));
    let dsdt = image.add(16, &bytes(&dsdt::dsdt(machine)));
    let entries = [
        image.add(16, &bytes(&tables::fadt(machine, facs.0 as u32, dsdt.0 as u32))),
        image.add(16, &bytes(&tables::madt(machine))),
        image.add(16, &bytes(&tables::mcfg(machine))),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry.0);
    }
    let xsdt = image.add(16, &bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt.0));
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);

    let size = image.bytes.len();
    let failed = || Error::Tables { what: "ACPI tables", start, size, end: area.end };
    if start.0.checked_add(size as u64).is_none_or(|end| end > area.end.0) {
        return Err(failed());
    }
    ram.write(start, &image.bytes).map_err(|_| failed())?;
    Ok(start)
}

/// Tables one after the other.
struct Image {
    start: Gpa,
    bytes: Vec<u8>,
}

impl Image {
    fn add(&mut self, align: usize, table: &[u8]) -> Gpa {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = Gpa(self.start.0 + self.bytes.len() as u64);
        self.bytes.extend_from_slice(table);
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}
