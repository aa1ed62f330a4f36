use iced_x86::code_asm::*;
use posada_vcpu::x86::rflags;

use super::super::guest_test::{Registers, bytes, guest, words};
use crate::testing::{DATA, Outcome};

/// `pcmpistri` of `xmm0` with `xmm1`.
fn implicit(a: &[u8; 16], b: &[u8; 16], imm: u32) -> Outcome {
    guest(|asm| asm.pcmpistri(xmm0, xmm1, imm)).xmm(0, bytes(a)).xmm(1, bytes(b)).run()
}

#[test]
fn a_character_of_a_set_is_found() {
    let outcome = implicit(b"aeiou\0..........", b"rhythm, anyhow..", 0);
    assert_eq!(outcome.reg(1), 8);
    // A character was found, the set has an end, the text has none.
    assert!(outcome.has(rflags::CF | rflags::SF));
    assert_eq!(outcome.state.rflags & (rflags::ZF | rflags::OF | rflags::AF | rflags::PF), 0);
}

#[test]
fn the_last_of_several_is_found_when_asked_for() {
    assert_eq!(implicit(b"aeiou\0..........", b"rhythm, anyhow..", 0x40).reg(1), 12);
}

#[test]
fn a_set_that_finds_nothing_gives_the_number_of_elements() {
    let outcome = implicit(b"z\0..............", b"rhythm, anyhow..", 0);
    assert_eq!((outcome.reg(1), outcome.has(rflags::CF)), (16, false));
}

#[test]
fn ranges_have_both_their_ends() {
    // What is neither a letter nor the end of the text.
    let outcome = implicit(b"azAZ\0...........", b"aZz0\0...........", 0x34);
    assert_eq!(outcome.reg(1), 3);
    assert!(outcome.has(rflags::ZF));
}

#[test]
fn equal_strings_are_equal_to_their_end() {
    let outcome = implicit(b"equal\0aaaaaaaaaa", b"equal\0bbbbbbbbbb", 0x18);
    assert_eq!((outcome.reg(1), outcome.has(rflags::CF)), (16, false));
    let outcome = implicit(b"equal\0aaaaaaaaaa", b"equals\0bbbbbbbbb", 0x18);
    assert_eq!((outcome.reg(1), outcome.has(rflags::CF)), (5, true));
}

#[test]
fn a_substring_may_be_cut_off_by_the_end_of_the_register() {
    assert_eq!(implicit(b"end\0............", b"the end comes...", 0xc).reg(1), 4);
    assert_eq!(implicit(b"end\0............", b"look for the e..", 0xc).reg(1), 16);
    assert_eq!(implicit(b"end\0............", b"look for the :en", 0xc).reg(1), 14);
}

#[test]
fn explicit_lengths_count_by_their_magnitude() {
    let outcome = guest(|a| a.pcmpestri(xmm0, xmm1, 0))
        .reg(0, (-1_i32) as u32 as u64)
        .reg(2, 1000)
        .xmm(0, bytes(b"ab.............."))
        .xmm(1, bytes(b"bbbbbbbbbbbbbabb"))
        .run();
    // The set is "a" alone; all of the text counts.
    assert_eq!(outcome.reg(1), 13);
    assert!(outcome.has(rflags::SF | rflags::CF) && !outcome.has(rflags::ZF));
}

#[test]
fn masks_are_bits_or_elements() {
    let (a, b) = (words([5, 0, 0, 0, 0, 0, 0, 0]), words([5, 1, 5, 1, 1, 5, 0, 5]));
    let run = |imm: u32| {
        guest(|asm| asm.pcmpistrm(xmm2, xmm1, imm)).xmm(0, [7; 2]).xmm(1, b).xmm(2, a).run().xmm(0)
    };
    assert_eq!(run(0x01), [0b10_0101, 0]);
    assert_eq!(run(0x41), words([0xffff, 0, 0xffff, 0, 0, 0xffff, 0, 0]));
}

#[test]
fn memory_operands_need_no_alignment() {
    let outcome = guest(|a| a.pcmpistri(xmm0, xmmword_ptr(rbx), 0))
        .reg(3, DATA + 3)
        .memory(DATA + 3, b"0123456789abcdef")
        .xmm(0, bytes(b"7\0.............."))
        .run();
    assert_eq!((outcome.fault(), outcome.reg(1)), (None, 7));
}
