//! A link: two queues of Ethernet frames between a card and a network.
//!
//! The ends are alike, and each may be used by several threads. An end never blocks: [`Link::send`] gives back what
//! finds no room, and two event descriptors say when it is worth trying again.
//!
//! # Waiting
//!
//! [`Link::readable`] polls readable while frames wait, and after the other end was dropped. Take frames until
//! [`Link::receive`] returns `None`: that is what resets it, so it suits edge-triggered and level-triggered waiting.
//!
//! [`Link::writable`] polls readable from when a queue that had refused a frame has room again, or the other end was
//! dropped, until the next [`Link::send`]. Wait for it only while holding a refused frame.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// The longest frame: an IP packet of 65,535 bytes behind an Ethernet header with one VLAN tag.
pub const MAX_FRAME: usize = 65_535 + 18;

/// The longest frame without segmentation offload: an IP packet of 1,500 bytes behind an Ethernet header with one tag.
pub const MAX_PLAIN_FRAME: usize = 1_500 + 18;

/// One Ethernet frame, without its frame check sequence, and what remains to be done about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packet {
    /// The frame, from the destination address on: at most [`MAX_FRAME`] bytes, though no receiver relies on that.
    pub bytes: Vec<u8>,
    /// What the sender left to be done.
    pub offload: Offload,
}

impl Packet {
    /// A frame that is complete: checksums filled in, no longer than the medium allows.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, offload: Offload::default() }
    }
}

/// What a sender left to be done about a frame, or did already (virtio 1.2 § 5.1.6, `struct virtio_net_hdr`).
///
/// These are claims of the other side: places may lie outside the frame, sizes may be zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub checksum: Option<PartialChecksum>,
    /// The frame stands for several segments.
    pub segmentation: Option<Segmentation>,
    /// The transport checksum has been found good (`VIRTIO_NET_HDR_F_DATA_VALID`).
    pub checked: bool,
}

/// A checksum of which only the pseudo-header's part is in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// From where on, in bytes from the start of the frame, to sum up (`csum_start`).
    pub start: u16,
    /// Where the result goes, in bytes from `start` (`csum_offset`).
    pub offset: u16,
}

/// How a frame is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Which protocol's way of cutting.
    pub kind: SegmentKind,
    /// The payload of each segment but the last, in bytes (`gso_size`).
    pub size: u16,
    /// The headers that each segment repeats, in bytes (`hdr_len`): a hint.
    pub header_len: u16,
}

/// A protocol that is cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6,
    /// UDP datagrams of equal size (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

/// Which offloads an end accepts in the frames that it receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Frames with a partial checksum. Without it, no segmentation either.
    pub checksum: bool,
    /// Segments of TCP over IPv4.
    pub tcp4: bool,
    /// Segments of TCP over IPv6.
    pub tcp6: bool,
    /// Segments of UDP, over either.
    pub udp: bool,
}

impl Features {
    /// Everything.
    pub const ALL: Self = Self { checksum: true, tcp4: true, tcp6: true, udp: true };
    /// Nothing: complete frames only.
    pub const NONE: Self = Self { checksum: false, tcp4: false, tcp6: false, udp: false };

    /// Whether a frame with `offload` may be sent to an end that accepts these.
    pub fn allow(self, offload: &Offload) -> bool {
        let cut = offload.segmentation.is_none_or(|segmentation| {
            self.checksum
                && match segmentation.kind {
                    SegmentKind::Tcp4 => self.tcp4,
                    SegmentKind::Tcp6 => self.tcp6,
                    SegmentKind::Udp => self.udp,
                }
        });
        cut && (self.checksum || offload.checksum.is_none())
    }

    /// One bit each, from the lowest: checksum, tcp4, tcp6, udp.
    pub(crate) fn to_bits(self) -> u8 {
        [self.checksum, self.tcp4, self.tcp6, self.udp]
            .into_iter()
            .enumerate()
            .fold(0, |bits, (place, set)| bits | u8::from(set) << place)
    }
}

impl From<u8> for Features {
    /// One bit each, from the lowest: checksum, tcp4, tcp6, udp. The others mean nothing.
    fn from(bits: u8) -> Self {
        Self { checksum: bits & 1 != 0, tcp4: bits & 2 != 0, tcp6: bits & 4 != 0, udp: bits & 8 != 0 }
    }
}

/// How much waits in each direction at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Frames, at least one.
    pub packets: usize,
    /// Bytes of frames. A queue that is empty takes a frame of any length.
    pub bytes: usize,
}

impl Default for Capacity {
    /// 1,024 frames and 2 MiB.
    fn default() -> Self {
        Self { packets: 1024, bytes: 2 << 20 }
    }
}

/// Makes a link. Both ends accept [`Features::NONE`] until they say more.
///
/// # Errors
/// The host has no more descriptors; four are needed.
pub fn pair(capacity: Capacity) -> io::Result<(Link, Link)> {
    let (there, back) = (Arc::new(Queue::new(capacity)?), Arc::new(Queue::new(capacity)?));
    let one = Link { outward: Arc::clone(&there), inward: Arc::clone(&back) };
    Ok((one, Link { outward: back, inward: there }))
}

/// One end of a link. Dropping it closes the link.
#[derive(Debug)]
pub struct Link {
    outward: Arc<Queue>,
    inward: Arc<Queue>,
}

impl Link {
    /// Hands a frame to the other end.
    ///
    /// # Errors
    /// The frame itself: the other end's queue is full, or [the other end is gone](Self::is_closed).
    pub fn send(&self, packet: Packet) -> Result<(), Packet> {
        self.outward.push(packet)
    }

    /// Takes the next frame from the other end. Frames that were sent before the other end was dropped still come.
    pub fn receive(&self) -> Option<Packet> {
        self.inward.pop()
    }

    /// Whether the other end is gone.
    pub fn is_closed(&self) -> bool {
        self.inward.lock().closed
    }

    /// How many frames and bytes the other end has not yet taken.
    pub fn pending(&self) -> (usize, usize) {
        let state = self.outward.lock();
        (state.packets.len(), state.bytes)
    }

    /// Polls readable while frames wait; see the [module](self).
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.inward.filled.as_fd()
    }

    /// Polls readable when a full queue has room again; see the [module](self).
    pub fn writable(&self) -> BorrowedFd<'_> {
        self.outward.drained.as_fd()
    }

    /// Says which offloads this end accepts from now on. Frames that wait already may still have others: who takes
    /// something back also cuts what comes late (as a driver that is reset and negotiates less makes its card do).
    pub fn accept(&self, features: Features) {
        self.inward.accepted.store(features.to_bits(), Ordering::Release);
    }

    /// Which offloads the other end accepts.
    pub fn accepted(&self) -> Features {
        Features::from(self.outward.accepted.load(Ordering::Acquire))
    }

    /// Tells, from anywhere, what this end has sent and received.
    pub fn meter(&self) -> Meter {
        Meter { sent: Arc::clone(&self.outward), received: Arc::clone(&self.inward) }
    }
}

/// What one end of a link has sent and received. It may outlive both ends.
#[derive(Debug, Clone)]
pub struct Meter {
    sent: Arc<Queue>,
    received: Arc<Queue>,
}

/// How much a link has carried in one direction: what the receiving end has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames. One that stands for several segments counts once, as it does for the guest.
    pub packets: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

impl Meter {
    /// What the end has sent.
    pub fn sent(&self) -> Traffic {
        self.sent.lock().carried
    }

    /// What it has received.
    pub fn received(&self) -> Traffic {
        self.received.lock().carried
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.outward.close();
        self.inward.close();
    }
}

/// One direction.
#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    /// Signalled while `State::filled`.
    filled: OwnedFd,
    /// Signalled while `State::drained`.
    drained: OwnedFd,
    capacity: Capacity,
    /// [`Features`] of the receiving end.
    accepted: AtomicU8,
}

#[derive(Debug, Default)]
struct State {
    packets: VecDeque<Packet>,
    /// Sum of the frames' lengths.
    bytes: usize,
    /// Frames that were taken, from the start.
    carried: Traffic,
    filled: bool,
    drained: bool,
    /// A frame was refused since `drained` was last signalled.
    refused: bool,
    closed: bool,
}

impl Queue {
    fn new(capacity: Capacity) -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self {
            state: Mutex::default(),
            filled: eventfd(0, flags)?,
            drained: eventfd(0, flags)?,
            capacity: Capacity { packets: capacity.packets.max(1), ..capacity },
            accepted: AtomicU8::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, packet: Packet) -> Result<(), Packet> {
        let mut state = self.lock();
        if state.closed {
            return Err(packet);
        }
        if state.drained {
            state.drained = false;
            reset(&self.drained);
        }
        let bytes = state.bytes.saturating_add(packet.bytes.len());
        let full = state.packets.len() >= self.capacity.packets || bytes > self.capacity.bytes;
        if full && !state.packets.is_empty() {
            state.refused = true;
            return Err(packet);
        }
        state.bytes = bytes;
        state.packets.push_back(packet);
        if !state.filled {
            state.filled = true;
            signal(&self.filled);
        }
        Ok(())
    }

    fn pop(&self) -> Option<Packet> {
        let mut state = self.lock();
        let Some(packet) = state.packets.pop_front() else {
            // A closed queue stays readable, so that whoever waits finds out.
            if state.filled && !state.closed {
                state.filled = false;
                reset(&self.filled);
            }
            return None;
        };
        state.bytes -= packet.bytes.len();
        state.carried.packets += 1;
        state.carried.bytes += packet.bytes.len() as u64;
        // Half empty: whoever waits for room is not woken for every frame.
        let room = state.packets.len() <= self.capacity.packets / 2 && state.bytes <= self.capacity.bytes / 2;
        if state.refused && room {
            state.refused = false;
            state.drained = true;
            signal(&self.drained);
        }
        Some(packet)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.filled = true;
        state.drained = true;
        signal(&self.filled);
        signal(&self.drained);
    }
}

/// Makes an event descriptor readable.
fn signal(event: &OwnedFd) {
    // Only a count that is about to overflow is refused, and then the descriptor is readable.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Makes an event descriptor unreadable.
fn reset(event: &OwnedFd) {
    // Not readable: that is what is wanted.
    let _ = rustix::io::read(event, &mut [0; 8]);
}

#[cfg(test)]
#[path = "link_test.rs"]
mod tests;
