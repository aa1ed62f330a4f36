use iced_x86::code_asm::*;
use posada_vcpu::x86::{cr0, cr4};

use super::super::guest_test::{Registers, bytes, guest};
use crate::exception::vector;
use crate::testing::{DATA, Guest};

#[test]
fn sse_instructions_are_not_available_while_a_task_switch_is_noted() {
    let outcome = guest(|a| a.movaps(xmm0, xmm1)).with(|state| state.cr0 |= cr0::TS).run();
    assert_eq!(outcome.fault(), Some((vector::NM, None)));
}

#[test]
fn sse_instructions_are_invalid_until_the_system_saves_their_state() {
    let outcome = guest(|a| a.movaps(xmm0, xmm1)).with(|state| state.cr4 &= !cr4::OSFXSR).run();
    assert_eq!(outcome.fault(), Some((vector::UD, None)));
}

#[test]
fn sse_instructions_are_invalid_under_emulation_even_when_a_task_switch_is_noted() {
    let outcome = guest(|a| a.paddb(xmm0, xmm1)).with(|state| state.cr0 |= cr0::EM | cr0::TS).run();
    assert_eq!(outcome.fault(), Some((vector::UD, None)));
}

#[test]
fn mmx_instructions_do_not_ask_whether_the_system_saves_sse_state() {
    let outcome = Guest::user().code(|a| a.paddb(mm0, mm1)).run();
    assert_eq!(outcome.fault(), None);
}

#[test]
fn mmx_instructions_are_not_available_while_a_task_switch_is_noted() {
    let outcome = Guest::user().code(|a| a.paddb(mm0, mm1)).with(|state| state.cr0 |= cr0::TS).run();
    assert_eq!(outcome.fault(), Some((vector::NM, None)));
}

#[test]
fn a_waiting_x87_exception_comes_before_an_mmx_instruction() {
    // An invalid operation, unmasked.
    let outcome = Guest::user()
        .code(|a| a.paddb(mm0, mm1))
        .with(|state| {
            state.cr0 |= cr0::NE;
            (state.x87.status, state.x87.control) = (0x8081, 0x37e);
        })
        .run();
    assert_eq!(outcome.fault(), Some((vector::MF, None)));
}

#[test]
fn an_mmx_instruction_takes_the_whole_x87_register_file() {
    let outcome = Guest::user()
        .code(|a| a.movq(mm3, rax))
        .reg(0, 0x0123_4567_89ab_cdef)
        .with(|state| state.x87.status = 5 << 11)
        .run();
    let x87 = &outcome.state.x87;
    assert_eq!((x87.status, x87.occupied), (0, 0xff));
    assert_eq!(x87.registers[3].significand, 0x0123_4567_89ab_cdef);
    assert_eq!(x87.registers[3].sign_exponent, 0xffff);
}

#[test]
fn emms_gives_the_x87_registers_back() {
    let outcome = Guest::user().code(|a| a.movq(mm3, rax).and_then(|()| a.emms())).run();
    assert_eq!(outcome.state.x87.occupied, 0);
}

#[test]
fn memory_operands_of_legacy_instructions_must_be_aligned() {
    let outcome = guest(|a| a.paddb(xmm0, xmmword_ptr(rbx))).reg(3, DATA + 8).run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
}

#[test]
fn operands_may_be_in_memory() {
    let outcome = guest(|a| a.paddb(xmm0, xmmword_ptr(rbx)))
        .reg(3, DATA)
        .memory(DATA, &[1; 16])
        .xmm(0, bytes(&[2; 16]))
        .run();
    assert_eq!(outcome.xmm(0), bytes(&[3; 16]));
}

#[test]
fn an_instruction_that_faults_on_memory_leaves_the_x87_unit_alone() {
    let outcome = Guest::user()
        .code(|a| a.paddb(mm0, qword_ptr(rbx)))
        .reg(3, 1 << 40)
        .with(|state| state.x87.status = 5 << 11)
        .run();
    assert_eq!(outcome.fault().map(|fault| fault.0), Some(vector::PF));
    assert_eq!((outcome.state.x87.status, outcome.state.x87.occupied), (5 << 11, 0));
}
