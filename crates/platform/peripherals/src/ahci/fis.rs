//! Frame information structures (Serial ATA 3.x §10.5), and where received ones go (AHCI 1.3.1 §4.2.1).

use crate::u16_at;

const REGISTER_TO_DEVICE: u8 = 0x27;
const REGISTER_TO_HOST: u8 = 0x34;
const SET_DEVICE_BITS: u8 = 0xa1;
const PIO_SETUP: u8 = 0x5f;

/// Bit 6 of the second byte: the host is to be interrupted.
const INTERRUPT: u8 = 1 << 6;
/// Bit 5 of the second byte of PIO Setup: data go to the host.
const TO_HOST: u8 = 1 << 5;

/// Offsets in the received FIS structure.
pub(super) const PIO_SETUP_AT: u64 = 0x20;
pub(super) const REGISTER_AT: u64 = 0x40;
pub(super) const SET_DEVICE_BITS_AT: u64 = 0x58;

/// A Register Host to Device FIS: the task file that the driver sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TaskFile {
    /// Whether there is a command; otherwise only the control register is meant.
    pub(super) is_command: bool,
    pub(super) command: u8,
    pub(super) feature: u16,
    /// 48 bits.
    pub(super) lba: u64,
    pub(super) device: u8,
    pub(super) count: u16,
    pub(super) control: u8,
}

impl TaskFile {
    /// Reads it out of a command table's first bytes, if that is what they are.
    pub(super) fn read(fis: &[u8; 20]) -> Option<Self> {
        let byte = |at: usize| u64::from(fis[at]);
        let lba = byte(4) | byte(5) << 8 | byte(6) << 16 | byte(8) << 24 | byte(9) << 32 | byte(10) << 40;
        (fis[0] == REGISTER_TO_DEVICE).then_some(Self {
            is_command: fis[1] & 0x80 != 0,
            command: fis[2],
            feature: u16::from_le_bytes([fis[3], fis[11]]),
            lba,
            device: fis[7],
            count: u16_at(fis, 12),
            control: fis[15],
        })
    }
}

/// The task file that a drive answers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u8,
    pub(super) error: u8,
    /// 48 bits.
    pub(super) lba: u64,
    pub(super) device: u8,
    pub(super) count: u16,
}

impl Answer {
    /// As a Register Device to Host FIS.
    pub(super) fn to_register(self) -> [u8; 20] {
        let mut fis = [0; 20];
        fis[..4].copy_from_slice(&[REGISTER_TO_HOST, INTERRUPT, self.status, self.error]);
        let lba = self.lba.to_le_bytes();
        fis[4..7].copy_from_slice(&lba[..3]);
        fis[7] = self.device;
        fis[8..11].copy_from_slice(&lba[3..6]);
        fis[12..14].copy_from_slice(&self.count.to_le_bytes());
        fis
    }

    /// As the PIO Setup FIS of the last block of `bytes` that a command gives to the host, which has the status at
    /// its end in a place of its own.
    pub(super) fn to_pio_setup(self, bytes: u16) -> [u8; 20] {
        let mut fis = self.to_register();
        (fis[0], fis[1]) = (PIO_SETUP, INTERRUPT | TO_HOST);
        // Data are about to be transferred (DRQ), then not any more.
        (fis[2], fis[15]) = (self.status | 0x08, self.status);
        fis[16..18].copy_from_slice(&bytes.to_le_bytes());
        fis
    }

    /// As a Set Device Bits FIS that ends the queued commands of `tags`, one bit each.
    pub(super) fn to_set_device_bits(self, tags: u32) -> [u8; 8] {
        let mut fis = [0; 8];
        // Of the status only some bits are in it.
        fis[..4].copy_from_slice(&[SET_DEVICE_BITS, INTERRUPT, self.status & 0x77, self.error]);
        fis[4..].copy_from_slice(&tags.to_le_bytes());
        fis
    }
}
