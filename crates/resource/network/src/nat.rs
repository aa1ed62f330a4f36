//! User-mode NAT: a network for guests that needs no privileges.
//!
//! The guest sees a router at 10.0.2.2, a name server at 10.0.2.3, and gets 10.0.2.15 by DHCP (what QEMU's users expect),
//! and an IPv6 prefix by router advertisement. Its connections and datagrams are carried by ordinary sockets of this
//! process; the router's address leads to the host's loopback.
//!
//! Everything runs on one thread, around one event loop (`engine`):
//!
//! | module             | what it does                                                                  |
//! |--------------------|-------------------------------------------------------------------------------|
//! | `config`           | addresses, what is allowed, where packets lead                                 |
//! | `guest`            | frames to the guests, and where they are                                       |
//! | `arp`, `ndp`       | neighbours; router advertisements (RFC 826, 4861, 8106)                        |
//! | `dhcp`, `dns`      | addresses for guests (RFC 2131); which resolver to ask                         |
//! | `flows`            | bounded tables: by key, age and time                                           |
//! | `tcp`              | connections: a state machine toward the guest (RFC 9293), a socket to the host |
//! | `udp`, `icmp`      | datagrams and pings; errors                                                    |
//! | `fragment`         | datagrams longer than a frame                                                  |
//! | `publish`          | ports of the host that lead to a guest                                         |
//!
//! # Pings
//!
//! The router's own addresses answer by themselves. Others are asked through Linux's unprivileged ping sockets, which
//! `net.ipv4.ping_group_range` must allow to one of the user's groups (as most distributions have it). Where it does not,
//! that is logged once, and guests are told that it is prohibited (ICMP type 3 code 13).
//!
//! # What it does not do
//!
//! Multicast and broadcast end at the router. Selective acknowledgements and timestamps are not negotiated. Errors that
//! the host hears about are passed on as what they mean, not as the packets that brought them: so traceroute sees one hop.

mod arp;
mod config;
mod dhcp;
mod dns;
mod engine;
mod flows;
mod fragment;
#[doc(hidden)]
pub mod fuzz;
mod guest;
mod icmp;
mod ndp;
mod publish;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use mio::Waker;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::link::{Features, Link};
pub use config::{Config, Ipv4Network, Ipv6Network, Limits};
use engine::Engine;
pub use publish::{BadPublish, Publish, Transport};

/// Descriptors that are left to everything else in the process.
const OTHER_DESCRIPTORS: u64 = 512;

/// A user-mode network that could not be started.
#[derive(Debug, Error)]
pub enum Error {
    /// A published port is not to be had.
    #[error("cannot publish {publish}: {source}; {advice}")]
    Publish {
        /// What was to be published.
        publish: Publish,
        /// What can be done about it.
        advice: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// An address of the configuration is not in its network.
    #[error(
        "the guest's address {guest} and the name server's {dns} must be in the network of the gateway {gateway}/{prefix}, and all three differ"
    )]
    Addresses {
        /// [`Ipv4Network::guest`].
        guest: std::net::Ipv4Addr,
        /// [`Ipv4Network::dns`].
        dns: std::net::Ipv4Addr,
        /// [`Ipv4Network::gateway`].
        gateway: std::net::Ipv4Addr,
        /// [`Ipv4Network::prefix`].
        prefix: u8,
    },
    /// The host refuses what an event loop needs.
    #[error("cannot start a network: {0}")]
    Host(#[from] io::Error),
}

/// A running user-mode network. It ends when it is dropped, or when the other end of the link is.
#[derive(Debug)]
pub struct Nat {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
    published: Vec<SocketAddr>,
}

impl Nat {
    /// Starts a network at `link`.
    ///
    /// The process's soft limit on descriptors is raised as far as [`Limits`] need it and the hard limit allows; what
    /// is still missing bounds the number of flows.
    ///
    /// # Errors
    /// A port that is to be published is taken, addresses do not fit together, or the host lacks descriptors or threads.
    pub fn start(mut config: Config, link: Link) -> Result<Self, Error> {
        check(&config.ipv4)?;
        let mut sockets = Vec::new();
        let mut published = Vec::new();
        for publish in &config.publish {
            let failed =
                |source| Error::Publish { publish: *publish, advice: Publish::advice(&source), source };
            let (socket, address) = publish.bind().map_err(failed)?;
            sockets.push((socket, *publish));
            published.push(address);
        }
        bound_by_descriptors(&mut config.limits);
        link.accept(Features { udp: false, ..Features::ALL });
        let (engine, waker) = Engine::new(config, link, sockets)?;
        let stop = engine.stop();
        let thread = std::thread::Builder::new().name("nat".into()).spawn(move || engine.run())?;
        Ok(Self { stop, waker, thread: Some(thread), published })
    }

    /// Where the published ports are, in the order of [`Config::publish`]; a port that was 0 is the one it became.
    pub fn published(&self) -> &[SocketAddr] {
        &self.published
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Only a descriptor that is not open fails.
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn check(network: &Ipv4Network) -> Result<(), Error> {
    let Ipv4Network { gateway, dns, guest, prefix } = *network;
    let differ = gateway != dns && gateway != guest && dns != guest;
    let fit = network.contains(dns) && network.contains(guest);
    let ends = [network.broadcast(), gateway & network.mask()];
    let hosts = ![gateway, dns, guest].iter().any(|address| ends.contains(address));
    if (1..=30).contains(&prefix) && differ && fit && hosts {
        return Ok(());
    }
    Err(Error::Addresses { guest, dns, gateway, prefix })
}

/// Raises the limit on descriptors, or lowers the limits on flows.
fn bound_by_descriptors(limits: &mut Limits) {
    let wanted = (limits.connections + limits.datagrams) as u64 + OTHER_DESCRIPTORS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut have = current.unwrap_or(u64::MAX);
    if have < wanted {
        let raised = maximum.unwrap_or(u64::MAX).min(wanted);
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok() {
            have = raised;
        }
    }
    if have < wanted {
        let share = have.saturating_sub(OTHER_DESCRIPTORS).max(64) as usize;
        tracing::debug!(descriptors = have, "fewer flows than configured: descriptors are limited");
        limits.connections = limits.connections.min(share / 4 * 3);
        limits.datagrams = limits.datagrams.min(share / 4);
    }
}
