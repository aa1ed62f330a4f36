//! What the tests' drivers need: a disk in memory, and wires that remember.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posada_storage::{Disk, SECTOR};

/// How long a device may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// An interrupt pin.
#[derive(Clone, Default)]
pub(crate) struct Pin(Arc<AtomicBool>);

impl Pin {
    pub(crate) fn line(&self) -> Box<dyn posada_devices::IrqLine> {
        let level = Arc::clone(&self.0);
        Box::new(move |up| level.store(up, Ordering::SeqCst))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A disk in memory, which remembers what it was asked for besides reads and writes.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl Memory {
    pub(crate) fn new(sectors: u64) -> Arc<Self> {
        let bytes = (0..sectors * SECTOR).map(|at| (at / SECTOR) as u8).collect();
        Arc::new(Self { bytes: Mutex::new(bytes), asked: Mutex::default() })
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn ask(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> posada_storage::Result<()> {
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> posada_storage::Result<()> {
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64, _may_unmap: bool) -> posada_storage::Result<()> {
        self.ask(format!("zeroes {offset} {length}"));
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> posada_storage::Result<()> {
        self.ask(format!("discard {offset} {length}"));
        Ok(())
    }
    fn flush(&self) -> posada_storage::Result<()> {
        self.ask("flush".to_owned());
        Ok(())
    }
}
