//! Reading `resolv.conf`, and changing over.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Resolvers, parse};

fn addresses(list: &[&str]) -> Vec<SocketAddr> {
    list.iter().map(|address| address.parse().unwrap()).collect()
}

#[test]
fn name_servers_in_their_order_and_nothing_else() {
    let text = "# nameserver 192.0.2.1\nsearch example.org\nnameserver 192.0.2.2\n nameserver\t2001:db8::1 # x\n\
                nameserver nonsense\nnameserver\noptions edns0\nnameserver fe80::1%1\nnameserver fe80::1%../x\n";
    let expected = addresses(&["192.0.2.2:53", "[2001:db8::1]:53", "[fe80::1%1]:53"]);
    assert_eq!(parse(text), expected);
}

#[test]
fn without_any_the_one_on_this_machine() {
    assert_eq!(parse(""), addresses(&["127.0.0.1:53"]));
}

#[test]
fn no_more_than_eight() {
    assert_eq!(parse(&"nameserver 192.0.2.1\n".repeat(100)).len(), 8);
}

#[test]
fn one_that_fails_gives_way_to_the_next() {
    let both = addresses(&["192.0.2.1:53", "192.0.2.2:53"]);
    let mut resolvers = Resolvers::new(Some(&both));
    let now = Instant::now();
    assert_eq!(resolvers.current(now), Some(both[0]));
    resolvers.give_up(both[0]);
    assert_eq!(resolvers.current(now), Some(both[1]));
    resolvers.give_up(both[0]);
    assert_eq!(resolvers.current(now), Some(both[1]), "somebody else gave up on it already");
    resolvers.give_up(both[1]);
    assert_eq!(resolvers.current(now), Some(both[0]));
}

#[test]
fn the_file_is_read_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("resolv.conf");
    let mut resolvers = Resolvers::from_file(path.clone());
    let now = Instant::now();
    assert_eq!(resolvers.current(now), Some("127.0.0.1:53".parse().unwrap()));
    fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    assert_eq!(resolvers.current(now), Some("127.0.0.1:53".parse().unwrap()), "not at every query");
    let later = now + Duration::from_secs(2);
    assert_eq!(resolvers.current(later), Some("192.0.2.1:53".parse().unwrap()));
    fs::write(&path, "nameserver 192.0.2.22\n").unwrap();
    assert_eq!(resolvers.current(later + Duration::from_secs(2)), Some("192.0.2.22:53".parse().unwrap()));
}
