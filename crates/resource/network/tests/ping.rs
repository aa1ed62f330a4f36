//! Pings beyond the router, in a network namespace of the test's own, which allows ping sockets or does not.

#[path = "common/peer.rs"]
mod peer;

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use peer::Guest;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr};

const INNER: &str = "POSADA_TEST_IN_NAMESPACE";
/// An address that the namespace's loopback interface is given.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

#[test]
fn pings_go_through_ping_sockets_where_the_host_allows_them() {
    let user = rustix::process::geteuid();
    let how: &[&str] = if user.is_root() { &["--net"] } else { &["--user", "--map-root-user", "--net"] };
    let allowed = Command::new("unshare").args(how).arg("true").output();
    if !allowed.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no network namespace here ({allowed:?})");
        return;
    }
    let status = Command::new("unshare")
        .args(how)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inner", "--nocapture", "--ignored"])
        .env(INNER, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "runs in a namespace"]
fn inner() {
    if std::env::var_os(INNER).is_none() {
        return;
    }
    for arguments in [&["link", "set", "lo", "up"][..], &["addr", "add", "198.51.100.7/32", "dev", "lo"]] {
        assert!(Command::new("ip").args(arguments).status().expect("iproute2 is installed").success());
    }
    let range = "/proc/sys/net/ipv4/ping_group_range";
    fs::write(range, "1 0").unwrap();
    assert_eq!(ping(), Answer::Prohibited);
    fs::write(range, "0 0").unwrap();
    assert_eq!(ping(), Answer::Echo(b"anybody?".to_vec()));
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Echo(Vec<u8>),
    Prohibited,
}

/// Pings the outside from a new guest.
fn ping() -> Answer {
    let mut guest = Guest::new();
    guest.card.seen = Some(Vec::new());
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let handle = guest.sockets.add(icmp::Socket::new(buffer(), buffer()));
    let socket = guest.socket::<icmp::Socket<'_>>(handle);
    socket.bind(icmp::Endpoint::Ident(77)).unwrap();
    let repr = Icmpv4Repr::EchoRequest { ident: 77, seq_no: 3, data: b"anybody?" };
    let bytes = socket.send(repr.buffer_len(), OUTSIDE.into()).unwrap();
    repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    guest.until("an answer", |guest| {
        let seen = guest.card.seen.as_ref().unwrap();
        seen.iter().filter(|frame| frame.len() > 42 && frame[23] == 1).find_map(|frame| {
            if frame[34..36] == [3, 13] {
                return Some(Answer::Prohibited);
            }
            let packet = Icmpv4Packet::new_checked(&frame[34..]).ok()?;
            match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()? {
                Icmpv4Repr::EchoReply { ident: 77, seq_no: 3, data } => Some(Answer::Echo(data.to_vec())),
                _ => None,
            }
        })
    })
}
