//! One stream between a port of the guest and a socket of the host.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;

use mio::Token;
use mio::net::UnixStream;

use super::packet::{Header, NO_RECEIVE, NO_SEND};

/// How many bytes from the guest wait for the host's program at most: what the guest is told.
pub(super) const BUFFER: u32 = 256 << 10;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has been asked whether it listens.
    Requested,
    Connected,
}

/// What flushing to the host's program has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// All or a part is with the host's program; whether the guest should be told that there is room.
    Room(bool),
    /// The host's program is gone.
    Gone,
    /// All has been passed on and neither side has more to say.
    Finished,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) token: Token,
    pub(super) phase: Phase,
    to_host: VecDeque<u8>,
    /// Whether the socket may have something to read, and whether there is nothing more to come.
    pub(super) is_readable: bool,
    pub(super) is_at_end: bool,
    /// Whether it is among those to be read from.
    pub(super) is_queued: bool,
    /// What the guest has said by [`super::packet::op::SHUTDOWN`].
    guest_shutdown: u32,
    has_shut_down: bool,
    /// Bytes sent to the guest, and what it says of its buffer.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// Bytes passed on to the host's program, and up to where the guest knows.
    forwarded: u32,
    told: u32,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, token: Token, phase: Phase) -> Self {
        Self {
            stream,
            token,
            phase,
            to_host: VecDeque::new(),
            is_readable: true,
            is_at_end: false,
            is_queued: false,
            guest_shutdown: 0,
            has_shut_down: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            forwarded: 0,
            told: 0,
        }
    }

    /// What every packet from the guest says about its buffer.
    pub(super) fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer;
        self.guest_forwarded = header.forwarded;
    }

    /// How many bytes the guest has room for.
    fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether reading from the socket may give the guest something.
    pub(super) fn can_read(&self) -> bool {
        let open = self.phase == Phase::Connected && !self.is_at_end && self.guest_shutdown & NO_RECEIVE == 0;
        open && self.is_readable && self.credit() != 0
    }

    /// Reads what the guest has room for, at most `max` bytes.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>, max: usize) -> io::Result<()> {
        buffer.resize(max.min(self.credit() as usize), 0);
        let read = loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.is_readable = false;
        }
        buffer.truncate(read?);
        self.is_at_end = buffer.is_empty();
        self.sent = self.sent.wrapping_add(buffer.len() as u32);
        Ok(())
    }

    /// Fills in what every packet to the guest says about our buffer.
    pub(super) fn stamp(&mut self, header: &mut Header) {
        (header.buffer, header.forwarded) = (BUFFER, self.forwarded);
        self.told = self.forwarded;
    }

    /// Takes what the guest has sent; false if it is more than it may send.
    pub(super) fn take(&mut self, data: &[u8]) -> bool {
        let fits = self.to_host.len() + data.len() <= BUFFER as usize && self.guest_shutdown & NO_SEND == 0;
        if fits {
            self.to_host.extend(data);
        }
        fits
    }

    /// Puts something before what the guest sends.
    pub(super) fn greet(&mut self, line: &str) {
        self.to_host.extend(line.bytes());
        // It is not the guest's, whose count it must not change.
        self.forwarded = self.forwarded.wrapping_sub(line.len() as u32);
    }

    /// The guest will not receive, or not send, any more.
    pub(super) fn shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & (NO_RECEIVE | NO_SEND);
    }

    /// Passes on what the host's program takes.
    pub(super) fn flush(&mut self) -> Flushed {
        while !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(count) => {
                    self.to_host.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Flushed::Gone,
            }
        }
        if self.to_host.is_empty() && self.guest_shutdown & NO_SEND != 0 {
            if self.guest_shutdown & NO_RECEIVE != 0 {
                return Flushed::Finished;
            }
            if !self.has_shut_down {
                // If the other side is gone, reading says so.
                let _ = self.stream.shutdown(Shutdown::Write);
                self.has_shut_down = true;
            }
        }
        Flushed::Room((self.forwarded.wrapping_sub(self.told) as i32) >= (BUFFER / 2) as i32)
    }
}
