//! The 8042 keyboard controller, with a PS/2 keyboard and mouse, and port 0x92.
//!
//! Data at port 0x60, commands and status at 0x64. Through its output port the controller also holds the gate of
//! address line 20 and the processor's reset line, which port 0x92 reaches faster. Facts: IBM PS/2 Hardware
//! Interface Technical Reference, "Keyboard and Auxiliary Device Controller".

mod keyboard;
mod mouse;

use crate::line::Output;
use crate::{IrqLine, StateError};
use keyboard::Keyboard;
use mouse::Mouse;
use serde::{Deserialize, Serialize};

pub use keyboard::Key;
pub use mouse::Buttons;

/// The data port.
pub const DATA_PORT: u16 = 0x60;
/// The command and status port.
pub const COMMAND_PORT: u16 = 0x64;
/// System control port A: fast A20 and reset.
pub const SYSTEM_CONTROL_A: u16 = 0x92;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
/// The last write was a command.
const STATUS_COMMAND: u8 = 0x08;
/// The keyboard's lock is open.
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_AUX: u8 = 0x20;

const MODE_KEYBOARD_INTERRUPT: u8 = 0x01;
const MODE_AUX_INTERRUPT: u8 = 0x02;
const MODE_SYSTEM: u8 = 0x04;
const MODE_KEYBOARD_OFF: u8 = 0x10;
const MODE_AUX_OFF: u8 = 0x20;
const MODE_TRANSLATE: u8 = 0x40;

const OUT_NOT_RESET: u8 = 0x01;
const OUT_A20: u8 = 0x02;
const OUT_KEYBOARD_FULL: u8 = 0x10;
const OUT_AUX_FULL: u8 = 0x20;

/// Input port: keyboard not locked, no manufacturing jumper.
const INPUT_PORT: u8 = 0xb0;

/// What the guest asked of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for this to happen"]
pub enum Request {
    /// Pulse the reset line.
    Reset,
    /// Open (`true`) or close the gate of address line 20.
    A20(bool),
}

/// Where a byte in the output buffer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
    /// The controller's own answer.
    Controller,
}

/// What the next write to the data port is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Pending {
    #[default]
    Keyboard,
    /// Byte of the controller's RAM; byte 0 is the mode.
    Ram(u8),
    OutputPort,
    /// Put into the output buffer as if from the keyboard or from the auxiliary device.
    EchoKeyboard,
    EchoAux,
    Aux,
}

/// The saved state of the controller and of both devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    output: Option<(Source, u8)>,
    /// A device's byte that was in the output buffer when the controller had to answer a command.
    held: Option<(Source, u8)>,
    /// What the data port reads when the output buffer is empty: the last byte.
    last: u8,
    status: u8,
    /// The controller's RAM; byte 0 is the mode.
    ram: [u8; 32],
    output_port: u8,
    pending: Pending,
    keyboard: Keyboard,
    mouse: Mouse,
    keyboard_line: bool,
    aux_line: bool,
}

/// The controller, with the lines of interrupt requests 1 and 12.
///
/// ```
/// use posada_devices::i8042::{I8042, Key};
/// use posada_devices::Unconnected;
///
/// let mut i8042 = I8042::new(Unconnected, Unconnected);
/// i8042.press(Key::new(0x1c), true); // A
/// assert_eq!(i8042.read_status() & 1, 1);
/// assert_eq!(i8042.read_data(), 0x1e); // translated to set 1
/// ```
#[derive(Debug)]
pub struct I8042<L> {
    regs: I8042State,
    keyboard_line: Output<L>,
    aux_line: Output<L>,
}

impl<L: IrqLine> I8042<L> {
    /// The controller as firmware leaves it: tested, both devices on, interrupts and translation on, A20 open.
    pub fn new(keyboard_line: L, aux_line: L) -> Self {
        Self {
            regs: Self::power_on(),
            keyboard_line: Output::at(keyboard_line, false),
            aux_line: Output::at(aux_line, false),
        }
    }

    fn power_on() -> I8042State {
        let mut ram = [0; 32];
        ram[0] = MODE_KEYBOARD_INTERRUPT | MODE_SYSTEM | MODE_AUX_OFF | MODE_TRANSLATE;
        I8042State {
            output: None,
            held: None,
            last: 0,
            status: STATUS_SYSTEM | STATUS_UNLOCKED,
            ram,
            output_port: OUT_NOT_RESET | OUT_A20,
            pending: Pending::Keyboard,
            keyboard: Keyboard::default(),
            mouse: Mouse::default(),
            keyboard_line: false,
            aux_line: false,
        }
    }

    /// The saved state.
    pub fn state(&self) -> I8042State {
        I8042State {
            keyboard_line: self.keyboard_line.level(),
            aux_line: self.aux_line.level(),
            ..self.regs.clone()
        }
    }

    /// The controller in a saved state. The lines are not driven.
    pub fn from_state(state: I8042State, keyboard_line: L, aux_line: L) -> Result<Self, StateError> {
        if matches!(state.pending, Pending::Ram(index) if index > 31) {
            return Err(StateError::new("keyboard controller", format!("{:?}", state.pending)));
        }
        let (keyboard_level, aux_level) = (state.keyboard_line, state.aux_line);
        Ok(Self {
            regs: state,
            keyboard_line: Output::at(keyboard_line, keyboard_level),
            aux_line: Output::at(aux_line, aux_level),
        })
    }

    /// The machine's reset.
    pub fn reset(&mut self) {
        self.regs = Self::power_on();
        self.settle();
    }

    /// Whether the gate of address line 20 is open.
    pub fn a20(&self) -> bool {
        self.regs.output_port & OUT_A20 != 0
    }

    /// Somebody presses or releases a key.
    pub fn press(&mut self, key: Key, down: bool) {
        self.regs.keyboard.press(key, down);
        self.settle();
    }

    /// Somebody moves the mouse (right and up are positive) or changes its buttons.
    pub fn move_mouse(&mut self, right: i32, up: i32, buttons: Buttons) {
        self.regs.mouse.moved(right, up, buttons);
        self.settle();
    }

    /// The keyboard's lamps: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    pub fn lamps(&self) -> u8 {
        self.regs.keyboard.lamps()
    }

    /// Reads the status register.
    pub fn read_status(&self) -> u8 {
        let output = match self.regs.output {
            None => 0,
            Some((Source::Aux, _)) => STATUS_OUTPUT_FULL | STATUS_AUX,
            Some(_) => STATUS_OUTPUT_FULL,
        };
        self.regs.status | output
    }

    /// Reads the data port.
    pub fn read_data(&mut self) -> u8 {
        if let Some((_, byte)) = self.regs.output.take() {
            self.regs.last = byte;
            // The request falls with the byte read, so that the next byte is another edge.
            self.update_lines();
            self.settle();
        }
        self.regs.last
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8) -> Option<Request> {
        self.regs.status &= !STATUS_COMMAND;
        let mut request = None;
        match std::mem::take(&mut self.regs.pending) {
            Pending::Keyboard => {
                // A byte for the keyboard turns its line on again.
                self.regs.ram[0] &= !MODE_KEYBOARD_OFF;
                self.regs.keyboard.write(value);
            }
            Pending::Aux => {
                self.regs.ram[0] &= !MODE_AUX_OFF;
                self.regs.mouse.write(value);
            }
            Pending::Ram(index) => {
                self.regs.ram[usize::from(index & 31)] = value;
                if index == 0 {
                    let system = if value & MODE_SYSTEM != 0 { STATUS_SYSTEM } else { 0 };
                    self.regs.status = self.regs.status & !STATUS_SYSTEM | system;
                }
            }
            Pending::OutputPort => request = self.write_output_port(value),
            Pending::EchoKeyboard => self.answer(Source::Keyboard, value),
            Pending::EchoAux => self.answer(Source::Aux, value),
        }
        self.settle();
        request
    }

    /// Writes the command port.
    pub fn write_command(&mut self, command: u8) -> Option<Request> {
        self.regs.status |= STATUS_COMMAND;
        self.regs.pending = Pending::Keyboard;
        let mut request = None;
        match command {
            0x20..=0x3f => self.answer(Source::Controller, self.regs.ram[usize::from(command & 31)]),
            0x60..=0x7f => self.regs.pending = Pending::Ram(command & 31),
            0xa7 => self.regs.ram[0] |= MODE_AUX_OFF,
            0xa8 => self.regs.ram[0] &= !MODE_AUX_OFF,
            // Interface tests: nothing stuck.
            0xa9 | 0xab => self.answer(Source::Controller, 0),
            0xaa => {
                // Self test: passed.
                self.regs.status |= STATUS_SYSTEM;
                self.answer(Source::Controller, 0x55);
            }
            0xad => self.regs.ram[0] |= MODE_KEYBOARD_OFF,
            0xae => self.regs.ram[0] &= !MODE_KEYBOARD_OFF,
            0xc0 => self.answer(Source::Controller, INPUT_PORT),
            0xd0 => self.answer(Source::Controller, self.read_output_port()),
            0xd1 => self.regs.pending = Pending::OutputPort,
            0xd2 => self.regs.pending = Pending::EchoKeyboard,
            0xd3 => self.regs.pending = Pending::EchoAux,
            0xd4 => self.regs.pending = Pending::Aux,
            // Close and open A20, as some controllers know.
            0xdd => request = self.set_a20(false),
            0xdf => request = self.set_a20(true),
            // Pulse the low output lines whose bit is 0: the lowest is the processor's reset.
            0xf0..=0xff if command & 1 == 0 => request = Some(Request::Reset),
            _ => {}
        }
        self.settle();
        request
    }

    fn read_output_port(&self) -> u8 {
        let full = match self.regs.output {
            None => 0,
            Some((Source::Aux, _)) => OUT_AUX_FULL,
            Some(_) => OUT_KEYBOARD_FULL,
        };
        self.regs.output_port | full
    }

    fn write_output_port(&mut self, value: u8) -> Option<Request> {
        if value & OUT_NOT_RESET == 0 {
            return Some(Request::Reset);
        }
        self.set_a20(value & OUT_A20 != 0)
    }

    fn set_a20(&mut self, open: bool) -> Option<Request> {
        if open == self.a20() {
            return None;
        }
        self.regs.output_port ^= OUT_A20;
        Some(Request::A20(open))
    }

    /// Reads port 0x92.
    pub fn read_system_control(&self) -> u8 {
        if self.a20() { 0x02 } else { 0 }
    }

    /// Writes port 0x92: bit 1 opens A20, bit 0 resets.
    pub fn write_system_control(&mut self, value: u8) -> Option<Request> {
        if value & 1 != 0 {
            return Some(Request::Reset);
        }
        self.set_a20(value & 2 != 0)
    }

    /// Puts a byte into the output buffer. A device's byte that was not read comes again after it.
    fn answer(&mut self, source: Source, byte: u8) {
        let unread = self.regs.output.replace((source, byte));
        if self.regs.held.is_none() {
            self.regs.held = unread.filter(|&(source, _)| source != Source::Controller);
        }
        self.keyboard_line.set(false);
        self.aux_line.set(false);
    }

    /// After anything that happened: fills the output buffer if it is empty and drives the lines.
    fn settle(&mut self) {
        let regs = &mut self.regs;
        let mode = regs.ram[0];
        if regs.output.is_none() {
            regs.output = regs.held.take();
        }
        if regs.output.is_none() && mode & MODE_KEYBOARD_OFF == 0 {
            regs.output = regs.keyboard.next(mode & MODE_TRANSLATE != 0).map(|byte| (Source::Keyboard, byte));
        }
        if regs.output.is_none() && mode & MODE_AUX_OFF == 0 {
            regs.output = regs.mouse.next().map(|byte| (Source::Aux, byte));
        }
        self.update_lines();
    }

    fn update_lines(&mut self) {
        let mode = self.regs.ram[0];
        let source = self.regs.output.map(|(source, _)| source);
        // The controller's own answers interrupt like the keyboard's.
        let keyboard = matches!(source, Some(Source::Keyboard | Source::Controller));
        self.keyboard_line.set(keyboard && mode & MODE_KEYBOARD_INTERRUPT != 0);
        self.aux_line.set(source == Some(Source::Aux) && mode & MODE_AUX_INTERRUPT != 0);
    }
}

#[cfg(test)]
#[path = "i8042_test.rs"]
mod tests;
