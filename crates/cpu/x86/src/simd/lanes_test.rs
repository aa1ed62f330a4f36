use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, bytes, guest, words};
use crate::testing::{Guest, Outcome};

/// One instruction on `xmm0` and `xmm1`: what becomes of `xmm0`.
fn on_xmm(
    a: [u64; 2],
    b: [u64; 2],
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> [u64; 2] {
    guest(code).xmm(0, a).xmm(1, b).run().xmm(0)
}

/// One instruction on `mm0` and `mm1`: what becomes of `mm0`.
fn on_mmx(a: u64, b: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> u64 {
    let outcome: Outcome = Guest::user()
        .code(code)
        .with(|state| (state.x87.registers[0].significand, state.x87.registers[1].significand) = (a, b))
        .run();
    outcome.state.x87.registers[0].significand
}

#[test]
fn additions_stay_in_their_lanes() {
    let a = [0xffff_ffff_ffff_ffff, 0x00ff_00ff_00ff_00ff];
    let one = [0x0101_0101_0101_0101; 2];
    assert_eq!(on_xmm(a, one, |a| a.paddb(xmm0, xmm1)), [0, 0x0100_0100_0100_0100]);
    assert_eq!(on_xmm(a, one, |a| a.paddw(xmm0, xmm1)), [0x0100_0100_0100_0100, 0x0200_0200_0200_0200]);
    assert_eq!(on_xmm(a, one, |a| a.paddq(xmm0, xmm1)), [0x0101_0101_0101_0100, 0x0200_0200_0200_0200]);
}

#[test]
fn saturation_stops_at_the_limits() {
    let a = words([0x7fff, 0x8000, 0xffff, 0, 0x7ffe, 0x8001, 1, 2]);
    let b = words([1, 0xffff, 1, 0xffff, 1, 0xffff, 1, 1]);
    let signed = words([0x7fff, 0x8000, 0, 0xffff, 0x7fff, 0x8000, 2, 3]);
    let unsigned = words([0x8000, 0xffff, 0xffff, 0xffff, 0x7fff, 0xffff, 2, 3]);
    assert_eq!(on_xmm(a, b, |a| a.paddsw(xmm0, xmm1)), signed);
    assert_eq!(on_xmm(a, b, |a| a.paddusw(xmm0, xmm1)), unsigned);
    assert_eq!(on_mmx(a[0], b[0], |a| a.paddsw(mm0, mm1)), signed[0]);
}

#[test]
fn unsigned_bytes_times_signed_bytes_saturate_in_pairs() {
    let a = bytes(&[0xff, 0xff, 0xff, 0xff, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let b = bytes(&[0x7f, 0x7f, 0x80, 0x80, 3, 0xfc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        on_xmm(a, b, |a| a.pmaddubsw(xmm0, xmm1)),
        words([0x7fff, 0x8000, (3_i16 - 8) as u16, 0, 0, 0, 0, 0])
    );
}

#[test]
fn signs_are_applied_and_removed() {
    let a = words([5, 5, 5, 0x8000, 0, 0, 0, 0]);
    let b = words([1, 0xffff, 0, 0x8000, 0x8000, 0xfffe, 2, 0]);
    assert_eq!(on_xmm(a, b, |a| a.psignw(xmm0, xmm1)), words([5, 0xfffb, 0, 0x8000, 0, 0, 0, 0]));
    assert_eq!(on_xmm(a, b, |a| a.pabsw(xmm0, xmm1)), words([1, 1, 0, 0x8000, 0x8000, 2, 2, 0]));
}

#[test]
fn rounded_products_keep_the_high_part() {
    let (a, b) = (words([0x4000, 0x8000, 1, 0, 0, 0, 0, 0]), words([0x4000, 0x8000, 0x4000, 0, 0, 0, 0, 0]));
    assert_eq!(on_xmm(a, b, |a| a.pmulhrsw(xmm0, xmm1)), words([0x2000, 0x8000, 1, 0, 0, 0, 0, 0]));
}

#[test]
fn doubleword_products_are_signed_or_not() {
    let (a, b) = ([0xffff_ffff, 0xffff_ffff], [2, 3]);
    assert_eq!(on_xmm(a, b, |a| a.pmuldq(xmm0, xmm1)), [(-2_i64) as u64, (-3_i64) as u64]);
    assert_eq!(on_xmm(a, b, |a| a.pmuludq(xmm0, xmm1)), [0x1_ffff_fffe, 0x2_ffff_fffd]);
}

#[test]
fn quadwords_compare_as_signed() {
    assert_eq!(on_xmm([1 << 63, 1], [0, 0], |a| a.pcmpgtq(xmm0, xmm1)), [0, u64::MAX]);
}

#[test]
fn pairs_of_the_first_source_come_before_those_of_the_second() {
    let (a, b) = (words([1, 2, 3, 4, 5, 6, 7, 8]), words([10, 20, 30, 40, 50, 60, 70, 80]));
    assert_eq!(on_xmm(a, b, |a| a.phaddw(xmm0, xmm1)), words([3, 7, 11, 15, 30, 70, 110, 150]));
    assert_eq!(on_mmx(a[0], b[0], |a| a.phaddw(mm0, mm1)), words([3, 7, 30, 70, 0, 0, 0, 0])[0]);
}

#[test]
fn the_first_of_the_least_words_is_found() {
    let b = words([9, 3, 7, 3, 0xffff, 4, 3, 8]);
    assert_eq!(on_xmm([1, 1], b, |a| a.phminposuw(xmm0, xmm1)), [3 | 1 << 16, 0]);
}

#[test]
fn sums_of_differences_slide_over_the_first_source() {
    let a = bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let b = bytes(&[0, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Blocks at bytes 4 to 11 of the first source against bytes 4 to 7 of the second.
    assert_eq!(
        on_xmm(a, b, |a| a.mpsadbw(xmm0, xmm1, 0b101)),
        words([5 + 4 + 3 + 2, 4 + 3 + 2 + 1, 6, 4, 4, 6, 1 + 2 + 3 + 4, 14])
    );
    assert_eq!(on_xmm(a, b, |a| a.psadbw(xmm0, xmm1)), [6 + 5 + 4 + 3 + 2, 92]);
}

#[test]
fn shifts_by_more_than_the_lane_leave_nothing_or_the_sign() {
    let a = words([0x8001; 8]);
    assert_eq!(on_xmm(a, [16, 7], |a| a.psllw(xmm0, xmm1)), [0, 0]);
    assert_eq!(on_xmm(a, [1 << 40, 0], |a| a.psraw(xmm0, xmm1)), [u64::MAX; 2]);
    assert_eq!(on_xmm(a, [0, 0], |a| a.psrlw(xmm0, 1)), words([0x4000; 8]));
    assert_eq!(on_mmx(a[0], 0, |a| a.psraw(mm0, 15)), u64::MAX);
}

#[test]
fn whole_registers_shift_by_bytes() {
    let a = bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    assert_eq!(
        on_xmm(a, a, |a| a.pslldq(xmm0, 15)),
        bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    );
    assert_eq!(
        on_xmm(a, a, |a| a.psrldq(xmm0, 14)),
        bytes(&[14, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    );
    assert_eq!(on_xmm(a, a, |a| a.psrldq(xmm0, 16)), [0, 0]);
    assert_eq!(
        on_xmm(a, bytes(&[0xff; 16]), |a| a.palignr(xmm0, xmm1, 20)),
        bytes(&[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 0, 0, 0])
    );
    assert_eq!(on_mmx(0x0706_0504_0302_0100, u64::MAX, |a| a.palignr(mm0, mm1, 7)), 0x0605_0403_0201_00ff);
}

#[test]
fn packing_saturates_and_puts_the_first_source_low() {
    let (a, b) = (words([0x7f, 0x80, 0xff80, 0xff7f, 0, 1, 2, 3]), words([255, 256, 0xffff, 4, 5, 6, 7, 8]));
    assert_eq!(
        on_xmm(a, b, |a| a.packsswb(xmm0, xmm1)),
        bytes(&[0x7f, 0x7f, 0x80, 0x80, 0, 1, 2, 3, 0x7f, 0x7f, 0xff, 4, 5, 6, 7, 8])
    );
    assert_eq!(on_mmx(a[0], b[0], |a| a.packuswb(mm0, mm1)), 0x0400_ffff_0000_807f);
    assert_eq!(
        on_xmm([0x1_0000_0000_ffff, 0xffff_ffff], [0; 2], |a| a.packusdw(xmm0, xmm1)),
        words([0xffff, 0xffff, 0, 0, 0, 0, 0, 0])
    );
}

#[test]
fn interleaving_takes_low_or_high_halves() {
    let a = bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let b = [0; 2];
    assert_eq!(
        on_xmm(a, b, |a| a.punpckhbw(xmm0, xmm1)),
        bytes(&[8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15, 0])
    );
    assert_eq!(on_mmx(a[0], 0, |a| a.punpckhbw(mm0, mm1)), 0x0007_0006_0005_0004);
    assert_eq!(on_mmx(a[0], 0, |a| a.punpcklbw(mm0, mm1)), 0x0003_0002_0001_0000);
}

#[test]
fn shuffles_follow_their_selectors() {
    let a = bytes(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let selectors = bytes(&[15, 0x80, 1, 0x1f, 0xff, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 14]);
    assert_eq!(
        on_xmm(a, selectors, |a| a.pshufb(xmm0, xmm1)),
        bytes(&[15, 0, 1, 15, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 14])
    );
    assert_eq!(on_mmx(a[0], 0x0880_0f07_0001_0203, |a| a.pshufb(mm0, mm1)), 0x0000_0707_0001_0203);
    assert_eq!(
        on_xmm([0; 2], a, |a| a.pshufd(xmm0, xmm1, 0b0001_1011)),
        bytes(&[12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3])
    );
    assert_eq!(on_xmm(a, [7, 8], |a| a.shufpd(xmm0, xmm1, 0b01)), [a[1], 7]);
}

#[test]
fn lanes_widen_with_or_without_sign() {
    let b = bytes(&[0x80, 1, 0xff, 2, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9]);
    assert_eq!(on_xmm([0; 2], b, |a| a.pmovzxbd(xmm0, xmm1)), [0x1_0000_0080, 0x2_0000_00ff]);
    assert_eq!(on_xmm([0; 2], b, |a| a.pmovsxbd(xmm0, xmm1)), [0x1_ffff_ff80, 0x2_ffff_ffff]);
}

#[test]
fn blends_choose_by_immediate_or_by_sign() {
    let (a, b) = (words([0, 1, 2, 3, 4, 5, 6, 7]), words([10, 11, 12, 13, 14, 15, 16, 17]));
    assert_eq!(on_xmm(a, b, |a| a.pblendw(xmm0, xmm1, 0b1000_0001)), words([10, 1, 2, 3, 4, 5, 6, 17]));
    // The destination is its own mask.
    assert_eq!(on_xmm([1 << 63, 5], [7, 8], |a| a.blendvpd(xmm0, xmm1)), [7, 5]);
}

#[test]
fn single_lanes_go_in_and_out() {
    let outcome = guest(|a| {
        a.pinsrb(xmm0, eax, 17)?;
        a.pinsrq(xmm0, rax, 1)?;
        a.pextrw(ecx, xmm0, 4)?;
        a.insertps(xmm1, xmm0, 0b1001_1000)
    })
    .reg(0, 0x1234_5678_9abc_def0)
    .xmm(0, [0; 2])
    .xmm(1, [u64::MAX; 2])
    .run();
    assert_eq!(outcome.xmm(0), [0xf000, 0x1234_5678_9abc_def0]);
    assert_eq!(outcome.reg(1), 0xdef0);
    assert_eq!(outcome.xmm(1), [0x9abc_def0_ffff_ffff, 0xffff_ffff]);
}
