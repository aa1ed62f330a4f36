//! Any bytes as code, in the interpreter and in the translator: both must end alike.
//!
//! The guests are those of the translator's own tests, in `crates/cpu/x86-translate/tests/pair`, at any level of
//! privilege; the fuzzer makes up code, flags, and where registers point to.

#[allow(unreachable_pub, missing_docs, clippy::pedantic)]
#[path = "../../crates/cpu/x86-translate/tests/pair/mod.rs"]
mod pair;

use std::cell::RefCell;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use pair::{ALIAS, CODE, CONSTANTS, DATA, KERNEL, Level, PAGE, Pair, STACK, Verdict};
use posada_vcpu::x86::{State, gpr, rflags};

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

/// Bytes that say how a case begins; the others are its code.
const HEAD: usize = 24;

/// The first bytes choose level, flags, place and registers; what follows is the code.
///
/// # Panics
/// If the engines differ: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((head, code)) = data.split_first_chunk::<HEAD>() else { return };
    let level = [Level::User, Level::Supervisor, Level::Guarded][usize::from(head[0] % 3)];
    let place = u64::from(u16::from_le_bytes([head[1], head[2]])) % (CODE.pages * PAGE);
    // The last instruction may take what follows, which is breakpoints.
    let mut code = code.to_vec();
    code.extend([0xcc; 15]);
    code.truncate((CODE.pages * PAGE - place) as usize);
    let code = &code[..];
    let mut state = Pair::state(level);
    state.rip = CODE.linear + place;
    state.rflags |= u64::from(u16::from_le_bytes([head[3], head[4]])) & rflags::ARITHMETIC;
    // A kernel that writes page tables and tells nobody may find this or that.
    let kernel = if level == Level::User { KERNEL } else { 1 << 63 };
    let areas = [
        CODE.linear,
        DATA.linear,
        CONSTANTS.linear,
        ALIAS.linear + place,
        STACK.linear,
        0,
        kernel,
        DATA.end(),
    ];
    for (register, chosen) in state.gpr.iter_mut().zip(&head[5..21]) {
        *register =
            areas[usize::from(chosen & 7)].wrapping_add(u64::from(chosen >> 3) * 0x81).wrapping_sub(8);
    }
    state.gpr[gpr::RSP] = STACK.linear + 0x800 + u64::from(head[21]) * 8;
    state.mxcsr = 0x1f80 | u32::from(head[22] & 3) << 13;
    PAIR.with_borrow_mut(|pair| {
        let pair = pair.get_or_insert_with(Pair::default);
        pair.map(level, true);
        // Twice: the second time, what was translated is there already.
        for _ in 0..2 {
            if let Verdict::Different(report) = carry_out(pair, &state, code) {
                // Whoever looks at undefined flags may go anywhere; without them all is the same.
                if let Verdict::Different(again) = carry_out(pair, &state, &without_undefined(code)) {
                    // Those that the code itself has written are not known before.
                    let code_by_then = pair.code_at_end();
                    if without_undefined(&code_by_then) != code_by_then {
                        return;
                    }
                    panic!("{level:?} at {place:#x}: {code:02x?}\n{report}without undefined flags:\n{again}");
                }
            }
        }
    });
}

fn carry_out(pair: &mut Pair, state: &State, code: &[u8]) -> Verdict {
    pair.clear_code();
    pair.put_code(state.rip, code);
    pair.run(state)
}

/// The same bytes without the instructions that leave flags undefined, wherever they may begin.
fn without_undefined(bytes: &[u8]) -> Vec<u8> {
    use Mnemonic as M;
    let mut rest = bytes.to_vec();
    for at in 0..bytes.len() {
        let i = Decoder::with_ip(64, &rest[at..], 0, DecoderOptions::AMD).decode();
        let defined = matches!(i.mnemonic(), M::And | M::Or | M::Xor | M::Test);
        let rotates = matches!(i.mnemonic(), M::Rcl | M::Rcr);
        if !i.is_invalid() && !defined && (i.rflags_undefined() != 0 || rotates) {
            rest[at..at + i.len()].fill(0x90);
        }
    }
    rest
}
