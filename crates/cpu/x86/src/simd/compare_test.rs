use iced_x86::code_asm::*;

use super::super::guest_test::{Registers, doubles, guest, singles};
use super::*;

const QUIET: f64 = f64::NAN;

fn signaling() -> f64 {
    f64::from_bits(0x7ff0_0000_0000_0001)
}

/// The flags of `rflags` and `mxcsr` after `ucomisd` or `comisd`.
fn to_flags_of(a: f64, b: f64, signaling: bool) -> (u64, u32) {
    let outcome = guest(|asm| if signaling { asm.comisd(xmm0, xmm1) } else { asm.ucomisd(xmm0, xmm1) })
        .xmm(0, doubles([a, 0.0]))
        .xmm(1, doubles([b, 0.0]))
        .flags(rflags::ARITHMETIC)
        .run();
    (outcome.state.rflags & rflags::ARITHMETIC, outcome.state.mxcsr & 0x3f)
}

#[test]
fn comparisons_set_flags_as_unsigned_integers_do() {
    assert_eq!(to_flags_of(2.0, 1.0, false), (0, 0));
    assert_eq!(to_flags_of(1.0, 2.0, false), (rflags::CF, 0));
    assert_eq!(to_flags_of(0.0, -0.0, false), (rflags::ZF, 0));
    assert_eq!(to_flags_of(QUIET, 1.0, false), (rflags::ZF | rflags::PF | rflags::CF, 0));
}

#[test]
fn quiet_nans_are_invalid_only_to_ordered_comparisons() {
    assert_eq!(to_flags_of(1.0, QUIET, false).1, 0);
    assert_eq!(to_flags_of(1.0, QUIET, true).1, IE);
    assert_eq!(to_flags_of(signaling(), 1.0, false).1, IE);
}

#[test]
fn an_unmasked_comparison_leaves_the_flags() {
    let outcome = guest(|a| a.comisd(xmm0, xmm1))
        .xmm(0, doubles([QUIET, 0.0]))
        .mxcsr(0x1f00)
        .flags(rflags::OF | rflags::SF)
        .run();
    assert_eq!(outcome.fault(), Some((crate::exception::vector::XM, None)));
    assert_eq!(outcome.state.rflags & rflags::ARITHMETIC, rflags::OF | rflags::SF);
}

#[test]
fn each_predicate_holds_for_its_relations() {
    // Less, equal, greater, unordered; and whether a quiet NaN is invalid.
    let table = [
        (0, [false, true, false, false], false),
        (1, [true, false, false, false], true),
        (2, [true, true, false, false], true),
        (3, [false, false, false, true], false),
        (4, [true, false, true, true], false),
        (5, [false, true, true, true], true),
        (6, [false, false, true, true], true),
        (7, [true, true, true, false], false),
        (8, [false, true, false, true], false),
        (9, [true, false, false, true], true),
        (10, [true, true, false, true], true),
        (11, [false, false, false, false], false),
        (12, [true, false, true, false], false),
        (13, [false, true, true, false], true),
        (14, [false, false, true, false], true),
        (15, [true, true, true, true], false),
    ];
    for (predicate, expected, invalid) in table {
        let pairs = [(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (QUIET, 2.0)];
        for ((a, b), expected) in pairs.into_iter().zip(expected) {
            for turned in [false, true] {
                let mut env = Env::new(0x1f80);
                let code = predicate | u8::from(turned) << 4;
                let found = holds::<f64>(&mut env, f64::to_bits(a), f64::to_bits(b), code);
                assert_eq!(found, expected, "predicate {code}: {a} {b}");
                let raised = if a.is_nan() && invalid != turned { IE } else { 0 };
                assert_eq!(env.flags(), raised, "predicate {code}: {a} {b}");
            }
        }
    }
}

#[test]
fn masks_fill_their_lanes() {
    let outcome = guest(|a| a.cmpltps(xmm0, xmm1).and_then(|()| a.cmpneqsd(xmm2, xmm1)))
        .xmm(0, singles([1.0, 2.0, 3.0, 4.0]))
        .xmm(1, singles([2.0, 2.0, 4.0, 3.0]))
        .xmm(2, [0, 5])
        .run();
    assert_eq!(outcome.xmm(0), [0xffff_ffff, 0xffff_ffff]);
    assert_eq!(outcome.xmm(2), [u64::MAX, 5]);
}

#[test]
fn the_second_operand_wins_where_neither_is_smaller() {
    let run = |a: f64, b: f64| {
        let outcome =
            guest(|asm| asm.minsd(xmm0, xmm1)).xmm(0, doubles([a, 0.0])).xmm(1, doubles([b, 0.0])).run();
        (outcome.xmm(0)[0], outcome.state.mxcsr & 0x3f)
    };
    assert_eq!(run(1.0, 2.0), (1.0_f64.to_bits(), 0));
    assert_eq!(run(0.0, -0.0), (1 << 63, 0));
    assert_eq!(run(-0.0, 0.0), (0, 0));
    assert_eq!(run(QUIET, 2.0), (2.0_f64.to_bits(), IE));
    // Not even made quiet.
    assert_eq!(run(2.0, signaling()), (signaling().to_bits(), IE));
}

#[test]
fn vectors_are_tested_for_common_and_missing_bits() {
    let run = |a: Vector, b: Vector| {
        let outcome = guest(|asm| asm.ptest(xmm0, xmm1)).xmm(0, a).xmm(1, b).flags(rflags::ARITHMETIC).run();
        outcome.state.rflags & rflags::ARITHMETIC
    };
    assert_eq!(run([1, 0], [2, 0]), rflags::ZF);
    assert_eq!(run([3, 0], [2, 0]), rflags::CF);
    assert_eq!(run([3, 0], [6, 0]), 0);
    assert_eq!(run([0, 0], [0, 0]), rflags::ZF | rflags::CF);
}
