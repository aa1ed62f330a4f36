//! Far calls, jumps and returns: between segments and privilege levels, with and without call gates (AMD APM
//! volume 2, section 4.8).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, End, GDT, KERNEL_STACK, Machine, STACK, USER_CODE, descriptor, kind, selector};
use crate::x86::{Segment, gpr};

const FREE: u64 = GDT + selector::FREE as u64;
const TARGET: u64 = USER_CODE;

/// `call far` (or `jmp far`) to a selector and offset, 32-bit code.
fn far(operation: u8, selector: u16, offset: u64) -> Vec<u8> {
    let mut bytes = vec![operation];
    bytes.extend((offset as u32).to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    bytes.push(0xf4);
    bytes
}

const CALL: u8 = 0x9a;
const JMP: u8 = 0xea;

fn transfer(machine: Machine<'_>, operation: u8, selector: u16, offset: u64) -> End {
    let bytes = far(operation, selector, offset);
    machine.bytes_at(CODE, &bytes).code_at(TARGET, 32, |a| a.mov(eax, 7)).run()
}

pub(super) fn far_jumps_and_calls_load_the_code_segment(engine: &Engine) {
    for operation in [CALL, JMP] {
        let machine = Machine::protected(engine);
        machine.put(FREE, descriptor::segment(0x1000, 0xf_ffff, 0xc09a));
        let end = transfer(machine, operation, selector::FREE, TARGET - 0x1000);
        let register = end.state.segments.cs;
        let seen = (register.selector, register.base, end.load::<u8>(FREE + 5));
        assert_eq!(seen, (selector::FREE, 0x1000, 0x9b));
        assert_eq!((end.exit, end.state.rip), (crate::Exit::Halted, TARGET + 6 - 0x1000));
        if operation == CALL {
            let frame = [end.load::<u32>(STACK - 8), end.load::<u32>(STACK - 4)];
            assert_eq!(frame, [CODE as u32 + 7, selector::CODE32.into()]);
        }
    }
}

pub(super) fn far_transfers_check_their_target(engine: &Engine) {
    let free = u32::from(selector::FREE);
    let targets = [
        // Null; beyond the table; data; not present; less privileged; offset beyond the limit.
        (0, None, 13, 0),
        (0x2000, None, 13, 0x2000),
        (selector::DATA, None, 13, u32::from(selector::DATA)),
        (selector::FREE, Some(descriptor::segment(0, 0xf_ffff, 0xc01b)), 11, free),
        (selector::FREE, Some(descriptor::segment(0, 0xf_ffff, 0xc0fb)), 13, free),
        (selector::FREE, Some(descriptor::segment(0, 0xfff, 0x409b)), 13, 0),
    ];
    for (target, entry, vector, error) in targets {
        for operation in [CALL, JMP] {
            let machine = Machine::protected(engine);
            if let Some(entry) = entry {
                machine.put(FREE, entry);
            }
            transfer(machine, operation, target, TARGET).expect_fault(vector, Some(error), CODE);
        }
    }
}

pub(super) fn programs_reach_the_kernels_code_only_if_it_conforms(engine: &Engine) {
    for operation in [CALL, JMP] {
        let end = transfer(Machine::protected(engine).user(), operation, selector::CODE32, TARGET);
        end.expect_fault(13, Some(selector::CODE32.into()), CODE);
        let machine = Machine::protected(engine);
        machine.put(FREE, descriptor::segment(0, 0xf_ffff, 0xc09e));
        let end = transfer(machine.user(), operation, selector::FREE, TARGET);
        end.expect_end();
        assert_eq!((end.reg(gpr::RAX), end.frame().cs), (7, selector::FREE | 3), "still at CPL 3");
    }
}

pub(super) fn far_returns_go_back(engine: &Engine) {
    for (machine, bits) in [(Machine::protected(engine), 32), (Machine::long(engine), 64)] {
        let code = if bits == 64 { selector::CODE64 } else { selector::CODE32 };
        let end = machine
            .code(|a| {
                a.push(i32::from(code))?;
                a.push(TARGET as i32)?;
                if bits == 64 { a.db(&[0x48, 0xca, 0x20, 0]) } else { a.retf_1(0x20) }
            })
            .code_at(TARGET, bits, |a| a.mov(eax, 7))
            .run();
        end.expect_end();
        assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RSP)), (7, STACK + 0x20));
    }
}

pub(super) fn far_returns_to_programs_take_their_stack_and_drop_the_kernels_data(engine: &Engine) {
    for bits in [32, 64] {
        let machine = if bits == 64 { Machine::long(engine) } else { Machine::protected(engine) };
        let code = if bits == 64 { selector::USER_CODE64 } else { selector::USER_CODE32 };
        let end = machine
            .with(|state| state.segments.fs = Segment { selector: selector::USER_DATA, ..state.segments.fs })
            .code(|a| {
                a.push(i32::from(selector::USER_DATA))?;
                a.push(DATA as i32)?;
                a.push(i32::from(code))?;
                a.push(TARGET as i32)?;
                if bits == 64 { a.db(&[0x48, 0xcb]) } else { a.retf() }
            })
            .code_at(TARGET, bits, |a| {
                a.mov(eax, ds)?;
                a.mov(ecx, cs)
            })
            .run();
        end.expect_end();
        let frame = end.frame();
        assert_eq!((frame.rsp, frame.ss, frame.cs), (DATA, selector::USER_DATA, code));
        assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RCX)), (0, code.into()), "{bits} bits");
    }
}

pub(super) fn far_returns_never_go_inwards(engine: &Engine) {
    let end = Machine::protected(engine)
        .user()
        .code(|a| {
            a.push(u32::from(selector::CODE32))?;
            a.push(TARGET as u32)?;
            a.retf()
        })
        .run();
    end.expect_fault(13, Some(selector::CODE32.into()), CODE + 7);
}

pub(super) fn call_gates_lead_to_the_same_level(engine: &Engine) {
    for operation in [CALL, JMP] {
        let machine = Machine::protected(engine);
        machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE, 0));
        // The offset in the instruction does not count.
        let end = transfer(machine, operation, selector::FREE, 0x1234_5678);
        end.expect_end();
        assert_eq!(end.reg(gpr::RAX), 7);
    }
}

pub(super) fn call_gates_lead_inwards_and_copy_parameters(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE | kind::DPL3, 2));
    machine.put(STACK, 0x1111_u32);
    machine.put(STACK + 4, 0x2222_u32);
    let end = transfer(machine.user(), CALL, selector::FREE, 0);
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), 7);
    assert_eq!((end.state.cpl(), end.state.segments.ss.selector), (0, selector::DATA));
    let bottom = KERNEL_STACK - 24;
    assert_eq!(end.reg(gpr::RSP), bottom);
    let frame: Vec<u32> = (0..6).map(|n| end.load(bottom + n * 4)).collect();
    let expected = [
        CODE as u32 + 7,
        selector::USER_CODE32.into(),
        0x1111,
        0x2222,
        STACK as u32,
        selector::USER_DATA.into(),
    ];
    assert_eq!(frame, expected);
}

pub(super) fn far_returns_with_parameters_release_them_on_both_stacks(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE | kind::DPL3, 2));
    let end = machine
        .user()
        .bytes_at(CODE, &far(CALL, selector::FREE, 0))
        .code_at(TARGET, 32, |a| a.retf_1(8))
        .run();
    // Back behind the call, where the program may not halt.
    end.expect_fault(13, Some(0), CODE + 7);
    assert_eq!(end.frame().rsp, STACK + 8);
}

pub(super) fn jumps_never_go_inwards_through_a_gate(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE | kind::DPL3, 0));
    let end = transfer(machine.user(), JMP, selector::FREE, 0);
    end.expect_fault(13, Some(selector::CODE32.into()), CODE);
}

pub(super) fn call_gates_check_privileges(engine: &Engine) {
    let free = u32::from(selector::FREE);
    // The gate is the kernel's; it is not present; it leads to data; its selector is null.
    let gates = [
        (descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE, 0), 13, free),
        (descriptor::gate(selector::CODE32, TARGET, (kind::CALL_GATE | kind::DPL3) & 0x7f, 0), 11, free),
        (descriptor::gate(selector::DATA, TARGET, kind::CALL_GATE | kind::DPL3, 0), 13, selector::DATA.into()),
        (descriptor::gate(0, TARGET, kind::CALL_GATE | kind::DPL3, 0), 13, 0),
    ];
    for (gate, vector, error) in gates {
        let machine = Machine::protected(engine);
        machine.put(FREE, gate);
        transfer(machine.user(), CALL, selector::FREE, 0).expect_fault(vector, Some(error), CODE);
    }
}

pub(super) fn sixteen_bit_call_gates_push_words(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE16 | kind::DPL3, 1));
    machine.put(STACK, 0x1111_u16);
    let end = transfer(machine.user(), CALL, selector::FREE, 0);
    end.expect_end();
    let bottom = KERNEL_STACK - 10;
    assert_eq!(end.reg(gpr::RSP), bottom);
    let frame: Vec<u16> = (0..5).map(|n| end.load(bottom + n * 2)).collect();
    let expected = [CODE as u16 + 7, selector::USER_CODE32, 0x1111, STACK as u16, selector::USER_DATA];
    assert_eq!(frame, expected);
}

pub(super) fn call_gates_of_long_mode_enter_64_bit_code(engine: &Engine) {
    let machine = Machine::compatibility(engine);
    machine.put(FREE, descriptor::gate(selector::CODE64, TARGET, kind::CALL_GATE | kind::DPL3, 0));
    machine.put(FREE + 8, 0_u64);
    let machine = machine.user();
    let end = machine
        .bytes_at(CODE, &far(CALL, selector::FREE, 0))
        .code_at(TARGET, 64, |a| a.mov(r8, rsp))
        .run();
    end.expect_end();
    let bottom = KERNEL_STACK - 32;
    assert_eq!(end.reg(8), bottom);
    let frame: Vec<u64> = (0..4).map(|n| end.load(bottom + n * 8)).collect();
    let expected =
        [CODE + 7, u64::from(selector::USER_CODE32), STACK, u64::from(selector::USER_DATA)];
    assert_eq!(frame, expected);
    assert_eq!(end.state.segments.ss.selector, 0, "the new stack segment is null");
}

pub(super) fn call_gates_of_long_mode_must_lead_to_64_bit_code(engine: &Engine) {
    let machine = Machine::compatibility(engine);
    machine.put(FREE, descriptor::gate(selector::CODE32, TARGET, kind::CALL_GATE, 0));
    machine.put(FREE + 8, 0_u64);
    transfer(machine, CALL, selector::FREE, 0).expect_fault(13, Some(selector::CODE32.into()), CODE);
}

pub(super) fn far_pointers_in_memory_work_in_64_bit_mode(engine: &Engine) {
    let machine = Machine::long(engine);
    machine.put(DATA, TARGET as u32);
    machine.put(DATA + 4, selector::CODE32);
    let end = machine
        .reg(gpr::RBX, DATA)
        .bytes_at(CODE, &[0xff, 0x2b])
        .code_at(TARGET, 32, |a| a.mov(eax, cs))
        .run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), u64::from(selector::CODE32));
}

pub(super) fn direct_far_transfers_are_invalid_in_64_bit_mode(engine: &Engine) {
    for operation in [CALL, JMP] {
        let bytes = far(operation, selector::CODE32, TARGET);
        Machine::long(engine).bytes_at(CODE, &bytes).run().expect_fault(6, None, CODE);
    }
}

pub(super) fn real_mode_far_calls_push_words(engine: &Engine) {
    let end = Machine::real(engine)
        .bytes_at(CODE, &[CALL, 0x00, 0x10, 0x00, 0x09])
        .code_at(0xa000, 16, |a| {
            a.mov(ax, cs)?;
            a.retf()
        })
        .bytes_at(CODE + 5, &[0xf4])
        .run();
    assert_eq!((end.exit, end.state.rip), (crate::Exit::Halted, CODE + 6));
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RSP)), (0x900, STACK));
}
