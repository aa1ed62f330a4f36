use super::packet::{Header, NO_RECEIVE, NO_SEND, op};
use super::*;
use crate::testing::{Driver, wait_until};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener as HostListener, UnixStream};

const GUEST: u32 = 3;

struct Guest {
    driver: Driver,
    folder: tempfile::TempDir,
    slot: u16,
}

impl Guest {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vsock = Vsock::new(GUEST, folder.path().join("sock")).unwrap();
        let mut guest = Self { driver: Driver::start(vsock, 0), folder, slot: 0 };
        for slot in 0..4 {
            guest.provide(slot);
        }
        guest
    }

    fn provide(&mut self, slot: u16) {
        self.driver.submit(RECEIVE as u16, slot, &[], 4096);
    }

    /// The next packet from the device.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (head, len) = self.driver.wait(RECEIVE as u16);
        let bytes = self.driver.written(RECEIVE as u16, head / 2, len);
        self.slot = head / 2;
        let header = Header::read(bytes.first_chunk().unwrap());
        self.provide(head / 2);
        assert_eq!((header.source, header.destination), (2, GUEST.into()));
        (header, bytes[Header::LEN..].to_vec())
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header { len: data.len() as u32, ..header };
        self.driver.request(TRANSMIT as u16, &[&header.write()[..], data].concat(), 0);
    }

    /// A packet from the guest's port 1000 to the host's port.
    fn header(host_port: u32, op: u16) -> Header {
        Header {
            source: GUEST.into(),
            destination: 2,
            source_port: 1000,
            destination_port: host_port,
            kind: 1,
            op,
            buffer: 64 << 10,
            ..Header::default()
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sock")
    }
}

#[test]
fn a_program_of_the_guest_reaches_one_of_the_host() {
    let mut guest = Guest::start();
    let listener = HostListener::bind(guest.folder.path().join("sock_77")).unwrap();
    guest.send(Guest::header(77, op::REQUEST), &[]);
    let (response, _) = guest.receive();
    assert_eq!((response.op, response.source_port, response.destination_port), (op::RESPONSE, 77, 1000));
    assert_eq!(response.buffer, 256 << 10);
    let (mut host, _) = listener.accept().unwrap();
    guest.send(Guest::header(77, op::DATA), b"from the guest");
    let mut bytes = [0; 14];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    host.write_all(b"from the host").unwrap();
    let (header, data) = guest.receive();
    assert_eq!((header.op, header.len, &data[..]), (op::DATA, 13, &b"from the host"[..]));
    // How much has arrived, when asked.
    guest.send(Guest::header(77, op::CREDIT_REQUEST), &[]);
    let (credit, _) = guest.receive();
    assert_eq!((credit.op, credit.forwarded), (op::CREDIT_UPDATE, 14));
    // The host has said all; then the guest closes.
    drop(host);
    let (shutdown, _) = guest.receive();
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, NO_SEND));
    guest.send(Header { flags: NO_SEND | NO_RECEIVE, ..Guest::header(77, op::SHUTDOWN) }, &[]);
    assert_eq!(guest.receive().0.op, op::RESET);
}

#[test]
fn a_program_of_the_host_reaches_one_of_the_guest() {
    let mut guest = Guest::start();
    let mut host = UnixStream::connect(guest.path()).unwrap();
    // What comes right after the greeting is the guest's.
    host.write_all(b"CONNECT 1000\nhello").unwrap();
    let (request, _) = guest.receive();
    assert_eq!((request.op, request.destination_port), (op::REQUEST, 1000));
    let port = request.source_port;
    guest.send(Guest::header(port, op::RESPONSE), &[]);
    let mut line = vec![0; format!("OK {port}\n").len()];
    host.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {port}\n").into_bytes());
    let (header, data) = guest.receive();
    assert_eq!((header.op, header.forwarded, &data[..]), (op::DATA, 0, &b"hello"[..]));
    guest.send(Guest::header(port, op::RESET), &[]);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::start();
    let listener = HostListener::bind(guest.folder.path().join("sock_77")).unwrap();
    guest.send(Header { buffer: 10, ..Guest::header(77, op::REQUEST) }, &[]);
    guest.receive();
    let (mut host, _) = listener.accept().unwrap();
    host.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(guest.receive().1, b"0123456789");
    guest.send(Header { buffer: 10, forwarded: 4, ..Guest::header(77, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(guest.receive().1, b"abcd");
    guest.send(Header { buffer: 10, forwarded: 14, ..Guest::header(77, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(guest.receive().1, b"ef");
}

#[test]
fn what_leads_nowhere_is_reset() {
    let mut guest = Guest::start();
    for op in
        [op::REQUEST, op::RESPONSE, op::SHUTDOWN, op::DATA, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99]
    {
        guest.send(Guest::header(5, op), &[]);
        let (reset, _) = guest.receive();
        assert_eq!((reset.op, reset.source_port, reset.destination_port), (op::RESET, 5, 1000));
    }
    guest.send(Header { kind: 9, ..Guest::header(5, op::REQUEST) }, &[]);
    assert_eq!((guest.receive().0.kind, guest.receive_nothing()), (9, true));
    // Not from this guest, not for the host, no header at all.
    guest.send(Header { source: 4, ..Guest::header(5, op::REQUEST) }, &[]);
    guest.send(Header { destination: 4, ..Guest::header(5, op::REQUEST) }, &[]);
    guest.driver.request(TRANSMIT as u16, &[0; 43], 0);
    assert!(guest.receive_nothing());
}

impl Guest {
    /// Whether nothing but the answer to a question of ours comes.
    fn receive_nothing(&mut self) -> bool {
        self.send(Guest::header(123, op::DATA), &[]);
        self.receive().0.source_port == 123
    }
}

#[test]
fn a_guest_that_sends_more_than_it_may_loses_the_connection() {
    let mut guest = Guest::start();
    let _listener = HostListener::bind(guest.folder.path().join("sock_77")).unwrap();
    guest.send(Guest::header(77, op::REQUEST), &[]);
    guest.receive();
    let mut sent = 0;
    // Nobody reads: the socket's buffer fills, then ours.
    while !guest.driver.has_used(RECEIVE as u16) {
        guest.send(Guest::header(77, op::DATA), &vec![7; 0x8000]);
        sent += 1;
        assert!(sent < 1000, "it goes on and on");
    }
    let mut last = guest.receive().0;
    while last.op == op::CREDIT_UPDATE {
        guest.send(Guest::header(77, op::DATA), &vec![7; 0x8000]);
        if guest.driver.has_used(RECEIVE as u16) {
            last = guest.receive().0;
        }
    }
    assert_eq!(last.op, op::RESET);
}

#[test]
fn greetings_that_make_no_sense_are_hung_up_on() {
    let guest = Guest::start();
    for greeting in
        [&b"HELLO 1\n"[..], b"CONNECT\n", b"CONNECT x\n", b"CONNECT 99999999999\n", &[b'a'; 100], b"\n"]
    {
        let mut host = UnixStream::connect(guest.path()).unwrap();
        host.write_all(greeting).unwrap();
        // An end, or a reset if not all of the greeting was read.
        assert!(matches!(host.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_reset_of_the_device_ends_all_connections() {
    let mut guest = Guest::start();
    let listener = HostListener::bind(guest.folder.path().join("sock_77")).unwrap();
    guest.send(Guest::header(77, op::REQUEST), &[]);
    guest.receive();
    let (mut host, _) = listener.accept().unwrap();
    guest.driver.set_up(0);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    guest.provide(0);
    guest.send(Guest::header(77, op::DATA), b"x");
    assert_eq!(guest.receive().0.op, op::RESET);
}

#[test]
fn a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    drop(HostListener::bind(&path).unwrap());
    let vsock = Vsock::new(GUEST, &path).unwrap();
    assert_eq!(Vsock::new(GUEST, &path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    let driver = Driver::start(vsock, 0);
    drop(driver);
    wait_until("the socket to go", || !path.exists());
}
