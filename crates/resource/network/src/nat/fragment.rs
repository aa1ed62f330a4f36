//! Datagrams longer than a frame: fragments to the guest, and putting together those that come from it.
//!
//! IPv4 only from the guest (RFC 791 § 3.2), both to it (RFC 8200 § 4.5).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::wire::{IpProtocol, Ipv4Packet};

use super::engine::Net;
use super::guest::MTU;
use super::udp;
use crate::link::{Packet, PartialChecksum};
use crate::wire;

const ETHERNET: usize = 14;
/// How many packets are put together at once, and for how long each is waited for.
const ASSEMBLIES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(15);
/// The most pieces of one packet.
const PIECES: usize = 128;
/// The longest packet.
const MAX_LENGTH: usize = 65_535;

/// Sends a datagram in fragments.
pub(super) fn send(net: &mut Net, source: SocketAddr, destination: SocketAddr, payload: &[u8]) {
    let length = udp::HEADER + payload.len();
    if length > MAX_LENGTH - 40 {
        return;
    }
    let mut whole = udp::header(source, destination, length).to_vec();
    whole.extend_from_slice(payload);
    let pseudo = wire::pseudo_header(source.ip(), destination.ip(), IpProtocol::Udp, length);
    whole[6..8].copy_from_slice(&pseudo.to_ne_bytes());
    if wire::complete_checksum(&mut whole, PartialChecksum { start: 0, offset: 6 }).is_err() {
        return;
    }
    net.fragments = net.fragments.wrapping_add(1);
    let ident = net.fragments;
    let four = source.is_ipv4();
    let (piece, protocol) =
        if four { ((MTU - 20) & !7, IpProtocol::Udp) } else { ((MTU - 48) & !7, IpProtocol::Ipv6Frag) };
    for (number, bytes) in whole.chunks(piece).enumerate() {
        let offset = number * piece;
        let more = offset + bytes.len() < length;
        let Net { guest, config, .. } = net;
        let header = if four { 0 } else { 8 };
        let Some(mut frame) =
            guest.begin(config, source.ip(), destination.ip(), protocol, header + bytes.len())
        else {
            return;
        };
        if four {
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[ETHERNET..]);
            packet.set_ident(ident as u16);
            packet.set_dont_frag(false);
            packet.set_more_frags(more);
            packet.set_frag_offset(offset as u16);
            packet.fill_checksum();
        } else {
            frame.extend_from_slice(&[u8::from(IpProtocol::Udp), 0]);
            frame.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
            frame.extend_from_slice(&ident.to_be_bytes());
        }
        frame.extend_from_slice(bytes);
        guest.send(Packet::new(frame));
    }
}

/// Which packet a fragment is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    ident: u16,
}

/// A packet of which pieces have come.
#[derive(Debug)]
struct Assembly {
    /// Where each starts, and what it holds. They do not overlap.
    pieces: Vec<(usize, Box<[u8]>)>,
    /// Known from the last piece.
    total: Option<usize>,
    started: Instant,
}

/// The packets that are being put together.
#[derive(Debug, Default)]
pub(super) struct Assemblies(HashMap<Key, Assembly>);

impl Assemblies {
    /// Takes a fragment, and gives the packet's payload if that was the last that was missing.
    pub(super) fn receive(&mut self, packet: &Ipv4Packet<&[u8]>, now: Instant) -> Option<Vec<u8>> {
        let key = Key {
            source: packet.src_addr(),
            destination: packet.dst_addr(),
            protocol: packet.next_header(),
            ident: packet.ident(),
        };
        self.0.retain(|_, assembly| now.saturating_duration_since(assembly.started) < PATIENCE);
        if self.0.len() >= ASSEMBLIES && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, assembly)| assembly.started).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        let assembly =
            self.0.entry(key).or_insert_with(|| Assembly { pieces: Vec::new(), total: None, started: now });
        if !assembly.take(usize::from(packet.frag_offset()), packet.payload(), packet.more_frags()) {
            self.0.remove(&key);
            return None;
        }
        let whole = assembly.whole()?;
        self.0.remove(&key);
        Some(whole)
    }
}

impl Assembly {
    /// Adds a piece. `false` if it cannot be of this packet: then none of it can be trusted (RFC 5722).
    fn take(&mut self, offset: usize, bytes: &[u8], more: bool) -> bool {
        let end = offset + bytes.len();
        let ragged = more && !bytes.len().is_multiple_of(8);
        let beyond = end > MAX_LENGTH || self.total.is_some_and(|total| end > total);
        if bytes.is_empty() || ragged || beyond || self.pieces.len() >= PIECES {
            return false;
        }
        if self.pieces.iter().any(|(at, piece)| *at == offset && piece.len() == bytes.len()) {
            return true;
        }
        if self.pieces.iter().any(|(at, piece)| offset < at + piece.len() && *at < end) {
            return false;
        }
        if !more && self.total.replace(end).is_some_and(|total| total != end) {
            return false;
        }
        self.pieces.push((offset, bytes.into()));
        true
    }

    fn whole(&mut self) -> Option<Vec<u8>> {
        let total = self.total?;
        if self.pieces.iter().map(|(_, piece)| piece.len()).sum::<usize>() != total {
            return None;
        }
        self.pieces.sort_unstable_by_key(|(at, _)| *at);
        Some(self.pieces.iter().flat_map(|(_, piece)| piece.iter().copied()).collect())
    }
}

/// The addresses of an IPv4 packet, as those of a flow.
pub(super) fn addresses(packet: &Ipv4Packet<&[u8]>) -> (IpAddr, IpAddr) {
    (packet.src_addr().into(), packet.dst_addr().into())
}

#[cfg(test)]
#[path = "fragment_test.rs"]
mod tests;
