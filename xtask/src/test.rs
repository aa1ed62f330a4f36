//! `cargo xtask test`: what must pass before a change is good.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::packages;

/// What is run, in order: a name for people, and the arguments to cargo.
const STEPS: [(&str, &[&str]); 3] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    ("tests", &["test", "--workspace"]),
];

pub(crate) fn run() -> anyhow::Result<()> {
    packages::ensure(&[("cc", "gcc"), ("apt-get", "apt")])?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (name, arguments) in STEPS {
        eprintln!("==> {name}: cargo {}", arguments.join(" "));
        let began = Instant::now();
        let status = Command::new(&cargo).args(arguments).status().context("starting cargo")?;
        if !status.success() {
            bail!("{name} failed: cargo {}", arguments.join(" "));
        }
        eprintln!("==> {name}: done in {:.0?}", began.elapsed());
    }
    Ok(())
}
