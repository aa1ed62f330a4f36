//! Putting fragments together.

use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr};

use super::{ASSEMBLIES, Assemblies};

fn fragment(ident: u16, offset: usize, payload: &[u8], more: bool) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: Ipv4Address::new(10, 0, 2, 15),
        dst_addr: Ipv4Address::new(192, 0, 2, 1),
        next_header: IpProtocol::Udp,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 20];
    bytes.extend_from_slice(payload);
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.set_ident(ident);
    packet.set_frag_offset(offset as u16);
    packet.set_more_frags(more);
    bytes
}

fn take(all: &mut Assemblies, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
    all.receive(&Ipv4Packet::new_checked(bytes).unwrap(), now)
}

#[test]
fn pieces_in_any_order_make_the_packet() {
    let whole: Vec<u8> = (0..4000_u32).map(|i| i as u8).collect();
    let pieces: Vec<Vec<u8>> =
        (0..5).map(|i| fragment(7, i * 800, &whole[i * 800..][..800], i < 4)).collect();
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]] {
        let mut all = Assemblies::default();
        let now = Instant::now();
        for place in &order[..4] {
            assert_eq!(take(&mut all, &pieces[*place], now), None);
            assert_eq!(take(&mut all, &pieces[*place], now), None, "a repeated piece changes nothing");
        }
        assert_eq!(take(&mut all, &pieces[order[4]], now).as_deref(), Some(&whole[..]));
    }
}

#[test]
fn overlapping_pieces_spoil_the_packet() {
    let (mut all, now) = (Assemblies::default(), Instant::now());
    assert_eq!(take(&mut all, &fragment(1, 0, &[1; 800], true), now), None);
    assert_eq!(take(&mut all, &fragment(1, 400, &[2; 800], true), now), None);
    assert_eq!(take(&mut all, &fragment(1, 800, &[3; 8], false), now), None);
}

#[test]
fn ragged_long_and_empty_pieces_are_refused() {
    let (mut all, now) = (Assemblies::default(), Instant::now());
    assert_eq!(take(&mut all, &fragment(1, 0, &[1; 801], true), now), None);
    assert_eq!(take(&mut all, &fragment(2, 65_528, &[1; 800], false), now), None);
    assert_eq!(take(&mut all, &fragment(3, 8, &[], false), now), None);
    assert!(all.0.is_empty());
}

#[test]
fn a_flood_of_first_pieces_is_bounded_and_forgotten() {
    let (mut all, now) = (Assemblies::default(), Instant::now());
    for ident in 0..1000 {
        take(&mut all, &fragment(ident, 0, &[1; 800], true), now);
    }
    assert_eq!(all.0.len(), ASSEMBLIES);
    take(&mut all, &fragment(5000, 0, &[1; 800], true), now + Duration::from_secs(16));
    assert_eq!(all.0.len(), 1);
}
