use iced_x86::code_asm::*;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{CODE, DATA, Guest};

const OVERFLOW: u64 = rflags::CF | rflags::OF;
const REST: u64 = rflags::SF | rflags::ZF | rflags::AF | rflags::PF;

#[test]
fn byte_products_fill_ax() {
    let o = Guest::long().code(|a| a.mul(bl)).reg(gpr::RAX, 0xff_ffff).reg(gpr::RBX, 0xff).run();
    assert_eq!((o.reg(gpr::RAX), o.has(OVERFLOW)), (0xff_fe01, true));
    let o = Guest::long().code(|a| a.imul(bl)).reg(gpr::RAX, 0xff).reg(gpr::RBX, 0xff).run();
    assert_eq!((o.reg(gpr::RAX), o.state.rflags & OVERFLOW), (1, 0));
}

#[test]
fn wide_products_fill_two_registers() {
    let o = Guest::long().code(|a| a.mul(rbx)).reg(gpr::RAX, u64::MAX).reg(gpr::RBX, u64::MAX).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (1, u64::MAX - 1));
    let o = Guest::long()
        .code(|a| a.imul(dword_ptr(rbx)))
        .reg(gpr::RAX, 0xffff_ffff_0000_0002)
        .reg(gpr::RBX, DATA)
        .memory(DATA, &(-3_i32).to_le_bytes())
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (0xffff_fffa, 0xffff_ffff));
    assert_eq!(o.state.rflags & OVERFLOW, 0);
    let o = Guest::long().code(|a| a.mul(bx)).reg(gpr::RAX, 0x8000).reg(gpr::RBX, 2).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX), o.has(OVERFLOW)), (0, 1, true));
}

#[test]
fn imul_of_two_and_three_operands_cuts_the_product() {
    let o = Guest::long()
        .code(|a| {
            a.imul_2(rax, rbx)?;
            a.imul_3(ecx, ebx, -3)?;
            a.imul_3(dx, word_ptr(rsi), 0x4000)
        })
        .reg(gpr::RAX, -5_i64 as u64)
        .reg(gpr::RBX, 7)
        .reg(gpr::RSI, DATA)
        .memory(DATA, &[4])
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX)), (-35_i64 as u64, -21_i32 as u32 as u64));
    assert_eq!((o.reg(gpr::RDX), o.has(OVERFLOW)), (0, true));
}

#[test]
fn multiplications_leave_the_flags_that_say_nothing() {
    for flags in [0, REST] {
        let o = Guest::long().code(|a| a.mul(ebx)).reg(gpr::RAX, 0).reg(gpr::RBX, 5).flags(flags).run();
        assert_eq!(o.state.rflags & (OVERFLOW | REST), flags);
    }
}

#[test]
fn quotients_and_remainders() {
    let o = Guest::long().code(|a| a.div(rbx)).reg(gpr::RAX, 100).reg(gpr::RDX, 5).reg(gpr::RBX, 7).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (0xb6db_6db6_db6d_b6e9, 5));
    let o = Guest::long().code(|a| a.div(bl)).reg(gpr::RAX, 100).reg(gpr::RBX, 7).run();
    assert_eq!(o.reg(gpr::RAX), 0x020e);
    for (dividend, divisor, quotient, remainder) in [(-7_i64, 2, -3, -1), (7, -2, -3, 1), (-7, -2, 3, -1)] {
        let o = Guest::long()
            .code(|a| {
                a.cqo()?;
                a.idiv(rbx)
            })
            .reg(gpr::RAX, dividend as u64)
            .reg(gpr::RBX, divisor as u64)
            .run();
        assert_eq!((o.reg(gpr::RAX) as i64, o.reg(gpr::RDX) as i64), (quotient, remainder));
        let o = Guest::long()
            .code(|a| {
                a.cwd()?;
                a.idiv(bx)
            })
            .reg(gpr::RAX, dividend as u16 as u64)
            .reg(gpr::RBX, divisor as u16 as u64)
            .run();
        assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (quotient as u16 as u64, remainder as u16 as u64));
    }
    // A 128-bit dividend, and the most negative quotient.
    let o =
        Guest::long().code(|a| a.idiv(rbx)).reg(gpr::RDX, u64::MAX).reg(gpr::RAX, 0).reg(gpr::RBX, 2).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (1 << 63, 0));
}

#[test]
fn a_quotient_that_does_not_fit_is_a_divide_error_that_changes_nothing() {
    let divide_error = |code: &[u8], low: u64, high: u64, divisor: u64| {
        let o = Guest::long()
            .bytes(code)
            .reg(gpr::RAX, low)
            .reg(gpr::RDX, high)
            .reg(gpr::RBX, divisor)
            .flags(REST | OVERFLOW)
            .run();
        assert_eq!((o.fault(), o.state.rip), (Some((0, None)), CODE));
        assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (low, high));
        assert!(o.has(REST | OVERFLOW));
    };
    let (div_bl, div_bx, div_ebx, div_rbx) =
        ([0xf6, 0xf3], [0x66, 0xf7, 0xf3], [0xf7, 0xf3], [0x48, 0xf7, 0xf3]);
    let (idiv_bl, idiv_ebx, idiv_rbx) = ([0xf6, 0xfb], [0xf7, 0xfb], [0x48, 0xf7, 0xfb]);
    divide_error(&div_bl, 1, 0, 0);
    divide_error(&div_bl, 0x200, 0, 2);
    divide_error(&div_bx, 0, 3, 3);
    divide_error(&div_ebx, 0, 0, 0);
    divide_error(&div_rbx, 0, 9, 9);
    divide_error(&idiv_rbx, 0, 0, 0);
    divide_error(&idiv_bl, 0x8000, 0, 0xff);
    divide_error(&idiv_bl, 0x0100, 0, 2);
    divide_error(&idiv_ebx, 0x8000_0000, 0xffff_ffff, 0xffff_ffff);
    divide_error(&idiv_ebx, 0, 0x8000_0000, 0xffff_ffff);
    divide_error(&idiv_rbx, 1 << 63, u64::MAX, u64::MAX);
    divide_error(&idiv_rbx, 0, 1 << 63, u64::MAX);
    divide_error(&idiv_rbx, 0, 1, 2);
}

#[test]
fn divisions_set_af_and_clear_sf_zf_pf_as_zen_does() {
    for flags in [0, REST | OVERFLOW] {
        let o = Guest::long().code(|a| a.div(ebx)).reg(gpr::RAX, 100).reg(gpr::RBX, 7).flags(flags).run();
        assert_eq!(o.state.rflags & (REST | OVERFLOW), flags & OVERFLOW | rflags::AF);
    }
}
