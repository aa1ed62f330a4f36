//! The interpreter against the host's own processor; see `oracle/mod.rs`. `examples/oracle.rs` runs the same
//! without end.
#![allow(unreachable_pub)]

mod oracle;

use std::sync::OnceLock;

use fastrand::Rng;
use iced_x86::{Code, Mnemonic};
use oracle::generate::{self, Generator};
use oracle::guest::{Factory, Guest};
use oracle::run::{self, Summary};
use oracle::{CODE, Case, End, Memory, Registers, native, values};
use posada_x86::{Interpreter, Model};

/// How many cases run. More are for `cargo run --release -p posada-x86 --example oracle`.
const CASES: u64 = 100_000;

fn interpreter() -> Box<Factory> {
    Box::new(|connections| {
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        Box::new(Interpreter::new(connections, model).expect("an interpreter takes any connections"))
    })
}

/// The same run for all tests.
fn summary() -> &'static Summary {
    static SUMMARY: OnceLock<Summary> = OnceLock::new();
    SUMMARY.get_or_init(|| {
        let generator = Generator::new(1, |_| true);
        oracle::known::EXACT_POINTERS.store(true, std::sync::atomic::Ordering::Relaxed);
        run::run(&generator, 0..CASES, &interpreter()).expect("a child process can be traced")
    })
}

#[test]
fn random_instructions_end_as_they_do_natively() {
    let summary = summary();
    for failure in summary.failures.iter().take(20) {
        println!(
            "{} such cases, the first is number {}:\n{}",
            failure.count, failure.first.0, failure.first.1
        );
    }
    println!("{} cases, {} failed, {} forms", summary.cases, summary.failed, summary.coverage.covered());
    assert_eq!(summary.failed, 0, "the interpreter and this machine's processor differ");
}

#[test]
fn few_differences_are_known() {
    let summary = summary();
    assert!(summary.known * 1000 < summary.cases, "{} of {}", summary.known, summary.cases);
}

#[test]
fn the_list_of_forms_not_compared_is_up_to_date() {
    assert_eq!(
        summary().coverage.uncovered(),
        include_str!("oracle/uncovered.txt"),
        "write it anew: cargo run -p posada-x86 --example oracle -- --uncovered > \
         crates/cpu/x86/tests/oracle/uncovered.txt"
    );
}

#[test]
fn what_the_model_does_not_announce_is_invalid() {
    let mut guest = Guest::new(&interpreter());
    let mut rng = Rng::with_seed(1);
    let (mut tried, mut others) = (0, Vec::new());
    for code in
        Code::values().filter(|code| code.op_code().is_instruction() && !generate::is_announced(*code))
    {
        let op_code = code.op_code();
        for (bits, exists) in [(64, op_code.mode64()), (32, op_code.mode32())] {
            let bytes = (0..20).find_map(|_| Generator::instruction(code, bits, &mut rng));
            let (true, Some(bytes)) = (exists, bytes) else { continue };
            let instruction = generate::decode(bits, CODE.start, &bytes);
            // Without the feature the same bytes may be another instruction: `tzcnt` is `bsf`.
            if instruction.code() != code {
                continue;
            }
            let before = Registers {
                gpr: [0x2000_0000; 16],
                rip: CODE.start,
                rflags: native::settable_flags(0),
                selectors: native::selectors(bits),
                fs_base: 0,
                gs_base: 0,
                x87: values::x87(&mut rng),
                xmm: [[0; 2]; 16],
                upper: [[0; 2]; 16],
                mxcsr: 0x1f80,
            };
            let case = Case { bits, code: bytes, instruction, before, memory: Memory::new() };
            let outcome = guest.run(&case).expect("the engine runs");
            tried += 1;
            let hint = matches!(
                instruction.mnemonic(),
                Mnemonic::Cldemote
                    | Mnemonic::Endbr32
                    | Mnemonic::Endbr64
                    | Mnemonic::Prefetchit0
                    | Mnemonic::Prefetchit1
                    | Mnemonic::Rdsspd
                    | Mnemonic::Rdsspq
            );
            // Some were given codes that do nothing on processors that do not know them.
            let expected = if hint { End::Breakpoint } else { End::Invalid };
            if outcome.end != expected {
                others.push(format!("{code:?}: {:?}, {:02x?}", outcome.end, case.code));
            }
        }
    }
    assert!(tried > 1000, "{tried} forms tried");
    assert!(others.is_empty(), "{others:#?}");
}
