//! TCP connections: the guest's end of each is [`connection`]'s, the host's end is a socket.

mod connection;
mod flow;
pub(super) mod fuzz;
mod gaps;
mod ring;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use smoltcp::wire::IpProtocol;

use super::config::Route;
use super::dns;
use super::engine::{Kind, Net};
use super::flows::{Class, Table};
use super::icmp::{self, Unreachable};
use connection::{Connection, Outcome, Segment};
use flow::{Flow, Work};
pub(super) use ring::Pool;

/// A connection, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Tcp {
    table: Table<Key, (Key, Flow)>,
    /// Connections that have something to say when the guest takes frames again.
    stalled: Vec<u32>,
    /// For initial sequence numbers (RFC 6528).
    secret: RandomState,
    start: Instant,
}

impl Tcp {
    pub(super) fn new(limit: usize, now: Instant) -> Self {
        Self { table: Table::new(limit), stalled: Vec::new(), secret: RandomState::new(), start: now }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    pub(super) fn queued(&self) -> usize {
        self.table.queued()
    }

    /// The guest takes frames again.
    pub(super) fn on_room(&mut self) {
        for index in self.stalled.drain(..) {
            self.table.queue(index);
        }
    }

    /// Something happened at a connection's socket.
    pub(super) fn on_event(&mut self, index: u32, event: &mio::event::Event) {
        if let Some((_, flow)) = self.table.get(index) {
            flow.on_event(event);
            self.table.queue(index);
        }
    }

    /// Takes a segment from the guest: the TCP header and what follows, whose checksum is right.
    pub(super) fn receive(&mut self, net: &mut Net, key: Key, bytes: &[u8]) {
        let Some(segment) = flow::parse(bytes) else { return };
        let Some(index) = self.table.find(&key) else {
            let opens = segment.syn && segment.ack.is_none() && !segment.rst;
            return if opens { self.open(net, key, &segment) } else { reject(net, key, &segment) };
        };
        let Some((_, flow)) = self.table.get(index) else { return };
        match flow.receive(net, &segment) {
            Ok(Outcome::Continue) => {
                let class = if flow.connection.is_open() { Class::Strong } else { Class::Weak };
                self.table.touch(index, class);
                self.table.queue(index);
            }
            Ok(Outcome::Reject(seq)) => flow::send_reset(net, key, seq, None),
            Ok(Outcome::Reset | Outcome::Dead) => self.remove(net, index, true),
            Err(errno) => self.fail(net, index, errno),
        }
    }

    /// The guest opens a connection.
    fn open(&mut self, net: &mut Net, key: Key, segment: &Segment<'_>) {
        let target = match net.config.route(key.remote.ip()) {
            Route::Host(address) => Ok(SocketAddr::new(address, key.remote.port())),
            Route::Dns if key.remote.port() == dns::PORT => {
                net.resolvers.current(net.now).ok_or(Errno::CONNREFUSED)
            }
            Route::Dns => Err(Errno::CONNREFUSED),
            Route::Denied => Err(Errno::ACCESS),
            Route::NoNeighbour => Err(Errno::HOSTUNREACH),
            Route::Ignored => return,
        };
        let connection = Connection::from_guest(segment, self.first_number(key, net.now), net.now);
        let socket = target.and_then(|target| match connecting(target) {
            Err(Errno::MFILE | Errno::NFILE) if self.evict(net) => connecting(target),
            result => result,
        });
        match socket {
            Ok(socket) => self.insert(net, key, Flow::new(connection, socket, true)),
            Err(errno) => tell(net, key, &connection, errno),
        }
    }

    /// A peer has connected to a published port.
    pub(super) fn accepted(&mut self, net: &mut Net, socket: OwnedFd, peer: SocketAddr, guest: SocketAddr) {
        let mut key = Key { guest, remote: net.config.seen_as(peer, guest.ip()) };
        // Two peers may look the same to the guest: the second gets another port.
        let mut attempt = 0_u16;
        while self.table.find(&key).is_some() {
            attempt += 1;
            key.remote.set_port(0xc000 | (peer.port().wrapping_add(attempt.wrapping_mul(977)) & 0x3fff));
            if attempt == 256 {
                return;
            }
        }
        let connection = Connection::to_guest(self.first_number(key, net.now), net.now);
        self.insert(net, key, Flow::new(connection, socket, false));
    }

    /// Makes room for another connection, or another descriptor.
    pub(super) fn evict(&mut self, net: &mut Net) -> bool {
        let Some(oldest) = self.table.oldest() else { return false };
        if let Some((key, flow)) = self.table.get(oldest) {
            tracing::debug!(guest = %key.guest, remote = %key.remote, "resetting the oldest connection: too many");
            let (key, (seq, ack)) = (*key, flow.connection.reset_numbers());
            flow::send_reset(net, key, seq, ack);
        }
        self.remove(net, oldest, true);
        true
    }

    fn insert(&mut self, net: &mut Net, key: Key, flow: Flow) {
        while self.table.is_full() && self.evict(net) {}
        let deadline = flow.connection.deadline();
        let index = self.table.insert(key, (key, flow), Class::Weak);
        let Some((_, flow)) = self.table.get(index) else { return };
        if let Err(errno) = flow.register(net, super::engine::token(Kind::Tcp, index)) {
            return self.fail(net, index, errno);
        }
        self.table.schedule(index, deadline);
        self.table.queue(index);
    }

    /// RFC 6528 § 3: a clock of 4 microseconds, and what only we know.
    fn first_number(&self, key: Key, now: Instant) -> u32 {
        let clock = now.saturating_duration_since(self.start).as_micros() / 4;
        (self.secret.hash_one(key) as u32).wrapping_add(clock as u32)
    }

    /// Serves connections that have something to do, one turn each.
    pub(super) fn serve(&mut self, net: &mut Net) {
        for _ in 0..self.table.queued() {
            let Some(index) = self.table.next_queued() else { return };
            let Some((key, flow)) = self.table.get(index) else { continue };
            let key = *key;
            match flow.work(net, key) {
                Ok(Work::Done) => {}
                Ok(Work::More) => self.table.queue(index),
                Ok(Work::Stalled) => self.stalled.push(index),
                Ok(Work::Over) => {
                    self.remove(net, index, false);
                    continue;
                }
                Err(errno) => {
                    self.fail(net, index, errno);
                    continue;
                }
            }
            if let Some((_, flow)) = self.table.get(index) {
                let deadline = flow.deadline();
                self.table.schedule(index, deadline);
            }
        }
    }

    /// Wakes connections whose time has come.
    pub(super) fn on_time(&mut self, net: &mut Net) {
        let stalled = net.guest.is_stalled(net.now);
        while let Some(index) = self.table.due(net.now) {
            let Some((key, flow)) = self.table.get(index) else { continue };
            if flow.deadline() > net.now {
                let deadline = flow.deadline();
                self.table.schedule(index, deadline);
                continue;
            }
            let key = *key;
            if flow.on_timer(net, stalled) == Outcome::Dead {
                let (seq, ack) = flow.connection.reset_numbers();
                tracing::debug!(guest = %key.guest, remote = %key.remote, "the guest does not answer");
                flow::send_reset(net, key, seq, ack);
                self.remove(net, index, true);
                continue;
            }
            self.table.queue(index);
        }
    }

    /// The host's end has failed: the guest is told.
    fn fail(&mut self, net: &mut Net, index: u32, errno: Errno) {
        let Some((key, flow)) = self.table.get(index) else { return };
        let key = *key;
        if flow.is_connecting() {
            tell(net, key, &flow.connection, errno);
        } else {
            let (seq, ack) = flow.connection.reset_numbers();
            flow::send_reset(net, key, seq, ack);
        }
        self.remove(net, index, false);
    }

    /// Forgets a connection. `reset` has the host's peer see that it was not ended in order.
    fn remove(&mut self, net: &mut Net, index: u32, reset: bool) {
        if let Some((_, (_, flow))) = self.table.remove(index) {
            flow.close(net, reset);
        }
    }
}

/// A socket that is being connected to `target`.
fn connecting(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// Tells the guest why its connection did not come about: a closed port resets, a network that has no way says so, and
/// silence stays silence.
fn tell(net: &mut Net, key: Key, connection: &Connection, errno: Errno) {
    if errno == Errno::TIMEDOUT {
        return;
    }
    match Unreachable::from_errno(errno).filter(|why| *why != Unreachable::Port) {
        Some(why) => {
            let ([a, b], [c, d], [e, f, g, h]) = (
                key.guest.port().to_be_bytes(),
                key.remote.port().to_be_bytes(),
                connection.guest_start().to_be_bytes(),
            );
            let data = [a, b, c, d, e, f, g, h];
            icmp::unreachable(net, why, IpProtocol::Tcp, key.guest, key.remote, data, 20);
        }
        None => {
            let (seq, ack) = connection.reset_numbers();
            flow::send_reset(net, key, seq, ack);
        }
    }
}

/// Answers a segment of no connection (RFC 9293 § 3.10.7.1).
fn reject(net: &mut Net, key: Key, segment: &Segment<'_>) {
    if segment.rst {
        return;
    }
    match segment.ack {
        Some(ack) => flow::send_reset(net, key, ack, None),
        None => flow::send_reset(net, key, 0, Some(segment.end())),
    }
}
