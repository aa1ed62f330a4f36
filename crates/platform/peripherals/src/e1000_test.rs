use std::sync::Arc;

use posada_devices::pci::PciFunction;
use posada_memory::{Gpa, GuestRam};
use posada_network::link::{self, Capacity, Features, Link, Packet, SegmentKind};

use super::E1000;
use crate::testing::{Pin, wait_until};

const RAM: u64 = 4 << 20;
const RECEIVE: u64 = 0x1_0000;
const TRANSMIT: u64 = 0x2_0000;
const BUFFERS: u64 = 0x10_0000;
const COUNT: u64 = 8;
const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

const ICR: u64 = 0xc0;
const RCTL: u64 = 0x100;
const RDH: u64 = 0x2810;
const RDT: u64 = 0x2818;
const TDH: u64 = 0x3810;
const TDT: u64 = 0x3818;
const RXT0: u32 = 1 << 7;

struct Driver {
    card: E1000,
    ram: GuestRam,
    pin: Pin,
    network: Link,
}

impl Driver {
    fn new(accepted: Features) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).unwrap();
        let (end, network) = link::pair(Capacity { packets: 4, bytes: 1 << 20 }).unwrap();
        network.accept(accepted);
        let pin = Pin::default();
        let card = E1000::new(end, ADDRESS, &ram, Arc::new(|_: u64, _: u32| {}), pin.line()).unwrap();
        let mut driver = Self { card, ram, pin, network };
        for index in 0..COUNT {
            let buffer = BUFFERS + 0x1000 * index;
            driver.ram.write(Gpa(RECEIVE + 16 * index), &buffer.to_le_bytes()).unwrap();
        }
        for (ring, start) in [(0x2800, RECEIVE), (0x3800, TRANSMIT)] {
            driver.write(ring, start as u32);
            driver.write(ring + 8, 16 * COUNT as u32);
        }
        driver.write(0xd0, 0xffff);
        driver.write(RDT, COUNT as u32 - 1);
        driver.write(0x400, 2);
        // On, broadcasts, no frame check sequences.
        driver.write(RCTL, 1 << 1 | 1 << 15 | 1 << 26);
        driver
    }

    fn read(&mut self, register: u64) -> u32 {
        self.card.read_bar(0, register, 4) as u32
    }

    fn write(&mut self, register: u64, value: u32) {
        self.card.write_bar(0, register, 4, value.into());
    }

    /// Puts these descriptors at the tail and moves it.
    fn send(&mut self, descriptors: &[[u8; 16]]) {
        let mut tail = u64::from(self.read(TDT));
        for descriptor in descriptors {
            self.ram.write(Gpa(TRANSMIT + 16 * tail), descriptor).unwrap();
            tail = (tail + 1) % COUNT;
        }
        self.write(TDT, tail as u32);
    }

    /// The next frame that the network gets.
    fn sent(&mut self) -> Packet {
        let mut packet = None;
        wait_until("a frame", || {
            packet = self.network.receive();
            packet.is_some()
        });
        packet.unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }
}

/// A descriptor: address, length, type (0 is legacy), command, and options.
fn descriptor(place: u64, len: u32, kind: u32, command: u8, options: u8) -> [u8; 16] {
    let mut descriptor = [0; 16];
    descriptor[..8].copy_from_slice(&place.to_le_bytes());
    descriptor[8..12].copy_from_slice(&(len | kind << 20 | u32::from(command) << 24).to_le_bytes());
    descriptor[13] = options;
    descriptor
}

/// A TCP segment over IPv4, with 20 bytes of each header and `len` of data, as Linux leaves it to be cut.
fn segment(len: usize) -> Vec<u8> {
    let mut frame = vec![0; 54 + len];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame[14] = 0x45;
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..34].copy_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
    frame[46] = 0x50;
    // The sum over the pseudo-header without the length.
    let pseudo: u32 = 0x0a00 + 0x020f + 0x0a00 + 0x0202 + 6;
    frame[50..52].copy_from_slice(&(pseudo as u16).to_be_bytes());
    frame
}

#[test]
fn the_eeprom_has_the_address_and_a_good_checksum_by_both_ways() {
    let mut driver = Driver::new(Features::NONE);
    let words: Vec<u16> = (0..64)
        .map(|address| {
            driver.write(0x14, address << 8 | 1);
            (driver.read(0x14) >> 16) as u16
        })
        .collect();
    assert_eq!(words[..3], [0x5452, 0x1200, 0x5634]);
    assert_eq!(words.iter().fold(0_u16, |sum, word| sum.wrapping_add(*word)), 0xbaba);
    for address in [0_u32, 2, 63] {
        driver.write(0x10, 1 << 6);
        assert_ne!(driver.read(0x10) & 1 << 7, 0, "granted");
        driver.write(0x10, 1 << 6 | 2);
        for bit in (0..9).rev() {
            let data = (0b110 << 6 | address) >> bit & 1;
            driver.write(0x10, 1 << 6 | 2 | data << 2);
            driver.write(0x10, 1 << 6 | 3 | data << 2);
        }
        let mut word = 0;
        for _ in 0..16 {
            driver.write(0x10, 1 << 6 | 2);
            driver.write(0x10, 1 << 6 | 3);
            word = word << 1 | (driver.read(0x10) >> 3 & 1) as u16;
        }
        assert_eq!(word, words[address as usize], "{address}");
        driver.write(0x10, 0);
    }
    // The PHY says that it is Marvell's and has a link.
    driver.write(0x20, 2 << 26 | 1 << 21 | 2 << 16);
    assert_eq!(driver.read(0x20) & 0xffff, 0x0141);
    assert_eq!(driver.read(8) & 2, 2);
}

#[test]
fn frames_go_out_whole_and_in_pieces_and_the_driver_is_told() {
    let mut driver = Driver::new(Features::NONE);
    driver.ram.write(Gpa(BUFFERS), &[7; 200]).unwrap();
    driver.send(&[
        descriptor(BUFFERS, 100, 0, 0x08, 0),
        descriptor(BUFFERS, 50, 1, 0x29, 0),
        descriptor(BUFFERS, 20, 0, 0x09, 0),
    ]);
    assert_eq!(driver.sent(), Packet::new(vec![7; 150]));
    assert_eq!(driver.sent().bytes.len(), 60, "filled up");
    wait_until("the interrupt", || driver.pin.is_up());
    wait_until("all descriptors", || driver.read(TDH) == 3);
    assert_eq!([0, 1, 2].map(|index| driver.bytes(TRANSMIT + 16 * index + 12, 1)[0] & 1), [1; 3]);
    assert_eq!(driver.read(ICR) & 3, 3);
    assert!(!driver.pin.is_up(), "reading the causes clears them");
}

#[test]
fn what_the_link_takes_no_more_of_waits() {
    let mut driver = Driver::new(Features::NONE);
    driver.ram.write(Gpa(BUFFERS), &[7; 100]).unwrap();
    driver.send(&[descriptor(BUFFERS, 100, 0, 0x09, 0); 7]);
    for _ in 0..7 {
        assert_eq!(driver.sent().bytes.len(), 100);
    }
    wait_until("all descriptors", || driver.read(TDH) == 7);
}

#[test]
fn large_segments_pass_whole_or_cut_as_the_network_takes_them() {
    // A context for cutting TCP over IPv4: where IP's and TCP's checksums are, headers of 54 bytes, segments of 1000.
    let mut context = [14, 24, 33, 0, 34, 50, 0, 0, 0, 0, 0, 0x27, 0, 54, 0, 0];
    context[14..].copy_from_slice(&1000_u16.to_le_bytes());
    let frame = segment(2500);
    for (accepted, count) in [(Features::ALL, 1), (Features::NONE, 3)] {
        let mut driver = Driver::new(accepted);
        driver.ram.write(Gpa(BUFFERS), &frame).unwrap();
        driver.send(&[
            context,
            descriptor(BUFFERS, 54, 1, 0x24, 3),
            descriptor(BUFFERS + 54, 2500, 1, 0x2d, 3),
        ]);
        let packets: Vec<_> = (0..count).map(|_| driver.sent()).collect();
        for packet in &packets {
            let len = packet.bytes.len() - 14;
            assert_eq!(packet.bytes[16..18], (len as u16).to_be_bytes(), "the length in the IP header");
            assert_eq!(posada_network::wire::sum(&packet.bytes[14..34]), 0xffff, "its checksum");
        }
        if count == 1 {
            let offload = packets[0].offload;
            let segmentation = offload.segmentation.unwrap();
            assert_eq!((segmentation.kind, segmentation.size), (SegmentKind::Tcp4, 1000));
            assert_eq!(offload.checksum.map(|partial| (partial.start, partial.offset)), Some((34, 16)));
        } else {
            let sizes: Vec<_> = packets.iter().map(|packet| packet.bytes.len()).collect();
            assert_eq!(sizes, [1054, 1054, 554]);
            for packet in &packets {
                let mut pseudo = packet.bytes[26..34].to_vec();
                pseudo.extend([0, 6]);
                pseudo.extend(((packet.bytes.len() - 34) as u16).to_be_bytes());
                pseudo.extend(&packet.bytes[34..]);
                assert_eq!(posada_network::wire::sum(&pseudo), 0xffff, "the TCP checksum");
            }
        }
    }
}

#[test]
fn frames_come_in_if_they_are_for_this_card() {
    let mut driver = Driver::new(Features::NONE);
    let to = |address: [u8; 6], len: usize| {
        let mut frame = vec![9; len];
        frame[..6].copy_from_slice(&address);
        Packet::new(frame)
    };
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let frames = [([2, 0, 0, 0, 0, 9], 100), (group, 100), (ADDRESS, 42), ([0xff; 6], 1514)];
    for (address, len) in frames {
        driver.network.send(to(address, len)).unwrap();
    }
    wait_until("two frames", || driver.read(RDH) == 2);
    wait_until("the interrupt", || driver.pin.is_up());
    assert_ne!(driver.read(ICR) & RXT0, 0);
    // Length, and done, end of packet, no checksum looked at.
    assert_eq!(driver.bytes(RECEIVE + 8, 5), [60, 0, 0, 0, 7]);
    assert_eq!(driver.bytes(RECEIVE + 24, 5), [0xea, 0x05, 0, 0, 7]);
    assert_eq!(driver.bytes(BUFFERS, 6), ADDRESS);
    // With the group in the table, and with buffers of 256 bytes, over two of them.
    let hash = u64::from(0x0100_u32 >> 4 & 0xfff);
    driver.write(0x5200 + (hash >> 5) * 4, 1 << (hash & 31));
    driver.write(RCTL, 1 << 1 | 3 << 16 | 1 << 26);
    driver.network.send(to(group, 300)).unwrap();
    wait_until("two descriptors", || driver.read(RDH) == 4);
    assert_eq!([2, 3].map(|index| driver.bytes(RECEIVE + 16 * index + 12, 1)[0]), [5, 7]);
    assert_eq!(driver.bytes(RECEIVE + 16 * 3 + 8, 2), [44, 0]);
}

#[test]
fn rings_that_make_no_sense_carry_nothing() {
    for (what, register, value) in [
        ("a head past the end", RDH, 100),
        ("a tail past the end", RDT, 100),
        ("no length", 0x2808, 0),
        ("a ring that is not in memory", 0x2804, 1),
    ] {
        let mut driver = Driver::new(Features::NONE);
        driver.write(register, value);
        driver.network.send(Packet::new(vec![0xff; 60])).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(driver.bytes(RECEIVE + 12, 1), [0], "{what}");
        // A driver that begins anew gets what has waited.
        for (register, value) in [(0x2804, 0), (0x2808, 128), (RDH, 0), (RDT, 7)] {
            driver.write(register, value);
        }
        driver.network.send(Packet::new(vec![0xff; 60])).unwrap();
        wait_until(what, || driver.read(RDH) >= 1);
    }
    let mut driver = Driver::new(Features::NONE);
    driver.send(&[
        descriptor(RAM, 100, 0, 0x09, 0),
        descriptor(u64::MAX - 10, 100, 1, 0x29, 3),
        descriptor(BUFFERS, 0xf_ffff, 1, 0x29, 0),
        descriptor(BUFFERS, 0, 0, 0x09, 0),
    ]);
    wait_until("all descriptors", || driver.read(TDH) == 4);
    assert_eq!(driver.network.receive(), None);
    driver.write(TDT, 0xffff);
    driver.write(TDH, 0xffff);
    driver.write(0, 1 << 26);
    assert_eq!([driver.read(TDT), driver.read(TDH), driver.read(RCTL)], [0; 3], "reset");
}

#[test]
fn a_saved_state_comes_back() {
    let mut driver = Driver::new(Features::NONE);
    driver.write(0xc8, 4);
    let state = driver.card.state();
    let json = serde_json::to_string(&state).unwrap();
    let mut other = Driver::new(Features::NONE);
    other.card.restore(&serde_json::from_str(&json).unwrap()).unwrap();
    assert_eq!(other.card.state(), state);
    assert!(other.pin.is_up());
    other.network.send(Packet::new(vec![0xff; 60])).unwrap();
    wait_until("a frame", || other.read(RDH) == 1);
}
