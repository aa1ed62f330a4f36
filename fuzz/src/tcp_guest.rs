//! Any segments from a guest to one TCP connection, while its host sends, takes, ends, and time passes.
//!
//! Beside "no panic" it checks what the network relies on: the connection says no more than it has and stops saying it, is
//! not woken for ever, and gives all memory back.

use std::time::Duration;

use posada_network::nat::fuzz::Stream;

/// Carries out the operations that `data` encodes, until it ends.
///
/// # Panics
/// If the connection misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let syn = [
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 2, 0x10, 0, 0, 0, 0, 0, 2, 4, 5, 0xb4, 1, 3, 3, 7,
        1, 1, 1, 1,
    ];
    let opened = input.u8() & 1 == 0;
    let Some(mut stream) = Stream::new(opened.then_some(&syn[..])) else { return };
    while !input.0.is_empty() {
        match input.u8() % 12 {
            0 => stream.connected(),
            1 => stream.host_sends(&vec![0x55; usize::from(input.u16())]),
            2 => stream.host_ends(),
            3 => stream.host_takes(),
            4 | 5 => stream.speak(if input.u8() & 1 == 0 { 1460 } else { 65_000 }),
            6 => stream.wait(Duration::from_millis(1 << (input.u8() % 24)), input.u8() & 1 == 0),
            7 => {
                let most = usize::from(input.u8());
                stream.receive(input.bytes(most), usize::MAX);
            }
            _ => {
                let (segment, most) = segment(&stream, &mut input);
                stream.receive(&segment, most);
            }
        }
    }
    stream.finish();
}

/// A segment with numbers near those that the connection expects.
fn segment(stream: &Stream, input: &mut Input<'_>) -> (Vec<u8>, usize) {
    let near = |number: u32, byte: u8| match byte >> 6 {
        0 => number,
        1 => number.wrapping_add(u32::from(byte & 63) * 100),
        2 => number.wrapping_sub(u32::from(byte & 63)),
        _ => number.wrapping_add(u32::from(byte & 63) << 26),
    };
    let (next, expected) = stream.numbers();
    let (seq, ack) = (near(expected, input.u8()), near(next, input.u8()));
    let flags = [0x10, 0x18, 0x10, 0x11, 0x12, 2, 4, 0x14, 0x10, 0x10, 0x19, 0][usize::from(input.u8()) % 12];
    let mut bytes = vec![0x9c, 0x40, 0, 80];
    bytes.extend(seq.to_be_bytes());
    bytes.extend(ack.to_be_bytes());
    bytes.extend([0x50, flags]);
    bytes.extend((u16::from(input.u8()) * 200).to_be_bytes());
    bytes.extend([0; 4]);
    let length = usize::from(input.u8()) * usize::from(input.u8() & 127);
    bytes.resize(20 + length, 0xaa);
    let most = if input.u8() & 1 == 0 { usize::MAX } else { usize::from(input.u16()) };
    (bytes, most)
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
