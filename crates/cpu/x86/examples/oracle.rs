//! Compares the interpreter with the host's own processor for as long as one likes.
//!
//! ```sh
//! cargo run --release -p posada-x86 --example oracle -- --seed 7 --count 10000000
//! cargo run --release -p posada-x86 --example oracle -- --only pcmp     # forms whose name begins so
//! cargo run --release -p posada-x86 --example oracle -- --first 1234 --count 1
//! cargo run --release -p posada-x86 --example oracle -- --uncovered     # what the test's cases do not cover
//! cargo run --release -p posada-x86 --example oracle                    # without end, a new seed each time
//! ```
#![allow(unreachable_pub)]

#[path = "../tests/oracle/mod.rs"]
mod oracle;

use oracle::{generate::Generator, guest::Factory, run, run::Summary};
use posada_x86::{Interpreter, Model};

struct Options {
    seed: Option<u64>,
    first: u64,
    count: u64,
    only: String,
    uncovered: bool,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { seed: None, first: 0, count: 1_000_000, only: String::new(), uncovered: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--uncovered" {
            // As many as `tests/host_oracle.rs` runs.
            options = Options { seed: Some(1), count: 100_000, uncovered: true, ..options };
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse().map_err(|error| format!("{name} {value}: {error}"));
        match name.as_str() {
            "--seed" => options.seed = Some(number()?),
            "--first" => options.first = number()?,
            "--count" => options.count = number()?,
            "--only" => options.only = value.to_lowercase(),
            _ => return Err(format!("unknown option {name}; there are --seed, --first, --count and --only")),
        }
    }
    Ok(options)
}

fn interpreter() -> Box<Factory> {
    Box::new(|connections| {
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        Box::new(Interpreter::new(connections, model).expect("an interpreter takes any connections"))
    })
}

fn print(summary: &Summary) {
    for (code, failures) in summary.by_form() {
        let total: u64 = failures.iter().map(|failure| failure.count).sum();
        println!("\n## {code:?}: {total} of {} cases differ", summary.coverage.of(code));
        for failure in failures.iter().take(3) {
            println!("{} times {}; case {}:", failure.count, failure.what.join(", "), failure.first.0);
            println!("{}", failure.first.1);
        }
    }
    println!(
        "{} cases, {} failed, {} known differences, {} forms",
        summary.cases,
        summary.failed,
        summary.known,
        summary.coverage.covered()
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options()?;
    let only =
        |code| options.only.is_empty() || format!("{code:?}").to_lowercase().starts_with(&options.only);
    let mut seed = options.seed.unwrap_or(1);
    loop {
        let generator = Generator::new(seed, only);
        let cases = options.first..options.first + options.count;
        oracle::known::EXACT_POINTERS.store(true, std::sync::atomic::Ordering::Relaxed);
        let summary = run::run(&generator, cases, &interpreter())?;
        if options.uncovered {
            print!("{}", summary.coverage.uncovered());
            return Ok(());
        }
        println!("seed {seed}");
        print(&summary);
        if options.seed.is_some() {
            return Ok(());
        }
        seed += 1;
    }
}
