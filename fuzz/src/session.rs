//! Any bytes from a session's guest, while the host's side goes about its own affairs.
//!
//! Beside "no panic" it checks what the relay relies on: the host never holds more than a few windows, whatever the
//! guest says; it speaks in whole frames; and it sends no more standard input than the guest has made room for.

use posada_image::session::wire::{self, Decoder, kind};
use posada_image::session::{Event, Host, Size, Stream};

/// The most bytes of one stream that may wait for their reader: a window, and one from before a reboot.
const MAX_HELD: u64 = 2 * wire::OUTPUT_WINDOW as u64;
/// The most that the host may have to say at once: standard input up to the largest window, and little else.
const MAX_SAID: usize = 5 << 18;

/// Carries out the operations that `data` encodes, until it ends.
///
/// # Panics
/// If the host misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut relay = Relay::new();
    while !input.0.is_empty() {
        relay.step(&mut input);
    }
    relay.take_output();
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

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(most.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// What stands around a host: as `session::Relay`, without threads.
struct Relay {
    host: Host,
    /// Bytes of each stream that came and have not been passed on.
    held: [u64; 2],
    /// Cuts what the host says.
    decoder: Decoder,
}

impl Relay {
    fn new() -> Self {
        Self { host: Host::new(), held: [0; 2], decoder: Decoder::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 16 {
            0 => {
                let most = usize::from(input.u8());
                self.receive(input.bytes(most));
            }
            1 | 2 => {
                let mut bytes = wire::MAGIC.to_vec();
                bytes.extend(wire::header(kind::HELLO, 4));
                bytes.extend(input.u32().to_le_bytes());
                self.receive(&bytes);
            }
            3..=6 => {
                let kinds = [kind::STDOUT, kind::STDERR, kind::EXIT, kind::STDIN_CREDIT, kind::STDIN_CLOSED];
                let kind = kinds.get(usize::from(input.u8() & 7)).copied().unwrap_or(input.0.len() as u8);
                let most = usize::from(input.u16()) % (wire::MAX_PAYLOAD + 1);
                let payload = match kind {
                    // Long ones come cheap.
                    kind::STDOUT | kind::STDERR => vec![0x55; most],
                    _ => input.bytes(most % 8).to_vec(),
                };
                let mut bytes = wire::header(kind, payload.len()).to_vec();
                bytes.extend(payload);
                self.receive(&bytes);
            }
            7 | 8 => self.take_output(),
            9 | 10 => {
                let (stream, held) = self.stream(input);
                let count = u64::from(input.u16()).min(*held);
                *held -= count;
                self.host.consumed(stream, count as usize);
            }
            11 => {
                let (window, length) = (self.host.stdin_window(), usize::from(input.u16()));
                let sent = self.host.send_stdin(&vec![0xaa; length]);
                assert_eq!(sent, window.min(length));
            }
            12 => self.host.end_stdin(),
            13 => {
                let (stream, _) = self.stream(input);
                self.host.close_output(stream);
            }
            14 => self.host.resize(Size { rows: input.u16(), columns: input.u16() }),
            _ => self.host.signal(input.u8()),
        }
    }

    fn stream(&mut self, input: &mut Input<'_>) -> (Stream, &mut u64) {
        let stream = if input.u8() & 1 == 0 { Stream::Stdout } else { Stream::Stderr };
        (stream, &mut self.held[stream as usize])
    }

    fn receive(&mut self, bytes: &[u8]) {
        let held = &mut self.held;
        let result = self.host.receive(bytes, &mut |event| match event {
            Event::Stdout(bytes) => held[0] += bytes.len() as u64,
            Event::Stderr(bytes) => held[1] += bytes.len() as u64,
            Event::Ended(ending) => {
                let _ = (ending.status(), ending.complaint());
            }
            Event::Ready | Event::StdinWindow | Event::StdinClosed => {}
        });
        assert!(self.held.iter().all(|held| *held <= MAX_HELD), "{:?} bytes are held", self.held);
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
            assert_eq!(self.host.receive(b"more", &mut |_| panic!("it has failed")), Err(error));
        }
    }

    fn take_output(&mut self) {
        let announced = self.host.has_output();
        let said = self.host.take_output();
        assert_eq!(announced, !said.is_empty(), "{} bytes were said", said.len());
        assert!(said.len() <= MAX_SAID, "{} bytes were said", said.len());
        let mut rest = &said[..];
        while let Some(frame) = self.decoder.next(&mut rest).expect("no frame is too long") {
            assert!(frame.kind >= 0x10, "the host said {:#04x}", frame.kind);
        }
        assert!(self.decoder.at_start(), "the host spoke half a frame");
    }
}
