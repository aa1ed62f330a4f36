use iced_x86::code_asm::*;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{DATA, Guest};

const ARITHMETIC: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

#[test]
fn carries_chain_through_adc_and_sbb() {
    let o = Guest::long()
        .code(|a| {
            a.add(rax, rbx)?;
            a.adc(rcx, rdx)?;
            a.sub(rsi, rdi)?;
            a.sbb(r8, r9)
        })
        .reg(gpr::RAX, u64::MAX)
        .reg(gpr::RBX, 2)
        .reg(gpr::RCX, 5)
        .reg(gpr::RDX, 6)
        .reg(gpr::RSI, 0)
        .reg(gpr::RDI, 1)
        .reg(gpr::R8, 10)
        .reg(gpr::R8 + 1, 3)
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX)), (1, 12));
    assert_eq!((o.reg(gpr::RSI), o.reg(gpr::R8)), (u64::MAX, 6));
}

#[test]
fn narrow_registers_keep_the_rest_and_32_bits_clear_it() {
    let o = Guest::long()
        .code(|a| {
            a.add(al, 1)?;
            a.add(bh, 1)?;
            a.add(cx, 1)?;
            a.add(edx, 1)
        })
        .reg(gpr::RAX, 0x1111_1111_1111_11ff)
        .reg(gpr::RBX, 0x2222_2222_2222_ff22)
        .reg(gpr::RCX, 0x3333_3333_3333_ffff)
        .reg(gpr::RDX, 0x4444_4444_ffff_ffff)
        .run();
    assert_eq!(o.reg(gpr::RAX), 0x1111_1111_1111_1100);
    assert_eq!(o.reg(gpr::RBX), 0x2222_2222_2222_0022);
    assert_eq!(o.reg(gpr::RCX), 0x3333_3333_3333_0000);
    assert_eq!(o.reg(gpr::RDX), 0);
}

#[test]
fn operands_in_memory_take_registers_immediates_and_locks() {
    let o = Guest::long()
        .code(|a| {
            a.add(qword_ptr(rbx), rax)?;
            a.xor(dword_ptr(rbx + 8), -1)?;
            a.lock().sub(word_ptr(rbx + 12), 1)?;
            a.lock().or(byte_ptr(rbx + 14), al)?;
            a.lock().inc(qword_ptr(rbx + 16))?;
            a.lock().neg(dword_ptr(rbx + 24))?;
            a.not(byte_ptr(rbx + 28))?;
            a.and(rcx, qword_ptr(rbx))
        })
        .reg(gpr::RAX, 0x11)
        .reg(gpr::RBX, DATA)
        .reg(gpr::RCX, 0xff)
        .memory(DATA + 24, &5_u32.to_le_bytes())
        .run();
    assert_eq!(o.fault(), None);
    assert_eq!(o.load::<u64>(DATA), 0x11);
    assert_eq!(o.load::<u32>(DATA + 8), u32::MAX);
    assert_eq!((o.load::<u16>(DATA + 12), o.load::<u8>(DATA + 14)), (0xffff, 0x11));
    assert_eq!((o.load::<u64>(DATA + 16), o.load::<u32>(DATA + 24)), (1, 5_u32.wrapping_neg()));
    assert_eq!((o.load::<u8>(DATA + 28), o.reg(gpr::RCX)), (0xff, 0x11));
}

#[test]
fn a_locked_operation_sets_the_flags_of_its_plain_form() {
    for carry in [0, rflags::CF] {
        for value in [0_u64, 1, 0x7f, 0x80, 0xff] {
            let run = |locked: bool| {
                Guest::long()
                    .code(|a| if locked { a.lock().adc(byte_ptr(rbx), cl) } else { a.adc(byte_ptr(rbx), cl) })
                    .reg(gpr::RBX, DATA)
                    .reg(gpr::RCX, 0x7f)
                    .memory(DATA, &[value as u8])
                    .flags(carry)
                    .run()
            };
            let (plain, locked) = (run(false), run(true));
            assert_eq!(plain.state.rflags, locked.state.rflags);
            assert_eq!(plain.load::<u8>(DATA), locked.load::<u8>(DATA));
            assert_eq!(plain.load::<u8>(DATA), (value as u8).wrapping_add(0x7f + u8::from(carry != 0)));
        }
    }
}

#[test]
fn inc_and_dec_keep_the_carry_and_not_keeps_all_flags() {
    for carry in [0, rflags::CF] {
        let o = Guest::long()
            .code(|a| {
                a.inc(al)?;
                a.dec(bx)
            })
            .reg(gpr::RAX, 0xff)
            .reg(gpr::RBX, 0)
            .flags(carry)
            .run();
        assert_eq!(o.state.rflags & ARITHMETIC, carry | rflags::PF | rflags::AF | rflags::SF);
        assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX)), (0, 0xffff));
    }
    let o = Guest::long().code(|a| a.not(rax)).flags(ARITHMETIC).run();
    assert_eq!((o.reg(gpr::RAX), o.state.rflags & ARITHMETIC), (u64::MAX, ARITHMETIC));
}

#[test]
fn neg_carries_unless_the_operand_is_zero() {
    let flags = |value: u64| {
        let o = Guest::long().code(|a| a.neg(eax)).reg(gpr::RAX, value).run();
        (o.reg(gpr::RAX), o.state.rflags & (rflags::CF | rflags::OF))
    };
    assert_eq!(flags(0), (0, 0));
    assert_eq!(flags(1), (0xffff_ffff, rflags::CF));
    assert_eq!(flags(0x8000_0000), (0x8000_0000, rflags::CF | rflags::OF));
}

#[test]
fn cmp_and_test_write_nothing() {
    let o = Guest::user()
        .code(|a| {
            a.cmp(rax, qword_ptr(rbx))?;
            a.cmp(byte_ptr(rbx), 3)?;
            a.test(dword_ptr(rbx), ecx)?;
            a.test(cl, 4)
        })
        .reg(gpr::RAX, 7)
        .reg(gpr::RBX, DATA)
        .reg(gpr::RCX, 0xf0)
        .memory(DATA, &[9])
        .run();
    assert_eq!((o.fault(), o.reg(gpr::RAX), o.load::<u64>(DATA)), (None, 7, 9));
    assert!(o.has(rflags::ZF) && !o.has(rflags::CF));
}

#[test]
fn a_fault_leaves_registers_and_flags_as_they_were() {
    let o = Guest::user().code(|a| a.add(rax, qword_ptr(rbx))).reg(gpr::RAX, 1).reg(gpr::RBX, 1 << 40).run();
    assert_eq!(o.fault(), Some((14, Some(4))));
    let o = Guest::user()
        .code(|a| a.lock().xadd(qword_ptr(rbx), rax))
        .reg(gpr::RAX, 1)
        .reg(gpr::RBX, 1 << 47)
        .flags(ARITHMETIC)
        .run();
    assert_eq!(o.fault(), Some((13, Some(0))), "not canonical");
    assert_eq!((o.reg(gpr::RAX), o.state.rflags & ARITHMETIC), (1, ARITHMETIC));
}
