//! The address map: what is where in a guest's physical memory and among its I/O ports.
//!
//! The crate's documentation has it as a table.

use std::ops::{Range, RangeInclusive};

use posada_boot::RegionKind::{Ram, Reserved};
use posada_boot::acpi;
use posada_boot::{MemoryMap, Region};
use posada_devices::{acpi_pm, cmos, ioapic, lapic, pci};
use posada_memory::{Gpa, PAGE_SIZE};

use crate::Error;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The least memory a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 4 * MIB;
/// The most memory a machine can have, in bytes.
pub const MAX_MEMORY: u64 = 512 * GIB;
/// Width of a physical address in bits.
pub(crate) const PHYSICAL_BITS: u8 = 40;

/// Extended BIOS data area: the last KiB of conventional memory.
pub(crate) const EBDA: u64 = 0x9_fc00;
const CONVENTIONAL_END: u64 = 0xa_0000;
const SHADOW_START: u64 = 0xc_0000;
/// Where the tables lie that firmware leaves behind.
pub(crate) const FIRMWARE: Range<Gpa> = Gpa(0xe_0000)..Gpa(0x10_0000);
/// Where in it the MP table lies; the ACPI tables end before.
pub(crate) const MP_TABLE: Gpa = Gpa(0xf_0000);
/// Where RAM below 4 GiB ends at the latest.
pub(crate) const LOW_END_MAX: u64 = 0xc000_0000;
const FOUR_GIB: u64 = 4 * GIB;

const PCI_MEMORY: RangeInclusive<u32> = 0xc000_0000..=0xdfff_ffff;
const PCI_MEMORY_64: u64 = 64 * GIB;
/// Where firmware puts PCI devices: the memory below 4 GiB, and ports that nothing on the board has.
pub(crate) const PCI_WINDOWS: (Range<u64>, Range<u16>) = (0xc000_0000..0xe000_0000, 0x1000..0xf000);
/// PCI configuration space.
pub(crate) const ECAM: u64 = 0xe000_0000;
const LAST_BUS: u8 = 255;
pub(crate) const ECAM_LEN: u64 = (LAST_BUS as u64 + 1) * pci::ECAM_BUS_LEN;

/// The ACPI registers.
pub(crate) const PM: u16 = 0x600;
/// The ISA interrupt that is ACPI's own.
pub(crate) const SCI: u8 = 9;
/// The I/O APIC's input for the timer, ISA interrupt 0.
pub(crate) const TIMER_PIN: u8 = 2;
/// The I/O APIC's ID: beyond all processors' IDs (4 bits; kernels give it another if they must).
const IOAPIC_ID: u8 = 0;

/// The first input of the I/O APIC for the pins of PCI devices, and how many there are.
const PCI_INPUTS: (u8, u8) = (16, 8);
/// The numbers of PCI devices that the board may have besides the host bridge.
pub(crate) const PCI_DEVICES: Range<u8> = 1..32;

/// Where INTA# of a PCI device leads.
pub(crate) fn pci_input(device: u8) -> u8 {
    PCI_INPUTS.0 + device % PCI_INPUTS.1
}

/// I/O port and ISA interrupt of COM1 and COM2.
pub(crate) const SERIAL: [(u16, u8); 2] = [(0x3f8, 4), (0x2f8, 3)];

/// Where one machine's RAM lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The end of RAM below 4 GiB.
    pub(crate) low_end: u64,
    /// Bytes of RAM from 4 GiB on.
    pub(crate) high: u64,
}

impl Layout {
    /// The layout of a machine with `memory` bytes.
    pub(crate) fn new(memory: u64) -> Result<Self, Error> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&memory) || !memory.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Error::Memory { bytes: memory });
        }
        let low_end = memory.min(LOW_END_MAX);
        Ok(Self { low_end, high: memory - low_end })
    }

    /// Where RAM is. All of the first MiB but the display's part is RAM, announced or not.
    pub(crate) fn ram(&self) -> Vec<(Gpa, u64)> {
        let mut ranges = vec![(Gpa(0), CONVENTIONAL_END), (Gpa(SHADOW_START), self.low_end - SHADOW_START)];
        if self.high != 0 {
            ranges.push((Gpa(FOUR_GIB), self.high));
        }
        ranges
    }

    /// What the guest is told.
    pub(crate) fn memory_map(&self) -> Result<MemoryMap, Error> {
        let mut regions = vec![
            Region::between(0, EBDA, Ram),
            Region::between(EBDA, CONVENTIONAL_END, Reserved),
            Region::between(FIRMWARE.start.0, FIRMWARE.end.0, Reserved),
            Region::between(FIRMWARE.end.0, self.low_end, Ram),
            Region::between(ECAM, ECAM + ECAM_LEN, Reserved),
        ];
        if self.high != 0 {
            regions.push(Region::between(FOUR_GIB, FOUR_GIB + self.high, Ram));
        }
        Ok(MemoryMap::new(regions)?)
    }

    /// What the ACPI tables tell.
    pub(crate) fn machine(&self, cpus: u32) -> acpi::Machine {
        let pci_64 = (FOUR_GIB + self.high).next_multiple_of(GIB);
        acpi::Machine {
            // At most 64.
            cpus: cpus as u8,
            local_apic: lapic::DEFAULT_BASE as u32,
            io_apic: acpi::IoApic {
                id: IOAPIC_ID,
                address: ioapic::DEFAULT_BASE as u32,
                timer_pin: TIMER_PIN,
            },
            power: acpi::Power {
                event: PM + acpi_pm::PM1_EVENT,
                control: PM + acpi_pm::PM1_CONTROL,
                timer: PM + acpi_pm::TIMER,
                sci: SCI,
                off: acpi_pm::SLEEP_TYPE_S5,
                reset: (acpi_pm::RESET_CONTROL, acpi_pm::RESET_VALUE),
                century: cmos::register::CENTURY,
            },
            pci: acpi::Pci {
                configuration: ECAM as u32,
                last_bus: LAST_BUS,
                ports: vec![0..=0xcf7, 0xd00..=0xffff],
                memory: PCI_MEMORY,
                memory_64: Some(pci_64..=pci_64 + PCI_MEMORY_64 - 1),
                interrupts: PCI_DEVICES
                    .map(|device| acpi::PciInterrupt { device, pin: 0, input: pci_input(device).into() })
                    .collect(),
            },
            serial: SERIAL.map(|(port, irq)| acpi::Serial { port, irq }).to_vec(),
            keyboard: true,
            mouse: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_one_piece_above_1_mib() {
        let map = Layout::new(128 * MIB).unwrap().memory_map().unwrap();
        let ram: Vec<_> = map.ram().map(|region| (region.start.0, region.end().0)).collect();
        assert_eq!(ram, [(0, 0x9_fc00), (0x10_0000, 128 * MIB)]);
        assert_eq!(map.kilobytes_below_640k(), 639);
    }

    #[test]
    fn what_does_not_fit_below_3_gib_lies_above_4_gib() {
        let layout = Layout::new(8 * GIB).unwrap();
        assert_eq!(layout.ram().last(), Some(&(Gpa(FOUR_GIB), 5 * GIB)));
        let total: u64 = layout.ram().iter().map(|&(_, size)| size).sum();
        assert_eq!(total + (SHADOW_START - CONVENTIONAL_END), 8 * GIB);
    }

    #[test]
    fn every_announced_range_is_backed() {
        for memory in [MIN_MEMORY, 128 * MIB, 3 * GIB, 3 * GIB + 4096, MAX_MEMORY] {
            let layout = Layout::new(memory).unwrap();
            let map = layout.memory_map().unwrap();
            for region in map.ram() {
                let backed = layout
                    .ram()
                    .iter()
                    .any(|(start, size)| *start <= region.start && region.end().0 <= start.0 + size);
                assert!(backed, "{memory:#x}: {region:?}");
            }
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for bytes in [0, 1, MIN_MEMORY - 4096, MIN_MEMORY + 1, MAX_MEMORY + 4096, u64::MAX] {
            assert!(matches!(Layout::new(bytes), Err(Error::Memory { .. })), "{bytes:#x}");
        }
    }
}
