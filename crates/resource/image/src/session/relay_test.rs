use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::session::wire::{ending, kind};

/// A writer whose bytes the test sees.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that always fails in one way.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = wire::header(kind, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn hello() -> Vec<u8> {
    let mut bytes = wire::MAGIC.to_vec();
    bytes.extend(frame(kind::HELLO, &wire::STDIN_WINDOW.to_le_bytes()));
    bytes
}

fn exited(status: u32) -> Vec<u8> {
    frame(kind::EXIT, &wire::write_u8_u32(ending::EXITED, status))
}

fn streams(stdin: &'static [u8], stdout: impl Write + Send + 'static, stderr: Sink) -> Streams {
    Streams { stdin: Some(Box::new(stdin)), stdout: Box::new(stdout), stderr: Box::new(stderr) }
}

/// A relay whose guest is the test: what it is told arrives in the channel.
fn start(streams: Streams) -> (Relay, PortWriter, mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = mpsc::channel();
    let (relay, port) = Relay::start(streams, move |bytes| {
        sender.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    (relay, port, receiver)
}

/// Waits for `wanted` among what the guest is told.
fn expect(receiver: &mpsc::Receiver<Vec<u8>>, wanted: &[u8]) {
    let mut told = Vec::new();
    while !told.windows(wanted.len()).any(|window| window == wanted) {
        match receiver.recv_timeout(Duration::from_mins(1)) {
            Ok(bytes) => told.extend(bytes),
            Err(error) => panic!("{error}: the guest was only told {told:x?}"),
        }
    }
}

#[test]
fn output_arrives_on_its_own_stream_unchanged() {
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let (relay, mut port, _guest) = start(streams(b"", stdout.clone(), stderr.clone()));
    port.write_all(&hello()).unwrap();
    port.write_all(&frame(kind::STDOUT, b"line\n\0\xff")).unwrap();
    port.write_all(&frame(kind::STDERR, b"oops")).unwrap();
    port.write_all(&exited(3)).unwrap();
    assert_eq!(relay.finish().unwrap(), Some(Ending::Exited(3)));
    assert_eq!(stdout.bytes(), b"line\n\0\xff");
    assert_eq!(stderr.bytes(), b"oops");
}

#[test]
fn standard_input_and_its_end_reach_the_guest() {
    let (relay, mut port, guest) = start(streams(b"abc", Sink::default(), Sink::default()));
    port.write_all(&hello()).unwrap();
    let mut wanted = frame(kind::STDIN, b"abc");
    wanted.extend(frame(kind::STDIN_EOF, b""));
    expect(&guest, &wanted);
    drop(port);
    assert_eq!(relay.finish().unwrap(), None, "the guest stopped without an exit status");
}

#[test]
fn output_above_the_window_flows_on_as_it_is_consumed() {
    let stdout = Sink::default();
    let (relay, mut port, guest) = start(streams(b"", stdout.clone(), Sink::default()));
    port.write_all(&hello()).unwrap();
    let mut open = wire::OUTPUT_WINDOW as usize;
    let total = 20 * open;
    let mut sent = 0;
    let mut decoder = wire::Decoder::new();
    while sent < total {
        if open < wire::MAX_PAYLOAD {
            let bytes = guest.recv_timeout(Duration::from_mins(1)).expect("credit");
            let mut rest = &bytes[..];
            while let Some(frame) = decoder.next(&mut rest).unwrap() {
                if let (kind::OUTPUT_CREDIT, Some((_, more))) = (frame.kind, wire::read_u8_u32(frame.payload))
                {
                    open += more as usize;
                }
            }
            continue;
        }
        port.write_all(&frame(kind::STDOUT, &[b'x'; wire::MAX_PAYLOAD])).unwrap();
        open -= wire::MAX_PAYLOAD;
        sent += wire::MAX_PAYLOAD;
    }
    port.write_all(&exited(0)).unwrap();
    assert_eq!(relay.finish().unwrap(), Some(Ending::Exited(0)));
    assert_eq!(stdout.bytes().len(), total);
}

#[test]
fn a_reader_that_goes_away_closes_the_commands_stream_and_is_no_error() {
    let (relay, mut port, guest) = start(streams(b"", Broken(io::ErrorKind::BrokenPipe), Sink::default()));
    port.write_all(&hello()).unwrap();
    port.write_all(&frame(kind::STDOUT, b"y\n")).unwrap();
    expect(&guest, &frame(kind::OUTPUT_CLOSED, &[kind::STDOUT]));
    port.write_all(&frame(kind::EXIT, &wire::write_u8_u32(ending::SIGNALLED, 13))).unwrap();
    assert_eq!(relay.finish().unwrap(), Some(Ending::Signalled(13)));
}

#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    let (relay, mut port, _guest) = start(streams(b"", Broken(io::ErrorKind::StorageFull), Sink::default()));
    port.write_all(&hello()).unwrap();
    port.write_all(&frame(kind::STDOUT, b"y\n")).unwrap();
    port.write_all(&exited(0)).unwrap();
    assert_eq!(relay.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn signals_and_sizes_reach_the_guest() {
    let (relay, mut port, guest) = start(streams(b"", Sink::default(), Sink::default()));
    port.write_all(&hello()).unwrap();
    relay.signal(15);
    expect(&guest, &frame(kind::SIGNAL, &[15]));
    relay.resize(Size { rows: 50, columns: 80 });
    expect(&guest, &frame(kind::SIZE, &[50, 0, 80, 0]));
}

#[test]
fn a_guest_that_speaks_nonsense_is_reported() {
    let (relay, mut port, _guest) = start(streams(b"", Sink::default(), Sink::default()));
    port.write_all(&hello()).unwrap();
    port.write_all(&[0xff; 16]).unwrap();
    let error = relay.finish().unwrap_err();
    assert!(error.to_string().contains("length") || error.to_string().contains("bytes long"), "{error}");
}
