//! Ports of the host that lead to a guest.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

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

/// A port of the host that leads to one of the guest: `[HOSTADDR:]HOSTPORT:GUESTPORT[/tcp|/udp]`.
///
/// Without an address, any of the host's IPv4 addresses; an IPv6 address stands in brackets. The host's port 0 is a free
/// one.
///
/// ```
/// use posada_network::nat::Publish;
///
/// let publish: Publish = "127.0.0.1:8080:80".parse()?;
/// assert_eq!(publish.host, "127.0.0.1:8080".parse().unwrap());
/// assert_eq!(publish.guest_port, 80);
/// assert_eq!("5353:53/udp".parse::<Publish>()?.to_string(), "0.0.0.0:5353:53/udp");
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
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)?;
        if self.transport == Transport::Udp { write!(f, "/udp") } else { Ok(()) }
    }
}

/// A text that publishes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} publishes no port: {what}; write [HOSTADDR:]HOSTPORT:GUESTPORT[/udp], such as 8080:80")]
pub struct BadPublish {
    text: String,
    what: &'static str,
}

impl FromStr for Publish {
    type Err = BadPublish;

    fn from_str(text: &str) -> Result<Self, BadPublish> {
        let bad = |what| BadPublish { text: text.to_owned(), what };
        let (ports, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(bad("after the slash is tcp or udp")),
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
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(address) => match address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
                Some(inner) => inner.parse().map(IpAddr::V6),
                None => address.parse().map(IpAddr::V4),
            }
            .map_err(|_| bad("the host's address is no IPv4 address, and no IPv6 address in brackets"))?,
        };
        Ok(Self { host: SocketAddr::new(address, host_port), guest_port, transport })
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
        match self.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(self.host)?;
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                Ok((Socket::Tcp(listener), address))
            }
            Transport::Udp => {
                let socket = UdpSocket::bind(self.host)?;
                socket.set_nonblocking(true)?;
                let address = socket.local_addr()?;
                Ok((Socket::Udp(socket), address))
            }
        }
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
