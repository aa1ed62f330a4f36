//! Table registers, and questions about descriptors.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RBX};
use posada_vcpu::x86::{Segment, Table, cr0, cr4, rflags};

use crate::exception::vector;
use crate::system::fixture::*;
use crate::testing::{DATA as FREE_RAM, Guest, Outcome};

fn protected() -> Guest {
    Guest::protected().with_system()
}

fn long() -> Guest {
    Guest::long().with_system()
}

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[test]
fn table_registers_have_the_size_of_the_mode() {
    let table = |guest: Guest| {
        guest.store(FREE_RAM, 0x5678_9abc_def0_1234_u64).store(FREE_RAM + 8, 0x1234_u16).reg(RBX, FREE_RAM)
    };
    let outcome = table(Guest::long()).bytes(&[0x0f, 0x01, 0x13]).run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))), "not canonical");
    let outcome = table(Guest::long()).store(FREE_RAM + 8, 0_u16).bytes(&[0x0f, 0x01, 0x13]).run();
    assert_eq!(outcome.state.gdtr, Table { base: 0x5678_9abc_def0, limit: 0x1234 });
    let outcome = table(protected()).bytes(&[0x0f, 0x01, 0x1b]).run();
    assert_eq!(outcome.state.idtr, Table { base: 0x9abc_def0, limit: 0x1234 });
    let outcome = table(protected()).bytes(&[0x66, 0x0f, 0x01, 0x1b]).run();
    assert_eq!(outcome.state.idtr, Table { base: 0xbc_def0, limit: 0x1234 });
}

#[test]
fn stored_tables_can_be_loaded_again() {
    let set = |guest: Guest| {
        guest.with(|s| s.gdtr = Table { base: 0x89ab_cdef, limit: 0x1234 }).store(FREE_RAM, u64::MAX)
    };
    let store = |guest: Guest, code: &[u8]| set(guest).reg(RBX, FREE_RAM).bytes(code).run();
    let outcome = store(Guest::protected(), &[0x0f, 0x01, 0x03]);
    assert_eq!(outcome.load::<u64>(FREE_RAM), 0xffff_89ab_cdef_1234);
    let outcome = store(Guest::protected(), &[0x66, 0x0f, 0x01, 0x03]);
    assert_eq!(outcome.load::<u64>(FREE_RAM), 0xffff_89ab_cdef_1234, "all 32 bits all the same");
    let outcome = store(Guest::long(), &[0x0f, 0x01, 0x03]);
    assert_eq!((outcome.load::<u64>(FREE_RAM), outcome.load::<u16>(FREE_RAM + 8)), (0x89ab_cdef_1234, 0));
}

#[test]
fn the_kernels_instructions_fault_elsewhere() {
    let codes: [Code; 5] = [
        |a| a.lgdt(fword_ptr(FREE_RAM)),
        |a| a.lidt(fword_ptr(FREE_RAM)),
        |a| a.lldt(ax),
        |a| a.ltr(ax),
        |a| a.lmsw(ax),
    ];
    for code in codes {
        let outcome = protected().at_user_level().code(code).run();
        assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
    }
}

#[test]
fn user_mode_instruction_prevention_hides_the_tables_from_users() {
    let codes: [Code; 5] = [
        |a| a.sgdt(fword_ptr(FREE_RAM)),
        |a| a.sidt(fword_ptr(FREE_RAM)),
        |a| a.sldt(ax),
        |a| a.str(ax),
        |a| a.smsw(ax),
    ];
    for code in codes {
        let guest = || protected().with(|state| state.cr4 |= cr4::UMIP);
        assert_eq!(guest().code(code).run().fault(), None);
        assert_eq!(guest().at_user_level().code(code).run().fault(), Some((vector::GP, Some(0))));
        assert_eq!(protected().at_user_level().code(code).run().fault(), None);
    }
}

#[test]
fn real_mode_has_no_selectors_to_ask_about() {
    let codes: [Code; 9] = [
        |a| a.lldt(ax),
        |a| a.ltr(ax),
        |a| a.sldt(ax),
        |a| a.str(ax),
        |a| a.lar(ax, bx),
        |a| a.lsl(ax, bx),
        |a| a.verr(ax),
        |a| a.verw(ax),
        |a| a.arpl(ax, bx),
    ];
    for code in codes {
        for guest in [Guest::real(), Guest::v8086().with_system()] {
            assert_eq!(guest.code(code).run().fault(), Some((vector::UD, None)));
        }
    }
}

#[test]
fn the_local_table_is_loaded_from_its_descriptor() {
    let lldt = |guest: Guest, selector: u16| guest.reg(RAX, selector.into()).code(|a| a.lldt(ax)).run();
    let outcome = lldt(protected(), LOCAL_TABLE);
    let expected = Segment { selector: LOCAL_TABLE, base: LDT, limit: 0x1f, attributes: 0x82 };
    assert_eq!((outcome.fault(), outcome.state.segments.ldtr), (None, expected));
    let outcome = lldt(long().store(GDT + u64::from(LOCAL_TABLE) + 8, 0x1234_u64), LOCAL_TABLE);
    assert_eq!(outcome.state.segments.ldtr.base, 0x1234 << 32 | LDT);
    let outcome = lldt(long().store(GDT + u64::from(LOCAL_TABLE) + 8, 0x8000_u64), LOCAL_TABLE);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(LOCAL_TABLE.into()))), "not canonical");
    assert!(!lldt(protected(), 0).state.segments.ldtr.present());
    for (selector, expected) in [
        (LOCAL_TABLE | 4, (vector::GP, LOCAL_TABLE | 4)),
        (DATA, (vector::GP, DATA)),
        (0x100, (vector::GP, 0x100)),
        (FREE, (vector::NP, FREE)),
    ] {
        let outcome = lldt(protected().descriptor(FREE, descriptor(LDT, 0x1f, 2)), selector);
        assert_eq!(outcome.fault(), Some((expected.0, Some(expected.1.into()))));
    }
}

#[test]
fn loading_the_task_register_makes_the_task_busy() {
    let ltr = |guest: Guest, selector: u16| guest.reg(RAX, selector.into()).code(|a| a.ltr(ax)).run();
    for guest in [protected(), long()] {
        let outcome = ltr(guest, OTHER_TASK);
        let expected = Segment { selector: OTHER_TASK, base: OTHER_TSS, limit: 0x67, attributes: 0x8b };
        assert_eq!((outcome.fault(), outcome.state.segments.tr), (None, expected));
        assert_eq!(outcome.load::<u8>(GDT + u64::from(OTHER_TASK) + 5), 0x8b);
    }
    for (selector, expected) in [
        (0, (vector::GP, 0)),
        (TASK, (vector::GP, TASK)),
        (OTHER_TASK | 4, (vector::GP, OTHER_TASK | 4)),
        (FREE, (vector::NP, FREE)),
    ] {
        let outcome = ltr(protected().descriptor(FREE, descriptor(TSS, 0x67, 9)), selector);
        assert_eq!(outcome.fault(), Some((expected.0, Some(expected.1.into()))));
    }
    let outcome = ltr(long().descriptor(FREE, descriptor(TSS, 0x67, 0x81)), FREE);
    assert_eq!(outcome.fault(), Some((vector::GP, Some(FREE.into()))), "no 16-bit tasks in long mode");
}

#[test]
fn the_machine_status_word_is_the_low_end_of_cr0() {
    let outcome = protected().reg(RAX, u64::MAX).code(|a| a.smsw(eax)).run();
    assert_eq!(outcome.reg(RAX), outcome.state.cr0);
    let outcome = protected().code(|a| a.lmsw(ax)).run();
    assert!(outcome.state.cr0 & cr0::PE != 0, "it can only be set");
    let outcome = protected().reg(RAX, 0xffff).code(|a| a.lmsw(ax)).run();
    let expected = cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE;
    assert_eq!((outcome.fault(), outcome.state.cr0), (None, expected));
}

fn asks(guest: Guest, selector: u16, code: Code) -> Outcome {
    guest.reg(RAX, 0x1111_1111).reg(RBX, selector.into()).code(code).run()
}

#[test]
fn access_rights_and_limits_are_told_of_descriptors_within_reach() {
    let lar: Code = |a| a.lar(eax, ebx);
    let lsl: Code = |a| a.lsl(eax, ebx);
    let raw = descriptor(0x1234_5678, 0x9abcd, 0xd0f3);
    for guest in [protected, long] {
        let outcome = asks(guest().descriptor(FREE, raw), FREE | 3, lar);
        assert_eq!((outcome.reg(RAX), outcome.has(rflags::ZF)), (0xd9_f300, true));
        let outcome = asks(guest().descriptor(FREE, raw), FREE | 3, lsl);
        assert_eq!((outcome.reg(RAX), outcome.has(rflags::ZF)), (0x9abc_dfff, true));
        for (selector, code) in [(0, lar), (0x100, lar), (DATA | 3, lar), (DATA | 3, lsl)] {
            let outcome = asks(guest(), selector, code);
            assert_eq!((outcome.reg(RAX), outcome.has(rflags::ZF)), (0x1111_1111, false));
        }
    }
    let outcome = asks(protected(), CONFORMING32 | 3, lar);
    assert_eq!((outcome.reg(RAX), outcome.has(rflags::ZF)), (0xcf_9f00, true));
    let outcome = asks(protected().descriptor(FREE, raw), FREE, |a| a.lar(ax, bx));
    assert_eq!(outcome.reg(RAX), 0x1111_f300);
}

#[test]
fn the_system_descriptors_that_are_told_of_differ_by_mode() {
    let found = |guest: Guest, kind: u8, code: Code| {
        let guest = guest.descriptor(FREE, descriptor(0, 0, 0x80 | u16::from(kind)));
        asks(guest, FREE, code).has(rflags::ZF)
    };
    let all = |guest: fn() -> Guest, code: Code| {
        (0..16).filter(|kind| found(guest(), *kind, code)).collect::<Vec<u8>>()
    };
    assert_eq!(all(protected, |a| a.lar(eax, ebx)), [1, 2, 3, 4, 5, 9, 0xb, 0xc]);
    assert_eq!(all(protected, |a| a.lsl(eax, ebx)), [1, 2, 3, 9, 0xb]);
    assert_eq!(all(long, |a| a.lar(eax, ebx)), [2, 9, 0xb, 0xc]);
    assert_eq!(all(long, |a| a.lsl(eax, ebx)), [2, 9, 0xb]);
    assert_eq!(all(protected, |a| a.verr(ebx)), []);
}

#[test]
fn segments_are_verified_for_reading_and_for_writing() {
    // Type, readable, writable.
    for (kind, readable, writable) in [
        (0x90, true, false),
        (0x92, true, true),
        (0x96, true, true),
        (0x98, false, false),
        (0x9a, true, false),
        (0x9e, true, false),
    ] {
        let guest = || protected().descriptor(FREE, descriptor(0, 0, kind));
        assert_eq!(asks(guest(), FREE, |a| a.verr(ebx)).has(rflags::ZF), readable, "{kind:#x}");
        assert_eq!(asks(guest(), FREE, |a| a.verw(ebx)).has(rflags::ZF), writable, "{kind:#x}");
    }
    assert!(!asks(protected(), 0, |a| a.verr(ebx)).has(rflags::ZF));
    assert!(!asks(protected().at_user_level(), DATA, |a| a.verr(ebx)).has(rflags::ZF));
}

#[test]
fn requested_privilege_levels_are_raised_and_never_lowered() {
    for (old, least, new, zf) in [(0x10, 3, 0x13, true), (0x12, 1, 0x12, false), (0x11, 1, 0x11, false)] {
        let outcome = protected().reg(RAX, old).reg(RBX, least).code(|a| a.arpl(ax, bx)).run();
        assert_eq!((outcome.reg(RAX), outcome.has(rflags::ZF)), (new, zf));
        let outcome = protected()
            .store(FREE_RAM, old as u16)
            .reg(RBX, least)
            .code(|a| a.arpl(word_ptr(FREE_RAM), bx))
            .run();
        assert_eq!((outcome.load::<u16>(FREE_RAM), outcome.has(rflags::ZF)), (new as u16, zf));
    }
}

#[test]
fn a_privilege_level_that_is_high_enough_is_not_written() {
    let arpl = |least: u64| {
        let guest = protected().with(|state| state.segments.ds.attributes &= !2);
        guest.store(FREE_RAM, 0x12_u16).reg(RBX, least).code(|a| a.arpl(word_ptr(FREE_RAM), bx)).run().fault()
    };
    assert_eq!((arpl(2), arpl(3)), (None, Some((vector::GP, Some(0)))));
}
