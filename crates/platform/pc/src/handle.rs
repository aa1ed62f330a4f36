//! A machine from outside, while it runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use posada_vcpu::Vcpu;
use posada_vcpu::x86::State;

use crate::Error;
use crate::board::Board;
use crate::control::Request;
use crate::lent::{BalloonUse, CardUse, DiskUse, Lent};

/// A serial port of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The first one, I/O port 0x3f8, interrupt 4: by custom the console.
    Com1,
    /// The second one, I/O port 0x2f8, interrupt 3.
    Com2,
}

/// The guest has ended, so nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has ended")]
pub struct Ended;

/// Something that a processor is asked between two of its instructions, and answers itself.
pub(crate) type Inquiry = Box<dyn FnOnce(&dyn Vcpu) + Send>;

/// What a processor has been asked.
pub(crate) type Inquiries = Mutex<Vec<Inquiry>>;

/// Reaches a machine from other threads while [`Pc::run`](crate::Pc::run) runs it. Clones reach the same one.
#[derive(Clone)]
pub struct Handle {
    pub(crate) board: Arc<Board>,
    pub(crate) inquiries: Arc<[Inquiries]>,
    pub(crate) lent: Arc<Lent>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("board", &self.board).finish_non_exhaustive()
    }
}

impl Handle {
    /// Ends the run, as soon as every processor has finished its instruction.
    pub fn stop(&self) {
        self.board.request(Request::Stop);
    }

    /// Resets the machine, as its reset button does.
    pub fn reset(&self) {
        self.board.request(Request::Reset);
    }

    /// Has all processors stand still, and with them the guest's clocks and its devices, until [`resume`](Self::resume):
    /// its memory and its disks stay as they are. What devices are at already they finish. Returns when everything stands;
    /// whether it does, for a run may end meanwhile.
    pub fn pause(&self) -> bool {
        let _one = self.board.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.board.running.load(Ordering::Acquire) {
            return false;
        }
        self.board.control.want_pause(true);
        let cpus = &self.board.wiring.apics.cpus;
        for cpu in cpus {
            cpu.attention.kick();
        }
        let stands = self.board.control.wait_for_standing(cpus.len() as u32);
        if stands {
            self.board.clock.pause();
            // Nobody needs to sleep until a deadline that does not come.
            self.board.alarm.at(Some(0));
            self.board.pci.pause();
        }
        stands
    }

    /// Lets a machine go on after a [pause](Self::pause), from where it stood.
    pub fn resume(&self) {
        let _one = self.board.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.board.control.is_pause_wanted() {
            self.board.pci.resume();
            self.board.clock.resume();
            self.board.control.want_pause(false);
            // Deadlines have moved.
            self.board.alarm.at(Some(0));
        }
    }

    /// Whether the machine was [paused](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.board.control.is_pause_wanted()
    }

    /// How long the guest has lived: the time of its clocks.
    pub fn guest_time(&self) -> Duration {
        Duration::from_nanos(self.board.clock.now())
    }

    /// Presses the power button: the guest is told, and powers off if it wants to.
    pub fn press_power_button(&self) {
        self.board.power().press_power_button();
    }

    /// Raises a non-maskable interrupt on the boot processor.
    pub fn raise_nmi(&self) {
        let cpu = &self.board.wiring.apics.cpus[0];
        cpu.lock().raise_nmi();
        cpu.attention.interrupt();
    }

    /// Sends bytes to the guest through a serial port. None is ever lost: this waits while the guest is behind,
    /// and fails only when it has ended.
    pub fn send_serial(&self, port: Port, bytes: &[u8]) -> Result<(), Ended> {
        let ended = || self.board.ended.load(Ordering::Acquire);
        if self.board.serial[port as usize].send(bytes, ended) { Ok(()) } else { Err(Ended) }
    }

    /// Sends as many of the bytes as there is room for, and returns how many that was.
    pub fn try_send_serial(&self, port: Port, bytes: &[u8]) -> usize {
        self.board.serial[port as usize].try_send(bytes)
    }

    /// Sends a break through a serial port, which Linux takes for the SysRq key.
    pub fn send_break(&self, port: Port) {
        self.board.serial[port as usize].send_break();
    }

    /// The state of every processor, each between two of its instructions; `None` if the machine does not run.
    pub fn states(&self) -> Option<Vec<State>> {
        self.ask(|vcpu| vcpu.state())
    }

    /// What the engine tells of each processor's work, where it keeps an account; `None` if the machine does not run.
    pub fn reports(&self) -> Option<Vec<String>> {
        Some(self.ask(|vcpu| vcpu.report())?.into_iter().flatten().collect())
    }

    /// How much the guest has used each of its disks up to now, in the order in which they were plugged in.
    pub fn disks(&self) -> Vec<DiskUse> {
        self.lent.disks()
    }

    /// How much the guest has used each of its network cards up to now, in the order in which they were plugged in.
    pub fn cards(&self) -> Vec<CardUse> {
        self.lent.cards()
    }

    /// Asks the guest to do without so many bytes of its memory, rounded down to pages; 0 gives all of it back. It complies
    /// if and when it can: [`balloon`](Self::balloon) tells.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), Error> {
        self.lent.set_balloon(bytes)
    }

    /// How much of its memory the guest does without, if it has a [balloon](crate::PcBuilder::balloon).
    pub fn balloon(&self) -> Option<BalloonUse> {
        self.lent.balloon()
    }

    fn ask<T: Send + 'static>(&self, question: fn(&dyn Vcpu) -> T) -> Option<Vec<T>> {
        // A processor that has just stopped will not answer any more.
        const PATIENCE: Duration = Duration::from_secs(2);
        if !self.board.running.load(Ordering::Acquire) {
            return None;
        }
        let answers: Vec<_> = self
            .inquiries
            .iter()
            .zip(&self.board.wiring.apics.cpus)
            .map(|(inquiries, cpu)| {
                let (sender, answer) = channel();
                let inquiry: Inquiry = Box::new(move |vcpu| {
                    // Whoever asked may have lost patience.
                    let _ = sender.send(question(vcpu));
                });
                inquiries.lock().unwrap_or_else(PoisonError::into_inner).push(inquiry);
                cpu.attention.kick();
                answer
            })
            .collect();
        answers.into_iter().map(|answer| answer.recv_timeout(PATIENCE).ok()).collect()
    }
}
