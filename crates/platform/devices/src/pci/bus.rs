//! Bus 0: the functions on it and how accesses find them.

use super::{CONFIG_ADDRESS, Doorbell, PciFunction, ones};
use crate::StateError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

/// Bit 31 of the configuration address: the data ports reach configuration space.
const ENABLE: u32 = 1 << 31;

/// Where a function is on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl Address {
    /// A function's place.
    pub const fn new(device: u8, function: u8) -> Self {
        Self { device, function }
    }

    /// From the eight bits that configuration accesses carry.
    fn from_bits(bits: u8) -> Self {
        Self { device: bits >> 3, function: bits & 7 }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.device, self.function)
    }
}

/// The saved state of the bus itself; each function saves its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusState {
    /// The configuration address register.
    config_address: u32,
}

/// A function on the bus, which one access at a time reaches.
type Slot = Arc<Mutex<Box<dyn PciFunction>>>;

/// What one base address register claims at present.
struct Claim {
    start: u64,
    size: u64,
    io: bool,
    bar: usize,
    slot: Slot,
    /// The part of it that needs no lock, as offsets, and who is told of writes there.
    doorbell: Option<(Range<u64>, Doorbell)>,
}

/// Bus 0 and the registers by which the processor reaches it.
///
/// All accesses may be made by several threads at once. An access holds the lock of the one function that it
/// reaches; a write to a [`Doorbell`] holds none.
///
/// ```
/// use posada_devices::pci::{Address, HostBridge, PciBus};
///
/// let mut pci = PciBus::new();
/// pci.add(Address::new(0, 0), Box::new(HostBridge::new(None)));
/// pci.write_port(0xcf8, 4, 0x8000_0000);
/// assert_eq!(pci.read_port(0xcfc, 4), 0x29c0_8086);
/// assert_eq!(pci.read_ecam(1 << 15, 4), 0xffff_ffff); // there is no device 1
/// ```
#[derive(Default)]
pub struct PciBus {
    config_address: AtomicU32,
    functions: BTreeMap<Address, Slot>,
    /// Made anew whenever a base address or command register may have changed. Locked before a function, never after.
    claims: RwLock<Vec<Claim>>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus")
            .field("state", &self.state())
            .field("functions", &self.functions.keys())
            .finish_non_exhaustive()
    }
}

fn lock(slot: &Slot) -> MutexGuard<'_, Box<dyn PciFunction>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// A bus without functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function on the bus. Function 0 of a device with several says so in its header
    /// ([`set_multi_function`](super::ConfigSpace::set_multi_function)), which is done here.
    ///
    /// # Panics
    /// If the place does not exist or is taken: a mistake of the board's author.
    pub fn add(&mut self, address: Address, function: Box<dyn PciFunction>) {
        assert!(address.device < 32 && address.function < 8, "there is no {address}");
        let before = self.functions.insert(address, Arc::new(Mutex::new(function)));
        assert!(before.is_none(), "{address} is taken");
        let several = self
            .functions
            .range(Address::new(address.device, 1)..=Address::new(address.device, 7))
            .next()
            .is_some();
        if several && let Some(first) = self.functions.get(&Address::new(address.device, 0)) {
            lock(first).config_mut().set_multi_function();
        }
        self.claim();
    }

    /// The function at `address`.
    pub fn function(&self, address: Address) -> Option<MutexGuard<'_, Box<dyn PciFunction>>> {
        self.functions.get(&address).map(lock)
    }

    /// The places of all functions, ascending.
    pub fn addresses(&self) -> impl Iterator<Item = Address> + '_ {
        self.functions.keys().copied()
    }

    /// Gives every base address register a place in `memory` or among `ports`, and lets the functions claim them: the
    /// work of firmware (PCI 3.0 §6.2.5.1). What finds no room is left for the operating system.
    pub fn assign(&self, memory: Range<u64>, ports: Range<u16>) {
        let (mut memory_next, mut ports_next) = (memory.start, u64::from(ports.start));
        for slot in self.functions.values() {
            lock(slot).config_mut().assign_bars(|bar| {
                let (next, end) = if bar.kind.is_io() {
                    (&mut ports_next, u64::from(ports.end))
                } else {
                    (&mut memory_next, memory.end)
                };
                let start = next.checked_next_multiple_of(bar.size)?;
                let after = start.checked_add(bar.size).filter(|after| *after <= end)?;
                *next = after;
                Some(start)
            });
        }
        self.claim();
    }

    /// The saved state.
    pub fn state(&self) -> PciBusState {
        PciBusState { config_address: self.config_address.load(Ordering::Relaxed) }
    }

    /// Puts a saved state in force. Functions that are restored are to be restored before.
    pub fn restore(&mut self, state: PciBusState) -> Result<(), StateError> {
        self.config_address.store(state.config_address, Ordering::Relaxed);
        self.claim();
        Ok(())
    }

    /// Waits until every function has done what it was told of before, but not past `deadline`.
    pub fn settle(&self, deadline: Instant) {
        for slot in self.functions.values() {
            lock(slot).settle(deadline);
        }
    }

    /// Has every function do nothing by itself until [`resume`](Self::resume).
    pub fn pause(&self) {
        for slot in self.functions.values() {
            lock(slot).pause();
        }
    }

    /// Lets every function go on after a [`pause`](Self::pause).
    pub fn resume(&self) {
        for slot in self.functions.values() {
            lock(slot).resume();
        }
    }

    /// The machine's reset, of the bus and of every function.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Relaxed);
        for slot in self.functions.values() {
            lock(slot).reset();
        }
        self.claim();
    }

    // Configuration by ports.

    /// Reads `size` bytes (1, 2 or 4) at a port from 0xcf8 to 0xcff.
    pub fn read_port(&self, port: u16, size: u8) -> u32 {
        let config_address = self.config_address.load(Ordering::Relaxed);
        match port.wrapping_sub(CONFIG_ADDRESS) {
            // The address register is there for whole dwords only.
            0 if size == 4 => config_address,
            lane @ 4..=7 if config_address & ENABLE != 0 => {
                let Some((address, register)) = selected(config_address) else { return ones(size) };
                self.read_config(address, register | (lane & 3), size)
            }
            _ => ones(size),
        }
    }

    /// Writes `size` bytes (1, 2 or 4) at a port from 0xcf8 to 0xcff.
    pub fn write_port(&self, port: u16, size: u8, value: u32) {
        let config_address = self.config_address.load(Ordering::Relaxed);
        match port.wrapping_sub(CONFIG_ADDRESS) {
            // Bits 30 to 24 and the lowest two are reserved.
            0 if size == 4 => self.config_address.store(value & 0x80ff_fffc, Ordering::Relaxed),
            lane @ 4..=7 if config_address & ENABLE != 0 => {
                if let Some((address, register)) = selected(config_address) {
                    self.write_config(address, register | (lane & 3), size, value);
                }
            }
            _ => {}
        }
    }

    // Configuration by memory.

    /// Reads `size` bytes (1, 2 or 4) at `offset` in the ECAM window.
    pub fn read_ecam(&self, offset: u64, size: u8) -> u32 {
        match offset >> 20 {
            0 => self.read_config(Address::from_bits((offset >> 12) as u8), offset as u16 & 0xfff, size),
            _ => ones(size),
        }
    }

    /// Writes `size` bytes (1, 2 or 4) at `offset` in the ECAM window.
    pub fn write_ecam(&self, offset: u64, size: u8, value: u32) {
        if offset >> 20 == 0 {
            self.write_config(Address::from_bits((offset >> 12) as u8), offset as u16 & 0xfff, size, value);
        }
    }

    // A configuration access is one of 1, 2 or 4 bytes within a dword; what is not goes nowhere.

    fn read_config(&self, address: Address, offset: u16, size: u8) -> u32 {
        match self.functions.get(&address) {
            Some(slot) if is_configuration_access(offset, size) => {
                lock(slot).read_config(offset, size) & ones(size)
            }
            _ => ones(size),
        }
    }

    fn write_config(&self, address: Address, offset: u16, size: u8, value: u32) {
        if let Some(slot) = self.functions.get(&address)
            && is_configuration_access(offset, size)
        {
            lock(slot).write_config(offset, size, value & ones(size));
            // The command register, and the base address registers.
            if matches!(offset, 0x04 | 0x05 | 0x10..=0x27) {
                self.claim();
            }
        }
    }

    // What the functions claim.

    /// Looks again at what every base address register claims.
    fn claim(&self) {
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        claims.clear();
        for slot in self.functions.values() {
            let function = lock(slot);
            for (bar, register) in function.config().bars() {
                let Some(start) = function.config().bar_address(bar) else { continue };
                let doorbell = function.doorbell(bar);
                let (size, slot) = (register.size, Arc::clone(slot));
                claims.push(Claim { start, size, io: register.kind.is_io(), bar, slot, doorbell });
            }
        }
    }

    /// Does something with the function, base address register and offset that an address belongs to, if it belongs to
    /// any.
    fn with_claimant<T>(&self, address: u64, io: bool, act: impl FnOnce(&Claim, u64) -> T) -> Option<T> {
        let claims = self.claims.read().unwrap_or_else(PoisonError::into_inner);
        let inside = |claim: &&Claim| claim.io == io && address.wrapping_sub(claim.start) < claim.size;
        let claim = claims.iter().find(inside)?;
        Some(act(claim, address - claim.start))
    }

    /// Reads `size` bytes (1, 2, 4 or 8) of memory at `address` if a function claims it.
    pub fn read_memory(&self, address: u64, size: u8) -> Option<u64> {
        self.read_claimed(address, false, size)
    }

    /// Writes `size` bytes (1, 2, 4 or 8) of memory at `address` if a function claims it; whether one does.
    pub fn write_memory(&self, address: u64, size: u8, value: u64) -> bool {
        self.write_claimed(address, false, size, value)
    }

    /// Reads `size` bytes (1, 2 or 4) at a port if a function claims it.
    pub fn read_io(&self, port: u16, size: u8) -> Option<u32> {
        self.read_claimed(port.into(), true, size).map(|value| value as u32)
    }

    /// Writes `size` bytes (1, 2 or 4) at a port if a function claims it; whether one does.
    pub fn write_io(&self, port: u16, size: u8, value: u32) -> bool {
        self.write_claimed(port.into(), true, size, value.into())
    }

    fn read_claimed(&self, address: u64, io: bool, size: u8) -> Option<u64> {
        let find = |claim: &Claim, offset| (Arc::clone(&claim.slot), claim.bar, offset);
        let (slot, bar, offset) = self.with_claimant(address, io, find)?;
        Some(lock(&slot).read_bar(bar, offset, size))
    }

    fn write_claimed(&self, address: u64, io: bool, size: u8, value: u64) -> bool {
        let find = |claim: &Claim, offset| match &claim.doorbell {
            Some((part, doorbell)) if part.contains(&offset) => {
                doorbell(offset - part.start, value);
                None
            }
            _ => Some((Arc::clone(&claim.slot), claim.bar, offset)),
        };
        match self.with_claimant(address, io, find) {
            None => false,
            Some(None) => true,
            Some(Some((slot, bar, offset))) => {
                lock(&slot).write_bar(bar, offset, size, value);
                true
            }
        }
    }
}

/// The function and the dword that a configuration address selects, if it is on this bus.
fn selected(config_address: u32) -> Option<(Address, u16)> {
    let bus = (config_address >> 16) as u8;
    (bus == 0).then(|| (Address::from_bits((config_address >> 8) as u8), (config_address & 0xfc) as u16))
}

fn is_configuration_access(offset: u16, size: u8) -> bool {
    matches!(size, 1 | 2 | 4) && (offset & 3) + u16::from(size) <= 4
}
