//! What a link promises to a card and to a network.

use std::os::fd::BorrowedFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Capacity, Features, Link, Offload, Packet, PartialChecksum, SegmentKind, Segmentation, Traffic, pair,
};

fn polls_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

fn frame(length: usize) -> Packet {
    Packet::new(vec![7; length])
}

fn small() -> (Link, Link) {
    pair(Capacity { packets: 4, bytes: 1000 }).unwrap()
}

#[test]
fn frames_arrive_in_order_with_their_offloads() {
    let (one, other) = small();
    let mut second = frame(2);
    second.offload.checksum = Some(PartialChecksum { start: 34, offset: 16 });
    one.send(frame(1)).unwrap();
    one.send(second.clone()).unwrap();
    assert_eq!(other.receive(), Some(frame(1)));
    assert_eq!(other.receive(), Some(second));
    assert_eq!(other.receive(), None);
    assert_eq!(one.receive(), None);
}

#[test]
fn what_arrives_is_counted_each_way() {
    let (one, other) = small();
    let meter = one.meter();
    for length in [100, 200] {
        one.send(frame(length)).unwrap();
    }
    other.send(frame(7)).unwrap();
    assert_eq!(meter.sent(), Traffic::default(), "nothing has arrived yet");
    other.receive().unwrap();
    other.receive().unwrap();
    one.receive().unwrap();
    assert_eq!(one.receive(), None);
    drop((one, other));
    assert_eq!(meter.sent(), Traffic { packets: 2, bytes: 300 });
    assert_eq!(meter.received(), Traffic { packets: 1, bytes: 7 });
}

#[test]
fn readable_while_frames_wait() {
    let (one, other) = small();
    assert!(!polls_readable(other.readable()));
    one.send(frame(1)).unwrap();
    one.send(frame(1)).unwrap();
    other.receive().unwrap();
    assert!(polls_readable(other.readable()));
    other.receive().unwrap();
    assert_eq!(other.receive(), None);
    assert!(!polls_readable(other.readable()));
    one.send(frame(1)).unwrap();
    assert!(polls_readable(other.readable()));
}

#[test]
fn a_queue_is_full_of_frames() {
    let (one, other) = small();
    for _ in 0..4 {
        one.send(frame(1)).unwrap();
    }
    assert_eq!(one.send(frame(9)), Err(frame(9)));
    assert_eq!(one.pending(), (4, 4));
    assert!(!polls_readable(one.writable()));
    other.receive();
    assert!(!polls_readable(one.writable()), "woken for every frame");
    other.receive();
    assert!(polls_readable(one.writable()));
    one.send(frame(9)).unwrap();
    assert!(!polls_readable(one.writable()));
}

#[test]
fn a_queue_is_full_of_bytes() {
    let (one, other) = small();
    one.send(frame(900)).unwrap();
    assert_eq!(one.send(frame(101)), Err(frame(101)));
    other.receive();
    assert!(polls_readable(one.writable()));
    // However long, it goes when nothing else is there.
    one.send(frame(2000)).unwrap();
    assert!(one.send(frame(1)).is_err());
}

#[test]
fn dropping_an_end_is_seen_after_the_frames() {
    let (one, other) = small();
    one.send(frame(3)).unwrap();
    drop(one);
    assert!(other.is_closed());
    assert!(polls_readable(other.readable()) && polls_readable(other.writable()));
    assert_eq!(other.receive(), Some(frame(3)));
    assert_eq!(other.receive(), None);
    assert!(polls_readable(other.readable()), "closed stays readable");
    assert_eq!(other.send(frame(1)), Err(frame(1)));
}

#[test]
fn each_end_says_what_it_accepts() {
    let (one, other) = small();
    assert_eq!(one.accepted(), Features::NONE);
    let features = Features { tcp6: true, checksum: true, ..Features::NONE };
    other.accept(features);
    assert_eq!(one.accepted(), features);
    assert_eq!(other.accepted(), Features::NONE);
}

#[test]
fn features_allow_what_they_name() {
    let checksum = Some(PartialChecksum { start: 34, offset: 16 });
    let segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448, header_len: 66 });
    let both = Offload { checksum, segmentation, checked: false };
    let partial = Offload { checksum, ..Offload::default() };
    assert!(Features::NONE.allow(&Offload::default()));
    assert!(!Features::NONE.allow(&partial));
    assert!(Features { checksum: true, ..Features::NONE }.allow(&partial));
    assert!(!Features { checksum: true, tcp6: true, ..Features::NONE }.allow(&both));
    assert!(!Features { tcp4: true, ..Features::NONE }.allow(&both));
    assert!(Features::ALL.allow(&both));
}

#[test]
fn threads_at_both_ends_lose_nothing() {
    let (one, other) = small();
    let sender = thread::spawn(move || {
        for number in 0..10_000_u32 {
            let mut packet = Packet::new(number.to_ne_bytes().to_vec());
            while let Err(refused) = one.send(packet) {
                packet = refused;
                poll(&mut [PollFd::from_borrowed_fd(one.writable(), PollFlags::IN)], None).unwrap();
            }
        }
    });
    for number in 0..10_000_u32 {
        let packet = loop {
            match other.receive() {
                Some(packet) => break packet,
                None => {
                    poll(&mut [PollFd::from_borrowed_fd(other.readable(), PollFlags::IN)], None).unwrap();
                }
            }
        };
        assert_eq!(packet.bytes, number.to_ne_bytes());
    }
    sender.join().unwrap();
}
