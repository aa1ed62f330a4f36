//! The frames that host and guest exchange over a session's byte channel.
//!
//! This file is compiled twice: into the host's library and into the guest's agent, which has no standard library.
//! It uses `core` alone and allocates nothing.
//!
//! The channel is any ordered, loss-free, 8-bit clean pair of byte streams: a 16550 serial port in raw mode today. The
//! guest opens with [`MAGIC`], which the host looks for, so that whatever a firmware printed on the port before does no
//! harm. A guest that has rebooted opens again, in place of a frame. From there on both directions carry frames:
//!
//! | bytes | meaning                                                    |
//! |-------|------------------------------------------------------------|
//! | 1     | kind, one of the constants in [`kind`]                     |
//! | 2     | length of the payload, little-endian, at most [`MAX_PAYLOAD`] |
//! | *n*   | payload                                                    |
//!
//! Flow is controlled by credit, counted in payload bytes. The host may have at most the window that
//! [`kind::HELLO`] announced outstanding on standard input, and gets more by [`kind::STDIN_CREDIT`]; the guest may
//! have at most [`OUTPUT_WINDOW`] outstanding on each of its two output streams, and gets more by
//! [`kind::OUTPUT_CREDIT`]. Neither side ever stops reading the channel, so neither can be made to wait for the other.

/// Where an agent that serves commands listens: a port of the guest's sockets (AF_VSOCK).
///
/// There the host speaks first: the length of a session file, `u32`, and the file. The session follows as on any channel,
/// one for each connection.
pub const EXEC_PORT: u32 = 0x706f_7361;

/// The longest session file that an agent takes, in bytes.
pub const MAX_SESSION: usize = (4 << 20) - 1;

/// What the guest sends first: nothing but a session's agent writes this to a serial port.
pub const MAGIC: [u8; 8] = *b"\x00posada\x01";

/// The most bytes that one frame carries.
pub const MAX_PAYLOAD: usize = 4096;

/// Length of a frame's header: kind and length.
pub const HEADER: usize = 3;

/// How many bytes of each output stream the guest may send before the host has said that it consumed them.
pub const OUTPUT_WINDOW: u32 = 64 * 1024;

/// How many bytes of standard input the agent holds for a command that does not read.
///
/// Linux keeps 4 KiB in the line discipline and 64 KiB in its flip buffers (`drivers/tty/tty_buffer.c`), so a window
/// of this size, headers included, cannot be lost between the port and the agent.
pub const STDIN_WINDOW: u32 = 16 * 1024;

/// Frame kinds. The guest sends those below 0x10, the host the others.
pub mod kind {
    /// Guest is ready: `u32` window of standard input.
    pub const HELLO: u8 = 0x01;
    /// Bytes that the command wrote to its standard output.
    pub const STDOUT: u8 = 0x02;
    /// Bytes that the command wrote to its standard error.
    pub const STDERR: u8 = 0x03;
    /// The command ended: `u8` from [`ending`](super::ending), `u32` its value. The last frame.
    pub const EXIT: u8 = 0x04;
    /// `u32` more bytes of standard input may be sent.
    pub const STDIN_CREDIT: u8 = 0x05;
    /// The command closed its standard input; what is still sent is thrown away.
    pub const STDIN_CLOSED: u8 = 0x06;

    /// Bytes for the command's standard input.
    pub const STDIN: u8 = 0x11;
    /// End of standard input.
    pub const STDIN_EOF: u8 = 0x12;
    /// `u8` stream ([`STDOUT`] or [`STDERR`]), `u32` bytes consumed.
    pub const OUTPUT_CREDIT: u8 = 0x13;
    /// `u8` stream ([`STDOUT`] or [`STDERR`]): nobody reads it any more; the command gets SIGPIPE if it writes on.
    pub const OUTPUT_CLOSED: u8 = 0x14;
    /// The terminal's size: `u16` rows, `u16` columns.
    pub const SIZE: u8 = 0x15;
    /// `u8` number of a signal for the command.
    pub const SIGNAL: u8 = 0x16;
}

/// How a command ended, in the first byte of an [`kind::EXIT`] frame.
pub mod ending {
    /// It exited; the value is its exit status, 0 to 255.
    pub const EXITED: u8 = 0;
    /// A signal ended it; the value is the signal's number.
    pub const SIGNALLED: u8 = 1;
    /// It could not be started; the value is Linux's error number.
    pub const NOT_STARTED: u8 = 2;
}

/// One frame as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// One of [`kind`], or a byte that this version does not know.
    pub kind: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

/// The header claims a payload longer than [`MAX_PAYLOAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong {
    /// The frame's kind.
    pub kind: u8,
    /// The length that its header states.
    pub length: u16,
}

/// Cuts a byte stream, which arrives in pieces of any size, into frames.
///
/// It owns one payload buffer of [`MAX_PAYLOAD`] bytes and never needs more.
pub struct Decoder {
    header: [u8; HEADER],
    /// Bytes of the current frame received so far, header included.
    received: usize,
    payload: [u8; MAX_PAYLOAD],
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a frame.
    pub const fn new() -> Self {
        Self { header: [0; HEADER], received: 0, payload: [0; MAX_PAYLOAD] }
    }

    /// Whether the next byte begins a frame.
    pub const fn at_start(&self) -> bool {
        self.received == 0
    }

    /// Takes bytes off the front of `input` up to the end of a frame, and returns that frame.
    ///
    /// `None` means that `input` is used up and the frame is not complete yet.
    ///
    /// # Errors
    /// [`TooLong`] if a header states a length above [`MAX_PAYLOAD`]; the stream cannot be followed any further.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Frame<'a>>, TooLong> {
        while self.received < HEADER {
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.header[self.received] = byte;
            self.received += 1;
        }
        let kind = self.header[0];
        let length = u16::from_le_bytes([self.header[1], self.header[2]]);
        let total = usize::from(length);
        if total > MAX_PAYLOAD {
            return Err(TooLong { kind, length });
        }
        let have = self.received - HEADER;
        let take = (total - have).min(input.len());
        let (now, later) = input.split_at(take);
        self.payload[have..have + take].copy_from_slice(now);
        *input = later;
        self.received += take;
        if have + take < total {
            return Ok(None);
        }
        self.received = 0;
        Ok(Some(Frame { kind, payload: &self.payload[..total] }))
    }
}

/// The header of a frame with `length` bytes of payload.
///
/// # Panics
/// If `length` is above [`MAX_PAYLOAD`]: a mistake of the caller.
pub fn header(kind: u8, length: usize) -> [u8; HEADER] {
    assert!(length <= MAX_PAYLOAD, "a frame carries at most 4096 bytes");
    let [low, high] = (length as u16).to_le_bytes();
    [kind, low, high]
}

/// Reads a `u32` payload.
pub fn read_u32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(payload.try_into().ok()?))
}

/// Reads a payload of a `u8` and a `u32`.
pub fn read_u8_u32(payload: &[u8]) -> Option<(u8, u32)> {
    let (&first, rest) = payload.split_first()?;
    Some((first, read_u32(rest)?))
}

/// Reads a payload of two `u16`.
pub fn read_u16_u16(payload: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = payload else { return None };
    Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
}

/// Writes a payload of a `u8` and a `u32`.
pub fn write_u8_u32(first: u8, second: u32) -> [u8; 5] {
    let [a, b, c, d] = second.to_le_bytes();
    [first, a, b, c, d]
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
