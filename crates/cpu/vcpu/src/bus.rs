//! What an engine asks of the board while a guest runs.

/// Ports and memory-mapped registers. Every access by a guest that is not RAM comes here.
///
/// `data` holds 1, 2, 4 or 8 bytes (ports: 1, 2 or 4), little-endian. An access that no device claims reads as
/// all ones, and is lost when written: the defaults.
pub trait Bus: Send + Sync {
    /// `in`: reads `data.len()` bytes from `port`.
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let _ = port;
        data.fill(0xff);
    }

    /// `out`: writes `data` to `port`.
    fn port_write(&self, port: u16, data: &[u8]) {
        let _ = (port, data);
    }

    /// A load from guest physical `address`, where there is no RAM.
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let _ = address;
        data.fill(0xff);
    }

    /// A store to guest physical `address`, where there is no RAM.
    fn mmio_write(&self, address: u64, data: &[u8]) {
        let _ = (address, data);
    }
}

/// Something other than a maskable interrupt that arrives at a virtual CPU from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The non-maskable interrupt.
    Nmi,
    /// INIT: back to the reset state, waiting for a start-up message unless this is the boot processor.
    Init,
    /// Start-up: begin in real mode at `vector << 12`, if waiting for it.
    StartUp(u8),
}

/// The guest touched a model-specific register in a way that hardware answers with `#GP(0)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrError;

/// What the board's interrupt controllers have for one virtual CPU: its local APIC, and the PIC behind it.
pub trait Interrupts: Send + Sync {
    /// Whether a maskable interrupt is ready for delivery, without taking it.
    fn pending(&self) -> bool;

    /// Takes the interrupt to deliver now and returns its vector: the interrupt-acknowledge cycle.
    fn acknowledge(&self) -> Option<u8>;

    /// Takes the oldest event that has arrived.
    fn take_event(&self) -> Option<Event> {
        None
    }

    /// Reads `cr8`: bits 7:4 of the task priority.
    fn cr8(&self) -> u8 {
        0
    }

    /// Writes `cr8`, 0 to 15.
    fn set_cr8(&self, priority: u8) {
        let _ = priority;
    }

    /// Reads a model-specific register that belongs to the local APIC (`IA32_APIC_BASE` 0x1b,
    /// `IA32_TSC_DEADLINE` 0x6e0, x2APIC 0x800 to 0x8ff).
    ///
    /// The board knows of no offset that the guest has given its time-stamp counter: deadlines other than 0 count
    /// as [`Clock::tsc`](crate::Clock::tsc) does, and the engine adds and takes off the offset.
    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        let _ = msr;
        Err(MsrError)
    }

    /// Writes one of those registers.
    fn write_msr(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        let _ = (msr, value);
        Err(MsrError)
    }
}

/// A virtual CPU to which nothing is wired.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInterrupts;

impl Interrupts for NoInterrupts {
    fn pending(&self) -> bool {
        false
    }

    fn acknowledge(&self) -> Option<u8> {
        None
    }
}
