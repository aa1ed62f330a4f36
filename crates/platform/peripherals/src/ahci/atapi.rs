//! A CD-ROM drive: packet commands of MMC-6 and SPC-3, over ATA's PACKET (ATA8-ACS §7.24).

mod answers;

use std::sync::Arc;

use posada_storage::Disk;

use super::command::{Command, Device, End, Fault, Transfer, error, status};
use super::fis::{Answer, TaskFile};
use super::identify;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 2048;
/// Blocks that go through the buffer at once.
const PIECE: u64 = 64;

/// ATA commands that a packet drive carries out.
mod code {
    pub(super) const DEVICE_RESET: u8 = 0x08;
    pub(super) const EXECUTE_DIAGNOSTIC: u8 = 0x90;
    pub(super) const PACKET: u8 = 0xa0;
    pub(super) const IDENTIFY_PACKET_DEVICE: u8 = 0xa1;
    pub(super) const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub(super) const IDLE_IMMEDIATE: u8 = 0xe1;
    pub(super) const STANDBY: u8 = 0xe2;
    pub(super) const IDLE: u8 = 0xe3;
    pub(super) const CHECK_POWER_MODE: u8 = 0xe5;
    pub(super) const SLEEP: u8 = 0xe6;
    pub(super) const IDENTIFY_DEVICE: u8 = 0xec;
    pub(super) const SET_FEATURES: u8 = 0xef;
}

/// Operation codes of packets (MMC-6 §6, SPC-3 §6).
mod operation {
    pub(super) const TEST_UNIT_READY: u8 = 0x00;
    pub(super) const REQUEST_SENSE: u8 = 0x03;
    pub(super) const INQUIRY: u8 = 0x12;
    pub(super) const START_STOP_UNIT: u8 = 0x1b;
    pub(super) const PREVENT_ALLOW_MEDIUM_REMOVAL: u8 = 0x1e;
    pub(super) const READ_CAPACITY: u8 = 0x25;
    pub(super) const READ_10: u8 = 0x28;
    pub(super) const SEEK: u8 = 0x2b;
    pub(super) const READ_TOC: u8 = 0x43;
    pub(super) const GET_CONFIGURATION: u8 = 0x46;
    pub(super) const GET_EVENT_STATUS: u8 = 0x4a;
    pub(super) const READ_DISC_INFORMATION: u8 = 0x51;
    pub(super) const MODE_SENSE: u8 = 0x5a;
    pub(super) const READ_12: u8 = 0xa8;
    pub(super) const MECHANISM_STATUS: u8 = 0xbd;
}

/// Sense key, additional sense code and its qualifier (MMC-6 annex F).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sense {
    pub(super) key: u8,
    pub(super) code: u8,
    pub(super) qualifier: u8,
}

impl Sense {
    const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }
}

const NO_SENSE: Sense = Sense::new(0, 0, 0);
const NO_MEDIUM: Sense = Sense::new(2, 0x3a, 0);
const UNRECOVERED_READ: Sense = Sense::new(3, 0x11, 0);
const INVALID_COMMAND: Sense = Sense::new(5, 0x20, 0);
const OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
pub(super) const INVALID_FIELD: Sense = Sense::new(5, 0x24, 0);
const REMOVAL_PREVENTED: Sense = Sense::new(5, 0x53, 2);
const MEDIUM_CHANGED: Sense = Sense::new(6, 0x28, 0);
const POWER_ON: Sense = Sense::new(6, 0x29, 0);

/// Why a packet command failed.
enum Failure {
    /// The drive says why.
    Check(Sense),
    /// There is nobody to say so to.
    Host(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Host(fault)
    }
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

/// What of media GET EVENT STATUS NOTIFICATION tells next (MMC-6 §6.6.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaEvent {
    None = 0,
    New = 2,
    Removal = 3,
}

/// The drive, with a disc in it.
#[derive(Debug)]
pub(super) struct CdRom {
    disc: Arc<dyn Disk>,
    serial: String,
    /// Why the last command failed.
    sense: Sense,
    /// What the next command is told before anything else.
    attention: Option<Sense>,
    /// Whether the tray is out, and the disc with it.
    is_open: bool,
    is_locked: bool,
    event: MediaEvent,
    buffer: Vec<u8>,
    /// How many requests the host's storage has failed.
    failures: u64,
}

/// A big-endian number at an offset of a packet.
fn u16_of(packet: &[u8; 12], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn u32_of(packet: &[u8; 12], at: usize) -> u32 {
    u32::from(u16_of(packet, at)) << 16 | u32::from(u16_of(packet, at + 2))
}

impl CdRom {
    pub(super) fn new(disc: Arc<dyn Disk>, serial: &str) -> Self {
        Self {
            disc,
            serial: serial.to_owned(),
            sense: NO_SENSE,
            attention: Some(POWER_ON),
            is_open: false,
            is_locked: false,
            event: MediaEvent::New,
            buffer: Vec::new(),
            failures: 0,
        }
    }

    /// Blocks of the disc, as far as they can be counted.
    fn blocks(&self) -> u32 {
        u32::try_from(self.disc.size() / BLOCK).unwrap_or(u32::MAX)
    }

    fn packet(&mut self, packet: &[u8; 12], data: &mut Transfer<'_>) -> Result<(), Failure> {
        let is_exempt = matches!(
            packet[0],
            operation::INQUIRY
                | operation::REQUEST_SENSE
                | operation::GET_CONFIGURATION
                | operation::GET_EVENT_STATUS
        );
        if !is_exempt && let Some(sense) = self.attention.take() {
            return Err(sense.into());
        }
        let needs_disc = matches!(
            packet[0],
            operation::TEST_UNIT_READY
                | operation::READ_CAPACITY
                | operation::READ_10
                | operation::READ_12
                | operation::SEEK
                | operation::READ_TOC
                | operation::READ_DISC_INFORMATION
        );
        if needs_disc && self.is_open {
            return Err(NO_MEDIUM.into());
        }
        match packet[0] {
            operation::READ_10 => self.read(packet, u16_of(packet, 7).into(), data),
            operation::READ_12 => self.read(packet, u32_of(packet, 6), data),
            operation::SEEK if u32_of(packet, 2) >= self.blocks() => Err(OUT_OF_RANGE.into()),
            operation::START_STOP_UNIT => self.start_stop(packet),
            operation::PREVENT_ALLOW_MEDIUM_REMOVAL => {
                self.is_locked = packet[4] & 1 != 0;
                Ok(())
            }
            operation::TEST_UNIT_READY | operation::SEEK => Ok(()),
            _ => {
                let (answer, most) = self.answer(packet)?;
                data.write(&answer[..answer.len().min(most)])?;
                Ok(())
            }
        }
    }

    /// The answer to a command that only asks, and how many bytes of it the driver wants.
    fn answer(&mut self, packet: &[u8; 12]) -> Result<(Vec<u8>, usize), Sense> {
        let (short, long) = (usize::from(packet[4]), usize::from(u16_of(packet, 7)));
        let blocks = self.blocks();
        Ok(match packet[0] {
            operation::REQUEST_SENSE => {
                let attention = if self.sense == NO_SENSE { self.attention.take() } else { None };
                let sense = attention.unwrap_or(std::mem::take(&mut self.sense));
                (answers::sense(sense), short)
            }
            operation::INQUIRY if packet[1] & 1 != 0 => return Err(INVALID_FIELD),
            operation::INQUIRY => (answers::inquiry(), u16_of(packet, 3).into()),
            operation::READ_CAPACITY => (answers::capacity(blocks), usize::MAX),
            operation::READ_TOC => (answers::table_of_contents(packet, blocks)?, long),
            operation::GET_CONFIGURATION => {
                let disc = (!self.is_open).then_some(blocks);
                (answers::configuration(packet[1] & 3, u16_of(packet, 2), disc), long)
            }
            operation::GET_EVENT_STATUS => {
                // Without this bit the driver wants to wait, which the drive does not let it.
                if packet[1] & 1 == 0 {
                    return Err(INVALID_FIELD);
                }
                let wants_media = packet[4] & 1 << 4 != 0;
                let event = if wants_media { self.event } else { MediaEvent::None };
                if wants_media {
                    self.event = MediaEvent::None;
                }
                (answers::event(wants_media, event, self.is_open), long)
            }
            operation::READ_DISC_INFORMATION => (answers::disc_information(), long),
            operation::MODE_SENSE => (answers::mode_pages(packet[2], self.is_locked)?, long),
            operation::MECHANISM_STATUS => {
                let mut answer = vec![0; 8];
                // Bit 4 of the second byte: the tray is out.
                answer[1] = u8::from(self.is_open) << 4;
                (answer, u16_of(packet, 8).into())
            }
            _ => return Err(INVALID_COMMAND),
        })
    }

    fn read(&mut self, packet: &[u8; 12], blocks: u32, data: &mut Transfer<'_>) -> Result<(), Failure> {
        let first = u32_of(packet, 2);
        if first.checked_add(blocks).is_none_or(|end| end > self.blocks()) {
            return Err(OUT_OF_RANGE.into());
        }
        let (mut block, mut left) = (u64::from(first), u64::from(blocks));
        while left != 0 {
            let now = left.min(PIECE);
            self.buffer.resize((now * BLOCK) as usize, 0);
            if let Err(error) = self.disc.read(block * BLOCK, &mut self.buffer) {
                self.failures += 1;
                // Not as many messages as a guest may try again.
                if self.failures.is_power_of_two() {
                    tracing::warn!("a disc could not be read ({} so far): {error}", self.failures);
                }
                return Err(UNRECOVERED_READ.into());
            }
            data.write(&self.buffer)?;
            (block, left) = (block + now, left - now);
        }
        Ok(())
    }

    /// START STOP UNIT (MMC-6 §6.45): with LOEJ, the tray goes out or in.
    fn start_stop(&mut self, packet: &[u8; 12]) -> Result<(), Failure> {
        const START: u8 = 1;
        const LOEJ: u8 = 2;
        match packet[4] & (LOEJ | START) {
            LOEJ if self.is_locked => return Err(REMOVAL_PREVENTED.into()),
            LOEJ if !self.is_open => (self.is_open, self.event) = (true, MediaEvent::Removal),
            both if both == LOEJ | START && self.is_open => {
                (self.is_open, self.event) = (false, MediaEvent::New);
                self.attention = Some(MEDIUM_CHANGED);
            }
            _ => {}
        }
        Ok(())
    }

    /// PACKET, whose answer tells the sense key in the error register (ATA8-ACS §7.24.6).
    fn packet_command(&mut self, command: &Command, data: &mut Transfer<'_>) -> Result<Answer, Fault> {
        /// Interrupt reason: the command is over.
        const OVER: u16 = 3;
        let result = self.packet(&command.packet, data);
        let answer = Answer { status: status::GOOD, count: OVER, ..Answer::default() };
        match result {
            Ok(()) => {
                if command.packet[0] != operation::REQUEST_SENSE {
                    self.sense = NO_SENSE;
                }
                Ok(answer)
            }
            Err(Failure::Check(sense)) => {
                self.sense = sense;
                let aborted = if sense.key == INVALID_COMMAND.key { error::ABRT } else { 0 };
                let error = sense.key << 4 | aborted;
                Ok(Answer { status: status::GOOD | status::ERR, error, ..answer })
            }
            Err(Failure::Host(fault)) => Err(fault),
        }
    }
}

/// The answer to an ATA command that is not carried out. One for disks tells the signature (ATA8-ACS §7.16.6).
fn aborted(task: &TaskFile, signature: Answer) -> Answer {
    let lba = if task.command == code::IDENTIFY_DEVICE { signature.lba } else { task.lba };
    Answer { status: status::GOOD | status::ERR, error: error::ABRT, lba, device: task.device, count: 1 }
}

impl Device for CdRom {
    fn signature(&self) -> Answer {
        Answer { status: 0, error: 1, lba: 0xeb_1401, device: 0, count: 1 }
    }

    fn execute(&mut self, command: &Command, data: &mut Transfer<'_>) -> Result<End, Fault> {
        let good = Answer { status: status::GOOD, ..Answer::default() };
        let answer = match command.task.command {
            code::PACKET => self.packet_command(command, data)?,
            code::IDENTIFY_PACKET_DEVICE => {
                let block = identify::cdrom(&self.serial);
                data.write(&block)?;
                return Ok(End::Pio(good, block.len() as u16));
            }
            code::SET_FEATURES
            | code::STANDBY_IMMEDIATE
            | code::IDLE_IMMEDIATE
            | code::STANDBY
            | code::IDLE
            | code::SLEEP => good,
            code::CHECK_POWER_MODE => Answer { count: 0xff, ..good },
            code::DEVICE_RESET => {
                self.reset();
                self.signature()
            }
            code::EXECUTE_DIAGNOSTIC => self.signature(),
            _ => aborted(&command.task, self.signature()),
        };
        Ok(End::Register(answer))
    }

    fn reset(&mut self) {
        self.is_locked = false;
        (self.sense, self.attention) = (NO_SENSE, Some(POWER_ON));
    }
}
