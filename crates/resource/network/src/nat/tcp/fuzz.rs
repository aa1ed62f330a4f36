//! A connection that is driven by hand.

#![doc(hidden)]

use std::time::{Duration, Instant};

use super::connection::{Connection, Outcome, WINDOW};
use super::flow::parse;
use super::ring::Pool;

const MEMORY: usize = 1 << 20;

/// A connection, what its host would hold, and the time.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    pool: Pool,
    now: Instant,
    held: usize,
    over: bool,
}

impl Stream {
    /// One that the guest opens with `syn`, a TCP header; or one that is opened to it.
    pub fn new(syn: Option<&[u8]>) -> Option<Self> {
        let now = Instant::now();
        let connection = match syn {
            Some(bytes) => Connection::from_guest(&parse(bytes)?, 0xffff_fff0, now),
            None => Connection::to_guest(0xffff_fff0, now),
        };
        Some(Self { connection, pool: Pool::new(MEMORY), now, held: 0, over: false })
    }

    /// The numbers that the connection would reset with: what is next, each way.
    pub fn numbers(&self) -> (u32, u32) {
        let (seq, ack) = self.connection.reset_numbers();
        (seq, ack.unwrap_or_default())
    }

    /// Takes a segment from the guest; the host takes `most` bytes of it.
    pub fn receive(&mut self, bytes: &[u8], most: usize) {
        let Some(segment) = parse(bytes).filter(|_| !self.over) else { return };
        let (now, held) = (self.now, &mut self.held);
        let outcome = self.connection.receive(&segment, now, &mut self.pool, &mut |_, bytes| {
            assert!(!bytes.is_empty() && bytes.len() <= WINDOW);
            let taken = bytes.len().min(most);
            *held += taken;
            taken
        });
        self.over |= matches!(outcome, Outcome::Reset | Outcome::Dead);
    }

    /// The host is connected.
    pub fn connected(&mut self) {
        self.connection.connected();
    }

    /// The host sends.
    pub fn host_sends(&mut self, bytes: &[u8]) {
        if self.connection.takes_data() {
            while self.connection.outbound.room() < bytes.len()
                && self.connection.outbound.grow(&mut self.pool)
            {}
            self.connection.outbound.extend(bytes);
        }
    }

    /// The host has ended.
    pub fn host_ends(&mut self) {
        self.connection.end();
    }

    /// The host takes what is held.
    pub fn host_takes(&mut self) {
        self.held = 0;
    }

    /// Takes all that the connection has to say, in pieces of up to `most`.
    ///
    /// # Panics
    /// If it never stops, or says what it does not have: that is the finding.
    pub fn speak(&mut self, most: usize) {
        let bound = self.connection.outbound.len() + 16;
        let mut said = 0;
        while let Some(outgoing) = self.connection.next(self.now, most.max(1), self.held) {
            assert!(outgoing.length <= most.max(1));
            let slices = self.connection.outbound.slices(outgoing.offset, outgoing.length);
            assert_eq!(slices[0].len() + slices[1].len(), outgoing.length);
            said += 1;
            assert!(said <= bound, "it does not stop");
        }
        self.connection.settle(self.now);
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration, stalled: bool) {
        self.now += time;
        if self.connection.deadline() <= self.now {
            self.over |= self.connection.on_timer(self.now, stalled) == Outcome::Dead;
            assert!(self.over || self.connection.deadline() > self.now, "it would be woken for ever");
        }
    }

    /// The end: all memory comes back.
    ///
    /// # Panics
    /// If some does not: that is the finding.
    pub fn finish(mut self) {
        self.connection.release(&mut self.pool);
        assert_eq!(self.pool.left(), MEMORY);
    }
}
