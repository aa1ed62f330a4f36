//! Any driver of every virtio device: its registers, its configuration space, and whatever it puts into its rings.
//!
//! The rings begin as a driver would set them up, so that the devices get to see requests; from there on anything goes.
//! Beside "no panic", the devices must come to rest after a reset: nothing is written to memory any more.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use posada_devices::Unconnected;
use posada_devices::pci::{MessageBus, PciFunction};
use posada_memory::{Gpa, GuestRam};
use posada_network::link::{self, Capacity, Features, Link, Packet};
use posada_storage::{Disk, SECTOR};
use posada_virtio::balloon::Balloon;
use posada_virtio::block::Block;
use posada_virtio::console::Console;
use posada_virtio::entropy::Entropy;
use posada_virtio::network::Network;
use posada_virtio::share::Share;
use posada_virtio::vsock::Vsock;
use posada_virtio::{Device, VirtioPci};

const RAM: u64 = 1 << 20;
/// Queue N's areas are at N times the stride; buffers follow.
const RINGS: u64 = 0x1_0000;
const STRIDE: u64 = 0x2000;
const BUFFERS: u64 = 0x4_0000;
const SIZE: u64 = 8;

/// Carries out what `data` encodes on the device that its first byte names.
///
/// # Panics
/// If a device misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    let folder = Folder::new();
    let (device, network): (Box<dyn Device>, Option<Link>) = match which % 7 {
        0 => (Box::new(Entropy), None),
        1 => (Box::new(Block::new(Arc::new(Nothing), "fuzz", 2)), None),
        2 => {
            let (card, network) = link::pair(Capacity { packets: 8, bytes: 1 << 16 }).expect("descriptors");
            network.accept(Features::ALL);
            (Box::new(Network::new(card, [2, 0, 0, 0, 0, 1], 2)), Some(network))
        }
        3 => {
            let console = Console::new(io::sink());
            console.input().send(b"for the guest");
            (Box::new(console), None)
        }
        4 => (Box::new(Balloon::new()), None),
        5 => (Box::new(Vsock::new(3, folder.0.join("sock")).expect("a socket")), None),
        _ => {
            let shared = folder.0.join("shared");
            std::fs::create_dir(&shared).expect("a folder");
            std::fs::write(shared.join("a"), "contents").expect("a file");
            (Box::new(Share::new(shared, "fuzz", false).expect("a share")), None)
        }
    };
    let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("memory");
    let bus: Arc<dyn MessageBus> = Arc::new(|_: u64, _: u32| {});
    let queues = device.queues().len() as u64;
    let pci = VirtioPci::new(device, &ram, bus, Box::new(Unconnected)).expect("threads");
    let mut driver = Driver { pci, ram, queues, network, available: vec![0; queues as usize] };
    driver.set_up();
    let mut bytes = Bytes(data);
    while !bytes.0.is_empty() {
        driver.step(&mut bytes);
    }
    driver.pci.write_bar(0, STATUS, 1, 0);
    let before = driver.used();
    std::thread::yield_now();
    assert_eq!(driver.used(), before, "a device that was reset goes on");
}

/// A folder of its own, which goes away.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("posada-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a folder for temporary files");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A disk that forgets.
#[derive(Debug)]
struct Nothing;

impl Nothing {
    fn check(offset: u64, len: u64) -> posada_storage::Result<()> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= Self.size()), "a request past the end");
        Ok(())
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
        Self::check(offset, buffer.len() as u64)
    }
    fn write(&self, offset: u64, data: &[u8]) -> posada_storage::Result<()> {
        Self::check(offset, data.len() as u64)
    }
    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> posada_storage::Result<()> {
        Self::check(offset, length)
    }
    fn discard(&self, offset: u64, length: u64) -> posada_storage::Result<()> {
        Self::check(offset, length)
    }
    fn flush(&self) -> posada_storage::Result<()> {
        Ok(())
    }
}

const STATUS: u64 = 0x14;

struct Driver {
    pci: VirtioPci,
    ram: GuestRam,
    queues: u64,
    network: Option<Link>,
    available: Vec<u16>,
}

impl Driver {
    /// As a driver does that knows everything but notification by thresholds.
    fn set_up(&mut self) {
        let mut write = |register, size, value| self.pci.write_bar(0, register, size, value);
        write(STATUS, 1, 3);
        for half in 0..2_u64 {
            write(0, 4, half);
            write(8, 4, half);
        }
        for half in 0..2_u64 {
            self.pci.write_bar(0, 0, 4, half);
            let offered = self.pci.read_bar(0, 4, 4);
            self.pci.write_bar(0, 8, 4, half);
            let without = if half == 0 { 1 << 29 } else { 0 };
            self.pci.write_bar(0, 0xc, 4, offered & !without);
        }
        self.pci.write_bar(0, STATUS, 1, 11);
        for queue in 0..self.queues {
            let start = RINGS + queue * STRIDE;
            self.pci.write_bar(0, 0x16, 2, queue);
            self.pci.write_bar(0, 0x18, 2, SIZE);
            for (register, area) in [(0x20, start), (0x28, start + 0x800), (0x30, start + 0x1000)] {
                self.pci.write_bar(0, register, 8, area);
            }
            self.pci.write_bar(0, 0x1c, 2, 1);
        }
        self.pci.write_bar(0, STATUS, 1, 15);
    }

    /// The used rings as they are.
    fn used(&self) -> Vec<u64> {
        (0..self.queues).map(|queue| self.ram.load((RINGS + queue * STRIDE + 0x1000) as usize)).collect()
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let choice = bytes.u8();
        let queue = u64::from(bytes.u8()) % self.queues;
        match choice % 16 {
            0 => drop(self.pci.read_bar(0, bytes.offset(), bytes.size())),
            1 => self.pci.write_bar(0, bytes.offset(), bytes.size(), bytes.u64()),
            2 => drop(self.pci.read_config(bytes.u16() & 0xfc, 4)),
            3 => self.pci.write_config(bytes.u16() & 0xfc, 4, bytes.u64() as u32),
            4 => self.set_up(),
            5 => {
                let state = self.pci.state();
                // A ring that has been moved out of memory meanwhile cannot be had again.
                let _ = self.pci.restore(&state);
            }
            6 => {
                if let Some(network) = &self.network {
                    let _ = network.send(Packet::new(vec![bytes.u8(); usize::from(bytes.u16())]));
                    drop(network.receive());
                }
            }
            7 => {
                // Anything anywhere.
                let at = u64::from(bytes.u16()) << 4;
                let _ = self.ram.write(Gpa(at), &bytes.u64().to_le_bytes());
            }
            8 => self.notify(queue),
            _ => self.request(queue, bytes),
        }
    }

    fn notify(&mut self, queue: u64) {
        let (_, doorbell) = self.pci.doorbell(0).expect("there is one");
        doorbell(4 * queue, queue);
    }

    /// A chain of up to four descriptors that make some sense, with contents.
    fn request(&mut self, queue: u64, bytes: &mut Bytes<'_>) {
        let count = u64::from(bytes.u8() & 3) + 1;
        let mut writable = false;
        for index in 0..count {
            let shape = bytes.u8();
            writable |= shape & 1 != 0;
            let address = if shape & 0xf0 == 0xf0 { bytes.u64() } else { BUFFERS + (u64::from(shape) << 8) };
            let len = u32::from(if shape & 2 != 0 { bytes.u16() } else { u16::from(bytes.u8()) });
            let next = if index + 1 < count { 1 } else { 0 };
            let flags = if shape & 0x0c == 0x0c { bytes.u16() } else { next | if writable { 2 } else { 0 } };
            if !writable {
                let contents: Vec<u8> = (0..len.min(64)).map(|_| bytes.u8()).collect();
                let _ = self.ram.write(Gpa(address), &contents);
            }
            let descriptor = [
                &address.to_le_bytes()[..],
                &len.to_le_bytes(),
                &flags.to_le_bytes(),
                &((index + 1) as u16).to_le_bytes(),
            ];
            let _ = self.ram.write(Gpa(RINGS + queue * STRIDE + index * 16), &descriptor.concat());
        }
        let index = &mut self.available[queue as usize];
        let ring = RINGS + queue * STRIDE + 0x800;
        let _ = self.ram.write(Gpa(ring + 4 + 2 * (u64::from(*index) % SIZE)), &[0, 0]);
        *index = index.wrapping_add(1);
        let _ = self.ram.write(Gpa(ring + 2), &index.to_le_bytes());
        self.notify(queue);
    }
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

    /// Mostly in the common configuration.
    fn offset(&mut self) -> u64 {
        let offset = u64::from(self.u16());
        if offset & 0x8000 == 0 { offset & 0x3f } else { offset & 0x7fff }
    }
}
