//! The configuration space of one function with a type 0 header (PCI 3.0 §6.1, §6.2).

use super::ones;
use crate::StateError;
use serde::{Deserialize, Serialize};

/// Size of a conventional function's configuration space in bytes.
const CONVENTIONAL: usize = 0x100;
/// Size of a PCI Express function's configuration space in bytes.
const EXTENDED: usize = 0x1000;
/// Where capabilities begin: after the header.
const FIRST_CAPABILITY: usize = 0x40;
/// Number of base address registers in a type 0 header.
const BARS: usize = 6;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR_0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
/// I/O space, memory space, bus master, parity error response, SERR#, interrupt disable.
const COMMAND_MASK: u16 = 0x0547;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const HEADER_MULTI_FUNCTION: u8 = 0x80;

/// Who a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
}

/// What a base address register claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; the next register holds the address's high half.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The low bits of the register.
    fn flags(self) -> u32 {
        let prefetchable = |yes: bool| if yes { 8 } else { 0 };
        match self {
            Self::Io => 1,
            Self::Memory32 { prefetchable: yes } => prefetchable(yes),
            Self::Memory64 { prefetchable: yes } => prefetchable(yes) | 4,
        }
    }

    pub(super) fn is_io(self) -> bool {
        self == Self::Io
    }
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// What it claims.
    pub kind: BarKind,
    /// How many bytes: a power of two, from 4 (ports) or 16 (memory) up.
    pub size: u64,
}

/// The saved contents of a configuration space; its layout belongs to the function that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    /// All bytes: 256, or 4096 of a PCI Express function.
    pub bytes: Vec<u8>,
}

/// A configuration space: bytes, and which of their bits software may write or clear.
///
/// ```
/// use posada_devices::pci::{Bar, BarKind, ConfigSpace, Identity};
///
/// let mut config = ConfigSpace::new(Identity {
///     vendor: 0x1af4, device: 0x1042, class: [0x01, 0x80, 0x00], revision: 1, subsystem: (0x1af4, 0x1100),
/// });
/// config.add_bar(0, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x4000 });
/// config.write(0x10, 4, 0xffff_ffff);
/// assert_eq!(config.read(0x10, 4), 0xffff_c000); // the size, as PCI tells it
/// ```
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits that software writes.
    writable: Vec<u8>,
    /// Bits that software clears by writing 1.
    clearable: Vec<u8>,
    /// What the bytes are after a reset.
    initial: Vec<u8>,
    bars: [Option<Bar>; BARS],
    /// Where the next capability goes.
    next_capability: usize,
    /// Offset of the pointer that the next capability's offset goes into.
    link: usize,
}

impl ConfigSpace {
    /// The 256 bytes of a conventional function.
    pub fn new(identity: Identity) -> Self {
        Self::with_size(identity, CONVENTIONAL)
    }

    /// The 4096 bytes of a PCI Express function. What makes it one is its PCI Express capability, which the
    /// caller adds.
    pub fn new_express(identity: Identity) -> Self {
        Self::with_size(identity, EXTENDED)
    }

    fn with_size(identity: Identity, size: usize) -> Self {
        let mut config = Self {
            bytes: vec![0; size],
            writable: vec![0; size],
            clearable: vec![0; size],
            initial: vec![0; size],
            bars: [None; BARS],
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        let [base, sub, interface] = identity.class;
        config.set(0x00, &identity.vendor.to_le_bytes());
        config.set(0x02, &identity.device.to_le_bytes());
        config.set(0x08, &[identity.revision, interface, sub, base]);
        config.set(0x2c, &identity.subsystem.0.to_le_bytes());
        config.set(0x2e, &identity.subsystem.1.to_le_bytes());
        config.make_writable(COMMAND, &COMMAND_MASK.to_le_bytes());
        // The error bits of the status register: never set here, and cleared by writing.
        config.clearable[STATUS + 1] = 0xf9;
        // Cache line size, latency timer and interrupt line are software's notes.
        config.make_writable(0x0c, &[0xff, 0xff]);
        config.make_writable(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Sets bytes as they are now and after a reset.
    ///
    /// # Panics
    /// If they lie beyond the configuration space.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.initial[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets software write the bits that are set in `mask`.
    ///
    /// # Panics
    /// If they lie beyond the configuration space.
    pub fn make_writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..][..mask.len()].copy_from_slice(mask);
    }

    /// Changes bytes as the device does, past what software may write; a reset undoes it.
    ///
    /// # Panics
    /// If they lie beyond the configuration space.
    pub fn update(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Says that the device has more functions than number 0.
    pub fn set_multi_function(&mut self) {
        self.set(HEADER_TYPE, &[HEADER_MULTI_FUNCTION]);
    }

    /// Says which interrupt pin the function uses: 1 is INTA#.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.set(INTERRUPT_PIN, &[pin]);
    }

    /// Adds base address register `index` (0 to 5; a 64-bit one takes two).
    ///
    /// # Panics
    /// If the register is taken or does not exist, or the size is no power of two or too small or too large for
    /// the kind: a mistake of the device's author.
    pub fn add_bar(&mut self, index: usize, bar: Bar) {
        let wide = matches!(bar.kind, BarKind::Memory64 { .. });
        assert!(
            index + usize::from(wide) < BARS && self.bar_at(index).is_none(),
            "BAR {index} is taken or absent"
        );
        let least = if bar.kind.is_io() { 4 } else { 16 };
        let fits = wide || bar.size <= 1 << 31;
        assert!(bar.size.is_power_of_two() && bar.size >= least && fits, "a BAR of {} bytes", bar.size);
        let at = BAR_0 + 4 * index;
        self.set(at, &bar.kind.flags().to_le_bytes());
        let mask = !(bar.size - 1);
        self.make_writable(at, &(mask as u32).to_le_bytes());
        if wide {
            self.make_writable(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        self.bars[index] = Some(bar);
    }

    /// The base address register that register `index` is, or is the high half of.
    fn bar_at(&self, index: usize) -> Option<Bar> {
        let below = index.checked_sub(1).and_then(|index| self.bars[index]);
        let high_half = below.filter(|bar| matches!(bar.kind, BarKind::Memory64 { .. }));
        self.bars.get(index).copied().flatten().or(high_half)
    }

    /// Appends a capability with this ID whose bytes after ID and pointer are `body`, and returns its offset.
    /// Which of its bits are writable, [`make_writable`](Self::make_writable) says.
    ///
    /// # Panics
    /// If there is no room left below 0x100: a mistake of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= CONVENTIONAL, "no room for capability {id:#x}");
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.set(self.link, &[at as u8]);
        let status =
            u16::from_le_bytes([self.initial[STATUS], self.initial[STATUS + 1]]) | STATUS_CAPABILITIES;
        self.set(STATUS, &status.to_le_bytes());
        self.link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        at
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// The address that base address register `index` claims, if there is one and its kind of access is enabled
    /// in the command register. An address that was never programmed (0) claims nothing.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = (*self.bars.get(index)?)?;
        let enable = if bar.kind.is_io() { COMMAND_IO } else { COMMAND_MEMORY };
        if self.command() & enable == 0 {
            return None;
        }
        let low = u64::from(self.read(BAR_0 as u16 + 4 * index as u16, 4)) & !(bar.size - 1);
        let address = match bar.kind {
            BarKind::Memory64 { .. } => {
                low | u64::from(self.read(BAR_0 as u16 + 4 * index as u16 + 4, 4)) << 32
            }
            BarKind::Memory32 { .. } => low,
            BarKind::Io => low & 0xffff,
        };
        (address != 0).then_some(address)
    }

    /// The base address registers that there are, by index.
    pub(super) fn bars(&self) -> impl Iterator<Item = (usize, Bar)> + '_ {
        self.bars.iter().enumerate().filter_map(|(index, bar)| Some((index, (*bar)?)))
    }

    /// Programs each base address register with the place that `place` has for it, and enables the kinds of access for
    /// which there is one.
    pub(super) fn assign_bars(&mut self, mut place: impl FnMut(Bar) -> Option<u64>) {
        let mut command = self.command();
        for index in 0..BARS {
            let Some((bar, start)) = self.bars[index].and_then(|bar| Some((bar, place(bar)?))) else {
                continue;
            };
            let register = (BAR_0 + 4 * index) as u16;
            self.write(register, 4, start as u32);
            if matches!(bar.kind, BarKind::Memory64 { .. }) {
                self.write(register + 4, 4, (start >> 32) as u32);
            }
            command |= if bar.kind.is_io() { COMMAND_IO } else { COMMAND_MEMORY };
        }
        self.write(COMMAND as u16, 2, command.into());
    }

    /// Reads `size` bytes (1, 2 or 4). What lies beyond the configuration space reads as all ones.
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let size = size.clamp(1, 4);
        match self.bytes.get(usize::from(offset)..usize::from(offset) + usize::from(size)) {
            Some(bytes) => bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)),
            None => ones(size),
        }
    }

    /// Writes `size` bytes (1, 2 or 4), as far as their bits are writable.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) {
        for (at, written) in (usize::from(offset)..).zip(value.to_le_bytes()).take(usize::from(size)) {
            let Some(byte) = self.bytes.get_mut(at) else { return };
            let writable = self.writable[at];
            *byte = *byte & !writable | written & writable;
            *byte &= !(written & self.clearable[at]);
        }
    }

    /// Every byte as after power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial);
    }

    /// The saved contents.
    pub fn state(&self) -> ConfigSpaceState {
        ConfigSpaceState { bytes: self.bytes.clone() }
    }

    /// Puts saved contents into a configuration space of the same layout. Bits that software cannot have written
    /// and the device did not say it changes keep what the layout says.
    pub fn restore(&mut self, state: &ConfigSpaceState) -> Result<(), StateError> {
        if state.bytes.len() != self.bytes.len() {
            let found = format!("{} bytes in place of {}", state.bytes.len(), self.bytes.len());
            return Err(StateError::new("PCI configuration space", found));
        }
        if state.bytes[..4] != self.bytes[..4] {
            let found = format!("vendor and device {:02x?}", &state.bytes[..4]);
            return Err(StateError::new("PCI configuration space", found));
        }
        self.bytes.copy_from_slice(&state.bytes);
        Ok(())
    }
}
