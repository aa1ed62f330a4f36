//! ICMP toward guests (RFC 792, RFC 4443): errors, and echoes of the router itself.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, Ipv4Repr, Ipv6Repr,
};

use super::engine::Net;
use crate::link::Packet;

/// The type of an echo reply, IPv4 and IPv6; both have code, checksum, identifier and sequence number in the same places.
pub(super) const ECHO_REPLY: [u8; 2] = [0, 129];
/// The length of an echo's header.
pub(super) const HEADER: usize = 8;

/// Why a packet does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// What a host's error means to a guest, if it is something that a packet can say.
    pub(super) fn from_errno(errno: Errno) -> Option<Self> {
        match errno {
            Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => Some(Self::Network),
            // The host's own address of that family is missing, too.
            Errno::HOSTUNREACH | Errno::HOSTDOWN | Errno::ADDRNOTAVAIL | Errno::INVAL => Some(Self::Host),
            Errno::CONNREFUSED => Some(Self::Port),
            Errno::ACCESS | Errno::PERM => Some(Self::Prohibited),
            _ => None,
        }
    }

    fn v4(self) -> Icmpv4DstUnreachable {
        match self {
            Self::Network => Icmpv4DstUnreachable::NetUnreachable,
            Self::Host => Icmpv4DstUnreachable::HostUnreachable,
            Self::Port => Icmpv4DstUnreachable::PortUnreachable,
            Self::Prohibited => Icmpv4DstUnreachable::CommProhibited,
        }
    }

    fn v6(self) -> Icmpv6DstUnreachable {
        match self {
            Self::Network => Icmpv6DstUnreachable::NoRoute,
            Self::Host => Icmpv6DstUnreachable::AddrUnreachable,
            Self::Port => Icmpv6DstUnreachable::PortUnreachable,
            Self::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
        }
    }
}

/// Tells `guest` that what it sent to `remote`, of `length` bytes beginning with `data`, does not arrive.
pub(super) fn unreachable(
    net: &mut Net,
    why: Unreachable,
    protocol: IpProtocol,
    guest: SocketAddr,
    remote: SocketAddr,
    data: [u8; 8],
    length: usize,
) {
    let caps = ChecksumCapabilities::default();
    let mut bytes;
    let (source, next_header) = match (guest.ip(), remote.ip()) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let header =
                Ipv4Repr { src_addr, dst_addr, next_header: protocol, payload_len: length, hop_limit: 63 };
            let repr = Icmpv4Repr::DstUnreachable { reason: why.v4(), header, data: &data };
            bytes = vec![0; repr.buffer_len()];
            repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &caps);
            (net.config.ipv4.gateway.into(), IpProtocol::Icmp)
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let Some(network) = net.config.ipv6 else { return };
            let header =
                Ipv6Repr { src_addr, dst_addr, next_header: protocol, payload_len: length, hop_limit: 63 };
            let repr = Icmpv6Repr::DstUnreachable { reason: why.v6(), header, data: &data };
            bytes = vec![0; repr.buffer_len()];
            repr.emit(&network.gateway(), &src_addr, &mut Icmpv6Packet::new_unchecked(&mut bytes), &caps);
            (network.gateway().into(), IpProtocol::Icmpv6)
        }
        _ => return,
    };
    // Only the addressed itself knows of its ports.
    let source = if why == Unreachable::Port { remote.ip() } else { source };
    if why == Unreachable::Port
        && let (IpAddr::V6(from), IpAddr::V6(to)) = (source, guest.ip())
    {
        Icmpv6Packet::new_unchecked(&mut bytes).fill_checksum(&from, &to);
    }
    send(net, source, guest.ip(), next_header, &bytes);
}

/// Sends an ICMP message whose checksum is in place.
fn send(net: &mut Net, source: IpAddr, destination: IpAddr, protocol: IpProtocol, bytes: &[u8]) {
    let Net { guest, config, .. } = net;
    if let Some(mut packet) = guest.begin(config, source, destination, protocol, bytes.len()) {
        packet.extend_from_slice(bytes);
        guest.send(Packet::new(packet));
    }
}

/// Sends an echo reply from `remote`: `message` is one, but for the identifier, which is the guest's port, and the checksum.
pub(super) fn reply(net: &mut Net, guest: SocketAddr, remote: IpAddr, message: &mut [u8]) {
    let Some((header, data)) = message.split_first_chunk_mut::<HEADER>() else { return };
    let (ident, seq_no) = (guest.port(), u16::from_be_bytes([header[6], header[7]]));
    let caps = ChecksumCapabilities::default();
    let mut bytes = vec![0; HEADER + data.len()];
    let protocol = match (remote, guest.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let repr = Icmpv4Repr::EchoReply { ident, seq_no, data };
            repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &caps);
            IpProtocol::Icmp
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let repr = Icmpv6Repr::EchoReply { ident, seq_no, data };
            repr.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(&mut bytes), &caps);
            IpProtocol::Icmpv6
        }
        _ => return,
    };
    send(net, remote, guest.ip(), protocol, &bytes);
}
