//! A serial port between the guest and the world.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use posada_devices::serial::Serial;

use crate::wiring::IsaLine;

/// How much input waits for the guest at most, in bytes; who sends more waits, too.
const QUEUE: usize = 4096;

/// A serial port, its output and its input.
#[derive(Debug)]
pub(crate) struct SerialPort {
    serial: Mutex<Serial<IsaLine>>,
    /// There may be output that has not been written out.
    unflushed: AtomicBool,
    /// Threads that wait for the guest to read.
    senders: AtomicUsize,
    room: Condvar,
}

impl SerialPort {
    pub(crate) fn new(line: IsaLine, output: Box<dyn Write + Send>) -> Self {
        Self {
            serial: Mutex::new(Serial::new(line, output)),
            unflushed: AtomicBool::new(false),
            senders: AtomicUsize::new(0),
            room: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<IsaLine>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, offset: u8) -> u8 {
        let mut serial = self.lock();
        let value = serial.read(offset);
        if self.senders.load(Ordering::Acquire) != 0 && serial.waiting() < QUEUE {
            self.room.notify_all();
        }
        value
    }

    /// A register write; whether there is output now where there was none.
    pub(crate) fn write(&self, offset: u8, value: u8) -> bool {
        self.lock().write(offset, value);
        // Only the data register holds output.
        offset == 0 && !self.unflushed.swap(true, Ordering::AcqRel)
    }

    /// Writes out what the guest has sent.
    pub(crate) fn flush(&self) {
        if self.unflushed.swap(false, Ordering::AcqRel) {
            let mut serial = self.lock();
            serial.flush();
            if let Some(error) = serial.take_output_error() {
                tracing::warn!(%error, "output of a serial port was lost");
            }
        }
    }

    pub(crate) fn reset(&self) {
        self.lock().reset();
    }

    /// Takes as many bytes as there is room for and returns how many that is.
    pub(crate) fn try_send(&self, bytes: &[u8]) -> usize {
        let mut serial = self.lock();
        let taken = bytes.len().min(QUEUE.saturating_sub(serial.waiting()));
        serial.receive(&bytes[..taken]);
        taken
    }

    /// Takes all bytes, waiting for room as often as it takes; `false` if `ended` says that no guest will read
    /// them.
    pub(crate) fn send(&self, mut bytes: &[u8], ended: impl Fn() -> bool) -> bool {
        self.senders.fetch_add(1, Ordering::AcqRel);
        let mut serial = self.lock();
        let all = loop {
            if ended() {
                break false;
            }
            let taken = bytes.len().min(QUEUE.saturating_sub(serial.waiting()));
            serial.receive(&bytes[..taken]);
            bytes = &bytes[taken..];
            if bytes.is_empty() {
                break true;
            }
            serial = self.room.wait(serial).unwrap_or_else(PoisonError::into_inner);
        };
        drop(serial);
        self.senders.fetch_sub(1, Ordering::AcqRel);
        all
    }

    /// Wakes those who wait for room, because there will be none.
    pub(crate) fn end(&self) {
        drop(self.lock());
        self.room.notify_all();
    }

    /// Sends a break, as a terminal's Break key does.
    pub(crate) fn send_break(&self) {
        self.lock().receive_break();
    }
}
