//! Ports of the host that lead to a guest.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use thiserror::Error;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;

/// A port of the host that leads to one of the guest: `[HOSTADDR:]HOSTPORT:GUESTPORT[/tcp|/udp|/tcp6|/udp6]`.
///
/// Without an address, any of the host's addresses, IPv4 and IPv6; an IPv6 address stands in brackets. The host's port 0
/// is a free one. Peers of either family reach the guest's IPv4 address, where most programs listen; with `tcp6` and
/// `udp6`, its IPv6 address.
///
/// ```
/// use posada_network::nat::Publish;
///
/// let publish: Publish = "127.0.0.1:8080:80".parse()?;
/// assert_eq!(publish.host, "127.0.0.1:8080".parse().unwrap());
/// assert_eq!(publish.guest_port, 80);
/// assert_eq!("5353:53/udp".parse::<Publish>()?.to_string(), "[::]:5353:53/udp");
/// # Ok::<(), posada_network::nat::BadPublish>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where to listen.
    pub host: SocketAddr,
    /// Where it leads, 1 and more.
    pub guest_port: u16,
    /// Of what.
    pub transport: Transport,
    /// Whether it leads to the guest's IPv6 address: the one that the guest has used last. Until it has used any, nobody is
    /// there.
    pub to_ipv6: bool,
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)?;
        match (self.transport, self.to_ipv6) {
            (Transport::Tcp, false) => Ok(()),
            (transport, false) => write!(f, "/{transport}"),
            (transport, true) => write!(f, "/{transport}6"),
        }
    }
}

/// A text that publishes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} publishes no port: {what}; write [HOSTADDR:]HOSTPORT:GUESTPORT[/udp|/tcp6|/udp6], such as 8080:80"
)]
pub struct BadPublish {
    text: String,
    what: &'static str,
}

impl FromStr for Publish {
    type Err = BadPublish;

    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let bad = |what| BadPublish { text: text.to_owned(), what };
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (transport, to_ipv6) = match protocol {
            "tcp" => (Transport::Tcp, false),
            "udp" => (Transport::Udp, false),
            "tcp6" => (Transport::Tcp, true),
            "udp6" => (Transport::Udp, true),
            _ => return Err(bad("after the slash is tcp, udp, tcp6 or udp6")),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(|| bad("two ports are needed"))?;
        let guest_port = port(guest)
            .filter(|port| *port > 0)
            .ok_or_else(|| bad("the guest's port is no number from 1 to 65535"))?;
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (Some(address), host),
            None => (None, rest),
        };
        let host_port = port(host).ok_or_else(|| bad("the host's port is no number from 0 to 65535"))?;
        let address = match address {
            None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            Some(address) => match address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
                Some(inner) => inner.parse().map(IpAddr::V6),
                None => address.parse().map(IpAddr::V4),
            }
            .map_err(|_| bad("the host's address is no IPv4 address, and no IPv6 address in brackets"))?,
        };
        Ok(Self { host: SocketAddr::new(address, host_port), guest_port, transport, to_ipv6 })
    }
}

/// A decimal port; no sign, no space.
fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A socket that listens for a published port.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Publish {
    /// Takes the port, and says which one it is.
    pub(super) fn bind(&self) -> io::Result<(Socket, SocketAddr)> {
        let all = self.host.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let socket = match self.bind_to(self.host) {
            // The host knows no IPv6.
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if all => {
                self.bind_to(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.host.port()))
            }
            result => result,
        }?;
        let address = match &socket {
            Socket::Tcp(listener) => listener.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        }?;
        Ok((socket, address))
    }

    /// Takes the port at an address; at the one that stands for all, of IPv4 and IPv6, whatever the host's default is.
    fn bind_to(&self, address: SocketAddr) -> Result<Socket, Errno> {
        let (family, kind) = match (address, self.transport) {
            (SocketAddr::V4(_), Transport::Tcp) => (AddressFamily::INET, SocketType::STREAM),
            (SocketAddr::V4(_), Transport::Udp) => (AddressFamily::INET, SocketType::DGRAM),
            (SocketAddr::V6(_), Transport::Tcp) => (AddressFamily::INET6, SocketType::STREAM),
            (SocketAddr::V6(_), Transport::Udp) => (AddressFamily::INET6, SocketType::DGRAM),
        };
        let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        if family == AddressFamily::INET6 {
            sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        }
        if self.transport == Transport::Udp {
            bind(&socket, &address)?;
            return Ok(Socket::Udp(socket.into()));
        }
        // Connections of before that are not quite over do not keep the port.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok(Socket::Tcp(socket.into()))
    }

    /// What somebody can do about a port that cannot be taken.
    pub(super) fn advice(error: &io::Error) -> &'static str {
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program listens there: stop it, or publish another port of the host"
            }
            io::ErrorKind::PermissionDenied => {
                "ports below net.ipv4.ip_unprivileged_port_start (1024) need a privilege: publish a higher one"
            }
            io::ErrorKind::AddrNotAvailable => "the host has no such address",
            _ => "publish another port",
        }
    }
}

#[cfg(test)]
#[path = "publish_test.rs"]
mod tests;
