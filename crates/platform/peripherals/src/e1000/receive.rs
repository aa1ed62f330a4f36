//! Frames for the driver (SDM §3.2).

use posada_memory::{Gpa, GuestRam};
use posada_network::link::Packet;

use super::registers::Registers;

/// The shortest frame, and the longest without `RCTL.LPE` (1522 with its CRC).
const MIN_FRAME: usize = 60;
const MAX_FRAME: usize = 1518;
/// The longest of all: what drivers ask for at most.
const MAX_LONG_FRAME: usize = 16 << 10;
/// Bytes of the frame check sequence.
const CRC_LEN: usize = 4;

/// Bits of the status, and of the errors.
const DONE: u8 = 1 << 0;
const END_OF_PACKET: u8 = 1 << 1;
const IGNORE_CHECKSUMS: u8 = 1 << 2;
const TRANSPORT_CHECKED: u8 = 1 << 5;
const DATA_ERROR: u8 = 1 << 7;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Delivered,
    /// The driver does not want it, or can never have it.
    Dropped,
    /// There are not enough descriptors yet.
    NoRoom,
}

/// Puts a frame into the driver's buffers.
pub(super) fn deliver(ram: &GuestRam, registers: &mut Registers, packet: &Packet) -> Outcome {
    let Some(destination) = packet.bytes.first_chunk() else { return Outcome::Dropped };
    let longest = if registers.takes_long_frames() { MAX_LONG_FRAME } else { MAX_FRAME };
    if packet.bytes.len() > longest || !registers.accepts(*destination) {
        return Outcome::Dropped;
    }
    let mut bytes = packet.bytes.clone();
    bytes.resize(bytes.len().max(MIN_FRAME), 0);
    if !registers.strips_crc() {
        // The link has no check sequences, and no driver looks at one.
        bytes.resize(bytes.len() + CRC_LEN, 0);
    }
    let (size, available) = (registers.buffer_len(), registers.receive.available() as usize);
    if bytes.len().div_ceil(size) > available {
        return Outcome::NoRoom;
    }
    let checked = packet.offload.checked && registers.tells_checksums();
    let checksums = if checked { TRANSPORT_CHECKED } else { IGNORE_CHECKSUMS };
    let mut parts = bytes.chunks(size).peekable();
    while let Some(part) = parts.next() {
        let end = if parts.peek().is_none() { END_OF_PACKET } else { 0 };
        let Some(place) = registers.receive.next() else { return Outcome::Dropped };
        let mut buffer = [0; 8];
        if ram.read(Gpa(place), &mut buffer).is_err() {
            // A ring that is not in memory has no room for anything.
            return Outcome::NoRoom;
        }
        let written = ram.write(Gpa(u64::from_le_bytes(buffer)), part);
        let errors = if written.is_err() { DATA_ERROR } else { 0 };
        let [low, high] = (part.len() as u16).to_le_bytes();
        // Length, checksum, status, errors, special. The status comes last, by which drivers know.
        let told = [low, high, 0, 0, 0, errors, 0, 0];
        let status = DONE | end | checksums;
        let _ = ram.write(Gpa(place.wrapping_add(8)), &told);
        let _ = ram.write(Gpa(place.wrapping_add(12)), &[status]);
        registers.receive.advance();
    }
    Outcome::Delivered
}
