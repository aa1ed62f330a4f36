//! The transport: one PCI function for one device (virtio 1.2 §4.1).

mod common;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use posada_devices::pci::{
    Bar, BarKind, CAPABILITY_MSIX, CAPABILITY_VENDOR, ConfigSpace, ConfigSpaceState, Doorbell, Identity,
    MessageBus, Msix, MsixState, PciFunction,
};
use posada_devices::{IrqLine, StateError};
use posada_memory::GuestRam;
use posada_worker::Worker;
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use crate::interrupt::Interrupt;
use crate::rings::Rings;
use crate::{Device, feature};
use common::Common;
use common::CommonState;

const VENDOR: u16 = 0x1af4;
/// Device IDs begin here (§4.1.2.1).
const FIRST_DEVICE: u16 = 0x1040;

/// Everything is in one base address register.
const BAR: usize = 0;
const BAR_LEN: u64 = 0x4000;
const COMMON: Range<u64> = 0..0x38 + 8;
const ISR: u64 = 0x1000;
const DEVICE: Range<u64> = 0x1800..0x2000;
const TABLE: Range<u64> = 0x2000..0x2800;
const PENDING: Range<u64> = 0x2800..0x3000;
const NOTIFY: Range<u64> = 0x3000..0x4000;
/// How far apart the queues' notification addresses are.
const NOTIFY_STEP: u32 = 4;

/// Kinds of capability (§4.1.4).
mod structure {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

/// Offsets in a capability (§4.1.4).
const CAPABILITY_BAR: usize = 4;
const CAPABILITY_OFFSET: usize = 8;
const CAPABILITY_LENGTH: usize = 12;
const CAPABILITY_DATA: usize = 16;

const COMMAND: Range<u16> = 4..6;
/// Bit 10 of the command register: the interrupt pin is off.
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// The saved state of the transport and its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    configuration: ConfigSpaceState,
    common: CommonState,
    msix: MsixState,
    isr: u8,
}

/// A virtio device as a PCI function, with its threads.
pub struct VirtioPci {
    config: ConfigSpace,
    device: Box<dyn Device>,
    common: Common,
    rings: Arc<Rings>,
    interrupt: Arc<Interrupt>,
    workers: Vec<Worker>,
    doorbell: Doorbell,
    /// Offsets of two capabilities: MSI-X, and the window to the register space.
    msix_at: u16,
    window_at: u16,
}

impl fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioPci")
            .field("device", &self.device)
            .field("common", &self.common)
            .finish_non_exhaustive()
    }
}

/// The body of a virtio capability, after its ID and pointer.
fn capability(kind: u8, registers: &Range<u64>, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR as u8, 0, 0, 0];
    body.extend((registers.start as u32).to_le_bytes());
    body.extend(((registers.end - registers.start) as u32).to_le_bytes());
    body.extend(more);
    body
}

impl VirtioPci {
    /// Puts a device behind the transport and starts its threads. Messages go to `bus`; where the guest does not use
    /// them, `line` is the interrupt pin.
    pub fn new(
        mut device: Box<dyn Device>,
        ram: &GuestRam,
        bus: Arc<dyn MessageBus>,
        line: Box<dyn IrqLine>,
    ) -> io::Result<Self> {
        let (kind, sizes) = (device.kind(), device.queues());
        assert!(sizes.len() < 64, "as many queues as a bell has bits, at most");
        let interrupt = Interrupt::new(sizes.len(), bus, line);
        let rings = Rings::new(kind.name, ram.clone(), &sizes, Arc::clone(&interrupt));
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind.id,
            class: kind.class,
            revision: 1,
            subsystem: (VENDOR, 0x1100),
        });
        config.set_interrupt_pin(1);
        config.add_bar(BAR, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: BAR_LEN });
        let mut add = |body: &[u8]| config.add_capability(CAPABILITY_VENDOR, body);
        add(&capability(structure::COMMON, &COMMON, &[]));
        add(&capability(structure::NOTIFY, &NOTIFY, &NOTIFY_STEP.to_le_bytes()));
        add(&capability(structure::ISR, &(ISR..ISR + 4), &[]));
        add(&capability(structure::DEVICE, &DEVICE, &[]));
        let window = add(&capability(structure::PCI, &(0..0), &[0; 4]));
        config.make_writable(window + CAPABILITY_BAR, &[0xff]);
        config.make_writable(window + CAPABILITY_OFFSET, &[0xff; 12]);
        let msix = interrupt.msix().capability(BAR as u8, TABLE.start as u32, PENDING.start as u32);
        let msix = config.add_capability(CAPABILITY_MSIX, &msix);
        config.make_writable(msix + 2, &Msix::CONTROL_MASK.to_le_bytes());

        let mut workers = Vec::new();
        let mut bells = vec![None; sizes.len()];
        for service in device.services(&rings)? {
            let name = format!("{} {}", kind.name, workers.len());
            let worker = Worker::start(name, service.make)?;
            for queue in service.queues {
                bells[queue] = Some(Arc::clone(worker.bell()));
            }
            workers.push(worker);
        }
        let doorbell: Doorbell = Arc::new(move |offset, _value| {
            let queue = (offset / u64::from(NOTIFY_STEP)) as usize;
            if let Some(Some(bell)) = bells.get(queue) {
                bell.notify(queue);
            }
        });
        let common = Common::new(&sizes, device.features() | feature::TRANSPORT);
        let (msix_at, window_at) = (msix as u16, window as u16);
        Ok(Self { config, device, common, rings, interrupt, workers, doorbell, msix_at, window_at })
    }

    /// The saved state. The device's threads must have come to rest, and what they know beside the rings is not in it.
    pub fn state(&self) -> State {
        State {
            configuration: self.config.state(),
            common: self.common.state(&self.rings, &self.interrupt),
            msix: self.interrupt.msix().state(),
            isr: self.interrupt.isr(),
        }
    }

    /// Puts the saved state of a device of the same kind in force.
    pub fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.stop();
        self.config.restore(&state.configuration)?;
        self.interrupt.msix().restore(&state.msix)?;
        self.interrupt.set_isr(state.isr);
        self.common.restore(&state.common, &self.rings, &self.interrupt)?;
        if common::is_running(&self.interrupt) {
            self.go();
        }
        Ok(())
    }

    /// Ends all work for the driver.
    fn stop(&mut self) {
        self.rings.deactivate();
        for worker in &self.workers {
            worker.reset();
        }
    }

    /// The driver is ready: lets the device work, and look at queues that were filled before.
    fn go(&mut self) {
        self.rings.activate(self.common.features());
        for queue in 0..self.rings.len() {
            (self.doorbell)(u64::from(NOTIFY_STEP) * queue as u64, 0);
        }
    }

    fn read_register(&mut self, offset: u64, size: u8) -> u64 {
        match offset {
            _ if COMMON.contains(&offset) => {
                u64::from(self.common.read(offset as u16, size, &self.interrupt)) & ones(size)
            }
            ISR => self.interrupt.take_isr().into(),
            _ if DEVICE.contains(&offset) => {
                let bytes = self.device.configuration();
                let at = (offset - DEVICE.start) as usize;
                let bytes = bytes.iter().skip(at).take(size.into());
                bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte)) & ones(size)
            }
            _ if TABLE.contains(&offset) => self.interrupt.msix().read_table(offset - TABLE.start, size),
            _ if PENDING.contains(&offset) => {
                self.interrupt.msix().read_pending(offset - PENDING.start, size)
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, size: u8, value: u64) {
        if COMMON.contains(&offset) {
            // The 64-bit fields may be written whole, which is two writes of halves.
            let sizes = if size == 8 { &[4, 4][..] } else { &[size] };
            for (at, size) in (0..).step_by(4).zip(sizes) {
                let part = (value >> (8 * at)) as u32;
                self.write_common((offset + at) as u16, *size, part);
            }
        } else if DEVICE.contains(&offset) {
            let bytes = value.to_le_bytes();
            let len = usize::from(size.min(8));
            self.device.write_configuration((offset - DEVICE.start) as usize, &bytes[..len]);
        } else if TABLE.contains(&offset) {
            self.interrupt.msix().write_table(offset - TABLE.start, size, value);
        } else if NOTIFY.contains(&offset) {
            (self.doorbell)(offset - NOTIFY.start, value);
        }
    }

    fn write_common(&mut self, offset: u16, size: u8, value: u32) {
        match self.common.write(offset, size, value, &self.rings, &self.interrupt) {
            None => {}
            Some(common::Action::Reset) => self.reset_device(),
            Some(common::Action::Go) => self.go(),
            Some(common::Action::ResetQueue(queue)) => {
                QueueT::set_ready(&mut *self.rings.queue(queue), false);
                for worker in &self.workers {
                    worker.settle();
                }
                self.common.queue_was_reset(queue, &self.rings);
            }
        }
    }

    fn reset_device(&mut self) {
        self.stop();
        self.interrupt.reset();
        self.common.reset(&self.rings);
        self.interrupt.status.store(0, Ordering::Release);
    }

    /// What the window capability shows at present (§4.1.4.9): an access of 1, 2 or 4 bytes to the register space.
    fn window(&self) -> Option<(u64, u8)> {
        let read = |at: usize| self.config.read(self.window_at + at as u16, 4);
        let bar = read(CAPABILITY_BAR) as u8;
        let (offset, size) = (read(CAPABILITY_OFFSET), read(CAPABILITY_LENGTH));
        let possible = usize::from(bar) == BAR && matches!(size, 1 | 2 | 4) && offset.is_multiple_of(size);
        (possible && u64::from(offset) < BAR_LEN).then_some((offset.into(), size as u8))
    }

    fn is_window(&self, offset: u16) -> bool {
        offset == self.window_at + CAPABILITY_DATA as u16
    }
}

/// All ones in the low `size` bytes.
fn ones(size: u8) -> u64 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: u16, size: u8) -> u32 {
        if self.is_window(offset)
            && let Some((register, size)) = self.window()
        {
            let value = self.read_register(register, size) as u32;
            self.config.update(offset.into(), &value.to_le_bytes());
        }
        self.config.read(offset, size)
    }

    fn write_config(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        let touches = |range: Range<u16>| offset < range.end && offset + u16::from(size) > range.start;
        if self.is_window(offset)
            && let Some((register, size)) = self.window()
        {
            let value = self.config.read(offset, 4);
            self.write_register(register, size, u64::from(value) & ones(size));
        }
        let msix = self.msix_at + 2..self.msix_at + 4;
        if touches(msix.clone()) || touches(COMMAND) {
            let control = self.config.read(msix.start, 2) as u16;
            self.interrupt.msix().set_control(control);
            self.interrupt.set_pin_disabled(self.config.command() & INTERRUPT_DISABLE != 0);
        }
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, size: u8) -> u64 {
        self.read_register(offset, size)
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, size: u8, value: u64) {
        self.write_register(offset, size, value);
    }

    fn doorbell(&self, _bar: usize) -> Option<(Range<u64>, Doorbell)> {
        Some((NOTIFY, Arc::clone(&self.doorbell)))
    }

    fn settle(&mut self, deadline: Instant) {
        for worker in &self.workers {
            worker.finish(deadline);
        }
    }

    fn pause(&mut self) {
        self.workers.iter().for_each(Worker::pause);
    }

    fn resume(&mut self) {
        self.workers.iter().for_each(Worker::resume);
    }

    fn reset(&mut self) {
        self.reset_device();
        self.config.reset();
        self.interrupt.msix().reset();
        self.interrupt.set_pin_disabled(false);
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
