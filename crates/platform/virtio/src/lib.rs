//! Virtio 1.2 over PCI: devices that a guest knows to be virtual.
//!
//! | room | what it holds |
//! |---|---|
//! | [`VirtioPci`] | the PCI function: capabilities, common configuration, status machine, MSI-X (virtio 1.2 §4.1) |
//! | [`Rings`], [`Chain`] | the split virtqueues (§2.7, with `virtio-queue`), and requests as streams of bytes |
//! | [`Handler`] | what a device does, on a thread of its own behind an event loop |
//! | [`block`], [`network`], [`share`], [`vsock`], [`entropy`], [`balloon`], [`console`] | the devices (§5) |
//!
//! A virtual CPU that notifies a device sets a bit and wakes the device's thread, without any lock. Everything else,
//! the host's files and sockets included, is that thread's. A reset waits until the thread has finished the request
//! that it is at: from then on the device touches no memory of the guest's.
//!
//! The driver is hostile. Requests are copied out of guest memory once and then looked at; lengths are bounded; whoever
//! breaks the rules of the rings gets the status bit `DEVICE_NEEDS_RESET` and no service until the reset.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod block;
mod chain;
pub mod console;
pub mod entropy;
mod interrupt;
pub mod network;
mod pci;
mod rings;
pub mod share;
pub mod vsock;

use std::fmt;
use std::io;
use std::sync::Arc;

pub use chain::{BadBuffer, Chain};
pub use pci::{State, VirtioPci};
pub use posada_worker::{Bell, Handler};
pub use rings::{Broken, Rings};

/// Feature bits that are not a device's own (virtio 1.2 §6).
pub mod feature {
    /// Requests may list their buffers in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications by thresholds.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// A device by this specification and not by its forerunners.
    pub const VERSION_1: u64 = 1 << 32;
    /// Queues can be reset one by one.
    pub const RING_RESET: u64 = 1 << 40;
    /// What the transport offers for every device.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
}

/// What a device is (virtio 1.2 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Device ID.
    pub id: u16,
    /// PCI class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// What it is called in messages.
    pub name: &'static str,
}

/// One thread of a device: the queues that it serves, and what makes its handler.
pub struct Service {
    /// Numbers of queues.
    pub queues: Vec<usize>,
    /// Makes the handler, which can be reached from elsewhere by the bell.
    pub make: Box<dyn FnOnce(Arc<Bell>) -> Box<dyn Handler> + Send>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("queues", &self.queues).finish_non_exhaustive()
    }
}

impl Service {
    /// A thread that serves these queues.
    pub fn new<H: Handler + 'static>(
        queues: impl Into<Vec<usize>>,
        make: impl FnOnce(Arc<Bell>) -> H + Send + 'static,
    ) -> Self {
        Self { queues: queues.into(), make: Box::new(|bell| Box::new(make(bell))) }
    }
}

/// A device without its transport.
pub trait Device: Send + fmt::Debug {
    /// What it is.
    fn kind(&self) -> Kind;

    /// The features of its own that it offers.
    fn features(&self) -> u64 {
        0
    }

    /// The most entries of each of its queues: at most 64 queues, each a power of two up to 1024.
    fn queues(&self) -> Vec<u16>;

    /// Its configuration space as it is now.
    fn configuration(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver writes to its configuration space.
    fn write_configuration(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The threads that serve it. Asked once.
    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>>;
}

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "small_test.rs"]
mod small_tests;
