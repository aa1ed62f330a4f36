//! MSI-X: interrupts that are writes to memory (PCI 3.0 §6.8.2).

use crate::StateError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Bytes of one table entry.
const ENTRY_LEN: u64 = 16;
/// Bit 0 of an entry's vector control: masked.
const MASKED: u32 = 1;
/// Message control: function mask, and enable.
const FUNCTION_MASK: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;

/// Who carries the messages to the processors: the board. Any closure is one.
pub trait MessageBus: Send + Sync {
    /// A write of `data` to `address`.
    fn write(&self, address: u64, data: u32);
}

impl<F: Fn(u64, u32) + Send + Sync> MessageBus for F {
    fn write(&self, address: u64, data: u32) {
        self(address, data);
    }
}

/// One vector's message and mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

impl Entry {
    const RESET: Self = Self { address: 0, data: 0, control: MASKED };
}

/// The saved state of [`Msix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    control: u16,
}

/// A function's MSI-X table and pending bits.
///
/// ```
/// use posada_devices::pci::Msix;
/// use std::sync::{Arc, Mutex};
///
/// let sent = Arc::new(Mutex::new(Vec::new()));
/// let bus = Arc::clone(&sent);
/// let mut msix = Msix::new(2, Arc::new(move |address, data| bus.lock().unwrap().push((address, data))));
/// msix.write_table(0x10, 4, 0xfee0_1000);
/// msix.write_table(0x18, 4, 0x41);
/// msix.write_table(0x1c, 4, 0); // unmasked
/// msix.set_control(0x8000);
/// msix.trigger(1);
/// assert_eq!(*sent.lock().unwrap(), [(0xfee0_1000, 0x41)]);
/// ```
pub struct Msix {
    state: MsixState,
    bus: Arc<dyn MessageBus>,
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.state, f)
    }
}

impl Msix {
    /// A table of `vectors` entries (1 to 2048), all masked.
    ///
    /// # Panics
    /// If there cannot be as many: a mistake of the device's author.
    pub fn new(vectors: u16, bus: Arc<dyn MessageBus>) -> Self {
        assert!((1..=2048).contains(&vectors), "{vectors} vectors");
        let entries = vec![Entry::RESET; vectors.into()];
        let pending = vec![0; usize::from(vectors).div_ceil(64)];
        Self { state: MsixState { entries, pending, control: 0 }, bus }
    }

    /// The bytes of the capability (ID [`CAPABILITY_MSIX`](super::CAPABILITY_MSIX)) after its ID and pointer, with the
    /// table and the pending bits at offsets (multiples of 8) in base address register `bar`. Of them software writes
    /// the first two, as far as [`CONTROL_MASK`](Self::CONTROL_MASK) goes, and the function passes these to
    /// [`set_control`](Self::set_control).
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.state.entries.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table & !7 | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending & !7 | u32::from(bar)).to_le_bytes());
        body
    }

    /// The bits of message control that software writes.
    pub const CONTROL_MASK: u16 = FUNCTION_MASK | ENABLE;

    /// How many bytes the table has.
    pub fn table_len(&self) -> u64 {
        self.state.entries.len() as u64 * ENTRY_LEN
    }

    /// Whether the function is to use messages and not its interrupt pin.
    pub fn is_enabled(&self) -> bool {
        self.state.control & ENABLE != 0
    }

    /// Message control, as it now stands in configuration space.
    pub fn set_control(&mut self, control: u16) {
        self.state.control = control & Self::CONTROL_MASK;
        self.send_pending();
    }

    /// Reads `size` bytes at `offset` in the table. Only reads of 4 and 8 bytes, aligned, are defined.
    pub fn read_table(&self, offset: u64, size: u8) -> u64 {
        let Some(entry) = self.state.entries.get((offset / ENTRY_LEN) as usize) else { return 0 };
        let low_high = |low: u64, high: u64| high << 32 | low;
        match (offset % ENTRY_LEN, size) {
            (0, 8) => entry.address,
            (8, 8) => low_high(entry.data.into(), entry.control.into()),
            (0, 4) => entry.address & 0xffff_ffff,
            (4, 4) => entry.address >> 32,
            (8, 4) => entry.data.into(),
            (12, 4) => entry.control.into(),
            _ => 0,
        }
    }

    /// Writes `size` bytes at `offset` in the table. Only writes of 4 and 8 bytes, aligned, are defined.
    pub fn write_table(&mut self, offset: u64, size: u8, value: u64) {
        let Some(entry) = self.state.entries.get_mut((offset / ENTRY_LEN) as usize) else { return };
        match (offset % ENTRY_LEN, size) {
            (0, 8) => entry.address = value & !3,
            (8, 8) => (entry.data, entry.control) = (value as u32, (value >> 32) as u32 & MASKED),
            (0, 4) => entry.address = entry.address >> 32 << 32 | value & 0xffff_fffc,
            (4, 4) => entry.address = entry.address & 0xffff_ffff | value << 32,
            (8, 4) => entry.data = value as u32,
            (12, 4) => entry.control = value as u32 & MASKED,
            _ => {}
        }
        self.send_pending();
    }

    /// Reads `size` bytes (4 or 8, aligned) at `offset` in the pending bits.
    pub fn read_pending(&self, offset: u64, size: u8) -> u64 {
        let word = self.state.pending.get((offset / 8) as usize).copied().unwrap_or(0);
        match (offset % 8, size) {
            (0, 8) => word,
            (0, 4) => word & 0xffff_ffff,
            (4, 4) => word >> 32,
            _ => 0,
        }
    }

    /// The function's interrupt `vector`: sent now, or noted as pending while it is masked. One that does not exist,
    /// or comes while MSI-X is off, goes nowhere.
    pub fn trigger(&mut self, vector: u16) {
        let Some(entry) = self.state.entries.get(usize::from(vector)) else { return };
        if !self.is_enabled() {
            return;
        }
        if self.state.control & FUNCTION_MASK == 0 && entry.control & MASKED == 0 {
            self.bus.write(entry.address, entry.data);
        } else {
            self.state.pending[usize::from(vector / 64)] |= 1 << (vector % 64);
        }
    }

    /// Sends what is pending and not masked any more.
    fn send_pending(&mut self) {
        if self.state.control & Self::CONTROL_MASK != ENABLE {
            return;
        }
        for (word, entries) in self.state.pending.iter_mut().zip(self.state.entries.chunks(64)) {
            for (bit, entry) in entries.iter().enumerate() {
                if *word & 1 << bit != 0 && entry.control & MASKED == 0 {
                    *word &= !(1 << bit);
                    self.bus.write(entry.address, entry.data);
                }
            }
        }
    }

    /// The state after power-on.
    pub fn reset(&mut self) {
        self.state.entries.fill(Entry::RESET);
        self.state.pending.fill(0);
        self.state.control = 0;
    }

    /// The saved state.
    pub fn state(&self) -> MsixState {
        self.state.clone()
    }

    /// Puts the saved state of a table of the same size in force.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), StateError> {
        let sizes = |state: &MsixState| (state.entries.len(), state.pending.len());
        if sizes(state) != sizes(&self.state) {
            return Err(StateError::new("MSI-X table", format!("{} entries", state.entries.len())));
        }
        self.state = state.clone();
        Ok(())
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
