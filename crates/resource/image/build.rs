//! Builds the guest's agent (`guests/agent`), so that it can be included in this crate.
//!
//! The agent needs nothing but rustc, the core library and a linker, all of which are at hand where this crate is
//! built. It is compiled without cargo on purpose: a guest's processor need not be the host's, so neither the flags nor
//! the profile that the user chose for the host apply to it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let sources = here.join("../../../guests/agent/src");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-changed=src/session/wire.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");

    let agent = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("posada-agent");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    rustc
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "posada_agent"])
        .args(["--target", TARGET, "-C", "target-cpu=x86-64", "-C", "opt-level=s", "-C", "panic=abort"])
        .args(["-C", "relocation-model=static", "-C", "strip=symbols", "-C", "debuginfo=0"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .arg("-o")
        .arg(&agent)
        .arg(sources.join("main.rs"));
    // A linker that was chosen for another target is not for this one.
    if let Some(linker) = env::var_os("RUSTC_LINKER").filter(|_| env::var("TARGET").as_deref() == Ok(TARGET))
    {
        let mut argument = std::ffi::OsString::from("linker=");
        argument.push(linker);
        rustc.arg("-C").arg(argument);
    }
    let status = rustc.status();
    assert!(
        matches!(&status, Ok(status) if status.success()),
        "the guest's agent could not be compiled ({status:?}); if the message above says that the target may not be \
         installed, run `rustup target add {TARGET}`"
    );
}
