//! What drives say of themselves (ATA8-ACS §7.16 and §7.17, ACS-2 where it adds to that).

use posada_storage::{Limits, SECTOR};

/// 512 bytes, seen as words.
pub(super) type Block = [u8; 512];

/// The model, by which guests know the drive.
const DISK_MODEL: &str = "Posada disk";
const CDROM_MODEL: &str = "Posada CD-ROM";
const FIRMWARE: &str = "1.0";

/// Transfer modes are told though none means anything over Serial ATA: multiword DMA 0 to 2, PIO 3 and 4, Ultra DMA
/// 0 to 6 of which the last is set.
const MULTIWORD_DMA: u16 = 0x0007;
const PIO_MODES: u16 = 0x0003;
const ULTRA_DMA: u16 = 0x407f;
/// The fastest cycle, in nanoseconds.
const CYCLE: u16 = 120;
/// Serial ATA at 1.5, 3 and 6 Gb/s; native command queuing.
const SPEEDS: u16 = 0x000e;
const QUEUING: u16 = 1 << 8;
/// Major versions that the drive knows: ATA/ATAPI-5 to ACS-2.
const VERSIONS: u16 = 0x03e0;

struct Words(Block);

impl Words {
    fn set(&mut self, word: usize, value: u16) {
        self.0[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn set_all(&mut self, words: &[(usize, u16)]) {
        for (word, value) in words {
            self.set(*word, *value);
        }
    }

    /// A string: two characters a word, the first in the high byte, and spaces after it.
    fn set_text(&mut self, word: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().map(|byte| if byte.is_ascii_graphic() { byte } else { b' ' });
        for at in word..word + words {
            let mut next = || u16::from(bytes.next().unwrap_or(b' '));
            let (first, second) = (next(), next());
            self.set(at, first << 8 | second);
        }
    }

    fn set_common(&mut self, serial: &str, model: &str) {
        self.set_text(10, 10, serial);
        self.set_text(23, 4, FIRMWARE);
        self.set_text(27, 20, model);
        self.set_all(&[(53, 6), (63, MULTIWORD_DMA), (64, PIO_MODES)]);
        self.set_all(&[(65, CYCLE), (66, CYCLE), (67, CYCLE), (68, CYCLE)]);
        self.set_all(&[(80, VERSIONS), (88, ULTRA_DMA)]);
    }

    /// The block with its checksum (word 255).
    fn finish(mut self) -> Block {
        self.0[510] = 0xa5;
        let sum = self.0[..511].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        self.0[511] = sum.wrapping_neg();
        self.0
    }
}

/// What of a disk can change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) write_cache: bool,
    /// Sectors of a block in READ and WRITE MULTIPLE; 0 for none set.
    pub(super) multiple: u8,
}

/// The geometry for those that insist on one: 16 heads of 63 sectors.
pub(super) const HEADS: u64 = 16;
pub(super) const SECTORS_A_TRACK: u64 = 63;
/// The most sectors of a block in READ and WRITE MULTIPLE.
pub(super) const MAX_MULTIPLE: u8 = 16;
/// The most blocks of ranges that DATA SET MANAGEMENT takes.
pub(super) const MAX_RANGE_BLOCKS: u16 = 64;

/// IDENTIFY DEVICE.
pub(super) fn disk(sectors: u64, limits: Limits, serial: &str, settings: Settings, trims: bool) -> Block {
    /// Commands that the disk carries out (words 82 to 84): look-ahead and write cache; FLUSH CACHE and its EXT, 48-bit
    /// addresses; general purpose logging, WRITE DMA FUA EXT.
    const COMMANDS: [u16; 3] = [1 << 6 | 1 << 5, 1 << 13 | 1 << 12 | 1 << 10, 1 << 6 | 1 << 5];
    /// Bit 14 of words that must have it.
    const VALID: u16 = 1 << 14;
    let mut words = Words([0; 512]);
    words.set_common(serial, DISK_MODEL);
    let cylinders = (sectors / (HEADS * SECTORS_A_TRACK)).min(16383);
    let chs = (cylinders * HEADS * SECTORS_A_TRACK) as u32;
    words.set_all(&[(0, 0x0040), (1, cylinders as u16), (3, HEADS as u16), (6, SECTORS_A_TRACK as u16)]);
    words.set_all(&[(47, 0x8000 | u16::from(MAX_MULTIPLE)), (49, 0x0f00), (50, VALID), (53, 7)]);
    words.set_all(&[(54, cylinders as u16), (55, HEADS as u16), (56, SECTORS_A_TRACK as u16)]);
    words.set_all(&[(57, chs as u16), (58, (chs >> 16) as u16)]);
    if settings.multiple != 0 {
        words.set(59, 0x0100 | u16::from(settings.multiple));
    }
    let short = sectors.min(0x0fff_ffff) as u32;
    words.set_all(&[(60, short as u16), (61, (short >> 16) as u16)]);
    words.set_all(&[(75, 31), (76, SPEEDS | QUEUING), (222, 0x10ff)]);
    words.set_all(&[(82, COMMANDS[0]), (83, COMMANDS[1] | VALID), (84, COMMANDS[2] | VALID)]);
    let cache = if settings.write_cache { 0 } else { 1 << 5 };
    words.set_all(&[(85, COMMANDS[0] & !cache), (86, COMMANDS[1]), (87, COMMANDS[2] | VALID)]);
    for (at, part) in (100..104).zip([0, 16, 32, 48]) {
        words.set(at, (sectors >> part) as u16);
    }
    let physical = (u64::from(limits.physical_block) / SECTOR).max(1).ilog2() as u16;
    // Several logical sectors make a physical one, and the first begins where one does.
    words.set_all(&[(106, VALID | u16::from(physical != 0) << 13 | physical & 0xf), (209, VALID)]);
    if trims {
        words.set_all(&[(105, MAX_RANGE_BLOCKS), (169, 1)]);
    }
    // It does not rotate.
    words.set(217, 1);
    words.finish()
}

/// IDENTIFY PACKET DEVICE, of a CD-ROM drive with packets of 12 bytes.
pub(super) fn cdrom(serial: &str) -> Block {
    let mut words = Words([0; 512]);
    words.set_common(serial, CDROM_MODEL);
    // A packet device, of type 5 (CD-ROM), removable, that asks for a packet within 50 µs.
    words.set_all(&[(0, 0x85c0), (49, 0x0f00), (76, SPEEDS), (222, 0x10ff)]);
    // PACKET and removable media and DEVICE RESET: supported, and enabled.
    words.set_all(&[(82, 0x0210), (83, 1 << 14), (84, 1 << 14), (85, 0x0210), (87, 1 << 14)]);
    words.finish()
}
