//! The I/O APIC: 24 interrupt inputs and the table that says where each goes.
//!
//! Facts: Intel 82093AA data sheet (290566); version 0x20 with its EOI register as in the ICH9 data sheet.
//! Messages go to a [`MessageSink`], in the real machine the bus to the local APICs.

use crate::StateError;
use crate::apic::{DeliveryMode, Destination, Message, TriggerMode};
use serde::{Deserialize, Serialize};

/// Number of interrupt inputs.
pub const PINS: u8 = 24;
/// Usual physical address of the first I/O APIC's registers.
pub const DEFAULT_BASE: u64 = 0xfec0_0000;
/// Size of the register window in bytes.
pub const MMIO_LEN: u64 = 0x1000;

/// Offset of the register that selects one of the table's.
const IOREGSEL: u16 = 0x00;
/// Offset of the window on the selected register.
const IOWIN: u16 = 0x10;
/// Offset of the end-of-interrupt register.
const EOI: u16 = 0x40;

/// Version 0x20, and the index of the last redirection entry.
const VERSION: u32 = (PINS as u32 - 1) << 16 | 0x20;

const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are read-only; bits 17 to 55 do not exist.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

/// Where interrupt messages go.
pub trait MessageSink: Send {
    /// Hands the message to the local APICs.
    fn deliver(&self, message: Message);
}

impl<F: Fn(Message) + Send> MessageSink for F {
    fn deliver(&self, message: Message) {
        self(message);
    }
}

/// The saved state of an I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    id: u8,
    select: u8,
    /// The redirection table.
    table: [u64; PINS as usize],
    /// Levels of the input lines, a bit each.
    lines: u32,
}

/// An I/O APIC.
///
/// ```
/// use posada_devices::ioapic::Ioapic;
/// use std::sync::mpsc;
///
/// let (messages, bus) = mpsc::channel();
/// let mut ioapic = Ioapic::new(0, move |message| messages.send(message).unwrap());
/// ioapic.write(0x00, 0x10 + 2 * 4); // low half of entry 4
/// ioapic.write(0x10, 0x31); // vector 0x31, fixed, edge, physical destination 0, not masked
/// ioapic.set_irq(4, true);
/// assert_eq!(bus.try_recv().unwrap().vector, 0x31);
/// ```
#[derive(Debug)]
pub struct Ioapic<S> {
    regs: IoapicState,
    sink: S,
}

impl<S: MessageSink> Ioapic<S> {
    /// An I/O APIC as after power-on: every entry masked.
    pub fn new(id: u8, sink: S) -> Self {
        let regs = IoapicState { id, select: 0, table: [ENTRY_MASKED; PINS as usize], lines: 0 };
        Self { regs, sink }
    }

    /// The saved state.
    pub fn state(&self) -> IoapicState {
        self.regs.clone()
    }

    /// An I/O APIC in a saved state. Nothing is sent: what was sent is in the local APICs' states.
    pub fn from_state(state: IoapicState, sink: S) -> Result<Self, StateError> {
        let known = ENTRY_WRITABLE | ENTRY_REMOTE_IRR;
        if let Some(pin) = state.table.iter().position(|entry| entry & !known != 0) {
            return Err(StateError::new(
                "I/O APIC",
                format!("redirection entry {pin} is {:#x}", state.table[pin]),
            ));
        }
        Ok(Self { regs: state, sink })
    }

    /// The machine's reset: as after power-on, with the lines as they are.
    pub fn reset(&mut self) {
        self.regs.select = 0;
        self.regs.table = [ENTRY_MASKED; PINS as usize];
    }

    /// Drives input `pin` (0 to 23; others do not exist: ignored). `true` is asserted, whatever the polarity
    /// bit, which describes the wire to real hardware.
    pub fn set_irq(&mut self, pin: u8, level: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let rose = level && self.regs.lines & bit == 0;
        self.regs.lines = if level { self.regs.lines | bit } else { self.regs.lines & !bit };
        let entry = self.regs.table[usize::from(pin)];
        if entry & ENTRY_LEVEL != 0 {
            self.serve_level(pin);
        } else if rose && entry & ENTRY_MASKED == 0 {
            // An edge on a masked input is lost.
            self.send(pin);
        }
    }

    /// Sends a level-triggered input's interrupt if it is asserted, not masked and not yet in service.
    fn serve_level(&mut self, pin: u8) {
        let entry = &mut self.regs.table[usize::from(pin)];
        let asserted = self.regs.lines >> pin & 1 != 0;
        if asserted && *entry & (ENTRY_LEVEL | ENTRY_MASKED | ENTRY_REMOTE_IRR) == ENTRY_LEVEL {
            *entry |= ENTRY_REMOTE_IRR;
            self.send(pin);
        }
    }

    fn send(&self, pin: u8) {
        let entry = self.regs.table[usize::from(pin)];
        // The reserved encoding and start-up, which an I/O APIC cannot send, go nowhere.
        let mode = match DeliveryMode::from_bits((entry >> 8) as u8) {
            None | Some(DeliveryMode::StartUp) => return,
            Some(mode) => mode,
        };
        let level = entry & ENTRY_LEVEL != 0;
        self.sink.deliver(Message {
            destination: Destination::from_byte((entry >> 56) as u8, entry & ENTRY_LOGICAL != 0),
            mode,
            vector: entry as u8,
            trigger: if level { TriggerMode::Level } else { TriggerMode::Edge },
            assert: true,
        });
    }

    /// A local APIC announces the end of a level-triggered interrupt, or software wrote the EOI register.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.regs.table[usize::from(pin)];
            if *entry & ENTRY_REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !ENTRY_REMOTE_IRR;
                self.serve_level(pin);
            }
        }
    }

    /// Reads the 32-bit register at `offset` in the window.
    pub fn read(&self, offset: u16) -> u32 {
        match offset {
            IOREGSEL => self.regs.select.into(),
            IOWIN => self.read_selected(),
            _ => 0,
        }
    }

    fn read_selected(&self) -> u32 {
        match self.regs.select {
            // Identification and arbitration.
            0 | 2 => u32::from(self.regs.id) << 24,
            1 => VERSION,
            select => match self.entry_index(select) {
                Some(pin) if select & 1 == 0 => self.regs.table[pin] as u32,
                Some(pin) => (self.regs.table[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    /// Writes the 32-bit register at `offset` in the window.
    pub fn write(&mut self, offset: u16, value: u32) {
        match offset {
            IOREGSEL => self.regs.select = value as u8,
            IOWIN => self.write_selected(value),
            EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn write_selected(&mut self, value: u32) {
        let select = self.regs.select;
        if select == 0 {
            self.regs.id = (value >> 24) as u8 & 0x0f;
        }
        let Some(pin) = self.entry_index(select) else { return };
        let old = self.regs.table[pin];
        let written = if select & 1 == 0 {
            old & !0xffff_ffff | u64::from(value)
        } else {
            old & 0xffff_ffff | u64::from(value) << 32
        };
        let mut entry = written & ENTRY_WRITABLE;
        // An entry that is made edge-triggered loses its remote IRR: so kernels clear a stuck one.
        if entry & ENTRY_LEVEL != 0 {
            entry |= old & ENTRY_REMOTE_IRR;
        }
        self.regs.table[pin] = entry;
        self.serve_level(pin as u8);
    }

    fn entry_index(&self, select: u8) -> Option<usize> {
        let pin = usize::from(select.checked_sub(0x10)? >> 1);
        (pin < self.regs.table.len()).then_some(pin)
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
