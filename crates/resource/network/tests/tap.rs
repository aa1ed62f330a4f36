//! A tap in a network namespace of the test's own.

#[path = "common/peer.rs"]
mod peer;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::thread;

use peer::{Guest, pattern};
use posada_network::limit::Rates;
use posada_network::link::{Capacity, Features, pair};
use posada_network::tap::Tap;
use smoltcp::wire::IpCidr;

const INNER: &str = "POSADA_TEST_IN_NAMESPACE";

/// Runs a test of this binary in a network namespace. `None`, and a line that says why, if that is not allowed here.
fn in_namespace(test: &str) -> Option<()> {
    let user = rustix::process::geteuid();
    let how: &[&str] = if user.is_root() { &["--net"] } else { &["--user", "--map-root-user", "--net"] };
    let allowed = Command::new("unshare").args(how).arg("true").output();
    if !allowed.as_ref().is_ok_and(|output| output.status.success())
        || !std::path::Path::new("/dev/net/tun").exists()
    {
        eprintln!("skipped: no network namespace or no /dev/net/tun here ({allowed:?})");
        return None;
    }
    let status = Command::new("unshare")
        .args(how)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--ignored"])
        .env(INNER, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
    Some(())
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_guest_talks_to_the_host_over_tap() {
    in_namespace("inner_transfer");
}

#[test]
#[ignore = "runs in a namespace"]
fn inner_transfer() {
    if std::env::var_os(INNER).is_none() {
        return;
    }
    for features in [Features::ALL, Features::NONE] {
        let (card, network) = pair(Capacity::default()).unwrap();
        card.accept(features);
        let tap = Tap::start("tap0", Rates::default(), network).unwrap();
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("link set tap0 up");
        let address = IpCidr::new(Ipv4Addr::new(192, 0, 2, 2).into(), 24);
        let mut guest = Guest::on(card, [2, 0, 0, 0, 0, 2], &[address], 0);

        let listener = TcpListener::bind("192.0.2.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let data = pattern(2 << 20);
        let copy = data.clone();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&copy).unwrap();
            let mut back = Vec::new();
            std::io::Read::read_to_end(&mut stream, &mut back).unwrap();
            back
        });
        let handle = guest.connect(Ipv4Addr::new(192, 0, 2, 1), port).unwrap();
        assert!(guest.exchange(handle, &[], data.len()) == data);
        guest.exchange(handle, &data[..500_000], 0);
        guest.tcp(handle).close();
        guest.until("the end", |_| server.is_finished().then_some(()));
        assert!(server.join().unwrap() == data[..500_000]);
        drop(tap);
    }
}

#[test]
fn an_interface_in_use_is_an_error_that_says_so() {
    in_namespace("inner_busy");
}

#[test]
#[ignore = "runs in a namespace"]
fn inner_busy() {
    if std::env::var_os(INNER).is_none() {
        return;
    }
    let (_card, network) = pair(Capacity::default()).unwrap();
    let _tap = Tap::start("tap0", Rates::default(), network).unwrap();
    let error =
        Tap::start("tap0", Rates::default(), pair(Capacity::default()).unwrap().1).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
    let error =
        Tap::start("lo", Rates::default(), pair(Capacity::default()).unwrap().1).unwrap_err().to_string();
    assert!(error.contains("is no tap"), "{error}");
}
