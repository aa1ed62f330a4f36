//! The network card (virtio 1.2 §5.1): the guest's end of a [`Link`].
//!
//! One thread moves frames both ways. What the guest sends and finds no room on the link waits, and the queue that it
//! came from with it; what the link has for a guest that has provided no buffers stays on the link, whose other end
//! then finds no room. So nothing is lost between the two, and nothing grows.
//!
//! Checksums and segments that one side leaves to the other pass as they are where both know of them. What a guest has
//! not agreed to is cut and completed here.

mod header;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use posada_network::link::{Features, Link, MAX_FRAME, Packet};
use posada_network::wire::conform;

use crate::{BadBuffer, Bell, Chain, Device, Handler, Kind, Rings, Service};
use header::Header;

/// Entries of a queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// The most pairs of queues.
const MAX_PAIRS: usize = 8;
/// How many frames are moved before the other direction's turn.
const BATCH: usize = 64;
/// The shortest frame: destination, source, type.
const MIN_FRAME: usize = 14;

const READABLE: Token = Token(0);
const WRITABLE: Token = Token(1);

/// Feature bits (§5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const GUEST_ECN: u64 = 1 << 9;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MERGEABLE: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CONTROL: u64 = 1 << 17;
    pub(super) const SEVERAL_PAIRS: u64 = 1 << 22;
}

/// Classes and commands of the control queue (§5.1.6.5).
mod control {
    pub(super) const PAIRS: u8 = 4;
    pub(super) const PAIRS_SET: u8 = 0;
    pub(super) const DONE: u8 = 0;
    pub(super) const FAILED: u8 = 1;
}

/// A network card.
#[derive(Debug)]
pub struct Network {
    link: Option<Link>,
    address: [u8; 6],
    mtu: u16,
    pairs: usize,
    /// What the network takes.
    accepted: Features,
}

impl Network {
    /// A card with this Ethernet address at one end of a link, whose other end has said what it
    /// [accepts](Link::accept). It has a pair of queues for each of `cpus`.
    pub fn new(link: Link, address: [u8; 6], cpus: u32) -> Self {
        let accepted = link.accepted();
        Self { link: Some(link), address, mtu: 1500, pairs: (cpus as usize).clamp(1, MAX_PAIRS), accepted }
    }

    /// Sets the largest IP packet that the network carries, in bytes: 68 (RFC 791) to 65,535.
    #[must_use]
    pub fn mtu(mut self, bytes: u16) -> Self {
        self.mtu = bytes.max(68);
        self
    }
}

impl Device for Network {
    fn kind(&self) -> Kind {
        Kind { id: 1, class: [0x02, 0, 0], name: "network card" }
    }

    fn features(&self) -> u64 {
        use feature::{
            CONTROL, CSUM, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, HOST_ECN, HOST_TSO4, HOST_TSO6,
            MAC, MERGEABLE, MTU, SEVERAL_PAIRS, STATUS,
        };
        let guest = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
        let mut features = guest | MTU | MAC | MERGEABLE | STATUS | CONTROL;
        let offers = [
            (self.pairs > 1, SEVERAL_PAIRS),
            (self.accepted.checksum, CSUM),
            (self.accepted.checksum && self.accepted.tcp4, HOST_TSO4 | HOST_ECN),
            (self.accepted.checksum && self.accepted.tcp6, HOST_TSO6 | HOST_ECN),
        ];
        for (_, bits) in offers.into_iter().filter(|(offered, _)| *offered) {
            features |= bits;
        }
        features
    }

    fn queues(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * self.pairs];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn configuration(&self) -> Vec<u8> {
        /// The link is up.
        const UP: u16 = 1;
        let mut bytes = self.address.to_vec();
        bytes.extend(UP.to_le_bytes());
        bytes.extend((self.pairs as u16).to_le_bytes());
        bytes.extend(self.mtu.to_le_bytes());
        bytes
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let link = self.link.take().ok_or_else(|| io::Error::other("the card's link is in use already"))?;
        let (rings, pairs) = (Arc::clone(rings), self.pairs);
        let queues: Vec<usize> = (0..=2 * pairs).collect();
        Ok(vec![Service::new(queues, move |_: Arc<Bell>| Card::new(rings, link, pairs))])
    }
}

/// The thread of a card. Receive queues have even numbers, transmit queues odd ones, and the control queue is the last;
/// where the driver knows of one pair only, its control queue is number 2 (§5.1.2).
struct Card {
    rings: Arc<Rings>,
    link: Link,
    max_pairs: usize,
    /// How many pairs the driver uses.
    pairs: usize,
    /// Whether what the driver has agreed to has been looked at.
    is_set_up: bool,
    /// What the link had no room for, and the queue it is from.
    unsent: Option<(Packet, usize)>,
    /// What the guest had no buffer for.
    undelivered: VecDeque<Packet>,
    /// Receive queues in which a frame has been put since the last signal.
    filled: u64,
    /// Whether the link may have frames.
    readable: bool,
}

impl Card {
    fn new(rings: Arc<Rings>, link: Link, max_pairs: usize) -> Self {
        Self {
            rings,
            link,
            max_pairs,
            pairs: 1,
            is_set_up: false,
            unsent: None,
            undelivered: VecDeque::new(),
            filled: 0,
            readable: false,
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.rings.features() & feature != 0
    }

    /// The driver has made itself known: what it can do, the network may send.
    fn set_up(&mut self) {
        if !self.is_set_up && self.rings.is_active() {
            self.link.accept(self.accepts());
            self.is_set_up = true;
        }
    }

    fn accepts(&self) -> Features {
        let checksum = self.has(feature::GUEST_CSUM);
        Features {
            checksum,
            tcp4: checksum && self.has(feature::GUEST_TSO4),
            tcp6: checksum && self.has(feature::GUEST_TSO6),
            udp: false,
        }
    }

    fn control_queue(&self) -> usize {
        if self.has(feature::SEVERAL_PAIRS) { 2 * self.max_pairs } else { 2 }
    }

    // From the guest.

    /// Whether there is more.
    fn transmit(&mut self, queue: usize) -> bool {
        if self.unsent.is_some() {
            // Goes on when the link has room.
            return false;
        }
        let rings = Arc::clone(&self.rings);
        rings.quiet(queue);
        for _ in 0..BATCH {
            let Ok(next) = rings.pop(queue) else { return false };
            let Some(mut chain) = next else {
                rings.signal(queue);
                if rings.listen(queue) {
                    rings.quiet(queue);
                    continue;
                }
                return false;
            };
            let packet = read_packet(&mut chain);
            rings.push(queue, &chain);
            // A frame that cannot be one is dropped, like those that a wire damages.
            let Ok(packet) = packet else { continue };
            if let Err(packet) = self.link.send(packet)
                && !self.link.is_closed()
            {
                self.unsent = Some((packet, queue));
                rings.signal(queue);
                return false;
            }
        }
        rings.signal(queue);
        true
    }

    /// The link has room.
    fn resume(&mut self) {
        let Some((packet, queue)) = self.unsent.take() else { return };
        match self.link.send(packet) {
            Err(packet) if !self.link.is_closed() => self.unsent = Some((packet, queue)),
            _ => {
                for queue in (0..self.pairs).map(|pair| 2 * pair + 1) {
                    while self.transmit(queue) {}
                }
            }
        }
    }

    // To the guest.

    /// Moves frames from the link to the guest; whether there may be more.
    fn receive(&mut self) -> bool {
        if !self.rings.is_active() {
            return false;
        }
        let mut more = true;
        for _ in 0..BATCH {
            let Some(packet) = self.next_frame() else {
                more = false;
                break;
            };
            if !self.deliver(&packet) {
                self.undelivered.push_front(packet);
                more = false;
                break;
            }
        }
        while self.filled != 0 {
            let queue = self.filled.trailing_zeros() as usize;
            self.filled &= self.filled - 1;
            self.rings.signal(queue);
        }
        more
    }

    /// The next frame, as the guest has agreed to take it. What came before the network knew that is cut and completed.
    fn next_frame(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.undelivered.pop_front() {
                return Some(packet);
            }
            let packet = self.link.receive()?;
            let accepted = self.accepts();
            if (MIN_FRAME..=MAX_FRAME).contains(&packet.bytes.len()) {
                // One that is not what its sender says is dropped.
                let _ = conform(packet, accepted, &mut |packet| self.undelivered.push_back(packet));
            }
        }
    }

    /// Puts a frame into the guest's buffers; false if there are not enough yet.
    fn deliver(&mut self, packet: &Packet) -> bool {
        let queue = 2 * flow(&packet.bytes, self.pairs);
        let rings = Arc::clone(&self.rings);
        let needed = (Header::LEN + packet.bytes.len()) as u64;
        let most = if self.has(feature::MERGEABLE) { usize::from(QUEUE_SIZE) } else { 1 };
        let mut chains: Vec<Chain> = Vec::with_capacity(1);
        let mut room = 0;
        while room < needed && chains.len() < most {
            let Ok(next) = rings.pop(queue) else { return true };
            let Some(chain) = next else {
                // Listened for from now on, unless one has come meanwhile.
                if rings.listen(queue) {
                    continue;
                }
                rings.put_back(queue, chains.len() as u16);
                return false;
            };
            room += chain.writable();
            chains.push(chain);
        }
        rings.quiet(queue);
        if room < needed {
            // Too long for this guest: dropped, and the buffers stay its.
            rings.put_back(queue, chains.len() as u16);
            return true;
        }
        if write_packet(&mut chains, packet).is_err() {
            rings.fail(format_args!("queue {queue}: buffers that are not in memory"));
            return true;
        }
        rings.push_many(queue, &chains);
        self.filled |= 1 << queue;
        true
    }

    // Control.

    fn control(&mut self, queue: usize) -> bool {
        let rings = Arc::clone(&self.rings);
        rings.serve(queue, 8, |chain| {
            let result = if self.command(chain).is_ok() { control::DONE } else { control::FAILED };
            // Without room for the answer there is nobody to tell.
            let _ = chain.write(&[result]);
        })
    }

    fn command(&mut self, chain: &mut Chain) -> Result<(), BadBuffer> {
        match chain.read_array()? {
            [control::PAIRS, control::PAIRS_SET] => {
                let pairs = usize::from(u16::from_le_bytes(chain.read_array()?));
                if !(1..=self.max_pairs).contains(&pairs) || !self.has(feature::SEVERAL_PAIRS) {
                    return Err(BadBuffer);
                }
                self.pairs = pairs;
                Ok(())
            }
            _ => Err(BadBuffer),
        }
    }
}

impl Handler for Card {
    fn start(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.link.readable().as_raw_fd()), READABLE, Interest::READABLE)?;
        registry.register(&mut SourceFd(&self.link.writable().as_raw_fd()), WRITABLE, Interest::READABLE)
    }

    fn queue(&mut self, queue: usize) -> bool {
        self.set_up();
        if queue == self.control_queue() {
            self.control(queue)
        } else if queue < 2 * self.max_pairs {
            if queue.is_multiple_of(2) { self.receive() } else { self.transmit(queue) }
        } else {
            false
        }
    }

    fn ready(&mut self, token: Token, _registry: &Registry) {
        match token {
            READABLE => self.readable = true,
            _ => self.resume(),
        }
    }

    fn round(&mut self, _registry: &Registry) -> bool {
        if self.readable {
            self.readable = self.receive();
        }
        self.readable
    }

    fn reset(&mut self) {
        self.is_set_up = false;
        self.pairs = 1;
        self.unsent = None;
        self.filled = 0;
        self.link.accept(Features::NONE);
    }
}

/// Reads a frame and what is said about it.
fn read_packet(chain: &mut Chain) -> Result<Packet, BadBuffer> {
    let header = Header::read(&chain.read_array()?);
    let bytes = chain.read_all(MAX_FRAME)?;
    if bytes.len() < MIN_FRAME {
        return Err(BadBuffer);
    }
    Ok(Packet { offload: header.offload(), bytes })
}

/// Writes a frame over one or more buffers, the header first.
fn write_packet(chains: &mut [Chain], packet: &Packet) -> Result<(), BadBuffer> {
    let mut header = &Header::of(&packet.offload, chains.len() as u16).write()[..];
    let mut bytes = &packet.bytes[..];
    for chain in chains {
        for part in [&mut header, &mut bytes] {
            let (now, later) = part.split_at(part.len().min(chain.writable() as usize));
            chain.write(now)?;
            *part = later;
        }
    }
    Ok(())
}

/// Which of `pairs` queues a frame goes to: always the same for one flow, so that frames stay in order.
fn flow(frame: &[u8], pairs: usize) -> usize {
    if pairs == 1 {
        return 0;
    }
    // Addresses and ports of IPv4 without options, addresses of IPv6 and a little more: what varies between flows.
    let varying = frame.get(26..54.min(frame.len())).unwrap_or(&[]);
    let is_v4 = frame.get(12..14) == Some(&[8, 0]);
    let varying = if is_v4 { varying.get(..12).unwrap_or(varying) } else { varying };
    let hash = varying.iter().fold(0_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash >> 16) as usize % pairs
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
