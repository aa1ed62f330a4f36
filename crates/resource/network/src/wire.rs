//! Checksums and segments in software, for sides that do not take offloads.
//!
//! [`conform`] turns a frame into frames that an end with given [`Features`] accepts. Internet checksums are those of
//! RFC 1071; the cutting is that of Linux's `Documentation/networking/segmentation-offloads.rst`.

use std::net::IpAddr;

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};
use thiserror::Error;

use crate::link::{Features, Offload, Packet, PartialChecksum, SegmentKind, Segmentation};

/// The least payload of a segment that is cut here, in bytes: as Linux's `TCP_MIN_SND_MSS`. A sender that asks for less
/// wants to multiply its frames.
pub const MIN_SEGMENT: u16 = 48;

/// The most datagrams that one frame is cut into: as Linux's `UDP_MAX_SEGMENTS`.
const MAX_DATAGRAMS: usize = 128;

/// The length of an Ethernet header, and of an 802.1Q tag.
const ETHERNET: usize = 14;
const TAG: usize = 4;

/// A frame whose offload does not describe it. It is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The checksum's place is outside the frame.
    #[error("a frame of {length} bytes has its checksum at {start} + {offset}, outside")]
    ChecksumOutside {
        /// The frame's length, in bytes.
        length: usize,
        /// [`PartialChecksum::start`].
        start: u16,
        /// [`PartialChecksum::offset`].
        offset: u16,
    },
    /// The segments' size is too small, or makes too many of them.
    #[error("a frame of {length} bytes is to be cut into segments of {size}, too small")]
    SegmentSize {
        /// The frame's length, in bytes.
        length: usize,
        /// [`Segmentation::size`].
        size: u16,
    },
    /// The headers are not those of the protocol.
    #[error("a frame of {length} bytes is to be cut as {kind:?} but has no such headers")]
    Headers {
        /// The frame's length, in bytes.
        length: usize,
        /// [`Segmentation::kind`].
        kind: SegmentKind,
    },
}

/// The ones' complement sum of `bytes` as 16-bit words in the host's byte order, folded.
///
/// A sum in the host's order, stored in the host's order, is the same as one in the network's (RFC 1071 § 1.2 (B)).
pub fn sum(bytes: &[u8]) -> u16 {
    let mut words = bytes.chunks_exact(4);
    let mut total: u64 =
        words.by_ref().map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let mut rest = [0; 4];
    rest[..words.remainder().len()].copy_from_slice(words.remainder());
    total += u64::from(u32::from_ne_bytes(rest));
    fold(total)
}

/// Adds two folded sums.
pub fn add(one: u16, other: u16) -> u16 {
    fold(u64::from(one) + u64::from(other))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// The sum over the pseudo-header of RFC 793 § 3.1 or RFC 8200 § 8.1; `length` is that of the transport header and data.
/// Addresses of two families make no packet: zero.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: IpProtocol, length: usize) -> u16 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            add(sum(&source.octets()), sum(&destination.octets()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            add(sum(&source.octets()), sum(&destination.octets()))
        }
        _ => return 0,
    };
    let rest = add(sum(&(length as u32).to_be_bytes()), sum(&[0, u8::from(protocol)]));
    add(addresses, rest)
}

/// Completes a partial checksum in place.
///
/// # Errors
/// [`Malformed::ChecksumOutside`].
pub fn complete_checksum(bytes: &mut [u8], partial: PartialChecksum) -> Result<(), Malformed> {
    let PartialChecksum { start, offset } = partial;
    let outside = Malformed::ChecksumOutside { length: bytes.len(), start, offset };
    let covered = bytes.get_mut(usize::from(start)..).ok_or(outside)?;
    let total = sum(covered);
    let place = covered.get_mut(usize::from(offset)..usize::from(offset) + 2).ok_or(outside)?;
    // What is in place is the sum over the pseudo-header, which `total` has counted.
    let checksum = match !total {
        // In UDP, zero means none (RFC 768); to the others both are the same.
        0 => 0xffff,
        checksum => checksum,
    };
    place.copy_from_slice(&checksum.to_ne_bytes());
    Ok(())
}

/// Hands `packet` to `emit` as one frame or several that an end which accepts `accepted` understands.
///
/// # Errors
/// The frame's offload does not describe it. Nothing was emitted, or nothing more will be.
pub fn conform(
    mut packet: Packet,
    accepted: Features,
    emit: &mut dyn FnMut(Packet),
) -> Result<(), Malformed> {
    if accepted.allow(&packet.offload) {
        emit(packet);
        return Ok(());
    }
    if let Some(segmentation) = packet.offload.segmentation {
        return cut(&packet.bytes, segmentation, accepted, emit);
    }
    if let Some(partial) = packet.offload.checksum.take() {
        complete_checksum(&mut packet.bytes, partial)?;
        packet.offload.checked = true;
    }
    emit(packet);
    Ok(())
}

/// Where the headers of a frame are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Where the IP header starts.
    ip: usize,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts, and where it ends.
    payload: usize,
    end: usize,
    four: bool,
    protocol: IpProtocol,
}

impl Layout {
    fn of(frame: &[u8]) -> Option<Self> {
        let ethertype = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let (kind, ip) = match ethertype(12)? {
            0x8100 => (ethertype(12 + TAG)?, ETHERNET + TAG),
            kind => (kind, ETHERNET),
        };
        let packet = frame.get(ip..)?;
        let (four, protocol, header, total) = match kind {
            0x0800 => {
                let packet = Ipv4Packet::new_checked(packet).ok()?;
                let total = usize::from(packet.total_len());
                (true, packet.next_header(), usize::from(packet.header_len()), total)
            }
            0x86dd => {
                let packet = Ipv6Packet::new_checked(packet).ok()?;
                (false, packet.next_header(), packet.header_len(), packet.total_len())
            }
            _ => return None,
        };
        let transport = ip + header;
        let segment = frame.get(transport..ip + total)?;
        let header = match protocol {
            IpProtocol::Tcp => usize::from(TcpPacket::new_checked(segment).ok()?.header_len()),
            IpProtocol::Udp if segment.len() >= 8 => 8,
            _ => return None,
        };
        Some(Self { ip, transport, payload: transport + header, end: ip + total, four, protocol })
    }
}

/// Cuts a frame into segments.
fn cut(
    frame: &[u8],
    segmentation: Segmentation,
    accepted: Features,
    emit: &mut dyn FnMut(Packet),
) -> Result<(), Malformed> {
    let Segmentation { kind, size, .. } = segmentation;
    let headers = Malformed::Headers { length: frame.len(), kind };
    let layout = Layout::of(frame).ok_or(headers)?;
    let fits = match kind {
        SegmentKind::Tcp4 => layout.four && layout.protocol == IpProtocol::Tcp,
        SegmentKind::Tcp6 => !layout.four && layout.protocol == IpProtocol::Tcp,
        SegmentKind::Udp => layout.protocol == IpProtocol::Udp,
    };
    if !fits {
        return Err(headers);
    }
    let payload = &frame[layout.payload..layout.end];
    let many = kind == SegmentKind::Udp && payload.len().div_ceil(usize::from(size.max(1))) > MAX_DATAGRAMS;
    if size < MIN_SEGMENT || many {
        return Err(Malformed::SegmentSize { length: frame.len(), size });
    }
    let pieces = payload.chunks(usize::from(size)).count().max(1);
    for piece in 0..pieces {
        let from = piece * usize::from(size);
        let data = &payload[from..payload.len().min(from + usize::from(size))];
        let mut bytes = Vec::with_capacity(layout.payload + data.len());
        bytes.extend_from_slice(&frame[..layout.payload]);
        bytes.extend_from_slice(data);
        let place = Place { piece, from, last: piece + 1 == pieces };
        emit(segment(bytes, layout, place, accepted).ok_or(headers)?);
    }
    Ok(())
}

/// Which segment of a frame one is.
#[derive(Debug, Clone, Copy)]
struct Place {
    piece: usize,
    /// Where its payload starts in that of the whole.
    from: usize,
    last: bool,
}

/// Makes good the headers of one segment.
fn segment(mut bytes: Vec<u8>, layout: Layout, place: Place, accepted: Features) -> Option<Packet> {
    let length = bytes.len() - layout.transport;
    let (source, destination) = if layout.four {
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[layout.ip..]);
        packet.set_total_len((layout.transport - layout.ip + length) as u16);
        packet.set_ident(packet.ident().wrapping_add(place.piece as u16));
        packet.fill_checksum();
        (IpAddr::V4(packet.src_addr()), IpAddr::V4(packet.dst_addr()))
    } else {
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes[layout.ip..]);
        packet.set_payload_len(length as u16);
        (IpAddr::V6(packet.src_addr()), IpAddr::V6(packet.dst_addr()))
    };
    let transport = &mut bytes[layout.transport..];
    let offset: u16 = if layout.protocol == IpProtocol::Tcp {
        let mut packet = TcpPacket::new_unchecked(&mut transport[..]);
        packet.set_seq_number(packet.seq_number() + place.from);
        if !place.last {
            packet.set_fin(false);
            packet.set_psh(false);
        }
        if place.piece > 0 {
            packet.set_cwr(false);
        }
        16
    } else {
        transport.get_mut(4..6)?.copy_from_slice(&(length as u16).to_be_bytes());
        6
    };
    let pseudo = pseudo_header(source, destination, layout.protocol, length);
    let at = usize::from(offset);
    transport.get_mut(at..at + 2)?.copy_from_slice(&pseudo.to_ne_bytes());
    let partial = PartialChecksum { start: layout.transport as u16, offset };
    if accepted.checksum {
        return Some(Packet { bytes, offload: Offload { checksum: Some(partial), ..Offload::default() } });
    }
    complete_checksum(&mut bytes, partial).ok()?;
    Some(Packet { bytes, offload: Offload { checked: true, ..Offload::default() } })
}

#[cfg(test)]
#[path = "wire_test.rs"]
mod tests;
