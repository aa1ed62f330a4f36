//! Differences that are known, and why they stay.

use iced_x86::Mnemonic;

use super::compare::Difference;
use super::{Case, End, Outcome};

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
        M::Maskmovdqu if faults && only("end") => Some("sixteen bytes are two accesses here"),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq if faults && only("end") => {
            Some("which of two operands that both fault comes first depends on the repetition")
        }
        M::Ud1 if native.end == End::Invalid && only("end") => {
            Some("the host does not wait for the operand of an instruction that is invalid anyway")
        }
        _ => None,
    }
}
