//! A SATA controller as the ICH9 has it: AHCI 1.3.1, in AHCI mode only.
//!
//! Each port that has a drive has a thread, which takes one command after another out of the port's command list: reads
//! the command table, lets the [drive](Drive) carry it out, and posts the FIS that ends it. Processors only reach
//! registers. A port whose `PxCMD.ST` is cleared has `PxCMD.CR` set until its thread has finished what it was at, as
//! the specification has it (§10.3.2); a reset of the controller waits for that.
//!
//! Not there: port multipliers, command completion coalescing, enclosure management, power states of links and the
//! registers of the older interface (task file ports).

mod ata;
mod atapi;
mod command;
mod fis;
mod identify;
mod port;
mod registers;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use posada_devices::pci::{Bar, BarKind, ConfigSpace, ConfigSpaceState, Identity, MessageBus, PciFunction};
use posada_devices::{IrqLine, StateError};
use posada_memory::GuestRam;
use posada_storage::Disk;
use posada_worker::Worker;
use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;
use port::{Port, Shared};
use registers::Registers;

/// The most drives of one controller: as many as there can be ports (§3.1.4).
pub const MAX_DRIVES: usize = 32;

/// ABAR, the base address register of the registers (§2.1.11).
const ABAR: usize = 5;
const ABAR_LEN: u64 = 0x2000;
/// Port control and status, where the drivers of Intel's controllers expect an enable bit for each port (Intel ICH9
/// data sheet, §14.1.33).
const PCS: usize = 0x92;

/// A drive at a port.
#[derive(Debug)]
pub enum Drive {
    /// A disk. Of one that is read-only guests hear when a write fails: ATA has no word for it.
    Disk {
        /// Its contents.
        disk: Arc<dyn Disk>,
        /// Its serial number, of which 20 bytes are told.
        serial: String,
    },
    /// A CD-ROM drive.
    CdRom {
        /// The disc in it, as blocks of 2048 bytes.
        disc: Arc<dyn Disk>,
        /// The drive's serial number, of which 20 bytes are told.
        serial: String,
    },
}

/// The saved state of the controller's registers. What the drives hold is theirs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    configuration: ConfigSpaceState,
    registers: Registers,
}

/// The controller, with its drives and their threads.
pub struct Ahci {
    config: ConfigSpace,
    shared: Arc<Mutex<Shared>>,
    workers: Vec<Worker>,
}

impl fmt::Debug for Ahci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahci").field("shared", &self.shared).finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ahci {
    /// A controller with these drives at its ports, in order, and starts their threads.
    ///
    /// # Panics
    /// If there are none, or more than [`MAX_DRIVES`].
    pub fn new(
        drives: Vec<Drive>,
        ram: &GuestRam,
        bus: Arc<dyn MessageBus>,
        line: Box<dyn IrqLine>,
    ) -> io::Result<Self> {
        assert!((1..=MAX_DRIVES).contains(&drives.len()), "{} drives", drives.len());
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x2922,
            class: [0x01, 0x06, 0x01],
            revision: 2,
            subsystem: (0x8086, 0x2922),
        });
        config.set_interrupt_pin(1);
        config.add_bar(ABAR, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: ABAR_LEN });
        config.make_writable(PCS, &[0x3f, 0x00]);
        let mut interrupt = Interrupt::new(bus, line);
        interrupt.add_msi(&mut config);
        let drives: Vec<Box<dyn command::Device>> = drives.into_iter().map(make).collect();
        let signatures: Vec<_> = drives.iter().map(|drive| drive.signature()).collect();
        let shared = Arc::new(Mutex::new(Shared::new(&signatures, ram.clone(), interrupt)));
        let mut workers = Vec::new();
        for (index, drive) in drives.into_iter().enumerate() {
            let port = Port::new(index, ram.clone(), Arc::clone(&shared), drive);
            workers.push(Worker::start(format!("sata {index}"), |_| Box::new(port))?);
        }
        Ok(Self { config, shared, workers })
    }

    /// The saved state. Commands that a drive is at are still in the command list: they are begun anew after a restore.
    pub fn state(&self) -> State {
        State { configuration: self.config.state(), registers: lock(&self.shared).registers.clone() }
    }

    /// Puts the saved state of a controller with as many drives in force.
    pub fn restore(&mut self, state: &State) -> Result<(), StateError> {
        let ports = lock(&self.shared).registers.ports.len();
        if state.registers.ports.len() != ports {
            let found = format!("{} ports in place of {ports}", state.registers.ports.len());
            return Err(StateError::new("AHCI controller", found));
        }
        self.config.restore(&state.configuration)?;
        self.reset_controller();
        let mut shared = lock(&self.shared);
        shared.interrupt.configure(&self.config);
        shared.restore(&state.registers);
        drop(shared);
        self.workers.iter().for_each(|worker| worker.bell().notify(0));
        Ok(())
    }

    /// `GHC.HR` (§10.4.3). Afterwards no thread touches anything of the driver's: what one was at is void, and nothing new
    /// can be begun.
    fn reset_controller(&self) {
        lock(&self.shared).reset();
        self.workers.iter().for_each(Worker::settle);
    }

    fn read_register(&self, offset: u64) -> u32 {
        lock(&self.shared).registers.read(offset)
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let effect = lock(&self.shared).write(offset, value);
        match effect {
            registers::Effect::None => {}
            registers::Effect::Reset => self.reset_controller(),
            registers::Effect::Work(port) => {
                if let Some(worker) = self.workers.get(port) {
                    worker.bell().notify(0);
                }
            }
        }
    }
}

fn make(drive: Drive) -> Box<dyn command::Device> {
    match drive {
        Drive::Disk { disk, serial } => Box::new(ata::AtaDisk::new(disk, &serial)),
        Drive::CdRom { disc, serial } => Box::new(atapi::CdRom::new(disc, &serial)),
    }
}

impl PciFunction for Ahci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn write_config(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        lock(&self.shared).interrupt.configure(&self.config);
    }

    /// Registers are 32 bits wide; smaller reads get their part, and one of 64 bits gets two (§3).
    fn read_bar(&mut self, bar: usize, offset: u64, size: u8) -> u64 {
        if bar != ABAR {
            return u64::MAX;
        }
        let value = u64::from(self.read_register(offset & !3)) >> (8 * (offset & 3));
        match size {
            8 => u64::from(self.read_register((offset & !3) + 4)) << 32 | value,
            4 => value,
            _ => value & ((1 << (8 * size.clamp(1, 2))) - 1),
        }
    }

    /// Writes are of whole registers, which is all that software may do (§3); others are ignored.
    fn write_bar(&mut self, bar: usize, offset: u64, size: u8, value: u64) {
        if bar != ABAR || !offset.is_multiple_of(4) || size < 4 {
            return;
        }
        self.write_register(offset, value as u32);
        if size == 8 {
            self.write_register(offset + 4, (value >> 32) as u32);
        }
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
        self.reset_controller();
        self.config.reset();
        lock(&self.shared).interrupt.configure(&self.config);
    }
}

#[cfg(test)]
#[path = "ahci_test.rs"]
mod tests;

#[cfg(test)]
#[path = "ahci/cdrom_test.rs"]
mod cdrom_tests;
