//! Debian packages that chores lean on, installed when they are missing.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Installs those of `packages` whose `program` is not there. Needs root only if one is missing.
pub(crate) fn ensure(packages: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<_> =
        packages.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(", "));
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
            .context("starting apt-get: these chores run on Debian and its kin")
    };
    // An old package list names versions that mirrors no longer hold.
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(&missing);
    if !apt(&install)?.success() {
        bail!("apt-get could not install {}; install them by hand (it takes root)", missing.join(", "));
    }
    Ok(())
}

/// Whether `program` is there: a path to a file, or a name on the search path.
fn present(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
