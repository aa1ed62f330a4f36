//! How runs end.

use iced_x86::code_asm::*;
use posada_boot::{Kernel, Source};
use posada_pc::{Engine, Error, OnReset, OnTripleFault, Outcome, PcBuilder};

use crate::guest::{CONSOLE, Guest, Screen, assemble, machine, run, run_built};

#[test]
fn the_test_port_ends_the_run_with_an_odd_status() {
    assert_eq!(run(machine(|a| a.exit(0))), Outcome::DebugExit(1));
    assert_eq!(run(machine(|a| a.exit(0x10))), Outcome::DebugExit(0x21));
}

#[test]
fn without_the_test_port_its_writes_go_nowhere() {
    let builder = machine(|a| {
        a.out_byte(0xf4, 0)?;
        soft_off(a)
    });
    assert_eq!(run(builder.debug_exit(false)), Outcome::PoweredOff);
}

fn soft_off(a: &mut Guest) -> Result<(), IcedError> {
    a.mov(dx, 0x604)?;
    a.mov(ax, 5 << 10 | 1 << 13)?;
    a.out(dx, ax)?;
    a.hlt()
}

#[test]
fn soft_off_powers_off() {
    assert_eq!(run(machine(soft_off)), Outcome::PoweredOff);
}

type Program = fn(&mut Guest) -> Result<(), IcedError>;

/// The three ways by which software resets a PC.
fn resets() -> [(&'static str, Program); 3] {
    [
        ("reset control register", |a| a.out_byte(0xcf9, 0x06)),
        ("keyboard controller", |a| a.out_byte(0x64, 0xfe)),
        ("system control port A", |a| a.out_byte(0x92, 0x01)),
    ]
}

#[test]
fn every_way_to_reset_can_end_the_run() {
    for (name, reset) in resets() {
        let builder = machine(|a| {
            reset(a)?;
            a.hlt()
        });
        assert_eq!(run(builder.on_reset(OnReset::Exit)), Outcome::Reset, "{name}");
    }
}

#[test]
fn every_way_to_reset_starts_the_kernel_again() {
    for (name, reset) in resets() {
        let screen = Screen::default();
        let builder = machine(|a| {
            // A byte of battery-backed memory counts the starts.
            let mut second = a.create_label();
            a.out_byte(0x3f8, b'B')?;
            a.out_byte(0x70, 0x50)?;
            a.in_byte(0x71)?;
            a.test(al, al)?;
            a.jnz(second)?;
            a.out_byte(0x71, 1)?;
            reset(a)?;
            a.hlt()?;
            a.set_label(&mut second)?;
            a.exit(7)
        });
        assert_eq!(run(builder.serial(CONSOLE, screen.clone())), Outcome::DebugExit(15), "{name}");
        assert_eq!(screen.text(), "BB", "{name}");
    }
}

#[test]
fn a_boot_processor_that_is_initialized_finds_the_reset_vector() {
    let builder = machine(|a| {
        // INIT to local APIC 0.
        a.store(0xfee0_00f0, 0x1ff)?;
        a.store(0xfee0_0310, 0)?;
        a.store(0xfee0_0300, 1 << 14 | 5 << 8)?;
        a.forever()
    });
    assert_eq!(run(builder.on_reset(OnReset::Exit)), Outcome::Reset);
}

fn triple_fault(a: &mut Guest) -> Result<(), IcedError> {
    a.mov(ebx, 0x1234_5678)?;
    // No handler for the fault, nor for the fault that this is.
    a.ud2()
}

#[test]
fn a_triple_fault_ends_the_run_and_shows_the_registers() {
    let Outcome::TripleFault { cpu, state } = run(machine(triple_fault)) else { panic!() };
    assert_eq!((cpu, state.gpr[3]), (0, 0x1234_5678));
    assert!(state.to_string().contains("rbx 0000000012345678"));
}

#[test]
fn a_triple_fault_can_reset_as_on_a_pc() {
    let builder = machine(triple_fault).on_triple_fault(OnTripleFault::Reset).on_reset(OnReset::Exit);
    assert_eq!(run(builder), Outcome::Reset);
}

#[test]
fn a_handle_stops_a_guest_that_never_ends() {
    for program in [Guest::forever, |a: &mut Guest| a.hlt()] {
        let mut pc = machine(program).build().unwrap();
        let handle = pc.handle();
        assert_eq!(handle.states(), None, "it does not run yet");
        let stopper = std::thread::spawn(move || {
            let states = loop {
                if let Some(states) = handle.states() {
                    break states;
                }
                std::thread::yield_now();
            };
            handle.stop();
            states
        });
        assert_eq!(run_built(&mut pc), Outcome::Stopped);
        let states = stopper.join().unwrap();
        assert_eq!(states.len(), 1);
        assert!((0x10_0020..0x10_0100).contains(&states[0].rip), "{}", states[0]);
    }
}

#[test]
fn a_guest_that_resets_all_the_time_can_be_stopped() {
    let mut pc = machine(|a| a.out_byte(0xcf9, 0x06)).build().unwrap();
    let handle = pc.handle();
    std::thread::spawn(move || {
        while handle.states().is_none() {}
        handle.reset();
        handle.stop();
    });
    assert_eq!(run_built(&mut pc), Outcome::Stopped);
}

#[test]
fn a_stopped_machine_goes_on() {
    let mut pc = machine(|a| {
        // Two starts of the same wait: each is ended from outside.
        let mut wait = a.create_label();
        a.mov(ecx, dword_ptr(0x21_0000))?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(0x21_0000), 1)?;
        a.jne(wait)?;
        a.exit(3)
    })
    .build()
    .unwrap();
    let handle = pc.handle();
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        handle.stop();
    });
    assert_eq!(run_built(&mut pc), Outcome::Stopped);
    // Meanwhile its clocks stood still.
    let stopped_at = pc.guest_time();
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert_eq!(pc.guest_time(), stopped_at);
    pc.ram().write(posada_memory::Gpa(0x21_0000), &[1, 0, 0, 0]).unwrap();
    assert_eq!(run_built(&mut pc), Outcome::DebugExit(7));
}

#[test]
fn the_power_button_reaches_the_guest_as_an_interrupt() {
    let mut pc = machine(|a| {
        a.set_up_pic(0xfb, 0xfd)?;
        // Enable the power button's event.
        a.mov(dx, 0x602)?;
        a.mov(ax, 1 << 8)?;
        a.out(dx, ax)?;
        a.sti()?;
        a.hlt()?;
        a.handler(0x29)?;
        a.mov(dx, 0x600)?;
        a.in_(ax, dx)?;
        a.shr(ax, 8)?;
        a.exit_with_al()
    })
    .build()
    .unwrap();
    let handle = pc.handle();
    // Pressed before the guest listens, it is noticed when it does.
    handle.press_power_button();
    assert_eq!(run_built(&mut pc), Outcome::DebugExit(3));
}

#[test]
fn machines_that_cannot_be_are_refused_with_a_reason() {
    let build = |change: fn(PcBuilder) -> PcBuilder| change(machine(|a| a.hlt())).build().unwrap_err();
    for (error, said) in [
        (build(|pc| pc.memory(0)), "from 4 MiB to 512 GiB"),
        (build(|pc| pc.memory((4 << 20) + 1)), "whole pages of 4 KiB"),
        (build(|pc| pc.memory(1 << 50)), "from 4 MiB to 512 GiB"),
        (build(|pc| pc.cpus(0)), "from 1 to 64"),
        (build(|pc| pc.cpus(65)), "from 1 to 64"),
        (build(|pc| pc.code_cache(1 << 20)), "from 2 MiB to 1 GiB"),
        (build(|pc| pc.code_cache((1 << 30) + 1)), "from 2 MiB to 1 GiB"),
        (build(|pc| pc.cpu_model("i386")), "x86-64-v2"),
    ] {
        assert!(error.to_string().contains(said), "{error} / {said}");
    }
    assert!(matches!("kvm".parse::<Engine>(), Err(Error::UnknownEngine { .. })));
}

#[test]
fn what_is_no_kernel_is_refused_when_the_machine_is_built() {
    let error = PcBuilder::new(Kernel::new(Source::bytes(&b"hello"[..]))).build().unwrap_err();
    assert!(error.to_string().contains("no kernel"), "{error}");
    let kernel = assemble(|a| a.hlt()).initrd(Source::bytes(vec![0; 8 << 20]));
    let error = PcBuilder::new(kernel).memory(4 << 20).build().unwrap_err();
    assert!(error.to_string().contains("give it more memory"), "{error}");
}
