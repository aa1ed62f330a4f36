//! Posada itself: the command, as users start it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use super::super::guest::{Guest, MEMORY};
use super::super::measure::{Console, Launch, tethered};
use super::{Monitor, line_of};

#[derive(Debug, Default)]
pub(super) struct Posada {
    program: PathBuf,
}

impl Monitor for Posada {
    fn key(&self) -> &'static str {
        "posada"
    }

    fn name(&self) -> &'static str {
        "Posada"
    }

    fn prepare(&mut self, _: &Guest) -> anyhow::Result<String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--package", "posada"])
            .status()
            .context("starting cargo")?;
        if !status.success() {
            bail!("the command does not compile");
        }
        // This program, itself built for release, lies beside it.
        self.program = std::env::current_exe()?.with_file_name("posada");
        let version =
            line_of(&self.program.to_string_lossy(), &["--version"], |line| line.starts_with("posada"))?;
        Ok(format!("{}, engine interpret", version.replacen("posada", "Posada", 1)))
    }

    fn launch(&self, guest: &Guest) -> anyhow::Result<Launch> {
        let mut command = tethered(&self.program);
        command
            .args(["run", "--engine", "interpret", "--cpu", "x86-64-v2", "--cpus", "1"])
            .args(["--memory", &format!("{}M", MEMORY >> 20)])
            .arg("--kernel")
            .arg(&guest.kernel)
            .arg("--initrd")
            .arg(&guest.initrd)
            .args(["--append", &guest.append]);
        Ok(Launch { command, console: Console::Stdout, terminal: false, memory: MEMORY })
    }
}
