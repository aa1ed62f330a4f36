//! Return from interrupts, in all its forms (AMD APM volume 3, `iret`; volume 2, section 8.7.4).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, End, GDT, Machine, STACK, USER_CODE, descriptor, selector};
use crate::x86::{gpr, rflags};

const TARGET: u64 = USER_CODE;
const FREE: u64 = GDT + selector::FREE as u64;

/// `iret` of the mode's size with this frame, top of stack first; `mov eax, 7` at the target, of so many bits.
fn returning(mut machine: Machine<'_>, frame: &[u64], bits: u32) -> End {
    let wide = machine.bits == 64;
    let size = if wide { 8 } else { 4 };
    let top = STACK - frame.len() as u64 * size;
    for (n, value) in frame.iter().enumerate() {
        let at = top + n as u64 * size;
        if wide { machine.put(at, *value) } else { machine.put(at, *value as u32) }
    }
    machine.state.gpr[gpr::RSP] = top;
    machine
        .code(|a| if wide { a.iretq() } else { a.iretd() })
        .code_at(TARGET, bits, |a| a.mov(eax, 7))
        .run()
}

pub(super) fn iret_returns_to_the_same_level(engine: &Engine) {
    let flags = rflags::CF | rflags::NT | rflags::IOPL | rflags::AC | rflags::ID;
    let end = returning(Machine::protected(engine), &[TARGET, selector::CODE32.into(), flags], 32);
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RSP)), (7, STACK));
    assert_eq!(end.state.rflags, flags | rflags::FIXED);
}

pub(super) fn iret_of_64_bit_mode_always_takes_a_stack(engine: &Engine) {
    let frame = [TARGET, selector::CODE64.into(), rflags::CF, DATA - 3, selector::DATA.into()];
    let end = returning(Machine::long(engine), &frame, 64);
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RSP)), (7, DATA - 3));
    // Even a null one, below CPL 3 and into 64-bit code.
    let frame = [TARGET, selector::CODE64.into(), rflags::CF, DATA, 0];
    let end = returning(Machine::long(engine), &frame, 64);
    end.expect_end();
    assert_eq!(end.state.segments.ss.selector, 0);
}

pub(super) fn iret_returns_to_programs(engine: &Engine) {
    let frame = |code: u16| [TARGET, code.into(), rflags::CF, DATA, selector::USER_DATA.into()];
    let end = returning(Machine::protected(engine), &frame(selector::USER_CODE32), 32);
    end.expect_end();
    assert_eq!((end.frame().cs, end.frame().rsp), (selector::USER_CODE32, DATA));
    for (code, bits) in [(selector::USER_CODE64, 64), (selector::USER_CODE32, 32)] {
        let end = returning(Machine::long(engine), &frame(code), bits);
        end.expect_end();
        let frame = end.frame();
        assert_eq!((frame.cs, frame.rsp, frame.ss), (code, DATA, selector::USER_DATA));
        assert_eq!(end.reg(gpr::RAX), 7);
    }
}

pub(super) fn iret_clears_data_segments_that_a_program_may_not_have(engine: &Engine) {
    let machine = Machine::protected(engine).with(|state| state.segments.es = state.segments.ds);
    let user = machine.segment(selector::USER_DATA);
    let machine = machine.with(|state| state.segments.fs = user);
    let frame = [TARGET, selector::USER_CODE32.into(), 2, DATA, selector::USER_DATA.into()];
    let end = returning(machine, &frame, 32);
    end.expect_end();
    let s = end.state.segments;
    assert_eq!((s.ds.selector, s.es.selector, s.fs.selector), (0, 0, selector::USER_DATA));
}

pub(super) fn iret_lets_privileged_flags_be_changed_by_the_privileged_only(engine: &Engine) {
    let all = rflags::IF | rflags::IOPL | rflags::CF;
    let frame = [TARGET, selector::USER_CODE32.into(), all, DATA, selector::USER_DATA.into()];
    // At CPL 3 and IOPL 0 neither IOPL nor IF change.
    let end = returning(Machine::protected(engine).user(), &frame, 32);
    end.expect_end();
    assert_eq!(end.frame().rflags & all, rflags::CF);
    // At CPL 3 and IOPL 3 IF does, IOPL does not.
    let machine = Machine::protected(engine).user().flags(rflags::IOPL);
    let end = returning(machine, &[TARGET, selector::USER_CODE32.into(), rflags::IF], 32);
    assert_eq!(end.frame().rflags & all, rflags::IF | rflags::IOPL);
}

pub(super) fn iret_checks_what_it_returns_to(engine: &Engine) {
    let user = u64::from(selector::USER_CODE32);
    let cases = [
        // Null code; data; a level inwards; a stack that does not match; a null stack.
        (vec![TARGET, 0, 2], 13, 0),
        (vec![TARGET, selector::DATA.into(), 2], 13, u32::from(selector::DATA)),
        (vec![TARGET, user, 2, DATA, selector::DATA.into()], 13, u32::from(selector::DATA)),
        (vec![TARGET, user, 2, DATA, 0], 13, 0),
        (vec![TARGET, user & !3, 2], 13, user as u32 & !3),
    ];
    for (frame, vector, error) in cases {
        let end = returning(Machine::protected(engine), &frame, 32);
        end.expect_fault(vector, Some(error), CODE);
    }
    let end = returning(Machine::protected(engine).user(), &[TARGET, selector::CODE32.into(), 2], 32);
    end.expect_fault(13, Some(selector::CODE32.into()), CODE);
    // Not present.
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::segment(0, 0xf_ffff, 0xc01b));
    let end = returning(machine, &[TARGET, selector::FREE.into(), 2], 32);
    end.expect_fault(11, Some(selector::FREE.into()), CODE);
}

pub(super) fn iret_to_an_address_that_is_not_canonical_faults(engine: &Engine) {
    let frame = [1 << 47, selector::CODE64.into(), 2, STACK, selector::DATA.into()];
    let end = returning(Machine::long(engine), &frame, 64);
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn nested_tasks_are_no_part_of_long_mode(engine: &Engine) {
    let frame = [TARGET, selector::CODE64.into(), 2, STACK, selector::DATA.into()];
    let end = returning(Machine::long(engine).flags(rflags::NT), &frame, 64);
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn iret_from_compatibility_mode_returns_to_64_bit_code(engine: &Engine) {
    let end = returning(Machine::compatibility(engine), &[TARGET, selector::CODE64.into(), 2], 64);
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), 7);
    assert!(end.state.segments.cs.long());
}

pub(super) fn real_mode_iret_pops_words(engine: &Engine) {
    let machine = Machine::real(engine);
    for (n, word) in [0x100, 0x9f0, 0xf8d7_u16].into_iter().enumerate() {
        machine.put(STACK - 6 + n as u64 * 2, word);
    }
    let end = machine
        .reg(gpr::RSP, STACK - 6)
        .code(|a| a.iret())
        .code_at(TARGET, 16, |a| a.mov(ax, 7))
        .run();
    end.expect_end_at(0x100 + 4);
    assert_eq!((end.state.segments.cs.selector, end.reg(gpr::RSP)), (0x9f0, STACK));
    // Whatever bits exist: TF of 0x100 is clear here, bits 1, 3, 5 and 15 are fixed.
    assert_eq!(end.state.rflags & 0xffff, 0x78d7);
}
