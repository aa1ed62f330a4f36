//! Ports of the host that lead to the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use posada_network::link::{Capacity, pair};
use posada_network::nat::{Config, Error, Nat};
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpEndpoint;

use crate::datagrams::{receive, udp_socket};
use crate::peer::{GATEWAY, GATEWAY6, GUEST, GUEST6, Guest, Options, pattern};

fn publishing(publish: &str) -> Guest {
    let config = Config { publish: vec![publish.parse().unwrap()], ..Config::default() };
    Guest::with(Options { config, ..Options::default() })
}

#[test]
fn a_peer_reaches_the_guests_server() {
    let mut guest = publishing("127.0.0.1:0:80");
    let address = guest.nat.as_ref().unwrap().published()[0];
    let handle = guest.tcp_socket(65_535);
    guest.tcp(handle).listen(80).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    guest.until("a connection", |guest| (guest.tcp(handle).recv_queue() == 5).then_some(()));
    let peer = guest.tcp(handle).remote_endpoint().unwrap();
    assert_eq!(IpAddr::from(peer.addr), IpAddr::from(GATEWAY), "loopback is seen as the router");
    let page = pattern(1 << 20);
    let question = guest.exchange(handle, &page, 5);
    assert_eq!(question, b"GET /");
    guest.tcp(handle).close();
    guest.until("the end", |guest| {
        matches!(guest.tcp(handle).state(), State::TimeWait | State::Closed).then_some(())
    });
    assert!(client.join().unwrap() == page);
}

#[test]
fn a_port_that_the_guest_has_closed_resets_the_peer() {
    let mut guest = publishing("127.0.0.1:0:81");
    let address = guest.nat.as_ref().unwrap().published()[0];
    let client = thread::spawn(move || TcpStream::connect(address).unwrap().read(&mut [0; 1]));
    guest.until("the answer", |_| client.is_finished().then_some(()));
    match client.join().unwrap() {
        Ok(0) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        Ok(_) => panic!("nobody has said anything"),
    }
}

#[test]
fn datagrams_of_several_peers_keep_apart() {
    let mut guest = publishing("127.0.0.1:0:53/udp");
    let address = guest.nat.as_ref().unwrap().published()[0];
    let handle = udp_socket(&mut guest, 53);
    let peers: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    for (number, peer) in peers.iter().enumerate() {
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.send_to(&[number as u8], address).unwrap();
    }
    for _ in 0..3 {
        let (data, from): (Vec<u8>, IpEndpoint) = receive(&mut guest, handle);
        crate::datagrams::send(&mut guest, handle, (from.addr.into(), from.port), &[data[0] + 100]);
    }
    guest.run(Duration::from_millis(20));
    for (number, peer) in peers.iter().enumerate() {
        let mut answer = [0; 10];
        assert_eq!(peer.recv_from(&mut answer).unwrap(), (1, address));
        assert_eq!(answer[0], number as u8 + 100);
    }
}

/// Connects from the host, has the guest answer, and gives the addresses that the guest sees: its own, and the peer's.
fn visit(guest: &mut Guest, from: SocketAddr, port: u16) -> (IpAddr, IpAddr) {
    let handle = guest.tcp_socket(65_535);
    guest.tcp(handle).listen(port).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(from).unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        answer
    });
    guest.until("a connection", |guest| guest.tcp(handle).may_send().then_some(()));
    let socket = guest.tcp(handle);
    socket.send_slice(b"hello").unwrap();
    let ends = [socket.local_endpoint().unwrap(), socket.remote_endpoint().unwrap()];
    guest.until("the answer", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), *b"hello");
    guest.tcp(handle).abort();
    guest.poll();
    let [own, peer] = ends.map(|end| IpAddr::from(end.addr));
    (own, peer)
}

#[test]
fn peers_of_both_families_reach_the_guests_server() {
    let mut guest = publishing("0:80");
    let port = guest.nat.as_ref().unwrap().published()[0].port();
    for from in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let seen = visit(&mut guest, SocketAddr::new(from, port), 80);
        assert_eq!(seen, (GUEST.into(), GATEWAY.into()), "{from}");
    }
}

#[test]
fn a_port_leads_to_the_guests_own_ipv6_address_once_that_is_known() {
    let mut guest = publishing("0:80/tcp6");
    let port = guest.nat.as_ref().unwrap().published()[0].port();
    let mut early = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    early.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(!matches!(early.read(&mut [0; 1]), Ok(1)), "nobody is there");
    // The guest says where it is by saying anything.
    let closed = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    assert!(guest.connect(GATEWAY6, closed).is_none());
    for from in [IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)] {
        let seen = visit(&mut guest, SocketAddr::new(from, port), 80);
        assert_eq!(seen, (GUEST6.into(), GATEWAY6.into()), "{from}");
    }
}

#[test]
fn datagrams_reach_the_guests_ipv6_address_and_come_back() {
    let mut guest = publishing("[::1]:0:53/udp6");
    let address = guest.nat.as_ref().unwrap().published()[0];
    let handle = udp_socket(&mut guest, 53);
    crate::datagrams::send(&mut guest, handle, (GATEWAY6.into(), 9), b"here I am");
    guest.run(Duration::from_millis(20));
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.send_to(b"question", address).unwrap();
    let (data, from) = receive(&mut guest, handle);
    assert_eq!((&data[..], IpAddr::from(from.addr)), (&b"question"[..], GATEWAY6.into()));
    crate::datagrams::send(&mut guest, handle, (from.addr.into(), from.port), b"answer");
    guest.run(Duration::from_millis(20));
    let mut answer = [0; 10];
    assert_eq!(peer.recv_from(&mut answer).unwrap(), (6, address));
}

#[test]
fn a_port_that_is_taken_is_an_error_that_says_so() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config =
        Config { publish: vec![format!("127.0.0.1:{port}:80").parse().unwrap()], ..Config::default() };
    let error = Nat::start(config, pair(Capacity::default()).unwrap().1).unwrap_err();
    assert!(matches!(error, Error::Publish { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&format!("127.0.0.1:{port}:80")) && text.contains("another program listens there"),
        "{text}"
    );
}
