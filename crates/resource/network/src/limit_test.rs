//! Rates: how they are written, and that they hold on average.

use std::time::{Duration, Instant};

use super::{Bucket, Charge, Port, Rate, Rates, Shaper};
use crate::link::{Capacity, Packet, SegmentKind, Segmentation, pair};

#[test]
fn rates_are_written_as_in_tc() {
    let rate = |bits, packets| Ok(Rate { bits, packets });
    assert_eq!("100mbit".parse(), rate(Some(100_000_000), None));
    assert_eq!("5000pps".parse(), rate(None, Some(5000)));
    assert_eq!("1.5Gbit:20kpps".parse(), rate(Some(1_500_000_000), Some(20_000)));
    assert_eq!("64kbit".parse(), rate(Some(64_000), None));
}

#[test]
fn other_texts_are_errors_that_show_how() {
    for text in [
        "",
        "100",
        "100mb",
        "bit",
        "-5mbit",
        "0bit",
        "1mbit:2mbit",
        "1e9bit",
        "infbit",
        "nanbit",
        "9999999gbit",
        "1mbit:",
    ] {
        let error = text.parse::<Rate>().unwrap_err().to_string();
        assert!(error.contains(&format!("{text:?}")) && error.contains("100mbit"), "{error}");
    }
}

#[test]
fn a_bucket_lets_a_long_frame_pass_and_then_waits_for_its_debt() {
    let start = Instant::now();
    let mut shaper = Shaper::new(Rate { bits: Some(8000), packets: None }, start);
    assert_eq!(shaper.blocked(start), None);
    // A tenth of a second's worth is 100 bytes: 1100 are a debt of a second.
    shaper.charge(&Charge { bytes: 1100, packets: 1 });
    let open = shaper.blocked(start).unwrap();
    assert!((open - start).abs_diff(Duration::from_secs(1)) < Duration::from_millis(2));
    assert!(shaper.blocked(start + Duration::from_millis(500)).is_some());
    assert_eq!(shaper.blocked(start + Duration::from_millis(1001)), None);
}

#[test]
fn the_average_holds_over_a_minute() {
    let start = Instant::now();
    let mut shaper = Shaper::new(Rate { bits: Some(1_000_000), packets: Some(50) }, start);
    let (mut now, mut bytes, mut packets) = (start, 0_u64, 0);
    while now < start + Duration::from_mins(1) {
        match shaper.blocked(now) {
            Some(later) => now = later,
            None => {
                shaper.charge(&Charge { bytes: 1500, packets: 1 });
                bytes += 1500;
                packets += 1;
            }
        }
    }
    assert!((2990..3010).contains(&packets), "{packets} frames in a minute at 50 a second");
    assert!(bytes * 8 < 61_000_000);
}

#[test]
fn idling_saves_up_no_more_than_a_tenth_of_a_second() {
    let start = Instant::now();
    let mut bucket = Bucket::new(1000, start);
    bucket.fill(start + Duration::from_hours(1));
    assert!((bucket.tokens - 100.0).abs() < 1e-6);
}

#[test]
fn a_frame_counts_as_its_segments() {
    let mut packet = Packet::new(vec![0; 54 + 14_480]);
    assert_eq!(Charge::of(&packet).packets, 1);
    packet.offload.segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len: 54 });
    assert_eq!(Charge::of(&packet).packets, 10);
    packet.offload.segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 0, header_len: 65535 });
    assert_eq!(Charge::of(&packet).packets, 1);
}

#[test]
fn a_port_holds_back_and_says_until_when() {
    let (card, network) = pair(Capacity::default()).unwrap();
    let slow = Rate { bits: None, packets: Some(10) };
    let mut port = Port::new(network, Rates { from_guest: slow, to_guest: slow });
    for _ in 0..20 {
        card.send(Packet::new(vec![0; 60])).unwrap();
    }
    let passed = (0..20).filter(|_| port.receive().is_some()).count();
    assert!((1..=3).contains(&passed), "{passed} of 20 at once, at 10 a second");
    assert!(port.retry_at().0.is_some());
    let passed = (0..20).filter(|_| port.send(Packet::new(vec![0; 60])).is_ok()).count();
    assert!((1..=3).contains(&passed), "{passed} of 20 at once, at 10 a second");
    assert!(port.retry_at().1.unwrap() > Instant::now());
}
