//! The local APICs, and the way of interrupt messages to them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use posada_devices::apic::{DeliveryMode, Message};
use posada_devices::ioapic::MessageSink;
use posada_devices::lapic::{Config, Lapic};
use posada_devices::{Nanos, TscClock};
use posada_vcpu::{Attention, Clock};

use crate::layout::PHYSICAL_BITS;

/// Frequency of the local APICs' timers before their divider, in hertz.
const TIMER_HZ: u64 = 1_000_000_000;
/// The pin of a local APIC that the PIC is wired to.
const LINT0: usize = 0;
/// No address: the register page is not in memory.
const NOWHERE: u64 = u64::MAX;

/// One processor's local APIC, and how the processor is told.
#[derive(Debug)]
pub(crate) struct LocalApic {
    lapic: Mutex<Lapic>,
    /// Where its register page is, for a look without the lock.
    base: AtomicU64,
    pub(crate) attention: Arc<Attention>,
}

impl LocalApic {
    fn new(id: u32) -> Self {
        let config = Config {
            id,
            bootstrap: id == 0,
            timer_hz: TIMER_HZ,
            tsc: TscClock::new(Clock::TSC_HZ),
            physical_bits: PHYSICAL_BITS,
        };
        let lapic = Lapic::new(config);
        let base = AtomicU64::new(lapic.mmio_base().unwrap_or(NOWHERE));
        Self { lapic: Mutex::new(lapic), base, attention: Arc::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Lapic> {
        self.lapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset of a physical address in the register page, if it lies there.
    #[inline]
    pub(crate) fn offset(&self, address: u64) -> Option<u16> {
        let offset = address.wrapping_sub(self.base.load(Ordering::Relaxed));
        (offset < 0x1000).then_some(offset as u16)
    }

    /// To be called after anything that may have moved the register page.
    pub(crate) fn moved(&self, lapic: &Lapic) {
        self.base.store(lapic.mmio_base().unwrap_or(NOWHERE), Ordering::Relaxed);
    }
}

/// All local APICs, and the request line of the PIC, which is wired to each one's LINT0.
#[derive(Debug)]
pub(crate) struct Apics {
    pub(crate) cpus: Box<[LocalApic]>,
    /// The level of the PIC's output.
    pic: AtomicBool,
}

impl Apics {
    pub(crate) fn new(cpus: u32) -> Self {
        Self { cpus: (0..cpus).map(LocalApic::new).collect(), pic: AtomicBool::new(false) }
    }

    /// Hands a message to everyone it is for.
    pub(crate) fn send(&self, message: &Message) {
        tracing::trace!(target: "irq", ?message, "APIC message");
        if message.mode == DeliveryMode::LowestPriority {
            // Among equals the first, which spares the others' caches.
            let matching = self.cpus.iter().filter_map(|cpu| {
                let lapic = cpu.lock();
                lapic.matches(message.destination).then(|| (lapic.ppr(), cpu))
            });
            if let Some((_, cpu)) = matching.min_by_key(|(priority, _)| *priority) {
                cpu.lock().accept(message);
                cpu.attention.interrupt();
            }
            return;
        }
        for cpu in &self.cpus {
            let mut lapic = cpu.lock();
            if lapic.matches(message.destination) {
                lapic.accept(message);
                drop(lapic);
                cpu.attention.interrupt();
            }
        }
    }

    /// Drives the PIC's request line.
    pub(crate) fn set_pic(&self, level: bool) {
        if self.pic.swap(level, Ordering::AcqRel) == level {
            return;
        }
        for cpu in &self.cpus {
            let mut lapic = cpu.lock();
            lapic.set_lint(LINT0, level);
            if level && (lapic.accepts_pic() || lapic.pending().is_some() || lapic.has_event()) {
                cpu.attention.interrupt();
            }
        }
    }

    /// Whether a local APIC has something for its processor to take.
    pub(crate) fn has_interrupt(&self, lapic: &Lapic) -> bool {
        lapic.pending().is_some() || self.has_pic_interrupt(lapic)
    }

    /// Whether the processor is to ask the PIC for a vector.
    pub(crate) fn has_pic_interrupt(&self, lapic: &Lapic) -> bool {
        lapic.has_ext_int() || self.pic.load(Ordering::Acquire) && lapic.accepts_pic()
    }

    /// Lets all local APICs' timers act; when one is next wanted.
    pub(crate) fn tick(&self, now: Nanos) -> Option<Nanos> {
        let mut earliest = None;
        for cpu in &self.cpus {
            let mut lapic = cpu.lock();
            if lapic.next_deadline().is_some_and(|due| due <= now) {
                lapic.tick(now);
                if lapic.pending().is_some() {
                    cpu.attention.interrupt();
                }
            }
            earliest = crate::board::earlier(earliest, lapic.next_deadline());
        }
        earliest
    }

    /// The machine's reset, then what firmware leaves behind on the boot processor.
    pub(crate) fn reset(&self) {
        for (index, cpu) in self.cpus.iter().enumerate() {
            let mut lapic = cpu.lock();
            lapic.reset();
            if index == 0 {
                lapic.enter_virtual_wire_mode();
            }
            cpu.moved(&lapic);
        }
    }

    /// Makes every processor's run return.
    pub(crate) fn kick(&self) {
        for cpu in &self.cpus {
            cpu.attention.kick();
        }
    }
}

/// The I/O APIC's end of the bus between the APICs.
#[derive(Debug)]
pub(crate) struct ApicBus(pub(crate) Arc<Apics>);

impl MessageSink for ApicBus {
    fn deliver(&self, message: Message) {
        self.0.send(&message);
    }
}
