//! Any bytes as one instruction of a program, on the host's own processor and in the interpreter: both must end alike.
//!
//! The cases are those of the oracle in `crates/cpu/x86/tests`, whose generator makes encodings as assemblers do; here
//! the fuzzer makes up the bytes. What the oracle leaves out (system calls, say) is left out here too.

#[allow(unreachable_pub, missing_docs, clippy::pedantic)]
#[path = "../../crates/cpu/x86/tests/oracle/mod.rs"]
mod oracle;

use std::cell::RefCell;

use oracle::generate::Generator;
use oracle::guest::Factory;
use oracle::run::{Pair, Verdict};
use oracle::{CODE, PAGE, compare};
use posada_x86::{Interpreter, Model};

thread_local! {
    static PAIR: RefCell<Option<Pair<'static>>> = const { RefCell::new(None) };
}

/// The state comes of the first bytes, the instruction is what follows.
///
/// # Panics
/// If the interpreter does not do what the host's processor does: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((seed, bytes)) = data.split_first_chunk::<3>() else { return };
    let bits = if seed[0].is_multiple_of(4) { 32 } else { 64 };
    // Now and then across pages.
    let start = CODE.start + PAGE - if seed[0] & 0x1c == 0 { u64::from(seed[0] >> 5) } else { 64 };
    let mut rng = fastrand::Rng::with_seed(u64::from(u16::from_le_bytes([seed[1], seed[2]])));
    let bytes = &bytes[..bytes.len().min(15)];
    let Some(case) = Generator::case_with(Vec::new(), bytes, bits, start, &mut rng) else { return };
    PAIR.with_borrow_mut(|pair| {
        let pair = pair.get_or_insert_with(|| {
            Pair::new(Box::leak(interpreter())).expect("a child process can be traced")
        });
        if let Verdict::Different(expected, differences) = pair.compare(&case).expect("the child is traced") {
            panic!("{}", compare::report(&case, &expected, &differences));
        }
    });
}

fn interpreter() -> Box<Factory> {
    Box::new(|connections| {
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        Box::new(Interpreter::new(connections, model).expect("an interpreter takes any connections"))
    })
}
