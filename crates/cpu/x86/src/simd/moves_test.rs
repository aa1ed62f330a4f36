use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, bytes, guest};
use crate::exception::vector;
use crate::testing::{DATA, Guest};

const A: [u64; 2] = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888];
const B: [u64; 2] = [0x9999_aaaa_bbbb_cccc, 0xdddd_eeee_ffff_0000];

#[test]
fn a_scalar_load_clears_the_rest_of_the_register() {
    let outcome = guest(|a| a.movss(xmm0, dword_ptr(rbx))).reg(3, DATA).memory(DATA, &[1; 4]).xmm(0, A).run();
    assert_eq!(outcome.xmm(0), [0x0101_0101, 0]);
}

#[test]
fn a_scalar_move_between_registers_leaves_the_rest() {
    let outcome = guest(|a| a.movss(xmm0, xmm1).and_then(|()| a.movsd_2(xmm2, xmm1)))
        .xmm(0, A)
        .xmm(1, B)
        .xmm(2, A)
        .run();
    assert_eq!(outcome.xmm(0), [0x1111_2222_bbbb_cccc, A[1]]);
    assert_eq!(outcome.xmm(2), [B[0], A[1]]);
}

#[test]
fn halves_move_across() {
    let outcome = guest(|a| a.movhlps(xmm0, xmm2).and_then(|()| a.movlhps(xmm1, xmm2)))
        .xmm(0, A)
        .xmm(1, A)
        .xmm(2, B)
        .run();
    assert_eq!((outcome.xmm(0), outcome.xmm(1)), ([B[1], A[1]], [A[0], B[0]]));
}

#[test]
fn high_halves_are_loaded_and_stored() {
    let outcome = guest(|a| {
        a.movhps(xmm0, qword_ptr(rbx))?;
        a.movhps(qword_ptr(rbx + 8), xmm1)
    })
    .reg(3, DATA)
    .memory(DATA, &[7; 8])
    .xmm(0, A)
    .xmm(1, B)
    .run();
    assert_eq!(outcome.xmm(0), [A[0], 0x0707_0707_0707_0707]);
    assert_eq!(outcome.load::<u64>(DATA + 8), B[1]);
}

#[test]
fn an_unaligned_store_may_go_anywhere_and_an_aligned_one_may_not() {
    let outcome = guest(|a| a.movups(xmmword_ptr(rbx), xmm0)).reg(3, DATA + 0xffd).xmm(0, A).run();
    assert_eq!(outcome.load::<u64>(DATA + 0xffd), A[0]);
    assert_eq!(outcome.load::<u64>(DATA + 0x1005), A[1]);
    let outcome = guest(|a| a.movaps(xmmword_ptr(rbx), xmm0)).reg(3, DATA + 1).run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
}

#[test]
fn masks_gather_the_signs() {
    let outcome = guest(|a| {
        a.pmovmskb(eax, xmm0)?;
        a.movmskps(ecx, xmm0)?;
        a.movmskpd(edx, xmm0)
    })
    .xmm(0, bytes(&[0x80, 0, 0xff, 0x7f, 0, 0, 0, 0x80, 1, 2, 3, 4, 5, 6, 7, 0x88]))
    .run();
    assert_eq!((outcome.reg(0), outcome.reg(1), outcome.reg(2)), (0x8085, 0b1010, 0b11));
}

#[test]
fn doublewords_from_general_registers_are_zero_extended() {
    let outcome = guest(|a| a.movd(xmm0, eax).and_then(|()| a.movd(ecx, xmm1)))
        .reg(0, u64::MAX)
        .reg(1, u64::MAX)
        .xmm(0, A)
        .xmm(1, B)
        .run();
    assert_eq!(outcome.xmm(0), [0xffff_ffff, 0]);
    assert_eq!(outcome.reg(1), 0xbbbb_cccc);
}

#[test]
fn masked_stores_write_only_chosen_bytes() {
    let outcome = guest(|a| a.maskmovdqu(xmm0, xmm1))
        .reg(7, DATA)
        .memory(DATA, &[9; 16])
        .xmm(0, bytes(&[1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17]))
        .xmm(1, bytes(&[0x80, 0x7f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]))
        .run();
    assert_eq!(outcome.load::<u64>(DATA), 0x0909_0909_0903_0901);
    assert_eq!(outcome.load::<u64>(DATA + 8), 0x1109_0909_0909_0909);
}

#[test]
fn a_masked_store_faults_even_where_it_would_write_nothing() {
    let outcome = guest(|a| a.maskmovdqu(xmm0, xmm1)).reg(7, 1 << 40).run();
    assert_eq!(outcome.fault().map(|fault| fault.0), Some(vector::PF));
}

#[test]
fn mxcsr_is_stored_and_loaded() {
    let outcome = guest(|a| {
        a.stmxcsr(dword_ptr(rbx))?;
        a.ldmxcsr(dword_ptr(rbx + 4))
    })
    .reg(3, DATA)
    .memory(DATA + 4, &0xffff_u32.to_le_bytes())
    .mxcsr(0x1fa0)
    .run();
    assert_eq!(outcome.load::<u32>(DATA), 0x1fa0);
    assert_eq!(outcome.state.mxcsr, 0xffff);
}

#[test]
fn reserved_bits_of_mxcsr_must_be_clear() {
    let outcome = guest(|a| a.ldmxcsr(dword_ptr(rbx)))
        .reg(3, DATA)
        .memory(DATA, &0x1_1f80_u32.to_le_bytes())
        .mxcsr(0x1f80)
        .run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
    assert_eq!(outcome.state.mxcsr, 0x1f80);
}

#[test]
fn non_temporal_integer_stores_need_no_sse_state() {
    let outcome = Guest::user().code(|a| a.movnti(dword_ptr(rbx), eax)).reg(3, DATA).reg(0, 77).run();
    assert_eq!((outcome.fault(), outcome.load::<u32>(DATA)), (None, 77));
}

#[test]
fn vectors_move_between_mmx_and_xmm_registers() {
    let outcome =
        guest(|a| a.movdq2q(mm1, xmm0).and_then(|()| a.movq2dq(xmm2, mm1))).xmm(0, A).xmm(2, B).run();
    assert_eq!(outcome.state.x87.registers[1].significand, A[0]);
    assert_eq!(outcome.xmm(2), [A[0], 0]);
}
