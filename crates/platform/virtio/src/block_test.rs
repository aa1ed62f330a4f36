use super::*;
use crate::testing::{Driver, NEXT, WRITE};
use posada_memory::Gpa;
use posada_storage::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A disk in memory that can be made to fail.
#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    fails: AtomicBool,
    flushes: AtomicU32,
}

impl Memory {
    fn new(sectors: usize) -> Arc<Self> {
        let bytes = Mutex::new((0..sectors * 512).map(|n| (n / 512) as u8).collect());
        Arc::new(Self { bytes, read_only: false, fails: AtomicBool::new(false), flushes: AtomicU32::new(0) })
    }

    fn attempt<T>(&self, act: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(Error::Invalid("the disk is broken".to_owned()));
        }
        Ok(act(&mut self.bytes.lock().unwrap()))
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.attempt(|bytes| buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]))
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.attempt(|bytes| bytes[offset as usize..][..data.len()].copy_from_slice(data))
    }
    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> Result<()> {
        self.attempt(|bytes| bytes[offset as usize..][..length as usize].fill(0))
    }
    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.attempt(|bytes| bytes[offset as usize..][..length as usize].fill(0xdd))
    }
    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.attempt(|_| ())
    }
}

fn start(disk: &Arc<Memory>) -> Driver {
    Driver::start(Block::new(disk.clone(), "serial", 1), 0)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn sectors_are_read_and_written() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    let read = driver.request(0, &header(0, 3), 1025);
    assert_eq!((&read[..512], &read[512..1024], read[1024]), (&[3; 512][..], &[4; 512][..], 0));
    let written = driver.request(0, &[header(1, 7), vec![9; 512]].concat(), 1);
    assert_eq!(written, [0]);
    assert_eq!(disk.bytes.lock().unwrap()[7 * 512..], [9; 512]);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    // Virtio 1.2 §2.7.4.1: a device must not rely on how a request is laid out.
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    driver.ram.write(Gpa(0x40_0000), &header(0, 5)).unwrap();
    driver.descriptor(0, 0, 0x40_0000, 7, NEXT, 1);
    driver.descriptor(0, 1, 0x40_0007, 9, NEXT, 2);
    driver.descriptor(0, 2, 0x41_0000, 100, NEXT | WRITE, 3);
    driver.descriptor(0, 3, 0x41_0064, 413, WRITE, 0);
    driver.offer(0, 0);
    assert_eq!(driver.wait(0), (0, 513));
    let mut read = [0; 513];
    driver.ram.read(Gpa(0x41_0000), &mut read).unwrap();
    assert_eq!((&read[..512], read[512]), (&[5; 512][..], 0));
}

#[test]
fn what_reaches_past_the_end_or_has_no_whole_sectors_fails() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    for (sector, len) in [(8, 512), (7, 1024), (u64::MAX, 512), (u64::MAX / 512, 1024), (0, 511), (0, 1)] {
        let read = driver.request(0, &header(0, sector), len + 1);
        assert_eq!(driver.written(0, 0, len + 1)[len as usize], 1, "{sector} {len} {}", read.len());
        let data = vec![1; len as usize];
        assert_eq!(driver.request(0, &[header(1, sector), data].concat(), 1), [1]);
    }
    assert_eq!(driver.request(0, &header(0, 0)[..15], 1), [1], "half a header");
    assert!(disk.bytes.lock().unwrap().iter().enumerate().all(|(n, byte)| *byte == (n / 512) as u8));
}

#[test]
fn a_request_without_room_for_its_status_is_given_back() {
    let mut driver = start(&Memory::new(8));
    assert!(driver.request(0, &header(0, 0), 0).is_empty());
    assert_eq!(driver.request(0, &header(4, 0), 1), [0]);
}

#[test]
fn flushes_ids_and_unknown_requests() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    assert_eq!(driver.request(0, &header(4, 0), 1), [0]);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    let id = driver.request(0, &header(8, 0), 21);
    assert_eq!((&id[..7], id[20]), (&b"serial\0"[..], 0));
    assert_eq!(driver.request(0, &header(99, 0), 1), [2]);
}

#[test]
fn a_driver_without_flushes_gets_one_with_every_write() {
    let disk = Memory::new(8);
    let mut driver = Driver::start(Block::new(disk.clone(), "", 1), feature::FLUSH);
    driver.request(0, &[header(1, 0), vec![9; 512]].concat(), 1);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
    driver.request(0, &header(0, 0), 513);
    assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_driver_chooses_a_cache_that_writes_through_until_the_reset() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    let at = 0x1800 + WRITEBACK as u64;
    let write = [header(1, 0), vec![9; 512]].concat();
    driver.request(0, &write, 1);
    assert_eq!((driver.read(at, 1), disk.flushes.load(Ordering::SeqCst)), (1, 0));
    driver.write(at, 1, 0);
    for kind in [write, [header(13, 0), segment(0, 1, 0)].concat()] {
        assert_eq!(driver.request(0, &kind, 1), [0]);
    }
    assert_eq!((driver.read(at, 1), disk.flushes.load(Ordering::SeqCst)), (0, 2));
    driver.write(0x14, 1, 0);
    assert_eq!(driver.read(at, 1), 1);
}

#[test]
fn a_failure_is_told_once_in_a_while_and_different_ones_are_bounded() {
    let (mut failures, now) = (Failures::default(), Instant::now());
    assert!(failures.is_news("full", now) && !failures.is_news("full", now));
    assert_eq!((0..100).filter(|n| failures.is_news(&n.to_string(), now)).count(), MAX_TOLD - 1);
    assert!(failures.is_news("full", now + TOLD_FOR));
    assert_eq!(failures.count, 103);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    assert_eq!(driver.request(0, &[header(11, 0), segment(1, 2, 0)].concat(), 1), [0]);
    assert_eq!(driver.request(0, &[header(13, 0), segment(2, 1, 1), segment(7, 1, 0)].concat(), 1), [0]);
    let firsts: Vec<u8> = disk.bytes.lock().unwrap().iter().step_by(512).copied().collect();
    assert_eq!(firsts, [0, 0xdd, 0, 3, 4, 5, 6, 0]);
    let bad = [
        (11, segment(0, 1, 1), 2),
        (13, segment(0, 1, 2), 2),
        (13, segment(8, 1, 0), 1),
        (13, segment(u64::MAX, 1, 0), 1),
        (13, segment(0, u32::MAX, 0), 1),
        (11, vec![0; 15], 1),
        (11, Vec::new(), 1),
        (11, vec![0; 16 * 65], 1),
    ];
    for (kind, segments, status) in bad {
        assert_eq!(driver.request(0, &[header(kind, 0), segments].concat(), 1), [status]);
    }
}

#[test]
fn a_failing_host_is_an_error_to_the_guest_only() {
    let disk = Memory::new(8);
    let mut driver = start(&disk);
    disk.fails.store(true, Ordering::SeqCst);
    for request in [header(0, 0), header(4, 0), [header(1, 0), vec![0; 512]].concat()] {
        let len = if request[0] == 0 { 513 } else { 1 };
        driver.request(0, &request, len);
        assert_eq!(driver.written(0, 0, len)[len as usize - 1], 1);
    }
    disk.fails.store(false, Ordering::SeqCst);
    assert_eq!(driver.request(0, &header(4, 0), 1), [0]);
}

#[test]
fn the_configuration_tells_size_queues_and_limits() {
    let disk = Arc::new(Memory { read_only: true, ..Arc::try_unwrap(Memory::new(2016)).unwrap() });
    let block = Block::new(disk, "", 3);
    let bytes = block.configuration();
    assert_eq!(bytes.len(), 60);
    assert_eq!((u64_at(&bytes, 0), u32_at(&bytes, 20)), (2016, 512));
    assert_eq!(bytes[16..20], [2, 0, 16, 63]);
    assert_eq!(bytes[34..36], [3, 0]);
    assert_eq!(block.features() & (feature::READ_ONLY | feature::DISCARD), feature::READ_ONLY);
}
