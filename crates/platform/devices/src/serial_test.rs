use super::*;
use crate::line::test_line::Probe;
use std::sync::{Arc, Mutex};

const LSR_DATA_READY: u8 = 0x01;

/// What the port has written out, in pieces as they came.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<Vec<u8>>>>);

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().concat()).unwrap()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn port() -> (Serial<Probe>, Probe, Screen) {
    let (line, screen) = (Probe::default(), Screen::default());
    (Serial::new(line.clone(), Box::new(screen.clone())), line, screen)
}

/// A port whose guest has enabled FIFO and receive interrupt.
fn listening() -> (Serial<Probe>, Probe, Screen) {
    let (mut port, line, screen) = port();
    port.write(IIR_FCR, FCR_ENABLE | 0x80); // trigger at 8
    port.write(IER, IER_RECEIVED);
    (port, line, screen)
}

fn print(port: &mut Serial<Probe>, text: &str) {
    for byte in text.bytes() {
        port.write(DATA, byte);
    }
}

/// Reads as a driver does: while data is ready.
fn drain(port: &mut Serial<Probe>) -> Vec<u8> {
    std::iter::from_fn(|| (port.read(LSR) & LSR_DATA_READY != 0).then(|| port.read(DATA))).collect()
}

// Output.

#[test]
fn output_appears_by_the_line_in_one_piece() {
    let (mut port, _, screen) = port();
    print(&mut port, "Hello, ");
    assert_eq!(screen.text(), "");
    print(&mut port, "world\nand");
    assert_eq!(*screen.0.lock().unwrap(), [b"Hello, world\n".to_vec()]);
    port.flush();
    assert_eq!(screen.text(), "Hello, world\nand");
}

#[test]
fn output_appears_when_the_driver_has_no_more_to_send() {
    let (mut port, _, screen) = port();
    port.write(IER, IER_RECEIVED | IER_TRANSMITTER_EMPTY);
    print(&mut port, "$ ");
    port.write(IER, IER_RECEIVED);
    assert_eq!(screen.text(), "$ ");
}

#[test]
fn long_output_without_lines_is_not_collected_for_ever() {
    let (mut port, _, screen) = port();
    print(&mut port, &"x".repeat(10_000));
    assert_eq!(screen.text().len(), 2 * OUTPUT_LIMIT);
}

#[test]
fn the_transmitter_is_always_empty() {
    let (mut port, _, _) = port();
    print(&mut port, "x");
    assert_eq!(port.read(LSR), 0x60);
}

#[test]
fn output_that_fails_is_told_and_does_not_stop_the_guest() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut port = Serial::new(Probe::default(), Box::new(Broken));
    print(&mut port, "a\nb\n");
    assert_eq!(port.take_output_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    assert!(port.take_output_error().is_none());
    assert_eq!(port.read(LSR), 0x60);
}

#[test]
fn the_divisor_hides_data_and_interrupt_enables() {
    let (mut port, _, screen) = port();
    port.write(IER, IER_LINE_STATUS);
    port.write(LCR, LCR_DLAB | 3);
    port.write(0, 0x0c);
    port.write(1, 0x01);
    assert_eq!((port.read(0), port.read(1)), (0x0c, 0x01));
    port.write(LCR, 3);
    assert_eq!(port.read(IER), IER_LINE_STATUS);
    port.flush();
    assert_eq!(screen.text(), "");
}

// Input.

#[test]
fn more_input_than_the_fifo_holds_is_not_lost() {
    let (mut port, line, _) = listening();
    let input: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    port.receive(&input);
    assert!(line.level());
    assert_eq!(port.waiting(), input.len() - FIFO_DEPTH);
    assert_eq!(drain(&mut port), input);
    assert_eq!(port.waiting(), 0);
    assert!(!line.level());
}

#[test]
fn input_waits_while_the_guest_does_not_listen() {
    let (mut port, line, _) = port();
    port.receive(b"early");
    assert_eq!(drain(&mut port), b"", "a driver that clears what is there finds nothing");
    port.write(IIR_FCR, 0x07);
    port.write(IIR_FCR, 0x01);
    port.write(MCR, 0x0b);
    assert_eq!(drain(&mut port), b"early");
    // The guest closes the port and opens it again.
    port.write(MCR, 0);
    port.receive(b"typed ahead");
    assert_eq!(drain(&mut port), b"");
    port.write(IER, IER_RECEIVED);
    assert!(line.level());
    assert_eq!(drain(&mut port), b"typed ahead");
}

#[test]
fn a_guest_that_polls_and_sets_nothing_gets_its_input() {
    let (mut port, _, _) = port();
    port.receive(b"ok");
    let polls = (0..100).take_while(|_| port.read(LSR) & LSR_DATA_READY == 0).count();
    assert!(polls < 100);
    assert_eq!(drain(&mut port), b"ok");
}

#[test]
fn a_guest_that_polls_to_print_does_not_swallow_input() {
    let (mut port, _, _) = port();
    port.receive(b"kept");
    for byte in "a long boot message\n".bytes() {
        assert_eq!(port.read(LSR) & LSR_DATA_READY, 0);
        port.write(DATA, byte);
    }
    assert_eq!(port.waiting(), 4);
}

#[test]
fn a_guest_that_polls_and_echoes_goes_on_getting_input() {
    let (mut port, _, _) = port();
    port.receive(b"0123456789");
    while port.read(LSR) & LSR_DATA_READY == 0 {}
    for expected in b"0123456789" {
        assert_ne!(port.read(LSR) & LSR_DATA_READY, 0);
        let byte = port.read(DATA);
        assert_eq!(byte, *expected);
        port.write(DATA, byte);
    }
}

#[test]
fn input_and_loopback_stay_apart() {
    let (mut port, _, _) = listening();
    port.receive(b"in");
    port.write(MCR, MCR_LOOP);
    port.write(DATA, b'x');
    port.write(DATA, b'y');
    assert_eq!(port.read(DATA), b'x');
    port.write(MCR, 0);
    assert_eq!(drain(&mut port), b"in");
}

#[test]
fn without_the_fifo_one_byte_is_held() {
    let (mut port, _, _) = port();
    port.write(IER, IER_RECEIVED);
    port.receive(b"abc");
    assert_eq!(port.waiting(), 2);
    assert_eq!(drain(&mut port), b"abc");
}

#[test]
fn clearing_the_receive_fifo_empties_it() {
    let (mut port, line, _) = listening();
    port.receive(b"abc");
    port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    assert!(!line.level());
    assert_eq!(drain(&mut port), b"");
}

#[test]
fn clearing_the_fifo_works_behind_the_divisor() {
    let (mut port, _, _) = listening();
    port.receive(b"abc");
    port.write(LCR, LCR_DLAB);
    port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    port.write(LCR, 3);
    assert_eq!(drain(&mut port), b"");
}

#[test]
fn a_break_comes_at_its_place_with_a_zero() {
    let (mut port, _, _) = listening();
    port.receive(b"a");
    port.receive_break();
    port.receive(b"h");
    assert_eq!(port.read(LSR) & (LSR_BREAK | LSR_DATA_READY), LSR_DATA_READY);
    assert_eq!(port.read(DATA), b'a');
    let status = port.read(LSR);
    assert_eq!(
        status & (LSR_BREAK | LSR_DATA_READY | LSR_FIFO_ERROR),
        LSR_BREAK | LSR_DATA_READY | LSR_FIFO_ERROR
    );
    assert_eq!(port.read(DATA), 0);
    assert_eq!(port.read(LSR) & LSR_BREAK, 0);
    assert_eq!(port.read(DATA), b'h');
}

// Interrupts.

#[test]
fn the_receive_interrupt_lasts_until_the_fifo_is_empty() {
    let (mut port, line, _) = listening();
    port.receive(b"ab");
    assert!(line.level());
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_TIMEOUT, "below the trigger level");
    assert!(line.level(), "reading the IIR ends it not");
    port.read(DATA);
    assert!(line.level());
    port.read(DATA);
    assert!(!line.level());
    assert_eq!(port.read(IIR_FCR), IIR_FIFO_ENABLED | IIR_NONE);
    port.receive(b"12345678");
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_RECEIVED);
}

#[test]
fn masking_and_unmasking_shows_what_is_still_there() {
    // As the Linux console does around each message.
    let (mut port, line, _) = listening();
    port.receive(b"x");
    port.write(IER, 0);
    assert!(!line.level());
    port.write(IER, IER_RECEIVED);
    assert!(line.level());
}

#[test]
fn the_transmitter_interrupt_comes_when_enabled_and_after_each_byte() {
    let (mut port, line, _) = port();
    port.write(IER, IER_TRANSMITTER_EMPTY);
    assert!(line.level());
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_TRANSMITTER_EMPTY);
    assert!(!line.level(), "reading the IIR acknowledges it");
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_NONE);
    port.write(DATA, b'x');
    assert!(line.level());
    // Off and on again brings it back, which Linux tests to find chips where it does not.
    port.read(IIR_FCR);
    port.write(IER, 0);
    port.write(IER, IER_TRANSMITTER_EMPTY);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_TRANSMITTER_EMPTY);
}

#[test]
fn priorities_are_line_status_data_transmitter_modem() {
    let (mut port, _, _) = port();
    port.write(IIR_FCR, FCR_ENABLE);
    port.write(MCR, 0x02);
    port.write(MCR, MCR_LOOP | 0x02); // all modem inputs change
    port.write(MCR, 0x02);
    port.receive_break();
    port.write(IER, IER_MASK);
    let mut seen = Vec::new();
    for read in [LSR, DATA, IIR_FCR, MSR] {
        let id = port.pending();
        seen.push(id);
        port.read(read);
    }
    assert_eq!(seen, [IIR_LINE_STATUS, IIR_RECEIVED, IIR_TRANSMITTER_EMPTY, IIR_MODEM_STATUS]);
    assert_eq!(port.pending(), IIR_NONE);
}

// What Linux's 8250 driver looks at to tell what chip this is.

#[test]
fn linux_finds_a_16550a() {
    let (mut port, line, screen) = port();
    port.receive(b"typed ahead");
    // The interrupt enables take four bits.
    let saved = port.read(IER);
    port.write(IER, 0);
    assert_eq!(port.read(IER) & 0x0f, 0);
    port.write(IER, 0x0f);
    assert_eq!(port.read(IER) & 0x0f, 0x0f);
    port.write(IER, saved);
    // Loopback: RTS and OUT2 come back as CTS and DCD.
    let mcr = port.read(MCR);
    port.write(MCR, 0x10 | 0x0a);
    assert_eq!(port.read(MSR) & 0xf0, 0x90);
    port.write(MCR, mcr);
    // The FIFO bits tell a 16550A.
    port.write(LCR, 0xbf);
    port.write(IIR_FCR, 0);
    port.write(LCR, 0);
    port.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(port.read(IIR_FCR) >> 6, 3);
    // Not a successor with an enhanced feature register: that offset is the IIR, which is not 0.
    port.write(LCR, LCR_DLAB);
    assert_ne!(port.read(2), 0);
    port.write(LCR, 0xbf);
    assert_ne!(port.read(2), 0);
    // Not a National SuperIO: bank 2 does not mirror the loop bit.
    port.write(LCR, 0);
    let mcr = port.read(MCR);
    port.write(LCR, 0xe0);
    let before = port.read(2);
    if (before ^ mcr) & MCR_LOOP == 0 {
        port.write(LCR, 0);
        port.write(MCR, mcr ^ MCR_LOOP);
        port.write(LCR, 0xe0);
        let after = port.read(2);
        port.write(LCR, 0);
        port.write(MCR, mcr);
        assert_eq!((after ^ mcr) & MCR_LOOP, 0);
    }
    // Not a TI16750: no 64-byte FIFO.
    port.write(LCR, 0);
    port.write(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(port.read(IIR_FCR) >> 5, 6);
    port.write(LCR, LCR_DLAB);
    port.write(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(port.read(IIR_FCR) >> 5, 6);
    port.write(LCR, 0);
    // Not an XScale: there is no UUE bit.
    port.write(IER, 0x40);
    assert_eq!(port.read(IER) & 0x40, 0);
    // The FIFO's size, by the loopback.
    port.write(IIR_FCR, FCR_ENABLE | 0x06);
    port.write(MCR, MCR_LOOP);
    port.write(LCR, LCR_DLAB);
    port.write(0, 1);
    port.write(1, 0);
    port.write(LCR, 3);
    for byte in 0..=255 {
        port.write(DATA, byte);
    }
    assert_eq!(drain(&mut port).len(), 16);
    port.write(MCR, mcr);
    // None of it was printed, interrupted, or cost input.
    port.flush();
    assert_eq!(screen.text(), "");
    assert!(!line.level());
    assert_eq!(port.waiting(), 11);
}

#[test]
fn the_scratch_register_scratches() {
    let (mut port, _, _) = port();
    for value in [0x55, 0xaa] {
        port.write(SCR, value);
        assert_eq!(port.read(SCR), value);
    }
}

#[test]
fn a_terminal_is_connected() {
    let (mut port, _, _) = port();
    assert_eq!(port.read(MSR), 0xb0, "carrier, data set ready, clear to send");
}

#[test]
fn modem_changes_are_noted_until_read() {
    let (mut port, _, _) = port();
    port.write(MCR, MCR_LOOP | 0x04); // OUT1 is ring
    assert_eq!(port.read(MSR), 0x40 | 0x0b, "three fell; ring began, which is no change yet");
    port.write(MCR, MCR_LOOP);
    assert_eq!(port.read(MSR), 0x04, "ring ended");
    assert_eq!(port.read(MSR), 0);
}

#[test]
fn too_much_in_the_loopback_is_an_overrun() {
    let (mut port, _, _) = port();
    port.write(MCR, MCR_LOOP);
    port.write(DATA, 1);
    port.write(DATA, 2);
    assert_eq!(port.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
    assert_eq!(port.read(LSR) & LSR_OVERRUN, 0, "told once");
    assert_eq!(drain(&mut port), [1]);
}

#[test]
fn offsets_past_the_registers_are_absent() {
    let (mut port, _, _) = port();
    port.write(8, 1);
    assert_eq!(port.read(8), 0xff);
    assert_eq!(port.read(255), 0xff);
}

#[test]
fn the_state_goes_through_a_file() {
    let (mut port, _, _) = listening();
    port.write(LCR, 3);
    port.write(SCR, 0x77);
    port.receive(b"0123456789abcdefghij");
    port.receive_break();
    let text = serde_json::to_string(&port.state()).unwrap();
    let line = Probe::default();
    let mut restored =
        Serial::from_state(&serde_json::from_str(&text).unwrap(), line.clone(), Box::new(io::sink()))
            .unwrap();
    assert_eq!(restored.state(), port.state());
    assert_eq!(line.edges(), 0);
    assert_eq!(drain(&mut restored), b"0123456789abcdefghij\0");
}

#[test]
fn an_impossible_state_is_refused() {
    let (port, line, _) = port();
    let mut state = port.state();
    state.fifo = vec![0; 17];
    assert!(Serial::from_state(&state, line, Box::new(io::sink())).is_err());
}

#[test]
fn reset_keeps_waiting_input_and_prints_what_was_collected() {
    let (mut port, line, screen) = listening();
    port.receive(b"01234567890123456789");
    print(&mut port, "bye");
    port.reset();
    assert_eq!(screen.text(), "bye");
    assert!(!line.level());
    assert_eq!(port.read(IER), 0);
    assert_eq!(port.waiting(), 4);
}
