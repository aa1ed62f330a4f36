//! The serial EEPROM: 64 words that say what the card is (SDM §5.6), read by a register or bit by bit (§5.3).

use serde::{Deserialize, Serialize};

/// Device and subsystem ID of the 82540EM as a desktop adapter.
pub(super) const DEVICE: u16 = 0x100e;
pub(super) const SUBSYSTEM: u16 = 0x001e;

const WORDS: usize = 64;
/// What all words add up to.
const SUM: u16 = 0xbaba;

/// Bits of `EECD`.
const CLOCK: u32 = 1 << 0;
const SELECT: u32 = 1 << 1;
const DATA_IN: u32 = 1 << 2;
const DATA_OUT: u32 = 1 << 3;
const REQUEST: u32 = 1 << 6;
const GRANT: u32 = 1 << 7;
const PRESENT: u32 = 1 << 8;

/// The start bit and the operation, "read", and how many bits follow them.
const READ: u16 = 0b110;
const ADDRESS_BITS: u32 = 6;

/// The EEPROM, with the state of the serial interface (Microwire).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Eeprom {
    words: Vec<u16>,
    eecd: u32,
    /// Bits that have come in since the start bit.
    command: u16,
    bits: u32,
    /// The bit that is out next, counted from the first of word 0.
    position: Option<u32>,
    out: bool,
    eerd: u32,
}

impl Eeprom {
    /// Of a card with this address.
    pub(super) fn new(address: [u8; 6]) -> Self {
        let mut words = vec![0; WORDS];
        for (word, pair) in words.iter_mut().zip(address.chunks_exact(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        // Initialization control 1: valid, IDs are to be taken from here.
        words[0x0a] = 0x4003;
        words[0x0b..0x0f].copy_from_slice(&[SUBSYSTEM, 0x8086, DEVICE, 0x8086]);
        let sum = words.iter().fold(0_u16, |sum, word| sum.wrapping_add(*word));
        words[WORDS - 1] = SUM.wrapping_sub(sum);
        Self { words, eecd: 0, command: 0, bits: 0, position: None, out: false, eerd: 0 }
    }

    fn word(&self, index: u32) -> u16 {
        self.words.get(index as usize).copied().unwrap_or(0)
    }

    pub(super) fn read_eecd(&self) -> u32 {
        let grant = if self.eecd & REQUEST != 0 { GRANT } else { 0 };
        self.eecd | grant | PRESENT | if self.out { DATA_OUT } else { 0 }
    }

    pub(super) fn write_eecd(&mut self, value: u32) {
        let rises = self.eecd & CLOCK == 0 && value & CLOCK != 0;
        self.eecd = value & (CLOCK | SELECT | DATA_IN | REQUEST);
        if value & SELECT == 0 {
            (self.command, self.bits, self.position, self.out) = (0, 0, None, false);
        } else if rises {
            self.clock(value & DATA_IN != 0);
        }
    }

    /// A rising edge of the clock. After the address there is a zero, then the word, and the next one.
    fn clock(&mut self, bit: bool) {
        if let Some(position) = &mut self.position {
            let at = *position;
            *position = (at + 1) % (WORDS as u32 * 16);
            self.out = self.word(at / 16) >> (15 - at % 16) & 1 != 0;
            return;
        }
        // Zeroes before the start bit are no command.
        if self.bits != 0 || bit {
            self.command = self.command << 1 | u16::from(bit);
            self.bits += 1;
        }
        if self.bits == 3 + ADDRESS_BITS {
            self.bits = 0;
            // It cannot be written: other operations go nowhere.
            if self.command >> ADDRESS_BITS == READ {
                self.position = Some(u32::from(self.command & 0x3f) * 16);
            }
            self.command = 0;
        }
    }

    pub(super) fn read_eerd(&self) -> u32 {
        self.eerd
    }

    /// `EERD`: start, and the address; then done, and the data (SDM §13.4.4).
    pub(super) fn write_eerd(&mut self, value: u32) {
        const START: u32 = 1;
        const DONE: u32 = 1 << 4;
        if value & START != 0 {
            let address = value >> 8 & 0xff;
            self.eerd = u32::from(self.word(address)) << 16 | address << 8 | DONE;
        }
    }
}
