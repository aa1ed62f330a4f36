//! Neighbour discovery (RFC 4861), and router advertisements with the name server's address (RFC 8106).

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::time::Duration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, IpProtocol, NdiscNeighborFlags, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};

use super::config::{Config, Ipv6Network};
use super::guest::{Guest, LINK_LOCAL, MAC, MTU, multicast};
use crate::wire::pseudo_header;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How long an advertisement holds, in seconds.
const LIFETIME: u64 = 1800;
/// Discovery packets have not been forwarded (RFC 4861 § 6.1).
const HOPS: u8 = 255;
/// The offset of an ICMPv6 checksum.
const CHECKSUM: usize = 2;

/// Takes a discovery packet, of which the ICMP checksum has been verified.
pub(super) fn receive(
    guest: &mut Guest,
    config: &Config,
    mac: EthernetAddress,
    source: Ipv6Addr,
    hops: u8,
    bytes: &[u8],
) {
    let Some(network) = config.ipv6.filter(|_| hops == HOPS) else { return };
    let Ok(repr) = Icmpv6Packet::new_checked(bytes).and_then(|packet| NdiscRepr::parse(&packet)) else {
        return;
    };
    match repr {
        NdiscRepr::RouterSolicit { .. } => advertise(guest, network),
        NdiscRepr::NeighborSolicit { target_addr, .. } => {
            let ours = [LINK_LOCAL, network.gateway(), network.dns()].contains(&target_addr);
            if ours {
                answer(guest, mac, source, target_addr);
            } else if source.is_unspecified() && network.contains(target_addr) {
                guest.expect(target_addr);
            }
        }
        // Learnt from the frame's source, as from every packet.
        _ => {}
    }
}

fn answer(guest: &mut Guest, mac: EthernetAddress, source: Ipv6Addr, target_addr: Ipv6Addr) {
    // Who looks for duplicates has no address yet (RFC 4861 § 7.2.4).
    let (destination, mac, solicited) = if source.is_unspecified() {
        (ALL_NODES, multicast(ALL_NODES), NdiscNeighborFlags::empty())
    } else {
        (source, mac, NdiscNeighborFlags::SOLICITED)
    };
    let flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited;
    let repr = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr: Some(MAC.into()) };
    send(guest, mac, target_addr, destination, &repr, &[]);
}

/// Asks who has `address`.
pub(super) fn ask(guest: &mut Guest, address: Ipv6Addr) {
    let repr = NdiscRepr::NeighborSolicit { target_addr: address, lladdr: Some(MAC.into()) };
    // The solicited-node address (RFC 4291 § 2.7.1).
    let solicited = Ipv6Addr::from_bits(
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits() | address.to_bits() & 0xff_ffff,
    );
    send(guest, multicast(solicited), LINK_LOCAL, solicited, &repr, &[]);
}

/// Tells every guest of the network.
pub(super) fn advertise(guest: &mut Guest, network: Ipv6Network) {
    let repr = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: Duration::from_secs(LIFETIME),
        reachable_time: Duration::from_millis(0),
        retrans_time: Duration::from_millis(0),
        lladdr: Some(MAC.into()),
        mtu: Some(MTU as u32),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: Duration::from_secs(86_400),
            preferred_lifetime: Duration::from_secs(14_400),
            prefix: network.network(),
        }),
    };
    // Recursive DNS server: type 25, length in units of 8 bytes, reserved, lifetime, address (RFC 8106 § 5.1).
    let mut servers = vec![25, 3, 0, 0];
    servers.extend_from_slice(&(LIFETIME as u32).to_be_bytes());
    servers.extend_from_slice(&network.dns().octets());
    send(guest, multicast(ALL_NODES), LINK_LOCAL, ALL_NODES, &repr, &servers);
}

/// Sends a discovery packet with `more` options.
fn send(
    guest: &mut Guest,
    mac: EthernetAddress,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    repr: &NdiscRepr<'_>,
    more: &[u8],
) {
    let length = repr.buffer_len() + more.len();
    let (source, destination) = (IpAddr::V6(source), IpAddr::V6(destination));
    let Some(mut bytes) = guest.begin_to(mac, source, destination, IpProtocol::Icmpv6, HOPS, length) else {
        return;
    };
    let start = bytes.len();
    bytes.resize(start + repr.buffer_len(), 0);
    repr.emit(&mut Icmpv6Packet::new_unchecked(&mut bytes[start..]));
    bytes.extend_from_slice(more);
    let pseudo = pseudo_header(source, destination, IpProtocol::Icmpv6, length);
    let packet = guest.checksum(bytes, pseudo, start, CHECKSUM);
    guest.send(packet);
}
