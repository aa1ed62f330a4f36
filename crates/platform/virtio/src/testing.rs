//! A driver in the place of a guest's: rings in guest memory, and every step by hand.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posada_devices::Unconnected;
use posada_devices::pci::PciFunction;
use posada_memory::{Gpa, GuestRam};

use crate::{Device, VirtioPci, feature};

/// How long a device may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Memory of the guests in these tests.
pub(crate) const RAM: u64 = 8 << 20;
/// Entries of each queue, and where queue N's areas begin: at N times the stride.
pub(crate) const SIZE: u16 = 16;
const RINGS: u64 = 0x10_0000;
const STRIDE: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers are.
pub(crate) const BUFFERS: u64 = 0x40_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Status bits as a driver sets them one after the other.
pub(crate) const READY: [u8; 4] = [1, 3, 11, 15];
pub(crate) const NEEDS_RESET: u8 = 0x40;

pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    pub(crate) pci: VirtioPci,
    pub(crate) messages: Arc<Mutex<Vec<(u64, u32)>>>,
    queues: Vec<Ring>,
}

#[derive(Clone, Copy, Default)]
struct Ring {
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver that has done nothing yet.
    pub(crate) fn new(device: impl Device + 'static) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).unwrap();
        let messages = Arc::<Mutex<Vec<_>>>::default();
        let bus = Arc::clone(&messages);
        let bus = Arc::new(move |address, data| bus.lock().unwrap().push((address, data)));
        let queues = vec![Ring::default(); device.queues().len()];
        let pci = VirtioPci::new(Box::new(device), &ram, bus, Box::new(Unconnected)).unwrap();
        Self { ram, pci, messages, queues }
    }

    /// A driver that has agreed to all features but `without`, and set up all queues.
    pub(crate) fn start(device: impl Device + 'static, without: u64) -> Self {
        let mut driver = Self::new(device);
        driver.set_up(without);
        driver
    }

    pub(crate) fn read(&mut self, register: u64, size: u8) -> u64 {
        self.pci.read_bar(0, register, size)
    }

    pub(crate) fn write(&mut self, register: u64, size: u8, value: u64) {
        self.pci.write_bar(0, register, size, value);
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read(0x14, 1) as u8
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.write(0, 4, 0);
        let low = self.read(4, 4);
        self.write(0, 4, 1);
        self.read(4, 4) << 32 | low
    }

    pub(crate) fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(0xc, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }

    /// From the reset to the device at work.
    pub(crate) fn set_up(&mut self, without: u64) {
        self.write(0x14, 1, 0);
        assert_eq!(self.status(), 0);
        self.write(0x14, 1, READY[0].into());
        self.write(0x14, 1, READY[1].into());
        let features = self.offered() & !without & !feature::EVENT_IDX;
        self.accept(features);
        self.write(0x14, 1, READY[2].into());
        assert_eq!(self.status(), READY[2], "the features are acceptable");
        for queue in 0..self.queues.len() {
            self.set_up_queue(queue as u16);
        }
        // Each queue its vector, all of them unmasked.
        let msix = self.msix();
        self.pci.write_config(msix + 2, 2, 0x8000);
        self.write(0x14, 1, READY[3].into());
        assert_eq!(self.status(), READY[3]);
    }

    fn msix(&mut self) -> u16 {
        let mut at = self.pci.read_config(0x34, 1) as u16;
        while self.pci.read_config(at, 1) != 0x11 {
            at = self.pci.read_config(at + 1, 1) as u16;
        }
        at
    }

    pub(crate) fn areas(queue: u16) -> [u64; 3] {
        let start = RINGS + u64::from(queue) * STRIDE;
        [start, start + AVAILABLE, start + USED]
    }

    pub(crate) fn set_up_queue(&mut self, queue: u16) {
        let areas = Self::areas(queue);
        self.ram.write(Gpa(areas[0]), &vec![0; USED as usize + 0x1000]).unwrap();
        self.queues[usize::from(queue)] = Ring::default();
        self.write(0x16, 2, queue.into());
        self.write(0x18, 2, SIZE.into());
        self.write(0x1a, 2, queue.into());
        for (register, area) in (0x20..).step_by(8).zip(areas) {
            self.write(register, 8, area);
        }
        let vector = 0x2000 + 16 * u64::from(queue);
        self.write(vector, 8, 0xfee0_0000);
        self.write(vector + 8, 8, 0x40 + u64::from(queue));
        self.write(0x1c, 2, 1);
    }

    /// Writes descriptor `index` of a queue.
    pub(crate) fn descriptor(&self, queue: u16, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = Self::areas(queue)[0] + 16 * u64::from(index);
        self.ram.write(Gpa(at), &descriptor(address, len, flags, next)).unwrap();
    }

    /// Makes the chain that begins at descriptor `head` available, and tells of it.
    pub(crate) fn offer(&mut self, queue: u16, head: u16) {
        let ring = &mut self.queues[usize::from(queue)];
        let at = Self::areas(queue)[1];
        self.ram.write(Gpa(at + 4 + 2 * u64::from(ring.available % SIZE)), &head.to_le_bytes()).unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.ram.write(Gpa(at + 2), &ring.available.to_le_bytes()).unwrap();
        self.notify(queue);
    }

    pub(crate) fn notify(&mut self, queue: u16) {
        let (notify, doorbell) = self.pci.doorbell(0).unwrap();
        assert_eq!(notify.start, 0x3000);
        doorbell(4 * u64::from(queue), queue.into());
    }

    /// How many requests the device has given back beyond those waited for, if any.
    pub(crate) fn has_used(&self, queue: u16) -> bool {
        let mut index = [0; 2];
        self.ram.read(Gpa(Self::areas(queue)[2] + 2), &mut index).unwrap();
        u16::from_le_bytes(index) != self.queues[usize::from(queue)].used
    }

    /// Waits for the next request to be given back: its head and how many bytes were written.
    pub(crate) fn wait(&mut self, queue: u16) -> (u16, u32) {
        wait_until("a request to be given back", || self.has_used(queue));
        let ring = &mut self.queues[usize::from(queue)];
        let at = Self::areas(queue)[2] + 4 + 8 * u64::from(ring.used % SIZE);
        ring.used = ring.used.wrapping_add(1);
        let mut element = [0; 8];
        self.ram.read(Gpa(at), &mut element).unwrap();
        (
            u16::from_le_bytes([element[0], element[1]]),
            u32::from_le_bytes([element[4], element[5], element[6], element[7]]),
        )
    }

    /// Makes a request of these bytes to be read and as many to be written available, at descriptors and buffers of its
    /// own, numbered from 0 to 3.
    pub(crate) fn submit(&mut self, queue: u16, slot: u16, readable: &[u8], writable: u32) {
        let (from, to) = buffers(queue, slot);
        self.ram.write(Gpa(from), readable).unwrap();
        let head = slot * 2;
        match (readable.len(), writable) {
            (0, _) => self.descriptor(queue, head, to, writable, WRITE, 0),
            (len, 0) => self.descriptor(queue, head, from, len as u32, 0, 0),
            (len, _) => {
                self.descriptor(queue, head, from, len as u32, NEXT, head + 1);
                self.descriptor(queue, head + 1, to, writable, WRITE, 0);
            }
        }
        self.offer(queue, head);
    }

    /// What was written to the buffer of a request.
    pub(crate) fn written(&self, queue: u16, slot: u16, len: u32) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.ram.read(Gpa(buffers(queue, slot).1), &mut data).unwrap();
        data
    }

    /// One request from beginning to end: what was written.
    pub(crate) fn request(&mut self, queue: u16, readable: &[u8], writable: u32) -> Vec<u8> {
        self.submit(queue, 0, readable, writable);
        let (head, len) = self.wait(queue);
        assert_eq!(head, 0);
        self.written(queue, 0, len)
    }

    /// Waits until the device has given up.
    pub(crate) fn wait_for_needs_reset(&mut self) {
        let began = Instant::now();
        while self.status() & NEEDS_RESET == 0 {
            assert!(began.elapsed() < PATIENCE, "the device does not ask for a reset");
            std::thread::yield_now();
        }
    }
}

fn buffers(queue: u16, slot: u16) -> (u64, u64) {
    let from = BUFFERS + u64::from(queue) * 0x8_0000 + u64::from(slot) * 0x2_0000;
    (from, from + 0x1_0000)
}

pub(crate) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Waits for something that another thread does.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
