//! Another member of the switch.
//!
//! A message is one packet of the socket. Its first byte says what it is: [`HELLO`], with the version and the offloads
//! that the sender's guest accepts (sent first, and again when they change), or [`FRAME`], with a `header` and an
//! Ethernet frame.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};

use crate::header;
use crate::link::{Features, MAX_FRAME, Packet};

const HELLO: u8 = 1;
const FRAME: u8 = 2;
const VERSION: u8 = 1;
/// The shortest Ethernet frame that says where it goes.
const MIN_FRAME: usize = 14;
/// The longest message.
pub(super) const MAX_MESSAGE: usize = 1 + header::LENGTH + MAX_FRAME;
/// What waits for a peer, in frames and bytes. More is dropped.
const WAITING: usize = 256;
const WAITING_BYTES: usize = 1 << 20;

/// What a peer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Hello(Features),
    Frame(Packet),
}

/// What a message says; `None` if it is none.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    match bytes.split_first()? {
        (&HELLO, [VERSION, features]) => Some(Message::Hello(Features::from(*features))),
        (&FRAME, rest) => {
            let (header, frame) = rest.split_first_chunk::<{ header::LENGTH }>()?;
            let offload = header::decode(header)?;
            let fits = (MIN_FRAME..=MAX_FRAME).contains(&frame.len());
            fits.then(|| Message::Frame(Packet { bytes: frame.to_vec(), offload }))
        }
        _ => None,
    }
}

/// Any bytes as a message, for the fuzz target.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) -> Option<Packet> {
    match decode(bytes)? {
        Message::Hello(_) => None,
        Message::Frame(packet) => Some(packet),
    }
}

/// A connection to another member.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: OwnedFd,
    /// What its guest accepts.
    pub(super) accepted: Features,
    /// It has said hello.
    pub(super) known: bool,
    pub(super) readable: bool,
    waiting: VecDeque<Packet>,
    waiting_bytes: usize,
    /// What this member's guest accepts, if that is to be said.
    hello: Option<Features>,
}

impl Peer {
    pub(super) fn new(socket: OwnedFd, accepts: Features) -> Self {
        Self {
            socket,
            accepted: Features::NONE,
            known: false,
            readable: true,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            hello: Some(accepts),
        }
    }

    /// Says what this member's guest accepts now.
    pub(super) fn announce(&mut self, accepts: Features) -> Result<(), Errno> {
        self.hello = Some(accepts);
        self.flush()
    }

    /// Sends a frame, after those that wait.
    pub(super) fn send(&mut self, packet: Packet) -> Result<(), Errno> {
        if self.waiting.len() >= WAITING || self.waiting_bytes >= WAITING_BYTES {
            return Ok(());
        }
        self.waiting_bytes += packet.bytes.len();
        self.waiting.push_back(packet);
        self.flush()
    }

    /// Sends what waits, as far as it goes.
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        if let Some(features) = self.hello {
            match put(&self.socket, &[IoSlice::new(&[HELLO, VERSION, features.to_bits()])]) {
                Ok(()) => self.hello = None,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        while let Some(packet) = self.waiting.front() {
            let (kind, header) = ([FRAME], header::encode(&packet.offload));
            let slices = [IoSlice::new(&kind), IoSlice::new(&header), IoSlice::new(&packet.bytes)];
            match put(&self.socket, &slices) {
                // What is too long for the socket's buffer never goes.
                Ok(()) | Err(Errno::MSGSIZE) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
            self.waiting_bytes -= packet.bytes.len();
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// The connection is over, or the peer does not keep to the protocol (`EPROTO`).
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<Message>, Errno> {
        let slices = &mut [IoSliceMut::new(buffer)];
        match recvmsg(&self.socket, slices, &mut RecvAncillaryBuffer::default(), RecvFlags::CMSG_CLOEXEC) {
            Ok(received) if received.bytes == 0 => Err(Errno::CONNRESET),
            Ok(received) if received.flags.contains(ReturnFlags::TRUNC) => Err(Errno::PROTO),
            Ok(received) => {
                let message = decode(buffer.get(..received.bytes).unwrap_or_default()).ok_or(Errno::PROTO)?;
                if !self.known && !matches!(message, Message::Hello(_)) {
                    return Err(Errno::PROTO);
                }
                Ok(Some(message))
            }
            Err(Errno::INTR) => Ok(None),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }
}

fn put(socket: &OwnedFd, slices: &[IoSlice<'_>]) -> Result<(), Errno> {
    loop {
        match sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
#[path = "peer_test.rs"]
mod tests;
