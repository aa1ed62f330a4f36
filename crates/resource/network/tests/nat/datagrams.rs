//! UDP and DNS.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use posada_network::nat::Config;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;
use smoltcp::wire::IpEndpoint;

use crate::peer::{DNS, GATEWAY, GATEWAY6, GUEST, Guest, Options, pattern};

pub(crate) fn udp_socket(guest: &mut Guest, port: u16) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 128 << 10]);
    let handle = guest.sockets.add(udp::Socket::new(buffer(), buffer()));
    guest.socket::<udp::Socket<'_>>(handle).bind(port).unwrap();
    handle
}

pub(crate) fn send(guest: &mut Guest, handle: SocketHandle, to: (IpAddr, u16), data: &[u8]) {
    let to = IpEndpoint::new(to.0.into(), to.1);
    guest.socket::<udp::Socket<'_>>(handle).send_slice(data, to).unwrap();
}

pub(crate) fn receive(guest: &mut Guest, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
    guest.until("a datagram", |guest| {
        let socket = guest.socket::<udp::Socket<'_>>(handle);
        socket.recv().ok().map(|(data, meta)| (data.to_vec(), meta.endpoint))
    })
}

/// A server that sends datagrams back with `prefix` before them.
pub(crate) fn answering(address: &str, prefix: &'static [u8], count: usize) -> SocketAddr {
    let socket = UdpSocket::bind(address).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        for _ in 0..count {
            let (length, peer) = socket.recv_from(&mut buffer).unwrap();
            let mut answer = prefix.to_vec();
            answer.extend_from_slice(&buffer[..length]);
            socket.send_to(&answer, peer).unwrap();
        }
    });
    address
}

#[test]
fn datagrams_go_to_the_hosts_loopback_and_back() {
    let mut guest = Guest::new();
    for (bind, to) in [("127.0.0.1:0", IpAddr::V4(GATEWAY)), ("[::1]:0", IpAddr::V6(GATEWAY6))] {
        let server = answering(bind, b"re: ", 2);
        let handle = udp_socket(&mut guest, server.port());
        for data in [&b"one"[..], b""] {
            send(&mut guest, handle, (to, server.port()), data);
            let (answer, from) = receive(&mut guest, handle);
            assert_eq!(answer, [b"re: ", data].concat());
            assert_eq!(from, IpEndpoint::new(to.into(), server.port()));
        }
    }
}

#[test]
fn a_closed_port_is_said_to_be_unreachable() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new();
    guest.card.seen = Some(Vec::new());
    let handle = udp_socket(&mut guest, 5000);
    send(&mut guest, handle, (GATEWAY.into(), port), b"anybody?");
    guest.until("port unreachable", |guest| {
        let seen = guest.card.seen.as_ref().unwrap();
        seen.iter().any(|frame| frame[23] == 1 && frame[34..36] == [3, 3]).then_some(())
    });
}

#[test]
fn a_long_datagram_comes_in_fragments() {
    let server = answering("127.0.0.1:0", &[7; 8000], 1);
    let mut guest = Guest::new();
    guest.card.seen = Some(Vec::new());
    let handle = udp_socket(&mut guest, 5001);
    send(&mut guest, handle, (GATEWAY.into(), server.port()), b"!");
    // This stack puts nothing together, so the pieces are looked at.
    let pieces = guest.until("all fragments", |guest| {
        let seen = guest.card.seen.as_ref().unwrap();
        let pieces: Vec<_> =
            seen.iter().filter(|frame| frame.len() > 34 && frame[23] == 17).cloned().collect();
        pieces.iter().any(|frame| frame[20] & 0x20 == 0).then_some(pieces)
    });
    let total: usize = pieces.iter().map(|frame| frame.len() - 34).sum();
    assert_eq!(total, 8 + 8001);
    assert!(pieces.iter().all(|frame| frame.len() <= 1514));
}

fn with_resolvers(resolvers: Vec<SocketAddr>) -> Guest {
    let config = Config { resolvers: Some(resolvers), ..Config::default() };
    Guest::with(Options { config, ..Options::default() })
}

#[test]
fn queries_go_to_the_hosts_resolver() {
    let resolver = answering("127.0.0.1:0", b"answer to ", 1);
    let mut guest = with_resolvers(vec![resolver]);
    let handle = udp_socket(&mut guest, 5353);
    send(&mut guest, handle, (DNS.into(), 53), b"query");
    let (answer, from) = receive(&mut guest, handle);
    assert_eq!(answer, b"answer to query");
    assert_eq!(from, IpEndpoint::new(DNS.into(), 53));
}

#[test]
fn a_resolver_that_refuses_or_says_nothing_gives_way_to_the_next() {
    let refusing = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let answers = answering("127.0.0.1:0", b"answer to ", 2);
    let mut guest = with_resolvers(vec![refusing, silent.local_addr().unwrap(), answers]);
    let handle = udp_socket(&mut guest, 5353);
    send(&mut guest, handle, (DNS.into(), 53), b"query");
    assert_eq!(receive(&mut guest, handle).0, b"answer to query");
    // From another port, it is asked at once.
    let other = udp_socket(&mut guest, 5354);
    send(&mut guest, other, (DNS.into(), 53), b"another");
    assert_eq!(receive(&mut guest, other).0, b"answer to another");
}

#[test]
fn queries_over_tcp_go_to_the_resolver_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let resolver = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut query = [0; 5];
        stream.read_exact(&mut query).unwrap();
        stream.write_all(&query).unwrap();
    });
    let mut guest = with_resolvers(vec![resolver]);
    let handle = guest.connect(DNS, 53).unwrap();
    assert_eq!(guest.exchange(handle, b"query", 5), b"query");
    server.join().unwrap();
    assert!(guest.connect(DNS, 80).is_none(), "nothing else is there");
}

#[test]
fn a_flood_of_flows_is_bounded_and_harms_no_connection() {
    let (port, _server) = crate::tcp::server("127.0.0.1:0", 1, crate::tcp::echo);
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    for port in 1..10_000_u16 {
        let frame = crate::hostile::udp_frame(GUEST, 4000, GATEWAY, port, b"flood");
        if guest.card.link.send(posada_network::link::Packet::new(frame)).is_err() {
            guest.run(Duration::from_millis(5));
        }
    }
    let data = pattern(100_000);
    assert!(guest.exchange(handle, &data, data.len()) == data);
}
