//! From a device's interrupt line to the interrupt controllers.
//!
//! Each ISA interrupt leads to the PIC's input of its number and to the I/O APIC's: the timer's (0) to input 2
//! there, as the tables say. The lock order is device, PIC, I/O APIC, local APIC.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_devices::IrqLine;
use posada_devices::ioapic::Ioapic;
use posada_devices::pic::Pic;

use crate::apics::{ApicBus, Apics};
use crate::layout::TIMER_PIN;

/// The input of the PIC at which the second one is wired: no device's.
const CASCADE: u8 = 2;

/// The interrupt controllers that all processors share.
#[derive(Debug)]
pub(crate) struct Wiring {
    pic: Mutex<Pic>,
    ioapic: Mutex<Ioapic<ApicBus>>,
    pub(crate) apics: Arc<Apics>,
}

impl Wiring {
    pub(crate) fn new(apics: Arc<Apics>) -> Self {
        let ioapic = Ioapic::new(0, ApicBus(Arc::clone(&apics)));
        Self { pic: Mutex::new(Pic::new()), ioapic: Mutex::new(ioapic), apics }
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

    /// The machine's reset.
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
