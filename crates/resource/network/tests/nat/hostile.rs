//! Frames that make no sense, and guests that flood.

use std::net::Ipv4Addr;
use std::time::Duration;

use posada_network::link::{Offload, Packet, PartialChecksum, SegmentKind, Segmentation};
use posada_network::nat::Config;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::peer::{GATEWAY, GUEST, Guest, MAC, Options, pattern};
use crate::tcp::{echo, server};

/// An IPv4 frame from the guest, the transport part written by `fill`.
fn frame(
    source: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    length: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; 34 + length];
    EthernetRepr {
        src_addr: EthernetAddress(MAC),
        dst_addr: EthernetAddress([0x52, 0x55, 10, 0, 2, 2]),
        ethertype: EthernetProtocol::Ipv4,
    }
    .emit(&mut EthernetFrame::new_unchecked(&mut bytes));
    Ipv4Repr { src_addr: source, dst_addr: to, next_header: protocol, payload_len: length, hop_limit: 64 }
        .emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    fill(&mut bytes[34..]);
    bytes
}

pub(crate) fn udp_frame(source: Ipv4Addr, from: u16, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    frame(source, to, IpProtocol::Udp, 8 + payload.len(), |bytes| {
        UdpRepr { src_port: from, dst_port: port }.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &source.into(),
            &to.into(),
            payload.len(),
            |data| data.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

fn syn_frame(from: u16, to: Ipv4Addr, port: u16) -> Vec<u8> {
    tcp_frame(from, to, port, TcpControl::Syn, 1, None)
}

fn tcp_frame(
    from: u16,
    to: Ipv4Addr,
    port: u16,
    control: TcpControl,
    seq: i32,
    ack: Option<TcpSeqNumber>,
) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: from,
        dst_port: port,
        control,
        seq_number: TcpSeqNumber(seq),
        ack_number: ack,
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    frame(GUEST, to, IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let caps = ChecksumCapabilities::default();
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &GUEST.into(), &to.into(), &caps);
    })
}

fn alive(guest: &mut Guest) {
    let (port, _server) = server("127.0.0.1:0", 1, echo);
    let handle = guest.connect(GATEWAY, port).expect("the network lives");
    let data = pattern(10_000);
    assert!(guest.exchange(handle, &data, data.len()) == data);
}

#[test]
fn cut_bent_and_random_frames_do_no_harm() {
    // Nothing leaves this machine's loopback.
    let config = Config { outside: false, ..Config::default() };
    let mut guest = Guest::with(Options { config, ..Options::default() });
    let frames = [udp_frame(GUEST, 1000, GATEWAY, 9, b"payload"), syn_frame(1000, GATEWAY, 9)];
    let mut seed = 0x1234_5678_u32;
    let mut random = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (seed >> 8) as usize
    };
    for round in 0..20_000 {
        let mut bytes = frames[round % 2].clone();
        match random() % 3 {
            0 => bytes.truncate(random() % bytes.len()),
            1 => (0..=(random() % 4)).for_each(|_| {
                let place = random() % bytes.len();
                bytes[place] = random() as u8;
            }),
            _ => bytes.iter_mut().skip(12 + random() % 40).for_each(|byte| *byte = random() as u8),
        }
        let checksum =
            (random() % 2 == 0).then(|| PartialChecksum { start: random() as u16, offset: random() as u16 });
        let segmentation = (random() % 2 == 0).then(|| Segmentation {
            kind: [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][random() % 3],
            size: random() as u16,
            header_len: random() as u16,
        });
        let offload = Offload { checksum, segmentation, checked: random() % 2 == 0 };
        if guest.card.link.send(Packet { bytes, offload }).is_err() {
            guest.run(Duration::from_millis(2));
        }
    }
    alive(&mut guest);
}

#[test]
fn a_flood_of_half_open_connections_leaves_the_open_ones() {
    let (port, _server) = server("127.0.0.1:0", 1, echo);
    let limits = posada_network::nat::Limits { connections: 50, ..Default::default() };
    let config = Config { limits, outside: false, ..Config::default() };
    let mut guest = Guest::with(Options { config, ..Options::default() });
    let handle = guest.connect(GATEWAY, port).unwrap();
    assert_eq!(guest.exchange(handle, b"before", 6), b"before");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().port();
    for from in 1000..6000 {
        if guest.card.link.send(Packet::new(syn_frame(from, GATEWAY, open))).is_err() {
            guest.run(Duration::from_millis(2));
        }
    }
    assert_eq!(guest.exchange(handle, b"after", 5), b"after");
}

#[test]
fn ten_thousand_connections_live() {
    const COUNT: usize = 10_000;
    // Connections wait in the listeners' queues, where they take no descriptors of this process.
    let listeners: Vec<_> = (0..5).map(|_| queueing_listener()).collect();
    let mut guest = Guest::new();
    alive(&mut guest);
    let (mut opened, mut answered) = (0, 0);
    let start = std::time::Instant::now();
    while answered < COUNT {
        assert!(start.elapsed() < Duration::from_secs(20), "{answered} of {opened} are open");
        while opened < COUNT && opened - answered < 500 {
            let frame = syn_frame(1024 + opened as u16, GATEWAY, listeners[opened % 5].1);
            put(&guest, frame);
            opened += 1;
        }
        let Some(packet) = guest.card.link.receive() else {
            std::thread::yield_now();
            continue;
        };
        let Ok(tcp) = TcpPacket::new_checked(packet.bytes.get(34..).unwrap_or_default()) else { continue };
        assert!(!tcp.rst(), "a connection is reset");
        if packet.bytes[12..14] == [8, 0] && tcp.syn() {
            let ack = Some(tcp.seq_number() + 1);
            let frame = tcp_frame(tcp.dst_port(), GATEWAY, tcp.src_port(), TcpControl::None, 2, ack);
            put(&guest, frame);
            answered += 1;
        }
    }
    // None was given up for another, and there is room for more.
    guest.run(Duration::from_millis(20));
    alive(&mut guest);
}

/// Sends a frame as soon as the link has room.
fn put(guest: &Guest, frame: Vec<u8>) {
    let mut packet = Packet::new(frame);
    while let Err(refused) = guest.card.link.send(packet) {
        packet = refused;
        std::thread::yield_now();
    }
}

/// A listener with a long queue, and its port.
fn queueing_listener() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // The standard library's queue is short; listening again makes it longer.
    rustix::net::listen(&listener, 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn senders_that_are_not_of_the_network_are_ignored() {
    let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let mut guest = Guest::new();
    for source in [Ipv4Addr::new(192, 0, 2, 1), GATEWAY, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        guest.card.link.send(Packet::new(udp_frame(source, 1000, GATEWAY, port, b"spoof"))).unwrap();
    }
    // And the host's loopback is not reached by its own address.
    guest.card.link.send(Packet::new(udp_frame(GUEST, 1000, Ipv4Addr::LOCALHOST, port, b"martian"))).unwrap();
    alive(&mut guest);
    assert!(receiver.recv(&mut [0; 10]).is_err(), "nothing came");
}

#[test]
fn dropping_either_end_ends_the_other() {
    let Guest { nat, card, .. } = Guest::new();
    drop(nat);
    assert!(card.link.is_closed());
    let Guest { nat, card, .. } = Guest::new();
    drop(card);
    drop(nat);
}
