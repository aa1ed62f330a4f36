//! Serial ports.

use iced_x86::code_asm::*;
use posada_pc::{Ended, Outcome, Port};

use crate::guest::{CONSOLE, DATA, Guest, Screen, machine, run, run_built};

fn print(a: &mut Guest, port: u16, text: &str) -> Result<(), IcedError> {
    text.bytes().try_for_each(|byte| a.out_byte(port, byte))
}

#[test]
fn what_a_guest_writes_comes_out_of_the_right_port() {
    let (first, second) = (Screen::default(), Screen::default());
    let builder = machine(|a| {
        print(a, 0x3f8, "hello, world\n")?;
        print(a, 0x2f8, "agent")?;
        a.exit(0)
    });
    let builder = builder.serial(Port::Com1, first.clone()).serial(Port::Com2, second.clone());
    assert_eq!(run(builder), Outcome::DebugExit(1));
    assert_eq!((first.text().as_str(), second.text().as_str()), ("hello, world\n", "agent"));
}

#[test]
fn output_without_a_newline_appears_while_the_guest_is_busy_or_halts() {
    for busy in [true, false] {
        let screen = Screen::default();
        let mut pc = machine(|a| {
            print(a, 0x3f8, "login: ")?;
            let mut forever = a.create_label();
            a.set_label(&mut forever)?;
            if !busy {
                a.hlt()?;
            }
            a.jmp(forever)
        })
        .serial(CONSOLE, screen.clone())
        .build()
        .unwrap();
        let handle = pc.handle();
        std::thread::spawn(move || {
            while screen.text() != "login: " {
                std::thread::yield_now();
            }
            handle.stop();
        });
        assert_eq!(run_built(&mut pc), Outcome::Stopped, "busy: {busy}");
    }
}

#[test]
fn a_flood_of_input_arrives_complete_and_in_order() {
    const BYTES: usize = 20_000;
    let screen = Screen::default();
    let mut pc = machine(|a| {
        // Echo until a zero byte comes.
        let mut next = a.create_label();
        a.set_label(&mut next)?;
        a.in_byte(0x3fd)?;
        a.test(al, 1)?;
        a.jz(next)?;
        a.in_byte(0x3f8)?;
        a.test(al, al)?;
        let mut end = a.create_label();
        a.jz(end)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        a.exit(1)
    })
    .serial(CONSOLE, screen.clone())
    .build()
    .unwrap();
    let sent: String = (0..BYTES).map(|at| char::from(b'!' + (at % 90) as u8)).collect();
    let (handle, text) = (pc.handle(), sent.clone());
    let sender = std::thread::spawn(move || {
        handle.send_serial(CONSOLE, text.as_bytes())?;
        handle.send_serial(CONSOLE, &[0])
    });
    assert_eq!(run_built(&mut pc), Outcome::DebugExit(3));
    assert_eq!(sender.join().unwrap(), Ok(()));
    assert_eq!(screen.text(), sent);
}

#[test]
fn a_sender_learns_that_the_guest_has_ended() {
    let mut pc = machine(|a| a.exit(0)).build().unwrap();
    let handle = pc.handle();
    let room = handle.try_send_serial(CONSOLE, &vec![b'x'; 100_000]);
    assert!((1..100_000).contains(&room), "the queue has an end: {room}");
    assert_eq!(handle.try_send_serial(CONSOLE, b"y"), 0);
    // Nobody reads; this waits until the guest has ended, unless it has already.
    let sender = std::thread::spawn(move || handle.send_serial(CONSOLE, b"z"));
    run_built(&mut pc);
    assert_eq!(sender.join().unwrap(), Err(Ended));
}

#[test]
fn received_bytes_interrupt() {
    let mut pc = machine(|a| {
        let mut wait = a.create_label();
        a.set_up_pic(0xef, 0xff)?;
        // FIFOs on, OUT2 and RTS, interrupt when there is something to read.
        a.out_byte(0x3fa, 0x01)?;
        a.out_byte(0x3fc, 0x0b)?;
        a.out_byte(0x3f9, 0x01)?;
        a.set_label(&mut wait)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.cmp(dword_ptr(DATA), 3)?;
        a.jb(wait)?;
        a.mov(al, byte_ptr(DATA + 4))?;
        a.exit_with_al()?;
        // The request stays up while there is more, and another edge comes only after it has fallen.
        a.handler(0x24)?;
        let (mut next, mut end) = (a.create_label(), a.create_label());
        a.nop()?;
        a.set_label(&mut next)?;
        a.in_byte(0x3fd)?;
        a.test(al, 1)?;
        a.jz(end)?;
        a.in_byte(0x3f8)?;
        a.inc(dword_ptr(DATA))?;
        a.add(byte_ptr(DATA + 4), al)?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        a.out_byte(0x20, 0x20)?;
        a.iretd()
    })
    .build()
    .unwrap();
    let handle = pc.handle();
    std::thread::spawn(move || {
        for byte in [1, 2, 4] {
            handle.send_serial(CONSOLE, &[byte]).unwrap();
        }
    });
    assert_eq!(run_built(&mut pc), Outcome::DebugExit(7 << 1 | 1));
}
