//! A device's virtqueues, as the threads that serve it share them with the transport.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_memory::GuestRam;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::chain::Chain;
use crate::interrupt::Interrupt;

/// The most buffers that a request may have, indirect ones included. Linux's drivers stay below the ring's size, which
/// the specification demands (virtio 1.2 §2.7.5.3.1); the largest ring here has 1024.
pub(crate) const MAX_BUFFERS: usize = 1024;

/// The driver has broken the rules of the rings. The device has told it so, and does nothing until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// All queues of a device.
#[derive(Debug)]
pub struct Rings {
    name: &'static str,
    ram: GuestRam,
    queues: Box<[Mutex<Queue>]>,
    interrupt: Arc<Interrupt>,
    /// Whether the driver has set up the device, and has not broken it.
    active: AtomicBool,
    features: AtomicU64,
}

impl Rings {
    pub(crate) fn new(
        name: &'static str,
        ram: GuestRam,
        sizes: &[u16],
        interrupt: Arc<Interrupt>,
    ) -> Arc<Self> {
        let queue =
            |size: &u16| Mutex::new(Queue::new(*size).expect("a queue has a power of two of entries"));
        let queues = sizes.iter().map(queue).collect();
        let (active, features) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { name, ram, queues, interrupt, active, features })
    }

    pub(crate) fn queue(&self, index: usize) -> MutexGuard<'_, Queue> {
        self.queues[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many queues there are.
    pub(crate) fn len(&self) -> usize {
        self.queues.len()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The features that driver and device have agreed on.
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }

    pub(crate) fn activate(&self, features: u64) {
        self.features.store(features, Ordering::Release);
        self.active.store(true, Ordering::Release);
    }

    pub(crate) fn deactivate(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// Whether the driver wants the device to work.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Tells the driver that only a reset helps (virtio 1.2 §2.1.2), and the host's user why.
    pub fn fail(&self, problem: impl fmt::Display) {
        tracing::warn!("the guest misuses its {}: {problem}; the device waits for a reset", self.name);
        self.deactivate();
        self.interrupt.needs_reset();
    }

    /// Tells the driver to look at the device's configuration again.
    pub fn configuration_changed(&self) {
        self.interrupt.configuration_changed();
    }

    /// The next request of a queue, if there is one.
    pub fn pop(&self, index: usize) -> Result<Option<Chain>, Broken> {
        let mut queue = self.queue(index);
        // Looked at with the lock held: whoever resets the queue has cleared it before.
        if !self.is_active() || !queue.ready() {
            return Ok(None);
        }
        let fail = |problem: &str| {
            self.fail(format_args!("queue {index}: {problem}"));
            Broken
        };
        let mut available = queue.iter(self.ram.view()).map_err(|error| fail(&error.to_string()))?;
        let Some(descriptors) = available.next() else { return Ok(None) };
        let mut chain = Chain::new(self.ram.clone(), descriptors.head_index());
        // The chain's iterator ends without a word where a chain goes wrong: then the last descriptor seen is not the
        // last of the chain, or there is none at all.
        let (mut count, mut complete) = (0, false);
        for descriptor in descriptors {
            count += 1;
            if count > MAX_BUFFERS {
                break;
            }
            if !chain.push(descriptor.addr().0, descriptor.len(), descriptor.is_write_only()) {
                return Err(fail("a buffer to be read after one to be written"));
            }
            complete = !descriptor.has_next();
        }
        if complete { Ok(Some(chain)) } else { Err(fail("a descriptor chain that leads astray")) }
    }

    /// Puts back the `count` requests that were taken last, to be taken again.
    pub fn put_back(&self, index: usize, count: u16) {
        let mut queue = self.queue(index);
        let next = queue.next_avail().wrapping_sub(count);
        queue.set_next_avail(next);
    }

    /// Gives a request back to the driver, with what was written to it.
    pub fn push(&self, index: usize, chain: &Chain) {
        self.push_many(index, std::slice::from_ref(chain));
    }

    /// [`push`](Self::push) of several.
    pub fn push_many(&self, index: usize, chains: &[Chain]) {
        let mut queue = self.queue(index);
        if !queue.ready() {
            return;
        }
        for chain in chains {
            if let Err(error) = queue.add_used(self.ram.view(), chain.head(), chain.written()) {
                drop(queue);
                return self.fail(format_args!("queue {index}: {error}"));
            }
        }
    }

    /// Interrupts the driver about requests given back, if it wants that.
    pub fn signal(&self, index: usize) {
        let mut queue = self.queue(index);
        let wanted =
            self.is_active() && queue.ready() && queue.needs_notification(self.ram.view()).unwrap_or(false);
        drop(queue);
        if wanted {
            self.interrupt.queue(index);
        }
    }

    /// Asks the driver not to tell of new requests for now.
    pub fn quiet(&self, index: usize) {
        let mut queue = self.queue(index);
        if self.is_active() && queue.ready() {
            let _ = queue.disable_notification(self.ram.view());
        }
    }

    /// Asks the driver to tell of new requests; whether there are some already.
    pub fn listen(&self, index: usize) -> bool {
        let mut queue = self.queue(index);
        let active = self.is_active() && queue.ready();
        let waiting = active && queue.enable_notification(self.ram.view()).unwrap_or(false);
        fence(Ordering::SeqCst);
        waiting
    }

    /// Carries out requests of a queue with `work`, at most `limit`, which gives each back; whether there may be more.
    pub fn serve(&self, index: usize, limit: usize, mut work: impl FnMut(&mut Chain)) -> bool {
        self.quiet(index);
        for _ in 0..limit {
            let Ok(next) = self.pop(index) else { return false };
            let Some(mut chain) = next else {
                self.signal(index);
                if self.listen(index) {
                    self.quiet(index);
                    continue;
                }
                return false;
            };
            work(&mut chain);
            self.push(index, &chain);
        }
        self.signal(index);
        true
    }
}
