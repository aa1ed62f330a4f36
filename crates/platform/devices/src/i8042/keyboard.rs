//! The PS/2 keyboard: commands, and scan codes of sets 1 and 2.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes that the keyboard keeps for the controller.
const BUFFER: usize = 16;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
/// Self test passed.
const PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// Stands in the buffer for keys that found no room, in set 2.
const OVERRUN: u8 = 0x00;
/// Precedes the code of a key that is released, in set 2.
const RELEASE: u8 = 0xf0;
/// Precedes the code of a key that the first keyboards did not have.
const EXTENDED: u8 = 0xe0;

/// A key, by its code in scan code set 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    code: u8,
    extended: bool,
}

impl Key {
    /// The key with this code, such as 0x1c for A.
    pub const fn new(code: u8) -> Self {
        Self { code, extended: false }
    }

    /// The key whose code follows 0xe0, such as 0x75 for the cursor key up.
    pub const fn extended(code: u8) -> Self {
        Self { code, extended: true }
    }
}

/// Which command's parameter comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    Lamps,
    ScanCodeSet,
    Rate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum ScanCodes {
    Set1,
    #[default]
    Set2,
}

/// The keyboard's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    buffer: VecDeque<u8>,
    /// The last byte sent, for "resend".
    last: u8,
    parameter: Option<Parameter>,
    scanning: bool,
    codes: ScanCodes,
    lamps: u8,
    /// The controller's translation has seen a release prefix.
    releasing: bool,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            buffer: VecDeque::new(),
            last: 0,
            parameter: None,
            scanning: true,
            codes: ScanCodes::default(),
            lamps: 0,
            releasing: false,
        }
    }
}

impl Keyboard {
    pub(super) fn lamps(&self) -> u8 {
        self.lamps
    }

    /// A key goes down or up. If the buffer has no room for all of it, the overrun code takes its place.
    pub(super) fn press(&mut self, key: Key, down: bool) {
        if !self.scanning {
            return;
        }
        let mut bytes = Vec::with_capacity(3);
        if key.extended {
            bytes.push(EXTENDED);
        }
        match self.codes {
            ScanCodes::Set1 => bytes.push(set_1(key.code) | if down { 0 } else { 0x80 }),
            ScanCodes::Set2 if down => bytes.push(key.code),
            ScanCodes::Set2 => bytes.extend([RELEASE, key.code]),
        }
        if self.buffer.len() + bytes.len() < BUFFER {
            self.buffer.extend(bytes);
        } else if self.buffer.len() < BUFFER {
            self.buffer.push_back(OVERRUN);
        }
    }

    /// Answers go before keys; they always find room, since each command clears what was before.
    fn answer(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.buffer.clear();
        }
        self.buffer.extend(bytes);
    }

    /// A byte from the controller.
    pub(super) fn write(&mut self, value: u8) {
        // A command takes the place of a parameter that is waited for.
        if value < 0xed
            && let Some(parameter) = self.parameter.take()
        {
            self.take_parameter(parameter, value);
            return;
        }
        self.parameter = None;
        match value {
            0xed => self.expect(Parameter::Lamps),
            0xee => self.answer(&[ECHO]),
            0xf0 => self.expect(Parameter::ScanCodeSet),
            // Identify: an MF2 keyboard.
            0xf2 => self.answer(&[ACK, 0xab, 0x83]),
            0xf3 => self.expect(Parameter::Rate),
            0xf4 => {
                self.buffer.clear();
                self.scanning = true;
                self.answer(&[ACK]);
            }
            0xf5 => {
                *self = Self { scanning: false, lamps: self.lamps, ..Self::default() };
                self.answer(&[ACK]);
            }
            0xf6 => {
                *self = Self { lamps: self.lamps, ..Self::default() };
                self.answer(&[ACK]);
            }
            // Key types, which matter in set 3 alone.
            0xf7..=0xfa => self.answer(&[ACK]),
            0xfe => {
                let last = self.last;
                self.answer(&[last]);
            }
            0xff => {
                *self = Self::default();
                self.answer(&[ACK, PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn expect(&mut self, parameter: Parameter) {
        self.parameter = Some(parameter);
        self.answer(&[ACK]);
    }

    fn take_parameter(&mut self, parameter: Parameter, value: u8) {
        match (parameter, value) {
            (Parameter::Lamps, _) => self.lamps = value & 7,
            (Parameter::Rate, 0..=0x7f) | (Parameter::ScanCodeSet, 0..=2) => {}
            // Set 3, which no system of today uses, is not there.
            _ => {
                self.parameter = Some(parameter);
                self.answer(&[RESEND]);
                return;
            }
        }
        self.answer(&[ACK]);
        match (parameter, value) {
            (Parameter::ScanCodeSet, 0) => {
                let set = if self.codes == ScanCodes::Set1 { 1 } else { 2 };
                self.answer(&[set]);
            }
            (Parameter::ScanCodeSet, 1) => self.codes = ScanCodes::Set1,
            (Parameter::ScanCodeSet, 2) => self.codes = ScanCodes::Set2,
            _ => {}
        }
    }

    /// The next byte as the controller passes it on, translated from set 2 to set 1 if its mode says so.
    pub(super) fn next(&mut self, translate: bool) -> Option<u8> {
        loop {
            let byte = self.buffer.pop_front()?;
            self.last = byte;
            if !translate {
                self.releasing = false;
                return Some(byte);
            }
            if byte == RELEASE {
                self.releasing = true;
                continue;
            }
            let release = if std::mem::take(&mut self.releasing) { 0x80 } else { 0 };
            return Some(translated(byte) | release);
        }
    }
}

/// What the controller's translation makes of a byte from the keyboard: codes of keys become set 1's, the rest
/// passes.
fn translated(byte: u8) -> u8 {
    match byte {
        // F7 and Alt+SysRq have codes above 0x7f.
        0x83 => 0x41,
        0x84 => 0x54,
        0x00 => 0xff,
        0x01..=0x7f => set_1(byte),
        _ => byte,
    }
}

/// The code of set 1 for a code of set 2. Codes without a key map to themselves within seven bits.
fn set_1(code: u8) -> u8 {
    // Rows of the 8042's translation table, by the high digit of the set 2 code.
    const TABLE: [[u8; 16]; 8] = [
        [0x7f, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59],
        [0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b],
        [0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d],
        [0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f],
        [0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61],
        [0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76],
        [0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f],
        [0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54],
    ];
    match code {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => TABLE[usize::from(code >> 4 & 7)][usize::from(code & 15)],
    }
}
