//! How a device interrupts its driver: by messages, or by its pin.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_devices::IrqLine;
use posada_devices::pci::{MessageBus, Msix};

/// No vector (virtio 1.2 §4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// The device has met an error that only a reset helps (virtio 1.2 §2.1).
pub(crate) const NEEDS_RESET: u8 = 0x40;

/// Bits of the interrupt status register (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// The pin: where it leads, and whether software has switched it off.
struct Pin {
    line: Box<dyn IrqLine>,
    disabled: bool,
}

/// What the threads of a device and its transport share of its interrupts.
pub(crate) struct Interrupt {
    msix: Mutex<Msix>,
    pin: Mutex<Pin>,
    isr: AtomicU8,
    /// The device status register, of which the device itself sets one bit.
    pub(crate) status: AtomicU8,
    pub(crate) generation: AtomicU8,
    pub(crate) configuration_vector: AtomicU16,
    pub(crate) queue_vectors: Box<[AtomicU16]>,
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("isr", &self.isr)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Interrupt {
    /// With a vector for each queue and one for the configuration.
    pub(crate) fn new(queues: usize, bus: Arc<dyn MessageBus>, line: Box<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self {
            msix: Mutex::new(Msix::new(queues as u16 + 1, bus)),
            pin: Mutex::new(Pin { line, disabled: false }),
            isr: AtomicU8::new(0),
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            configuration_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    pub(crate) fn msix(&self) -> MutexGuard<'_, Msix> {
        self.msix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self) -> MutexGuard<'_, Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, vector: u16, isr: u8) {
        let mut msix = self.msix();
        if msix.is_enabled() {
            return msix.trigger(vector);
        }
        drop(msix);
        let pin = self.pin();
        self.isr.fetch_or(isr, Ordering::AcqRel);
        if !pin.disabled {
            pin.line.set(true);
        }
    }

    /// Requests of a queue have been given back.
    pub(crate) fn queue(&self, index: usize) {
        let vector = self.queue_vectors.get(index).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire));
        self.raise(vector, ISR_QUEUE);
    }

    /// The configuration has changed.
    pub(crate) fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(self.configuration_vector.load(Ordering::Acquire), ISR_CONFIGURATION);
    }

    /// The device waits for a reset.
    pub(crate) fn needs_reset(&self) {
        /// The driver drives the device, and so wants to hear of this.
        const DRIVER_OK: u8 = 4;
        if self.status.fetch_or(NEEDS_RESET, Ordering::AcqRel) & DRIVER_OK != 0 {
            self.configuration_changed();
        }
    }

    /// Reads the interrupt status register, which clears it and releases the pin.
    pub(crate) fn take_isr(&self) -> u8 {
        let pin = self.pin();
        let isr = self.isr.swap(0, Ordering::AcqRel);
        pin.line.set(false);
        isr
    }

    pub(crate) fn isr(&self) -> u8 {
        self.isr.load(Ordering::Acquire)
    }

    pub(crate) fn set_isr(&self, isr: u8) {
        self.isr.store(isr, Ordering::Release);
    }

    /// Bit 10 of the command register has been written, or MSI-X has been switched.
    pub(crate) fn set_pin_disabled(&self, disabled: bool) {
        let msix = self.msix().is_enabled();
        let mut pin = self.pin();
        pin.disabled = disabled;
        pin.line.set(!disabled && !msix && self.isr() != 0);
    }

    /// The device's reset.
    pub(crate) fn reset(&self) {
        self.take_isr();
        self.configuration_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
    }
}
