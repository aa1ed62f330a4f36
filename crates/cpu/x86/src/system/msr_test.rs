//! Model-specific registers, time and performance counters.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RBX, RCX, RDX};
use posada_vcpu::x86::{cr4, efer};
use posada_vcpu::{Interrupts, MsrError};

use crate::exception::vector;
use crate::testing::{DATA, Guest, Outcome};

const GP: Option<(u8, Option<u32>)> = Some((vector::GP, Some(0)));
const EFER: u32 = 0xc000_0080;

fn read(guest: Guest, number: u32) -> Result<u64, Option<(u8, Option<u32>)>> {
    let outcome = guest.reg(RCX, number.into()).code(|a| a.rdmsr()).run();
    match outcome.fault() {
        None => Ok(outcome.reg(RDX) << 32 | outcome.reg(RAX)),
        fault => Err(fault),
    }
}

fn write(guest: Guest, number: u32, value: u64) -> Outcome {
    guest
        .reg(RCX, number.into())
        .reg(RAX, value & 0xffff_ffff)
        .reg(RDX, value >> 32)
        .code(|a| a.wrmsr())
        .run()
}

/// What a register reads as after a write.
fn written(number: u32, value: u64) -> Result<u64, Option<(u8, Option<u32>)>> {
    let outcome = write(Guest::long(), number, value);
    if outcome.fault().is_some() {
        return Err(outcome.fault());
    }
    read(Guest::long().with(|state| *state = outcome.state.clone()).with(|s| s.rip = 0x8000), number)
}

#[test]
fn a_register_that_does_not_exist_is_a_general_protection_fault() {
    for number in [0x3, 0xc1, 0x186, 0x48, 0x10a, 0x480, 0xda0, 0xc000_0200, 0xc001_0200, 0xc001_1030] {
        assert_eq!(read(Guest::long(), number), Err(GP), "{number:#x}");
        assert_eq!(write(Guest::long(), number, 0).fault(), GP, "{number:#x}");
    }
}

#[test]
fn model_specific_registers_are_the_kernels() {
    assert_eq!(read(Guest::user(), EFER), Err(GP));
    assert_eq!(write(Guest::user(), EFER, 0).fault(), GP);
    assert_eq!(read(Guest::v8086(), EFER), Err(GP));
}

#[test]
fn reads_clear_the_upper_halves() {
    let guest = Guest::long().with(|state| state.msrs.star = 0x1234_5678_9abc_def0).reg(RCX, 0xc000_0081);
    let outcome = guest.reg(RAX, u64::MAX).reg(RDX, u64::MAX).code(|a| a.rdmsr()).run();
    assert_eq!((outcome.reg(RAX), outcome.reg(RDX)), (0x9abc_def0, 0x1234_5678));
}

#[test]
fn efer_keeps_lma_and_refuses_what_it_lacks() {
    let own = efer::LME | efer::LMA | efer::NXE;
    assert_eq!(written(EFER, own | efer::SCE), Ok(own | efer::SCE));
    assert_eq!(written(EFER, own & !efer::LMA), Ok(own), "LMA follows from paging");
    assert_eq!(written(EFER, own & !efer::LME), Err(GP), "paging is on");
    for bit in [efer::SVME, efer::FFXSR, 1 << 1, 1 << 9, 1 << 15, 1 << 63] {
        assert_eq!(written(EFER, own | bit), Err(GP), "{bit:#x}");
    }
    let outcome = write(Guest::protected(), EFER, efer::LMA);
    assert_eq!((outcome.fault(), outcome.state.msrs.efer), (None, 0), "LMA cannot be written");
}

#[test]
fn addresses_must_be_canonical() {
    for number in [0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102] {
        assert_eq!(written(number, 0xffff_8000_0000_0000), Ok(0xffff_8000_0000_0000), "{number:#x}");
        assert_eq!(written(number, 0x8000_0000_0000), Err(GP), "{number:#x}");
    }
}

#[test]
fn a_base_that_is_written_counts_at_once() {
    let guest = Guest::long()
        .memory(DATA + 8, &0x1234_5678_u64.to_le_bytes())
        .reg(RCX, 0xc000_0100)
        .reg(RAX, DATA)
        .code(|a| {
            a.wrmsr()?;
            a.mov(rbx, qword_ptr(8).fs())
        });
    assert_eq!(guest.run().reg(RBX), 0x1234_5678);
}

#[test]
fn memory_types_must_exist() {
    const PAT: u32 = 0x277;
    assert_eq!(written(PAT, 0x0007_0406_0105_0407), Ok(0x0007_0406_0105_0407));
    for value in [2, 3 << 16, 8 << 56] {
        assert_eq!(written(PAT, value), Err(GP), "{value:#x}");
    }
    // The default type: enabled, with fixed ranges, write-back.
    assert_eq!(written(0x2ff, 0xc06), Ok(0xc06));
    for value in [2, 7, 0x100, 0x1000] {
        assert_eq!(written(0x2ff, value), Err(GP), "{value:#x}");
    }
    assert_eq!(written(0x250, 0x0606_0606_0606_0606), Ok(0x0606_0606_0606_0606));
    assert_eq!(written(0x26f, 0x0706_0606_0606_0606), Err(GP));
}

#[test]
fn variable_ranges_keep_their_reserved_bits_clear() {
    assert_eq!(written(0x200, 0xe000_0006), Ok(0xe000_0006));
    assert_eq!(written(0x20f, 0xff_e000_0800), Ok(0xff_e000_0800));
    assert_eq!(written(0x200, 0xe000_0106), Err(GP));
    assert_eq!(written(0x200, 1 << 40), Err(GP));
    assert_eq!(written(0x201, 0x400), Err(GP));
    assert_eq!(written(0x210, 0), Err(GP), "there are eight");
    assert_eq!(read(Guest::long(), 0xfe), Ok(0x508));
}

#[test]
fn machine_check_banks_are_there_and_never_report() {
    let banks = read(Guest::long(), 0x179).expect("the capabilities can be read") & 0xff;
    for number in 0x400..0x400 + 4 * banks as u32 {
        assert_eq!(read(Guest::long(), number), Ok(0), "{number:#x}");
    }
    assert_eq!(written(0x401, 0), Ok(0));
    assert_eq!(written(0x401, 1), Err(GP));
    assert_eq!(read(Guest::long(), 0x400 + 4 * banks as u32), Err(GP));
}

#[test]
fn the_time_stamp_counter_can_be_set_in_two_ways_that_agree() {
    let outcome = write(Guest::long(), 0x3b, 1000);
    assert_eq!((outcome.state.msrs.tsc_offset, outcome.state.msrs.tsc_adjust), (1000, 1000));
    let outcome = write(Guest::long(), 0x10, 1 << 60);
    assert_eq!(outcome.state.msrs.tsc_offset, outcome.state.msrs.tsc_adjust);
    assert!(outcome.state.msrs.tsc_offset > 1 << 59);
}

#[test]
fn time_stamps_carry_what_the_system_has_put_there() {
    let guest = Guest::user()
        .with(|state| {
            state.msrs.tsc_aux = 0x77;
            state.msrs.tsc_offset = 1 << 40;
        })
        .code(|a| {
            a.rdtscp()?;
            a.rdpid(rbx)
        });
    let outcome = guest.run();
    assert_eq!((outcome.fault(), outcome.reg(RCX), outcome.reg(RBX)), (None, 0x77, 0x77));
    assert!(outcome.reg(RDX) >= 1 << 8);
}

#[test]
fn time_can_be_kept_from_programs() {
    let denied = |guest: Guest| guest.with(|state| state.cr4 |= cr4::TSD);
    assert_eq!(denied(Guest::user()).code(|a| a.rdtsc()).run().fault(), GP);
    assert_eq!(denied(Guest::user()).code(|a| a.rdtscp()).run().fault(), GP);
    assert_eq!(denied(Guest::long()).code(|a| a.rdtsc()).run().fault(), None);
    assert_eq!(Guest::user().code(|a| a.rdtsc()).run().fault(), None);
}

#[test]
fn performance_counters_stand_still() {
    let outcome = Guest::long().reg(RCX, 3).code(|a| a.rdpmc()).run();
    assert_eq!((outcome.fault(), outcome.reg(RAX), outcome.reg(RDX)), (None, 0, 0));
    assert_eq!(Guest::long().reg(RCX, 4).code(|a| a.rdpmc()).run().fault(), GP);
    assert_eq!(Guest::user().code(|a| a.rdpmc()).run().fault(), GP);
    let allowed = Guest::user().with(|state| state.cr4 |= cr4::PCE);
    assert_eq!(allowed.code(|a| a.rdpmc()).run().fault(), None);
}

#[derive(Default)]
struct Apic(Mutex<Vec<(u32, u64)>>);

impl Interrupts for Apic {
    fn pending(&self) -> bool {
        false
    }

    fn acknowledge(&self) -> Option<u8> {
        None
    }

    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        if msr == 0x8ff { Err(MsrError) } else { Ok(u64::from(msr) << 32 | 5) }
    }

    fn write_msr(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        self.0.lock().expect("nobody panicked").push((msr, value));
        if value == 666 { Err(MsrError) } else { Ok(()) }
    }
}

#[test]
fn registers_of_the_local_apic_go_there() {
    let apic = Arc::new(Apic::default());
    let guest = || Guest::long().interrupts(apic.clone());
    for number in [0x1b, 0x800, 0x83f] {
        assert_eq!(read(guest(), number), Ok(u64::from(number) << 32 | 5));
        assert_eq!(write(guest(), number, 1 << 40).fault(), None);
        assert_eq!(apic.0.lock().expect("nobody panicked").pop(), Some((number, 1 << 40)));
    }
    assert_eq!(read(guest(), 0x8ff), Err(GP));
    assert_eq!(write(guest(), 0x80b, 666).fault(), GP);
}

/// A timer with a deadline.
#[derive(Default)]
struct Timer(Mutex<u64>);

impl Interrupts for Timer {
    fn pending(&self) -> bool {
        false
    }

    fn acknowledge(&self) -> Option<u8> {
        None
    }

    fn read_msr(&self, _: u32) -> Result<u64, MsrError> {
        Ok(*self.0.lock().expect("nobody panicked"))
    }

    fn write_msr(&self, _: u32, value: u64) -> Result<(), MsrError> {
        *self.0.lock().expect("nobody panicked") = value;
        Ok(())
    }
}

#[test]
fn the_timers_deadline_is_in_the_guests_own_time() {
    let timer = Arc::new(Timer::default());
    let deadline = || *timer.0.lock().expect("nobody panicked");
    let guest = || Guest::long().interrupts(timer.clone()).with(|state| state.msrs.tsc_offset = 1000);
    assert_eq!(read(guest(), 0x6e0), Ok(0));
    assert_eq!(write(guest(), 0x6e0, 1 << 40).fault(), None);
    assert_eq!((deadline(), read(guest(), 0x6e0)), ((1 << 40) - 1000, Ok(1 << 40)));
    // It stays where it is when the counter moves on.
    assert_eq!(write(guest(), 0x3b, 500).fault(), None);
    assert_eq!(deadline(), (1 << 40) - 1500);
    // One that is long past comes at once; 0 turns it off.
    assert_eq!(write(guest(), 0x6e0, 999).fault(), None);
    assert_eq!(deadline(), 1);
    assert_eq!(write(guest(), 0x6e0, 0).fault(), None);
    assert_eq!(deadline(), 0);
}
