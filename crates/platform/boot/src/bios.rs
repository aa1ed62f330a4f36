//! What a BIOS leaves behind for those who look after it is gone: the data area at 0x400, and interrupt vectors.
//!
//! There is no BIOS. Kernels read its data area nevertheless, and some call it for what their boot protocol has
//! told them already (Xen's trampoline asks for the memory map and the display). The vectors lead to routines
//! that say "not supported", so such a call fails as it may on any PC, rather than running away. Addresses and
//! conventions are those of the IBM Personal System/2 and Personal Computer BIOS Interface Technical Reference.

use posada_memory::{Gpa, GuestRam};

use crate::Error;

/// The segment of all BIOS code.
const SEGMENT: u16 = 0xf000;
/// The place where processors begin, and where software jumps to reset a PC.
const RESET: u16 = 0xfff0;
/// Where a PC's BIOS has always had a lone `iret`.
const NOTHING: u16 = 0xff53;

/// Routines, by their offset in [`SEGMENT`].
const ROUTINES: [(u16, &[u8]); 8] = [
    (NOTHING, &[0xcf]),
    // push bp; mov bp, sp; or byte [bp+6], 1; pop bp; iret: returns with the carry flag set.
    (FAIL, &[0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf]),
    // mov ah, 0x86; jmp FAIL
    (UNSUPPORTED, &[0xb4, 0x86, 0xeb, 0xf3]),
    // push ds; push 0x40; pop ds; mov ax, [0x10]; pop ds; iret
    (EQUIPMENT, &[0x1e, 0x6a, 0x40, 0x1f, 0xa1, 0x10, 0x00, 0x1f, 0xcf]),
    (MEMORY_SIZE, &[0x1e, 0x6a, 0x40, 0x1f, 0xa1, 0x13, 0x00, 0x1f, 0xcf]),
    // mov al, 0xfe; out 0x64, al; l: hlt; jmp l: resets by the keyboard controller.
    (RESTART, &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd]),
    // jmp far SEGMENT:RESTART; a release date, and the model byte of an AT.
    (RESET, &[0xea, 0x80, 0xff, 0x00, 0xf0]),
    (0xfff5, b"01/01/99\0\xfc\0"),
];
const FAIL: u16 = 0xff54;
const UNSUPPORTED: u16 = 0xff5d;
const EQUIPMENT: u16 = 0xff61;
const MEMORY_SIZE: u16 = 0xff6a;
const RESTART: u16 = 0xff80;

/// Where the routines begin: what else lies in the firmware area ends before.
pub const ROUTINES_START: Gpa = Gpa(0xf_ff00);

/// What the data area tells.
#[derive(Clone, Copy, Debug)]
pub struct DataArea {
    /// I/O ports of up to four serial ports, 0 for none: 0x400.
    pub serial: [u16; 4],
    /// Where the extended data area begins, a multiple of 1024 below 640 KiB: 0x40e and 0x413. Kernels use no
    /// conventional memory above it.
    pub extended: u32,
}

/// Writes the interrupt vectors, the routines they lead to and the data area to guest RAM.
pub fn write(ram: &GuestRam, area: &DataArea) -> Result<(), Error> {
    let vectors: Vec<u8> = (0..=0xff)
        .flat_map(|vector| {
            let [low, high] = routine(vector).to_le_bytes();
            let [segment_low, segment_high] = SEGMENT.to_le_bytes();
            [low, high, segment_low, segment_high]
        })
        .collect();
    put(ram, "the BIOS interrupt vectors", 0, &vectors)?;
    for (offset, code) in ROUTINES {
        put(ram, "a BIOS routine", (u64::from(SEGMENT) << 4) + u64::from(offset), code)?;
    }
    put(ram, "the BIOS data area", 0x400, &area.bytes())?;
    // The extended data area begins with its own size in KiB.
    let size = 640u32.saturating_sub(area.extended >> 10) as u16;
    put(ram, "the extended BIOS data area", u64::from(area.extended), &size.to_le_bytes())
}

/// The routine for an interrupt.
fn routine(vector: u8) -> u16 {
    match vector {
        0x11 => EQUIPMENT,
        0x12 => MEMORY_SIZE,
        0x15 => UNSUPPORTED,
        // Nothing to boot from; boot again.
        0x18 | 0x19 => RESET,
        // Display, disk, serial port, keyboard, printer, clock.
        0x10 | 0x13 | 0x14 | 0x16 | 0x17 | 0x1a => FAIL,
        _ => NOTHING,
    }
}

fn put(ram: &GuestRam, what: &str, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let (start, size) = (Gpa(at), bytes.len() as u64);
    ram.write(start, bytes).map_err(|_| Error::OutsideRam { what: what.into(), start, size })
}

impl DataArea {
    fn bytes(&self) -> [u8; 0x100] {
        let mut area = [0u8; 0x100];
        let mut put = |at: usize, value: u16| area[at..at + 2].copy_from_slice(&value.to_le_bytes());
        for (index, &port) in self.serial.iter().enumerate() {
            put(index * 2, port);
        }
        let ports = self.serial.iter().filter(|&&port| port != 0).count() as u16;
        put(0x0e, (self.extended >> 4) as u16);
        // Equipment: coprocessor, number of serial ports.
        put(0x10, 1 << 1 | ports << 9);
        put(0x13, (self.extended >> 10) as u16);
        area
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routines_follow_each_other_and_lie_where_vectors_lead() {
        let mut end = (ROUTINES_START.0 & 0xffff) as u16;
        for (offset, code) in ROUTINES {
            assert!(offset >= end, "{offset:#x}");
            end = offset.wrapping_add(code.len() as u16);
        }
        assert_eq!(end, 0, "the last byte is the last below 1 MiB");
        for vector in 0..=0xff {
            assert!(ROUTINES.iter().any(|&(offset, _)| offset == routine(vector)), "{vector:#x}");
        }
    }
}
