//! The header that says on a byte stream what remains to be done about a frame: `struct virtio_net_hdr` of virtio 1.2
//! § 5.1.6 in its 10-byte form, which Linux's tap devices use (`IFF_VNET_HDR`), and which members of a switch send.

use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};

/// Its length, in bytes.
pub(crate) const LENGTH: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
/// A flag beside the kind: congestion notification, which needs nothing here.
const ECN: u8 = 0x80;

/// The header for `offload`, in this machine's byte order, as a legacy header has it.
pub(crate) fn encode(offload: &Offload) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    if let Some(PartialChecksum { start, offset }) = offload.checksum {
        bytes[0] |= NEEDS_CHECKSUM;
        bytes[6..8].copy_from_slice(&start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    if offload.checked {
        bytes[0] |= DATA_VALID;
    }
    if let Some(Segmentation { kind, size, header_len }) = offload.segmentation {
        bytes[1] = match kind {
            SegmentKind::Tcp4 => TCP4,
            SegmentKind::Tcp6 => TCP6,
            SegmentKind::Udp => UDP,
        };
        bytes[2..4].copy_from_slice(&header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&size.to_ne_bytes());
    }
    bytes
}

/// What a header says; `None` if it asks for something unknown.
pub(crate) fn decode(bytes: &[u8; LENGTH]) -> Option<Offload> {
    let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let kind = match bytes[1] & !ECN {
        0 => None,
        TCP4 => Some(SegmentKind::Tcp4),
        TCP6 => Some(SegmentKind::Tcp6),
        UDP => Some(SegmentKind::Udp),
        _ => return None,
    };
    Some(Offload {
        checksum: (bytes[0] & NEEDS_CHECKSUM != 0)
            .then(|| PartialChecksum { start: number(6), offset: number(8) }),
        segmentation: kind.map(|kind| Segmentation { kind, size: number(4), header_len: number(2) }),
        checked: bytes[0] & DATA_VALID != 0,
    })
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
