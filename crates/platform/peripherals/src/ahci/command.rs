//! Commands as they lie in memory (AHCI 1.3.1 §4.2), and what a drive makes of one.

use posada_memory::{Gpa, GuestRam};

use super::fis::{Answer, TaskFile};
use crate::{u16_at, u32_at, u64_at};

/// Bytes of a command header, and of an entry of the table of places (PRDT).
const HEADER_LEN: u64 = 32;
const PLACE_LEN: u64 = 16;
/// Where in a command table the packet is, and where the places begin.
const PACKET_AT: u64 = 0x40;
const PLACES_AT: u64 = 0x80;
/// The length of a Register FIS in dwords.
const REGISTER_DWORDS: u8 = 5;

/// Bits of the status register (ATA8-ACS §6.1).
pub(super) mod status {
    pub(in super::super) const ERR: u8 = 1 << 0;
    pub(in super::super) const SEEK: u8 = 1 << 4;
    pub(in super::super) const READY: u8 = 1 << 6;
    /// Ready, and nothing else to tell.
    pub(in super::super) const GOOD: u8 = READY | SEEK;
}

/// Bits of the error register (ATA8-ACS §6.2).
pub(super) mod error {
    /// The drive does not carry this out.
    pub(in super::super) const ABRT: u8 = 1 << 2;
    /// There is no such sector.
    pub(in super::super) const IDNF: u8 = 1 << 4;
    /// The data cannot be read.
    pub(in super::super) const UNC: u8 = 1 << 6;
}

/// Why a command cannot be ended by the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Something lies where there is no memory.
    Memory,
    /// The command has more data than places for it (§6.1.5).
    Overflow,
    /// What is to be sent is no FIS that a drive takes.
    Interface,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a Register FIS.
    Register(Answer),
    /// With a PIO Setup FIS for this many bytes; if it failed, with a Register FIS.
    Pio(Answer, u16),
    /// A queued command, with a Set Device Bits FIS.
    Queued(Answer),
}

/// What a port does with its drive.
pub(super) trait Device: Send {
    /// What it presents itself as after a reset (ATA8-ACS §9.12, and for packet drives): `PxSIG` and the answer.
    fn signature(&self) -> Answer;

    /// Carries a command out.
    fn execute(&mut self, command: &Command, data: &mut Transfer<'_>) -> Result<End, Fault>;

    /// COMRESET, or a software reset.
    fn reset(&mut self);
}

/// A command header (§4.2.2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    at: u64,
    places: u32,
    table: u64,
}

impl Header {
    /// The header of a slot.
    pub(super) fn read(ram: &GuestRam, list: u64, slot: u32) -> Result<Self, Fault> {
        let at = list.wrapping_add(HEADER_LEN * u64::from(slot));
        let bytes: [u8; 16] = load(ram, at)?;
        if bytes[0] & 0x1f < REGISTER_DWORDS {
            return Err(Fault::Interface);
        }
        let table = u64_at(&bytes, 8) & !0x7f;
        Ok(Self { at, places: u16_at(&bytes, 2).into(), table })
    }

    /// Says in the header how many bytes have been transferred (`PRDBC`).
    pub(super) fn tell_moved(&self, ram: &GuestRam, bytes: u32) -> Result<(), Fault> {
        ram.write(Gpa(self.at.wrapping_add(4)), &bytes.to_le_bytes()).map_err(|_| Fault::Memory)
    }
}

fn load<const N: usize>(ram: &GuestRam, at: u64) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    ram.read(Gpa(at), &mut bytes).map_err(|_| Fault::Memory)?;
    Ok(bytes)
}

/// A command: the task file, and the packet for those that take one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command {
    pub(super) task: TaskFile,
    pub(super) packet: [u8; 12],
}

impl Command {
    pub(super) fn read(ram: &GuestRam, header: &Header) -> Result<Self, Fault> {
        let fis: [u8; 20] = load(ram, header.table)?;
        let packet = load(ram, header.table.wrapping_add(PACKET_AT))?;
        Ok(Self { task: TaskFile::read(&fis).ok_or(Fault::Interface)?, packet })
    }
}

/// The command's places in memory, used up from the front.
#[derive(Debug)]
pub(super) struct Transfer<'a> {
    ram: &'a GuestRam,
    /// The next entry of the table, and how many are left.
    next: u64,
    entries: u32,
    /// What is left of the current place.
    place: u64,
    left: u32,
    moved: u32,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(ram: &'a GuestRam, header: &Header) -> Self {
        let next = header.table.wrapping_add(PLACES_AT);
        Self { ram, next, entries: header.places, place: 0, left: 0, moved: 0 }
    }

    /// How many bytes have been transferred.
    pub(super) fn moved(&self) -> u32 {
        self.moved
    }

    /// Up to `max` bytes that lie together.
    fn take(&mut self, max: usize) -> Result<(Gpa, usize), Fault> {
        if self.left == 0 {
            self.entries = self.entries.checked_sub(1).ok_or(Fault::Overflow)?;
            let bytes: [u8; 16] = load(self.ram, self.next)?;
            self.next = self.next.wrapping_add(PLACE_LEN);
            // Places begin at even addresses, and have an even number of bytes up to 4 MiB, told less one (§4.2.3.3).
            self.place = u64_at(&bytes, 0) & !1;
            self.left = (u32_at(&bytes, 12) & 0x3f_ffff | 1) + 1;
        }
        let len = (self.left as usize).min(max);
        let place = Gpa(self.place);
        self.place = self.place.wrapping_add(len as u64);
        self.left -= len as u32;
        self.moved = self.moved.wrapping_add(len as u32);
        Ok((place, len))
    }

    /// Data for the driver.
    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (place, len) = self.take(data.len())?;
            let (now, later) = data.split_at(len);
            self.ram.write(place, now).map_err(|_| Fault::Memory)?;
            data = later;
        }
        Ok(())
    }

    /// Data from the driver.
    pub(super) fn read(&mut self, mut data: &mut [u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (place, len) = self.take(data.len())?;
            let (now, later) = data.split_at_mut(len);
            self.ram.read(place, now).map_err(|_| Fault::Memory)?;
            data = later;
        }
        Ok(())
    }
}
