use super::*;

/// Bytes that a well-behaved guest starts with.
fn hello() -> Vec<u8> {
    let mut bytes = wire::MAGIC.to_vec();
    bytes.extend(frame(kind::HELLO, &wire::STDIN_WINDOW.to_le_bytes()));
    bytes
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = wire::header(kind, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn exit(how: u8, value: u32) -> Vec<u8> {
    frame(kind::EXIT, &wire::write_u8_u32(how, value))
}

/// Everything that a host sees, as text.
fn receive(host: &mut Host, bytes: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut events = Vec::new();
    host.receive(bytes, &mut |event| events.push(format!("{event:?}")))?;
    Ok(events)
}

fn ready() -> Host {
    let mut host = Host::new();
    assert_eq!(receive(&mut host, &hello()).unwrap(), ["Ready"]);
    host
}

/// What the host says to the guest, cut into frames.
fn said(host: &mut Host) -> Vec<(u8, Vec<u8>)> {
    let bytes = host.take_output();
    let mut rest = &bytes[..];
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next(&mut rest).unwrap() {
        frames.push((frame.kind, frame.payload.to_vec()));
    }
    frames
}

#[test]
fn noise_before_the_magic_is_skipped() {
    let mut host = Host::new();
    let mut bytes = b"SeaBIOS\r\n\0\0posada\0posad\xff".to_vec();
    assert!(receive(&mut host, &bytes).unwrap().is_empty());
    assert!(!host.is_ready());
    bytes.clear();
    bytes.push(0);
    bytes.extend(hello());
    assert_eq!(receive(&mut host, &bytes).unwrap(), ["Ready"]);
}

#[test]
fn a_session_may_arrive_byte_by_byte() {
    let mut bytes = hello();
    bytes.extend(frame(kind::STDOUT, b"\0\xff\r\n"));
    bytes.extend(frame(kind::STDERR, b"e"));
    bytes.extend(exit(ending::EXITED, 255));
    let mut host = Host::new();
    let mut events = Vec::new();
    for byte in bytes {
        events.extend(receive(&mut host, &[byte]).unwrap());
    }
    assert_eq!(events, ["Ready", "Stdout([0, 255, 13, 10])", "Stderr([101])", "Ended(Exited(255))"]);
}

#[test]
fn nothing_is_said_before_the_guest_is_ready() {
    let mut host = Host::new();
    host.resize(Size { rows: 1, columns: 2 });
    host.end_stdin();
    assert_eq!(host.send_stdin(b"lost?"), 0);
    assert!(!host.has_output() && host.take_output().is_empty());
    receive(&mut host, &hello()).unwrap();
    assert_eq!(said(&mut host), [(kind::STDIN_EOF, vec![]), (kind::SIZE, vec![1, 0, 2, 0])]);
}

#[test]
fn standard_input_stops_at_the_window_and_goes_on_with_credit() {
    let mut host = ready();
    let input = vec![7; 100_000];
    assert_eq!(host.send_stdin(&input), wire::STDIN_WINDOW as usize);
    assert_eq!(host.stdin_window(), 0);
    assert_eq!(host.send_stdin(&input), 0);
    let sent: usize = said(&mut host).iter().map(|(_, payload)| payload.len()).sum();
    assert_eq!(sent, wire::STDIN_WINDOW as usize);
    let credit = frame(kind::STDIN_CREDIT, &100_u32.to_le_bytes());
    assert_eq!(receive(&mut host, &credit).unwrap(), ["StdinWindow"]);
    assert_eq!(host.send_stdin(&input), 100);
}

#[test]
fn standard_input_that_the_guest_grants_but_never_takes_does_not_pile_up() {
    let mut host = ready();
    let input = vec![7; 100_000];
    let credit = frame(kind::STDIN_CREDIT, &u32::MAX.to_le_bytes());
    let mut taken = 0;
    for _ in 0..1000 {
        receive(&mut host, &credit).unwrap();
        taken += host.send_stdin(&input);
    }
    assert!(taken < 300_000, "{taken} bytes wait for a guest that takes none");
}

#[test]
fn output_beyond_the_window_is_an_error_and_within_it_is_not() {
    let piece = frame(kind::STDOUT, &[b'x'; wire::MAX_PAYLOAD]);
    let mut host = ready();
    for _ in 0..wire::OUTPUT_WINDOW as usize / wire::MAX_PAYLOAD {
        receive(&mut host, &piece).unwrap();
    }
    // The other stream has a window of its own.
    receive(&mut host, &frame(kind::STDERR, b"y")).unwrap();
    let overrun = ProtocolError::Overrun { excess: wire::MAX_PAYLOAD as u32 };
    assert_eq!(receive(&mut host, &piece), Err(overrun));
    assert_eq!(receive(&mut host, &hello()), Err(overrun), "the channel stays lost");
}

#[test]
fn consumed_output_opens_the_window_again() {
    let piece = frame(kind::STDERR, &[b'x'; wire::MAX_PAYLOAD]);
    let mut host = ready();
    for _ in 0..10 * wire::OUTPUT_WINDOW as usize / wire::MAX_PAYLOAD {
        receive(&mut host, &piece).unwrap();
        host.consumed(Stream::Stderr, wire::MAX_PAYLOAD);
        for (kind, payload) in said(&mut host) {
            assert_eq!((kind, payload[0]), (kind::OUTPUT_CREDIT, kind::STDERR));
        }
    }
}

#[test]
fn a_closed_output_is_told_once() {
    let mut host = ready();
    host.close_output(Stream::Stdout);
    host.close_output(Stream::Stdout);
    assert_eq!(said(&mut host), [(kind::OUTPUT_CLOSED, vec![kind::STDOUT])]);
}

#[test]
fn sizes_and_signals_that_wait_are_sent_once_each() {
    let mut host = ready();
    for columns in 0..1000 {
        host.resize(Size { rows: 24, columns });
        host.signal(2);
        host.signal(15);
        host.signal(0);
        host.signal(65);
    }
    let expected = [(kind::SIZE, vec![24, 0, 0xe7, 3]), (kind::SIGNAL, vec![2]), (kind::SIGNAL, vec![15])];
    assert_eq!(said(&mut host), expected);
    assert!(!host.has_output());
}

#[test]
fn endings_become_the_exit_statuses_of_a_shell() {
    let cases = [
        (ending::EXITED, 0, Ending::Exited(0), 0),
        (ending::EXITED, 255, Ending::Exited(255), 255),
        (ending::SIGNALLED, 9, Ending::Signalled(9), 137),
        (ending::SIGNALLED, 64, Ending::Signalled(64), 192),
        (ending::NOT_STARTED, 2, Ending::NotStarted(2), 127),
        (ending::NOT_STARTED, 13, Ending::NotStarted(13), 126),
    ];
    for (how, value, ending, status) in cases {
        let mut host = ready();
        receive(&mut host, &exit(how, value)).unwrap();
        assert_eq!(host.ending(), Some(ending));
        assert_eq!(ending.status(), status);
        assert_eq!(ending.complaint().is_some(), how == ending::NOT_STARTED);
    }
}

#[test]
fn impossible_endings_are_refused() {
    for (how, value) in [(0, 256), (1, 0), (1, 65), (2, u32::MAX), (3, 0)] {
        assert!(receive(&mut ready(), &exit(how, value)).is_err(), "{how} {value}");
    }
}

#[test]
fn bytes_after_the_end_are_ignored() {
    let mut host = ready();
    let mut bytes = exit(ending::EXITED, 0);
    bytes.extend([0xff; 100]);
    assert_eq!(receive(&mut host, &bytes).unwrap(), ["Ended(Exited(0))"]);
    assert!(host.is_stdin_closed());
}

#[test]
fn hostile_frames_are_errors() {
    let cases: [(&[u8], ProtocolError); 5] = [
        (&[2, 1, 0x10], ProtocolError::TooLong { kind: 2, length: 0x1001 }),
        (&[0xee, 0, 0], ProtocolError::UnknownKind { kind: 0xee }),
        (&[kind::STDIN, 0, 0], ProtocolError::UnknownKind { kind: kind::STDIN }),
        // A second hello.
        (&[1, 4, 0, 0, 0, 0, 0], ProtocolError::UnknownKind { kind: 1 }),
        (&[5, 1, 0, 9], ProtocolError::Malformed { kind: 5, length: 1 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(receive(&mut ready(), bytes), Err(error), "{bytes:x?}");
    }
}

#[test]
fn random_bytes_never_panic_and_never_grow_the_host() {
    // A linear congruential generator (Knuth's MMIX constants): the same bytes in every run.
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as u8
    };
    for _ in 0..20_000 {
        let mut host = ready();
        // Valid kinds and short lengths, so that frames are complete now and then.
        let mut bytes = Vec::new();
        for _ in 0..20 {
            let length = random() % 12;
            bytes.extend([random() % 8, length, u8::from(random() == 0) * random()]);
            bytes.extend((0..length).map(|_| random()));
        }
        let _ = receive(&mut host, &bytes);
        host.send_stdin(&[0; 4096]);
        assert!(host.take_output().len() < 8192);
    }
}

#[test]
fn a_guest_that_reboots_opens_again() {
    let mut host = ready();
    host.end_stdin();
    said(&mut host);
    assert_eq!(receive(&mut host, b"\x00pos").unwrap(), [""; 0]);
    assert!(!host.is_ready(), "nobody hears what is said to a machine that restarts");
    let mut rest = wire::MAGIC[4..].to_vec();
    rest.extend(frame(kind::HELLO, &wire::STDIN_WINDOW.to_le_bytes()));
    rest.extend(exit(ending::EXITED, 5));
    assert_eq!(receive(&mut host, &rest).unwrap(), ["Ready", "Ended(Exited(5))"]);
    assert_eq!(said(&mut host), [(kind::STDIN_EOF, vec![])], "the new agent is told what the old one was");
}

#[test]
fn what_was_held_over_a_reboot_is_no_credit_for_the_new_agent() {
    let mut host = ready();
    let window = vec![b'x'; wire::OUTPUT_WINDOW as usize];
    let output: Vec<u8> =
        window.chunks(wire::MAX_PAYLOAD).flat_map(|piece| frame(kind::STDOUT, piece)).collect();
    receive(&mut host, &output).unwrap();
    receive(&mut host, &hello()).unwrap();
    receive(&mut host, &output).unwrap();
    host.consumed(Stream::Stdout, window.len());
    assert_eq!(said(&mut host), [], "the old agent's bytes");
    host.consumed(Stream::Stdout, window.len());
    let credit = wire::write_u8_u32(kind::STDOUT, wire::OUTPUT_WINDOW).to_vec();
    assert_eq!(said(&mut host), [(kind::OUTPUT_CREDIT, credit)]);
}

#[test]
fn a_guest_cannot_make_the_host_hold_more_by_rebooting() {
    let mut host = ready();
    let output = frame(kind::STDERR, &[0; wire::MAX_PAYLOAD]);
    for _ in 0..2 * wire::OUTPUT_WINDOW as usize / wire::MAX_PAYLOAD {
        receive(&mut host, &output).unwrap();
        receive(&mut host, &hello()).unwrap();
    }
    let excess = wire::MAX_PAYLOAD as u32;
    assert_eq!(receive(&mut host, &output), Err(ProtocolError::Overrun { excess }));
}
