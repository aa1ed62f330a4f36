//! From a device to a processor.

use iced_x86::code_asm::*;
use posada_pc::Outcome;

use crate::guest::{CONSOLE, DATA, Guest, Screen, machine, run};

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;

/// Halts until `DATA` has been counted up to `count` by interrupt handlers, then exits with 1.
fn halt_until(a: &mut Guest, count: i32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.sti()?;
    a.set_label(&mut wait)?;
    a.hlt()?;
    a.cmp(dword_ptr(DATA), count)?;
    a.jb(wait)?;
    a.exit(1)
}

#[test]
fn the_timer_interrupts_through_the_pic() {
    let builder = machine(|a| {
        a.set_up_pic(0xfe, 0xff)?;
        a.set_up_timer(500)?;
        halt_until(a, 5)?;
        a.handler(0x20)?;
        a.inc(dword_ptr(DATA))?;
        a.out_byte(0x20, 0x20)?;
        a.iretd()
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

fn local_apic_handler(a: &mut Guest, vector: u8) -> Result<(), IcedError> {
    a.handler(vector)?;
    a.inc(dword_ptr(DATA))?;
    a.store(LAPIC + 0xb0, 0)?;
    a.iretd()
}

#[test]
fn the_timer_interrupts_through_the_io_apic() {
    let builder = machine(|a| {
        a.set_up_timer(500)?;
        a.store(LAPIC + 0xf0, 0x1ff)?;
        // Input 2: vector 0x40, to APIC 0.
        a.store(IOAPIC, 0x15)?;
        a.store(IOAPIC + 0x10, 0)?;
        a.store(IOAPIC, 0x14)?;
        a.store(IOAPIC + 0x10, 0x40)?;
        halt_until(a, 5)?;
        local_apic_handler(a, 0x40)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn the_local_apics_timer_interrupts_periodically() {
    let builder = machine(|a| {
        a.store(LAPIC + 0xf0, 0x1ff)?;
        a.store(LAPIC + 0x3e0, 0b1011)?;
        a.store(LAPIC + 0x320, 1 << 17 | 0x41)?;
        a.store(LAPIC + 0x380, 2_000_000)?;
        halt_until(a, 5)?;
        local_apic_handler(a, 0x41)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn a_deadline_of_the_time_stamp_counter_interrupts_once_it_is_reached() {
    let builder = machine(|a| {
        a.store(LAPIC + 0xf0, 0x1ff)?;
        a.store(LAPIC + 0x320, 2 << 17 | 0x41)?;
        a.rdtsc()?;
        a.add(eax, 5_000_000)?;
        a.adc(edx, 0)?;
        a.mov(esi, eax)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        a.sti()?;
        a.hlt()?;
        a.rdtsc()?;
        a.sub(eax, esi)?;
        let mut early = a.create_label();
        a.js(early)?;
        a.mov(al, byte_ptr(DATA))?;
        a.exit_with_al()?;
        a.set_label(&mut early)?;
        a.exit(9)?;
        local_apic_handler(a, 0x41)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn the_clock_interrupts_through_the_second_pic() {
    let builder = machine(|a| {
        a.set_up_pic(0xfb, 0xfe)?;
        // Register B: periodic interrupt, at 1024 Hz as firmware left it.
        a.out_byte(0x70, 0x0b)?;
        a.out_byte(0x71, 0x42)?;
        halt_until(a, 5)?;
        a.handler(0x28)?;
        a.inc(dword_ptr(DATA))?;
        // Until register C is read there is no other.
        a.out_byte(0x70, 0x0c)?;
        a.in_byte(0x71)?;
        a.out_byte(0xa0, 0x20)?;
        a.out_byte(0x20, 0x20)?;
        a.iretd()
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn a_processor_interrupts_itself() {
    let builder = machine(|a| {
        a.store(LAPIC + 0xf0, 0x1ff)?;
        a.sti()?;
        // To "self", fixed. It is taken at the next instruction boundary.
        a.store(LAPIC + 0x300, 1 << 18 | 0x42)?;
        a.nop()?;
        a.nop()?;
        a.mov(al, byte_ptr(DATA))?;
        a.exit_with_al()?;
        local_apic_handler(a, 0x42)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn an_end_of_interrupt_lets_in_what_waited_behind_it() {
    let builder = machine(|a| {
        a.store(LAPIC + 0xf0, 0x1ff)?;
        a.store(LAPIC + 0x300, 1 << 18 | 0x48)?;
        a.store(LAPIC + 0x300, 1 << 18 | 0x50)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.mov(al, byte_ptr(DATA))?;
        a.exit_with_al()?;
        // The higher one comes first and sees that the other has not; with interrupts on before its end, too.
        a.handler(0x50)?;
        a.sti()?;
        a.nop()?;
        a.mov(eax, dword_ptr(DATA))?;
        a.lea(eax, ptr(eax * 4 + 1))?;
        a.mov(dword_ptr(DATA), eax)?;
        a.store(LAPIC + 0xb0, 0)?;
        a.nop()?;
        a.iretd()?;
        a.handler(0x48)?;
        a.shl(dword_ptr(DATA), 1)?;
        a.store(LAPIC + 0xb0, 0)?;
        a.iretd()
    });
    assert_eq!(run(builder), Outcome::DebugExit(5));
}

#[test]
fn a_level_triggered_interrupt_comes_again_until_its_source_is_served() {
    let mut pc = machine(|a| {
        a.store(LAPIC + 0xf0, 0x1ff)?;
        // Input 9, ACPI: level-triggered, vector 0x43.
        a.store(IOAPIC, 0x22)?;
        a.store(IOAPIC + 0x10, 1 << 15 | 0x43)?;
        a.mov(dx, 0x602)?;
        a.mov(ax, 1 << 8)?;
        a.out(dx, ax)?;
        halt_until(a, 3)?;
        a.handler(0x43)?;
        a.inc(dword_ptr(DATA))?;
        a.cmp(dword_ptr(DATA), 3)?;
        let mut end = a.create_label();
        a.jb(end)?;
        a.mov(dx, 0x600)?;
        a.mov(ax, 1 << 8)?;
        a.out(dx, ax)?;
        a.set_label(&mut end)?;
        a.store(LAPIC + 0xb0, 0)?;
        a.iretd()
    })
    .build()
    .unwrap();
    pc.handle().press_power_button();
    assert_eq!(crate::guest::run_built(&mut pc), Outcome::DebugExit(3));
}

#[test]
fn a_non_maskable_interrupt_comes_from_outside() {
    let screen = Screen::default();
    let mut pc = machine(|a| {
        a.out_byte(0x3f8, b'!')?;
        a.hlt()?;
        a.exit(0)?;
        a.handler(2)?;
        a.exit(4)
    })
    .serial(CONSOLE, screen.clone())
    .build()
    .unwrap();
    let handle = pc.handle();
    std::thread::spawn(move || {
        // Not before the guest has its handler.
        while screen.text().is_empty() {
            std::thread::yield_now();
        }
        handle.raise_nmi();
    });
    assert_eq!(crate::guest::run_built(&mut pc), Outcome::DebugExit(9));
}
