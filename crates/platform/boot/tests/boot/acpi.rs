//! The ACPI tables and the MP table as an operating system walks them.

use posada_boot::acpi::{self, IoApic, Machine, Pci, PciInterrupt, Power, Serial};
use posada_boot::mp;
use posada_memory::Gpa;

use crate::{Guest, MIB};

fn machine() -> Machine {
    Machine {
        cpus: 3,
        local_apic: 0xfee0_0000,
        io_apic: IoApic { id: 5, address: 0xfec0_0000, timer_pin: 2 },
        power: Power {
            event: 0x600,
            control: 0x604,
            timer: 0x608,
            sci: 9,
            off: 5,
            reset: (0xcf9, 6),
            century: 0x32,
        },
        pci: Pci {
            configuration: 0xe000_0000,
            last_bus: 255,
            ports: vec![0..=0xcf7, 0xd00..=0xffff],
            memory: 0xc000_0000..=0xdfff_ffff,
            memory_64: Some(0x1_0000_0000..=0x1_ffff_ffff),
            interrupts: vec![PciInterrupt { device: 1, pin: 0, input: 16 }],
        },
        serial: vec![Serial { port: 0x3f8, irq: 4 }],
        keyboard: true,
        mouse: true,
    }
}

struct Tables {
    guest: Guest,
    rsdp: u64,
}

impl Tables {
    fn new() -> Self {
        let guest = Guest::new(16 * MIB);
        let rsdp = acpi::write(&guest.ram, &machine(), &(Gpa(0xe_0000)..Gpa(0x10_0000))).unwrap().0;
        Self { guest, rsdp }
    }

    fn sum(&self, at: u64, len: u64) -> u8 {
        self.guest.bytes(at, len as usize).iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Follows the XSDT to the table with a signature.
    fn find(&self, signature: &[u8]) -> u64 {
        let xsdt = self.guest.quad(self.rsdp + 24);
        let entries = (xsdt + 36..xsdt + self.guest.word(xsdt + 4)).step_by(8);
        entries.map(|entry| self.guest.quad(entry)).find(|&at| self.guest.bytes(at, 4) == signature).unwrap()
    }

    fn dsdt(&self) -> Vec<u8> {
        let at = self.guest.word(self.find(b"FACP") + 40);
        self.guest.bytes(at, self.guest.word(at + 4) as usize)
    }
}

#[test]
fn every_table_can_be_found_and_adds_up_to_zero() {
    let tables = Tables::new();
    assert_eq!(tables.rsdp % 16, 0);
    assert_eq!(tables.guest.bytes(tables.rsdp, 8), b"RSD PTR ");
    assert_eq!((tables.sum(tables.rsdp, 20), tables.sum(tables.rsdp, 36)), (0, 0));
    let fadt = tables.find(b"FACP");
    let (dsdt, facs) = (tables.guest.word(fadt + 40), tables.guest.word(fadt + 36));
    assert_eq!(
        (tables.guest.bytes(dsdt, 4), tables.guest.bytes(facs, 4)),
        (b"DSDT".to_vec(), b"FACS".to_vec())
    );
    assert_eq!(facs % 64, 0);
    for table in [tables.guest.quad(tables.rsdp + 24), fadt, dsdt, tables.find(b"APIC"), tables.find(b"MCFG")]
    {
        assert_eq!(tables.sum(table, tables.guest.word(table + 4)), 0, "{table:#x}");
    }
}

#[test]
fn the_fadt_names_the_power_registers() {
    let tables = Tables::new();
    let (fadt, guest) = (tables.find(b"FACP"), &tables.guest);
    assert_eq!(guest.word(fadt + 48), 0, "always in ACPI mode: no SMI command");
    assert_eq!([56, 64, 76].map(|field| guest.word(fadt + field)), [0x600, 0x604, 0x608]);
    assert_eq!(guest.bytes(fadt + 88, 4), [4, 2, 0, 4], "lengths");
    assert_eq!(guest.bytes(fadt + 46, 2), [9, 0], "SCI");
    assert_eq!(guest.bytes(fadt + 108, 1), [0x32], "century");
    assert_eq!(guest.bytes(fadt + 109, 2), [0b111, 0], "legacy devices, 8042, no VGA");
    assert_eq!(guest.bytes(fadt + 116, 12), [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0], "reset register");
    assert_eq!(guest.bytes(fadt + 128, 1), [6], "reset value");
    let flags = guest.word(fadt + 112);
    assert_ne!(flags & 1 << 10, 0, "the reset register works");
    assert_ne!(flags & 1 << 8, 0, "the timer has 32 bits");
    assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
}

#[test]
fn the_madt_lists_processors_and_overrides() {
    let tables = Tables::new();
    let (madt, guest) = (tables.find(b"APIC"), &tables.guest);
    assert_eq!((guest.word(madt + 36), guest.word(madt + 40)), (0xfee0_0000, 1));
    let (mut at, end) = (madt + 44, madt + guest.word(madt + 4));
    let mut entries = Vec::new();
    while at < end {
        let len = guest.bytes(at + 1, 1)[0];
        entries.push(guest.bytes(at, len.into()));
        at += u64::from(len);
    }
    assert_eq!(at, end);
    assert_eq!(
        entries,
        [
            vec![0, 8, 0, 0, 1, 0, 0, 0],
            vec![0, 8, 1, 1, 1, 0, 0, 0],
            vec![0, 8, 2, 2, 1, 0, 0, 0],
            vec![1, 12, 5, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            vec![2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
            vec![2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
            vec![4, 6, 0xff, 0, 0, 1],
        ]
    );
}

#[test]
fn the_mcfg_says_where_configuration_space_is() {
    let tables = Tables::new();
    let mcfg = tables.find(b"MCFG");
    assert_eq!(tables.guest.quad(mcfg + 44), 0xe000_0000);
    assert_eq!(tables.guest.bytes(mcfg + 52, 4), [0, 0, 0, 255]);
}

#[test]
fn the_dsdt_has_the_soft_off_package_and_every_device() {
    let dsdt = Tables::new().dsdt();
    let contains = |needle: &[u8]| dsdt.windows(needle.len()).any(|part| part == needle);
    // Name (_S5_, Package (4) {5, 5, 0, 0})
    assert!(contains(&[0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 4, 0x0a, 5, 0x0a, 5, 0, 0]));
    for name in ["PCI0", "_CRS", "_PRT", "COM1", "RTC_", "KBD_", "MOU_", "C000", "C002"] {
        assert!(contains(name.as_bytes()), "{name}");
    }
    assert!(!contains(b"C003") && !contains(b"COM2"));
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let guest = Guest::new(16 * MIB);
    let error = acpi::write(&guest.ram, &machine(), &(Gpa(0xf_ff00)..Gpa(0x10_0000))).unwrap_err();
    assert!(error.to_string().contains("firmware area ends at 0x100000"), "{error}");
}

#[test]
fn the_mp_table_says_the_same() {
    let guest = Guest::new(16 * MIB);
    mp::write(&guest.ram, &machine(), &(Gpa(0xf_0000)..Gpa(0x10_0000))).unwrap();
    let sum = |at, len| guest.bytes(at, len).iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!(guest.bytes(0xf_0000, 4), b"_MP_");
    assert_eq!(sum(0xf_0000, 16), 0);
    let table = guest.word(0xf_0004);
    assert_eq!(guest.bytes(table, 4), b"PCMP");
    let len = u64::from(u16::from_le_bytes(guest.bytes(table + 4, 2).try_into().unwrap()));
    assert_eq!(sum(table, len as usize), 0);
    assert_eq!(guest.word(table + 36), 0xfee0_0000);
    let (mut at, mut entries) = (table + 44, Vec::new());
    while at < table + len {
        let size = if guest.bytes(at, 1) == [0] { 20 } else { 8 };
        entries.push(guest.bytes(at, size));
        at += size as u64;
    }
    assert_eq!(at, table + len);
    assert_eq!(guest.bytes(table + 34, 2), (entries.len() as u16).to_le_bytes());
    let has = |entry: &[u8]| entries.iter().any(|found| found.starts_with(entry));
    assert!(has(&[0, 0, 0x14, 3]) && has(&[0, 2, 0x14, 1]) && !has(&[0, 3]), "processors");
    assert!(has(b"\x01\x00PCI   ") && has(b"\x01\x01ISA   "), "buses");
    assert!(has(&[2, 5, 0x20, 1, 0, 0, 0xc0, 0xfe]), "I/O APIC");
    assert!(has(&[3, 0, 0, 0, 1, 0, 5, 2]) && !has(&[3, 0, 0, 0, 1, 2]), "the timer");
    assert!(has(&[3, 0, 0x0d, 0, 1, 9, 5, 9]) && has(&[3, 0, 0, 0, 1, 4, 5, 4]), "ACPI, serial port");
    assert!(has(&[3, 0, 0x0f, 0, 0, 1 << 2, 5, 16]), "PCI device 1");
    assert!(has(&[4, 3, 0, 0, 1, 0, 0xff, 0]) && has(&[4, 1, 0, 0, 1, 0, 0xff, 1]), "LINT0, LINT1");
}
