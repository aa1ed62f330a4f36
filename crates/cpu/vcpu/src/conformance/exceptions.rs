//! Exceptions: their vectors, error codes, frames and priorities, and how their handlers begin (AMD APM volume
//! 2, chapter 8).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{
    CODE, DATA, FREE, IDT, IST, KERNEL_STACK, Machine, STACK, TSS, USER_CODE, descriptor, handler, kind, selector,
};
use super::tables::pte;
use crate::Exit;
use crate::x86::{gpr, rflags};

pub(super) fn faults_name_the_instruction_that_faults(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine), Machine::compatibility(engine)] {
        let end = machine
            .reg(gpr::RCX, 0)
            .code(|a| {
                a.nop()?;
                a.div(ecx)
            })
            .run();
        end.expect_fault(0, None, CODE + 1);
        assert_ne!(end.frame().rflags & rflags::RF, 0, "faults set RF in the flags they save");
    }
}

pub(super) fn invalid_opcodes_fault(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        machine.code(|a| a.ud2()).run().expect_fault(6, None, CODE);
    }
    // `push es` exists only outside 64-bit mode.
    Machine::long(engine).bytes_at(CODE, &[0x06]).run().expect_fault(6, None, CODE);
}

pub(super) fn breakpoints_and_overflow_are_traps(engine: &Engine) {
    let end = Machine::long(engine).code(|a| a.int3()).run();
    end.expect_fault(3, None, CODE + 1);
    assert_eq!(end.frame().rflags & rflags::RF, 0, "traps do not set RF");
    let end = Machine::protected(engine).flags(rflags::OF).code(|a| a.into()).run();
    end.expect_fault(4, None, CODE + 1);
    Machine::protected(engine).code(|a| a.into()).run().expect_end();
}

pub(super) fn bound_faults_outside_its_bounds(engine: &Engine) {
    for (index, inside) in [(-3i32, true), (-4, false), (5, true), (6, false)] {
        let machine = Machine::protected(engine).reg(gpr::RAX, u64::from(index as u32)).code(|a| {
            a.mov(ebx, DATA as u32)?;
            a.bound(eax, qword_ptr(ebx))
        });
        machine.put(DATA, -3i32 as u32);
        machine.put(DATA + 4, 5_u32);
        let end = machine.run();
        if inside { end.expect_end() } else { end.expect_fault(5, None, CODE + 5) }
    }
}

pub(super) fn software_interrupts_obey_the_gates_privilege_level(engine: &Engine) {
    // From CPL 3 through a gate for CPL 0: a general-protection fault that names the gate.
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        machine.user().code(|a| a.int(0x30)).run().expect_fault(13, Some(0x30 * 8 + 2), CODE);
    }
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let long = machine.bits == 64;
        let code = if long { selector::CODE64 } else { selector::CODE32 };
        machine.gate(0x30, code, handler(0x30), kind::INTERRUPT_GATE | kind::DPL3, 0, long);
        let end = machine.user().code(|a| a.int(0x30)).run();
        end.expect_fault(0x30, None, CODE + 2);
    }
}

pub(super) fn hardware_exceptions_ignore_the_gates_privilege_level(engine: &Engine) {
    let end = Machine::long(engine).user().code(|a| a.ud2()).run();
    end.expect_fault(6, None, CODE);
}

pub(super) fn gates_that_are_missing_fault(engine: &Engine) {
    // Not present: #NP that names the gate; beyond the table's limit, or no gate at all: #GP.
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let long = machine.bits == 64;
        let code = if long { selector::CODE64 } else { selector::CODE32 };
        machine.gate(0x30, code, 0, kind::INTERRUPT_GATE & 0x7f, 0, long);
        machine.gate(0x31, code, 0, kind::LDT, 0, long);
        let machine = machine.with(|state| state.idtr.limit = if long { 0x7ff } else { 0x3ff });
        let end = machine.code(|a| a.int(0x30)).run();
        end.expect_fault(11, Some(0x30 * 8 + 2), CODE);
    }
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let long = machine.bits == 64;
        machine.gate(0x31, selector::CODE32, 0, kind::LDT, 0, long);
        machine.code(|a| a.int(0x31)).run().expect_fault(13, Some(0x31 * 8 + 2), CODE);
    }
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let size = if machine.bits == 64 { 16 } else { 8 };
        let machine = machine.with(|state| state.idtr.limit = 0x80 * size - 1);
        machine.code(|a| a.int(0x80u32 as i32)).run().expect_fault(13, Some(0x80 * 8 + 2), CODE);
    }
}

pub(super) fn gates_must_lead_to_code(engine: &Engine) {
    let gates = [(selector::DATA, 13, 0x10), (0, 13, 0), (selector::FREE, 13, 0x60), (0x2000, 13, 0x2000)];
    for (target, vector, error) in gates {
        for machine in [Machine::protected(engine), Machine::long(engine)] {
            let long = machine.bits == 64;
            machine.gate(0x30, target, handler(0x30), kind::INTERRUPT_GATE, 0, long);
            machine.code(|a| a.int(0x30)).run().expect_fault(vector, Some(error), CODE);
        }
    }
    // In long mode only 64-bit code handles interrupts.
    let machine = Machine::long(engine);
    machine.gate(0x30, selector::CODE32, handler(0x30), kind::INTERRUPT_GATE, 0, true);
    machine.code(|a| a.int(0x30)).run().expect_fault(13, Some(selector::CODE32.into()), CODE);
}

pub(super) fn interrupt_gates_clear_if_and_trap_gates_keep_it(engine: &Engine) {
    for (gate, kept) in [(kind::INTERRUPT_GATE, false), (kind::TRAP_GATE, true)] {
        for machine in [Machine::protected(engine), Machine::long(engine)] {
            let long = machine.bits == 64;
            let code = if long { selector::CODE64 } else { selector::CODE32 };
            machine.gate(0x30, code, handler(0x30), gate, 0, long);
            let end = machine.flags(rflags::IF | rflags::NT).code(|a| a.int(0x30)).run();
            assert_eq!(end.vector(), Some(0x30));
            assert_eq!(end.has(rflags::IF), kept);
            assert!(!end.has(rflags::NT), "NT is clear in a handler");
            assert_eq!(end.frame().rflags & (rflags::IF | rflags::NT), rflags::IF | rflags::NT);
        }
    }
}

pub(super) fn frames_of_64_bit_mode_always_hold_the_stack_and_are_aligned(engine: &Engine) {
    let end = Machine::long(engine).reg(gpr::RSP, STACK - 5).code(|a| a.int3()).run();
    let frame = end.frame();
    assert_eq!((frame.rsp, frame.ss), (STACK - 5, selector::DATA));
    // Down from the next multiple of 16 below.
    assert_eq!(end.reg(gpr::RSP), STACK - 16 - 40);
    let end = Machine::long(engine).reg(gpr::RSP, STACK).user().code(|a| a.ud2()).run();
    assert_eq!(end.reg(gpr::RSP), KERNEL_STACK - 40);
}

pub(super) fn a_change_of_privilege_switches_to_the_stack_of_the_task(engine: &Engine) {
    let end = Machine::protected(engine).user().code(|a| a.ud2()).run();
    let frame = end.frame();
    assert_eq!((frame.cs, frame.ss, frame.rsp), (selector::USER_CODE32, selector::USER_DATA, STACK));
    assert_eq!(end.reg(gpr::RSP), KERNEL_STACK - 20);
    assert_eq!((end.state.segments.ss.selector, end.state.cpl()), (selector::DATA, 0));
    // Without a change of privilege the frame has neither stack pointer nor segment.
    let end = Machine::protected(engine).code(|a| a.ud2()).run();
    assert_eq!(end.reg(gpr::RSP), STACK - 12);

    let end = Machine::long(engine).user().code(|a| a.ud2()).run();
    let frame = end.frame();
    assert_eq!((frame.cs, frame.ss, frame.rsp), (selector::USER_CODE64, selector::USER_DATA, STACK));
    assert_eq!((end.state.segments.ss.selector, end.state.cpl()), (0, 0), "a null stack segment");
}

pub(super) fn the_interrupt_stack_table_gives_a_handler_its_own_stack(engine: &Engine) {
    for user in [false, true] {
        let machine = Machine::long(engine);
        machine.gate(6, selector::CODE64, handler(6), kind::INTERRUPT_GATE, 3, true);
        let machine = if user { machine.user() } else { machine };
        let end = machine.code(|a| a.ud2()).run();
        end.expect_fault(6, None, CODE);
        assert_eq!(end.reg(gpr::RSP), IST - 0x300 - 40);
        assert_eq!(end.frame().rsp, STACK);
    }
}

pub(super) fn gates_of_16_bits_push_words(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.gate(0x30, selector::CODE32, handler(0x30), kind::INTERRUPT_GATE16, 0, false);
    let end = machine.flags(rflags::CF).code(|a| a.int(0x30)).run();
    assert_eq!(end.vector(), Some(0x30));
    assert_eq!(end.reg(gpr::RSP), STACK - 6);
    let words = [0, 2, 4].map(|n| end.load::<u16>(STACK - 6 + n));
    assert_eq!(words, [CODE as u16 + 2, selector::CODE32, (rflags::CF | rflags::FIXED) as u16]);
}

pub(super) fn a_conforming_handler_keeps_the_privilege_level(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(0x1000 + u64::from(selector::FREE), descriptor::segment(0, 0xf_ffff, 0xc09e));
    machine.gate(6, selector::FREE, USER_CODE, kind::INTERRUPT_GATE, 0, false);
    let end = machine.user().code(|a| a.ud2()).code_at(USER_CODE, 32, |a| a.mov(eax, cs)).run();
    // The handler runs at CPL 3 on the program's stack, and may not halt.
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), u64::from(selector::FREE | 3));
    assert_eq!(end.frame().rsp, STACK - 12);
}

pub(super) fn a_fault_in_delivery_of_a_contributory_one_is_a_double_fault(engine: &Engine) {
    // #GP, whose gate is not present: #NP while delivering #GP.
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let long = machine.bits == 64;
        machine.gate(13, selector::CODE32, 0, kind::INTERRUPT_GATE & 0x7f, 0, long);
        let end = machine.code(|a| a.int(0x80u32 as i32)).with(|state| state.idtr.limit = 0x1ff).run();
        end.expect_fault(8, Some(0), CODE);
    }
}

pub(super) fn a_page_fault_in_delivery_of_a_page_fault_is_a_double_fault(engine: &Engine) {
    // The handler's stack is not there.
    let machine = Machine::long(engine);
    machine.gate(8, selector::CODE64, handler(8), kind::INTERRUPT_GATE, 1, true);
    let end = machine.reg(gpr::RSP, FREE).code(|a| a.push(rax)).run();
    end.expect_fault(8, Some(0), CODE);
    assert_eq!(end.state.cr2 & !0xfff, FREE - 0x1000);
}

pub(super) fn a_fault_in_delivery_of_a_benign_one_is_delivered_instead(engine: &Engine) {
    // #UD's gate is not present: #NP, no double fault.
    let machine = Machine::long(engine);
    machine.gate(6, selector::CODE64, 0, kind::INTERRUPT_GATE & 0x7f, 0, true);
    // What the processor raises itself is an external event to the error code.
    machine.code(|a| a.ud2()).run().expect_fault(11, Some(6 * 8 + 3), CODE);
}

pub(super) fn a_page_fault_in_delivery_of_a_contributory_one_is_delivered_instead(engine: &Engine) {
    // APM table 8-5: a contributory exception followed by a page fault is no double fault.
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    // #GP's handler is to run on a stack that is not there; the page fault's on one that is.
    machine.put(TSS + 0x1c + 8, FREE + 0x2000);
    machine.gate(13, selector::CODE64, handler(13), kind::INTERRUPT_GATE, 1, true);
    let end = machine.code(|a| a.int(0x80u32 as i32)).with(|state| state.idtr.limit = 0x1ff).run();
    end.expect_fault(14, Some(2), CODE);
    assert_eq!(end.state.cr2 & !0xfff, FREE + 0x1000);
}

pub(super) fn a_third_fault_shuts_the_processor_down(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let end = machine.with(|state| state.idtr.limit = 0).code(|a| a.ud2()).run();
        assert_eq!(end.exit, Exit::Shutdown);
    }
    let machine = Machine::long(engine);
    for vector in [8, 13] {
        machine.gate(vector, selector::CODE64, 0, 0, 0, true);
    }
    assert_eq!(machine.code(|a| a.int(0x80u32 as i32)).with(|s| s.idtr.limit = 0x1ff).run().exit, Exit::Shutdown);
}

pub(super) fn real_mode_interrupts_go_through_the_vector_table(engine: &Engine) {
    let end = Machine::real(engine)
        .flags(rflags::IF | rflags::CF)
        .with(|state| state.segments.ss = crate::x86::Segment::real_mode(0x100))
        .reg(gpr::RSP, 0x800)
        .code(|a| a.int(0x30))
        .run();
    assert_eq!(end.vector(), Some(0x30));
    assert_eq!(end.reg(gpr::RSP), 0x800 - 6);
    let words = [0, 2, 4].map(|n| end.load::<u16>(0x1800 - 6 + n));
    assert_eq!(words, [CODE as u16 + 2, 0, (rflags::IF | rflags::CF | rflags::FIXED) as u16]);
    assert!(!end.has(rflags::IF));
}

pub(super) fn real_mode_exceptions_have_no_error_code(engine: &Engine) {
    // A word at the segment's last byte: #GP, without an error code here.
    let end = Machine::real(engine).code(|a| a.mov(ax, word_ptr(0xffff))).run();
    assert_eq!(end.vector(), Some(13));
    assert_eq!(end.reg(gpr::RSP), STACK - 6);
    assert_eq!(end.load::<u16>(STACK - 6), CODE as u16);
}

pub(super) fn a_vector_beyond_the_real_mode_table_is_a_double_fault(engine: &Engine) {
    let end = Machine::real(engine).with(|s| s.idtr.limit = 0x3f).code(|a| a.int(0x30)).run();
    assert_eq!(end.vector(), Some(13), "a general-protection fault, whose vector the table has");
    let end = Machine::real(engine).with(|s| s.idtr.limit = 0x23).code(|a| a.int(0x30)).run();
    assert_eq!(end.vector(), Some(8), "it has not: a double fault");
    let end = Machine::real(engine).with(|s| s.idtr.limit = 0x1f).code(|a| a.int(0x30)).run();
    assert_eq!(end.exit, Exit::Shutdown);
}

pub(super) fn the_real_mode_table_may_be_anywhere(engine: &Engine) {
    let machine = Machine::real(engine).with(|state| state.idtr.base = 0x1_0000).code(|a| a.int(0x21));
    machine.put(0x1_0000 + 0x21 * 4, handler(0x77) as u32);
    assert_eq!(machine.run().vector(), Some(0x77));
}

pub(super) fn instructions_over_15_bytes_fault(engine: &Engine) {
    // Fourteen prefixes and a one-byte opcode are just right; fifteen are not.
    for (prefixes, allowed) in [(14, true), (15, false)] {
        let mut bytes = vec![0x2e; prefixes];
        bytes.extend([0x90, 0xf4]);
        let end = Machine::protected(engine).bytes_at(CODE, &bytes).run();
        if allowed {
            assert_eq!((end.exit, end.state.rip), (Exit::Halted, CODE + 16));
        } else {
            end.expect_fault(13, Some(0), CODE);
        }
    }
}

pub(super) fn lock_is_invalid_where_nothing_can_be_locked(engine: &Engine) {
    let invalid: [&[u8]; 5] = [
        // A register destination; a load; `mov`; `cmp`; `bt`.
        &[0xf0, 0x01, 0xc8],
        &[0xf0, 0x03, 0x03],
        &[0xf0, 0x89, 0x03],
        &[0xf0, 0x39, 0x03],
        &[0xf0, 0x0f, 0xa3, 0x03],
    ];
    for bytes in invalid {
        let end = Machine::long(engine).reg(gpr::RBX, DATA).bytes_at(CODE, bytes).run();
        end.expect_fault(6, None, CODE);
    }
    let end = Machine::long(engine).reg(gpr::RBX, DATA).code(|a| a.lock().inc(dword_ptr(rbx))).run();
    end.expect_end();
    assert_eq!(end.load::<u32>(DATA), 1);
}

pub(super) fn pushes_that_fault_leave_the_stack_pointer(engine: &Engine) {
    let end = Machine::long(engine).reg(gpr::RSP, FREE).code(|a| {
        a.mov(rax, rsp)?;
        a.mov(rbx, STACK)?;
        a.push(rax)
    });
    end.gate(14, selector::CODE64, handler(14), kind::INTERRUPT_GATE, 1, true);
    let end = end.run();
    end.expect_page_fault(2, FREE - 8);
    assert_eq!(end.frame().rsp, FREE);
}

pub(super) fn idt_reads_that_page_fault_are_double_faults(engine: &Engine) {
    let mut machine = Machine::long(engine);
    // The table's second half, vectors 128 to 255, is on a page that is not there.
    machine.map(FREE, IDT, pte::P);
    let machine = machine.with(|state| {
        state.idtr.base = FREE + 0x800;
        state.idtr.limit = 0xfff;
    });
    let mut table = [0; 0x800];
    machine.ram.read(posada_memory::Gpa(IDT), &mut table).expect("inside RAM");
    let machine = machine.bytes_at(IDT + 0x800, &table).code(|a| a.int(0x90u32 as i32));
    let end = machine.run();
    // The software interrupt is benign: its page fault is delivered as such.
    end.expect_page_fault(0, FREE + 0x800 + 0x900);
}
