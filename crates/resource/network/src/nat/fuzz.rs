//! The network without its thread and the connection without its sockets, for fuzz targets. Not for anybody else.

#![doc(hidden)]

use std::io;
use std::time::{Duration, Instant};

use mio::Events;

use super::config::Config;
use super::engine::Engine;
pub use super::tcp::fuzz::Stream;
use crate::link::{Capacity, Features, Link, Packet, pair};

/// A network that is driven by hand, and its guest's end of the link.
#[derive(Debug)]
pub struct Network {
    engine: Engine,
    events: Events,
    /// The guest's end.
    pub card: Link,
    skew: Duration,
}

impl Network {
    /// A network that reaches nothing: neither the outside nor the host.
    ///
    /// # Errors
    /// The host lacks descriptors.
    pub fn isolated() -> io::Result<Self> {
        let (card, link) = pair(Capacity { packets: 64, bytes: 1 << 20 })?;
        link.accept(Features { udp: false, ..Features::ALL });
        let config =
            Config { outside: false, host_access: false, resolvers: Some(Vec::new()), ..Config::default() };
        let (engine, _waker) = Engine::new(config, link, Vec::new())?;
        Ok(Self { engine, events: Events::with_capacity(16), card, skew: Duration::ZERO })
    }

    /// Hands a frame to the network.
    pub fn receive(&mut self, packet: &Packet) {
        self.engine.receive(packet);
    }

    /// One turn, after some time has passed.
    pub fn turn(&mut self, passed: Duration) {
        self.skew += passed;
        self.engine.turn(&mut self.events, Instant::now() + self.skew);
    }
}
