//! How ports are written, and what is said when one is taken.

use std::net::SocketAddr;

use super::{Publish, Socket, Transport};

#[test]
fn all_forms() {
    let parsed = |text: &str| {
        let publish: Publish = text.parse().unwrap();
        assert!(!publish.to_ipv6);
        (publish.host.to_string(), publish.guest_port, publish.transport)
    };
    assert_eq!(parsed("8080:80"), ("[::]:8080".into(), 80, Transport::Tcp));
    assert_eq!(parsed("8080:80/tcp"), ("[::]:8080".into(), 80, Transport::Tcp));
    assert_eq!(parsed("53:53/udp"), ("[::]:53".into(), 53, Transport::Udp));
    assert_eq!(parsed("0.0.0.0:53:53/udp"), ("0.0.0.0:53".into(), 53, Transport::Udp));
    assert_eq!(parsed("127.0.0.1:0:22"), ("127.0.0.1:0".into(), 22, Transport::Tcp));
    assert_eq!(parsed("[::1]:8080:80"), ("[::1]:8080".into(), 80, Transport::Tcp));
    let to_ipv6 = ["80:80/tcp6", "80:80/udp6"].map(|text| text.parse::<Publish>().unwrap());
    assert_eq!(to_ipv6.map(|publish| publish.transport), [Transport::Tcp, Transport::Udp]);
    assert!(to_ipv6.iter().all(|publish| publish.to_ipv6));
}

#[test]
fn other_texts_are_errors_that_say_what_is_wrong() {
    let cases = [
        ("", "two ports"),
        ("80", "two ports"),
        ("80:", "guest's port"),
        ("80:0", "guest's port"),
        ("80:65536", "guest's port"),
        ("80:+1", "guest's port"),
        ("x:80", "host's port"),
        (":80", "host's port"),
        ("65536:80", "host's port"),
        ("host:80:80", "host's address"),
        ("::1:80:80", "host's address"),
        ("[127.0.0.1]:80:80", "host's address"),
        ("80:80/sctp", "slash"),
        ("80:80/", "slash"),
        ("80:80/tcp4", "slash"),
    ];
    for (text, what) in cases {
        let error = text.parse::<Publish>().unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("8080:80"), "{text:?}: {error}");
    }
}

#[test]
fn texts_come_back() {
    for text in ["0.0.0.0:8080:80", "127.0.0.1:5353:53/udp", "[::1]:1:2", "[::]:1:2/tcp6", "[::]:1:2/udp6"] {
        assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
    }
}

#[test]
fn a_port_in_use_is_named_as_such() {
    let publish: Publish = "127.0.0.1:0:80".parse().unwrap();
    let (socket, address) = publish.bind().unwrap();
    assert!(matches!(socket, Socket::Tcp(_)) && address.is_ipv4());
    let again = Publish { host: address, ..publish };
    let error = again.bind().unwrap_err();
    assert!(Publish::advice(&error).contains("another program"));
}

#[test]
fn without_an_address_a_port_is_taken_at_all_of_them() {
    for text in ["0:80", "0:80/udp"] {
        let publish: Publish = text.parse().unwrap();
        let (_socket, address) = publish.bind().unwrap();
        for host in ["127.0.0.1", "::1"] {
            let there = Publish { host: SocketAddr::new(host.parse().unwrap(), address.port()), ..publish };
            assert_eq!(there.bind().unwrap_err().kind(), std::io::ErrorKind::AddrInUse, "{text} {host}");
        }
    }
}

#[test]
fn an_address_of_one_family_leaves_the_other_alone() {
    let publish: Publish = "[::1]:0:80".parse().unwrap();
    let (_socket, address) = publish.bind().unwrap();
    let other = Publish { host: SocketAddr::new([127, 0, 0, 1].into(), address.port()), ..publish };
    other.bind().unwrap();
}
