//! The event loop of a member: its guest's link, its listener, and its peers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::geteuid;

use super::peer::{MAX_MESSAGE, Message, Peer};
use super::rendezvous::{Joined, MEMBERS, SocketPath};
use super::table::{Place, Table, is_group};
use crate::limit::{Port, Rates};
use crate::link::{Features, Link, Packet};
use crate::wire;

/// How many frames are taken from the guest before the peers have their turn.
const FRAMES: usize = 64;
/// How many messages are taken from a peer before the next has its turn.
const MESSAGES: usize = 16;
/// How often it is looked whether the guest accepts other offloads.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

const LISTENER: usize = 0;
const FRAMES_WAIT: usize = 1;
const ROOM: usize = 2;
const WAKE: usize = 3;
/// The first peer.
const PEERS: usize = 4;

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    poll: Poll,
    port: Port,
    listener: OwnedFd,
    _path: SocketPath,
    peers: BTreeMap<usize, Peer>,
    next_peer: usize,
    table: Table,
    /// What the guest accepts, as the peers know it.
    announced: Features,
    /// Frames that were cut for the guest, or found no room.
    held: Vec<Packet>,
    frames_wait: bool,
    buffer: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl Member {
    pub(super) fn new(joined: Joined, rates: Rates, link: Link) -> io::Result<(Self, Waker)> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), Token(WAKE))?;
        // Each peer says what its guest takes; what it does not is done here.
        link.accept(Features::ALL);
        let announced = link.accepted();
        let fds = [
            (joined.listener.as_raw_fd(), LISTENER),
            (link.readable().as_raw_fd(), FRAMES_WAIT),
            (link.writable().as_raw_fd(), ROOM),
        ];
        for (fd, number) in fds {
            poll.registry().register(&mut SourceFd(&fd), Token(number), Interest::READABLE)?;
        }
        let mut member = Self {
            poll,
            port: Port::new(link, rates),
            listener: joined.listener,
            _path: joined.path,
            peers: BTreeMap::new(),
            next_peer: PEERS,
            table: Table::default(),
            announced,
            held: Vec::new(),
            frames_wait: true,
            buffer: vec![0; MAX_MESSAGE],
            stop: Arc::default(),
        };
        for peer in joined.peers {
            member.add(peer)?;
        }
        Ok((member, waker))
    }

    pub(super) fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(128);
        while !self.stop.load(Ordering::Acquire) && !self.port.link().is_closed() {
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, Some(timeout))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "leaving the switch: waiting for events failed");
                return;
            }
            for event in &events {
                match event.token().0 {
                    LISTENER => self.take_members(),
                    FRAMES_WAIT => self.frames_wait = true,
                    number => {
                        if let Some(peer) = self.peers.get_mut(&number) {
                            peer.readable |=
                                event.is_readable() || event.is_read_closed() || event.is_error();
                            let result = peer.flush();
                            self.check(number, result);
                        }
                    }
                }
            }
            self.step();
        }
    }

    fn step(&mut self) {
        let accepts = self.port.link().accepted();
        if accepts != self.announced {
            self.announced = accepts;
            self.for_each_peer(|peer| peer.announce(accepts));
        }
        self.take_from_guest();
        self.give_to_guest();
    }

    fn timeout(&self) -> Duration {
        let (receive_at, send_at) = self.port.retry_at();
        let to_take = self.held.is_empty() && self.peers.values().any(|peer| peer.readable);
        if self.frames_wait && receive_at.is_none() || to_take {
            return Duration::ZERO;
        }
        let times = [receive_at.filter(|_| self.frames_wait), send_at.filter(|_| !self.held.is_empty())];
        let wait = times.into_iter().flatten().min().map_or(LOOK_AGAIN, |at| {
            at.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
        });
        wait.min(LOOK_AGAIN)
    }

    /// Takes connections of those who join.
    fn take_members(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            match accept_with(&self.listener, flags) {
                Ok(socket) => {
                    let same = socket_peercred(&socket).is_ok_and(|peer| peer.uid == geteuid());
                    if !same || self.peers.len() >= MEMBERS {
                        continue;
                    }
                    if let Err(error) = self.add(socket) {
                        tracing::warn!(%error, "a member of the switch could not be added");
                    }
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => return,
            }
        }
    }

    fn add(&mut self, socket: OwnedFd) -> io::Result<()> {
        let number = self.next_peer;
        self.next_peer += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(number), interest)?;
        let mut peer = Peer::new(socket, self.announced);
        // One that has died since is found out when it is read.
        let _ = peer.flush();
        self.peers.insert(number, peer);
        Ok(())
    }

    /// Lets go of a peer whose connection has failed.
    fn check(&mut self, number: usize, result: Result<(), Errno>) {
        let Err(errno) = result else { return };
        if errno == Errno::PROTO {
            tracing::warn!("disconnecting a member of the switch: it does not keep to the protocol");
        }
        self.peers.remove(&number);
        self.table.forget(number);
    }

    fn for_each_peer(&mut self, mut act: impl FnMut(&mut Peer) -> Result<(), Errno>) {
        let results: Vec<_> = self.peers.iter_mut().map(|(number, peer)| (*number, act(peer))).collect();
        for (number, result) in results {
            self.check(number, result);
        }
    }

    /// One turn of frames from the guest.
    fn take_from_guest(&mut self) {
        let now = Instant::now();
        for _ in 0..FRAMES {
            if !self.frames_wait {
                return;
            }
            let Some(packet) = self.port.receive() else {
                self.frames_wait = self.port.retry_at().0.is_some();
                return;
            };
            let Some((destination, source)) = addresses(&packet.bytes) else { continue };
            self.table.learn(source, Place::Own, now);
            match self.table.find(destination, now) {
                // Both behind the guest's card.
                Some(Place::Own) => {}
                Some(Place::Peer(number)) => {
                    if let Some(peer) = self.peers.get_mut(&number) {
                        let result = send_to(peer, packet);
                        self.check(number, result);
                    }
                }
                None => self.for_each_peer(|peer| send_to(peer, packet.clone())),
            }
        }
    }

    /// One turn of each peer, as long as the guest has room.
    fn give_to_guest(&mut self) {
        while let Some(packet) = self.held.pop() {
            if let Err(packet) = self.port.send(packet) {
                self.held.push(packet);
                return;
            }
        }
        let now = Instant::now();
        let numbers: Vec<usize> =
            self.peers.iter().filter(|(_, peer)| peer.readable).map(|(number, _)| *number).collect();
        // The first in this turn is another than in the last, so that a full guest takes from all.
        let first = numbers
            .iter()
            .position(|number| number % numbers.len() == now.elapsed().as_nanos() as usize % numbers.len());
        for number in numbers.iter().cycle().skip(first.unwrap_or(0)).take(numbers.len()) {
            for _ in 0..MESSAGES {
                let Some(peer) = self.peers.get_mut(number).filter(|peer| peer.readable) else { break };
                match peer.receive(&mut self.buffer) {
                    Ok(None) => {}
                    Ok(Some(Message::Hello(features))) => (peer.accepted, peer.known) = (features, true),
                    Ok(Some(Message::Frame(packet))) => self.deliver(*number, packet, now),
                    Err(errno) => self.check(*number, Err(errno)),
                }
                if !self.held.is_empty() {
                    return;
                }
            }
        }
    }

    /// Hands a peer's frame to the guest, unless it is for somebody else.
    fn deliver(&mut self, number: usize, packet: Packet, now: Instant) {
        let Some((destination, source)) = addresses(&packet.bytes) else { return };
        if self.table.find(source, now) == Some(Place::Own) {
            return;
        }
        self.table.learn(source, Place::Peer(number), now);
        let elsewhere = matches!(self.table.find(destination, now), Some(Place::Peer(_)));
        if elsewhere && !is_group(destination) {
            return;
        }
        let (accepted, port, held) = (self.port.link().accepted(), &mut self.port, &mut self.held);
        // What makes no sense is dropped.
        let _ = wire::conform(packet, accepted, &mut |packet| {
            if !held.is_empty() {
                held.insert(0, packet);
            } else if let Err(packet) = port.send(packet) {
                held.push(packet);
            }
        });
    }
}

/// Sends a frame in the form that the peer's guest accepts.
fn send_to(peer: &mut Peer, packet: Packet) -> Result<(), Errno> {
    let mut result = Ok(());
    // What makes no sense is dropped.
    let _ = wire::conform(packet, peer.accepted, &mut |packet| {
        if result.is_ok() {
            result = peer.send(packet);
        }
    });
    result
}

/// Destination and source of a frame, if it is long enough, and the source is one.
fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let (destination, rest) = frame.split_first_chunk::<6>()?;
    let (source, rest) = rest.split_first_chunk::<6>()?;
    (rest.len() >= 2 && !is_group(*source)).then_some((*destination, *source))
}
