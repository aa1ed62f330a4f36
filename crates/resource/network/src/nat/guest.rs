//! The guests' side of the network: the port, the neighbours, and packets to them.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, Ipv6Repr,
};

use super::arp;
use super::config::Config;
use super::ndp;
use crate::limit::Port;
use crate::link::{Features, Offload, Packet, PartialChecksum};
use crate::wire;

/// The router's own address on the wire, as QEMU's users know it.
pub(super) const MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
/// The router's link-local address.
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// The longest IP packet that one frame takes, in bytes.
pub(super) const MTU: usize = 1500;

const ETHERNET: usize = 14;
/// How many frames wait for room in the link. Streams stop at the first; what is left is single answers.
const BACKLOG: usize = 256;
/// How many frames wait for a neighbour to say where it is.
const WAITING: usize = 64;
/// The destination of a frame whose receiver is not known yet.
const UNKNOWN: EthernetAddress = EthernetAddress([0; 6]);
/// How long frames may lie in the link before the guest is taken to be paused.
const PAUSED: Duration = Duration::from_millis(100);
/// How many neighbours are remembered.
const NEIGHBOURS: usize = 256;

/// The guests' side.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) port: Port,
    backlog: VecDeque<Packet>,
    /// Frames for neighbours that have been asked for.
    waiting: VecDeque<(IpAddr, Packet)>,
    neighbours: HashMap<IpAddr, EthernetAddress>,
    /// The one that spoke last: most often the one that speaks next.
    last: Option<(IpAddr, EthernetAddress)>,
    /// The guest's address of IPv6, which it makes up by itself: the one that it has used last.
    ipv6: Option<Ipv6Addr>,
    ident: u16,
    /// Frames that the link has taken, those of them that the guest has, and when it last took any.
    sent: u64,
    taken: u64,
    progress: Instant,
    /// What the guests' card takes, read once for each round.
    pub(super) features: Features,
}

impl Guest {
    pub(super) fn new(port: Port) -> Self {
        let features = port.link().accepted();
        Self {
            port,
            backlog: VecDeque::new(),
            waiting: VecDeque::new(),
            neighbours: HashMap::new(),
            last: None,
            ipv6: None,
            ident: 0,
            sent: 0,
            taken: 0,
            progress: Instant::now(),
            features,
        }
    }

    /// Whether a stream may send now.
    pub(super) fn is_ready(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Whether the guest has taken nothing from the link for a while: then its silence means nothing.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        let waiting = !self.backlog.is_empty() || self.port.link().pending().0 > 0;
        waiting && now.saturating_duration_since(self.progress) > PAUSED
    }

    /// Sends what waits, as far as it goes, and looks at what the card takes now.
    pub(super) fn flush(&mut self, now: Instant) {
        self.features = self.port.link().accepted();
        let taken = self.sent - self.port.link().pending().0 as u64;
        if taken > self.taken {
            (self.taken, self.progress) = (taken, now);
        }
        while let Some(packet) = self.backlog.pop_front() {
            if let Err(packet) = self.put(packet) {
                self.backlog.push_front(packet);
                return;
            }
        }
    }

    fn put(&mut self, packet: Packet) -> Result<(), Packet> {
        self.port.send(packet)?;
        self.sent += 1;
        Ok(())
    }

    /// Sends a frame, after those that wait. When too many do, it is lost, as on any wire.
    pub(super) fn send(&mut self, packet: Packet) {
        if packet.bytes.starts_with(UNKNOWN.as_bytes()) {
            return self.wait(packet);
        }
        if !self.backlog.is_empty() {
            if self.backlog.len() < BACKLOG {
                self.backlog.push_back(packet);
            }
        } else if let Err(packet) = self.put(packet) {
            self.backlog.push_back(packet);
        }
    }

    /// Keeps a frame until its receiver says where it is. The oldest is lost when there are too many.
    fn wait(&mut self, packet: Packet) {
        let Some(destination) = destination(&packet.bytes) else { return };
        if self.waiting.len() >= WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back((destination, packet));
    }

    /// Remembers where a neighbour is. Its address must be one of the network.
    pub(super) fn learn(&mut self, address: IpAddr, mac: EthernetAddress) {
        if self.last == Some((address, mac)) {
            return;
        }
        if self.neighbours.len() >= NEIGHBOURS && !self.neighbours.contains_key(&address) {
            self.neighbours.clear();
        }
        self.neighbours.insert(address, mac);
        self.last = Some((address, mac));
        if let IpAddr::V6(address) = address {
            self.ipv6 = Some(address);
        }
        for (destination, mut packet) in std::mem::take(&mut self.waiting) {
            if destination == address {
                packet.bytes[..6].copy_from_slice(mac.as_bytes());
                self.send(packet);
            } else {
                self.waiting.push_back((destination, packet));
            }
        }
    }

    /// The guest looks whether anybody else has an address that it wants to use (RFC 4862 § 5.4).
    pub(super) fn expect(&mut self, address: Ipv6Addr) {
        self.ipv6.get_or_insert(address);
    }

    /// The guest's address of IPv6, if it is known to have one.
    pub(super) fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }

    /// Who has an address. Somebody unknown is asked for.
    fn resolve(&mut self, address: IpAddr, config: &Config) -> EthernetAddress {
        if let Some((last, mac)) = self.last
            && last == address
        {
            return mac;
        }
        match address {
            IpAddr::V4(v4) if v4.is_broadcast() || v4 == config.ipv4.broadcast() => {
                return EthernetAddress::BROADCAST;
            }
            IpAddr::V6(v6) if v6.is_multicast() => return multicast(v6),
            _ => {}
        }
        if let Some(mac) = self.neighbours.get(&address) {
            return *mac;
        }
        match address {
            IpAddr::V4(v4) => arp::ask(self, config, v4),
            IpAddr::V6(v6) => ndp::ask(self, v6),
        }
        UNKNOWN
    }

    /// A frame with headers for `length` bytes of `protocol`, which are to be appended. It is sent once it is known where
    /// the destination is. `None` if the addresses are of two families.
    pub(super) fn begin(
        &mut self,
        config: &Config,
        source: IpAddr,
        destination: IpAddr,
        protocol: IpProtocol,
        length: usize,
    ) -> Option<Vec<u8>> {
        let mac = self.resolve(destination, config);
        self.begin_to(mac, source, destination, protocol, 64, length)
    }

    /// [`begin`](Self::begin) to a known neighbour.
    pub(super) fn begin_to(
        &mut self,
        mac: EthernetAddress,
        source: IpAddr,
        destination: IpAddr,
        next_header: IpProtocol,
        hop_limit: u8,
        payload_len: usize,
    ) -> Option<Vec<u8>> {
        match (source, destination) {
            (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
                let ip = Ipv4Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
                let mut bytes = ethernet(mac, EthernetProtocol::Ipv4, ip.buffer_len() + payload_len);
                bytes.resize(ETHERNET + ip.buffer_len(), 0);
                let mut packet = Ipv4Packet::new_unchecked(&mut bytes[ETHERNET..]);
                ip.emit(&mut packet, &ChecksumCapabilities::ignored());
                packet.set_ident(self.ident);
                packet.fill_checksum();
                self.ident = self.ident.wrapping_add(1);
                Some(bytes)
            }
            (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
                let ip = Ipv6Repr { src_addr, dst_addr, next_header, payload_len, hop_limit };
                let mut bytes = ethernet(mac, EthernetProtocol::Ipv6, ip.buffer_len() + payload_len);
                bytes.resize(ETHERNET + ip.buffer_len(), 0);
                ip.emit(&mut Ipv6Packet::new_unchecked(&mut bytes[ETHERNET..]));
                Some(bytes)
            }
            _ => None,
        }
    }

    /// Puts the pseudo-header's part of a checksum at `offset` of the transport header at `start`, and leaves the rest to
    /// the card, or does it.
    pub(super) fn checksum(&self, mut bytes: Vec<u8>, pseudo: u16, start: usize, offset: usize) -> Packet {
        bytes[start + offset..start + offset + 2].copy_from_slice(&pseudo.to_ne_bytes());
        let partial = PartialChecksum { start: start as u16, offset: offset as u16 };
        if self.features.checksum {
            return Packet { bytes, offload: Offload { checksum: Some(partial), ..Offload::default() } };
        }
        let offload =
            Offload { checked: wire::complete_checksum(&mut bytes, partial).is_ok(), ..Offload::default() };
        Packet { bytes, offload }
    }

    /// A frame of something else than IP.
    pub(super) fn send_raw(&mut self, mac: EthernetAddress, kind: EthernetProtocol, payload: &[u8]) {
        let mut bytes = ethernet(mac, kind, payload.len());
        bytes.extend_from_slice(payload);
        self.send(Packet::new(bytes));
    }
}

/// An Ethernet header from the router, with room for `length` more bytes.
fn ethernet(mac: EthernetAddress, ethertype: EthernetProtocol, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET + length);
    bytes.resize(ETHERNET, 0);
    EthernetRepr { src_addr: MAC, dst_addr: mac, ethertype }
        .emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    bytes
}

/// The destination of an IP packet that was made here: without options or tags.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    if frame.get(12..14)? == [0x08, 0x00] {
        return Some(IpAddr::from(*frame.get(ETHERNET + 16..)?.first_chunk::<4>()?));
    }
    Some(IpAddr::from(*frame.get(ETHERNET + 24..)?.first_chunk::<16>()?))
}

/// The Ethernet address of an IPv6 multicast address (RFC 2464 § 7).
pub(super) fn multicast(address: Ipv6Addr) -> EthernetAddress {
    let [.., a, b, c, d] = address.octets();
    EthernetAddress([0x33, 0x33, a, b, c, d])
}
