//! The balloon (virtio 1.2 §5.5): memory that the guest gives back to the host.
//!
//! The host asks for a number of pages; the guest takes as many out of use and names them. It takes them back when the
//! host asks for fewer, or when it would run out of memory. A guest that knows of free page reporting names what it has
//! no use for by itself. What is given back reads as zeroes when the guest touches it again.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use posada_memory::{Gpa, GuestRam, PAGE_SIZE};

use crate::{BadBuffer, Bell, Chain, Device, Handler, Kind, Rings, Service};

const QUEUE_SIZE: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Numbered by the queues that are there: none for statistics, none for hints.
const REPORTING: usize = 2;
/// The most page numbers in one request: Linux sends 256.
const MAX_PAGES: usize = 4096;
/// The page of the interface, whatever the guest's own (§5.5.6).
const PAGE: u64 = 4096;

/// Feature bits (§5.5.3).
mod feature {
    pub(super) const MUST_TELL_HOST: u64 = 1 << 0;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

/// Offset of `actual` in the configuration.
const ACTUAL: usize = 4;

#[derive(Debug, Default)]
struct Shared {
    target: AtomicU32,
    actual: AtomicU32,
    /// Bytes that the host has got back so far, counted again each time.
    returned: AtomicU64,
    rings: Mutex<Option<Arc<Rings>>>,
}

/// Inflates and deflates a balloon. Clones reach the same one.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Asks the guest to do without `bytes` of its memory, rounded down to pages. It complies if and when it can.
    pub fn set_target(&self, bytes: u64) {
        self.0.target.store((bytes / PAGE).min(u32::MAX.into()) as u32, Ordering::Release);
        let rings = self.0.rings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(rings) = rings.filter(|rings| rings.is_active()) {
            rings.configuration_changed();
        }
    }

    /// How many bytes it is asked to do without.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::Acquire)) * PAGE
    }

    /// How many bytes the guest says that it does without.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE
    }

    /// How many bytes the host has got back since the start, those of the balloon and those reported as free; what the
    /// guest has used again meanwhile is not taken off.
    pub fn returned(&self) -> u64 {
        self.0.returned.load(Ordering::Relaxed)
    }
}

/// A balloon.
#[derive(Debug, Default)]
pub struct Balloon(Arc<Shared>);

impl Balloon {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The way to inflate it.
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.0))
    }
}

impl Device for Balloon {
    fn kind(&self) -> Kind {
        Kind { id: 5, class: [0xff, 0, 0], name: "balloon" }
    }

    fn features(&self) -> u64 {
        feature::MUST_TELL_HOST | feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn configuration(&self) -> Vec<u8> {
        let (target, actual) = (&self.0.target, &self.0.actual);
        let words = [target.load(Ordering::Acquire), actual.load(Ordering::Acquire), 0, 0];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn write_configuration(&mut self, offset: usize, data: &[u8]) {
        if offset == ACTUAL
            && let Ok(bytes) = data.try_into()
        {
            self.0.actual.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        *self.0.rings.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(rings));
        let (rings, shared) = (Arc::clone(rings), Arc::clone(&self.0));
        Ok(vec![Service::new([INFLATE, DEFLATE, REPORTING], move |_: Arc<Bell>| Server { rings, shared })])
    }
}

struct Server {
    rings: Arc<Rings>,
    shared: Arc<Shared>,
}

impl Handler for Server {
    fn queue(&mut self, queue: usize) -> bool {
        let (ram, shared) = (self.rings.ram(), &self.shared);
        self.rings.serve(queue, 16, |chain| {
            let returned = match queue {
                INFLATE => inflate(ram, chain),
                REPORTING => chain.release(),
                // What the guest takes back comes when it touches it.
                _ => Ok(0),
            };
            // Pages that are none stay where they are.
            shared.returned.fetch_add(returned.unwrap_or(0), Ordering::Relaxed);
        })
    }

    fn reset(&mut self) {
        self.shared.actual.store(0, Ordering::Release);
    }
}

/// Gives back the pages whose numbers a request lists, those that lie together at once; how many bytes.
fn inflate(ram: &GuestRam, chain: &mut Chain) -> Result<u64, BadBuffer> {
    let numbers = chain.read_all(4 * MAX_PAGES)?;
    let mut pages: Vec<u32> = numbers
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        .collect();
    pages.sort_unstable();
    pages.dedup();
    let mut returned = 0;
    for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let (start, len) = (u64::from(run[0]) * PAGE, run.len() * PAGE_SIZE);
        if ram.release(Gpa(start), len).is_ok() {
            returned += len as u64;
        }
    }
    Ok(returned)
}
