//! The host's end of the protocol, as a state machine over bytes.

use std::io;

use thiserror::Error;

use super::spec::Size;
use super::wire::{self, Decoder, Frame, ending, kind};

/// The largest window of standard input that a guest is believed to have.
const MAX_STDIN_WINDOW: u32 = 1 << 20;

/// How many bytes of output are consumed before the guest is told: enough to be worth a frame.
const CREDIT_STEP: u32 = wire::OUTPUT_WINDOW / 4;

/// How many bytes of one stream may wait to be consumed: a window, and another from before a reboot.
const MAX_HELD: u32 = 2 * wire::OUTPUT_WINDOW;

/// While this many bytes wait to be taken, no more standard input is taken in, whatever windows the guest opens.
const MAX_WAITING: usize = 64 * 1024;

/// One of a command's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn kind(self) -> u8 {
        match self {
            Self::Stdout => kind::STDOUT,
            Self::Stderr => kind::STDERR,
        }
    }
}

/// How the guest's command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Exited(u8),
    /// This signal ended it.
    Signalled(u8),
    /// It could not be started, for this reason of Linux's (errno).
    NotStarted(i32),
}

impl Ending {
    /// The exit status that a shell would report: 128 and the signal's number for a signal, 127 for a command that
    /// does not exist, 126 for one that cannot be run.
    pub fn status(self) -> u8 {
        const ENOENT: i32 = 2;
        const ENOTDIR: i32 = 20;
        match self {
            Self::Exited(status) => status,
            Self::Signalled(signal) => signal.saturating_add(128),
            Self::NotStarted(ENOENT | ENOTDIR) => 127,
            Self::NotStarted(_) => 126,
        }
    }

    /// What a person should be told beyond the exit status: why a command was not started.
    pub fn complaint(self) -> Option<String> {
        match self {
            Self::NotStarted(errno) => Some(format!(
                "the guest could not start the command: {}",
                io::Error::from_raw_os_error(errno)
            )),
            Self::Exited(_) | Self::Signalled(_) => None,
        }
    }
}

/// What [`Host::receive`] found in the guest's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The guest is ready; standard input may be sent.
    Ready,
    /// The command wrote to its standard output.
    Stdout(&'a [u8]),
    /// The command wrote to its standard error.
    Stderr(&'a [u8]),
    /// More standard input may be sent: see [`Host::stdin_window`].
    StdinWindow,
    /// The command does not read its standard input any more.
    StdinClosed,
    /// The command ended.
    Ended(Ending),
}

/// Bytes from the guest that are no session. The channel is of no use after one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// A header with an impossible length.
    #[error("the guest sent a frame of kind {kind:#04x} said to be {length} bytes long, above the limit of {limit}",
        limit = wire::MAX_PAYLOAD)]
    TooLong {
        /// The frame's kind.
        kind: u8,
        /// Its stated length.
        length: u16,
    },
    /// A frame of a kind that guests do not send.
    #[error("the guest sent a frame of unknown kind {kind:#04x}")]
    UnknownKind {
        /// The frame's kind.
        kind: u8,
    },
    /// A payload that its kind cannot have.
    #[error("the guest sent a frame of kind {kind:#04x} whose {length} bytes make no sense")]
    Malformed {
        /// The frame's kind.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// More output than the window allows.
    #[error("the guest sent {excess} bytes of output more than it was allowed")]
    Overrun {
        /// Bytes above the window.
        excess: u32,
    },
}

/// What the guest has said so far, and what it may still say.
struct Guest {
    ready: bool,
    ending: Option<Ending>,
    stdin_window: u32,
    stdin_closed: bool,
    /// Bytes that it may still send, by [`Stream`].
    output_windows: [u32; 2],
    /// Bytes reported that have not been consumed, likewise.
    held: [u32; 2],
}

impl Guest {
    fn obey(&mut self, frame: Frame<'_>, report: &mut dyn FnMut(Event<'_>)) -> Result<(), ProtocolError> {
        let Frame { kind, payload } = frame;
        let malformed = ProtocolError::Malformed { kind, length: payload.len() };
        match kind {
            kind::HELLO if !self.ready => {
                self.stdin_window = wire::read_u32(payload).ok_or(malformed)?.min(MAX_STDIN_WINDOW);
                self.ready = true;
                report(Event::Ready);
            }
            kind::STDOUT => {
                self.count_output(Stream::Stdout, payload)?;
                report(Event::Stdout(payload));
            }
            kind::STDERR => {
                self.count_output(Stream::Stderr, payload)?;
                report(Event::Stderr(payload));
            }
            kind::STDIN_CREDIT => {
                let more = wire::read_u32(payload).ok_or(malformed)?;
                self.stdin_window = self.stdin_window.saturating_add(more).min(MAX_STDIN_WINDOW);
                report(Event::StdinWindow);
            }
            kind::STDIN_CLOSED => {
                self.stdin_closed = true;
                report(Event::StdinClosed);
            }
            kind::EXIT => {
                let (how, value) = wire::read_u8_u32(payload).ok_or(malformed)?;
                let ending = match (how, u8::try_from(value), i32::try_from(value)) {
                    (ending::EXITED, Ok(status), _) => Ending::Exited(status),
                    (ending::SIGNALLED, Ok(signal @ 1..=64), _) => Ending::Signalled(signal),
                    (ending::NOT_STARTED, _, Ok(errno)) => Ending::NotStarted(errno),
                    _ => return Err(malformed),
                };
                self.ending = Some(ending);
                report(Event::Ended(ending));
            }
            kind => return Err(ProtocolError::UnknownKind { kind }),
        }
        Ok(())
    }

    fn count_output(&mut self, stream: Stream, payload: &[u8]) -> Result<(), ProtocolError> {
        let (window, held) = (&mut self.output_windows[stream as usize], &mut self.held[stream as usize]);
        let length = payload.len() as u32;
        let allowed = (*window).min(MAX_HELD - *held);
        if length > allowed {
            return Err(ProtocolError::Overrun { excess: length - allowed });
        }
        *window -= length;
        *held += length;
        Ok(())
    }
}

/// The host's end of a session.
///
/// It does no input or output of its own: the owner passes it what the guest's port sent ([`receive`](Self::receive)),
/// and passes on to the port what it has to say ([`take_output`](Self::take_output)). It never holds more than two of
/// the protocol's windows a stream, whatever the guest sends.
pub struct Host {
    decoder: Decoder,
    /// How much of the magic has been seen; all of it once the guest is ready to talk.
    magic: usize,
    guest: Guest,
    failed: Option<ProtocolError>,
    stdin_ended: bool,
    /// Bytes consumed that the guest has not been told of, by [`Stream`].
    consumed: [u32; 2],
    /// Of the bytes held, those from before a reboot: the new agent wants to hear nothing of them. By [`Stream`].
    stale: [u32; 2],
    closed: [bool; 2],
    /// Frames for the guest.
    out: Vec<u8>,
    size: Option<Size>,
    /// Signals to send, as a set: like Linux's own, a signal that is pending already is not sent twice.
    signals: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A session whose guest has not said anything yet.
    pub fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            magic: 0,
            guest: Guest {
                ready: false,
                ending: None,
                stdin_window: 0,
                stdin_closed: false,
                output_windows: [wire::OUTPUT_WINDOW; 2],
                held: [0; 2],
            },
            failed: None,
            stdin_ended: false,
            consumed: [0; 2],
            stale: [0; 2],
            closed: [false; 2],
            out: Vec::new(),
            size: None,
            signals: 0,
        }
    }

    /// Takes what the guest's port sent, in pieces of any size, and reports what it means.
    ///
    /// # Errors
    /// [`ProtocolError`] when the bytes are no session. Every later call returns the same error.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        report: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.skip_to_magic(&mut bytes);
        while !bytes.is_empty() && self.guest.ending.is_none() {
            if self.decoder.at_start() && bytes[0] == wire::MAGIC[0] {
                self.begin_again();
                self.skip_to_magic(&mut bytes);
                continue;
            }
            let obeyed = match self.decoder.next(&mut bytes) {
                Ok(Some(frame)) => self.guest.obey(frame, report),
                Ok(None) => Ok(()),
                Err(wire::TooLong { kind, length }) => Err(ProtocolError::TooLong { kind, length }),
            };
            if let Err(error) = obeyed {
                self.failed = Some(error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The guest has rebooted: a new agent speaks, who knows nothing of what was said before.
    fn begin_again(&mut self) {
        let (ended, held) = (self.stdin_ended, self.guest.held);
        *self = Self { size: self.size, closed: self.closed, stale: held, ..Self::new() };
        self.guest.held = held;
        for stream in [Stream::Stdout, Stream::Stderr] {
            if self.closed[stream as usize] {
                self.send(kind::OUTPUT_CLOSED, &[stream.kind()]);
            }
        }
        if ended {
            self.end_stdin();
        }
    }

    fn skip_to_magic(&mut self, bytes: &mut &[u8]) {
        while self.magic < wire::MAGIC.len() {
            let Some((&byte, rest)) = bytes.split_first() else { return };
            *bytes = rest;
            // The magic's first byte does not occur again in it, so a mismatch can only be a new start.
            self.magic = match () {
                () if byte == wire::MAGIC[self.magic] => self.magic + 1,
                () if byte == wire::MAGIC[0] => 1,
                () => 0,
            };
        }
    }

    /// Whether the guest's agent is up.
    pub fn is_ready(&self) -> bool {
        self.guest.ready
    }

    /// How the command ended, once it has.
    pub fn ending(&self) -> Option<Ending> {
        self.guest.ending
    }

    /// How many bytes [`send_stdin`](Self::send_stdin) takes now. Zero before the guest is ready, and as long as what
    /// was sent before waits to be taken.
    pub fn stdin_window(&self) -> usize {
        if self.guest.stdin_closed || self.stdin_ended || self.out.len() >= MAX_WAITING {
            return 0;
        }
        self.guest.stdin_window as usize
    }

    /// Whether the command closed its standard input, or ended: there is no use in reading more for it.
    pub fn is_stdin_closed(&self) -> bool {
        self.guest.stdin_closed || self.guest.ending.is_some() || self.failed.is_some()
    }

    /// Sends as much of `bytes` to the command's standard input as the window allows, and returns how much that was.
    pub fn send_stdin(&mut self, bytes: &[u8]) -> usize {
        let length = bytes.len().min(self.stdin_window());
        for piece in bytes[..length].chunks(wire::MAX_PAYLOAD) {
            self.send(kind::STDIN, piece);
        }
        self.guest.stdin_window -= length as u32;
        length
    }

    /// Ends the command's standard input.
    pub fn end_stdin(&mut self) {
        if !self.stdin_ended {
            self.stdin_ended = true;
            self.send(kind::STDIN_EOF, &[]);
        }
    }

    /// Says that `count` bytes of a stream have been passed on, so that the guest may send more.
    pub fn consumed(&mut self, stream: Stream, count: usize) {
        let stream = stream as usize;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.guest.held[stream] = self.guest.held[stream].saturating_sub(count);
        let stale = count.min(self.stale[stream]);
        self.stale[stream] -= stale;
        self.consumed[stream] = self.consumed[stream].saturating_add(count - stale);
    }

    /// Says that nobody reads a stream any more: the command gets SIGPIPE when it writes on.
    pub fn close_output(&mut self, stream: Stream) {
        if !std::mem::replace(&mut self.closed[stream as usize], true) {
            self.send(kind::OUTPUT_CLOSED, &[stream.kind()]);
        }
    }

    /// Gives the command's terminal a new size.
    pub fn resize(&mut self, size: Size) {
        self.size = Some(size);
    }

    /// Sends a signal, 1 to 64, to the command and the processes of its group. Other numbers are ignored.
    pub fn signal(&mut self, signal: u8) {
        if (1..=64).contains(&signal) {
            self.signals |= 1 << (signal - 1);
        }
    }

    /// Whether [`take_output`](Self::take_output) has anything for the guest.
    pub fn has_output(&self) -> bool {
        let credit = self.consumed.iter().any(|&consumed| consumed >= CREDIT_STEP);
        self.guest.ready && (!self.out.is_empty() || credit || self.size.is_some() || self.signals != 0)
    }

    /// The bytes for the guest's port. Empty until the guest is ready: a port that nobody has opened loses them.
    pub fn take_output(&mut self) -> Vec<u8> {
        if !self.guest.ready {
            return Vec::new();
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            let consumed = &mut self.consumed[stream as usize];
            if *consumed >= CREDIT_STEP {
                let consumed = std::mem::take(consumed);
                let window = &mut self.guest.output_windows[stream as usize];
                *window = window.saturating_add(consumed).min(wire::OUTPUT_WINDOW);
                self.send(kind::OUTPUT_CREDIT, &wire::write_u8_u32(stream.kind(), consumed));
            }
        }
        if let Some(Size { rows, columns }) = self.size.take() {
            let [[a, b], [c, d]] = [rows.to_le_bytes(), columns.to_le_bytes()];
            self.send(kind::SIZE, &[a, b, c, d]);
        }
        while self.signals != 0 {
            let number = self.signals.trailing_zeros();
            self.signals &= self.signals - 1;
            self.send(kind::SIGNAL, &[number as u8 + 1]);
        }
        std::mem::take(&mut self.out)
    }

    fn send(&mut self, kind: u8, payload: &[u8]) {
        self.out.extend_from_slice(&wire::header(kind, payload.len()));
        self.out.extend_from_slice(payload);
    }
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
