//! Software segmentation and checksums, against smoltcp's own verification.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, checksum,
};

use super::{Malformed, complete_checksum, conform, pseudo_header, sum};
use crate::link::{Features, Offload, Packet, PartialChecksum, SegmentKind, Segmentation};

const SOURCE: Ipv4Address = Ipv4Address::new(10, 0, 2, 15);
const DESTINATION: Ipv4Address = Ipv4Address::new(192, 0, 2, 1);

/// A frame of TCP over IPv4 with FIN and PSH, complete or with a partial checksum.
fn frame(payload: &[u8], segment: Option<u16>) -> Packet {
    let tcp = TcpRepr {
        src_port: 1234,
        dst_port: 80,
        control: TcpControl::Fin,
        seq_number: TcpSeqNumber(-10),
        ack_number: Some(TcpSeqNumber(7)),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = Ipv4Repr {
        src_addr: SOURCE,
        dst_addr: DESTINATION,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
        dst_addr: EthernetAddress([2, 0, 0, 0, 0, 2]),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; 34 + tcp.buffer_len()];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    let caps = ChecksumCapabilities::default();
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &caps);
    let (source, destination) = (IpAddress::Ipv4(SOURCE), IpAddress::Ipv4(DESTINATION));
    tcp.emit(&mut TcpPacket::new_unchecked(&mut bytes[34..]), &source, &destination, &caps);
    let Some(size) = segment else { return Packet::new(bytes) };
    let pseudo = pseudo_header(SOURCE.into(), DESTINATION.into(), IpProtocol::Tcp, bytes.len() - 34);
    bytes[50..52].copy_from_slice(&pseudo.to_ne_bytes());
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size, header_len: 54 });
    Packet { bytes, offload: Offload { checksum, segmentation, checked: false } }
}

fn conformed(packet: Packet, features: Features) -> Result<Vec<Packet>, Malformed> {
    let mut all = Vec::new();
    conform(packet, features, &mut |packet| all.push(packet))?;
    Ok(all)
}

#[test]
fn sums_agree_with_smoltcp_at_every_length() {
    let bytes: Vec<u8> = (0..999_u32).map(|i| (i * 7 + i / 3) as u8).collect();
    for length in 0..bytes.len() {
        let ours = sum(&bytes[..length]).to_be();
        assert_eq!(ours, checksum::data(&bytes[..length]), "length {length}");
    }
}

#[test]
fn a_partial_checksum_becomes_what_smoltcp_computes() {
    for length in [0, 1, 2, 3, 100, 1460] {
        let payload = vec![0xa5; length];
        let complete = frame(&payload, None);
        let mut partial = frame(&payload, Some(1460));
        complete_checksum(&mut partial.bytes, PartialChecksum { start: 34, offset: 16 }).unwrap();
        assert_eq!(partial.bytes, complete.bytes, "length {length}");
    }
}

#[test]
fn a_place_outside_the_frame_is_an_error() {
    for (start, offset) in [(100, 0), (99, 0), (34, 65), (0, 99), (u16::MAX, u16::MAX)] {
        let error = complete_checksum(&mut [0; 100], PartialChecksum { start, offset }).unwrap_err();
        assert_eq!(error, Malformed::ChecksumOutside { length: 100, start, offset });
    }
    complete_checksum(&mut [0; 100], PartialChecksum { start: 90, offset: 8 }).unwrap();
}

#[test]
fn segments_carry_the_whole_payload_in_order_with_good_checksums() {
    let payload: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    let segments = conformed(frame(&payload, Some(1448)), Features::NONE).unwrap();
    assert_eq!(segments.len(), 7);
    let mut together = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        assert!(segment.offload.segmentation.is_none() && segment.offload.checksum.is_none());
        let ip = Ipv4Packet::new_checked(&segment.bytes[14..]).unwrap();
        assert!(ip.verify_checksum());
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        assert!(tcp.verify_checksum(&SOURCE.into(), &DESTINATION.into()));
        assert_eq!(tcp.seq_number(), TcpSeqNumber(-10) + together.len());
        assert_eq!(tcp.fin(), index == 6);
        together.extend_from_slice(tcp.payload());
    }
    assert_eq!(together, payload);
}

#[test]
fn an_end_that_sums_gets_partial_checksums() {
    let segments =
        conformed(frame(&[1; 3000], Some(1000)), Features { checksum: true, ..Features::NONE }).unwrap();
    assert_eq!(segments.len(), 3);
    for mut segment in segments {
        complete_checksum(&mut segment.bytes, segment.offload.checksum.unwrap()).unwrap();
        let tcp = TcpPacket::new_checked(&segment.bytes[34..]).unwrap();
        assert!(tcp.verify_checksum(&SOURCE.into(), &DESTINATION.into()));
    }
}

#[test]
fn what_is_accepted_passes_unchanged() {
    let packet = frame(&[1; 3000], Some(1000));
    assert_eq!(conformed(packet.clone(), Features::ALL).unwrap(), [packet]);
}

#[test]
fn tiny_segments_and_wrong_headers_are_errors() {
    let error = conformed(frame(&[1; 3000], Some(1)), Features::NONE).unwrap_err();
    assert!(matches!(error, Malformed::SegmentSize { size: 1, .. }));
    let mut packet = frame(&[1; 3000], Some(1000));
    packet.bytes[23] = 17;
    assert!(matches!(conformed(packet, Features::NONE), Err(Malformed::Headers { .. })));
    let mut packet = frame(&[1; 3000], Some(1000));
    packet.bytes.truncate(40);
    assert!(matches!(conformed(packet, Features::NONE), Err(Malformed::Headers { .. })));
}
