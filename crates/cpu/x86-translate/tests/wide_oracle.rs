//! The translator against the host's own processor, by the harness of the interpreter's tests
//! (`x86/tests/oracle/mod.rs`): single instructions that only the host can carry out, of model `host`.
#![allow(unreachable_pub)]

#[path = "../../x86/tests/oracle/mod.rs"]
mod oracle;

use std::sync::atomic::Ordering::Relaxed;

use oracle::generate::{Generator, WIDE};
use oracle::run;
use posada_x86::Model;
use posada_x86_translate::Translator;

/// How many cases run.
const CASES: u64 = 60_000;

#[test]
fn instructions_that_only_the_host_has_end_as_they_do_natively() {
    WIDE.store(true, Relaxed);
    let model = Model::named("host").expect("a listed model exists");
    let announced = |code: iced_x86::Code| code.cpuid_features().iter().all(|f| model.announces(*f));
    let generator = Generator::new(4, announced);
    let factory: Box<oracle::guest::Factory> = Box::new(|connections| {
        let model = Model::named("host").expect("a listed model exists");
        let translator = Translator::new(connections, model, 1 << 20);
        Box::new(translator.expect("the host has what a translator needs"))
    });
    let summary = run::run(&generator, 0..CASES, &factory).expect("a child process can be traced");
    for failure in summary.failures.iter().take(20) {
        println!(
            "{} such cases, the first is number {}:\n{}",
            failure.count, failure.first.0, failure.first.1
        );
    }
    println!("{} cases, {} failed, {} forms", summary.cases, summary.failed, summary.coverage.covered());
    assert_eq!(summary.failed, 0, "the translator and this machine's processor differ");
}
