//! Far jumps, calls and returns.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::RSP;
use posada_vcpu::x86::{Segment, State};

use crate::exception::vector;
use crate::system::descriptor::kind;
use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as FREE_RAM, Guest, Outcome, STACK};

fn protected() -> Guest {
    Guest::protected().with_system()
}

fn long() -> Guest {
    Guest::long().with_system()
}

/// Jumps to, or calls, a far pointer of 32 bits and selector in memory.
fn far(guest: Guest, call: bool, selector: u16, offset: u32) -> Outcome {
    // `jmp` or `call fword ptr [rbx]`.
    guest
        .store(FREE_RAM, offset)
        .store(FREE_RAM + 4, selector)
        .reg(3, FREE_RAM)
        .bytes(&[0xff, if call { 0x1b } else { 0x2b }])
        .steps(1)
}

fn at(state: &State) -> (u16, u64) {
    (state.segments.cs.selector, state.rip)
}

#[test]
fn a_far_jump_enters_another_code_segment() {
    let outcome = far(protected(), false, CODE16, 0x1234);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE16, 0x1234)));
    assert!(!outcome.state.segments.cs.db());
    let outcome = protected().bytes(&[0xea, 0x34, 0x12, 0, 0, CODE16 as u8, 0]).steps(1);
    assert_eq!(at(&outcome.state), (CODE16, 0x1234));
}

#[test]
fn a_far_jump_moves_between_compatibility_and_64_bit_mode() {
    let outcome = far(long(), false, CODE32, 0x1234);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE32, 0x1234)));
    let outcome = far(long().with(|s| s.segments.cs = Segment::flat_code32(CODE32)), false, CODE64, 0x5678);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE64, 0x5678)));
    // Both sizes at once is no size at all.
    let outcome = far(long().descriptor(FREE, descriptor(0, 0xfffff, 0xe09b)), false, FREE, 0);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(FREE.into()))));
}

#[test]
fn far_targets_are_checked() {
    let cases = [
        (0, 0, vector::GP, 0),
        (0x100, 0, vector::GP, 0x100),
        (DATA, 0, vector::GP, DATA),
        (CODE | 1, 0, vector::GP, CODE),
        (USER_CODE32, 0, vector::GP, USER_CODE32 & !3),
        (FREE, 0, vector::NP, FREE),
        (CODE16, 0x10000, vector::GP, 0),
        (LOCAL_TABLE, 0, vector::GP, LOCAL_TABLE),
        (TASK, 0, vector::GP, TASK),
    ];
    for (selector, offset, expected, error) in cases {
        for call in [false, true] {
            let guest = protected().descriptor(FREE, descriptor(0, 0xfffff, 0xc01b));
            let outcome = far(guest, call, selector, offset);
            assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{selector:#x}");
            assert_eq!((at(&outcome.state), outcome.reg(RSP)), ((CODE, START), STACK));
        }
    }
}

#[test]
fn a_user_may_jump_to_conforming_code_and_stays_a_user() {
    let outcome = far(protected().at_user_level(), false, CONFORMING32, 0x1234);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CONFORMING32 | 3, 0x1234)));
    assert_eq!(outcome.state.cpl(), 3);
}

#[test]
fn a_far_call_pushes_code_segment_and_instruction_pointer() {
    let outcome = far(protected(), true, CODE32, 0x1234);
    assert_eq!(at(&outcome.state), (CODE32, 0x1234));
    assert_eq!((outcome.reg(RSP), outcome.stack::<u32, 2>()), (STACK - 8, [START + 2, CODE.into()]));
    // With a 16-bit operand.
    let outcome = protected()
        .store(FREE_RAM, 0x1234_u16)
        .store(FREE_RAM + 2, CODE32)
        .reg(3, FREE_RAM)
        .bytes(&[0x66, 0xff, 0x1b])
        .steps(1);
    assert_eq!(at(&outcome.state), (CODE32, 0x1234));
    assert_eq!((outcome.reg(RSP), outcome.stack::<u16, 2>()), (STACK - 4, [START + 3, CODE.into()]));
}

#[test]
fn real_mode_far_calls_and_returns() {
    let outcome = Guest::real()
        .bytes(&[0x9a, 0x10, 0, 0x00, 0x20])
        .memory(0x20010, &[0xca, 4, 0])
        .store(STACK, 0x1111_u16)
        .steps(2);
    assert_eq!((at(&outcome.state), outcome.reg(RSP)), ((0, START + 5), STACK + 4));
}

fn call_gate(kind: u8, dpl: u8, selector: u16, offset: u64, parameters: u64) -> u64 {
    gate(kind, dpl, selector, offset) | parameters << 32
}

#[test]
fn a_call_gate_leads_to_its_own_target() {
    let guest = protected().descriptor(FREE, call_gate(kind::CALL_GATE, 0, CODE32, 0x12_3456, 0));
    let outcome = far(guest, true, FREE, 0xdead_beef);
    assert_eq!(at(&outcome.state), (CODE32, 0x12_3456));
    assert_eq!(outcome.stack::<u32, 2>(), [START + 2, CODE.into()]);
    let guest = protected().descriptor(FREE, call_gate(kind::CALL_GATE16, 0, CODE32, 0x12_3456, 0));
    let outcome = far(guest, true, FREE, 0);
    assert_eq!(at(&outcome.state), (CODE32, 0x3456));
    assert_eq!(outcome.stack::<u16, 2>(), [START + 2, CODE.into()]);
}

#[test]
fn a_call_gate_to_an_inner_level_copies_parameters_to_its_stack() {
    let guest = protected()
        .at_user_level()
        .descriptor(FREE, call_gate(kind::CALL_GATE, 3, CODE32, 0x1234, 3))
        .store(STACK - 12, 0x1111_u32)
        .store(STACK - 8, 0x2222_u32)
        .store(STACK - 4, 0x3333_u32)
        .reg(RSP, STACK - 12);
    let outcome = far(guest, true, FREE, 0);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE32, 0x1234)));
    assert_eq!((outcome.reg(RSP), outcome.state.segments.ss.selector), (STACK0 - 28, DATA));
    assert_eq!(
        outcome.stack::<u32, 7>(),
        [START + 2, USER_CODE32.into(), 0x1111, 0x2222, 0x3333, STACK - 12, USER_DATA.into()]
    );
}

#[test]
fn a_return_to_an_outer_level_drops_parameters_on_both_stacks_and_the_kernels_segments() {
    let frame: [u32; 6] = [0x1234, USER_CODE32.into(), 0x1111, 0x2222, STACK as u32, USER_DATA.into()];
    let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
    let outcome = protected()
        .memory(STACK0 - 24, &bytes)
        .reg(RSP, STACK0 - 24)
        .with(|state| {
            state.segments.fs = Segment { attributes: 0xc0f3, ..Segment::flat_data(USER_DATA) };
            state.segments.gs = Segment { attributes: 0xc09f, ..Segment::flat_data(CONFORMING32) };
        })
        .bytes(&[0xca, 8, 0])
        .steps(1);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (USER_CODE32, 0x1234)));
    let s = outcome.state.segments;
    assert_eq!((outcome.reg(RSP), s.ss.selector, outcome.state.cpl()), (STACK + 8, USER_DATA, 3));
    assert_eq!([s.es, s.ds, s.fs, s.gs].map(|s| s.selector), [0, 0, USER_DATA, CONFORMING32]);
}

#[test]
fn a_return_cannot_go_inward_and_checks_what_it_goes_back_to() {
    let cases: [([u32; 4], u8, u16); 8] = [
        ([0, 0, 0, 0], vector::GP, 0),
        ([0, DATA.into(), 0, 0], vector::GP, DATA),
        ([0, 0x100, 0, 0], vector::GP, 0x100),
        ([0, (CODE32 | 3).into(), 0, 0], vector::GP, CODE32),
        ([0x10000, CODE16.into(), 0, 0], vector::GP, 0),
        ([0, USER_CODE32.into(), 0, 0], vector::GP, 0),
        ([0, USER_CODE32.into(), 0, DATA.into()], vector::GP, DATA),
        ([0, USER_CODE32.into(), 0, (USER_DATA & !3).into()], vector::GP, USER_DATA & !3),
    ];
    for (frame, expected, error) in cases {
        let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
        let outcome = protected().memory(STACK - 16, &bytes).reg(RSP, STACK - 16).bytes(&[0xcb]).steps(1);
        assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{frame:x?}");
        assert_eq!((at(&outcome.state), outcome.reg(RSP)), ((CODE, START), STACK - 16));
    }
    let outcome = protected()
        .at_user_level()
        .store(STACK - 4, u32::from(CODE32))
        .reg(RSP, STACK - 8)
        .bytes(&[0xcb])
        .steps(1);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(CODE32.into()))), "inward");
}

#[test]
fn call_gates_are_checked() {
    let good = call_gate(kind::CALL_GATE, 3, CODE32, 0x1234, 0);
    let cases = [
        (call_gate(kind::CALL_GATE, 2, CODE32, 0, 0), vector::GP, FREE),
        (good & !(1 << 47), vector::NP, FREE),
        (call_gate(kind::CALL_GATE, 3, 0, 0, 0), vector::GP, 0),
        (call_gate(kind::CALL_GATE, 3, 0x100, 0, 0), vector::GP, 0x100),
        (call_gate(kind::CALL_GATE, 3, DATA, 0, 0), vector::GP, DATA),
        (call_gate(kind::CALL_GATE, 3, CODE16, 0x10000, 0), vector::GP, 0),
    ];
    for (raw, expected, error) in cases {
        let outcome = far(protected().at_user_level().descriptor(FREE, raw), true, FREE | 3, 0);
        assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{raw:#x}");
    }
    let outcome = far(protected().at_user_level().descriptor(FREE, good), false, FREE | 3, 0);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(CODE32.into()))), "a jump changes no level");
}

#[test]
fn a_64_bit_call_gate_leads_from_32_bit_users_to_the_kernel() {
    let gate = call_gate(kind::CALL_GATE, 3, CODE64, 0x1234_5678, 5);
    let guest =
        |user: Guest| user.with_system().descriptor(FREE, gate).store(GDT + u64::from(FREE) + 8, 0x12_u64);
    let compatibility = Guest::user().with_system().at_user_level().with(|state| {
        state.segments.cs = Segment { attributes: 0xc0fb, ..Segment::flat_code32(USER_CODE32) };
    });
    let compatibility = compatibility.descriptor(FREE, gate).store(GDT + u64::from(FREE) + 8, 0x12_u64);
    for guest in [compatibility, guest(Guest::user()).at_user_level()] {
        let old = guest.state.segments.cs.selector;
        let outcome = far(guest, true, FREE | 3, 0);
        assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE64, 0x12_1234_5678)));
        assert_eq!(outcome.stack::<u64, 4>(), [START + 2, old.into(), STACK, USER_DATA.into()]);
        let stack = outcome.state.segments.ss;
        assert_eq!((outcome.reg(RSP), stack.selector, outcome.state.cpl()), (STACK0 - 32, 0, 0));
    }
    let outcome =
        far(long().descriptor(FREE, gate).store(GDT + u64::from(FREE) + 8, 0x8000_u64), true, FREE, 0);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))), "not canonical");
    let outcome =
        far(long().descriptor(FREE, gate).store(GDT + u64::from(FREE) + 8, 1_u64 << 40), true, FREE, 0);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(FREE.into()))), "the upper half has a type");
}

#[test]
fn a_64_bit_far_return_goes_to_32_bit_users() {
    let outcome = long()
        .store(STACK - 32, 0x1234_u64)
        .store(STACK - 24, u64::from(USER_CODE32))
        .store(STACK - 16, 0x5678_u64)
        .store(STACK - 8, u64::from(USER_DATA))
        .reg(RSP, STACK - 32)
        .bytes(&[0x48, 0xcb])
        .steps(1);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (USER_CODE32, 0x1234)));
    assert_eq!((outcome.reg(RSP), outcome.state.segments.ss.selector), (0x5678, USER_DATA));
}

#[test]
fn from_real_mode_to_64_bit_mode_and_back() {
    // Page tables where `Guest::long` has them; everything below 2 MiB.
    let guest = Guest::real()
        .with_system()
        .store(0x1000, 0x2003_u64)
        .store(0x2000, 0x3003_u64)
        .store(0x3000, 0x83_u64)
        .store(GDT + u64::from(CODE64), descriptor(0, 0xfffff, 0xa09b))
        .store(GDT + u64::from(CODE32), descriptor(0, 0xfffff, 0xc09b))
        .store(GDT + u64::from(CODE16), descriptor(0, 0xffff, 0x9b))
        .store(GDT + u64::from(DATA16), descriptor(0, 0xffff, 0x93))
        .store(FREE_RAM, 0xff_u16)
        .store(FREE_RAM + 2, GDT as u32);
    let mut b16 = CodeAssembler::new(16).unwrap();
    b16.lgdt(fword_ptr(FREE_RAM as u32)).unwrap();
    b16.mov(eax, cr0).unwrap();
    b16.or(eax, 1).unwrap();
    b16.mov(cr0, eax).unwrap();
    b16.db(&[0x66, 0xea, 0, 0x90, 0, 0, CODE32 as u8, 0]).unwrap();
    let mut b32 = CodeAssembler::new(32).unwrap();
    b32.mov(eax, cr4).unwrap();
    b32.or(eax, 0x20).unwrap();
    b32.mov(cr4, eax).unwrap();
    b32.mov(eax, 0x1000).unwrap();
    b32.mov(cr3, eax).unwrap();
    b32.mov(ecx, 0xc000_0080_u32).unwrap();
    b32.rdmsr().unwrap();
    b32.or(eax, 0x100).unwrap();
    b32.wrmsr().unwrap();
    b32.mov(eax, cr0).unwrap();
    b32.or(eax, 0x8000_0000_u32).unwrap();
    b32.mov(cr0, eax).unwrap();
    b32.db(&[0xea, 0, 0xa1, 0, 0, CODE64 as u8, 0]).unwrap();
    let mut b64 = CodeAssembler::new(64).unwrap();
    b64.mov(r8, 0x1234_5678_9abc_def0_u64).unwrap();
    b64.mov(qword_ptr(FREE_RAM + 0x20), r8).unwrap();
    b64.jmp(fword_ptr(FREE_RAM + 0x10)).unwrap();
    let mut down = CodeAssembler::new(32).unwrap();
    down.mov(eax, cr0).unwrap();
    down.and(eax, 0x7fff_ffff).unwrap();
    down.mov(cr0, eax).unwrap();
    down.mov(ecx, 0xc000_0080_u32).unwrap();
    down.rdmsr().unwrap();
    down.and(eax, !0x100).unwrap();
    down.wrmsr().unwrap();
    down.db(&[0xea, 0, 0xa3, 0, 0, CODE16 as u8, 0]).unwrap();
    let mut last = CodeAssembler::new(16).unwrap();
    last.mov(ax, u32::from(DATA16)).unwrap();
    last.mov(ds, ax).unwrap();
    last.mov(ss, ax).unwrap();
    last.mov(eax, cr0).unwrap();
    last.and(eax, !1).unwrap();
    last.mov(cr0, eax).unwrap();
    last.db(&[0xea, 0, 0xa4, 0, 0]).unwrap();
    let mut real = CodeAssembler::new(16).unwrap();
    real.xor(ax, ax).unwrap();
    real.mov(ds, ax).unwrap();
    real.mov(ss, ax).unwrap();
    real.mov(bx, word_ptr(FREE_RAM + 0x20)).unwrap();
    real.int(0x80).unwrap();
    let outcome = guest
        .memory(0x9000, &b32.assemble(0x9000).unwrap())
        .memory(0xa100, &b64.assemble(0xa100).unwrap())
        .store(FREE_RAM + 0x10, 0xa200_u32)
        .store(FREE_RAM + 0x14, CODE32)
        .memory(0xa200, &down.assemble(0xa200).unwrap())
        .memory(0xa300, &last.assemble(0xa300).unwrap())
        .memory(0xa400, &real.assemble(0xa400).unwrap())
        .bytes(&b16.assemble(START).unwrap())
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(0x80), "{:#x?}", outcome.state);
    assert_eq!((outcome.reg(3), outcome.state.cr0 & 0x8000_0001), (0xdef0, 0));
    assert_eq!((outcome.state.msrs.efer, outcome.state.gpr[8]), (0, 0x1234_5678_9abc_def0));
}

#[test]
fn a_far_call_from_64_bit_to_32_bit_code_pushes_on_the_32_bit_stack() {
    let outcome = far(long().reg(RSP, 0x8e34_1ff4_0000_7000), true, CODE32, 0x1234);
    assert_eq!((outcome.fault(), at(&outcome.state)), (None, (CODE32, 0x1234)));
    assert_eq!((outcome.reg(RSP), outcome.stack::<u32, 2>()), (0x6ff8, [START + 2, CODE.into()]));
}
