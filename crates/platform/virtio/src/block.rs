//! The block device (virtio 1.2 §5.2): a disk of `posada-storage`.
//!
//! Each queue has a thread of its own, which carries out one request after another; a guest with several processors
//! has several. A request is done when the disk says so, and only a flush makes what was written before it permanent.
//! A driver that does not know of flushes, or asks for a cache that writes through, gets one with every write.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use posada_storage::{Disk, SECTOR};

use crate::{BadBuffer, Bell, Chain, Device, Handler, Kind, Rings, Service};

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
/// The most queues.
const MAX_QUEUES: usize = 16;
/// How many bytes go through the buffer at once.
const PIECE: usize = 256 << 10;
/// The most segments of a discard or write-zeroes request, and the most sectors of one.
const MAX_SEGMENTS: u32 = 64;
const MAX_SEGMENT_SECTORS: u32 = 1 << 22;
/// Bytes of the serial number.
const ID_LEN: usize = 20;
/// How many requests are carried out before another queue's turn.
const BATCH: usize = 32;
/// Where the configuration says whether writes wait for a flush (§5.2.4).
const WRITEBACK: usize = 32;
/// How many different failures are told in how long a time. The same one is told once.
const MAX_TOLD: usize = 4;
const TOLD_FOR: Duration = Duration::from_mins(1);

/// Feature bits (§5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const GEOMETRY: u64 = 1 << 4;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const CACHE_MODE: u64 = 1 << 11;
    pub(super) const SEVERAL_QUEUES: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Kinds of requests (§5.2.6).
mod request {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Done = 0,
    Failed = 1,
    Unsupported = 2,
}

impl From<BadBuffer> for Status {
    fn from(_: BadBuffer) -> Self {
        Self::Failed
    }
}

/// A disk as a virtio device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<dyn Disk>,
    id: [u8; ID_LEN],
    queues: usize,
    shared: Arc<Shared>,
}

/// What the device and the threads of its queues share.
#[derive(Debug)]
struct Shared {
    /// Whether writes may wait for a flush; the driver chooses (§5.2.5.2).
    writeback: AtomicBool,
    failures: Mutex<Failures>,
}

/// Requests that the host's storage has failed, and what the host's user has been told of them.
#[derive(Debug, Default)]
struct Failures {
    count: u64,
    told: Vec<String>,
    since: Option<Instant>,
}

impl Failures {
    /// Counts a failure; whether it is one to tell of. A guest tries again, and often.
    fn is_news(&mut self, message: &str, now: Instant) -> bool {
        self.count += 1;
        if self.since.is_none_or(|since| now.duration_since(since) >= TOLD_FOR) {
            self.told.clear();
            self.since = Some(now);
        }
        let news = self.told.len() < MAX_TOLD && self.told.iter().all(|told| told != message);
        if news {
            self.told.push(message.to_owned());
        }
        news
    }
}

impl Block {
    /// The device for `disk`, with a serial number of at most 20 bytes, and a queue for each of `cpus`.
    pub fn new(disk: Arc<dyn Disk>, serial: &str, cpus: u32) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shared = Shared { writeback: AtomicBool::new(true), failures: Mutex::default() };
        Self { disk, id, queues: (cpus as usize).clamp(1, MAX_QUEUES), shared: Arc::new(shared) }
    }
}

/// A geometry for those that insist on one: 16 heads of 63 sectors, as with disks of old.
fn geometry(sectors: u64) -> [u8; 4] {
    let cylinders = (sectors / (16 * 63)).min(16383) as u16;
    let [low, high] = cylinders.to_le_bytes();
    [low, high, 16, 63]
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind { id: 2, class: [0x01, 0x80, 0], name: "disk" }
    }

    fn features(&self) -> u64 {
        use feature::{
            BLOCK_SIZE, CACHE_MODE, DISCARD, FLUSH, GEOMETRY, SEG_MAX, SEVERAL_QUEUES, TOPOLOGY, WRITE_ZEROES,
        };
        let all = SEG_MAX | GEOMETRY | BLOCK_SIZE | FLUSH | TOPOLOGY | CACHE_MODE | SEVERAL_QUEUES;
        if self.disk.is_read_only() { all | feature::READ_ONLY } else { all | DISCARD | WRITE_ZEROES }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues]
    }

    fn configuration(&self) -> Vec<u8> {
        let (sectors, limits) = (self.disk.size() / SECTOR, self.disk.limits());
        let in_sectors = |bytes: u32| bytes / SECTOR as u32;
        let mut bytes = sectors.to_le_bytes().to_vec();
        // No limit for a segment; one descriptor each for header and status.
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((u32::from(QUEUE_SIZE) - 2).to_le_bytes());
        bytes.extend(geometry(sectors));
        bytes.extend((SECTOR as u32).to_le_bytes());
        bytes.extend([in_sectors(limits.physical_block).max(1).ilog2() as u8, 0]);
        bytes.extend((in_sectors(limits.physical_block).max(1) as u16).to_le_bytes());
        bytes.extend(in_sectors(limits.optimal_io).to_le_bytes());
        bytes.extend([self.shared.writeback.load(Ordering::Acquire).into(), 0]);
        bytes.extend((self.queues as u16).to_le_bytes());
        bytes.extend(MAX_SEGMENT_SECTORS.to_le_bytes());
        bytes.extend(MAX_SEGMENTS.to_le_bytes());
        bytes.extend(in_sectors(limits.discard_granularity).max(1).to_le_bytes());
        bytes.extend(MAX_SEGMENT_SECTORS.to_le_bytes());
        bytes.extend(MAX_SEGMENTS.to_le_bytes());
        // Zeroes may be had by giving space back.
        bytes.extend([1, 0, 0, 0]);
        bytes
    }

    fn write_configuration(&mut self, offset: usize, data: &[u8]) {
        if offset == WRITEBACK
            && let &[mode] = data
        {
            self.shared.writeback.store(mode != 0, Ordering::Release);
        }
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let service = |queue| {
            let (disk, rings, id) = (Arc::clone(&self.disk), Arc::clone(rings), self.id);
            let shared = Arc::clone(&self.shared);
            let make = move |_: Arc<Bell>| Server {
                rings,
                requests: Requests { disk, id, buffer: Vec::new(), shared },
            };
            Service::new([queue], make)
        };
        Ok((0..self.queues).map(service).collect())
    }
}

/// The thread of one queue.
struct Server {
    rings: Arc<Rings>,
    requests: Requests,
}

impl Handler for Server {
    fn queue(&mut self, queue: usize) -> bool {
        let features = self.rings.features();
        let chosen = features & feature::CACHE_MODE != 0;
        let requests = &mut self.requests;
        self.rings.serve(queue, BATCH, |chain| {
            let writeback = !chosen || requests.shared.writeback.load(Ordering::Acquire);
            requests.carry_out(chain, features & feature::FLUSH == 0 || !writeback);
        })
    }

    fn reset(&mut self) {
        self.requests.shared.writeback.store(true, Ordering::Release);
    }
}

/// What carries requests out.
struct Requests {
    disk: Arc<dyn Disk>,
    id: [u8; ID_LEN],
    buffer: Vec<u8>,
    shared: Arc<Shared>,
}

impl Requests {
    fn carry_out(&mut self, chain: &mut Chain, write_through: bool) {
        // The status is the last byte that may be written. Without it there is nobody to tell.
        let Ok(mut status) = chain.split_writable(1) else { return };
        let result = match self.request(chain, write_through) {
            Ok(()) => Status::Done,
            Err(status) => status,
        };
        if status.write(&[result as u8]).is_ok() {
            chain.append_written(&status);
        }
    }

    fn request(&mut self, chain: &mut Chain, write_through: bool) -> Result<(), Status> {
        let header: [u8; 16] = chain.read_array()?;
        let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
        match kind {
            request::READ => self.read(chain, sector),
            request::WRITE => {
                self.write(chain, sector)?;
                if write_through { self.flush() } else { Ok(()) }
            }
            request::FLUSH => self.flush(),
            request::GET_ID => Ok(chain.write(&self.id[..ID_LEN.min(chain.writable() as usize)])?),
            request::DISCARD | request::WRITE_ZEROES => {
                self.segments(chain, kind)?;
                if write_through { self.flush() } else { Ok(()) }
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// What the host's storage says of a request. The guest is told that it failed; why, the host's user.
    fn note(&self, result: posada_storage::Result<()>) -> Result<(), Status> {
        result.map_err(|error| {
            let mut failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
            let message = error.to_string();
            if failures.is_news(&message, Instant::now()) {
                tracing::warn!("a disk request of the guest failed ({} so far): {message}", failures.count);
            }
            Status::Failed
        })
    }

    /// The byte offset of a request's data, all of which must lie on the disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::Failed)?;
        let end = offset.checked_add(len).ok_or(Status::Failed)?;
        if len.is_multiple_of(SECTOR) && end <= self.disk.size() { Ok(offset) } else { Err(Status::Failed) }
    }

    fn read(&mut self, chain: &mut Chain, sector: u64) -> Result<(), Status> {
        let mut offset = self.place(sector, chain.writable())?;
        while chain.writable() != 0 {
            let len = chain.writable().min(PIECE as u64) as usize;
            self.buffer.resize(len, 0);
            let read = self.disk.read(offset, &mut self.buffer);
            self.note(read)?;
            chain.write(&self.buffer)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn write(&mut self, chain: &mut Chain, sector: u64) -> Result<(), Status> {
        let mut offset = self.place(sector, chain.readable())?;
        while chain.readable() != 0 {
            let len = chain.readable().min(PIECE as u64) as usize;
            self.buffer.resize(len, 0);
            chain.read(&mut self.buffer)?;
            let written = self.disk.write(offset, &self.buffer);
            self.note(written)?;
            offset += len as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Status> {
        let flushed = self.disk.flush();
        self.note(flushed)
    }

    /// Discard and write-zeroes: a list of ranges (§5.2.6).
    fn segments(&mut self, chain: &mut Chain, kind: u32) -> Result<(), Status> {
        const UNMAP: u32 = 1;
        let most = 16 * u64::from(MAX_SEGMENTS);
        if chain.readable() == 0 || !chain.readable().is_multiple_of(16) || chain.readable() > most {
            return Err(Status::Failed);
        }
        if self.disk.is_read_only() {
            return Err(Status::Failed);
        }
        while chain.readable() != 0 {
            let segment: [u8; 16] = chain.read_array()?;
            let (sector, sectors, flags) = (u64_at(&segment, 0), u32_at(&segment, 8), u32_at(&segment, 12));
            if flags & !UNMAP != 0 || kind == request::DISCARD && flags != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > MAX_SEGMENT_SECTORS {
                return Err(Status::Failed);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = self.place(sector, len)?;
            let done = if kind == request::DISCARD {
                self.disk.discard(offset, len)
            } else {
                self.disk.write_zeroes(offset, len, flags & UNMAP != 0)
            };
            self.note(done)?;
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "block_test.rs"]
mod tests;
