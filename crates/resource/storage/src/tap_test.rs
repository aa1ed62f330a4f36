//! What a test sees of a file, and how it lets requests fail.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was done to a file.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Write(u64, Vec<u8>),
    /// The range holds its old bytes or zeroes.
    Punch(u64, u64),
    Sync,
}

#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) events: Mutex<Vec<Event>>,
    /// How many more writes work; then the disk is full.
    pub(crate) budget: AtomicU64,
}

impl Default for Tap {
    fn default() -> Self {
        Self { events: Mutex::default(), budget: AtomicU64::new(u64::MAX) }
    }
}

impl Tap {
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let left = self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            if left == u64::MAX { Some(left) } else { left.checked_sub(1) }
        });
        left.map_err(|_| io::Error::from(io::ErrorKind::StorageFull))?;
        self.log(Event::Write(offset, data.to_vec()));
        Ok(())
    }

    pub(crate) fn punch(&self, offset: u64, length: u64) {
        self.log(Event::Punch(offset, length));
    }

    pub(crate) fn sync(&self) {
        self.log(Event::Sync);
    }

    fn log(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}
