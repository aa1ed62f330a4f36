//! Several processors.

use iced_x86::code_asm::*;
use posada_pc::Outcome;

use crate::guest::{DATA, Guest, machine, run};

const LAPIC: u32 = 0xfee0_0000;
/// The page at which started processors begin, in real mode.
const START: u32 = 0x8000;

/// INIT, then start-up, to all other processors.
fn start_others(a: &mut Guest) -> Result<(), IcedError> {
    a.store(LAPIC + 0xf0, 0x1ff)?;
    a.store(LAPIC + 0x300, 3 << 18 | 1 << 14 | 5 << 8)?;
    a.store(LAPIC + 0x300, 3 << 18 | 1 << 14 | 6 << 8 | START >> 12)
}

#[test]
fn other_processors_wait_until_they_are_started() {
    let builder = machine(|a| {
        // Real-mode code: `lock inc dword [0x7000]; cli; hlt`.
        for (at, byte) in (START..).zip([0xf0u8, 0x66, 0xff, 0x06, 0x00, 0x70, 0xfa, 0xf4]) {
            a.mov(byte_ptr(at), u32::from(byte) as i32)?;
        }
        a.mov(eax, dword_ptr(0x7000))?;
        a.mov(dword_ptr(DATA), eax)?;
        start_others(a)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(0x7000), 3)?;
        a.jb(wait)?;
        // Nobody ran before.
        a.mov(al, byte_ptr(DATA))?;
        a.exit_with_al()
    });
    assert_eq!(run(builder.cpus(4)), Outcome::DebugExit(1));
}

#[test]
fn each_processor_has_its_own_local_apic() {
    let builder = machine(|a| {
        // `mov ecx, 0x802 ...` would need x2APIC mode; CPUID tells the ID in any:
        // `mov eax, 1; cpuid; shr ebx, 24; inc byte [bx + 0x7000]; cli; hlt`.
        let code =
            [0x66u8, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xeb, 24, 0xfe, 0x87, 0x00, 0x70, 0xfa, 0xf4];
        for (at, byte) in (START..).zip(code) {
            a.mov(byte_ptr(at), u32::from(byte) as i32)?;
        }
        start_others(a)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(0x7000), 0x0001_0100)?;
        a.jne(wait)?;
        a.mov(eax, dword_ptr(LAPIC + 0x20))?;
        a.shr(eax, 24)?;
        a.exit_with_al()
    });
    assert_eq!(run(builder.cpus(3)), Outcome::DebugExit(1));
}

#[test]
fn a_call_to_the_bios_fails_in_an_orderly_way() {
    let builder = machine(|a| {
        // `int 0x12; mov [0x7004], ax; clc; int 0x15; setc [0x7006]; mov byte [0x7000], 1; cli; hlt`: memory
        // size, then a service that is not there.
        let code = [
            0xcdu8, 0x12, 0xa3, 0x04, 0x70, 0xf8, 0xcd, 0x15, 0x0f, 0x92, 0x06, 0x06, 0x70, 0xc6, 0x06, 0x00,
            0x70, 1, 0xfa, 0xf4,
        ];
        for (at, byte) in (START..).zip(code) {
            a.mov(byte_ptr(at), u32::from(byte) as i32)?;
        }
        start_others(a)?;
        let (mut wait, mut bad) = (a.create_label(), a.create_label());
        a.set_label(&mut wait)?;
        a.cmp(byte_ptr(0x7000), 1)?;
        a.jne(wait)?;
        a.cmp(word_ptr(0x7004), 639)?;
        a.jne(bad)?;
        a.mov(al, byte_ptr(0x7006))?;
        a.exit_with_al()?;
        a.set_label(&mut bad)?;
        a.exit(9)
    });
    assert_eq!(run(builder.cpus(2)), Outcome::DebugExit(3));
}
