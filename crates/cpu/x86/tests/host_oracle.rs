//! The interpreter against the host's own processor; see `oracle/mod.rs`. `examples/oracle.rs` runs the same
//! without end.
#![allow(unreachable_pub)]

mod oracle;

use oracle::{generate::Generator, guest::Factory, run};
use posada_x86::{Interpreter, Model};

/// How many cases run. More are for `cargo run --release -p posada-x86 --example oracle`.
const CASES: u64 = 30_000;

fn interpreter() -> Box<Factory> {
    Box::new(|connections| {
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        Box::new(Interpreter::new(connections, model).expect("an interpreter takes any connections"))
    })
}

#[test]
fn random_instructions_end_as_they_do_natively() {
    let generator = Generator::new(1, |_| true);
    let summary = run::run(&generator, 0..CASES, &interpreter()).expect("a child process can be traced");
    for failure in summary.failures.iter().take(20) {
        println!(
            "{} such cases, the first is number {}:\n{}",
            failure.count, failure.first.0, failure.first.1
        );
    }
    println!("{} cases, {} failed, {} forms", summary.cases, summary.failed, summary.coverage.covered());
    assert_eq!(summary.failed, 0, "the interpreter and this machine's processor differ");
}
