//! One connection between a guest and a socket of the host.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, getpeername, send, sendmsg, shutdown, sockopt};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

use super::Key;
use super::connection::{Connection, Outcome, Outgoing, Segment};
use super::ring::{Pool, Ring};
use crate::link::{SegmentKind, Segmentation};
use crate::nat::engine::Net;
use crate::nat::guest::{Guest, MTU};
use crate::wire::pseudo_header;

/// How much is read from a socket before the next connection's turn, in bytes.
const TURN: usize = 256 << 10;
/// How long an empty ring keeps its memory.
const KEEP_MEMORY: Duration = Duration::from_secs(2);
/// What a frame takes besides TCP's header and data: the longest IP packet, less both headers with options.
const MAX_DATA: usize = 65_535 - 40 - 60;

/// What is left to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing, until something happens.
    Done,
    /// More at the next turn.
    More,
    /// More when the guest takes frames again.
    Stalled,
    /// Nothing, ever.
    Over,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) connection: Connection,
    socket: OwnedFd,
    /// From the guest, not yet taken by the socket.
    inbound: Ring,
    /// The host's connection is not established.
    connecting: bool,
    readable: bool,
    writable: bool,
    /// The peer has ended: a short read does not mean that there is no more to read.
    hung_up: bool,
    /// The peer was told that the guest has ended.
    told_end: bool,
    used: Instant,
}

impl Flow {
    pub(super) fn new(connection: Connection, socket: OwnedFd, connecting: bool) -> Self {
        // Our pieces are large, and what is small is small because the guest wants it so.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let _ = sockopt::set_socket_keepalive(&socket, true);
        Self {
            connection,
            socket,
            inbound: Ring::default(),
            connecting,
            readable: !connecting,
            writable: !connecting,
            hung_up: false,
            told_end: false,
            used: Instant::now(),
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        self.connecting
    }

    pub(super) fn register(&self, net: &Net, token: Token) -> Result<(), Errno> {
        net.registry
            .register(&mut SourceFd(&self.socket.as_raw_fd()), token, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))
    }

    pub(super) fn on_event(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.hung_up |= event.is_read_closed() || event.is_error();
    }

    /// Takes a segment from the guest; its data goes to the socket at once if that takes it.
    pub(super) fn receive(&mut self, net: &mut Net, segment: &Segment<'_>) -> Result<Outcome, Errno> {
        self.used = net.now;
        let Self { connection, socket, inbound, writable, .. } = self;
        let mut failed = None;
        let outcome = connection.receive(segment, net.now, &mut net.pool, &mut |pool, bytes| {
            let mut done = 0;
            while inbound.is_empty() && *writable && done < bytes.len() {
                match send(&*socket, &bytes[done..], SendFlags::NOSIGNAL) {
                    Ok(sent) => done += sent,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => *writable = false,
                    Err(errno) => {
                        failed = Some(errno);
                        return done;
                    }
                }
            }
            let rest = &bytes[done..];
            while inbound.room() < rest.len() && inbound.grow(pool) {}
            done + inbound.extend(rest)
        });
        failed.map_or(Ok(outcome), Err)
    }

    /// Does what there is to do: bytes to the socket, bytes from it, segments to the guest.
    pub(super) fn work(&mut self, net: &mut Net, key: Key) -> Result<Work, Errno> {
        if self.connecting && !self.finish_connecting()? {
            return Ok(Work::Done);
        }
        self.drain_inbound()?;
        let mut left = TURN;
        loop {
            let got = self.read(&mut net.pool, left)?;
            left = left.saturating_sub(got);
            self.speak(net, key);
            if !net.guest.is_ready() {
                self.connection.settle(net.now);
                return Ok(Work::Stalled);
            }
            if got == 0 || left == 0 {
                break;
            }
        }
        self.connection.settle(net.now);
        match () {
            () if self.connection.is_over() && self.told_end => Ok(Work::Over),
            () if left == 0 => Ok(Work::More),
            () => Ok(Work::Done),
        }
    }

    /// Whether the host's connection is established now.
    fn finish_connecting(&mut self) -> Result<bool, Errno> {
        if !self.writable && !self.readable {
            return Ok(false);
        }
        sockopt::socket_error(&self.socket)??;
        match getpeername(&self.socket) {
            Ok(_) => {
                self.connecting = false;
                self.connection.connected();
                Ok(true)
            }
            // Linux says that it is writable before it is connected, too.
            Err(Errno::NOTCONN) => {
                self.writable = false;
                Ok(false)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Hands what waits to the socket, and then the end of it.
    fn drain_inbound(&mut self) -> Result<(), Errno> {
        while self.writable && !self.inbound.is_empty() {
            let slices = self.inbound.io_slices();
            match sendmsg(&self.socket, &slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(sent) => self.inbound.consume(sent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(errno) => return Err(errno),
            }
        }
        if self.connection.guest_ended() && self.inbound.is_empty() && !self.told_end {
            self.told_end = true;
            match shutdown(&self.socket, Shutdown::Write) {
                // The peer is gone already; reading says how.
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Reads what the socket has, as far as there is room, and says how much that was.
    fn read(&mut self, pool: &mut Pool, most: usize) -> Result<usize, Errno> {
        let mut got = 0;
        while self.readable && self.connection.takes_data() && got < most {
            let ring = &mut self.connection.outbound;
            if ring.room() == 0 && !ring.grow(pool) {
                break;
            }
            let room = ring.room();
            match rustix::io::readv(&self.socket, &mut ring.io_room()) {
                Ok(0) => {
                    self.readable = false;
                    self.connection.end();
                }
                Ok(length) => {
                    ring.advance(length);
                    got += length;
                    if length < room && !self.hung_up {
                        self.readable = false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(errno) => return Err(errno),
            }
        }
        Ok(got)
    }

    /// Sends what the connection has to say, as long as the guest takes it.
    fn speak(&mut self, net: &mut Net, key: Key) {
        let segments = if key.guest.is_ipv4() { net.guest.features.tcp4 } else { net.guest.features.tcp6 };
        let header = if key.guest.is_ipv4() { 20 } else { 40 };
        let segment = usize::from(self.connection.max_segment()).min(MTU - header - 20);
        let most = if segments && net.guest.features.checksum { MAX_DATA } else { segment };
        while net.guest.is_ready() {
            let Some(outgoing) = self.connection.next(net.now, most, self.inbound.len()) else { return };
            let [first, second] = self.connection.outbound.slices(outgoing.offset, outgoing.length);
            let data = Data { first, second, segment };
            if !send_segment(net, key, &outgoing, data) {
                return;
            }
        }
    }

    /// When the flow wants to be woken.
    pub(super) fn deadline(&self) -> Instant {
        let deadline = self.connection.deadline();
        if self.inbound.is_idle() || self.connection.outbound.is_idle() {
            return deadline.min(self.used + KEEP_MEMORY);
        }
        deadline
    }

    /// The time has come.
    pub(super) fn on_timer(&mut self, net: &mut Net, stalled: bool) -> Outcome {
        if net.now.saturating_duration_since(self.used) >= KEEP_MEMORY {
            for ring in [&mut self.inbound, &mut self.connection.outbound] {
                if ring.is_idle() {
                    ring.release(&mut net.pool);
                }
            }
        }
        self.connection.on_timer(net.now, stalled)
    }

    /// Closes the socket; with `reset`, so that the peer sees that the connection was not ended in order.
    pub(super) fn close(mut self, net: &mut Net, reset: bool) {
        self.inbound.release(&mut net.pool);
        self.connection.release(&mut net.pool);
        if reset {
            let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }
}

/// Data of a segment: two pieces of a ring, and the payload of one packet on the wire.
#[derive(Debug, Clone, Copy)]
struct Data<'a> {
    first: &'a [u8],
    second: &'a [u8],
    segment: usize,
}

/// What a segment says; `None` if it says nothing sensible.
pub(super) fn parse(bytes: &[u8]) -> Option<Segment<'_>> {
    let packet = TcpPacket::new_checked(bytes).ok()?;
    // The addresses matter to the checksum only.
    let nowhere = IpAddress::Ipv4(std::net::Ipv4Addr::UNSPECIFIED);
    let repr = TcpRepr::parse(&packet, &nowhere, &nowhere, &ChecksumCapabilities::ignored()).ok()?;
    Some(Segment {
        seq: repr.seq_number.0 as u32,
        ack: repr.ack_number.map(|ack| ack.0 as u32),
        syn: repr.control == TcpControl::Syn,
        fin: repr.control == TcpControl::Fin,
        rst: repr.control == TcpControl::Rst,
        window: repr.window_len,
        window_scale: repr.window_scale,
        mss: repr.max_seg_size,
        payload: repr.payload,
    })
}

/// Sends a segment. `false` if the addresses are of two families.
fn send_segment(net: &mut Net, key: Key, outgoing: &Outgoing, data: Data<'_>) -> bool {
    let four = key.guest.is_ipv4();
    let control = match () {
        () if outgoing.syn => TcpControl::Syn,
        () if outgoing.fin => TcpControl::Fin,
        () if outgoing.push => TcpControl::Psh,
        () => TcpControl::None,
    };
    let repr = TcpRepr {
        control,
        seq_number: TcpSeqNumber(outgoing.seq as i32),
        ack_number: outgoing.ack.map(|ack| TcpSeqNumber(ack as i32)),
        window_len: outgoing.window,
        window_scale: outgoing.window_scale,
        max_seg_size: outgoing.syn.then_some((MTU - if four { 40 } else { 60 }) as u16),
        ..empty(key)
    };
    send_repr(net, key, &repr, data)
}

/// Sends a reset.
pub(super) fn send_reset(net: &mut Net, key: Key, seq: u32, ack: Option<u32>) {
    let repr = TcpRepr {
        control: TcpControl::Rst,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|ack| TcpSeqNumber(ack as i32)),
        ..empty(key)
    };
    send_repr(net, key, &repr, Data { first: &[], second: &[], segment: MTU });
}

fn empty(key: Key) -> TcpRepr<'static> {
    TcpRepr {
        src_port: key.remote.port(),
        dst_port: key.guest.port(),
        control: TcpControl::None,
        seq_number: TcpSeqNumber(0),
        ack_number: None,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}

fn send_repr(net: &mut Net, key: Key, repr: &TcpRepr<'_>, data: Data<'_>) -> bool {
    let Net { guest, config, .. } = net;
    let (source, destination) = (key.remote.ip(), key.guest.ip());
    let payload = data.first.len() + data.second.len();
    let length = repr.header_len() + payload;
    let Some(mut frame) = guest.begin(config, source, destination, IpProtocol::Tcp, length) else {
        return false;
    };
    let start = frame.len();
    frame.resize(start + repr.header_len(), 0);
    let caps = ChecksumCapabilities::ignored();
    let (from, to) = (IpAddress::from(source), IpAddress::from(destination));
    repr.emit(&mut TcpPacket::new_unchecked(&mut frame[start..]), &from, &to, &caps);
    frame.extend_from_slice(data.first);
    frame.extend_from_slice(data.second);
    finish(guest, frame, start, (source, destination, length), payload, data.segment);
    true
}

fn finish(
    guest: &mut Guest,
    frame: Vec<u8>,
    start: usize,
    (source, destination, length): (IpAddr, IpAddr, usize),
    payload: usize,
    segment: usize,
) {
    let header_len = (frame.len() - payload) as u16;
    let pseudo = pseudo_header(source, destination, IpProtocol::Tcp, length);
    let mut packet = guest.checksum(frame, pseudo, start, 16);
    if payload > segment {
        let kind = if source.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
        packet.offload.segmentation = Some(Segmentation { kind, size: segment as u16, header_len });
    }
    guest.send(packet);
}
