//! How a device interrupts its driver: by its pin, or by a message (MSI, PCI 3.0 §6.8.1).

use std::fmt;
use std::sync::Arc;

use posada_devices::IrqLine;
use posada_devices::pci::{ConfigSpace, MessageBus};

/// Capability ID of MSI.
const CAPABILITY_MSI: u8 = 0x05;
/// Message control: a 64-bit address, and enable.
const WIDE: u16 = 1 << 7;
const ENABLE: u16 = 1;
/// Bit 10 of the command register: the interrupt pin is off.
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// The pin and the message of one function.
pub(crate) struct Interrupt {
    bus: Arc<dyn MessageBus>,
    line: Box<dyn IrqLine>,
    /// Where the capability is, if there is one.
    msi_at: Option<u16>,
    message: Option<(u64, u32)>,
    pin_disabled: bool,
    /// Whether the device has something to tell.
    level: bool,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("message", &self.message)
            .field("level", &self.level)
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    /// An interrupt by the pin alone.
    pub(crate) fn new(bus: Arc<dyn MessageBus>, line: Box<dyn IrqLine>) -> Self {
        Self { bus, line, msi_at: None, message: None, pin_disabled: false, level: false }
    }

    /// Adds the capability for one message.
    pub(crate) fn add_msi(&mut self, config: &mut ConfigSpace) {
        let mut body = [0; 12];
        body[..2].copy_from_slice(&WIDE.to_le_bytes());
        let at = config.add_capability(CAPABILITY_MSI, &body);
        config.make_writable(at + 2, &ENABLE.to_le_bytes());
        config.make_writable(at + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        self.msi_at = Some(at as u16);
    }

    /// Looks at what software has written to the configuration space.
    pub(crate) fn configure(&mut self, config: &ConfigSpace) {
        self.pin_disabled = config.command() & INTERRUPT_DISABLE != 0;
        self.message = self.msi_at.filter(|at| config.read(at + 2, 2) as u16 & ENABLE != 0).map(|at| {
            let address = u64::from(config.read(at + 8, 4)) << 32 | u64::from(config.read(at + 4, 4));
            (address, config.read(at + 12, 2))
        });
        self.drive();
    }

    /// The device has something to tell, or nothing more. With `anew`, something has been added to it: that is what a
    /// message is sent for, while the pin just stays asserted.
    pub(crate) fn set(&mut self, level: bool, anew: bool) {
        self.level = level;
        if let Some((address, data)) = self.message
            && level
            && anew
        {
            self.bus.write(address, data);
        }
        self.drive();
    }

    fn drive(&self) {
        self.line.set(self.level && self.message.is_none() && !self.pin_disabled);
    }
}
