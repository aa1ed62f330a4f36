//! Loads of segment registers.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RBX, RSP};
use posada_vcpu::x86::{Running, Segment, rflags};

use crate::exception::vector;
use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as FREE_RAM, Guest, STACK};

fn load_ds(guest: Guest, selector: u16) -> crate::testing::Outcome {
    guest.reg(RAX, selector.into()).code(|a| a.mov(ds, ax)).run()
}

#[test]
fn a_load_takes_the_descriptor_and_marks_it_as_accessed() {
    let raw = descriptor(0x1234_5678, 0x9abcd, 0x40f2);
    for guest in [Guest::protected(), Guest::long()] {
        let outcome = load_ds(guest.with_system().descriptor(FREE, raw), FREE | 3);
        let expected = Segment { selector: FREE | 3, base: 0x1234_5678, limit: 0x9abcd, attributes: 0x40f3 };
        assert_eq!((outcome.fault(), outcome.state.segments.ds), (None, expected));
        assert_eq!(outcome.load::<u64>(GDT + u64::from(FREE)), raw | 1 << 40);
    }
}

#[test]
fn a_descriptor_of_the_local_table_is_found_there() {
    let guest = Guest::protected()
        .with_system()
        .with(|state| {
            state.segments.ldtr = Segment { base: LDT, limit: 0xf, attributes: 0x82, selector: 0x90 }
        })
        .store(LDT + 8, descriptor(0x5000, 0xfff, 0x4092));
    assert_eq!(load_ds(guest, 0xc).state.segments.ds.base, 0x5000);
    let guest = Guest::protected().with_system().with(|state| {
        state.segments.ldtr = Segment { base: LDT, limit: 0xf, attributes: 0x82, selector: 0x90 }
    });
    assert_eq!(load_ds(guest, 0x14).fault(), Some((vector::GP, Some(0x14))), "beyond its limit");
    let guest = Guest::protected().with_system().with(|state| state.segments.ldtr = Segment::default());
    assert_eq!(load_ds(guest, 0xc).fault(), Some((vector::GP, Some(0xc))), "there is no local table");
}

#[test]
fn data_segments_are_checked() {
    let execute_only = descriptor(0, 0xfffff, 0xc098);
    let cases = [
        (0, None),
        (3, None),
        (DATA, None),
        (DATA | 1, Some((vector::GP, DATA))),
        (CODE32_1 | 3, Some((vector::GP, CODE32_1 & !3))),
        (CODE, None),
        (CONFORMING32 | 3, None),
        (USER_DATA, None),
        (ABSENT, Some((vector::NP, ABSENT))),
        (TASK, Some((vector::GP, TASK))),
        (FREE, Some((vector::GP, FREE))),
        (0x100, Some((vector::GP, 0x100))),
    ];
    for (selector, expected) in cases {
        let guest = Guest::protected().with_system().descriptor(FREE, execute_only);
        let outcome = load_ds(guest, selector);
        let expected = expected.map(|(vector, error)| (vector, Some(error.into())));
        assert_eq!(outcome.fault(), expected, "{selector:#x}");
        let old = if expected.is_none() { selector } else { DATA };
        assert_eq!(outcome.state.segments.ds.selector, old, "{selector:#x}");
    }
}

#[test]
fn a_user_may_not_load_the_kernels_data() {
    for guest in [Guest::user(), Guest::protected()] {
        let outcome = load_ds(guest.with_system().at_user_level(), DATA);
        assert_eq!(outcome.fault(), Some((vector::GP, Some(DATA.into()))));
    }
}

#[test]
fn a_stack_segment_must_be_writable_present_and_of_the_programs_level() {
    let read_only = descriptor(0, 0xfffff, 0xc091);
    let cases = [
        (0, vector::GP, 0),
        (DATA | 3, vector::GP, DATA),
        (USER_DATA, vector::GP, USER_DATA & !3),
        (CODE, vector::GP, CODE),
        (FREE, vector::GP, FREE),
        (ABSENT, vector::SS, ABSENT),
        (0x100, vector::GP, 0x100),
    ];
    for (selector, expected, error) in cases {
        let guest = Guest::protected().with_system().descriptor(FREE, read_only);
        let outcome = guest.reg(RAX, selector.into()).code(|a| a.mov(ss, ax)).run();
        assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{selector:#x}");
    }
}

#[test]
fn the_kernel_of_64_bit_mode_needs_no_stack_segment() {
    let load = |guest: Guest, selector: u64| {
        let outcome = guest.with_system().reg(RAX, selector).code(|a| a.mov(ss, ax)).run();
        assert_eq!(
            outcome.state.cpl(),
            if outcome.state.segments.cs.selector == USER_CODE64 { 3 } else { 0 }
        );
        outcome.fault()
    };
    assert_eq!(load(Guest::long(), 0), None);
    assert_eq!(load(Guest::long(), 1), Some((vector::GP, Some(0))));
    assert_eq!(load(Guest::user().at_user_level(), 3), Some((vector::GP, Some(0))));
}

#[test]
fn an_interrupt_waits_until_the_stack_pointer_has_followed_its_segment() {
    let outcome = Guest::protected().with_system().reg(RAX, DATA.into()).code(|a| a.mov(ss, ax)).run();
    assert!(outcome.state.activity.mov_ss_shadow);
    let outcome = Guest::real().with_system().code(|a| a.pop(ss)).run();
    assert!(outcome.state.activity.mov_ss_shadow);
    let outcome = Guest::real().with_system().code(|a| a.lss(bx, dword_ptr(FREE_RAM as u32))).run();
    assert_eq!((outcome.fault(), outcome.state.activity.mov_ss_shadow), (None, false));
}

#[test]
fn a_16_bit_stack_segment_makes_16_bit_pushes() {
    let outcome = Guest::protected()
        .with_system()
        .reg(RAX, DATA16.into())
        .reg(RSP, 0x1234_0000 | STACK)
        .code(|a| {
            a.mov(ss, ax)?;
            a.nop()?;
            a.push(0x1234_5678)
        })
        .run();
    assert_eq!((outcome.fault(), outcome.reg(RSP)), (None, 0x1234_0000 | (STACK - 4)));
    assert_eq!(outcome.load::<u32>(STACK - 4), 0x1234_5678);
}

#[test]
fn real_mode_keeps_limits_and_rights() {
    let big = Segment { limit: u32::MAX, attributes: 0xc093, ..Segment::real_mode(0) };
    let guest = Guest::real().with(|state| state.segments.ds = big);
    let ds_after = load_ds(guest, 0x1234).state.segments.ds;
    assert_eq!(ds_after, Segment { selector: 0x1234, base: 0x12340, ..big });
    // After a null selector there is nothing to keep.
    let guest = Guest::real().with(|state| state.segments.ds = Segment::default());
    assert_eq!(load_ds(guest, 0x1234).state.segments.ds, Segment::real_mode(0x1234));
}

#[test]
fn virtual_8086_mode_makes_real_mode_segments() {
    let outcome = load_ds(Guest::v8086().with_system(), 0xfff0);
    let expected = Segment { selector: 0xfff0, base: 0xfff00, limit: 0xffff, attributes: 0xf3 };
    assert_eq!((outcome.fault(), outcome.state.segments.ds), (None, expected));
}

#[test]
fn a_null_selector_clears_the_base() {
    let outcome = Guest::long()
        .with_system()
        .with(|state| state.segments.fs.base = 0x1234)
        .code(|a| a.mov(fs, ax))
        .run();
    assert_eq!((outcome.state.segments.fs.base, outcome.state.segments.fs.present()), (0, false));
    // Outside 64-bit mode such a segment cannot be used.
    let outcome = Guest::protected()
        .with_system()
        .code(|a| {
            a.mov(ds, ax)?;
            a.mov(al, byte_ptr(0x1000))
        })
        .run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
}

#[test]
fn pops_take_a_whole_operand_and_fault_before_the_stack_pointer_moves() {
    let outcome = Guest::long()
        .with_system()
        .store(STACK - 8, u64::from(DATA) | 0xffff_0000)
        .reg(RSP, STACK - 8)
        .code(|a| a.pop(fs))
        .run();
    assert_eq!((outcome.fault(), outcome.reg(RSP)), (None, STACK));
    assert_eq!(outcome.state.segments.fs.selector, DATA);
    let outcome = Guest::protected()
        .with_system()
        .store(STACK - 4, u32::from(ABSENT))
        .reg(RSP, STACK - 4)
        .code(|a| a.pop(es))
        .run();
    assert_eq!((outcome.fault(), outcome.reg(RSP)), (Some((vector::NP, Some(ABSENT.into()))), STACK - 4));
}

#[test]
fn far_pointers_load_both_registers_or_none() {
    let guest = |selector: u16| {
        Guest::protected()
            .with_system()
            .store(FREE_RAM, 0x1234_5678_u32)
            .store(FREE_RAM + 4, selector)
            .code(|a| a.les(ebx, fword_ptr(FREE_RAM as u32)))
            .run()
    };
    let outcome = guest(USER_DATA);
    assert_eq!((outcome.reg(RBX), outcome.state.segments.es.selector), (0x1234_5678, USER_DATA));
    let outcome = guest(ABSENT);
    assert_eq!((outcome.fault(), outcome.reg(RBX)), (Some((vector::NP, Some(ABSENT.into()))), 0));
}

#[test]
fn selectors_read_as_they_were_written_with_zeros_above() {
    let outcome = Guest::protected()
        .with_system()
        .reg(RAX, u64::MAX >> 32)
        .reg(RBX, u64::MAX >> 32)
        .code(|a| {
            a.mov(eax, ds)?;
            a.mov(bx, ds)?;
            a.mov(word_ptr(FREE_RAM as u32), ds)
        })
        .store(FREE_RAM, u64::MAX)
        .run();
    assert_eq!((outcome.reg(RAX), outcome.reg(RBX)), (DATA.into(), 0xffff_0000 | u64::from(DATA)));
    assert_eq!(outcome.load::<u64>(FREE_RAM), u64::MAX << 16 | u64::from(DATA));
}

#[test]
fn an_expand_down_stack_is_used_above_its_limit() {
    // Valid offsets are 0x1001 to 0xffff.
    let guest = |pointer: u64| {
        Guest::protected()
            .with_system()
            .descriptor(FREE, descriptor(0x4_0000, 0x1000, 0x97))
            .reg(RAX, FREE.into())
            .reg(RSP, pointer)
            .code(|a| {
                a.mov(ss, ax)?;
                a.nop()?;
                a.push(ax)
            })
            .run()
    };
    let outcome = guest(0x1004);
    assert_eq!((outcome.fault(), outcome.load::<u16>(0x4_1002)), (None, FREE));
    assert_eq!(guest(0x1002).fault(), Some((vector::SS, Some(0))));
    assert_eq!(guest(0).fault(), None, "the top wraps");
}

#[test]
fn a_halt_in_the_shadow_of_sti_is_woken_by_the_interrupt() {
    // Nothing waits here: the guest halts with the flag set, rather than missing what may come.
    let outcome = Guest::long()
        .with_system()
        .code(|a| {
            a.sti()?;
            a.hlt()
        })
        .run_delivering();
    assert_eq!(outcome.state.activity.running, Running::Halted);
    assert!(outcome.has(rflags::IF) && outcome.state.rip == START + 2);
}
