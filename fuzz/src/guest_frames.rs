//! Any frames from a guest to a user-mode network that reaches nothing, while time passes.
//!
//! Beside "no panic" it checks that what the network sends is what it says: frames that every card can be given.

use std::time::Duration;

use posada_network::link::{
    Features, MAX_FRAME, Offload, Packet, PartialChecksum, SegmentKind, Segmentation,
};
use posada_network::nat::fuzz::Network;
use posada_network::wire::conform;

/// The router's address, as guests have it.
const ROUTER: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// Carries out the operations that `data` encodes, until it ends.
///
/// # Panics
/// If the network misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut network = Network::isolated().expect("descriptors");
    network.card.accept(Features::from(input.u8()));
    while !input.0.is_empty() {
        match input.u8() % 8 {
            0 => network.turn(Duration::from_millis(u64::from(input.u16()) * 10)),
            1 => {
                let offload = offload(&mut input);
                let most = usize::from(input.u8()) * 8;
                network.receive(&Packet { bytes: input.bytes(most).to_vec(), offload });
            }
            kind => {
                let offload = offload(&mut input);
                let bytes = frame(kind, &mut input);
                network.receive(&Packet { bytes, offload });
            }
        }
        while let Some(packet) = network.card.receive() {
            assert!((14..=MAX_FRAME).contains(&packet.bytes.len()));
            let mut frames = 0;
            conform(packet, Features::NONE, &mut |packet| {
                assert!(packet.bytes.len() <= 1514);
                frames += 1;
            })
            .expect("the network describes its frames rightly");
            assert!(frames > 0);
        }
    }
}

/// A frame with headers that lead somewhere, and the input's bytes behind them and over them.
fn frame(kind: u8, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = ROUTER.to_vec();
    bytes.extend([0x52, 0x54, 0, 0x12, 0x34, input.u8() & 3]);
    let most = usize::from(input.u8());
    let six = kind & 1 != 0;
    let protocol = [6, 17, if six { 58 } else { 1 }, 44][usize::from(input.u8() & 3)];
    let payload = input.bytes(most);
    if kind == 2 {
        bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend(payload);
    } else if six {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, payload.len() as u8, protocol, 255]);
        bytes.extend([0xfd, 0x50, 0x6f, 0x73, 0x61, 0x64, 0x61, 0, 0, 0, 0, 0, 0, 0, 0, 0x15]);
        bytes.extend([0xfd, 0x50, 0x6f, 0x73, 0x61, 0x64, 0x61, 0, 0, 0, 0, 0, 0, 0, 0, 2 | input.u8() & 1]);
        bytes.extend(payload);
    } else {
        let fragment = if kind == 6 { input.u16() } else { 0 };
        let total = 20 + payload.len() as u16;
        let header = bytes.len() + 2;
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend(total.to_be_bytes());
        bytes.extend([0, input.u8() & 1]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2 | input.u8() & 1]);
        let checksum = !posada_network::wire::sum(&bytes[header..]);
        bytes[header + 10..header + 12].copy_from_slice(&checksum.to_ne_bytes());
        bytes.extend(payload);
        if protocol == 17 && payload.len() > 8 && input.u8() & 1 == 0 {
            // To the address server.
            bytes[header + 20..header + 24].copy_from_slice(&[0, 68, 0, 67]);
        }
    }
    bytes
}

fn offload(input: &mut Input<'_>) -> Offload {
    let what = input.u8();
    let kind = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp][usize::from(what >> 4) % 3];
    Offload {
        checksum: (what & 1 != 0).then(|| PartialChecksum { start: input.u16(), offset: input.u16() }),
        segmentation: (what & 2 != 0).then(|| Segmentation {
            kind,
            size: input.u16(),
            header_len: input.u16(),
        }),
        checked: what & 0xc != 0,
    }
}

/// The input; what it no longer has is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(most.min(self.0.len()));
        self.0 = later;
        now
    }
}
