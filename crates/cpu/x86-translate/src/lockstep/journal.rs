//! What the leader has learned from outside, for the follower to learn the same.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_vcpu::{Bus, Clock, Connections, Event, Interrupts, MsrError};

/// Up to eight bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Data {
    bytes: [u8; 8],
    len: usize,
}

impl Data {
    fn new(data: &[u8]) -> Self {
        let mut bytes = [0; 8];
        let len = data.len().min(8);
        bytes[..len].copy_from_slice(&data[..len]);
        Self { bytes, len }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", &self.bytes[..self.len])
    }
}

/// One thing that passed between an engine and its board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    PortRead(u16, Data),
    PortWrite(u16, Data),
    Load(u64, Data),
    Store(u64, Data),
    Time(u64),
    Random(Option<u64>),
    Acknowledge(u8),
    Event(Event),
    Cr8(u8),
    SetCr8(u8),
    ReadMsr(u32, Result<u64, MsrError>),
    WriteMsr(u32, u64, Result<(), MsrError>),
}

impl Entry {
    /// Without the answer: what the engine did.
    fn question(self) -> Self {
        let unasked = |data: Data| Data { bytes: [0; 8], ..data };
        match self {
            Self::PortRead(port, data) => Self::PortRead(port, unasked(data)),
            Self::Load(address, data) => Self::Load(address, unasked(data)),
            Self::Time(_) => Self::Time(0),
            Self::Random(_) => Self::Random(None),
            Self::Cr8(_) => Self::Cr8(0),
            Self::ReadMsr(msr, _) => Self::ReadMsr(msr, Err(MsrError)),
            Self::WriteMsr(msr, value, _) => Self::WriteMsr(msr, value, Err(MsrError)),
            other => other,
        }
    }
}

#[derive(Default)]
struct Inside {
    entries: VecDeque<Entry>,
    complaint: Option<String>,
}

#[derive(Default)]
pub(super) struct Journal(Mutex<Inside>);

impl Journal {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, entry: Entry) {
        self.inside().entries.push_back(entry);
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.inside().entries.is_empty()
    }

    /// Whether an interrupt or event comes next.
    pub(super) fn begins_with_interrupt(&self) -> bool {
        matches!(self.inside().entries.front(), Some(Entry::Acknowledge(_) | Entry::Event(_)))
    }

    /// What the follower did that the leader had not done.
    pub(super) fn take_complaint(&self) -> Option<String> {
        self.inside().complaint.take()
    }

    /// What the follower has not done yet.
    pub(super) fn rest(&self) -> Vec<Entry> {
        self.inside().entries.iter().copied().collect()
    }

    /// What the leader learned when it did the same as the follower does now; `None` if it did something else.
    fn repeat(&self, now: Entry) -> Option<Entry> {
        let mut inside = self.inside();
        match inside.entries.front() {
            Some(entry) if entry.question() == now.question() => inside.entries.pop_front(),
            other => {
                let led = other.map_or("nothing".into(), |entry| format!("{:?}", entry.question()));
                let complaint =
                    format!("outside: the interpreter did {:?}, the translator {led}", now.question());
                inside.complaint.get_or_insert(complaint);
                None
            }
        }
    }

    fn take_if<T>(&self, wanted: impl FnOnce(&Entry) -> Option<T>) -> Option<T> {
        let mut inside = self.inside();
        let found = wanted(inside.entries.front()?)?;
        inside.entries.pop_front();
        Some(found)
    }
}

/// The leader's board: asks the real one, and notes what it says.
pub(super) struct Recorder {
    bus: Arc<dyn Bus>,
    interrupts: Arc<dyn Interrupts>,
    clock: Arc<Clock>,
    journal: Arc<Journal>,
}

impl Recorder {
    pub(super) fn new(connections: &Connections, journal: Arc<Journal>) -> Self {
        let Connections { bus, interrupts, clock, .. } = connections.clone();
        Self { bus, interrupts, clock, journal }
    }

    pub(super) fn time(&self) -> u64 {
        let now = self.clock.now();
        self.journal.note(Entry::Time(now));
        now
    }

    pub(super) fn random(&self) -> Option<u64> {
        let value = getrandom::u64().ok();
        self.journal.note(Entry::Random(value));
        value
    }
}

impl Bus for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.bus.port_read(port, data);
        self.journal.note(Entry::PortRead(port, Data::new(data)));
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.journal.note(Entry::PortWrite(port, Data::new(data)));
        self.bus.port_write(port, data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.bus.mmio_read(address, data);
        self.journal.note(Entry::Load(address, Data::new(data)));
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.journal.note(Entry::Store(address, Data::new(data)));
        self.bus.mmio_write(address, data);
    }
}

impl Interrupts for Recorder {
    fn pending(&self) -> bool {
        self.interrupts.pending()
    }

    fn acknowledge(&self) -> Option<u8> {
        let vector = self.interrupts.acknowledge()?;
        self.journal.note(Entry::Acknowledge(vector));
        Some(vector)
    }

    fn take_event(&self) -> Option<Event> {
        let event = self.interrupts.take_event()?;
        self.journal.note(Entry::Event(event));
        Some(event)
    }

    fn cr8(&self) -> u8 {
        let priority = self.interrupts.cr8();
        self.journal.note(Entry::Cr8(priority));
        priority
    }

    fn set_cr8(&self, priority: u8) {
        self.journal.note(Entry::SetCr8(priority));
        self.interrupts.set_cr8(priority);
    }

    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        let answer = self.interrupts.read_msr(msr);
        self.journal.note(Entry::ReadMsr(msr, answer));
        answer
    }

    fn write_msr(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        let answer = self.interrupts.write_msr(msr, value);
        self.journal.note(Entry::WriteMsr(msr, value, answer));
        answer
    }
}

/// The follower's board: says what the leader's said.
pub(super) struct Replayer {
    journal: Arc<Journal>,
}

impl Replayer {
    pub(super) fn new(journal: Arc<Journal>) -> Self {
        Self { journal }
    }

    pub(super) fn time(&self) -> u64 {
        match self.journal.repeat(Entry::Time(0)) {
            Some(Entry::Time(time)) => time,
            _ => 0,
        }
    }

    pub(super) fn random(&self) -> Option<u64> {
        match self.journal.repeat(Entry::Random(None)) {
            Some(Entry::Random(value)) => value,
            _ => None,
        }
    }

    fn fill(data: &mut [u8], answer: Option<Entry>) {
        if let Some(Entry::PortRead(_, found) | Entry::Load(_, found)) = answer {
            data.copy_from_slice(&found.bytes[..found.len]);
        }
    }
}

impl Bus for Replayer {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let answer = self.journal.repeat(Entry::PortRead(port, Data::new(data)));
        Self::fill(data, answer);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.journal.repeat(Entry::PortWrite(port, Data::new(data)));
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let answer = self.journal.repeat(Entry::Load(address, Data::new(data)));
        Self::fill(data, answer);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.journal.repeat(Entry::Store(address, Data::new(data)));
    }
}

impl Interrupts for Replayer {
    fn pending(&self) -> bool {
        self.journal.begins_with_interrupt()
    }

    fn acknowledge(&self) -> Option<u8> {
        self.journal.take_if(|entry| match entry {
            Entry::Acknowledge(vector) => Some(*vector),
            _ => None,
        })
    }

    fn take_event(&self) -> Option<Event> {
        self.journal.take_if(|entry| match entry {
            Entry::Event(event) => Some(*event),
            _ => None,
        })
    }

    fn cr8(&self) -> u8 {
        match self.journal.repeat(Entry::Cr8(0)) {
            Some(Entry::Cr8(priority)) => priority,
            _ => 0,
        }
    }

    fn set_cr8(&self, priority: u8) {
        self.journal.repeat(Entry::SetCr8(priority));
    }

    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        match self.journal.repeat(Entry::ReadMsr(msr, Err(MsrError))) {
            Some(Entry::ReadMsr(_, answer)) => answer,
            _ => Err(MsrError),
        }
    }

    fn write_msr(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        match self.journal.repeat(Entry::WriteMsr(msr, value, Err(MsrError))) {
            Some(Entry::WriteMsr(_, _, answer)) => answer,
            _ => Err(MsrError),
        }
    }
}
