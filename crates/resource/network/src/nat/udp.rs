//! Flows of datagrams: UDP, and pings through the host's ping sockets.
//!
//! Each pair of guest and remote address has a connected socket of the host, so that errors come back to it. Published
//! ports share the listening socket instead.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, sendto,
    socket_with,
};
use smoltcp::wire::IpProtocol;

use super::config::Route;
use super::dns;
use super::engine::{Kind, Net, token};
use super::flows::{Class, Table};
use super::guest::{Guest, MTU};
use super::icmp::{self, Unreachable};
use crate::wire::pseudo_header;

/// The length of a UDP header.
pub(super) const HEADER: usize = 8;
/// How long a flow is kept without traffic, at least: RFC 4787 § 4.3 (REQ-5) asks for two minutes.
const IDLE: Duration = Duration::from_mins(2);
/// The same of a flow for one question and its answer.
const IDLE_QUERY: Duration = Duration::from_secs(15);
/// How many datagrams of one flow are served before the next flow's turn.
const TURN: usize = 32;
/// The longest query that is kept for another resolver (the size that EDNS0, RFC 6891 § 6.2.5, suggests).
const MAX_QUERY: usize = 4096;

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    Udp,
    /// The guest's port is the echo's identifier; the remote's is 0.
    Ping,
}

/// A flow, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) protocol: Protocol,
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
}

#[derive(Debug)]
enum Socket {
    Own(OwnedFd),
    /// A published port's; where the peer really is.
    Published {
        socket: Arc<std::net::UdpSocket>,
        peer: SocketAddr,
    },
}

#[derive(Debug)]
struct Flow {
    socket: Socket,
    used: Instant,
    idle: Duration,
    query: Option<Query>,
}

/// A DNS query that has no answer yet.
#[derive(Debug)]
struct Query {
    bytes: Box<[u8]>,
    resolver: SocketAddr,
    asked: Instant,
    tries: usize,
}

/// All flows of datagrams.
#[derive(Debug)]
pub(super) struct Datagrams {
    table: Table<Key, (Key, Flow)>,
    /// Ping sockets are not allowed; said once.
    no_pings: bool,
    buffer: Vec<u8>,
}

impl Datagrams {
    pub(super) fn new(limit: usize) -> Self {
        Self { table: Table::new(limit), no_pings: false, buffer: vec![0; 65_536] }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.table.next_deadline()
    }

    pub(super) fn queued(&self) -> usize {
        self.table.queued()
    }

    /// The host's socket of a flow can be read.
    pub(super) fn on_readable(&mut self, index: u32) {
        self.table.queue(index);
    }

    /// Takes a datagram from the guest: a UDP payload, or a whole ICMP echo request.
    pub(super) fn receive(&mut self, net: &mut Net, key: Key, payload: &[u8]) {
        let index = match self.table.find(&key) {
            Some(index) => index,
            None => match self.open(net, key) {
                Ok(Some(index)) => index,
                Ok(None) => return,
                Err(errno) => return refuse(net, key, errno, payload),
            },
        };
        self.table.touch(index, Class::Strong);
        let Some((_, flow)) = self.table.get(index) else { return };
        flow.used = net.now;
        let sent = match &flow.socket {
            Socket::Own(socket) => send(socket, payload, SendFlags::NOSIGNAL),
            Socket::Published { socket, peer } => sendto(socket, payload, SendFlags::NOSIGNAL, peer),
        };
        if let Some(query) = &mut flow.query {
            let bytes = payload.get(..payload.len().min(MAX_QUERY)).unwrap_or_default();
            *query = Query { bytes: bytes.into(), resolver: query.resolver, asked: net.now, tries: 1 };
            self.table.schedule(index, net.now + dns::PATIENCE);
        }
        if let Err(errno) = sent {
            self.on_error(net, index, errno);
        }
    }

    /// Makes a flow for what the guest sends. `None` if it is to be ignored.
    fn open(&mut self, net: &mut Net, key: Key) -> Result<Option<u32>, Errno> {
        let mut query = None;
        let target = match net.config.route(key.remote.ip()) {
            Route::Host(address) => SocketAddr::new(address, key.remote.port()),
            Route::Dns if key.protocol == Protocol::Udp && key.remote.port() == dns::PORT => {
                let resolver = net.resolvers.current(net.now).ok_or(Errno::CONNREFUSED)?;
                query = Some(Query { bytes: Box::default(), resolver, asked: net.now, tries: 1 });
                resolver
            }
            Route::Dns => return Err(Errno::CONNREFUSED),
            Route::Denied => return Err(Errno::ACCESS),
            Route::NoNeighbour => return Err(Errno::HOSTUNREACH),
            Route::Ignored => return Ok(None),
        };
        let socket = match connected(key.protocol, target) {
            Err(Errno::MFILE | Errno::NFILE) if self.evict() => connected(key.protocol, target),
            result => result,
        };
        if key.protocol == Protocol::Ping
            && matches!(socket, Err(Errno::ACCESS | Errno::PERM))
            && !std::mem::replace(&mut self.no_pings, true)
        {
            tracing::warn!(
                "guests cannot ping: net.ipv4.ping_group_range does not allow ping sockets to this user's groups"
            );
        }
        let idle = if query.is_some() || key.protocol == Protocol::Ping { IDLE_QUERY } else { IDLE };
        let index = self.insert(net, key, Flow { socket: Socket::Own(socket?), used: net.now, idle, query });
        let Some((_, Flow { socket: Socket::Own(socket), .. })) = self.table.get(index) else {
            return Ok(None);
        };
        let registered = net.registry.register(
            &mut SourceFd(&socket.as_raw_fd()),
            token(Kind::Datagram, index),
            Interest::READABLE,
        );
        if let Err(error) = registered {
            self.table.remove(index);
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM));
        }
        Ok(Some(index))
    }

    fn insert(&mut self, net: &Net, key: Key, flow: Flow) -> u32 {
        while self.table.is_full() && self.evict() {}
        let (used, idle) = (flow.used.max(net.now), flow.idle);
        let index = self.table.insert(key, (key, flow), Class::Weak);
        self.table.schedule(index, used + idle);
        index
    }

    fn evict(&mut self) -> bool {
        self.table.oldest().and_then(|oldest| self.table.remove(oldest)).is_some()
    }

    /// Takes a datagram for a published port: from `peer`, for `guest`.
    pub(super) fn published(
        &mut self,
        net: &mut Net,
        socket: &Arc<std::net::UdpSocket>,
        peer: SocketAddr,
        guest: SocketAddr,
        payload: &[u8],
    ) {
        let mut key = Key { protocol: Protocol::Udp, guest, remote: net.config.seen_as(peer, guest.ip()) };
        // Two peers may look the same to the guest: the second gets another port.
        for attempt in 0..16_u16 {
            match self.table.find(&key).and_then(|index| Some((index, self.table.get(index)?))) {
                Some((index, (_, Flow { socket: Socket::Published { peer: known, .. }, .. })))
                    if *known == peer =>
                {
                    self.table.touch(index, Class::Strong);
                    break;
                }
                Some(_) => key.remote.set_port(0xc000 | (peer.port().wrapping_add(attempt * 977) & 0x3fff)),
                None => {
                    let socket = Socket::Published { socket: Arc::clone(socket), peer };
                    self.insert(net, key, Flow { socket, used: net.now, idle: IDLE, query: None });
                    break;
                }
            }
        }
        if let Some((_, flow)) = self.table.find(&key).and_then(|index| self.table.get(index)) {
            flow.used = net.now;
        }
        to_guest(net, key.remote, key.guest, payload);
    }

    /// Serves flows whose sockets can be read, one turn each, as long as the guest takes frames.
    pub(super) fn serve(&mut self, net: &mut Net) {
        for _ in 0..self.table.queued() {
            if !net.guest.is_ready() {
                return;
            }
            let Some(index) = self.table.next_queued() else { return };
            self.serve_flow(net, index);
        }
    }

    fn serve_flow(&mut self, net: &mut Net, index: u32) {
        for _ in 0..TURN {
            let Some((key, flow)) = self.table.get(index) else { return };
            let Socket::Own(socket) = &flow.socket else { return };
            match recv(socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    flow.used = net.now;
                    if let Some(query) = &mut flow.query {
                        query.bytes = Box::default();
                    }
                    let payload = &mut self.buffer[..length];
                    match key.protocol {
                        Protocol::Udp => to_guest(net, key.remote, key.guest, payload),
                        Protocol::Ping if icmp::ECHO_REPLY.contains(payload.first().unwrap_or(&8)) => {
                            icmp::reply(net, key.guest, key.remote.ip(), payload);
                        }
                        Protocol::Ping => {}
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => return self.on_error(net, index, errno),
            }
        }
        self.table.queue(index);
    }

    /// A flow's socket has an error: another resolver is asked, or the guest is told.
    fn on_error(&mut self, net: &mut Net, index: u32, errno: Errno) {
        if matches!(errno, Errno::AGAIN | Errno::INTR | Errno::NOBUFS) {
            return;
        }
        if self.ask_next(net, index) {
            return;
        }
        let Some((key, _)) = self.table.get(index) else { return };
        let key = *key;
        if errno != Errno::MSGSIZE {
            self.table.remove(index);
        }
        refuse(net, key, errno, &[]);
    }

    /// Asks the next resolver what this one has not answered, if there is another.
    fn ask_next(&mut self, net: &mut Net, index: u32) -> bool {
        let Some((key, flow)) = self.table.get(index) else { return false };
        let Some(query) = flow.query.as_mut().filter(|query| !query.bytes.is_empty()) else { return false };
        net.resolvers.give_up(query.resolver);
        while query.tries < net.resolvers.len() {
            query.tries += 1;
            let Some(resolver) = net.resolvers.current(net.now) else { return false };
            let Ok(socket) = connected(Protocol::Udp, resolver) else { continue };
            let source = socket.as_raw_fd();
            let registered = net.registry.register(
                &mut SourceFd(&source),
                token(Kind::Datagram, index),
                Interest::READABLE,
            );
            if registered.is_ok() && send(&socket, &query.bytes, SendFlags::NOSIGNAL).is_ok() {
                tracing::debug!(guest = %key.guest, %resolver, "asking another resolver");
                (query.resolver, query.asked) = (resolver, net.now);
                flow.socket = Socket::Own(socket);
                self.table.schedule(index, net.now + dns::PATIENCE);
                return true;
            }
            net.resolvers.give_up(resolver);
        }
        false
    }

    /// Lets go what has been idle for long.
    pub(super) fn on_time(&mut self, net: &mut Net) {
        while let Some(index) = self.table.due(net.now) {
            let Some((_, flow)) = self.table.get(index) else { continue };
            let (end, asked) = (flow.used + flow.idle, flow.query.as_ref().map(|query| query.asked));
            if end <= net.now {
                self.table.remove(index);
                continue;
            }
            self.table.schedule(index, end);
            if asked.is_some_and(|asked| asked + dns::PATIENCE <= net.now) {
                self.ask_next(net, index);
            }
        }
    }
}

/// A socket that is connected to `target`.
fn connected(protocol: Protocol, target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let number = match protocol {
        Protocol::Udp => ipproto::UDP,
        Protocol::Ping if target.is_ipv4() => ipproto::ICMP,
        Protocol::Ping => ipproto::ICMPV6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(number))?;
    connect(&socket, &target)?;
    Ok(socket)
}

/// Tells the guest that its datagram does not arrive.
fn refuse(net: &mut Net, key: Key, errno: Errno, payload: &[u8]) {
    let Some(why) = Unreachable::from_errno(errno) else { return };
    let length = (HEADER + payload.len()) as u16;
    let ([p, q], [r, s], [l, m]) =
        (key.guest.port().to_be_bytes(), key.remote.port().to_be_bytes(), length.to_be_bytes());
    let (protocol, data) = match key.protocol {
        Protocol::Udp => (IpProtocol::Udp, [p, q, r, s, l, m, 0, 0]),
        // An echo request's first bytes.
        Protocol::Ping if key.guest.is_ipv4() => (IpProtocol::Icmp, [8, 0, 0, 0, p, q, 0, 0]),
        Protocol::Ping => (IpProtocol::Icmpv6, [128, 0, 0, 0, p, q, 0, 0]),
    };
    icmp::unreachable(net, why, protocol, key.guest, key.remote, data, usize::from(length));
}

/// Sends a datagram to the guest.
fn to_guest(net: &mut Net, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
    let length = HEADER + payload.len();
    let overhead = if source.is_ipv4() { 20 } else { 40 };
    if overhead + length > MTU {
        return super::fragment::send(net, source, destination, payload);
    }
    let Net { guest, config, .. } = net;
    if let Some(frame) = guest.begin(config, source.ip(), destination.ip(), IpProtocol::Udp, length) {
        finish(guest, frame, source, destination, payload);
    }
}

/// The header of a datagram, its checksum not filled in.
pub(super) fn header(source: SocketAddr, destination: SocketAddr, length: usize) -> [u8; HEADER] {
    let ([a, b], [c, d], [e, f]) =
        (source.port().to_be_bytes(), destination.port().to_be_bytes(), (length as u16).to_be_bytes());
    [a, b, c, d, e, f, 0, 0]
}

/// Appends header and payload to a frame and sends it.
pub(super) fn finish(
    guest: &mut Guest,
    mut frame: Vec<u8>,
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) {
    let (start, length) = (frame.len(), HEADER + payload.len());
    frame.extend_from_slice(&header(source, destination, length));
    frame.extend_from_slice(payload);
    let pseudo = pseudo_header(source.ip(), destination.ip(), IpProtocol::Udp, length);
    let packet = guest.checksum(frame, pseudo, start, 6);
    guest.send(packet);
}

/// The address that a packet without ports comes from.
pub(super) fn portless(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// For a mio registration of a published socket.
pub(super) fn listener_token(index: usize) -> Token {
    token(Kind::Listener, index as u32)
}
