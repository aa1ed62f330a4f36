//! Where DNS queries go: the host's resolvers, as `resolv.conf`(5) names them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// The port of name servers.
pub(super) const PORT: u16 = 53;
/// How long a resolver has for an answer before the next is asked.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// How many resolvers are used, and how much of the file is looked at.
const MAX_RESOLVERS: usize = 8;
const MAX_FILE: u64 = 64 << 10;
/// How often the file is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The resolvers, and which one answers.
#[derive(Debug)]
pub(super) struct Resolvers {
    addresses: Vec<SocketAddr>,
    current: usize,
    file: Option<File>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    looked: Option<Instant>,
    /// When it was written, and its length.
    seen: Option<(SystemTime, u64)>,
}

impl Resolvers {
    pub(super) fn new(fixed: Option<&[SocketAddr]>) -> Self {
        match fixed {
            Some(addresses) => Self { addresses: addresses.to_vec(), current: 0, file: None },
            None => Self::from_file("/etc/resolv.conf".into()),
        }
    }

    fn from_file(path: PathBuf) -> Self {
        Self { addresses: Vec::new(), current: 0, file: Some(File { path, looked: None, seen: None }) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// The resolver to ask now.
    pub(super) fn current(&mut self, now: Instant) -> Option<SocketAddr> {
        self.look(now);
        self.addresses.get(self.current).copied()
    }

    /// `resolver` does not answer: the next one is asked from now on.
    pub(super) fn give_up(&mut self, resolver: SocketAddr) {
        if self.addresses.get(self.current) == Some(&resolver) {
            self.current = (self.current + 1) % self.addresses.len();
        }
    }

    fn look(&mut self, now: Instant) {
        let Some(file) = &mut self.file else { return };
        if file.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_AGAIN) {
            return;
        }
        file.looked = Some(now);
        let metadata = fs::metadata(&file.path).ok();
        let seen = metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        if seen == file.seen && !self.addresses.is_empty() {
            return;
        }
        file.seen = seen;
        let text = match seen {
            Some((_, length)) if length <= MAX_FILE => fs::read_to_string(&file.path).unwrap_or_default(),
            _ => String::new(),
        };
        self.addresses = parse(&text);
        self.current = 0;
    }
}

/// The name servers that a `resolv.conf` names; without any, the one on this machine.
fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next().and_then(server))?
    });
    let mut servers: Vec<SocketAddr> = servers.take(MAX_RESOLVERS).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

/// An address; a link-local one may name its link behind a percent sign.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, link)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let IpAddr::V6(address) = address.parse().ok()? else { return None };
    let index = match link.parse() {
        Ok(index) => index,
        Err(_) if link.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') => {
            fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).ok()?.trim().parse().ok()?
        }
        Err(_) => return None,
    };
    Some(SocketAddrV6::new(address, PORT, 0, index).into())
}

#[cfg(test)]
#[path = "dns_test.rs"]
mod tests;
