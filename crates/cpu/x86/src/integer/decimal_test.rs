use posada_vcpu::x86::{gpr, rflags};

use crate::testing::Guest;

const ALL: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

fn run(code: &[u8], ax: u64, flags: u64) -> (u64, u64) {
    let o = Guest::protected().bytes(code).reg(gpr::RAX, ax).flags(flags).run();
    (o.reg(gpr::RAX), o.state.rflags & ALL)
}

/// An addition or subtraction, and the adjustment after it.
fn adjusted(operation: u8, adjust: u8, a: u8, b: u8) -> (u8, bool) {
    // add/sub al, b; daa/das
    let (ax, flags) = run(&[operation, b, adjust], u64::from(a), 0);
    (ax as u8, flags & rflags::CF != 0)
}

fn packed(n: u8) -> u8 {
    n / 10 * 16 + n % 10
}

#[test]
fn packed_digits_add_and_subtract_as_decimals() {
    for a in 0..100_u8 {
        for b in (0..100_u8).step_by(7) {
            let sum = a + b;
            assert_eq!(adjusted(0x04, 0x27, packed(a), packed(b)), (packed(sum % 100), sum > 99));
            let difference = (100 + a - b) % 100;
            assert_eq!(adjusted(0x2c, 0x2f, packed(a), packed(b)), (packed(difference), b > a));
        }
    }
}

#[test]
fn unpacked_digits_add_and_subtract_as_decimals() {
    for a in 0..10_u64 {
        for b in 0..10_u8 {
            let sum = a + u64::from(b);
            let (ax, _) = run(&[0x04, b, 0x37], a, 0);
            assert_eq!(ax, sum / 10 * 256 + sum % 10);
            let (ax, flags) = run(&[0x2c, b, 0x3f], 0x0100 | a, 0);
            let borrow = u64::from(b) > a;
            assert_eq!(ax, u64::from(!borrow) * 256 + (10 + a - u64::from(b)) % 10);
            assert_eq!(flags & rflags::CF != 0, borrow);
        }
    }
}

#[test]
fn aam_and_aad_split_and_join_digits_of_any_base() {
    assert_eq!(run(&[0xd4, 10], 0xff2a, 0).0, 0x0402);
    assert_eq!(run(&[0xd4, 16], 0xff2a, 0).0, 0x020a);
    assert_eq!(run(&[0xd5, 10], 0x0402, 0).0, 0x2a);
    assert_eq!(run(&[0xd5, 16], 0x020a, 0).0, 0x2a);
}

#[test]
fn aam_by_zero_is_a_divide_error() {
    let o = Guest::protected().bytes(&[0xd4, 0]).reg(gpr::RAX, 0x1234).run();
    assert_eq!((o.fault(), o.reg(gpr::RAX)), (Some((0, None)), 0x1234));
}

#[test]
fn undefined_flags_are_those_of_the_processor() {
    let (o, s, z, a, p, c) = (rflags::OF, rflags::SF, rflags::ZF, rflags::AF, rflags::PF, rflags::CF);
    // Seen on Zen 4: OF of daa and das, all of aaa and aas, AF, CF and OF of aad.
    assert_eq!(run(&[0x27], 0x1a, c), (0x80, o | s | a | c));
    assert_eq!(run(&[0x2f], 0x80, c), (0x20, o | c));
    assert_eq!(run(&[0x37], 0x0a, 0), (0x100, a | c));
    assert_eq!(run(&[0x3f], 0x06, a), (0xff00, s | a | p | c));
    assert_eq!(run(&[0x3f], 0x10, 0), (0, 0));
    assert_eq!(run(&[0xd5, 10], 0x106, 0), (0x10, a));
    assert_eq!(run(&[0xd5, 10], 0x176, 0), (0x80, o | s | a));
    assert_eq!(run(&[0xd5, 10], 0x1f6, 0), (0, z | a | p | c));
}

#[test]
fn sixty_four_bit_mode_has_none_of_them() {
    for code in [0x27, 0x2f, 0x37, 0x3f, 0xd4, 0xd5] {
        assert_eq!(Guest::long().bytes(&[code, 10]).run().fault(), Some((6, None)));
    }
}
