//! How a guest comes by its addresses, and who answers for the router's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use posada_network::link::Packet;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet,
    Icmpv6Repr, IpAddress, IpCidr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscRepr,
};

use crate::peer::{DNS, GATEWAY, GATEWAY6, GUEST, Guest, MAC, Options};

#[test]
fn dhcp_gives_what_qemu_users_expect() {
    let mut guest = Guest::with(Options { addresses: Vec::new(), ..Options::default() });
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router, servers) =
        guest.until("a lease", |guest| match guest.socket::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers.to_vec()))
            }
            _ => None,
        });
    assert_eq!(IpCidr::from(address), IpCidr::new(GUEST.into(), 24));
    assert_eq!(router, Some(GATEWAY));
    assert_eq!(servers, [DNS]);
}

/// Pings with an ICMP socket of the stack, and gives the answer's data.
fn ping(guest: &mut Guest, address: IpAddr, data: &[u8]) -> Option<Vec<u8>> {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    guest.socket::<icmp::Socket<'_>>(handle).bind(icmp::Endpoint::Ident(77)).unwrap();
    let caps = ChecksumCapabilities::default();
    let socket = guest.socket::<icmp::Socket<'_>>(handle);
    match address {
        IpAddr::V4(_) => {
            let repr = Icmpv4Repr::EchoRequest { ident: 77, seq_no: 3, data };
            let bytes = socket.send(repr.buffer_len(), address.into()).unwrap();
            repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &caps);
        }
        IpAddr::V6(to) => {
            let repr = Icmpv6Repr::EchoRequest { ident: 77, seq_no: 3, data };
            let bytes = socket.send(repr.buffer_len(), address.into()).unwrap();
            repr.emit(&crate::peer::GUEST6, &to, &mut Icmpv6Packet::new_unchecked(bytes), &caps);
        }
    }
    let (message, from) = guest.until("an echo", |guest| {
        let socket = guest.socket::<icmp::Socket<'_>>(handle);
        socket.recv().ok().map(|(message, from)| (message.to_vec(), from))
    });
    (from == IpAddress::from(address) && [0, 129].contains(&message[0])).then(|| message[8..].to_vec())
}

#[test]
fn the_router_and_the_name_server_answer_echoes() {
    let mut guest = Guest::new();
    for address in [GATEWAY.into(), DNS.into(), GATEWAY6.into()] {
        assert_eq!(ping(&mut guest, address, b"anybody?").as_deref(), Some(&b"anybody?"[..]), "{address}");
    }
}

#[test]
fn a_router_solicitation_is_answered_with_prefix_and_name_server() {
    let mut guest = Guest::new();
    guest.card.seen = Some(Vec::new());
    let (source, all_routers): (Ipv6Addr, Ipv6Addr) =
        ("fe80::99".parse().unwrap(), "ff02::2".parse().unwrap());
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: Some(EthernetAddress(MAC).into()) });
    let mut bytes = vec![0; 54 + repr.buffer_len()];
    EthernetRepr {
        src_addr: EthernetAddress(MAC),
        dst_addr: EthernetAddress([0x33, 0x33, 0, 0, 0, 2]),
        ethertype: EthernetProtocol::Ipv6,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    Ipv6Repr {
        src_addr: source,
        dst_addr: all_routers,
        next_header: IpProtocol::Icmpv6,
        payload_len: repr.buffer_len(),
        hop_limit: 255,
    }
    .emit(&mut Ipv6Packet::new_unchecked(&mut bytes[14..]));
    let caps = ChecksumCapabilities::default();
    repr.emit(&source, &all_routers, &mut Icmpv6Packet::new_unchecked(&mut bytes[54..]), &caps);
    guest.card.link.send(Packet::new(bytes)).unwrap();

    let advertisement = guest.until("an advertisement", |guest| {
        guest.card.seen.as_ref().unwrap().iter().find(|frame| frame.get(54) == Some(&134)).cloned()
    });
    let ip = Ipv6Packet::new_checked(&advertisement[14..]).unwrap();
    let packet = Icmpv6Packet::new_checked(ip.payload()).unwrap();
    let Ok(NdiscRepr::RouterAdvert { router_lifetime, prefix_info, lladdr, .. }) = NdiscRepr::parse(&packet)
    else {
        panic!("no router advertisement");
    };
    assert!(router_lifetime.secs() > 0 && lladdr.is_some());
    let prefix = prefix_info.unwrap();
    assert_eq!((prefix.prefix, prefix.prefix_len), ("fd50:6f73:6164:6100::".parse().unwrap(), 64));
    // RFC 8106's option: type 25, three units, and the address at its end.
    let server: Ipv6Addr = "fd50:6f73:6164:6100::3".parse().unwrap();
    let option = &ip.payload()[ip.payload().len() - 24..];
    assert_eq!((option[0], option[1], &option[8..]), (25, 3, &server.octets()[..]));
}

#[test]
fn nobody_answers_for_addresses_of_other_guests() {
    let mut guest = Guest::new();
    let handle = guest.start_connecting(Ipv4Addr::new(10, 0, 2, 99), 80, 4096);
    guest.run(Duration::from_millis(100));
    assert_ne!(guest.tcp(handle).state(), smoltcp::socket::tcp::State::Established);
}
