//! Registers of all kinds, and places where nothing is.

use iced_x86::code_asm::*;
use posada_pc::Outcome;

use crate::guest::{DATA, Guest, machine, run};

#[test]
fn a_port_that_no_device_claims_reads_as_ones() {
    let builder = machine(|a| {
        a.mov(dx, 0x1234)?;
        a.in_(eax, dx)?;
        a.inc(eax)?;
        a.exit_with_al()
    });
    assert_eq!(run(builder), Outcome::DebugExit(1));
}

#[test]
fn nonsense_to_every_port_and_to_every_hole_harms_nobody() {
    let builder = machine(|a| {
        // Ports: every one but those that end the run or restart the machine.
        let (mut port, mut skip) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.set_label(&mut port)?;
        for reserved in
            [0xf4, 0xcf9, 0x64, 0x92, 0x60, 0x604, 0x605, 0xcf8, 0xcf7, 0xcf6, 0x603, 0x602, 0x601]
        {
            a.cmp(ebx, reserved)?;
            a.je(skip)?;
        }
        a.mov(edx, ebx)?;
        a.imul_3(eax, ebx, 0x0101_3701)?;
        a.out(dx, al)?;
        a.in_(al, dx)?;
        a.cmp(ebx, 0xf2)?;
        let mut narrow = a.create_label();
        a.jb(narrow)?;
        a.cmp(ebx, 0xcff)?;
        a.jb(skip)?;
        a.set_label(&mut narrow)?;
        a.cmp(ebx, 0x5e)?;
        a.jb(skip)?;
        a.cmp(ebx, 0x94)?;
        a.jb(skip)?;
        a.out(dx, ax)?;
        a.in_(ax, dx)?;
        a.out(dx, eax)?;
        a.in_(eax, dx)?;
        a.set_label(&mut skip)?;
        a.inc(ebx)?;
        a.cmp(ebx, 0x1_0000)?;
        a.jb(port)?;
        // Memory: the display's, PCI's, configuration space, both APICs, the firmware's at the top.
        for start in
            [0xa_0000u32, 0xc000_0000, 0xe000_0000, 0xe010_0000, 0xfec0_0000, 0xfee0_0000, 0xffff_0000]
        {
            let mut next = a.create_label();
            a.mov(esi, start)?;
            a.set_label(&mut next)?;
            // The local APIC's registers that send messages to the processor itself.
            let mut over = a.create_label();
            for register in [0xfee0_0300u32, 0xfee0_0301, 0xfee0_0302, 0xfee0_0303] {
                a.cmp(esi, register as i32)?;
                a.je(over)?;
            }
            a.imul_3(eax, esi, 0x0101_3701)?;
            a.mov(byte_ptr(esi), al)?;
            a.mov(al, byte_ptr(esi))?;
            a.mov(word_ptr(esi), ax)?;
            a.mov(ax, word_ptr(esi))?;
            a.mov(dword_ptr(esi), eax)?;
            a.mov(eax, dword_ptr(esi))?;
            a.set_label(&mut over)?;
            a.inc(esi)?;
            a.cmp(esi, (start + 0x400) as i32)?;
            a.jb(next)?;
        }
        a.exit(0x2a)
    });
    assert_eq!(run(builder), Outcome::DebugExit(0x55));
}

#[test]
fn configuration_space_is_the_same_by_ports_and_by_memory() {
    let builder = machine(|a| {
        a.mov(eax, 0x8000_0000u32)?;
        a.mov(dx, 0xcf8)?;
        a.out(dx, eax)?;
        a.mov(dx, 0xcfc)?;
        a.in_(eax, dx)?;
        a.mov(ebx, eax)?;
        a.xor(eax, dword_ptr(0xe000_0000u32))?;
        let mut bad = a.create_label();
        a.jnz(bad)?;
        a.cmp(bx, 0x8086)?;
        a.jne(bad)?;
        a.exit(1)?;
        a.set_label(&mut bad)?;
        a.exit(0)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn the_machine_was_set_up_as_firmware_does() {
    let builder = machine(|a| {
        let mut bad = a.create_label();
        // The data area: COM1, COM2, 639 KiB.
        a.cmp(dword_ptr(0x400), 0x02f8_03f8)?;
        a.jne(bad)?;
        a.cmp(word_ptr(0x413), 639)?;
        a.jne(bad)?;
        // Real-mode interrupt 0x15 leads into the BIOS, whose reset jump is where it has always been.
        a.cmp(word_ptr(0x15 * 4 + 2), 0xf000)?;
        a.jne(bad)?;
        a.cmp(byte_ptr(0xf_fff0), 0xea_u32 as i32)?;
        a.jne(bad)?;
        // The ACPI tables begin where a system searches for them.
        a.cmp(dword_ptr(0xe_0000), u32::from_le_bytes(*b"RSD ") as i32)?;
        a.jne(bad)?;
        // All inputs of the PICs are masked; ACPI mode is on.
        a.in_byte(0x21)?;
        a.cmp(al, -1)?;
        a.jne(bad)?;
        a.mov(dx, 0x604)?;
        a.in_(ax, dx)?;
        a.test(al, 1)?;
        a.jz(bad)?;
        // The clock's memory has the size of the machine's: 3 MiB above the first.
        a.out_byte(0x70, 0x18)?;
        a.in_byte(0x71)?;
        a.cmp(al, 3 << 2)?;
        a.jne(bad)?;
        a.exit(1)?;
        a.set_label(&mut bad)?;
        a.exit(0)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}

#[test]
fn the_power_management_timer_counts_at_its_frequency() {
    // Against the time-stamp counter, which counts nanoseconds: each look at the timer lies between two looks at
    // the counter, however long the host takes for them.
    const START: u32 = DATA;
    const END: u32 = DATA + 12;
    let builder = machine(|a| {
        let look = |a: &mut Guest, at: u32| -> Result<(), IcedError> {
            a.rdtsc()?;
            a.mov(dword_ptr(at), eax)?;
            a.mov(dx, 0x608)?;
            a.in_(eax, dx)?;
            a.mov(dword_ptr(at + 4), eax)?;
            a.rdtsc()?;
            a.mov(dword_ptr(at + 8), eax)
        };
        let (mut wait, mut bad) = (a.create_label(), a.create_label());
        look(a, START)?;
        a.set_label(&mut wait)?;
        a.nop()?;
        look(a, END)?;
        a.mov(eax, dword_ptr(END + 4))?;
        a.sub(eax, dword_ptr(START + 4))?;
        a.cmp(eax, 357_954)?;
        a.jb(wait)?;
        // In nanoseconds: 279.365 for each tick.
        a.mov(ecx, 279_365)?;
        a.mul(ecx)?;
        a.mov(ecx, 1000)?;
        a.div(ecx)?;
        a.mov(esi, eax)?;
        // At most the time between the outer looks at the counter, at least that between the inner ones; a tick
        // more or less.
        a.mov(eax, dword_ptr(END + 8))?;
        a.sub(eax, dword_ptr(START))?;
        a.add(eax, 1000)?;
        a.cmp(esi, eax)?;
        a.ja(bad)?;
        a.mov(eax, dword_ptr(END))?;
        a.sub(eax, dword_ptr(START + 8))?;
        a.sub(eax, 1000)?;
        a.cmp(esi, eax)?;
        a.jb(bad)?;
        a.exit(1)?;
        a.set_label(&mut bad)?;
        a.exit(0)
    });
    assert_eq!(run(builder), Outcome::DebugExit(3));
}
