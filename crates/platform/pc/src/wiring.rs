//! From a device's interrupt line to the interrupt controllers.
//!
//! Each ISA interrupt leads to the PIC's input of its number and to the I/O APIC's: the timer's (0) to input 2
//! there, as the tables say. The interrupt pins of PCI devices share the inputs of the I/O APIC from 16 on. Messages
//! of PCI devices go straight to the local APICs. The lock order is device, PIC, I/O APIC, local APIC.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_devices::IrqLine;
use posada_devices::apic::Message;
use posada_devices::ioapic::Ioapic;
use posada_devices::pci::MessageBus;
use posada_devices::pic::Pic;

use crate::apics::{ApicBus, Apics};
use crate::layout::{TIMER_PIN, pci_input};

/// The input of the PIC at which the second one is wired: no device's.
const CASCADE: u8 = 2;

/// The interrupt controllers that all processors share.
#[derive(Debug)]
pub(crate) struct Wiring {
    pic: Mutex<Pic>,
    ioapic: Mutex<Ioapic<ApicBus>>,
    /// Which PCI devices assert their pin, one bit each.
    pci: Mutex<u32>,
    pub(crate) apics: Arc<Apics>,
}

impl Wiring {
    pub(crate) fn new(apics: Arc<Apics>) -> Self {
        let ioapic = Ioapic::new(0, ApicBus(Arc::clone(&apics)));
        Self { pic: Mutex::new(Pic::new()), ioapic: Mutex::new(ioapic), pci: Mutex::new(0), apics }
    }

    pub(crate) fn ioapic(&self) -> MutexGuard<'_, Ioapic<ApicBus>> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the PIC, and tells the processors if its request line changes.
    pub(crate) fn with_pic<T>(&self, act: impl FnOnce(&mut Pic) -> T) -> T {
        let mut pic = self.pic.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut pic);
        self.apics.set_pic(pic.has_interrupt());
        result
    }

    /// Drives ISA interrupt `irq`.
    pub(crate) fn set_irq(&self, irq: u8, level: bool) {
        tracing::trace!(target: "irq", irq, level, "line");
        if irq != CASCADE {
            self.with_pic(|pic| pic.set_irq(irq, level));
        }
        let pin = if irq == 0 { TIMER_PIN } else { irq };
        self.ioapic().set_irq(pin, level);
    }

    /// Drives INTA# of a PCI device.
    fn set_pci(&self, device: u8, level: bool) {
        let mut asserted = self.pci.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *asserted;
        *asserted = before & !(1 << device) | u32::from(level) << device;
        if *asserted != before {
            tracing::trace!(target: "irq", device, level, "PCI pin");
            let input = pci_input(device);
            let shared =
                (0..32).filter(|other| pci_input(*other) == input).fold(0, |mask, other| mask | 1 << other);
            self.ioapic().set_irq(input, *asserted & shared != 0);
        }
    }

    /// The machine's reset. Devices have released their lines before.
    pub(crate) fn reset(&self) {
        self.with_pic(Pic::reset);
        self.ioapic().reset();
        self.apics.reset();
    }
}

/// A device's interrupt line.
#[derive(Clone, Debug)]
pub(crate) struct IsaLine {
    pub(crate) wiring: Arc<Wiring>,
    pub(crate) irq: u8,
}

impl IrqLine for IsaLine {
    fn set(&self, level: bool) {
        self.wiring.set_irq(self.irq, level);
    }
}

/// INTA# of a PCI device.
#[derive(Clone, Debug)]
pub(crate) struct PciPin {
    pub(crate) wiring: Arc<Wiring>,
    pub(crate) device: u8,
}

impl IrqLine for PciPin {
    fn set(&self, level: bool) {
        self.wiring.set_pci(self.device, level);
    }
}

/// The way of message-signalled interrupts: writes to the local APICs' page of addresses (Intel SDM volume 3, section
/// "Message Signalled Interrupts"). What a guest has a device write elsewhere goes nowhere.
impl MessageBus for Wiring {
    fn write(&self, address: u64, data: u32) {
        if address >> 20 == 0xfee
            && let Some(message) = Message::from_msi(address, data)
        {
            self.apics.send(&message);
        }
    }
}
