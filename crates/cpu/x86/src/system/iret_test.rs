//! `iret`.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::RSP;
use posada_vcpu::x86::{Segment, rflags};

use crate::exception::vector;
use crate::system::descriptor::kind;
use crate::system::fixture::*;
use crate::testing::{CODE as START, Guest, Outcome, STACK};

const FIXED: u64 = rflags::FIXED;
const IF: u64 = rflags::IF;
/// All flags that an `iret` can change at level 0, but for VM and RF.
const ALL: u64 = rflags::ARITHMETIC
    | rflags::TF
    | rflags::IF
    | rflags::DF
    | rflags::IOPL
    | rflags::NT
    | rflags::AC
    | rflags::VIF
    | rflags::VIP
    | rflags::ID;

fn frame32(guest: Guest, frame: &[u32]) -> Guest {
    let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
    let top = STACK - bytes.len() as u64;
    guest.memory(top, &bytes).reg(RSP, top)
}

fn frame64(guest: Guest, frame: [u64; 5]) -> Guest {
    let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
    guest.memory(STACK - 40, &bytes).reg(RSP, STACK - 40)
}

fn iret32(guest: Guest, frame: &[u32]) -> Outcome {
    frame32(guest, frame).bytes(&[0xcf]).steps(1)
}

fn iret64(guest: Guest, frame: [u64; 5]) -> Outcome {
    frame64(guest, frame).code(|a| a.iretq()).steps(1)
}

fn protected() -> Guest {
    Guest::protected().with_system()
}

fn long() -> Guest {
    Guest::long().with_system()
}

#[test]
fn iretq_always_pops_the_stack_pointer() {
    let outcome = iret64(long(), [0x1234, CODE64.into(), ALL | FIXED, 0x5678, DATA.into()]);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, 0x5678));
    assert_eq!((outcome.state.segments.cs.selector, outcome.state.segments.ss.selector), (CODE64, DATA));
    assert_eq!(outcome.state.rflags, ALL | FIXED);
}

#[test]
fn iretq_goes_to_users_of_either_size() {
    for (selector, is_long) in [(USER_CODE64, true), (USER_CODE32, false)] {
        let outcome = iret64(long(), [0x1234, selector.into(), IF | FIXED, 0x5678, USER_DATA.into()]);
        assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, 0x5678));
        let s = outcome.state.segments;
        assert_eq!((s.cs.selector, s.cs.long(), outcome.state.cpl()), (selector, is_long, 3));
        assert_eq!([s.es, s.ds, s.fs, s.gs].map(|s| s.selector), [0; 4]);
        assert_eq!(outcome.state.rflags, IF | FIXED);
    }
}

#[test]
fn the_bases_of_fs_and_gs_survive_where_their_selectors_are_null() {
    let guest = long().with(|state| {
        state.segments.fs = Segment { base: 0x1111, ..Segment::default() };
        state.segments.gs = Segment { base: 0x2222, ..Segment::default() };
    });
    let outcome = iret64(guest, [0x1234, USER_CODE64.into(), IF | FIXED, 0x5678, USER_DATA.into()]);
    assert_eq!((outcome.state.segments.fs.base, outcome.state.segments.gs.base), (0x1111, 0x2222));
}

#[test]
fn the_kernel_may_return_without_a_stack_segment_and_a_user_may_not() {
    let outcome = iret64(long(), [0x1234, CODE64.into(), FIXED, 0x5678, 0]);
    assert_eq!((outcome.fault(), outcome.state.segments.ss.selector), (None, 0));
    let outcome = iret64(long(), [0x1234, USER_CODE64.into(), FIXED, 0x5678, 3]);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
}

#[test]
fn iretq_checks_what_it_goes_back_to() {
    let (code, data) = (u64::from(CODE64), u64::from(DATA));
    let cases = [
        ([0x1234, 0, FIXED, 0, data], 0),
        ([0x1234, data, FIXED, 0, data], data),
        ([0x1234, code | 1, FIXED, 0, data], code),
        ([0x1234, 0x100, FIXED, 0, data], 0x100),
        ([1 << 47, code, FIXED, 0, data], 0),
        ([1 << 32, u64::from(CODE32), FIXED, 0, data], 0),
        ([0x1234, code, FIXED, 0, u64::from(USER_DATA)], u64::from(USER_DATA & !3)),
        ([0x1234, code, FIXED, 0, code], code),
    ];
    for (frame, error) in cases {
        let outcome = iret64(long(), frame);
        assert_eq!(outcome.fault(), Some((vector::GP, Some(error as u32))), "{frame:x?}");
        assert_eq!((outcome.state.rip, outcome.reg(RSP)), (START, STACK - 40));
    }
    let outcome = iret64(Guest::user().with_system().at_user_level(), [0, code, FIXED, 0, data]);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(code as u32))), "inward");
    let outcome = iret64(long().flags(rflags::NT), [0x1234, code, FIXED, 0, data]);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))), "no nested tasks in long mode");
}

#[test]
fn iret_within_a_level_leaves_the_stack_segment() {
    let outcome = iret32(protected(), &[0x1234, CODE32.into(), (ALL | FIXED) as u32]);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, STACK));
    assert_eq!(outcome.state.rflags, ALL | FIXED);
    // A 16-bit operand reaches the low flags alone.
    let outcome = protected()
        .store(STACK - 6, 0x1234_u16)
        .store(STACK - 4, CODE32)
        .store(STACK - 2, 0xffff_u16)
        .reg(RSP, STACK - 6)
        .flags(rflags::AC)
        .bytes(&[0x66, 0xcf])
        .steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, STACK));
    assert_eq!(outcome.state.rflags, ALL & 0xffff | FIXED | rflags::AC);
}

#[test]
fn iret_to_an_outer_level_takes_its_stack() {
    let frame = [0x1234, USER_CODE32.into(), 0x3202, 0x5678, USER_DATA.into()];
    let outcome = iret32(protected(), &frame);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, 0x5678));
    let s = outcome.state.segments;
    assert_eq!((s.cs.selector, s.ss.selector, s.ds.selector), (USER_CODE32, USER_DATA, 0));
    assert_eq!((outcome.state.rflags, outcome.state.cpl()), (0x3202, 3));
}

#[test]
fn a_user_cannot_change_its_io_privilege_nor_without_it_the_interrupt_flag() {
    let guest = || protected().at_user_level();
    let frame = [0x1234, USER_CODE32.into(), (ALL | FIXED) as u32];
    let outcome = iret32(guest(), &frame);
    let virtual_flags = rflags::VIF | rflags::VIP;
    assert_eq!(outcome.state.rflags, (ALL | FIXED) & !(rflags::IOPL | IF | virtual_flags));
    let outcome = iret32(guest().flags(rflags::IOPL), &frame);
    assert_eq!(outcome.state.rflags, (ALL | FIXED) & !virtual_flags);
}

#[test]
fn iret_to_virtual_8086_mode_takes_all_segments() {
    let flags = rflags::VM | rflags::IOPL | IF | FIXED;
    let frame = [0x1234, 0x2000, flags as u32, 0xffff_5678, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000];
    let outcome = iret32(protected(), &frame);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, 0x1234, 0xffff_5678));
    let s = outcome.state.segments;
    assert_eq!(
        [s.cs, s.ss, s.es, s.ds, s.fs, s.gs].map(|s| (s.base, s.limit, s.attributes)),
        [0x20000, 0x30000, 0x40000, 0x50000, 0x60000, 0x70000].map(|base| (base, 0xffff, 0xf3))
    );
    assert_eq!((outcome.state.rflags, outcome.state.cpl()), (flags, 3));
}

#[test]
fn a_user_cannot_go_to_virtual_8086_mode() {
    let flags = (rflags::VM | FIXED) as u32;
    let outcome = iret32(protected().at_user_level(), &[0x1234, USER_CODE32.into(), flags]);
    assert_eq!((outcome.fault(), outcome.state.rflags), (None, FIXED));
}

#[test]
fn a_trip_from_virtual_8086_mode_to_its_monitor_and_back() {
    // The monitor adds one to `eax` and returns.
    let outcome = Guest::v8086()
        .with_system()
        .flags(IF)
        .gate(0x80, kind::INTERRUPT_GATE, 3, CODE)
        .memory(handler(0x80), &[0x40, 0xcf])
        .code(|a| {
            a.int(0x80)?;
            a.int(0x80)?;
            a.mov(bx, ss)
        })
        .steps(7);
    assert_eq!((outcome.fault(), outcome.reg(0), outcome.state.rip), (None, 2, START + 6));
    assert_eq!((outcome.reg(RSP), outcome.has(rflags::VM | IF | rflags::IOPL)), (STACK, true));
}

#[test]
fn iret_in_virtual_8086_mode_needs_io_privilege_and_keeps_it() {
    let guest = |iopl: u64| {
        Guest::v8086()
            .with_system()
            .with(|state| state.rflags = state.rflags & !rflags::IOPL | iopl << 12)
            .store(STACK - 6, 0x1234_u16)
            .store(STACK - 4, 0x1000_u16)
            .store(STACK - 2, (IF | rflags::CF) as u16)
            .reg(RSP, STACK - 6)
            .bytes(&[0xcf])
            .steps(1)
    };
    assert_eq!(guest(2).fault(), Some((vector::GP, Some(0))));
    let outcome = guest(3);
    assert_eq!((outcome.state.rip, outcome.state.segments.cs.base), (0x1234, 0x10000));
    assert_eq!(outcome.state.rflags, rflags::VM | rflags::IOPL | IF | rflags::CF | FIXED);
}

#[test]
fn iret_in_real_mode_pops_three_words() {
    let outcome = Guest::real()
        .store(STACK - 6, 0x1234_u16)
        .store(STACK - 4, 0x1000_u16)
        .store(STACK - 2, 0xffff_u16)
        .reg(RSP, STACK - 6)
        .bytes(&[0xcf])
        .steps(1);
    assert_eq!(
        (outcome.state.rip, outcome.state.segments.cs.base, outcome.reg(RSP)),
        (0x1234, 0x10000, STACK)
    );
    assert_eq!(outcome.state.rflags, ALL & 0xffff | FIXED);
}

#[test]
fn a_16_bit_stack_keeps_the_high_half_of_the_kernels_stack_pointer() {
    let user_data16 = descriptor(0, 0xffff, 0xf3);
    let frame = [0x1234, USER_CODE32.into(), 2, 0x5678, u32::from(FREE | 3)];
    let guest = frame32(protected().descriptor(FREE, user_data16), &frame);
    let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
    let outcome = guest.memory(0x12_0000, &bytes).reg(RSP, 0x12_0000).bytes(&[0xcf]).steps(1);
    assert_eq!((outcome.fault(), outcome.reg(RSP)), (None, 0x12_5678));
}

#[test]
fn iret_lets_non_maskable_interrupts_in_again() {
    let guest = long().with(|state| state.activity.nmi_blocked = true);
    let outcome = iret64(guest, [0x1234, CODE64.into(), FIXED, 0x5678, DATA.into()]);
    assert!(!outcome.state.activity.nmi_blocked);
    let guest = long().with(|state| state.activity.nmi_blocked = true);
    let outcome = iret64(guest, [0x1234, 0, FIXED, 0x5678, DATA.into()]);
    assert!(outcome.fault().is_some() && outcome.state.activity.nmi_blocked);
}
