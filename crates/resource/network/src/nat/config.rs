//! What a user-mode network is like: addresses, what is allowed, limits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::publish::Publish;
use crate::limit::Rates;

/// What a user-mode network is like. The default is what QEMU's users expect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Addresses of the network, IPv4.
    pub ipv4: Ipv4Network,
    /// Addresses of the network, IPv6; `None` has no IPv6.
    pub ipv6: Option<Ipv6Network>,
    /// The gateway's address leads to the host's loopback address. (The host's other addresses are part of the outside.)
    pub host_access: bool,
    /// Guests reach addresses outside of the network.
    pub outside: bool,
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Publish>,
    /// Where DNS queries go. `None`: where `/etc/resolv.conf` says, which is read again when it changes.
    pub resolvers: Option<Vec<SocketAddr>>,
    /// What the link may carry.
    pub rates: Rates,
    /// Bounds.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ipv4: Ipv4Network::default(),
            ipv6: Some(Ipv6Network::default()),
            host_access: true,
            outside: true,
            publish: Vec::new(),
            resolvers: None,
            rates: Rates::default(),
            limits: Limits::default(),
        }
    }
}

/// The IPv4 side of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Network {
    /// The router, which is the host: 10.0.2.2.
    pub gateway: Ipv4Addr,
    /// Where DNS queries are answered: 10.0.2.3.
    pub dns: Ipv4Addr,
    /// What DHCP gives to the first guest, and what ports are published to: 10.0.2.15.
    pub guest: Ipv4Addr,
    /// How many bits are the network's: 24.
    pub prefix: u8,
}

impl Default for Ipv4Network {
    fn default() -> Self {
        Self {
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
        }
    }
}

impl Ipv4Network {
    /// The network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The address to all.
    pub fn broadcast(&self) -> Ipv4Addr {
        self.gateway | !self.mask()
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address & self.mask() == self.gateway & self.mask()
    }
}

/// The IPv6 side of a network: a /64 of which guests make their addresses (RFC 4862).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Network {
    /// The network's prefix; the lower 64 bits are ignored. The gateway is number 2 in it, DNS number 3.
    pub prefix: Ipv6Addr,
}

impl Default for Ipv6Network {
    /// fd50:6f73:6164:6100::/64, a unique local address (RFC 4193) that spells a name.
    fn default() -> Self {
        Self { prefix: Ipv6Addr::new(0xfd50, 0x6f73, 0x6164, 0x6100, 0, 0, 0, 0) }
    }
}

impl Ipv6Network {
    const HOST: u128 = (1 << 64) - 1;

    /// The router's address in the network.
    pub fn gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network().to_bits() | 2)
    }

    /// Where DNS queries are answered.
    pub fn dns(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.network().to_bits() | 3)
    }

    /// The network's own address.
    pub fn network(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.prefix.to_bits() & !Self::HOST)
    }

    /// Whether `address` is in the network.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & !Self::HOST == self.network().to_bits()
    }
}

/// Bounds on what guests can make the host spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections of TCP. Beyond it, the one that was unused for longest is reset; half-open ones first.
    pub connections: usize,
    /// Flows of UDP and of pings. Beyond it, the one that was unused for longest is forgotten.
    pub datagrams: usize,
    /// Bytes that wait in all connections, beyond 2 KiB for each.
    pub memory: usize,
}

impl Default for Limits {
    /// 12,288 connections, 4,096 flows, 24 MiB.
    fn default() -> Self {
        Self { connections: 12_288, datagrams: 4096, memory: 24 << 20 }
    }
}

/// Where on the host a packet from a guest leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// To that address of the host's world.
    Host(IpAddr),
    /// To a resolver, if it is for port 53.
    Dns,
    /// To nobody: the configuration does not allow it.
    Denied,
    /// To nobody: the network has no such neighbour.
    NoNeighbour,
    /// No packet to answer: to several, or to an address that is none on a wire.
    Ignored,
}

impl Config {
    /// Where packets to `destination` lead.
    pub(super) fn route(&self, destination: IpAddr) -> Route {
        match destination {
            IpAddr::V4(address) => self.route4(address),
            IpAddr::V6(address) => self.route6(address),
        }
    }

    fn route4(&self, address: Ipv4Addr) -> Route {
        let multicast_or_reserved = address.octets()[0] >= 224;
        if address.is_loopback() || address.octets()[0] == 0 || multicast_or_reserved {
            return Route::Ignored;
        }
        if !self.ipv4.contains(address) {
            return self.outside(address.into());
        }
        match address {
            _ if address == self.ipv4.gateway => self.gateway(Ipv4Addr::LOCALHOST.into()),
            _ if address == self.ipv4.dns => Route::Dns,
            _ if address == self.ipv4.broadcast() => Route::Ignored,
            _ => Route::NoNeighbour,
        }
    }

    fn route6(&self, address: Ipv6Addr) -> Route {
        let Some(network) = self.ipv6 else { return Route::Ignored };
        // ::, ::1, and addresses with IPv4 ones inside, which the host's sockets would take for those.
        let not_on_a_wire = address.to_bits() >> 32 == 0 || address.to_ipv4_mapped().is_some();
        if not_on_a_wire || address.is_multicast() || address.is_unicast_link_local() {
            return Route::Ignored;
        }
        match address {
            _ if !network.contains(address) => self.outside(address.into()),
            _ if address == network.gateway() => self.gateway(Ipv6Addr::LOCALHOST.into()),
            _ if address == network.dns() => Route::Dns,
            _ => Route::NoNeighbour,
        }
    }

    fn gateway(&self, loopback: IpAddr) -> Route {
        if self.host_access { Route::Host(loopback) } else { Route::Denied }
    }

    fn outside(&self, address: IpAddr) -> Route {
        if self.outside { Route::Host(address) } else { Route::Denied }
    }

    /// As what a guest sees a peer on the host's side, at the guest's address of either family: loopback addresses are the
    /// gateway's, and so is what would look like a neighbour or is of the other family.
    pub(super) fn seen_as(&self, peer: SocketAddr, guest: IpAddr) -> SocketAddr {
        let peers = peer.ip().to_canonical();
        let is_outside = matches!(self.route(peers), Route::Host(_) | Route::Denied);
        let address = match (guest, peers, self.ipv6) {
            (IpAddr::V4(_), IpAddr::V4(address), _) if is_outside && !self.ipv4.contains(address) => peers,
            (IpAddr::V6(_), IpAddr::V6(address), Some(network))
                if is_outside && !network.contains(address) =>
            {
                peers
            }
            (IpAddr::V6(_), _, Some(network)) => network.gateway().into(),
            _ => self.ipv4.gateway.into(),
        };
        SocketAddr::new(address, peer.port())
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
