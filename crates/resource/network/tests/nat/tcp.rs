//! Connections from the guest.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use posada_network::limit::{Rate, Rates};
use posada_network::link::Features;
use posada_network::nat::{Config, Limits};
use smoltcp::socket::tcp::State;

use crate::peer::{GATEWAY, GATEWAY6, Guest, Options, pattern};

/// A server on the host's loopback that gives each connection to `serve`.
pub(crate) fn server(
    address: &str,
    connections: usize,
    serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let threads: Vec<_> = (0..connections)
            .map(|_| {
                let (stream, serve) = (listener.accept().unwrap().0, serve.clone());
                thread::spawn(move || serve(stream))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    (port, thread)
}

/// Sends everything back, and ends when the other side has.
pub(crate) fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..length]).unwrap();
    }
}

fn echoes(options: Options, to: IpAddr, length: usize) {
    let address = if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let (port, server) = server(address, 1, echo);
    let mut guest = Guest::with(options);
    let handle = guest.connect(to, port).expect("a connection");
    let data = pattern(length);
    let back = guest.exchange(handle, &data, length);
    assert!(back == data, "{} bytes came back, of {length}", back.len());
    guest.tcp(handle).close();
    guest.until("the end", |guest| {
        matches!(guest.tcp(handle).state(), State::TimeWait | State::Closed).then_some(())
    });
    server.join().unwrap();
}

#[test]
fn bytes_go_to_the_hosts_loopback_and_back() {
    echoes(Options::default(), GATEWAY.into(), 4 << 20);
}

#[test]
fn bytes_go_over_ipv6() {
    echoes(Options::default(), GATEWAY6.into(), 1 << 20);
}

#[test]
fn a_card_without_offloads_gets_complete_frames() {
    echoes(Options { features: Features::NONE, ..Options::default() }, GATEWAY.into(), 1 << 20);
}

#[test]
fn a_link_that_loses_two_percent_loses_no_bytes() {
    echoes(Options { loss: 20, ..Options::default() }, GATEWAY.into(), 300_000);
    echoes(Options { loss: 20, features: Features::NONE, ..Options::default() }, GATEWAY.into(), 300_000);
}

#[test]
fn the_guest_downloads_at_full_windows() {
    let data = pattern(8 << 20);
    let copy = data.clone();
    let (port, server) = server("127.0.0.1:0", 1, move |mut stream| stream.write_all(&copy).unwrap());
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    let received = guest.exchange(handle, &[], data.len());
    assert!(received == data);
    server.join().unwrap();
}

#[test]
fn a_closed_port_resets() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = Guest::new();
    let start = Instant::now();
    assert!(guest.connect(GATEWAY, port).is_none());
    assert!(start.elapsed() < Duration::from_secs(5), "refused at once");
}

#[test]
fn the_guest_ends_first_and_still_receives() {
    let (port, server) = server("127.0.0.1:0", 1, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"question");
        thread::sleep(Duration::from_millis(50));
        stream.write_all(b"answer").unwrap();
    });
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    guest.tcp(handle).send_slice(b"question").unwrap();
    guest.tcp(handle).close();
    assert_eq!(guest.exchange(handle, &[], 100), b"answer");
    server.join().unwrap();
}

#[test]
fn the_host_ends_first_and_still_receives() {
    let (port, server) = server("127.0.0.1:0", 1, |mut stream| {
        stream.write_all(b"greeting").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, pattern(200_000));
    });
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    assert_eq!(guest.exchange(handle, &[], 100), b"greeting");
    assert_eq!(guest.exchange(handle, &pattern(200_000), 0), b"");
    guest.tcp(handle).close();
    guest.until("the end", |guest| (guest.tcp(handle).state() == State::Closed).then_some(()));
    server.join().unwrap();
}

#[test]
fn a_reset_passes_through_both_ways() {
    let (port, server) = server("127.0.0.1:0", 1, |mut stream| {
        let error = stream.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    });
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    guest.tcp(handle).abort();
    guest.run(Duration::from_millis(50));
    server.join().unwrap();

    let (port, server) = self::server("127.0.0.1:0", 1, |stream| {
        // Unread data makes closing a reset.
        while stream.peek(&mut [0; 10]).unwrap() == 0 {}
    });
    let handle = guest.connect(GATEWAY, port).unwrap();
    guest.tcp(handle).send_slice(b"unread").unwrap();
    guest.until("a reset", |guest| (guest.tcp(handle).state() == State::Closed).then_some(()));
    server.join().unwrap();
}

#[test]
fn a_host_that_does_not_read_makes_the_guest_wait_and_no_other() {
    let (port, _server) = server("127.0.0.1:0", 1, |stream| {
        thread::sleep(Duration::from_secs(3));
        drop(stream);
    });
    let mut guest = Guest::new();
    let slow = guest.start_connecting(GATEWAY, port, 65_535);
    let bytes = pattern(65_536);
    let mut stuffed = 0;
    let start = Instant::now();
    guest.until("a full pipe", |guest| {
        let socket = guest.tcp(slow);
        if socket.can_send() {
            stuffed += socket.send_slice(&bytes).unwrap();
        }
        (start.elapsed() > Duration::from_secs(1)).then_some(())
    });
    assert!(stuffed < 32 << 20, "{stuffed} bytes went nowhere");
    let (port, echoing) = server("127.0.0.1:0", 1, echo);
    let start = Instant::now();
    let quick = guest.connect(GATEWAY, port).unwrap();
    assert_eq!(guest.exchange(quick, &pattern(1 << 20), 1 << 20).len(), 1 << 20);
    assert!(start.elapsed() < Duration::from_secs(2));
    guest.tcp(quick).close();
    guest.run(Duration::from_millis(20));
    echoing.join().unwrap();
}

#[test]
fn a_guest_that_does_not_read_gets_the_rest_when_it_does() {
    let data = pattern(3 << 20);
    let copy = data.clone();
    let (port, server) = server("127.0.0.1:0", 1, move |mut stream| stream.write_all(&copy).unwrap());
    let mut guest = Guest::new();
    let handle = guest.connect(GATEWAY, port).unwrap();
    // The window shuts, and is probed.
    guest.run(Duration::from_millis(1500));
    assert!(guest.exchange(handle, &[], data.len()) == data);
    server.join().unwrap();
}

#[test]
fn many_connections_at_once() {
    const COUNT: usize = 300;
    let (port, server) = server("127.0.0.1:0", COUNT, echo);
    let mut guest = Guest::new();
    let handles: Vec<_> = (0..COUNT).map(|_| guest.start_connecting(GATEWAY, port, 4096)).collect();
    guest.until("all connections", |guest| {
        handles.iter().all(|handle| guest.tcp(*handle).state() == State::Established).then_some(())
    });
    for (number, handle) in handles.iter().enumerate() {
        guest.tcp(*handle).send_slice(&number.to_be_bytes()).unwrap();
    }
    guest.until("all answers", |guest| {
        handles.iter().all(|handle| guest.tcp(*handle).recv_queue() == 8).then_some(())
    });
    for (number, handle) in handles.iter().enumerate() {
        let mut answer = [0; 8];
        guest.tcp(*handle).recv_slice(&mut answer).unwrap();
        assert_eq!(answer, number.to_be_bytes());
        guest.tcp(*handle).close();
    }
    guest.until("all ends", |guest| {
        handles
            .iter()
            .all(|handle| matches!(guest.tcp(*handle).state(), State::TimeWait | State::Closed))
            .then_some(())
    });
    server.join().unwrap();
}

#[test]
fn beyond_the_limit_the_one_unused_for_longest_is_reset() {
    let (port, _server) = server("127.0.0.1:0", 4, echo);
    let limits = Limits { connections: 3, ..Limits::default() };
    let mut guest =
        Guest::with(Options { config: Config { limits, ..Config::default() }, ..Options::default() });
    let handles: Vec<_> = (0..3).map(|_| guest.connect(GATEWAY, port).unwrap()).collect();
    for handle in [handles[0], handles[2]] {
        assert_eq!(guest.exchange(handle, b"used", 4), b"used");
    }
    let last = guest.connect(GATEWAY, port).unwrap();
    guest.until("the reset", |guest| (guest.tcp(handles[1]).state() == State::Closed).then_some(()));
    for handle in [handles[0], handles[2], last] {
        assert_eq!(guest.exchange(handle, b"alive", 5), b"alive");
    }
}

#[test]
fn what_is_not_allowed_is_refused() {
    let (port, _server) = server("127.0.0.1:0", 1, echo);
    let config = Config { host_access: false, outside: false, ..Config::default() };
    let mut guest = Guest::with(Options { config, ..Options::default() });
    guest.card.seen = Some(Vec::new());
    for address in [GATEWAY, Ipv4Addr::new(192, 0, 2, 77)] {
        let handle = guest.start_connecting(address, port, 4096);
        guest.run(Duration::from_millis(50));
        assert_ne!(guest.tcp(handle).state(), State::Established);
    }
    let seen = guest.card.seen.take().unwrap();
    // ICMP destination unreachable, administratively prohibited.
    let prohibited = seen.iter().filter(|frame| frame[23] == 1 && frame[34..36] == [3, 13]).count();
    assert!(prohibited >= 2, "{prohibited} answers");
}

#[test]
fn a_rate_holds() {
    let (port, server) = server("127.0.0.1:0", 1, |mut stream| {
        let _ = stream.write_all(&pattern(500_000));
    });
    let rate = Rate { bits: Some(4_000_000), packets: None };
    let rates = Rates { to_guest: rate, ..Rates::default() };
    let mut guest =
        Guest::with(Options { config: Config { rates, ..Config::default() }, ..Options::default() });
    let handle = guest.connect(GATEWAY, port).unwrap();
    let start = Instant::now();
    assert_eq!(guest.exchange(handle, &[], 500_000).len(), 500_000);
    let seconds = start.elapsed().as_secs_f64();
    assert!((0.7..4.0).contains(&seconds), "4 Mbit in {seconds} s at 4 Mbit/s");
    server.join().unwrap();
}
