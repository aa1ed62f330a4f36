//! The standard PS/2 mouse with three buttons and three-byte packets.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Bytes that the mouse keeps for the controller: five packets.
const BUFFER: usize = 16;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const PASSED: u8 = 0xaa;
/// The identity of a standard mouse.
const STANDARD: u8 = 0x00;

/// The buttons that are held down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buttons {
    /// The left button.
    pub left: bool,
    /// The right button.
    pub right: bool,
    /// The middle button.
    pub middle: bool,
}

impl Buttons {
    fn bits(self) -> u8 {
        u8::from(self.left) | u8::from(self.right) << 1 | u8::from(self.middle) << 2
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    Rate,
    Resolution,
}

/// The mouse's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    buffer: VecDeque<u8>,
    last: u8,
    parameter: Option<Parameter>,
    reporting: bool,
    /// Reports are sent when asked for, not by themselves.
    remote: bool,
    /// Every byte is sent back.
    wrap: bool,
    scaling_2_to_1: bool,
    resolution: u8,
    rate: u8,
    /// Movement not yet reported: right and up.
    moved: (i32, i32),
    buttons: Buttons,
    /// Buttons as last reported.
    reported: Buttons,
}

impl Default for Mouse {
    fn default() -> Self {
        Self {
            buffer: VecDeque::new(),
            last: 0,
            parameter: None,
            reporting: false,
            remote: false,
            wrap: false,
            scaling_2_to_1: false,
            resolution: 2,
            rate: 100,
            moved: (0, 0),
            buttons: Buttons::default(),
            reported: Buttons::default(),
        }
    }
}

impl Mouse {
    pub(super) fn moved(&mut self, right: i32, up: i32, buttons: Buttons) {
        self.moved.0 = self.moved.0.saturating_add(right);
        self.moved.1 = self.moved.1.saturating_add(up);
        self.buttons = buttons;
        self.report_changes();
    }

    /// Sends what has not been reported, as far as the mouse may and has room. Movement that has to wait adds up.
    fn report_changes(&mut self) {
        while self.reporting
            && !self.remote
            && self.buffer.len() + 3 <= BUFFER
            && (self.moved != (0, 0) || self.buttons != self.reported)
        {
            self.report();
        }
    }

    fn report(&mut self) {
        let take = |moved: &mut i32| {
            let step = (*moved).clamp(-255, 255);
            *moved -= step;
            step
        };
        let (right, up) = (take(&mut self.moved.0), take(&mut self.moved.1));
        let signs = u8::from(right < 0) << 4 | u8::from(up < 0) << 5;
        self.reported = self.buttons;
        self.buffer.extend([0x08 | signs | self.buttons.bits(), right as u8, up as u8]);
    }

    fn answer(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.buffer.clear();
        }
        self.buffer.extend(bytes);
    }

    /// A byte from the controller.
    pub(super) fn write(&mut self, value: u8) {
        if self.wrap && !matches!(value, 0xec | 0xff) {
            self.answer(&[value]);
            return;
        }
        if let Some(parameter) = self.parameter.take() {
            match (parameter, value) {
                (Parameter::Resolution, 0..=3) => self.resolution = value,
                (Parameter::Rate, 10 | 20 | 40 | 60 | 80 | 100 | 200) => self.rate = value,
                _ => {
                    self.answer(&[RESEND]);
                    return;
                }
            }
            self.answer(&[ACK]);
            return;
        }
        // A command ends what was being sent.
        self.buffer.clear();
        self.command(value);
        self.report_changes();
    }

    fn command(&mut self, value: u8) {
        match value {
            0xe6 | 0xe7 => {
                self.scaling_2_to_1 = value & 1 != 0;
                self.answer(&[ACK]);
            }
            0xe8 => {
                self.parameter = Some(Parameter::Resolution);
                self.answer(&[ACK]);
            }
            0xe9 => {
                let flags = u8::from(self.remote) << 6
                    | u8::from(self.reporting) << 5
                    | u8::from(self.scaling_2_to_1) << 4
                    | u8::from(self.buttons.left) << 2
                    | u8::from(self.buttons.middle) << 1
                    | u8::from(self.buttons.right);
                self.answer(&[ACK, flags, self.resolution, self.rate]);
            }
            0xea | 0xf0 => {
                self.remote = value == 0xf0;
                self.moved = (0, 0);
                self.answer(&[ACK]);
            }
            0xeb => {
                self.answer(&[ACK]);
                self.report();
            }
            0xec | 0xee => {
                self.wrap = value == 0xee;
                self.answer(&[ACK]);
            }
            0xf2 => self.answer(&[ACK, STANDARD]),
            0xf3 => {
                self.parameter = Some(Parameter::Rate);
                self.answer(&[ACK]);
            }
            0xf4 | 0xf5 => {
                self.reporting = value == 0xf4;
                self.moved = (0, 0);
                self.answer(&[ACK]);
            }
            0xf6 => {
                *self = Self { buttons: self.buttons, ..Self::default() };
                self.answer(&[ACK]);
            }
            0xfe => {
                let last = self.last;
                self.answer(&[last]);
            }
            0xff => {
                *self = Self { buttons: self.buttons, ..Self::default() };
                self.answer(&[ACK, PASSED, STANDARD]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    /// The next byte for the controller.
    pub(super) fn next(&mut self) -> Option<u8> {
        let byte = self.buffer.pop_front()?;
        self.last = byte;
        self.report_changes();
        Some(byte)
    }
}
