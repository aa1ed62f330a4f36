//! The 16550A serial port.
//!
//! `vm-superio`'s `Serial` holds the line, divisor, modem control and scratch registers, the receive FIFO and the
//! loopback. Around it is what a driver needs beside that: the FIFO control register, interrupts as the level that
//! the chip's pin has (the condition, not a moment), modem status changes, break and overrun, and the FIFO's real
//! depth of 16, by which drivers tell a 16550A from its successors. Facts: National Semiconductor PC16550D data
//! sheet, §8.
//!
//! - **Input** is never lost: what the 16-byte FIFO cannot take waits behind it, and the line at the other end
//!   heeds flow control. Bytes come only while the guest listens: it asserts RTS, or has the receive interrupt
//!   enabled, or reads the line status again and again with nothing to send. What it has not read when it
//!   ceases to listen goes back. So what is typed while a kernel still probes its port is there when it opens it.
//! - **Output** is instantaneous: the transmitter is always empty. Bytes are collected and written out at the end
//!   of a line, when the guest has no more to send for the moment (it masks the transmitter's interrupt), when
//!   4096 have gathered, and whenever the board calls [`flush`](Serial::flush): before it lets a halted guest
//!   sleep, and every few milliseconds.
//!
//! The interrupt is not gated by OUT2, so that a guest which forgets it works, as on other virtual machines.

use crate::line::Output;
use crate::{IrqLine, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use vm_superio::serial::NoEvents;

/// Depth of the FIFOs.
const FIFO_DEPTH: usize = 16;
/// Depth of the FIFO within, more than is used of it.
const INNER_FIFO_DEPTH: usize = 64;
/// Reads of the line status, with nothing written between them, that show a guest waiting for input.
const POLLS_TO_LISTEN: u8 = 16;
/// Output bytes that are collected at most.
const OUTPUT_LIMIT: usize = 4096;

/// Receive and transmit data; divisor when DLAB is set.
const DATA: u8 = 0;
const IER: u8 = 1;
/// Interrupt identification when read, FIFO control when written.
const IIR_FCR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const MSR: u8 = 6;
const SCR: u8 = 7;

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IER_LINE_STATUS: u8 = 0x04;
const IER_MODEM_STATUS: u8 = 0x08;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;
/// Trigger level of the receive FIFO, by bits 6 and 7.
const FCR_TRIGGER: [usize; 4] = [1, 4, 8, 14];

const LCR_DLAB: u8 = 0x80;
const MCR_RTS: u8 = 0x02;
const MCR_LOOP: u8 = 0x10;
/// DTR, RTS, OUT1, OUT2, loop.
const MCR_MASK: u8 = 0x1f;

const LSR_OVERRUN: u8 = 0x02;
const LSR_BREAK: u8 = 0x10;
const LSR_FIFO_ERROR: u8 = 0x80;

const MSR_LEVELS: u8 = 0xf0;
/// The ring indicator's change is noted when it ends, not when it begins.
const MSR_RING: u8 = 0x40;

/// What arrives on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Received {
    Byte(u8),
    Break,
}

/// Output on its way to the world.
struct Sink {
    out: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    /// The first failure to write, until it is asked for.
    error: Option<io::Error>,
}

impl Sink {
    fn drain(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let result = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        // Output that cannot be written is lost, as on a cable that has been pulled: the guest must go on.
        self.buffer.clear();
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || self.buffer.len() >= OUTPUT_LIMIT {
            self.drain();
        }
        Ok(bytes.len())
    }

    /// Called after each byte: when to flush is decided elsewhere.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `vm-superio` tells moments; the pin is a level. After each access [`Serial`] works the level out itself, so
/// the moments lead nowhere.
struct Moments;

impl vm_superio::Trigger for Moments {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The saved state of a serial port. Output that is still collected is not part of it: `state()` is preceded by a
/// [`flush`](Serial::flush).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: u16,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    interrupt_enable: u8,
    fifo_control: u8,
    /// The receive FIFO, oldest byte first.
    fifo: Vec<u8>,
    /// What has arrived and waits for room in the FIFO.
    waiting: Vec<Received>,
    /// Overrun and break bits of the line status register.
    errors: u8,
    /// The change bits of the modem status register.
    modem_changes: u8,
    /// The transmitter-empty interrupt has not been acknowledged.
    transmitter_empty: bool,
    /// Reads of the line status since something was last written, as far as they count.
    polls: u8,
    line: bool,
}

/// A serial port.
///
/// ```
/// use posada_devices::{serial::Serial, Unconnected};
/// use std::sync::{Arc, Mutex};
///
/// #[derive(Clone, Default)]
/// struct Screen(Arc<Mutex<Vec<u8>>>);
/// impl std::io::Write for Screen {
///     fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
///         self.0.lock().unwrap().write(bytes)
///     }
///     fn flush(&mut self) -> std::io::Result<()> {
///         Ok(())
///     }
/// }
///
/// let screen = Screen::default();
/// let mut com1 = Serial::new(Unconnected, Box::new(screen.clone()));
/// com1.write(0, b'A');
/// com1.flush();
/// assert_eq!(*screen.0.lock().unwrap(), b"A");
///
/// com1.receive(b"ls\n");
/// com1.write(4, 0x02); // request to send
/// assert_eq!(com1.read(5) & 1, 1); // data ready
/// assert_eq!(com1.read(0), b'l');
/// ```
pub struct Serial<L> {
    inner: vm_superio::Serial<Moments, NoEvents, Sink>,
    line: Output<L>,
    interrupt_enable: u8,
    fifo_control: u8,
    waiting: VecDeque<Received>,
    errors: u8,
    modem_levels: u8,
    modem_changes: u8,
    transmitter_empty: bool,
    polls: u8,
}

impl<L: std::fmt::Debug> std::fmt::Debug for Serial<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial")
            .field("registers", &self.inner.state())
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl<L: IrqLine> Serial<L> {
    /// A serial port as after power-on, whose output goes to `out`.
    pub fn new(line: L, out: Box<dyn Write + Send>) -> Self {
        let sink = Sink { out, buffer: Vec::new(), error: None };
        let mut serial = Self {
            inner: vm_superio::Serial::new(Moments, sink),
            line: Output::at(line, false),
            interrupt_enable: 0,
            fifo_control: 0,
            waiting: VecDeque::new(),
            errors: 0,
            modem_levels: 0,
            modem_changes: 0,
            transmitter_empty: false,
            polls: 0,
        };
        serial.power_on();
        serial
    }

    fn power_on(&mut self) {
        self.clear_fifo();
        self.poke(LCR, 0);
        self.poke(MCR, 0);
        self.interrupt_enable = 0;
        self.fifo_control = 0;
        self.errors = 0;
        self.transmitter_empty = false;
        self.modem_levels = self.inner.read(MSR) & MSR_LEVELS;
        self.modem_changes = 0;
        self.polls = 0;
    }

    /// The machine's reset. Input that waits stays, since its sender knows nothing of the reset.
    pub fn reset(&mut self) {
        self.flush();
        self.power_on();
        self.settle();
    }

    /// The saved state.
    pub fn state(&self) -> SerialState {
        let inner = self.inner.state();
        SerialState {
            divisor: u16::from_le_bytes([inner.baud_divisor_low, inner.baud_divisor_high]),
            line_control: inner.line_control,
            modem_control: inner.modem_control,
            scratch: inner.scratch,
            interrupt_enable: self.interrupt_enable,
            fifo_control: self.fifo_control,
            fifo: inner.in_buffer,
            waiting: self.waiting.iter().copied().collect(),
            errors: self.errors,
            modem_changes: self.modem_changes,
            transmitter_empty: self.transmitter_empty,
            polls: self.polls,
            line: self.line.level(),
        }
    }

    /// A serial port in a saved state, whose output goes to `out`. The line is not driven.
    pub fn from_state(state: &SerialState, line: L, out: Box<dyn Write + Send>) -> Result<Self, StateError> {
        if state.fifo.len() > FIFO_DEPTH {
            let found = format!("{} bytes in a FIFO of {FIFO_DEPTH}", state.fifo.len());
            return Err(StateError::new("serial port", found));
        }
        let mut serial = Self::new(line, out);
        let [low, high] = state.divisor.to_le_bytes();
        serial.poke(LCR, LCR_DLAB);
        serial.poke(0, low);
        serial.poke(1, high);
        serial.poke(LCR, state.line_control);
        serial.poke(SCR, state.scratch);
        // Before the loopback is closed, which would keep the bytes out.
        serial.enqueue(&state.fifo);
        serial.poke(MCR, state.modem_control & MCR_MASK);
        serial.interrupt_enable = state.interrupt_enable & IER_MASK;
        serial.fifo_control = state.fifo_control;
        serial.waiting = state.waiting.iter().copied().collect();
        serial.errors = state.errors & (LSR_OVERRUN | LSR_BREAK);
        serial.modem_levels = serial.inner.read(MSR) & MSR_LEVELS;
        serial.modem_changes = state.modem_changes & !MSR_LEVELS;
        serial.transmitter_empty = state.transmitter_empty;
        serial.polls = state.polls;
        serial.line.assume(state.line);
        Ok(serial)
    }

    // The world's side.

    /// Bytes arrive from the world.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes.iter().copied().map(Received::Byte));
        self.settle();
    }

    /// A break arrives from the world (which Linux takes for the SysRq key).
    pub fn receive_break(&mut self) {
        self.waiting.push_back(Received::Break);
        self.settle();
    }

    /// How much input waits behind the FIFO. Who feeds the port from a pipe stops reading while this is large.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes out what has been collected of the guest's output.
    pub fn flush(&mut self) {
        self.inner.writer_mut().drain();
    }

    /// The first failure to write output since this was last asked. The output concerned is lost.
    pub fn take_output_error(&mut self) -> Option<io::Error> {
        self.inner.writer_mut().error.take()
    }

    // The guest's side.

    /// Reads the register at `offset` (0 to 7; others read as all ones).
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = match offset {
            IER if !self.divisor_latch() => self.interrupt_enable,
            IIR_FCR => self.identify(),
            LSR => self.line_status(),
            MSR => self.inner.read(MSR) & MSR_LEVELS | std::mem::take(&mut self.modem_changes),
            DATA..=SCR => self.inner.read(offset),
            _ => return 0xff,
        };
        self.settle();
        value
    }

    /// Writes the register at `offset` (0 to 7; others are ignored).
    pub fn write(&mut self, offset: u8, value: u8) {
        match offset {
            DATA if !self.divisor_latch() => self.transmit(value),
            IER if !self.divisor_latch() => self.enable_interrupts(value & IER_MASK),
            IIR_FCR => self.control_fifo(value),
            MCR => self.control_modem(value & MCR_MASK),
            // Status registers, which only a factory test writes.
            LSR | MSR => {}
            _ => self.poke(offset, value),
        }
        // What a guest that polls prints in between (an echo, say) does not make it a guest that only prints.
        if offset != DATA || self.polls < POLLS_TO_LISTEN {
            self.polls = 0;
        }
        self.settle();
    }

    fn divisor_latch(&mut self) -> bool {
        self.inner.read(LCR) & LCR_DLAB != 0
    }

    fn looped(&mut self) -> bool {
        self.inner.read(MCR) & MCR_LOOP != 0
    }

    /// Writes a register of the inner port. It can fail by its trigger and by its output, which here do not.
    fn poke(&mut self, offset: u8, value: u8) {
        let _ = self.inner.write(offset, value);
    }

    /// Puts bytes into the inner FIFO; the caller knows that there is room.
    fn enqueue(&mut self, bytes: &[u8]) {
        let _ = self.inner.enqueue_raw_bytes(bytes);
    }

    fn fifo_len(&self) -> usize {
        INNER_FIFO_DEPTH.saturating_sub(self.inner.fifo_capacity())
    }

    fn fifo_enabled(&self) -> bool {
        self.fifo_control & FCR_ENABLE != 0
    }

    /// Bytes that the receiver can hold: without the FIFO, one.
    fn depth(&self) -> usize {
        if self.fifo_enabled() { FIFO_DEPTH } else { 1 }
    }

    /// Takes everything out of the inner FIFO.
    fn take_fifo(&mut self) -> Vec<u8> {
        let line_control = self.inner.read(LCR);
        self.poke(LCR, line_control & !LCR_DLAB);
        let bytes = (0..self.fifo_len()).map(|_| self.inner.read(DATA)).collect();
        self.poke(LCR, line_control);
        bytes
    }

    fn clear_fifo(&mut self) {
        self.take_fifo();
        self.errors = 0;
    }

    fn transmit(&mut self, value: u8) {
        if self.looped() && self.fifo_len() >= self.depth() {
            self.errors |= LSR_OVERRUN;
        } else {
            self.poke(DATA, value);
        }
        self.transmitter_empty = true;
    }

    fn enable_interrupts(&mut self, enable: u8) {
        let changed = self.interrupt_enable ^ enable;
        self.interrupt_enable = enable;
        if changed & IER_TRANSMITTER_EMPTY != 0 {
            self.transmitter_empty = enable & IER_TRANSMITTER_EMPTY != 0;
            if !self.transmitter_empty {
                // The driver has no more to send: what a person types is echoed now.
                self.flush();
            }
        }
    }

    fn control_fifo(&mut self, value: u8) {
        // The other bits are heeded only together with the enable bit. A change of the enable bit empties the
        // FIFO of the real chip; here the bytes stay, for nobody wants to lose them.
        if value & FCR_ENABLE == 0 {
            self.fifo_control = 0;
            return;
        }
        if value & FCR_CLEAR_RECEIVER != 0 {
            self.clear_fifo();
        }
        self.fifo_control = value & (FCR_ENABLE | 0xc8);
    }

    fn control_modem(&mut self, value: u8) {
        // What came from the line and what was looped stay apart.
        match (self.looped(), value & MCR_LOOP != 0) {
            (false, true) => self.withdraw(),
            (true, false) => self.clear_fifo(),
            _ => {}
        }
        self.poke(MCR, value);
        let levels = self.inner.read(MSR) & MSR_LEVELS;
        let mut changed = levels ^ self.modem_levels;
        if levels & MSR_RING != 0 {
            changed &= !MSR_RING;
        }
        self.modem_levels = levels;
        self.modem_changes |= changed >> 4;
    }

    /// The line status register; reading it takes note of the errors.
    fn line_status(&mut self) -> u8 {
        self.polls = self.polls.saturating_add(1);
        self.feed();
        let errors = std::mem::take(&mut self.errors);
        let in_fifo = if errors & LSR_BREAK != 0 && self.fifo_enabled() { LSR_FIFO_ERROR } else { 0 };
        self.inner.read(LSR) | errors | in_fifo
    }

    /// The interrupt of highest priority that is pending and enabled, as the IIR tells it.
    fn pending(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let received = self.fifo_len();
        if enabled(IER_LINE_STATUS) && self.errors != 0 {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && received != 0 {
            let trigger = FCR_TRIGGER[usize::from(self.fifo_control >> 6)];
            // Below the trigger level a real line's silence would soon give the timeout: here it does at once.
            if self.fifo_enabled() && received < trigger { IIR_TIMEOUT } else { IIR_RECEIVED }
        } else if enabled(IER_TRANSMITTER_EMPTY) && self.transmitter_empty {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == IIR_TRANSMITTER_EMPTY {
            self.transmitter_empty = false;
        }
        pending | if self.fifo_enabled() { IIR_FIFO_ENABLED } else { 0 }
    }

    fn listens(&mut self) -> bool {
        self.interrupt_enable & IER_RECEIVED != 0
            || self.polls >= POLLS_TO_LISTEN
            || self.inner.read(MCR) & MCR_RTS != 0
    }

    /// Moves what waits into the FIFO, as far as the guest listens and there is room; or back, if it does not.
    fn feed(&mut self) {
        if self.looped() {
            return;
        }
        if !self.listens() {
            if self.fifo_len() != 0 {
                self.withdraw();
            }
            return;
        }
        while self.fifo_len() < self.depth() && self.errors & LSR_BREAK == 0 {
            match self.waiting.front() {
                Some(&Received::Byte(byte)) => self.enqueue(&[byte]),
                // A break's status belongs to the byte at the FIFO's head.
                Some(Received::Break) if self.fifo_len() == 0 => {
                    self.enqueue(&[0]);
                    self.errors |= LSR_BREAK;
                }
                _ => break,
            }
            self.waiting.pop_front();
        }
    }

    /// Puts what the guest has not read back before what waits.
    fn withdraw(&mut self) {
        // A break is alone in the FIFO.
        let was_break = self.errors & LSR_BREAK != 0;
        self.errors &= !LSR_BREAK;
        for byte in self.take_fifo().into_iter().rev() {
            self.waiting.push_front(if was_break { Received::Break } else { Received::Byte(byte) });
        }
    }

    /// After anything that happened: feeds the FIFO and drives the line.
    fn settle(&mut self) {
        self.feed();
        let level = self.pending() != IIR_NONE;
        self.line.set(level);
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
