use super::*;
use std::sync::{Arc, Mutex};

/// Accesses to base address registers, as they came.
type Log = Arc<Mutex<Vec<(usize, u64, u8)>>>;

/// A function with one register of each kind.
struct Card {
    config: ConfigSpace,
    log: Log,
}

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    class: [0x01, 0x80, 0x02],
    revision: 1,
    subsystem: (0x1af4, 0x1100),
};

impl Card {
    fn new() -> (Self, Log) {
        let mut config = ConfigSpace::new_express(IDENTITY);
        config.add_bar(0, Bar { kind: BarKind::Io, size: 0x20 });
        config.add_bar(1, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x1000 });
        config.add_bar(2, Bar { kind: BarKind::Memory64 { prefetchable: true }, size: 1 << 33 });
        config.set_interrupt_pin(1);
        let log = Log::default();
        (Self { config, log: Arc::clone(&log) }, log)
    }
}

impl PciFunction for Card {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_bar(&mut self, bar: usize, offset: u64, size: u8) -> u64 {
        self.log.lock().unwrap().push((bar, offset, size));
        0x1122_3344_5566_7788
    }

    fn write_bar(&mut self, bar: usize, offset: u64, size: u8, _value: u64) {
        self.log.lock().unwrap().push((bar, offset, size));
    }
}

fn bus() -> (PciBus, Log) {
    let mut pci = PciBus::new();
    pci.add(Address::new(0, 0), Box::new(HostBridge::new(Some(0xe000_0000))));
    let (card, log) = Card::new();
    pci.add(Address::new(3, 0), Box::new(card));
    (pci, log)
}

fn select(pci: &PciBus, device: u32, function: u32, register: u32) {
    pci.write_port(CONFIG_ADDRESS, 4, 1 << 31 | device << 11 | function << 8 | register);
}

fn read(pci: &PciBus, device: u32, register: u32) -> u32 {
    select(pci, device, 0, register);
    pci.read_port(CONFIG_DATA, 4)
}

fn write(pci: &PciBus, device: u32, register: u32, value: u32) {
    select(pci, device, 0, register);
    pci.write_port(CONFIG_DATA, 4, value);
}

// Configuration by ports.

#[test]
fn functions_answer_at_their_place_and_absent_ones_read_all_ones() {
    let (pci, _) = bus();
    assert_eq!(read(&pci, 0, 0), 0x29c0_8086);
    assert_eq!(read(&pci, 0, 8), 0x0600_0000);
    assert_eq!(read(&pci, 3, 0), 0x1042_1af4);
    assert_eq!(read(&pci, 3, 8), 0x0180_0201);
    assert_eq!(read(&pci, 3, 0x2c), 0x1100_1af4);
    assert_eq!(read(&pci, 4, 0), 0xffff_ffff);
    select(&pci, 3, 1, 0);
    assert_eq!(pci.read_port(CONFIG_DATA, 4), 0xffff_ffff);
    pci.write_port(CONFIG_ADDRESS, 4, 0x8001_0000);
    assert_eq!(pci.read_port(CONFIG_DATA, 4), 0xffff_ffff, "there is no bus 1");
}

#[test]
fn bytes_and_words_come_from_their_lanes() {
    let (pci, _) = bus();
    select(&pci, 3, 0, 0);
    assert_eq!(pci.read_port(CONFIG_DATA + 2, 2), 0x1042);
    assert_eq!(pci.read_port(CONFIG_DATA + 1, 1), 0x1a);
    select(&pci, 3, 0, 0x3c);
    pci.write_port(CONFIG_DATA, 1, 0x0b);
    assert_eq!(pci.read_port(CONFIG_DATA, 4), 0x0000_010b);
    assert_eq!(pci.read_port(CONFIG_DATA + 3, 2), 0xffff, "an access across the dword");
}

#[test]
fn without_the_enable_bit_the_data_ports_are_dead() {
    let (pci, _) = bus();
    pci.write_port(CONFIG_ADDRESS, 4, 3 << 11);
    assert_eq!(pci.read_port(CONFIG_DATA, 4), 0xffff_ffff);
}

#[test]
fn the_address_register_is_for_dwords_and_keeps_no_reserved_bits() {
    // Software tells mechanism #1 by this.
    let (pci, _) = bus();
    pci.write_port(CONFIG_ADDRESS, 4, 0x8000_0000);
    assert_eq!(pci.read_port(CONFIG_ADDRESS, 4), 0x8000_0000);
    pci.write_port(CONFIG_ADDRESS + 3, 1, 0x01);
    pci.write_port(CONFIG_ADDRESS, 1, 0x55);
    assert_eq!(pci.read_port(CONFIG_ADDRESS, 4), 0x8000_0000);
    assert_eq!(pci.read_port(CONFIG_ADDRESS, 1), 0xff);
    pci.write_port(CONFIG_ADDRESS, 4, 0xffff_ffff);
    assert_eq!(pci.read_port(CONFIG_ADDRESS, 4), 0x80ff_fffc);
}

// Configuration by memory.

#[test]
fn ecam_reaches_the_same_registers_and_the_extended_ones() {
    let (pci, _) = bus();
    let card = 3 << 15;
    assert_eq!(pci.read_ecam(card, 4), 0x1042_1af4);
    assert_eq!(pci.read_ecam(card | 2, 2), 0x1042);
    pci.write_ecam(card | 0x3c, 1, 0x0a);
    assert_eq!(read(&pci, 3, 0x3c) & 0xff, 0x0a);
    assert_eq!(pci.read_ecam(card | 0x100, 4), 0, "no extended capability");
    assert_eq!(pci.read_ecam(0x100, 4), 0xffff_ffff, "a conventional function has no extended registers");
    assert_eq!(pci.read_ecam(1 << 20, 4), 0xffff_ffff, "bus 1");
    assert_eq!(pci.read_ecam(u64::MAX, 1), 0xff);
    assert_eq!(pci.read_ecam(card | 3, 2), 0xffff);
}

// Headers.

#[test]
fn read_only_registers_stay() {
    let (pci, _) = bus();
    for register in (0..0x40).step_by(4) {
        write(&pci, 3, register, 0);
        write(&pci, 3, register, 0xffff_ffff);
    }
    assert_eq!(read(&pci, 3, 0), 0x1042_1af4);
    assert_eq!(read(&pci, 3, 4), u32::from(0x0547_u16), "command bits, no status");
    assert_eq!(read(&pci, 3, 8), 0x0180_0201);
    assert_eq!(read(&pci, 3, 0x3c) >> 8, 1, "the pin");
}

#[test]
fn a_device_with_several_functions_says_so() {
    let (mut pci, _) = bus();
    assert_eq!(read(&pci, 3, 0x0c) >> 16 & 0x80, 0);
    pci.add(Address::new(3, 2), Box::new(Card::new().0));
    assert_eq!(read(&pci, 3, 0x0c) >> 16 & 0x80, 0x80);
    select(&pci, 3, 2, 0);
    assert_eq!(pci.read_port(CONFIG_DATA, 4), 0x1042_1af4);
}

#[test]
#[should_panic(expected = "00:03.0 is taken")]
fn two_functions_do_not_share_a_place() {
    let (mut pci, _) = bus();
    pci.add(Address::new(3, 0), Box::new(Card::new().0));
}

#[test]
fn capabilities_are_chained() {
    let mut config = ConfigSpace::new(IDENTITY);
    assert_eq!(config.read(0x06, 2) & 0x10, 0);
    let first = config.add_capability(CAPABILITY_VENDOR, &[0x10, 1, 2, 3, 4]);
    let second = config.add_capability(CAPABILITY_MSIX, &[0; 10]);
    config.make_writable(second + 2, &[0x00, 0xc0]);
    assert_eq!(config.read(0x06, 2) & 0x10, 0x10);
    assert_eq!(config.read(0x34, 1), first as u32);
    assert_eq!(config.read(first as u16, 2), (second as u32) << 8 | 0x09);
    assert_eq!(config.read(second as u16, 2), 0x11, "the last");
    assert_eq!((first, second), (0x40, 0x48));
    config.write(second as u16 + 2, 2, 0xffff);
    assert_eq!(config.read(second as u16 + 2, 2), 0xc000);
}

// Base address registers.

const SIZES: [(u32, u32); 4] =
    [(0x10, 0xffff_ffe1), (0x14, 0xffff_f000), (0x18, 0x0000_000c), (0x1c, 0xffff_fffe)];

#[test]
fn sizes_are_told_by_writing_ones() {
    let (pci, _) = bus();
    for (register, size) in SIZES {
        write(&pci, 3, register, 0xffff_ffff);
        assert_eq!(read(&pci, 3, register), size);
    }
    write(&pci, 3, 0x20, 0xffff_ffff);
    assert_eq!(read(&pci, 3, 0x20), 0, "a register that is not there");
}

#[test]
fn a_claim_needs_an_address_and_its_enable() {
    let (pci, log) = bus();
    write(&pci, 3, 0x14, 0xfebf_0000);
    assert_eq!(pci.read_memory(0xfebf_0004, 4), None, "memory is not enabled");
    write(&pci, 3, 4, 2);
    assert_eq!(pci.read_memory(0xfebf_0004, 4), Some(0x1122_3344_5566_7788));
    assert_eq!(pci.read_memory(0xfebf_1000, 4), None);
    assert_eq!(pci.read_memory(0xfebe_ffff, 1), None);
    assert!(pci.write_memory(0xfebf_0ff8, 8, 1));
    assert_eq!(pci.read_memory(0, 4), None, "the other memory register has no address");
    assert_eq!(*log.lock().unwrap(), [(1, 4, 4), (1, 0xff8, 8)]);
}

#[test]
fn wide_addresses_and_ports_are_claimed() {
    let (pci, log) = bus();
    write(&pci, 3, 0x18, 0);
    write(&pci, 3, 0x1c, 0x40);
    write(&pci, 3, 0x10, 0xc000);
    write(&pci, 3, 4, 3);
    assert!(pci.read_memory(0x41_ffff_ffff, 1).is_some());
    assert!(pci.read_memory(0x42_0000_0000, 1).is_none());
    assert_eq!(pci.read_io(0xc01f, 1), Some(0x5566_7788));
    assert_eq!(pci.read_io(0xc020, 1), None);
    assert!(pci.write_io(0xc000, 2, 0));
    assert!(!pci.write_io(0xbfff, 1, 0));
    assert_eq!(*log.lock().unwrap(), [(2, 0x1_ffff_ffff, 1), (0, 0x1f, 1), (0, 0, 2)]);
}

#[test]
fn a_register_full_of_ones_claims_the_top_without_overflow() {
    let (pci, _) = bus();
    for (register, _) in SIZES {
        write(&pci, 3, register, 0xffff_ffff);
    }
    write(&pci, 3, 4, 3);
    assert!(pci.read_memory(u64::MAX, 1).is_some());
    assert!(pci.read_io(0xffff, 1).is_some());
}

#[test]
#[should_panic(expected = "BAR 3 is taken or absent")]
fn a_wide_register_takes_two() {
    let (mut card, _) = Card::new();
    card.config.add_bar(3, Bar { kind: BarKind::Io, size: 4 });
}

// The host bridge.

#[test]
fn the_host_bridge_says_where_ecam_is() {
    let (pci, _) = bus();
    assert_eq!(read(&pci, 0, 0x60), 0xe000_0001);
    write(&pci, 0, 0x60, 0);
    assert_eq!(read(&pci, 0, 0x60), 0xe000_0001);
}

#[test]
fn the_host_bridge_keeps_the_attribute_maps() {
    let (pci, _) = bus();
    write(&pci, 0, 0x90, 0xffff_ffff);
    assert_eq!(read(&pci, 0, 0x90), 0x3333_3330);
}

// Saving and resetting.

#[test]
fn a_configuration_space_goes_through_a_file() {
    let (mut card, _) = Card::new();
    card.config.write(0x14, 4, 0xfebf_0000);
    card.config.write(0x04, 2, 2);
    let text = serde_json::to_string(&card.config.state()).unwrap();
    let (mut other, _) = Card::new();
    other.config.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(other.config.bar_address(1), Some(0xfebf_0000));
    let conventional = ConfigSpace::new(IDENTITY).state();
    assert!(other.config.restore(&conventional).is_err(), "another size");
    let another = ConfigSpace::new_express(Identity { device: 0x1041, ..IDENTITY }).state();
    assert!(other.config.restore(&another).is_err(), "another device");
}

#[test]
fn reset_forgets_addresses_and_enables() {
    let (pci, _) = bus();
    write(&pci, 3, 0x14, 0xfebf_0000);
    write(&pci, 3, 4, 2);
    pci.reset();
    assert_eq!(pci.read_memory(0xfebf_0000, 4), None);
    assert_eq!(pci.read_port(CONFIG_ADDRESS, 4), 0);
    assert_eq!(read(&pci, 3, 0x14), 0);
}
