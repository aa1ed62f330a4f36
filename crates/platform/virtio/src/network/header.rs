//! The header before each frame (virtio 1.2 §5.1.6).

use posada_network::link::{Offload, PartialChecksum, SegmentKind, Segmentation};

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// May be added to the others.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, with the count of buffers that a device of version 1 always has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    num_buffers: u16,
}

impl Header {
    pub(super) const LEN: usize = 12;

    pub(super) fn read(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            num_buffers: word(10),
        }
    }

    pub(super) fn write(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&[self.flags, self.gso_type]);
        let words = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// What a driver says about a frame that it sends.
    pub(super) fn offload(self) -> Offload {
        let kind = match self.gso_type & !GSO_ECN {
            GSO_TCP4 => Some(SegmentKind::Tcp4),
            GSO_TCP6 => Some(SegmentKind::Tcp6),
            GSO_UDP => Some(SegmentKind::Udp),
            _ => None,
        };
        Offload {
            checksum: (self.flags & NEEDS_CSUM != 0)
                .then_some(PartialChecksum { start: self.csum_start, offset: self.csum_offset }),
            segmentation: kind.map(|kind| Segmentation {
                kind,
                size: self.gso_size,
                header_len: self.hdr_len,
            }),
            checked: self.flags & DATA_VALID != 0,
        }
    }

    /// What a driver is told about a frame that it receives in `buffers` buffers.
    pub(super) fn of(offload: &Offload, buffers: u16) -> Self {
        let checksum = offload.checksum.unwrap_or(PartialChecksum { start: 0, offset: 0 });
        let (gso_type, gso_size, hdr_len) = match offload.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(Segmentation { kind, size, header_len }) => {
                let kind = match kind {
                    SegmentKind::Tcp4 => GSO_TCP4,
                    SegmentKind::Tcp6 => GSO_TCP6,
                    SegmentKind::Udp => GSO_UDP,
                };
                (kind, size, header_len)
            }
        };
        let needs = if offload.checksum.is_some() { NEEDS_CSUM } else { 0 };
        let valid = if offload.checked { DATA_VALID } else { 0 };
        Self {
            flags: needs | valid,
            gso_type,
            hdr_len,
            gso_size,
            csum_start: checksum.start,
            csum_offset: checksum.offset,
            num_buffers: buffers,
        }
    }
}
