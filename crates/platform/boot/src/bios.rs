//! The BIOS data area at 0x400, which kernels read long after the BIOS is gone.

use posada_memory::{Gpa, GuestRam};

use crate::Error;

/// What the data area tells.
#[derive(Clone, Copy, Debug)]
pub struct DataArea {
    /// I/O ports of up to four serial ports, 0 for none: 0x400.
    pub serial: [u16; 4],
    /// Where the extended data area begins, a multiple of 1024 below 640 KiB: 0x40e and 0x413. Kernels use no
    /// conventional memory above it.
    pub extended: u32,
}

impl DataArea {
    /// Writes it to guest RAM.
    pub fn write(&self, ram: &GuestRam) -> Result<(), Error> {
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
        let start = Gpa(0x400);
        let failed = |_| Error::OutsideRam { what: "the BIOS data area".into(), start, size: 0x100 };
        ram.write(start, &area).map_err(failed)?;
        // The extended data area begins with its own size in KiB.
        let size = 640u32.saturating_sub(self.extended >> 10) as u16;
        let start = Gpa(u64::from(self.extended));
        let failed = |_| Error::OutsideRam { what: "the extended BIOS data area".into(), start, size: 2 };
        ram.write(start, &size.to_le_bytes()).map_err(failed)
    }
}
