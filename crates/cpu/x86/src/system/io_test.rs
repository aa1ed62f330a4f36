//! Ports.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use posada_vcpu::Bus;
use posada_vcpu::x86::gpr::{RAX, RCX, RDI, RDX, RSI};
use posada_vcpu::x86::rflags;

use crate::exception::vector;
use crate::system::fixture::TSS;
use crate::testing::{DATA, Guest, Outcome};

const GP: Option<(u8, Option<u32>)> = Some((vector::GP, Some(0)));

/// Answers with the port's number and counts up; remembers what is written.
#[derive(Default)]
struct Ports {
    reads: Mutex<u32>,
    writes: Mutex<Vec<(u16, Vec<u8>)>>,
}

impl Bus for Ports {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let mut reads = self.reads.lock().expect("nobody panicked");
        *reads += 1;
        let value = u32::from(port) << 8 | *reads;
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.writes.lock().expect("nobody panicked").push((port, data.to_vec()));
    }
}

impl Ports {
    fn written(&self) -> Vec<(u16, Vec<u8>)> {
        self.writes.lock().expect("nobody panicked").clone()
    }

    fn reads(&self) -> u32 {
        *self.reads.lock().expect("nobody panicked")
    }
}

fn ports() -> Arc<Ports> {
    Arc::new(Ports::default())
}

#[test]
fn reads_are_as_wide_as_their_register() {
    let read = |write: fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        Guest::long().bus(ports()).reg(RAX, u64::MAX).reg(RDX, 0x3f8).code(write).run().reg(RAX)
    };
    assert_eq!(read(|a| a.in_(al, 0x80_u32)), 0xffff_ffff_ffff_ff01);
    assert_eq!(read(|a| a.in_(ax, dx)), 0xffff_ffff_ffff_f801);
    assert_eq!(read(|a| a.in_(eax, dx)), 0x0003_f801);
}

#[test]
fn writes_are_as_wide_as_their_register() {
    let board = ports();
    let guest = Guest::long().bus(board.clone()).reg(RAX, 0x1122_3344_5566_7788).reg(RDX, 0xf_1234);
    let outcome = guest.code(|a| {
        a.out(0x80_u32, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)
    });
    assert_eq!(outcome.run().fault(), None);
    let expected = [(0x80, vec![0x88]), (0x1234, vec![0x88, 0x77]), (0x1234, vec![0x88, 0x77, 0x66, 0x55])];
    assert_eq!(board.written(), expected);
}

#[test]
fn strings_go_through_memory() {
    let board = ports();
    let guest = Guest::long()
        .bus(board.clone())
        .memory(DATA, &[1, 2, 3, 4])
        .reg(RSI, DATA)
        .reg(RDI, DATA + 0x100)
        .reg(RCX, 2)
        .reg(RDX, 0x10);
    let outcome = guest.code(|a| {
        a.rep().outsw()?;
        a.mov(ecx, 3)?;
        a.rep().insb()
    });
    let outcome = outcome.run();
    assert_eq!(board.written(), [(0x10, vec![1, 2]), (0x10, vec![3, 4])]);
    assert_eq!((outcome.load::<u32>(DATA + 0x100), board.reads()), (0x0003_0201, 3));
    assert_eq!((outcome.reg(RSI), outcome.reg(RDI), outcome.reg(RCX)), (DATA + 4, DATA + 0x103, 0));
}

#[test]
fn strings_go_down_when_the_direction_flag_is_set() {
    let board = ports();
    let guest = Guest::long().bus(board.clone()).memory(DATA, &[1, 2, 3]).reg(RSI, DATA + 2).reg(RCX, 3);
    let outcome = guest.flags(rflags::DF).code(|a| a.rep().outsb()).run();
    assert_eq!(board.written().concat_values(), [3, 2, 1]);
    assert_eq!(outcome.reg(RSI), DATA - 1);
}

trait Values {
    fn concat_values(&self) -> Vec<u8>;
}

impl Values for Vec<(u16, Vec<u8>)> {
    fn concat_values(&self) -> Vec<u8> {
        self.iter().flat_map(|(_, bytes)| bytes.clone()).collect()
    }
}

#[test]
fn a_repetition_of_nothing_touches_nothing() {
    let board = ports();
    let outcome = Guest::long().bus(board.clone()).reg(RDI, 1 << 46).code(|a| a.rep().insd()).run();
    assert_eq!((outcome.fault(), board.reads()), (None, 0));
}

#[test]
fn sixteen_bit_repetitions_count_in_sixteen_bits() {
    let board = ports();
    let guest = Guest::real().bus(board.clone()).reg(RCX, 0x5_0002).reg(RSI, 0x7_ffff);
    let outcome = guest.code(|a| a.rep().outsb()).run();
    assert_eq!((outcome.fault(), board.written().len()), (None, 2));
    assert_eq!((outcome.reg(RCX), outcome.reg(RSI)), (0x5_0000, 0x7_0001));
}

#[test]
fn a_fault_in_a_repetition_keeps_what_is_done_and_takes_nothing_from_the_device() {
    let board = ports();
    // The first GiB is mapped: one doubleword fits, the second does not.
    let end = 1_u64 << 30;
    let guest = Guest::long().bus(board.clone()).reg(RCX, 5).reg(RDI, end - 4).code(|a| a.rep().insd());
    let outcome = guest.run();
    assert_eq!(outcome.fault(), Some((vector::PF, Some(2))));
    assert_eq!((outcome.reg(RCX), outcome.reg(RDI), board.reads()), (4, end, 1));
}

#[test]
fn interrupts_can_come_between_the_rounds_of_a_long_repetition() {
    let guest = Guest::long().bus(ports()).reg(RCX, 100_000).reg(RSI, DATA).code(|a| a.rep().outsb());
    let mut interpreter = guest.interpreter();
    interpreter.single_step().expect_err("the block is left");
    let state = posada_vcpu::Vcpu::state(&interpreter);
    assert!(state.gpr[RCX] > 0 && state.gpr[RCX] < 100_000, "{}", state.gpr[RCX]);
    assert_eq!(state.rip, crate::testing::CODE);
}

/// User-mode code with a task whose bitmap begins at 0x68 and denies all ports but some.
fn with_bitmap(allowed: &[u16], limit: u32) -> Guest {
    let mut bitmap = [0xff_u8; 32];
    for port in allowed {
        bitmap[usize::from(port / 8)] &= !(1 << (port % 8));
    }
    let guest = Guest::user().bus(ports()).with_system();
    guest.memory(TSS + 0x66, &0x68_u16.to_le_bytes()).memory(TSS + 0x68, &bitmap).with(|state| {
        state.segments.tr.limit = limit;
    })
}

fn read_port(guest: Guest, port: u64, width: u32) -> Outcome {
    let guest = guest.reg(RDX, port);
    match width {
        1 => guest.code(|a| a.in_(al, dx)).run(),
        2 => guest.code(|a| a.in_(ax, dx)).run(),
        _ => guest.code(|a| a.in_(eax, dx)).run(),
    }
}

#[test]
fn programs_use_the_ports_that_their_task_may() {
    let guest = || with_bitmap(&[0x10, 0x11, 0x17, 0x18], 0x88);
    assert_eq!(read_port(guest(), 0x10, 1).fault(), None);
    assert_eq!(read_port(guest(), 0x10, 2).fault(), None);
    assert_eq!(read_port(guest(), 0x10, 4).fault(), GP);
    assert_eq!(read_port(guest(), 0x12, 1).fault(), GP);
    assert_eq!(read_port(guest(), 0x17, 2).fault(), None, "across two bytes of the bitmap");
    assert_eq!(read_port(guest(), 0x18, 2).fault(), GP);
}

#[test]
fn ports_beyond_the_bitmap_are_denied() {
    // The last byte that the limit covers is only ever the second one to be looked at.
    assert_eq!(read_port(with_bitmap(&[0x10], 0x6b), 0x10, 1).fault(), None);
    assert_eq!(read_port(with_bitmap(&[0x10], 0x6a), 0x10, 1).fault(), GP);
    assert_eq!(read_port(with_bitmap(&[0x10], 0x66), 0x10, 1).fault(), GP);
    assert_eq!(
        read_port(with_bitmap(&[0x10], 0x88).with(|s| s.segments.tr.attributes = 0), 0x10, 1).fault(),
        GP
    );
}

#[test]
fn a_program_with_enough_iopl_asks_no_bitmap() {
    let guest = with_bitmap(&[], 0x67).flags(rflags::IOPL);
    assert_eq!(read_port(guest, 0x10, 1).fault(), None);
}

#[test]
fn virtual_8086_mode_asks_the_bitmap_whatever_its_iopl() {
    let guest = |limit: u32| {
        let guest = Guest::v8086().with_system().bus(ports()).with(|state| state.segments.tr.limit = limit);
        guest.memory(TSS + 0x66, &0x68_u16.to_le_bytes()).bytes(&[0xec]).run().fault()
    };
    assert_eq!(guest(0x67), GP);
    assert_eq!(guest(0x88), None);
}
