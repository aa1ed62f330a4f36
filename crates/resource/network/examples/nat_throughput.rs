//! How many bytes of TCP the user-mode network carries, and what that costs its thread.
//!
//! ```text
//! cargo run --release -p posada-network --example nat_throughput [SECONDS]
//! ```
//!
//! The guest is a few lines that send and acknowledge as fast as they can, the other side a socket on the loopback;
//! each way, with segmentation offload and without. Bytes a second depend on how many processors there are for the three
//! threads; bytes for a second of the network's own thread do not.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use posada_network::link::{
    Capacity, Features, Link, Offload, Packet, PartialChecksum, SegmentKind, Segmentation, pair,
};
use posada_network::nat::{Config, Nat};
use posada_network::wire::pseudo_header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const HEADERS: usize = 54;
const MSS: usize = 1460;
/// As many whole segments as an IP packet holds.
const LARGE: usize = (65_535 - 60) / MSS * MSS;

fn main() {
    let seconds = std::env::args().nth(1).map_or(3, |text| text.parse().expect("seconds"));
    println!("{:28} {:>10} {:>24}", "", "MB/s", "MB per second of network");
    for (name, upload, large) in [
        ("guest to host, 64 KiB", true, true),
        ("guest to host, 1500 bytes", true, false),
        ("host to guest, 64 KiB", false, true),
        ("host to guest, 1500 bytes", false, false),
    ] {
        let (bytes, wall, cpu) = measure(upload, large, Duration::from_secs(seconds));
        let rate = |time: f64| bytes as f64 / 1e6 / time.max(1e-9);
        println!("{name:28} {:10.0} {:24.0}", rate(wall), rate(cpu));
    }
}

/// Bytes, seconds, and seconds of the network's thread.
fn measure(upload: bool, large: bool, time: Duration) -> (u64, f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        if upload { sink(stream) } else { source(stream) }
    });
    let (link, network) = pair(Capacity::default()).expect("a link");
    link.accept(if large { Features::ALL } else { Features { checksum: true, ..Features::NONE } });
    let _nat = Nat::start(Config::default(), network).expect("a network");
    let mut guest = Guest { link, port, seq: 1, ack: 0, window: 0, acknowledged: 1, scale: 0 };
    guest.connect();
    let (start, cpu) = (Instant::now(), network_seconds());
    let bytes = if upload { guest.upload(large, time) } else { guest.download(time) };
    (bytes, start.elapsed().as_secs_f64(), network_seconds() - cpu)
}

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 20];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
}

fn source(mut stream: TcpStream) {
    let buffer = vec![0x5a; 1 << 20];
    while stream.write_all(&buffer).is_ok() {}
}

/// The processor time of the thread named `nat`, from proc(5).
fn network_seconds() -> f64 {
    let tasks = fs::read_dir("/proc/self/task").expect("proc").flatten();
    let mut total = 0.0;
    for task in tasks {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.trim() == "nat" {
            let run = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            total += run.split(' ').next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    total
}

/// The least that speaks TCP.
struct Guest {
    link: Link,
    port: u16,
    seq: u32,
    ack: u32,
    window: usize,
    acknowledged: u32,
    scale: u8,
}

impl Guest {
    fn connect(&mut self) {
        self.send(TcpControl::Syn, 0, false);
        while self.ack == 0 {
            self.wait();
            self.receive();
        }
        self.seq += 1;
        self.acknowledged = self.seq;
        self.send(TcpControl::None, 0, false);
    }

    fn upload(&mut self, large: bool, time: Duration) -> u64 {
        let (start, piece) = (Instant::now(), if large { LARGE } else { MSS });
        let mut bytes = 0;
        while start.elapsed() < time {
            let mut sent = false;
            for _ in 0..64 {
                let flying = self.seq.wrapping_sub(self.acknowledged) as usize;
                if flying + piece > self.window || self.link.pending().1 > 1 << 20 {
                    break;
                }
                self.send(TcpControl::Psh, piece, large);
                self.seq = self.seq.wrapping_add(piece as u32);
                bytes += piece as u64;
                sent = true;
            }
            let acknowledged = self.acknowledged;
            self.receive();
            if !sent && acknowledged == self.acknowledged {
                self.wait();
            }
        }
        bytes
    }

    fn download(&mut self, time: Duration) -> u64 {
        let start = Instant::now();
        let mut bytes = 0;
        while start.elapsed() < time {
            let got = self.receive();
            if got > 0 {
                bytes += got as u64;
                self.send(TcpControl::None, 0, false);
            } else {
                self.wait();
            }
        }
        bytes
    }

    fn wait(&self) {
        let mut fds = [PollFd::from_borrowed_fd(self.link.readable(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 })).expect("polling");
    }

    /// Takes what is there, and says how many bytes of data that was.
    fn receive(&mut self) -> usize {
        let mut bytes = 0;
        while let Some(packet) = self.link.receive() {
            let frame = &packet.bytes;
            if frame.len() < HEADERS || frame[12..14] != [8, 0] || frame[23] != 6 {
                continue;
            }
            let tcp = TcpPacket::new_checked(&frame[34..]).expect("the network sends TCP");
            assert!(!tcp.rst(), "the network resets the connection");
            self.acknowledged = tcp.ack_number().0 as u32;
            if tcp.syn() {
                self.ack = tcp.seq_number().0 as u32 + 1;
                self.scale = 7;
                self.window = tcp.window_len().into();
                continue;
            }
            self.window = usize::from(tcp.window_len()) << self.scale;
            if tcp.seq_number().0 as u32 == self.ack {
                self.ack = self.ack.wrapping_add(tcp.payload().len() as u32);
                bytes += tcp.payload().len();
            }
        }
        bytes
    }

    fn send(&mut self, control: TcpControl, length: usize, large: bool) {
        let repr = TcpRepr {
            src_port: 40_000,
            dst_port: self.port,
            control,
            seq_number: TcpSeqNumber(self.seq as i32),
            ack_number: (control != TcpControl::Syn).then_some(TcpSeqNumber(self.ack as i32)),
            window_len: if control == TcpControl::Syn { u16::MAX } else { 16_384 },
            window_scale: (control == TcpControl::Syn).then_some(7),
            max_seg_size: (control == TcpControl::Syn).then_some(MSS as u16),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let header = repr.header_len();
        let mut bytes = vec![0; 34 + header + length];
        EthernetRepr {
            src_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
            dst_addr: EthernetAddress([0x52, 0x55, 10, 0, 2, 2]),
            ethertype: EthernetProtocol::Ipv4,
        }
        .emit(&mut EthernetFrame::new_unchecked(&mut bytes));
        let payload_len = header + length;
        Ipv4Repr {
            src_addr: GUEST,
            dst_addr: GATEWAY,
            next_header: IpProtocol::Tcp,
            payload_len,
            hop_limit: 64,
        }
        .emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
        let caps = ChecksumCapabilities::ignored();
        repr.emit(&mut TcpPacket::new_unchecked(&mut bytes[34..]), &GUEST.into(), &GATEWAY.into(), &caps);
        let pseudo = pseudo_header(GUEST.into(), GATEWAY.into(), IpProtocol::Tcp, payload_len);
        bytes[50..52].copy_from_slice(&pseudo.to_ne_bytes());
        let offload = Offload {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segmentation: large.then_some(Segmentation {
                kind: SegmentKind::Tcp4,
                size: MSS as u16,
                header_len: (34 + header) as u16,
            }),
            checked: false,
        };
        self.link.send(Packet { bytes, offload }).expect("room in the link");
    }
}
