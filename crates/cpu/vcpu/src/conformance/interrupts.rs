//! Interrupts from outside: when they are let in, and what holds them off (AMD APM volume 2, sections 8.1.4,
//! 8.2.2 and 8.5).

use iced_x86::code_asm::*;

use super::Engine;
use super::board::Access;
use super::machine::{CODE, DATA, MMIO, Machine, STACK, handler, kind, selector};
use crate::x86::{Running, gpr, rflags};
use crate::{Event, Exit};

pub(super) fn a_pending_interrupt_is_delivered_before_the_next_instruction(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let machine = machine.flags(rflags::IF).code(|a| a.inc(eax));
        machine.interrupts.raise(0x51);
        machine.attention.interrupt();
        let end = machine.run();
        end.expect_fault(0x51, None, CODE);
        assert!(!end.has(rflags::IF));
    }
}

pub(super) fn a_clear_interrupt_flag_holds_interrupts_off(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| a.inc(eax));
    machine.interrupts.raise(0x51);
    machine.attention.interrupt();
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.interrupts.waiting(), 1, "and nobody has acknowledged it");
}

pub(super) fn sti_lets_one_more_instruction_through(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let machine = machine.code(|a| {
            a.sti()?;
            a.inc(eax)?;
            a.inc(eax)
        });
        machine.interrupts.raise(0x51);
        let end = machine.run();
        assert_eq!((end.vector(), end.reg(gpr::RAX)), (Some(0x51), 1));
    }
}

pub(super) fn sti_has_no_shadow_when_interrupts_were_enabled(engine: &Engine) {
    // The second `sti` is no new shadow.
    let machine = Machine::long(engine).code(|a| {
        a.sti()?;
        a.sti()?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    let end = machine.run();
    assert_eq!((end.vector(), end.reg(gpr::RAX)), (Some(0x51), 0));
}

pub(super) fn cli_in_the_shadow_of_sti_wins(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| {
        a.sti()?;
        a.cli()?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    machine.run().expect_end();
}

pub(super) fn popf_lets_interrupts_in_at_once(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| {
        a.push(rflags::IF as i32)?;
        a.popfq()?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    let end = machine.run();
    assert_eq!((end.vector(), end.reg(gpr::RAX)), (Some(0x51), 0));
}

pub(super) fn a_load_of_ss_lets_one_more_instruction_through(engine: &Engine) {
    let machine = Machine::long(engine).flags(0).code(|a| {
        a.mov(ecx, u32::from(selector::DATA))?;
        a.sti()?;
        a.mov(ss, ecx)?;
        a.mov(rsp, STACK - 0x100)?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    let end = machine.run();
    // `sti` covers the load, the load covers the new stack pointer.
    assert_eq!((end.vector(), end.reg(gpr::RAX), end.frame().rsp), (Some(0x51), 0, STACK - 0x100));
}

pub(super) fn pop_ss_holds_interrupts_off_too(engine: &Engine) {
    let machine = Machine::protected(engine).code(|a| {
        a.push(u32::from(selector::DATA))?;
        a.sti()?;
        a.pop(ss)?;
        a.mov(esp, (STACK - 0x100) as u32)?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    let end = machine.run();
    assert_eq!((end.vector(), end.reg(gpr::RAX)), (Some(0x51), 0));
    assert_eq!(end.reg(gpr::RSP), STACK - 0x100 - 12);
}

pub(super) fn hlt_waits_for_an_interrupt(engine: &Engine) {
    let mut end = Machine::long(engine)
        .flags(rflags::IF)
        .code(|a| {
            a.hlt()?;
            a.inc(eax)
        })
        .run();
    assert_eq!((end.exit, end.state.rip), (Exit::Halted, CODE + 1));
    assert_eq!(end.state.activity.running, Running::Halted);
    end.resume();
    assert_eq!((end.exit, end.state.rip), (Exit::Halted, CODE + 1), "nothing has happened");
    end.interrupts.raise(0x51);
    end.attention.interrupt();
    end.resume();
    end.expect_fault(0x51, None, CODE + 1);
}

pub(super) fn sti_and_hlt_do_not_miss_an_interrupt(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| {
        a.sti()?;
        a.hlt()?;
        a.inc(eax)
    });
    machine.interrupts.raise(0x51);
    let end = machine.run();
    // Delivered out of the halt: its return address is behind it.
    end.expect_fault(0x51, None, CODE + 2);
}

pub(super) fn iret_ends_a_handler_and_lets_the_next_interrupt_in(engine: &Engine) {
    let machine = Machine::long(engine)
        .flags(rflags::IF)
        .handler(0x51, 64, |a| {
            a.inc(ecx)?;
            a.iretq()
        })
        .code(|a| a.inc(eax));
    machine.interrupts.raise(0x51);
    machine.interrupts.raise(0x51);
    machine.interrupts.raise(0x52);
    machine.attention.interrupt();
    let end = machine.run();
    assert_eq!((end.vector(), end.reg(gpr::RCX), end.reg(gpr::RAX)), (Some(0x52), 2, 0));
}

pub(super) fn nmi_comes_through_whatever_the_interrupt_flag(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let machine = machine.code(|a| a.inc(eax));
        machine.interrupts.send(Event::Nmi);
        machine.attention.interrupt();
        let end = machine.run();
        end.expect_fault(2, None, CODE);
        assert!(end.state.activity.nmi_blocked);
    }
}

pub(super) fn nmi_waits_for_iret(engine: &Engine) {
    // The second one arrives in the handler of the first, by its port write, and is let in after `iret`.
    let machine = Machine::long(engine)
        .handler(2, 64, |a| {
            a.inc(ecx)?;
            a.out(0x80, al)?;
            a.iretq()
        })
        .code(|a| {
            a.inc(eax)?;
            a.inc(eax)
        });
    machine.interrupts.send(Event::Nmi);
    machine.attention.interrupt();
    let (interrupts, attention) = (machine.interrupts.clone(), machine.attention.clone());
    let first = std::sync::atomic::AtomicBool::new(true);
    machine.bus.react(move |_| {
        if first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            interrupts.send(Event::Nmi);
            attention.interrupt();
        }
    });
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RCX), end.reg(gpr::RAX)), (2, 2));
    assert!(!end.state.activity.nmi_blocked);
}

pub(super) fn nmi_wakes_a_halted_processor(engine: &Engine) {
    let mut end = Machine::long(engine).code(|a| a.hlt()).run();
    end.interrupts.send(Event::Nmi);
    end.attention.interrupt();
    end.resume();
    end.expect_fault(2, None, CODE + 1);
}

pub(super) fn nmi_goes_before_a_maskable_interrupt(engine: &Engine) {
    let machine = Machine::long(engine).flags(rflags::IF).code(|a| a.inc(eax));
    machine.interrupts.raise(0x51);
    machine.interrupts.send(Event::Nmi);
    machine.attention.interrupt();
    let end = machine.run();
    end.expect_fault(2, None, CODE);
    assert_eq!(end.interrupts.waiting(), 1);
}

pub(super) fn a_kick_ends_an_endless_loop(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rax)?;
        a.jmp(top)
    });
    let attention = machine.attention.clone();
    let kicker = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        attention.kick();
    });
    let end = machine.run();
    kicker.join().expect("the other thread ends");
    assert_eq!(end.exit, Exit::Kicked);
    assert!(end.reg(gpr::RAX) > 0, "and the loop has run");
}

pub(super) fn an_interrupt_gets_into_a_tight_loop(engine: &Engine) {
    let machine = Machine::long(engine).flags(rflags::IF).code(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.jmp(top)
    });
    let (attention, interrupts) = (machine.attention.clone(), machine.interrupts.clone());
    let other = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        interrupts.raise(0x51);
        attention.interrupt();
    });
    let end = machine.run();
    other.join().expect("the other thread ends");
    end.expect_fault(0x51, None, CODE);
}

pub(super) fn repeated_string_instructions_are_interrupted_between_repetitions(engine: &Engine) {
    const COUNT: u64 = 1_000_000;
    // Stores to a device; after the third the device asks for attention.
    let machine = Machine::long(engine).flags(rflags::IF).reg(gpr::RCX, COUNT).reg(gpr::RDI, MMIO).code(|a| {
        a.rep().stosb()
    });
    let (attention, interrupts) = (machine.attention.clone(), machine.interrupts.clone());
    machine.bus.react(move |access| {
        if access == Access::MmioWrite(MMIO + 2, 1, 0) {
            interrupts.raise(0x51);
            attention.interrupt();
        }
    });
    let end = machine.run();
    end.expect_fault(0x51, None, CODE);
    let (done, left) = (end.reg(gpr::RDI) - MMIO, end.reg(gpr::RCX));
    assert_eq!(done + left, COUNT, "as many stored as counted");
    assert!((3..COUNT).contains(&done), "{done} done before the interrupt");
    assert_eq!(end.bus.log().len() as u64, done);
}

pub(super) fn interrupts_take_a_program_to_the_kernels_stack(engine: &Engine) {
    let machine = Machine::long(engine).user().flags(rflags::IF).code(|a| a.inc(eax));
    machine.interrupts.raise(0x51);
    machine.attention.interrupt();
    let end = machine.run();
    end.expect_fault(0x51, None, CODE);
    assert_eq!((end.frame().cs, end.state.cpl()), (selector::USER_CODE64, 0));
}

pub(super) fn external_interrupts_ignore_the_gates_privilege_level(engine: &Engine) {
    let machine = Machine::protected(engine).user().flags(rflags::IF).code(|a| a.inc(eax));
    machine.gate(0x51, selector::CODE32, handler(0x51), kind::INTERRUPT_GATE, 0, false);
    machine.interrupts.raise(0x51);
    machine.attention.interrupt();
    machine.run().expect_fault(0x51, None, CODE);
}

pub(super) fn an_external_interrupt_without_a_gate_is_a_fault_from_outside(engine: &Engine) {
    let machine = Machine::long(engine).flags(rflags::IF).code(|a| a.inc(eax));
    machine.gate(0x51, selector::CODE64, 0, kind::INTERRUPT_GATE & 0x7f, 0, true);
    machine.interrupts.raise(0x51);
    machine.attention.interrupt();
    // Bit 0 of the error code: the event was external.
    machine.run().expect_fault(11, Some(0x51 * 8 + 3), CODE);
}

pub(super) fn cr8_is_the_task_priority(engine: &Engine) {
    let end = Machine::long(engine)
        .code(|a| {
            a.mov(eax, 9)?;
            a.mov(cr8, rax)?;
            a.mov(rbx, cr8)
        })
        .run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RBX), 9);
    assert_eq!(crate::Interrupts::cr8(&*end.interrupts), 9);
    let end = Machine::long(engine)
        .reg(gpr::RAX, 16)
        .code(|a| a.mov(cr8, rax))
        .run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn init_brings_the_reset_state_but_keeps_memory(engine: &Engine) {
    let machine = Machine::long(engine).code(|a| {
        a.mov(dword_ptr(DATA), 7)?;
        a.out(0x80, al)?;
        a.inc(eax)
    });
    let (interrupts, attention) = (machine.interrupts.clone(), machine.attention.clone());
    machine.bus.react(move |access| {
        if matches!(access, Access::PortWrite(..)) {
            interrupts.send(Event::Init);
            attention.interrupt();
            // Where it begins again there is no memory: enough seen.
            attention.kick();
        }
    });
    let end = machine.run();
    let (kicked, state) = (end.exit, &end.state);
    assert_eq!(kicked, Exit::Kicked);
    if state.rip == 0xfff0 {
        assert_eq!((state.cr0 & 1, state.msrs.efer, state.segments.cs.base), (0, 0, 0xffff_0000));
    } else {
        // The kick came first; the event has not been looked at.
        assert_eq!(state.rip, CODE + 11 + 2);
    }
    assert_eq!(end.load::<u32>(DATA), 7);
}
