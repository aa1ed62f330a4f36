//! The repository's own chores, so that nothing needs a hand-run recipe: `cargo xtask help` lists them.
#![forbid(unsafe_code)]

mod bench;
mod packages;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Posada's own chores", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything that must pass: formatting, lints, unit tests, doc tests, guest boots
    Test,
    /// Speed, boot time and memory, beside the host itself, QEMU's translator and Bochs
    #[command(
        after_help = "Examples:\n  cargo xtask bench --quick\n  cargo xtask bench --quick --row sieve --only native,translate\n  cargo xtask bench --workload gzip --only interpret,bochs"
    )]
    Bench(bench::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().chore {
        Chore::Test => test::run(),
        Chore::Bench(options) => bench::run(&options),
    }
}
