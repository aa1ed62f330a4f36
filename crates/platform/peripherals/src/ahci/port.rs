//! The thread of one port, and what it shares with the processors.

use std::fmt;
use std::sync::{Arc, Mutex};

use posada_memory::{Gpa, GuestRam};
use posada_worker::Handler;

use super::command::{Command, Device, End, Fault, Header, Transfer, status};
use super::fis::{self, Answer};
use super::lock;
use super::registers::{Effect, Registers, is};
use crate::interrupt::Interrupt;

/// The control register's software reset.
const SRST: u8 = 1 << 2;
/// How many commands are carried out before the thread looks around.
const BATCH: usize = 16;

/// What a port's thread is at, which no driver sees.
#[derive(Clone, Copy, Debug)]
struct Activity {
    /// Counts up whenever what the thread is at becomes void.
    epoch: u64,
    busy: bool,
    /// The drive is to be reset before its next command.
    reset_drive: bool,
    /// What the drive presents itself as.
    signature: Answer,
}

/// Registers, and what goes with them.
pub(super) struct Shared {
    pub(super) registers: Registers,
    pub(super) interrupt: Interrupt,
    activities: Vec<Activity>,
    ram: GuestRam,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("registers", &self.registers)
            .field("activities", &self.activities)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// With drives that present themselves thus.
    pub(super) fn new(signatures: &[Answer], ram: GuestRam, interrupt: Interrupt) -> Self {
        let activity = |signature: &Answer| Activity {
            epoch: 0,
            busy: false,
            reset_drive: false,
            signature: *signature,
        };
        let activities = signatures.iter().map(activity).collect();
        Self { registers: Registers::new(signatures.len()), interrupt, activities, ram }
    }

    /// Software's write to a register.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> Effect {
        let before = self.registers.latch();
        let (effect, stop) = self.registers.write(offset, value);
        if let Some(stop) = stop {
            self.abandon(stop.port);
            self.activities[stop.port].reset_drive |= stop.reset_drive;
        }
        if let Effect::Work(port) = effect {
            self.present(port);
        }
        // What is acknowledged while there is more: a message for that.
        let anew = !before || offset == 0x08;
        self.tell(anew);
        effect
    }

    /// Brings the interrupt up to date. With `anew`, there is something more to tell than before.
    fn tell(&mut self, anew: bool) {
        let level = self.registers.latch();
        self.interrupt.set(level, anew);
    }

    fn abandon(&mut self, port: usize) {
        let activity = &mut self.activities[port];
        activity.epoch += 1;
        if !activity.busy {
            self.registers.ports[port].rest();
        }
    }

    /// The controller's reset. What threads are at is void.
    pub(super) fn reset(&mut self) {
        self.registers = Registers::new(self.activities.len());
        for activity in &mut self.activities {
            activity.epoch += 1;
            activity.reset_drive = true;
        }
        self.tell(false);
    }

    /// Puts saved registers in force, of as many ports. The controller has been reset, and its threads have settled.
    pub(super) fn restore(&mut self, registers: &Registers) {
        self.registers = registers.clone();
        self.tell(false);
    }

    /// Posts a FIS where the driver wants to have it, if it does.
    fn post(&mut self, port: usize, offset: u64, fis: &[u8]) {
        let registers = &mut self.registers.ports[port];
        if registers.receives() && self.ram.write(Gpa(registers.received.wrapping_add(offset)), fis).is_err()
        {
            registers.fail(is::HBFS);
        }
    }

    /// Posts the drive's first FIS, with its signature, if it waits for the driver to receive FISes.
    fn present(&mut self, port: usize) {
        let registers = &mut self.registers.ports[port];
        if registers.signature_waits && registers.receives() {
            let answer = self.activities[port].signature;
            let signature = (answer.lba as u32) << 8 | u32::from(answer.count as u8);
            registers.set_signature(signature);
            registers.set_task_file(answer.status, answer.error);
            registers.is |= is::DHRS;
            self.post(port, fis::REGISTER_AT, &answer.to_register());
        }
    }

    /// Ends the command of a slot as the drive says.
    fn end(&mut self, port: usize, slot: u32, end: End) {
        let (answer, cause) = match end {
            End::Register(answer) => (answer, is::DHRS),
            // A failed one has no data to set up.
            End::Pio(answer, _) if answer.status & status::ERR != 0 => (answer, is::DHRS),
            End::Pio(answer, _) => (answer, is::PSS),
            End::Queued(answer) => (answer, is::SDBS),
        };
        let failed = answer.status & status::ERR != 0;
        let registers = &mut self.registers.ports[port];
        registers.set_task_file(answer.status, answer.error);
        registers.is |= cause;
        let slot_bit = 1 << slot;
        if failed {
            registers.fail(is::TFES);
        } else {
            registers.ci &= !slot_bit;
        }
        if cause == is::SDBS {
            // The drive had accepted it.
            registers.ci &= !slot_bit;
            if !failed {
                registers.sact &= !slot_bit;
            }
        }
        match end {
            End::Pio(answer, bytes) if !failed => {
                self.post(port, fis::PIO_SETUP_AT, &answer.to_pio_setup(bytes));
            }
            End::Queued(answer) => {
                let tags = if failed { 0 } else { slot_bit };
                self.post(port, fis::SET_DEVICE_BITS_AT, &answer.to_set_device_bits(tags));
            }
            End::Register(answer) | End::Pio(answer, _) => {
                self.post(port, fis::REGISTER_AT, &answer.to_register());
            }
        }
    }
}

/// How a slot's command came out.
enum Outcome {
    /// The drive ended it.
    Ended(End),
    /// The control register alone was written; there is no answer, or the drive's signature.
    Control { answers: bool },
    /// The controller could not go on.
    Fault(Fault),
}

/// The thread of one port.
pub(super) struct Port {
    index: usize,
    ram: GuestRam,
    shared: Arc<Mutex<Shared>>,
    drive: Box<dyn Device>,
    /// Whether a software reset stands (`SRST`).
    in_reset: bool,
}

impl Port {
    pub(super) fn new(
        index: usize,
        ram: GuestRam,
        shared: Arc<Mutex<Shared>>,
        drive: Box<dyn Device>,
    ) -> Self {
        Self { index, ram, shared, drive, in_reset: false }
    }

    /// Takes the next command: its slot, the place of the command list, and the epoch.
    fn take(&mut self) -> Option<(u32, u64, u64)> {
        let mut shared = lock(&self.shared);
        let activity = &mut shared.activities[self.index];
        let (epoch, reset) = (activity.epoch, std::mem::take(&mut activity.reset_drive));
        let registers = &mut shared.registers.ports[self.index];
        let slot = registers.next_slot();
        if let Some(slot) = slot {
            registers.begin(slot);
        }
        let list = registers.command_list;
        shared.activities[self.index].busy = slot.is_some();
        drop(shared);
        if reset {
            self.drive.reset();
            self.in_reset = false;
        }
        Some((slot?, list, epoch))
    }

    fn carry_out(&mut self, list: u64, slot: u32) -> Result<Outcome, Fault> {
        let header = Header::read(&self.ram, list, slot)?;
        let command = Command::read(&self.ram, &header)?;
        if !command.task.is_command {
            let before = std::mem::replace(&mut self.in_reset, command.task.control & SRST != 0);
            let ends = before && !self.in_reset;
            if ends {
                self.drive.reset();
            }
            return Ok(Outcome::Control { answers: ends });
        }
        let mut transfer = Transfer::new(&self.ram, &header);
        let end = self.drive.execute(&command, &mut transfer)?;
        if !matches!(end, End::Queued(_)) {
            header.tell_moved(&self.ram, transfer.moved())?;
        }
        Ok(Outcome::Ended(end))
    }

    /// Carries the next command out; whether there was one.
    fn step(&mut self) -> bool {
        let Some((slot, list, epoch)) = self.take() else { return false };
        let outcome = self.carry_out(list, slot).unwrap_or_else(Outcome::Fault);
        let mut shared = lock(&self.shared);
        shared.activities[self.index].busy = false;
        if shared.activities[self.index].epoch != epoch {
            shared.registers.ports[self.index].rest();
            return true;
        }
        match outcome {
            Outcome::Ended(end) => shared.end(self.index, slot, end),
            Outcome::Control { answers } => {
                let registers = &mut shared.registers.ports[self.index];
                registers.ci &= !(1 << slot);
                registers.signature_waits |= answers;
                shared.present(self.index);
            }
            Outcome::Fault(fault) => {
                let registers = &mut shared.registers.ports[self.index];
                registers.fail(match fault {
                    Fault::Memory => is::HBFS,
                    Fault::Overflow => is::OFS,
                    Fault::Interface => is::IFS,
                });
            }
        }
        shared.tell(true);
        true
    }
}

impl Handler for Port {
    fn queue(&mut self, _queue: usize) -> bool {
        (0..BATCH).all(|_| self.step())
    }
}
