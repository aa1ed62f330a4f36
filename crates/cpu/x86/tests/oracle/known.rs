//! Differences that are known, and why they stay.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use iced_x86::Mnemonic;

use super::compare::{Difference, operand_address};
use super::{Case, End, Outcome, STACK};

/// The engine keeps the x87 unit's opcode and pointers after each instruction, not only for exceptions.
pub static EXACT_POINTERS: AtomicBool = AtomicBool::new(false);

/// A byte of the x87 unit's opcode or pointers, in the environment that is stored behind x87 cases.
fn is_pointer(difference: &Difference) -> bool {
    const POINTERS: std::ops::Range<u64> = STACK.start + 0x2c..STACK.start + 0x3c;
    let address = difference.what.strip_prefix("memory 0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    address.is_some_and(|address| POINTERS.contains(&address))
}

/// Whether the memory operand goes on behind the last address that its registers can name.
fn wraps(case: &Case) -> bool {
    let i = &case.instruction;
    let sizes = [i.memory_base(), i.memory_index()].map(iced_x86::Register::size);
    let last = match sizes.into_iter().max() {
        Some(2) => 0xffff,
        Some(8) => return false,
        _ => 0xffff_ffff,
    };
    operand_address(case).is_some_and(|address| (address & last) + i.memory_size().size() as u64 - 1 > last)
}

/// Why this case may differ in this way.
pub fn reason(case: &Case, native: &Outcome, differences: &[Difference]) -> Option<&'static str> {
    use Mnemonic as M;
    let only = |what: &str| differences.iter().all(|difference| difference.what == what);
    let faults = matches!(native.end, End::Page { .. } | End::Protection | End::Segment | End::Alignment);
    let i = &case.instruction;
    if i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()) && only("RF") {
        return Some(
            "RF lasts until the repetition ends; here it ends with the first element that is stepped",
        );
    }
    let upper = matches!(native.end, End::Page { address, .. } if address >> 47 != 0);
    if upper && only("end") && differences.iter().all(|difference| difference.engine.starts_with("Page")) {
        return Some("the small guest's kernel is not mapped where the host's is");
    }
    if !EXACT_POINTERS.load(Relaxed) && differences.iter().all(is_pointer) {
        return Some("an engine that runs x87 code on the host keeps the error pointers only for exceptions");
    }
    match i.mnemonic() {
        M::Fldenv
        | M::Fnstenv
        | M::Fnsave
        | M::Frstor
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
            if faults && only("end") =>
        {
            Some("which byte of an operand this long faults first is each processor's own affair")
        }
        M::Fld | M::Fstp | M::Fbld | M::Fbstp if faults && only("end") && i.memory_size().size() == 10 => {
            Some("ten bytes are two accesses, the first of which may fault in its own way")
        }
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
            if faults && only("end") && wraps(case) =>
        {
            Some(
                "some processors go on at 0 behind the last address that an instruction can name, and some go on",
            )
        }
        M::Maskmovdqu if faults && only("end") => Some("sixteen bytes are two accesses here"),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if faults && only("end") => {
            Some("which of two operands that both fault comes first depends on the repetition")
        }
        M::Div | M::Idiv
            if faults
                && differences
                    .iter()
                    .all(|d| ["CF", "PF", "AF", "ZF", "SF", "OF"].contains(&d.what.as_str())) =>
        {
            Some("what a division leaves of the flags shows if the next instruction cannot be fetched")
        }
        M::Pause => Some("the decoder takes `xchg r8d, eax` for `pause` when a repetition is in front of it"),
        M::Ud1 if native.end == End::Invalid && only("end") => {
            Some("the host does not wait for the operand of an instruction that is invalid anyway")
        }
        _ => None,
    }
}
