//! Where packets lead, and what they must never reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Config, Ipv4Network, Ipv6Network, Route};

fn route(config: &Config, address: &str) -> Route {
    config.route(address.parse().unwrap())
}

#[test]
fn the_gateway_leads_to_the_hosts_loopback() {
    let config = Config::default();
    assert_eq!(route(&config, "10.0.2.2"), Route::Host(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(route(&config, "fd50:6f73:6164:6100::2"), Route::Host(Ipv6Addr::LOCALHOST.into()));
    let closed = Config { host_access: false, ..config };
    assert_eq!(route(&closed, "10.0.2.2"), Route::Denied);
    assert_eq!(route(&closed, "192.0.2.1"), Route::Host("192.0.2.1".parse().unwrap()));
}

#[test]
fn no_address_but_the_gateways_leads_to_the_hosts_loopback() {
    let config = Config { host_access: false, ..Config::default() };
    let inside = [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:0:1",
    ];
    for address in inside {
        assert_eq!(route(&config, address), Route::Ignored, "{address}");
    }
}

#[test]
fn several_receivers_and_links_are_not_the_outside() {
    for address in ["224.0.0.1", "255.255.255.255", "10.0.2.255", "ff02::1", "fe80::1"] {
        assert_eq!(route(&Config::default(), address), Route::Ignored, "{address}");
    }
    assert_eq!(route(&Config::default(), "10.0.2.77"), Route::NoNeighbour);
    assert_eq!(route(&Config::default(), "10.0.2.3"), Route::Dns);
}

#[test]
fn without_an_outside_everything_else_is_denied() {
    let config = Config { outside: false, ..Config::default() };
    assert_eq!(route(&config, "192.0.2.1"), Route::Denied);
    assert_eq!(route(&config, "2001:db8::1"), Route::Denied);
    assert_eq!(route(&Config { ipv6: None, ..Config::default() }, "2001:db8::1"), Route::Ignored);
}

#[test]
fn a_peer_is_seen_as_itself_unless_that_would_mislead() {
    let seen_at = |peer: &str, guest: &str| {
        Config::default().seen_as(peer.parse::<SocketAddr>().unwrap(), guest.parse().unwrap()).ip()
    };
    let seen = |peer| seen_at(peer, "10.0.2.15");
    let gateway = IpAddr::V4(Ipv4Network::default().gateway);
    assert_eq!(seen("192.0.2.9:1"), "192.0.2.9".parse::<IpAddr>().unwrap());
    assert_eq!(seen("[::ffff:192.0.2.9]:1"), "192.0.2.9".parse::<IpAddr>().unwrap());
    for peer in ["127.0.0.1:1", "[::1]:1", "10.0.2.15:1", "[2001:db8::1]:1"] {
        assert_eq!(seen(peer), gateway, "{peer}");
    }
    let seen = |peer| seen_at(peer, "fd50:6f73:6164:6100::15");
    let gateway = IpAddr::V6(Ipv6Network::default().gateway());
    assert_eq!(seen("[2001:db8::1]:1"), "2001:db8::1".parse::<IpAddr>().unwrap());
    for peer in
        ["127.0.0.1:1", "[::1]:1", "[::ffff:192.0.2.9]:1", "[fe80::1]:1", "[fd50:6f73:6164:6100::7]:1"]
    {
        assert_eq!(seen(peer), gateway, "{peer}");
    }
}

#[test]
fn masks_of_every_prefix() {
    let network = |prefix| Ipv4Network { prefix, ..Ipv4Network::default() };
    assert_eq!(network(24).mask(), Ipv4Addr::new(255, 255, 255, 0));
    assert_eq!(network(0).mask(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(network(32).mask(), Ipv4Addr::BROADCAST);
    assert_eq!(network(200).mask(), Ipv4Addr::BROADCAST);
    assert_eq!(network(24).broadcast(), Ipv4Addr::new(10, 0, 2, 255));
}
