//! The network's thread: one event loop for the link, all sockets and all timers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet, Icmpv6Message,
    Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet, UdpPacket,
};

use super::config::{Config, Route};
use super::dhcp::{self, Leases};
use super::dns::Resolvers;
use super::fragment::{self, Assemblies};
use super::guest::{Guest, MAC};
use super::icmp;
use super::publish::{Publish, Socket};
use super::tcp::{self, Pool, Tcp};
use super::udp::{self, Datagrams, Protocol};
use super::{arp, ndp};
use crate::limit::Port;
use crate::link::{Link, Packet};
use crate::wire::{self, pseudo_header};

/// How many frames are taken from the guest before everything else has its turn.
const FRAMES: usize = 256;
/// How many peers of a published port are served in a turn.
const PEERS: usize = 64;

/// Whose a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Own = 0,
    Tcp = 1,
    Datagram = 2,
    Listener = 3,
}

const FRAMES_WAIT: u32 = 0;
const ROOM: u32 = 1;
const WAKE: u32 = 2;

pub(super) fn token(kind: Kind, index: u32) -> Token {
    Token((index as usize) << 2 | kind as usize)
}

/// What all protocols share.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) config: Config,
    pub(super) guest: Guest,
    pub(super) registry: Registry,
    pub(super) resolvers: Resolvers,
    pub(super) pool: Pool,
    /// The time of this round.
    pub(super) now: Instant,
    /// The identification of the last datagram that was sent in fragments.
    pub(super) fragments: u32,
}

/// A published port.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: Listening,
    pub(super) publish: Publish,
    ready: bool,
}

/// Its socket. Flows of datagrams share theirs.
#[derive(Debug)]
pub(super) enum Listening {
    Tcp(std::net::TcpListener),
    Udp(Arc<std::net::UdpSocket>),
}

/// The network.
#[derive(Debug)]
pub(super) struct Engine {
    poll: Poll,
    net: Net,
    tcp: Tcp,
    datagrams: Datagrams,
    leases: Leases,
    assemblies: Assemblies,
    listeners: Vec<Listener>,
    /// Frames may wait in the link.
    frames_wait: bool,
    buffer: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl Engine {
    pub(super) fn new(
        config: Config,
        link: Link,
        sockets: Vec<(Socket, Publish)>,
    ) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), token(Kind::Own, WAKE))?;
        let registry = poll.registry().try_clone()?;
        for (fd, number) in [(link.readable().as_raw_fd(), FRAMES_WAIT), (link.writable().as_raw_fd(), ROOM)]
        {
            registry.register(&mut SourceFd(&fd), token(Kind::Own, number), Interest::READABLE)?;
        }
        let mut listeners = Vec::new();
        for (number, (socket, publish)) in sockets.into_iter().enumerate() {
            let fd = match &socket {
                Socket::Tcp(listener) => listener.as_raw_fd(),
                Socket::Udp(socket) => socket.as_raw_fd(),
            };
            registry.register(&mut SourceFd(&fd), udp::listener_token(number), Interest::READABLE)?;
            let socket = match socket {
                Socket::Tcp(listener) => Listening::Tcp(listener),
                Socket::Udp(socket) => Listening::Udp(Arc::new(socket)),
            };
            listeners.push(Listener { socket, publish, ready: true });
        }
        let now = Instant::now();
        let engine = Self {
            poll,
            tcp: Tcp::new(config.limits.connections, now),
            datagrams: Datagrams::new(config.limits.datagrams),
            leases: Leases::default(),
            assemblies: Assemblies::default(),
            listeners,
            frames_wait: true,
            buffer: vec![0; 65_536],
            stop: Arc::default(),
            net: Net {
                guest: Guest::new(Port::new(link, config.rates)),
                registry,
                resolvers: Resolvers::new(config.resolvers.as_deref()),
                pool: Pool::new(config.limits.memory),
                config,
                now,
                fragments: 0,
            },
        };
        Ok((engine, waker))
    }

    /// Set and woken, [`run`](Self::run) ends.
    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Serves the network until it is stopped or the link is closed.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.round(&mut events)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "the network ends: waiting for events failed");
                return;
            }
            if self.net.guest.port.link().is_closed() {
                break;
            }
        }
        tracing::debug!(connections = self.tcp.len(), "the network ends");
    }

    /// Waits for events and does what they ask for.
    fn round(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.timeout();
        self.poll.poll(events, timeout)?;
        self.handle(events, Instant::now());
        Ok(())
    }

    /// One turn without waiting, at a time of the caller's.
    pub(super) fn turn(&mut self, events: &mut Events, now: Instant) {
        events.clear();
        let _ = self.poll.poll(events, Some(Duration::ZERO));
        self.handle(events, now);
    }

    fn handle(&mut self, events: &Events, now: Instant) {
        self.net.now = now;
        for event in events {
            let index = (event.token().0 >> 2) as u32;
            match event.token().0 & 3 {
                kind if kind == Kind::Tcp as usize => self.tcp.on_event(index, event),
                kind if kind == Kind::Datagram as usize => self.datagrams.on_readable(index),
                kind if kind == Kind::Listener as usize => {
                    if let Some(listener) = self.listeners.get_mut(index as usize) {
                        listener.ready = true;
                    }
                }
                _ if index == FRAMES_WAIT => self.frames_wait = true,
                _ => {}
            }
        }
        self.step();
    }

    /// One turn of everything.
    fn step(&mut self) {
        self.net.guest.flush(self.net.now);
        self.take_frames();
        self.tcp.on_time(&mut self.net);
        self.datagrams.on_time(&mut self.net);
        self.serve_listeners();
        if self.net.guest.is_ready() {
            self.tcp.on_room();
        }
        self.tcp.serve(&mut self.net);
        self.datagrams.serve(&mut self.net);
    }

    /// How long to wait for events.
    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let (receive_at, send_at) = self.net.guest.port.retry_at();
        let ready = self.net.guest.is_ready();
        let busy = self.frames_wait && receive_at.is_none()
            || self.tcp.queued() > 0
            || ready && self.datagrams.queued() > 0
            || self.listeners.iter().any(|listener| listener.ready);
        if busy {
            return Some(Duration::ZERO);
        }
        let times = [
            receive_at.filter(|_| self.frames_wait),
            send_at.filter(|_| !ready),
            self.tcp.next_deadline(),
            self.datagrams.next_deadline(),
        ];
        let next = times.into_iter().flatten().min()?;
        // Up to the next millisecond, which is what waiting counts in.
        Some(next.saturating_duration_since(now) + Duration::from_micros(999))
    }

    fn take_frames(&mut self) {
        if !self.frames_wait {
            return;
        }
        for _ in 0..FRAMES {
            match self.net.guest.port.receive() {
                Some(packet) => self.receive(&packet),
                None => {
                    self.frames_wait = self.net.guest.port.retry_at().0.is_some();
                    return;
                }
            }
        }
    }

    /// Takes a frame from the guest.
    pub(super) fn receive(&mut self, packet: &Packet) {
        let Ok(frame) = EthernetFrame::new_checked(&packet.bytes[..]) else { return };
        let (source, destination) = (frame.src_addr(), frame.dst_addr());
        if !source.is_unicast() || source == MAC || destination.is_unicast() && destination != MAC {
            return;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                arp::receive(&mut self.net.guest, &self.net.config, source, frame.payload());
            }
            EthernetProtocol::Ipv4 => self.receive_ipv4(source, frame.payload(), packet),
            EthernetProtocol::Ipv6 => self.receive_ipv6(source, frame.payload(), packet),
            EthernetProtocol::Unknown(_) => {}
        }
    }

    fn receive_ipv4(&mut self, mac: EthernetAddress, bytes: &[u8], packet: &Packet) {
        let Ok(ip) = Ipv4Packet::new_checked(bytes) else { return };
        let headers = ip.version() == 4 && ip.header_len() >= 20;
        if !headers || !ip.verify_checksum() {
            return;
        }
        let (source, destination) = fragment::addresses(&ip);
        let network = self.net.config.ipv4;
        let valid = network.contains(ip.src_addr())
            && ![network.gateway, network.dns, network.broadcast()].contains(&ip.src_addr());
        // Who has no address yet may ask for one.
        let asks = ip.src_addr().is_unspecified() && ip.next_header() == IpProtocol::Udp;
        if !valid && !asks {
            return;
        }
        if valid {
            self.net.guest.learn(source, mac);
        }
        if ip.more_frags() || ip.frag_offset() != 0 {
            if let Some(whole) = self.assemblies.receive(&ip, self.net.now).filter(|_| valid) {
                self.receive_transport(mac, source, destination, ip.next_header(), &whole, false);
            }
            return;
        }
        let trusted = packet.offload.checksum.is_some() || packet.offload.checked;
        self.receive_transport(mac, source, destination, ip.next_header(), ip.payload(), trusted);
    }

    fn receive_ipv6(&mut self, mac: EthernetAddress, bytes: &[u8], packet: &Packet) {
        let Some(network) = self.net.config.ipv6 else { return };
        let Ok(ip) = Ipv6Packet::new_checked(bytes) else { return };
        let address = ip.src_addr();
        if ip.version() != 6 || address.is_multicast() {
            return;
        }
        let (source, destination) = (IpAddr::V6(address), IpAddr::V6(ip.dst_addr()));
        let ours = address == network.gateway() || address == network.dns();
        let valid = network.contains(address) && !ours;
        if valid {
            self.net.guest.learn(source, mac);
        }
        let trusted = packet.offload.checksum.is_some() || packet.offload.checked;
        if ip.next_header() == IpProtocol::Icmpv6 && Icmpv6Packet::new_checked(ip.payload()).is_ok() {
            let message = Icmpv6Packet::new_unchecked(ip.payload());
            if message.msg_type().is_ndisc() {
                if trusted || message.verify_checksum(&address, &ip.dst_addr()) {
                    ndp::receive(
                        &mut self.net.guest,
                        &self.net.config,
                        mac,
                        address,
                        ip.hop_limit(),
                        ip.payload(),
                    );
                }
                return;
            }
        }
        if valid {
            self.receive_transport(mac, source, destination, ip.next_header(), ip.payload(), trusted);
        }
    }

    /// Takes the payload of an IP packet. `trusted` says that its checksum needs no look.
    fn receive_transport(
        &mut self,
        _mac: EthernetAddress,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        bytes: &[u8],
        trusted: bool,
    ) {
        let right = || {
            if trusted {
                return true;
            }
            let pseudo = pseudo_header(source, destination, protocol, bytes.len());
            wire::add(pseudo, wire::sum(bytes)) == 0xffff
        };
        match protocol {
            IpProtocol::Tcp if right() && bytes.len() >= 20 => {
                let ports = Ports::of(bytes, source, destination);
                self.tcp.receive(
                    &mut self.net,
                    tcp::Key { guest: ports.source, remote: ports.destination },
                    bytes,
                );
            }
            IpProtocol::Udp => {
                let Ok(udp) = UdpPacket::new_checked(bytes) else { return };
                let none = udp.checksum() == 0 && source.is_ipv4();
                if none || right() {
                    self.receive_udp(Ports::of(bytes, source, destination), udp.payload());
                }
            }
            IpProtocol::Icmp if source.is_ipv4() => {
                let Ok(message) = Icmpv4Packet::new_checked(bytes) else { return };
                if message.msg_type() == Icmpv4Message::EchoRequest && (trusted || message.verify_checksum())
                {
                    self.receive_echo(source, destination, bytes);
                }
            }
            IpProtocol::Icmpv6 if source.is_ipv6() => {
                let Ok(message) = Icmpv6Packet::new_checked(bytes) else { return };
                if message.msg_type() == Icmpv6Message::EchoRequest && right() {
                    self.receive_echo(source, destination, bytes);
                }
            }
            _ => {}
        }
    }

    fn receive_udp(&mut self, Ports { source, destination }: Ports, payload: &[u8]) {
        let to_server = destination.port() == dhcp::SERVER && destination.is_ipv4();
        let network = self.net.config.ipv4;
        let all = [
            IpAddr::V4(network.broadcast()),
            IpAddr::V4(std::net::Ipv4Addr::BROADCAST),
            network.gateway.into(),
        ];
        if to_server && all.contains(&destination.ip()) {
            return self.leases.receive(&mut self.net, payload);
        }
        if source.ip().is_unspecified() || source.port() == 0 || destination.port() == 0 {
            return;
        }
        let key = udp::Key { protocol: Protocol::Udp, guest: source, remote: destination };
        self.datagrams.receive(&mut self.net, key, payload);
    }

    /// The router answers for itself; everything else is asked.
    fn receive_echo(&mut self, source: IpAddr, destination: IpAddr, bytes: &[u8]) {
        let Some(ident) = bytes.get(4..6).map(|ident| u16::from_be_bytes([ident[0], ident[1]])) else {
            return;
        };
        let guest = SocketAddr::new(source, ident);
        let network = self.net.config.ipv4;
        let itself = self.net.config.route(destination) == Route::Dns
            || destination == IpAddr::V4(network.gateway)
            || self.net.config.ipv6.is_some_and(|network| destination == IpAddr::V6(network.gateway()));
        if itself {
            return icmp::reply(&mut self.net, guest, destination, &mut bytes.to_vec());
        }
        let key = udp::Key { protocol: Protocol::Ping, guest, remote: udp::portless(destination) };
        self.datagrams.receive(&mut self.net, key, bytes);
    }

    /// Takes what has come to published ports.
    fn serve_listeners(&mut self) {
        let Self { listeners, net, tcp, datagrams, buffer, .. } = self;
        for listener in listeners.iter_mut().filter(|listener| listener.ready) {
            let address = if listener.publish.to_ipv6 {
                net.guest.ipv6().map(IpAddr::V6)
            } else {
                Some(net.config.ipv4.guest.into())
            };
            let guest = address.map(|address| SocketAddr::new(address, listener.publish.guest_port));
            for _ in 0..PEERS {
                let result = match &listener.socket {
                    Listening::Tcp(socket) => match socket.accept() {
                        Ok((stream, peer)) => {
                            let _ = stream.set_nonblocking(true);
                            // Of a guest that is nowhere yet, the peer finds the end at once.
                            if let Some(guest) = guest {
                                tcp.accepted(net, stream.into(), peer, guest);
                            }
                            Ok(())
                        }
                        Err(error) => Err(error),
                    },
                    Listening::Udp(socket) => socket.recv_from(buffer).map(|(length, peer)| {
                        if let Some(guest) = guest {
                            datagrams.published(net, socket, peer, guest, &buffer[..length]);
                        }
                    }),
                };
                match result {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        listener.ready = false;
                        break;
                    }
                    // Too many descriptors: the oldest connection makes room.
                    Err(error) if out_of_descriptors(&error) && !tcp.evict(net) => {
                        listener.ready = false;
                        break;
                    }
                    // Served, or an error of this peer only.
                    Ok(()) | Err(_) => {}
                }
            }
        }
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Addresses with ports, of a transport header that is long enough.
struct Ports {
    source: SocketAddr,
    destination: SocketAddr,
}

impl Ports {
    fn of(bytes: &[u8], source: IpAddr, destination: IpAddr) -> Self {
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        Self { source: SocketAddr::new(source, port(0)), destination: SocketAddr::new(destination, port(2)) }
    }
}
