//! The header and back.

use super::{decode, encode};
use crate::link::{Offload, PartialChecksum, SegmentKind, Segmentation};

#[test]
fn every_offload_comes_back() {
    for kind in [None, Some(SegmentKind::Tcp4), Some(SegmentKind::Tcp6), Some(SegmentKind::Udp)] {
        for checksum in [None, Some(PartialChecksum { start: 34, offset: 16 })] {
            for checked in [false, true] {
                let segmentation = kind.map(|kind| Segmentation { kind, size: 1448, header_len: 66 });
                let offload = Offload { checksum, segmentation, checked };
                assert_eq!(decode(&encode(&offload)), Some(offload));
            }
        }
    }
}

#[test]
fn an_unknown_kind_is_none() {
    assert_eq!(decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    assert!(decode(&[0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]).is_some(), "with congestion notification");
}
