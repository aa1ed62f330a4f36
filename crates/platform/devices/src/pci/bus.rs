//! Bus 0: the functions on it and how accesses find them.

use super::{CONFIG_ADDRESS, PciFunction, ones};
use crate::StateError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

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

/// Bus 0 and the registers by which the processor reaches it.
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
    state: PciBusState,
    functions: BTreeMap<Address, Box<dyn PciFunction>>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus")
            .field("state", &self.state)
            .field("functions", &self.functions.keys())
            .finish()
    }
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
        let before = self.functions.insert(address, function);
        assert!(before.is_none(), "{address} is taken");
        let several = self
            .functions
            .range(Address::new(address.device, 1)..=Address::new(address.device, 7))
            .next()
            .is_some();
        if several && let Some(first) = self.functions.get_mut(&Address::new(address.device, 0)) {
            first.config_mut().set_multi_function();
        }
    }

    /// The function at `address`.
    pub fn function(&mut self, address: Address) -> Option<&mut Box<dyn PciFunction>> {
        self.functions.get_mut(&address)
    }

    /// The saved state.
    pub fn state(&self) -> PciBusState {
        self.state
    }

    /// Puts a saved state in force.
    pub fn restore(&mut self, state: PciBusState) -> Result<(), StateError> {
        self.state = state;
        Ok(())
    }

    /// The machine's reset, of the bus and of every function.
    pub fn reset(&mut self) {
        self.state = PciBusState::default();
        for function in self.functions.values_mut() {
            function.reset();
        }
    }

    // Configuration by ports.

    /// Reads `size` bytes (1, 2 or 4) at a port from 0xcf8 to 0xcff.
    pub fn read_port(&mut self, port: u16, size: u8) -> u32 {
        match port.wrapping_sub(CONFIG_ADDRESS) {
            // The address register is there for whole dwords only.
            0 if size == 4 => self.state.config_address,
            lane @ 4..=7 if self.state.config_address & ENABLE != 0 => {
                let Some((address, register)) = self.selected() else { return ones(size) };
                self.read_config(address, register | (lane & 3), size)
            }
            _ => ones(size),
        }
    }

    /// Writes `size` bytes (1, 2 or 4) at a port from 0xcf8 to 0xcff.
    pub fn write_port(&mut self, port: u16, size: u8, value: u32) {
        match port.wrapping_sub(CONFIG_ADDRESS) {
            // Bits 30 to 24 and the lowest two are reserved.
            0 if size == 4 => self.state.config_address = value & 0x80ff_fffc,
            lane @ 4..=7 if self.state.config_address & ENABLE != 0 => {
                if let Some((address, register)) = self.selected() {
                    self.write_config(address, register | (lane & 3), size, value);
                }
            }
            _ => {}
        }
    }

    /// The function and the dword that the address register selects, if it is on this bus.
    fn selected(&self) -> Option<(Address, u16)> {
        let address = self.state.config_address;
        let bus = (address >> 16) as u8;
        (bus == 0).then(|| (Address::from_bits((address >> 8) as u8), (address & 0xfc) as u16))
    }

    // Configuration by memory.

    /// Reads `size` bytes (1, 2 or 4) at `offset` in the ECAM window.
    pub fn read_ecam(&mut self, offset: u64, size: u8) -> u32 {
        match offset >> 20 {
            0 => self.read_config(Address::from_bits((offset >> 12) as u8), offset as u16 & 0xfff, size),
            _ => ones(size),
        }
    }

    /// Writes `size` bytes (1, 2 or 4) at `offset` in the ECAM window.
    pub fn write_ecam(&mut self, offset: u64, size: u8, value: u32) {
        if offset >> 20 == 0 {
            self.write_config(Address::from_bits((offset >> 12) as u8), offset as u16 & 0xfff, size, value);
        }
    }

    // A configuration access is one of 1, 2 or 4 bytes within a dword; what is not goes nowhere.

    fn read_config(&mut self, address: Address, offset: u16, size: u8) -> u32 {
        match self.functions.get_mut(&address) {
            Some(function) if is_configuration_access(offset, size) => {
                function.read_config(offset, size) & ones(size)
            }
            _ => ones(size),
        }
    }

    fn write_config(&mut self, address: Address, offset: u16, size: u8, value: u32) {
        if let Some(function) = self.functions.get_mut(&address)
            && is_configuration_access(offset, size)
        {
            function.write_config(offset, size, value & ones(size));
        }
    }

    // What the functions claim.

    /// Reads `size` bytes (1, 2, 4 or 8) of memory at `address` if a function claims it.
    pub fn read_memory(&mut self, address: u64, size: u8) -> Option<u64> {
        let (function, bar, offset) = self.claimant(address, false)?;
        Some(function.read_bar(bar, offset, size))
    }

    /// Writes `size` bytes (1, 2, 4 or 8) of memory at `address` if a function claims it; whether one does.
    pub fn write_memory(&mut self, address: u64, size: u8, value: u64) -> bool {
        let claimant = self.claimant(address, false);
        let claimed = claimant.is_some();
        if let Some((function, bar, offset)) = claimant {
            function.write_bar(bar, offset, size, value);
        }
        claimed
    }

    /// Reads `size` bytes (1, 2 or 4) at a port if a function claims it.
    pub fn read_io(&mut self, port: u16, size: u8) -> Option<u32> {
        let (function, bar, offset) = self.claimant(port.into(), true)?;
        Some(function.read_bar(bar, offset, size) as u32)
    }

    /// Writes `size` bytes (1, 2 or 4) at a port if a function claims it; whether one does.
    pub fn write_io(&mut self, port: u16, size: u8, value: u32) -> bool {
        let claimant = self.claimant(port.into(), true);
        let claimed = claimant.is_some();
        if let Some((function, bar, offset)) = claimant {
            function.write_bar(bar, offset, size, value.into());
        }
        claimed
    }

    fn claimant(&mut self, address: u64, io: bool) -> Option<(&mut Box<dyn PciFunction>, usize, u64)> {
        self.functions.values_mut().find_map(|function| {
            let (bar, offset) = function.config().find(address, io)?;
            Some((function, bar, offset))
        })
    }
}

fn is_configuration_access(offset: u16, size: u8) -> bool {
    matches!(size, 1 | 2 | 4) && (offset & 3) + u16::from(size) <= 4
}
