use super::*;
use crate::testing::{BUFFERS, Driver, WRITE, wait_until};
use posada_memory::Gpa;
use posada_network::link::{Capacity, Offload, PartialChecksum, SegmentKind, Segmentation, pair};

const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const TRANSMIT: u16 = 1;

fn start(cpus: u32, without: u64) -> (Driver, Link) {
    start_with(Capacity::default(), cpus, without)
}

fn start_with(capacity: Capacity, cpus: u32, without: u64) -> (Driver, Link) {
    let (card, network) = pair(capacity).unwrap();
    network.accept(Features::ALL);
    (Driver::start(Network::new(card, ADDRESS, cpus), without), network)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| n as u8).collect()
}

fn received(network: &Link) -> Packet {
    let mut packet = None;
    wait_until("a frame", || {
        packet = network.receive();
        packet.is_some()
    });
    packet.unwrap()
}

#[test]
fn a_frame_of_the_guests_arrives_with_what_it_leaves_to_be_done() {
    let (mut driver, network) = start(1, 0);
    let header = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    driver.request(TRANSMIT, &[&header[..], &frame(3000)].concat(), 0);
    let packet = received(&network);
    assert_eq!(packet.bytes, frame(3000));
    let offload = Offload {
        checksum: Some(PartialChecksum { start: 34, offset: 16 }),
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460, header_len: 54 }),
        checked: false,
    };
    assert_eq!(packet.offload, offload);
}

#[test]
fn a_frame_for_the_guest_is_written_behind_its_header() {
    let (mut driver, network) = start(1, 0);
    driver.submit(0, 0, &[], 2048);
    network.send(Packet::new(frame(100))).unwrap();
    let (_, len) = driver.wait(0);
    let bytes = driver.written(0, 0, len);
    assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(bytes[12..], frame(100));
}

#[test]
fn a_long_frame_is_spread_over_buffers() {
    let (mut driver, network) = start(1, 0);
    network.send(Packet::new(frame(300))).unwrap();
    for slot in 0..3 {
        driver.submit(0, slot, &[], 128);
    }
    let lens: Vec<u32> = (0..3).map(|_| driver.wait(0).1).collect();
    assert_eq!(lens, [128, 128, 56]);
    let bytes: Vec<u8> = lens.iter().zip(0..).flat_map(|(len, slot)| driver.written(0, slot, *len)).collect();
    assert_eq!((bytes[10], &bytes[12..]), (3, &frame(300)[..]));
}

#[test]
fn without_mergeable_buffers_a_frame_that_is_too_long_is_dropped() {
    let (mut driver, network) = start(1, feature::MERGEABLE);
    driver.submit(0, 0, &[], 128);
    network.send(Packet::new(frame(200))).unwrap();
    network.send(Packet::new(frame(50))).unwrap();
    assert_eq!(driver.wait(0), (0, 62));
}

#[test]
fn frames_wait_for_a_guest_without_buffers() {
    let (mut driver, network) = start(1, 0);
    for len in 60..64 {
        network.send(Packet::new(frame(len))).unwrap();
    }
    for slot in 0..4 {
        driver.submit(0, slot, &[], 2048);
        assert_eq!(driver.wait(0).1, 72 + u32::from(slot));
    }
}

#[test]
fn a_full_link_holds_the_guests_frames_back_and_loses_none() {
    let (mut driver, network) = start_with(Capacity { packets: 2, bytes: 1 << 20 }, 1, 0);
    for n in 0..4 {
        driver.submit(TRANSMIT, n, &[&[0; 12][..], &frame(60 + usize::from(n))].concat(), 0);
    }
    for n in 0..4 {
        assert_eq!(received(&network).bytes.len(), 60 + n);
    }
    for _ in 0..4 {
        driver.wait(TRANSMIT);
    }
}

#[test]
fn a_guest_that_agrees_to_nothing_gets_complete_frames() {
    let (mut driver, network) = start(1, feature::GUEST_CSUM);
    driver.submit(0, 0, &[], 2048);
    let offload = Offload { checksum: Some(PartialChecksum { start: 20, offset: 0 }), ..Offload::default() };
    network.send(Packet { bytes: vec![0; 60], offload }).unwrap();
    let (_, len) = driver.wait(0);
    let bytes = driver.written(0, 0, len);
    assert_eq!(bytes[0] & 1, 0);
    assert_eq!(bytes[12 + 20..][..2], [0xff, 0xff]);
}

#[test]
fn pairs_of_queues_are_taken_into_use_by_command() {
    let (mut driver, network) = start(2, 0);
    let control = 4;
    for (command, answer) in [
        (vec![4, 0, 2, 0], 0),
        (vec![4, 0, 0, 0], 1),
        (vec![4, 0, 3, 0], 1),
        (vec![4, 0, 2], 1),
        (vec![9, 9], 1),
        (vec![4, 0, 2, 0], 0),
    ] {
        assert_eq!(driver.request(control, &command, 1), [answer], "{command:?}");
    }
    driver.submit(3, 0, &[&[0; 12][..], &frame(60)].concat(), 0);
    assert_eq!(received(&network).bytes, frame(60));
    // Different flows reach both.
    for queue in [0, 2] {
        for slot in 0..4 {
            driver.submit(queue, slot, &[], 2048);
        }
    }
    for n in 0..=255 {
        let mut bytes = vec![0; 60];
        bytes[12] = 8;
        bytes[36] = n;
        network.send(Packet::new(bytes)).unwrap();
    }
    wait_until("both queues", || driver.has_used(0) && driver.has_used(2));
}

#[test]
fn nonsense_from_the_guest_is_dropped() {
    let (mut driver, network) = start(1, 0);
    driver.request(TRANSMIT, &[0; 11], 0);
    driver.request(TRANSMIT, &[0; 25], 0);
    driver.descriptor(TRANSMIT, 0, BUFFERS, 0x2_0000, 0, 0);
    driver.offer(TRANSMIT, 0);
    driver.wait(TRANSMIT);
    driver.descriptor(TRANSMIT, 0, u64::MAX - 8, 64, 0, 0);
    driver.offer(TRANSMIT, 0);
    driver.wait(TRANSMIT);
    driver.request(TRANSMIT, &[&[0xff; 12][..], &frame(60)].concat(), 0);
    assert_eq!(received(&network).bytes, frame(60));
    assert!(network.receive().is_none());
    // Buffers that are not in memory break the queue for frames to the guest.
    driver.descriptor(0, 0, u64::MAX - 4096, 2048, WRITE, 0);
    driver.offer(0, 0);
    network.send(Packet::new(frame(60))).unwrap();
    driver.wait_for_needs_reset();
    driver.set_up(0);
    driver.submit(0, 0, &[], 2048);
    network.send(Packet::new(frame(70))).unwrap();
    assert_eq!(driver.wait(0).1, 82);
}

#[test]
fn the_card_outlives_its_network() {
    let (mut driver, network) = start(1, 0);
    drop(network);
    for _ in 0..20 {
        driver.request(TRANSMIT, &[&[0; 12][..], &frame(60)].concat(), 0);
    }
    driver.ram.write(Gpa(0), &[0]).unwrap();
}
