//! The devices of a PC, each on its own: no bus, no board, no engine.
//!
//! A device is told of reads and writes at its registers' offsets, is given the guest's time with each call that
//! depends on it, and drives an [`IrqLine`]. The board (`posada-pc`) decides where registers appear and where
//! lines lead. So a device is tested like any plain value, and every answer is exact and repeatable.
//!
//! | module | device | follows |
//! |---|---|---|
//! | [`serial`] | 16550A serial port (`vm-superio` within) | TI PC16550D data sheet |
//! | [`pic`] | two cascaded 8259A interrupt controllers, ELCR | Intel 8259A data sheet (231468) |
//! | [`pit`] | 8254 interval timer, port 0x61 | Intel 8254 data sheet (231164) |
//! | [`cmos`] | MC146818 clock and CMOS memory | Motorola MC146818A data sheet |
//! | [`lapic`] | local APIC: xAPIC, x2APIC, its timer | Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller" |
//! | [`ioapic`] | I/O APIC | Intel 82093AA data sheet (290566), ICH9 for the EOI register |
//! | [`i8042`] | keyboard controller, PS/2 keyboard and mouse, port 0x92 | IBM PS/2 Technical Reference, 8042 chapter |
//! | [`acpi_pm`] | ACPI fixed hardware: power management timer, events, sleep, reset | ACPI 6.4 §4.8 |
//! | [`pci`] | host bridge, configuration space by port and by ECAM, MSI-X | PCI 3.0 §3.2.2.3, §6; PCI Express 3.0 §7.2 |
//! | [`debug_exit`] | port by which a test guest gives its exit status | – |
//!
//! # Common rules
//! - Time is [`Nanos`] of guest clock. A device that must act by itself has `next_deadline()` (the guest time at
//!   which it next wants attention, if any) and `tick(now)`. Deadlines are counted from the moment the guest
//!   programmed, so a late `tick` delays one interrupt and never the ones after; ticks that a late host missed
//!   become one.
//! - Any offset, size and value is harmless. What a register does not hold reads as the hardware would have it:
//!   all ones for an absent device, zero for reserved bits.
//! - Every device has `state()` and `from_state()`: its state is a plain `serde` structure. Restoring does not
//!   drive interrupt lines, because the interrupt controllers' states have their levels already.
//! - `reset()` is the machine's reset line: the state after power-on, except what a battery keeps.
//!
//! ```
//! use posada_devices::pit::{self, Pit};
//! use posada_devices::pic::Pic;
//! use std::sync::{Arc, Mutex};
//!
//! // The wiring that a board does: the timer's output to interrupt request 0.
//! let pic = Arc::new(Mutex::new(Pic::new()));
//! let irq0 = Arc::clone(&pic);
//! let mut pit = Pit::new(move |level| irq0.lock().unwrap().set_irq(0, level));
//!
//! // A guest sets the vector base 0x20 and starts channel 0 at about 100 Hz.
//! for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
//!     pic.lock().unwrap().write(port, value);
//! }
//! pit.write(pit::CONTROL, 0x34, 0);
//! pit.write(pit::CHANNEL_0, 0x9c, 0);
//! pit.write(pit::CHANNEL_0, 0x2e, 0);
//!
//! let due = pit.next_deadline().unwrap();
//! assert!((9_990_000..10_010_000).contains(&due));
//! pit.tick(due);
//! assert_eq!(pic.lock().unwrap().acknowledge(), 0x20);
//! ```

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod apic;
pub mod clock;
pub mod cmos;
pub mod debug_exit;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
mod line;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod serial;

pub use clock::{Nanos, TscClock};
pub use line::{IrqLine, Unconnected};

/// A saved state that no device can have been in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot restore the {device}: {found}; the saved state is damaged or from another version")]
pub struct StateError {
    /// The device that was being restored.
    pub device: &'static str,
    /// What was found in the state.
    pub found: String,
}

impl StateError {
    /// What was found in the state of which device.
    pub fn new(device: &'static str, found: impl Into<String>) -> Self {
        Self { device, found: found.into() }
    }
}
