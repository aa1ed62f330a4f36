//! Any driver of the AHCI controller and of the e1000: registers, configuration space, command lists, rings.
//!
//! Both begin as a driver would set them up, so that there is something to carry out; from there on anything goes.
//! Beside "no panic", the devices must come to rest after a reset: nothing is written to memory any more.

use std::sync::Arc;

use posada_devices::Unconnected;
use posada_devices::pci::{MessageBus, PciFunction};
use posada_memory::{Gpa, GuestRam};
use posada_network::link::{self, Capacity, Features, Link, Packet};
use posada_peripherals::ahci::{self, Ahci, Drive};
use posada_peripherals::e1000::{self, E1000};
use posada_storage::{Disk, SECTOR};

const RAM: u64 = 1 << 20;

/// Carries out what `data` encodes on the device that its first byte names.
///
/// # Panics
/// If a device misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("memory");
    if which % 2 == 0 {
        sata(&ram, &mut Bytes(data));
    } else {
        card(&ram, &mut Bytes(data));
    }
    let contents = || {
        let mut bytes = vec![0; RAM as usize];
        ram.read(Gpa(0), &mut bytes).expect("it is memory");
        bytes
    };
    let before = contents();
    std::thread::yield_now();
    assert!(contents() == before, "a device that was reset goes on");
}

fn bus() -> Arc<dyn MessageBus> {
    Arc::new(|_: u64, _: u32| {})
}

/// A disk that forgets.
#[derive(Debug)]
struct Nothing;

impl Nothing {
    fn check(offset: u64, len: u64) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= Self.size()), "a request past the end");
    }
}

impl Disk for Nothing {
    fn size(&self) -> u64 {
        100 * SECTOR
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> posada_storage::Result<()> {
        Self::check(offset, buffer.len() as u64);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> posada_storage::Result<()> {
        Self::check(offset, data.len() as u64);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> posada_storage::Result<()> {
        Self::check(offset, length);
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> posada_storage::Result<()> {
        Self::check(offset, length);
        Ok(())
    }
    fn flush(&self) -> posada_storage::Result<()> {
        Ok(())
    }
}

/// What is done to any function.
fn common(function: &mut dyn PciFunction, ram: &GuestRam, bar: usize, choice: u8, bytes: &mut Bytes<'_>) {
    match choice {
        0 => drop(function.read_bar(bar, bytes.offset(), bytes.size())),
        1 => function.write_bar(bar, bytes.offset(), 4, bytes.u64()),
        2 => function.write_bar(bar, bytes.u64(), bytes.size(), bytes.u64()),
        3 => function.write_config(bytes.u16() & 0xfc, 4, bytes.u64() as u32),
        _ => {
            // Anything anywhere.
            let at = u64::from(bytes.u16()) << 4;
            let _ = ram.write(Gpa(at), &bytes.u64().to_le_bytes());
        }
    }
}

// The AHCI controller.

const ABAR: usize = 5;
/// Port N's command list, received FISes and command tables.
const LISTS: u64 = 0x1_0000;
const RECEIVED: u64 = 0x1_4000;
const TABLES: u64 = 0x2_0000;
const PORT_STRIDE: u64 = 0x1000;
const TABLE_STRIDE: u64 = 0x200;

fn set_up_sata(ahci: &mut Ahci) {
    ahci.write_bar(ABAR, 4, 4, 1 << 1);
    for port in 0..2 {
        let registers = 0x100 + 0x80 * port;
        let writes = [
            (0, LISTS + port * PORT_STRIDE),
            (8, RECEIVED + port * PORT_STRIDE),
            (0x14, 0xffff_ffff),
            (0x18, 0),
            (0x18, 0x11),
        ];
        for (register, value) in writes {
            ahci.write_bar(ABAR, registers + register, 4, value);
        }
    }
}

fn sata(ram: &GuestRam, bytes: &mut Bytes<'_>) {
    let drives = vec![
        Drive::Disk { disk: Arc::new(Nothing), serial: "fuzz".to_owned() },
        Drive::CdRom { disc: Arc::new(Nothing), serial: "fuzz".to_owned() },
    ];
    let mut ahci = Ahci::new(drives, ram, bus(), Box::new(Unconnected)).expect("threads");
    set_up_sata(&mut ahci);
    while !bytes.0.is_empty() {
        match bytes.u8() % 16 {
            choice @ 0..5 => common(&mut ahci, ram, ABAR, choice, bytes),
            5 => set_up_sata(&mut ahci),
            6 => {
                let state: ahci::State = ahci.state();
                ahci.restore(&state).expect("its own state");
            }
            _ => command(&mut ahci, ram, bytes),
        }
    }
    ahci.write_bar(ABAR, 4, 4, 1);
}

/// A command that makes some sense.
fn command(ahci: &mut Ahci, ram: &GuestRam, bytes: &mut Bytes<'_>) {
    /// The commands that there are, mostly.
    const CODES: [u8; 24] = [
        0x06, 0x20, 0x24, 0x25, 0x2f, 0x30, 0x35, 0x3d, 0x40, 0x60, 0x61, 0x90, 0xa0, 0xa0, 0xa0, 0xa1, 0xc4,
        0xc6, 0xc8, 0xca, 0xe5, 0xe7, 0xec, 0xef,
    ];
    const PACKETS: [u8; 16] =
        [0, 3, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x5a, 0xa8, 0xbd, 0xbe];
    let (port, slot) = (u64::from(bytes.u8() & 1), u64::from(bytes.u8() & 31));
    let table = TABLES + slot * TABLE_STRIDE + port * 32 * TABLE_STRIDE;
    let (places, shape) = (u64::from(bytes.u8() & 7), bytes.u8());
    let mut header = [0; 16];
    header[0] = if shape & 0xf0 == 0xf0 { bytes.u8() } else { 5 };
    header[2] = places as u8;
    header[3] = if shape == 0xef { 0xff } else { 0 };
    let at = if shape & 0x0f == 0x0f { bytes.u64() } else { table };
    header[8..].copy_from_slice(&at.to_le_bytes());
    let _ = ram.write(Gpa(LISTS + port * PORT_STRIDE + 32 * slot), &header);
    let mut fis = [0; 20];
    fis.iter_mut().skip(3).for_each(|byte| *byte = bytes.u8() & bytes.u8());
    fis[0] = if shape & 0x30 == 0x30 { bytes.u8() } else { 0x27 };
    fis[1] = bytes.u8() | 0x80 & !(shape << 1);
    let code = bytes.u8();
    fis[2] = CODES.get(usize::from(code & 31)).copied().unwrap_or(code);
    // Sectors and counts mostly small.
    if shape & 1 == 0 {
        (fis[5], fis[6], fis[9], fis[10], fis[11]) = (0, 0, 0, 0, 0);
        (fis[7], fis[8], fis[13]) = (0x40, 0, 0);
    }
    let _ = ram.write(Gpa(table), &fis);
    let mut packet = [0; 12];
    for byte in &mut packet {
        *byte = bytes.u8() & bytes.u8();
    }
    packet[0] = PACKETS[usize::from(bytes.u8() & 15)];
    if shape & 2 == 0 {
        packet[2..5].fill(0);
    }
    let _ = ram.write(Gpa(table + 0x40), &packet);
    for place in 0..places {
        let wild = bytes.u8() & 0xf0 == 0xf0;
        let address = if wild { bytes.u64() } else { u64::from(bytes.u16()) << 4 };
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&address.to_le_bytes());
        let len = if wild { bytes.u64() as u32 } else { u32::from(bytes.u16()) };
        entry[12..].copy_from_slice(&len.to_le_bytes());
        let _ = ram.write(Gpa(table + 0x80 + 16 * place), &entry);
    }
    let registers = 0x100 + 0x80 * port;
    if matches!(fis[2], 0x60 | 0x61) {
        ahci.write_bar(ABAR, registers + 0x34, 4, 1 << slot);
    }
    ahci.write_bar(ABAR, registers + 0x38, 4, 1 << slot);
}

// The e1000.

const RECEIVE_RING: u64 = 0x1_0000;
const TRANSMIT_RING: u64 = 0x2_0000;
const BUFFERS: u64 = 0x4_0000;
const COUNT: u64 = 8;

fn set_up_card(card: &mut E1000, ram: &GuestRam) {
    for index in 0..COUNT {
        let address = BUFFERS + 0x1000 * index;
        let _ = ram.write(Gpa(RECEIVE_RING + 16 * index), &address.to_le_bytes());
    }
    let writes = [
        (0x2800, RECEIVE_RING),
        (0x2804, 0),
        (0x2808, 16 * COUNT),
        (0x2810, 0),
        (0x2818, COUNT - 1),
        (0x3800, TRANSMIT_RING),
        (0x3804, 0),
        (0x3808, 16 * COUNT),
        (0x3810, 0),
        (0x3818, 0),
        (0x100, 0x801a),
        (0x400, 2),
        (0xd0, 0xffff),
    ];
    for (register, value) in writes {
        card.write_bar(0, register, 4, value);
    }
}

fn card(ram: &GuestRam, bytes: &mut Bytes<'_>) {
    let (end, network) = link::pair(Capacity { packets: 8, bytes: 1 << 16 }).expect("descriptors");
    network.accept(if bytes.u8() & 1 == 0 { Features::ALL } else { Features::NONE });
    let address = [2, 0, 0, 0, 0, 1];
    let mut card = E1000::new(end, address, ram, bus(), Box::new(Unconnected)).expect("a thread");
    set_up_card(&mut card, ram);
    while !bytes.0.is_empty() {
        match bytes.u8() % 16 {
            choice @ 0..5 => common(&mut card, ram, 0, choice, bytes),
            5 => set_up_card(&mut card, ram),
            6 => {
                let state: e1000::State = card.state();
                card.restore(&state).expect("its own state");
            }
            7 => {
                let register = 4 * u64::from(bytes.u8() & 7);
                let base = if bytes.u8() & 1 == 0 { 0x2800 } else { 0x3800 };
                card.write_bar(0, base + register, 4, bytes.u64());
            }
            8 | 9 => frame(&network, bytes),
            _ => descriptor(&mut card, ram, bytes),
        }
        while network.receive().is_some() {}
    }
    card.write_bar(0, 0, 4, 1 << 26);
}

fn frame(network: &Link, bytes: &mut Bytes<'_>) {
    let mut frame = vec![bytes.u8(); usize::from(bytes.u16())];
    if frame.len() > 6 && bytes.u8() & 1 == 0 {
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    }
    let _ = network.send(Packet::new(frame));
}

/// A transmit descriptor at the tail, of any type.
fn descriptor(card: &mut E1000, ram: &GuestRam, bytes: &mut Bytes<'_>) {
    let tail = card.read_bar(0, 0x3818, 4) % COUNT;
    let shape = bytes.u8();
    let mut descriptor = [0; 16];
    for byte in &mut descriptor {
        *byte = bytes.u8() & bytes.u8();
    }
    let is_context = shape & 3 == 1;
    if !is_context {
        let address = if shape & 0xf0 == 0xf0 { bytes.u64() } else { BUFFERS + u64::from(bytes.u16()) };
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
    }
    // Legacy, context, data.
    descriptor[10] = descriptor[10] & 0x0f | if shape & 3 == 1 { 0 } else { 0x10 };
    descriptor[11] = if shape.is_multiple_of(4) { descriptor[11] & !0x20 } else { descriptor[11] | 0x20 };
    descriptor[11] ^= bytes.u8() & 0x0d;
    let _ = ram.write(Gpa(TRANSMIT_RING + 16 * tail), &descriptor);
    card.write_bar(0, 0x3818, 4, (tail + 1) % COUNT);
}

/// The input; what it no longer has is zero.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    /// Mostly small, sometimes anything.
    fn u64(&mut self) -> u64 {
        let value = (0..8).fold(0, |value, _| value << 8 | u64::from(self.u8()));
        value >> (self.u8() & 63)
    }

    fn size(&mut self) -> u8 {
        1 << (self.u8() & 3)
    }

    /// Mostly of a register at the beginning.
    fn offset(&mut self) -> u64 {
        let offset = u64::from(self.u16());
        if offset & 0x8000 == 0 { offset & 0x1fc } else { offset & 0x7fff }
    }
}
