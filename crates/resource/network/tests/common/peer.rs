//! A guest: smoltcp's stack on the other end of a link.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant as Host};

use posada_network::link::{self, Capacity, Features, Link, Packet};
use posada_network::nat::{Config, Nat};
use posada_network::wire::conform;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{AnySocket, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint};

/// The guest's address, and the router's.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
pub(crate) const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x6f73, 0x6164, 0x6100, 0, 0, 0, 0x15);
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x6f73, 0x6164, 0x6100, 0, 0, 0, 2);
pub(crate) const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A link's end as smoltcp's device.
pub(crate) struct Card {
    pub(crate) link: Link,
    /// Of a thousand frames, how many are lost, each way.
    loss: u32,
    seed: u32,
    received: VecDeque<Vec<u8>>,
    /// Every frame that came, if wanted.
    pub(crate) seen: Option<Vec<Vec<u8>>>,
}

impl Card {
    fn loses(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (self.seed >> 16) % 1000 < self.loss
    }

    fn fill(&mut self) {
        while self.received.len() < 64 {
            let Some(packet) = self.link.receive() else { return };
            if self.loses() {
                continue;
            }
            if let Some(seen) = &mut self.seen {
                seen.push(packet.bytes.clone());
            }
            conform(packet, Features::NONE, &mut |packet| self.received.push_back(packet.bytes))
                .expect("the network describes its frames rightly");
        }
    }
}

pub(crate) struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Sending<'a>(&'a mut Card);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut bytes = vec![0; length];
        let result = f(&mut bytes);
        if !self.0.loses() {
            // A full queue loses it, as a card's would.
            let _ = self.0.link.send(Packet::new(bytes));
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        self.fill();
        let bytes = self.received.pop_front()?;
        Some((Received(bytes), Sending(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest and the network that it is on.
pub(crate) struct Guest {
    /// None if it is on another network.
    pub(crate) nat: Option<Nat>,
    pub(crate) card: Card,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    next_port: u16,
}

/// What a guest is like.
pub(crate) struct Options {
    pub(crate) config: Config,
    /// What the card accepts.
    pub(crate) features: Features,
    pub(crate) loss: u32,
    pub(crate) addresses: Vec<IpCidr>,
}

impl Default for Options {
    fn default() -> Self {
        let addresses = vec![IpCidr::new(GUEST.into(), 24), IpCidr::new(GUEST6.into(), 64)];
        Self { config: Config::default(), features: Features::ALL, loss: 0, addresses }
    }
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let (link, network) = link::pair(Capacity::default()).unwrap();
        link.accept(options.features);
        let nat = Nat::start(options.config, network).unwrap();
        let mut guest = Self::on(link, MAC, &options.addresses, options.loss);
        guest.interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        guest.interface.routes_mut().add_default_ipv6_route(GATEWAY6).unwrap();
        guest.nat = Some(nat);
        guest
    }

    /// A guest at the end of any link.
    pub(crate) fn on(link: Link, mac: [u8; 6], addresses: &[IpCidr], loss: u32) -> Self {
        let mut card = Card { link, loss, seed: 42, received: VecDeque::new(), seen: None };
        let mut config = InterfaceConfig::new(EthernetAddress(mac).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut card, Instant::now());
        interface.update_ip_addrs(|list| addresses.iter().for_each(|address| list.push(*address).unwrap()));
        Self { nat: None, card, interface, sockets: SocketSet::new(Vec::new()), next_port: 20_000 }
    }

    /// Lets the stack do what it can.
    pub(crate) fn poll(&mut self) {
        self.interface.poll(Instant::now(), &mut self.card, &mut self.sockets);
    }

    /// Runs until `done` has a value.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Host::now();
        loop {
            self.poll();
            if let Some(value) = done(self) {
                self.poll();
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "waited too long for {what}");
            self.wait();
        }
    }

    /// Runs for a while.
    pub(crate) fn run(&mut self, time: Duration) {
        let start = Host::now();
        while start.elapsed() < time {
            self.poll();
            self.wait();
        }
    }

    fn wait(&mut self) {
        let delay = self
            .interface
            .poll_delay(Instant::now(), &self.sockets)
            .map_or(5000, |delay| delay.total_micros());
        let timeout = Timespec { tv_sec: 0, tv_nsec: delay.min(5000) as i64 * 1000 };
        let mut fds = [PollFd::from_borrowed_fd(self.card.link.readable(), PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).unwrap();
    }

    pub(crate) fn tcp_socket(&mut self, buffer: usize) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Begins to connect.
    pub(crate) fn start_connecting(
        &mut self,
        address: impl Into<IpAddr>,
        port: u16,
        buffer: usize,
    ) -> SocketHandle {
        let handle = self.tcp_socket(buffer);
        self.next_port += 1;
        let remote = IpEndpoint::new(address.into().into(), port);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), remote, self.next_port).unwrap();
        handle
    }

    /// Connects, and waits until that has succeeded or failed.
    pub(crate) fn connect(&mut self, address: impl Into<IpAddr>, port: u16) -> Option<SocketHandle> {
        let handle = self.start_connecting(address, port, 65_535);
        self.until("a connection", |guest| match guest.tcp(handle).state() {
            tcp::State::Established => Some(Some(handle)),
            tcp::State::Closed => Some(None),
            _ => None,
        })
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn socket<T: AnySocket<'static>>(&mut self, handle: SocketHandle) -> &mut T {
        self.sockets.get_mut(handle)
    }

    /// Sends all of `bytes` and takes what comes until `until` bytes have come or the other side has ended.
    pub(crate) fn exchange(&mut self, handle: SocketHandle, bytes: &[u8], wanted: usize) -> Vec<u8> {
        let (mut sent, mut received) = (0, Vec::new());
        self.until("an exchange", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() && sent < bytes.len() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            while socket.can_recv() {
                socket.recv(|data| (data.len(), received.extend_from_slice(data))).unwrap();
            }
            let ended = !socket.may_recv();
            (sent == bytes.len() && (received.len() >= wanted || ended)).then_some(())
        });
        received
    }
}

/// Bytes that differ everywhere.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect()
}
