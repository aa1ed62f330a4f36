//! `cargo xtask test`: what must pass before a change is good.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::packages;

/// Workspaces of their own: they have only to be in good order, for what they hold runs in the tests of the rooms
/// concerned.
const OUTSIDE: [&str; 4] = ["fuzz", "guests/agent", "guests/nanobench", "guests/scoreboard"];

pub(crate) fn run() -> anyhow::Result<()> {
    // libFuzzer is written in C++; disk images are compared with QEMU's.
    packages::ensure(&[
        ("cc", "gcc"),
        ("c++", "g++"),
        ("apt-get", "apt"),
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
        ("qemu-img", "qemu-utils"),
        // Not on everybody's search path.
        ("/usr/sbin/e2fsck", "e2fsprogs"),
    ])?;
    step("formatting", &["fmt", "--all", "--check"])?;
    step("lints", &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    for folder in OUTSIDE {
        let manifest = root().join(folder).join("Cargo.toml");
        let manifest = manifest.to_str().context("the path of this repository is no UTF-8")?;
        step(&format!("formatting of {folder}"), &["fmt", "--manifest-path", manifest, "--check"])?;
        let lints = ["clippy", "--manifest-path", manifest, "--all-targets", "--", "--deny", "warnings"];
        step(&format!("lints of {folder}"), &lints)?;
    }
    step("documentation", &["doc", "--workspace", "--no-deps"])?;
    step("tests", &["test", "--workspace"])?;
    step("tests with the network", &["test", "--package", "posada-image", "--tests", "--", "--ignored"])?;
    // One at a time: they share a disk that the first of them builds, and each is a whole system.
    // The soak of `killed` is for longer evenings.
    let one = ["--", "--ignored", "--test-threads", "1", "debian_disk::", "peripherals::"];
    step("tests of a whole system", &[&["test", "--package", "posada", "--tests"][..], &one].concat())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs cargo, which is to succeed.
fn step(name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    eprintln!("==> {name}: cargo {}", arguments.join(" "));
    let began = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // One target folder for all workspaces.
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| root().join("target").into());
    let mut flags = std::env::var_os("RUSTDOCFLAGS").unwrap_or_default();
    flags.push(" --deny warnings");
    let status = Command::new(&cargo)
        .args(arguments)
        .env("CARGO_TARGET_DIR", target)
        .env("RUSTDOCFLAGS", flags)
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("{name} failed: cargo {}", arguments.join(" "));
    }
    eprintln!("==> {name}: done in {:.0?}", began.elapsed());
    Ok(())
}
