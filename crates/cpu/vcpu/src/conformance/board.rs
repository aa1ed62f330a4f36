//! A board that remembers what it was asked, and does what it was told to.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Bus, Event, Interrupts, MsrError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One access that reached the [`Bus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// `in`: port and size in bytes.
    PortRead(u16, usize),
    /// `out`: port, size in bytes, value.
    PortWrite(u16, usize, u64),
    /// A load: physical address and size in bytes.
    MmioRead(u64, usize),
    /// A store: physical address, size in bytes, value.
    MmioWrite(u64, usize, u64),
}

/// What a [`Recorder`] does when something in particular happens, besides remembering it.
type Reaction = Box<dyn Fn(Access) + Send + Sync>;

/// A bus that remembers every access in order. Reads give what was prepared, or all ones.
#[derive(Default)]
pub(crate) struct Recorder {
    log: Mutex<Vec<Access>>,
    answers: Mutex<VecDeque<u64>>,
    reaction: Mutex<Option<Reaction>>,
}

impl Recorder {
    /// What has reached the bus so far.
    pub(crate) fn log(&self) -> Vec<Access> {
        lock(&self.log).clone()
    }

    /// The next reads give these values.
    pub(crate) fn answer(&self, values: &[u64]) {
        lock(&self.answers).extend(values);
    }

    /// Calls `reaction` at every access, while the guest waits.
    pub(crate) fn react(&self, reaction: impl Fn(Access) + Send + Sync + 'static) {
        *lock(&self.reaction) = Some(Box::new(reaction));
    }

    fn note(&self, access: Access) {
        lock(&self.log).push(access);
        if let Some(reaction) = &*lock(&self.reaction) {
            reaction(access);
        }
    }

    fn fill(&self, data: &mut [u8]) {
        let value = lock(&self.answers).pop_front().unwrap_or(u64::MAX);
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Bus for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.note(Access::PortRead(port, data.len()));
        self.fill(data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.note(Access::PortWrite(port, data.len(), number(data)));
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.note(Access::MmioRead(address, data.len()));
        self.fill(data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.note(Access::MmioWrite(address, data.len(), number(data)));
    }
}

/// An interrupt source that delivers what it was given, in order.
#[derive(Debug, Default)]
pub(crate) struct Script {
    vectors: Mutex<VecDeque<u8>>,
    events: Mutex<VecDeque<Event>>,
    cr8: Mutex<u8>,
}

impl Script {
    /// A maskable interrupt becomes ready, after those before it.
    pub(crate) fn raise(&self, vector: u8) {
        lock(&self.vectors).push_back(vector);
    }

    /// Something else arrives.
    pub(crate) fn send(&self, event: Event) {
        lock(&self.events).push_back(event);
    }

    /// How many interrupts have not been taken.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.vectors).len()
    }
}

impl Interrupts for Script {
    fn pending(&self) -> bool {
        !lock(&self.vectors).is_empty()
    }

    fn acknowledge(&self) -> Option<u8> {
        lock(&self.vectors).pop_front()
    }

    fn take_event(&self) -> Option<Event> {
        lock(&self.events).pop_front()
    }

    fn cr8(&self) -> u8 {
        *lock(&self.cr8)
    }

    fn set_cr8(&self, priority: u8) {
        *lock(&self.cr8) = priority;
    }

    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        // `IA32_APIC_BASE` of an enabled local APIC: enough for CPUID.
        if msr == 0x1b { Ok(0xfee0_0900) } else { Err(MsrError) }
    }
}
