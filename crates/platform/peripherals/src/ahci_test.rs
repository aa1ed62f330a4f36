use std::sync::{Arc, Mutex};

use posada_devices::pci::PciFunction;
use posada_memory::{Gpa, GuestRam};

use super::{Ahci, Drive};
use crate::testing::{Memory, Pin, wait_until};

const RAM: u64 = 4 << 20;
const LIST: u64 = 0x1_0000;
const RECEIVED: u64 = 0x1_1000;
const TABLE: u64 = 0x1_2000;
pub(super) const DATA: u64 = 0x2_0000;
/// Registers of port 0.
const IS: u64 = 0x110;
const CMD: u64 = 0x118;
const TFD: u64 = 0x120;
const SACT: u64 = 0x134;
const CI: u64 = 0x138;

/// Places of data: address, bytes.
type Places = &'static [(u64, u32)];

/// A driver of port 0.
pub(super) struct Driver {
    pub(super) ahci: Ahci,
    pub(super) ram: GuestRam,
    pub(super) pin: Pin,
    pub(super) messages: Arc<Mutex<Vec<(u64, u32)>>>,
}

impl Driver {
    pub(super) fn new(drive: Drive) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).unwrap();
        let (pin, messages) = (Pin::default(), Arc::<Mutex<Vec<(u64, u32)>>>::default());
        let sent = Arc::clone(&messages);
        let bus = Arc::new(move |address: u64, data: u32| sent.lock().unwrap().push((address, data)));
        let ahci = Ahci::new(vec![drive], &ram, bus, pin.line()).unwrap();
        let mut driver = Self { ahci, ram, pin, messages };
        driver.start();
        driver
    }

    pub(super) fn read(&mut self, register: u64) -> u32 {
        self.ahci.read_bar(5, register, 4) as u32
    }

    pub(super) fn write(&mut self, register: u64, value: u32) {
        self.ahci.write_bar(5, register, 4, value.into());
    }

    fn start(&mut self) {
        self.write(0x04, 1 << 1);
        for (register, value) in [(0x100, LIST as u32), (0x108, RECEIVED as u32), (CMD, 0x10), (CMD, 0x11)] {
            self.write(register, value);
        }
        self.write(0x130, u32::MAX);
        self.write(IS, u32::MAX);
        self.write(0x08, u32::MAX);
        self.write(0x114, u32::MAX);
    }

    /// Puts a command with these places (address, bytes) into a slot.
    pub(super) fn put(&mut self, slot: u64, fis: &[u8; 20], packet: &[u8; 12], places: &[(u64, u32)]) {
        let table = TABLE + slot * 0x400;
        let mut header = [0; 16];
        (header[0], header[2]) = (5, places.len() as u8);
        header[8..].copy_from_slice(&table.to_le_bytes());
        self.ram.write(Gpa(LIST + 32 * slot), &header).unwrap();
        self.ram.write(Gpa(table), fis).unwrap();
        self.ram.write(Gpa(table + 0x40), packet).unwrap();
        for (index, (address, len)) in (0..).zip(places) {
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&address.to_le_bytes());
            entry[12..].copy_from_slice(&len.wrapping_sub(1).to_le_bytes());
            self.ram.write(Gpa(table + 0x80 + 16 * index), &entry).unwrap();
        }
    }

    /// Issues slot 0 and waits until the port tells something; that, and the task file.
    pub(super) fn issue(&mut self) -> (u32, u32) {
        self.write(CI, 1);
        wait_until("an interrupt", || self.pin.is_up());
        let is = self.read(IS);
        self.write(IS, is);
        self.write(0x08, 1);
        (is, self.read(TFD))
    }

    pub(super) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
}

/// A Register FIS with a command.
pub(super) fn fis(command: u8, feature: u16, lba: u64, count: u16) -> [u8; 20] {
    let (lba, mut fis) = (lba.to_le_bytes(), [0; 20]);
    fis[..4].copy_from_slice(&[0x27, 0x80, command, feature as u8]);
    fis[4..7].copy_from_slice(&lba[..3]);
    fis[7] = 0x40;
    fis[8..11].copy_from_slice(&lba[3..6]);
    fis[11] = (feature >> 8) as u8;
    fis[12..14].copy_from_slice(&count.to_le_bytes());
    fis
}

const DHRS: u32 = 1;
const PSS: u32 = 2;
const SDBS: u32 = 8;
const OFS: u32 = 1 << 24;
const IFS: u32 = 1 << 27;
const HBFS: u32 = 1 << 29;
const TFES: u32 = 1 << 30;
const NO_PACKET: [u8; 12] = [0; 12];

fn disk() -> (Arc<Memory>, Driver) {
    let disk = Memory::new(2048);
    let driver = Driver::new(Drive::Disk { disk: disk.clone(), serial: "serial".to_owned() });
    (disk, driver)
}

#[test]
fn a_disk_presents_and_describes_itself() {
    let (_, mut driver) = disk();
    assert_eq!([0x124, 0x128, TFD].map(|register| driver.read(register)), [0x101, 0x133, 0x150]);
    driver.put(0, &fis(0xec, 0, 0, 0), &NO_PACKET, &[(DATA, 512)]);
    assert_eq!(driver.issue(), (PSS, 0x50));
    let block = driver.bytes(DATA, 512);
    assert_eq!(&block[20..40], b"esirla              ");
    assert_eq!(u64::from_le_bytes(block[200..208].try_into().unwrap()), 2048);
    assert_eq!(block.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum");
    // The PIO Setup FIS has the status where drivers look for it.
    assert_eq!((driver.bytes(RECEIVED + 0x20, 1)[0], driver.bytes(RECEIVED + 0x2f, 1)[0]), (0x5f, 0x50));
    assert_eq!(driver.bytes(LIST + 4, 4), 512_u32.to_le_bytes());
}

#[test]
fn dma_reads_and_writes_over_several_places() {
    let (disk, mut driver) = disk();
    driver.put(0, &fis(0x25, 0, 5, 4), &NO_PACKET, &[(DATA, 512), (DATA + 0x1000, 1536)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(
        (driver.bytes(DATA, 1)[0], driver.bytes(DATA + 0x1000, 1537)[1535..].to_vec()),
        (5, vec![8, 0])
    );
    driver.put(0, &fis(0x35, 0, 100, 4), &NO_PACKET, &[(DATA, 512), (DATA + 0x1000, 1536)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(disk.bytes.lock().unwrap()[103 * 512], 8);
    assert_eq!(disk.asked(), [""; 0]);
    // The same forced to stable storage, and by cylinder, head and sector.
    driver.put(0, &fis(0x3d, 0, 100, 4), &NO_PACKET, &[(DATA, 2048)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(disk.asked(), ["flush"]);
    let mut by_head = fis(0xc8, 0, 0x00_0002, 1);
    by_head[7] = 1;
    driver.put(0, &by_head, &NO_PACKET, &[(DATA, 512)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(driver.bytes(DATA, 1), [64]);
}

#[test]
fn flush_trim_and_settings() {
    let (disk, mut driver) = disk();
    driver.put(0, &fis(0xea, 0, 0, 0), &NO_PACKET, &[]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    let mut ranges = [0; 512];
    ranges[..8].copy_from_slice(&(8_u64 << 48 | 16).to_le_bytes());
    driver.ram.write(Gpa(DATA), &ranges).unwrap();
    driver.put(0, &fis(0x06, 1, 0, 1), &NO_PACKET, &[(DATA, 512)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(disk.asked(), ["flush", "discard 8192 4096"]);
    // Without its write cache the disk flushes what is written.
    driver.put(0, &fis(0xef, 0x82, 0, 0), &NO_PACKET, &[]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    driver.put(0, &fis(0x35, 0, 0, 1), &NO_PACKET, &[(DATA, 512)]);
    assert_eq!(driver.issue(), (DHRS, 0x50));
    assert_eq!(disk.asked(), ["flush", "flush"]);
}

#[test]
fn queued_commands_end_with_their_tags() {
    let (_, mut driver) = disk();
    for slot in 0..32 {
        let place = DATA + 0x1000 * slot;
        driver.put(slot, &fis(0x60, 2, 7 * slot, (slot << 3) as u16), &NO_PACKET, &[(place, 1024)]);
    }
    driver.write(SACT, u32::MAX);
    driver.write(CI, u32::MAX);
    wait_until("all commands", || driver.read(SACT) == 0);
    assert_eq!((driver.read(CI), driver.read(IS)), (0, SDBS));
    for slot in 0..32 {
        assert_eq!(driver.bytes(DATA + 0x1000 * slot, 1), [(7 * slot) as u8], "{slot}");
    }
}

#[test]
fn a_queued_command_that_fails_is_in_the_log_and_stops_the_list() {
    let (_, mut driver) = disk();
    driver.put(0, &fis(0x60, 2, 4000, 0), &NO_PACKET, &[(DATA, 1024)]);
    driver.write(SACT, 1);
    assert_eq!(driver.issue(), (SDBS | TFES, 0x1051));
    assert_eq!(driver.read(SACT), 1);
    driver.write(CI, 2);
    assert_eq!(driver.read(CI) & 2, 2, "nothing goes on until the list is started anew");
    driver.write(CMD, 0x10);
    wait_until("the end of the list", || driver.read(CMD) & 1 << 15 == 0);
    assert_eq!((driver.read(SACT), driver.read(CI)), (0, 0));
    driver.write(CMD, 0x11);
    driver.put(0, &fis(0x2f, 0, 0x10, 1), &NO_PACKET, &[(DATA, 512)]);
    assert_eq!(driver.issue(), (PSS, 0x50));
    assert_eq!(driver.bytes(DATA, 5), [0, 0, 0x51, 0x10, 0xa0]);
}

#[test]
fn nonsense_ends_in_the_error_that_there_is_for_it() {
    let wrong_fis = {
        let mut fis = fis(0x25, 0, 0, 1);
        fis[0] = 0x34;
        fis
    };
    let whole = fis(0x25, 0, 0, 1);
    let cases: [(&str, [u8; 20], Places, u32); 8] = [
        ("no FIS that a drive takes", wrong_fis, &[(DATA, 512)], IFS),
        ("a place beyond memory", whole, &[(RAM, 512)], HBFS),
        ("a place that wraps around", whole, &[(u64::MAX - 1, 512)], HBFS),
        ("a place that reaches beyond memory", whole, &[(RAM - 256, 512)], HBFS),
        ("no places", whole, &[], OFS),
        ("too few places", fis(0x25, 0, 0, 64), &[(DATA, 4 << 10); 4], OFS),
        ("past the end", fis(0x25, 0, 2047, 2), &[(DATA, 1024)], DHRS | TFES),
        ("no command", fis(0xff, 0, 0, 0), &[], DHRS | TFES),
    ];
    for (what, fis, places, expected) in cases {
        let (_, mut driver) = disk();
        driver.put(0, &fis, &NO_PACKET, places);
        assert_eq!(driver.issue().0, expected, "{what}");
        assert_eq!(driver.read(CI), 1, "{what}");
    }
    // Lists and tables that are nowhere.
    for (register, value) in [(0x104, 1), (0x100, RAM as u32 - 0x400)] {
        let (_, mut driver) = disk();
        driver.write(register, value);
        driver.ram.write(Gpa(RAM - 0x400), &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!(driver.issue().0, HBFS, "{register:#x}");
    }
}

#[test]
fn messages_take_the_place_of_the_pin() {
    let (_, mut driver) = disk();
    let at = driver.ahci.read_config(0x34, 1) as u16;
    for (offset, value) in [(4, 0xfee0_1000), (8, 0), (12, 0x41)] {
        driver.ahci.write_config(at + offset, 4, value);
    }
    driver.ahci.write_config(at + 2, 2, 1);
    driver.put(0, &fis(0xea, 0, 0, 0), &NO_PACKET, &[]);
    driver.write(CI, 1);
    wait_until("the message", || !driver.messages.lock().unwrap().is_empty());
    assert_eq!(*driver.messages.lock().unwrap(), [(0xfee0_1000, 0x41)]);
    assert!(!driver.pin.is_up());
}

#[test]
fn resets_and_saved_states() {
    let (disk, mut driver) = disk();
    driver.put(0, &fis(0xec, 0, 0, 0), &NO_PACKET, &[(DATA, 512)]);
    driver.write(CI, 1);
    wait_until("an interrupt", || driver.pin.is_up());
    let state = driver.ahci.state();
    let json = serde_json::to_string(&state).unwrap();
    let mut other = Driver::new(Drive::Disk { disk, serial: "serial".to_owned() });
    other.ahci.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(other.ahci.state(), state);
    assert!(other.pin.is_up());
    // COMRESET brings the signature again, and a reset of the controller everything.
    driver.write(CMD, 0x10);
    driver.write(0x12c, 0x301);
    assert_eq!((driver.read(0x128), driver.read(TFD)), (0, 0x7f));
    driver.write(0x12c, 0x300);
    assert_eq!((driver.read(0x128), driver.read(TFD), driver.read(0x130)), (0x133, 0x150, 1 << 26));
    driver.write(0x04, 1);
    assert_eq!([0x04, 0x08, 0x100, CMD, 0x114].map(|at| driver.read(at)), [1 << 31, 0, 0, 6, 0]);
    assert!(!driver.pin.is_up());
}
