//! The translator against the host's own processor, by the harness of the interpreter's tests
//! (`x86/tests/oracle/mod.rs`): single instructions of programs.
#![allow(unreachable_pub)]

#[path = "../../x86/tests/oracle/mod.rs"]
mod oracle;

use oracle::generate::Generator;
use oracle::run;
use posada_x86::Model;
use posada_x86_translate::Translator;

/// How many cases run.
const CASES: u64 = 60_000;

#[test]
fn random_instructions_end_as_they_do_natively() {
    let factory: Box<oracle::guest::Factory> = Box::new(|connections| {
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        // A small cache, so that it is emptied now and then.
        let translator = Translator::new(connections, model, 1 << 20);
        Box::new(translator.expect("the host has what a translator needs"))
    });
    let generator = Generator::new(2, |_| true);
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
