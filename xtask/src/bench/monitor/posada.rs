//! Posada itself: the command, as users start it. Each engine is a monitor of its own.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::super::guest::{Guest, LEVEL};
use super::super::measure::{Console, Launch, tethered};
use super::{Disk, Monitor, line_of};

/// What the command says of a kernel that is empty. It looks at the engine and at the model first.
const NO_KERNEL: &str = "no kernel";

#[derive(Debug)]
pub(super) struct Posada {
    engine: &'static str,
    name: &'static str,
    program: PathBuf,
}

pub(super) const INTERPRET: Posada =
    Posada { engine: "interpret", name: "Posada interpret", program: PathBuf::new() };

pub(super) const TRANSLATE: Posada =
    Posada { engine: "translate", name: "Posada translate", program: PathBuf::new() };

impl Monitor for Posada {
    fn key(&self) -> &'static str {
        self.engine
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn prepare(&mut self, _: &Guest) -> anyhow::Result<String> {
        self.program = build()?;
        if let Some(refusal) = self.refusal(LEVEL)? {
            bail!("there is no such engine: {refusal}");
        }
        let version =
            line_of(&self.program.to_string_lossy(), &["--version"], |line| line.starts_with("posada"))?;
        Ok(format!("{}, engine {}", version.replacen("posada", "Posada", 1), self.engine))
    }

    fn has_model(&self, model: &str) -> bool {
        matches!(self.refusal(model), Ok(None))
    }

    fn launch(&self, guest: &Guest) -> anyhow::Result<Launch> {
        let mut command = tethered(&self.program);
        command
            .args(["run", "--engine", self.engine, "--cpu", &guest.cpu, "--cpus", "1"])
            .args(["--memory", &format!("{}M", guest.memory >> 20)])
            .arg("--kernel")
            .arg(&guest.kernel)
            .arg("--initrd")
            .arg(&guest.initrd)
            .args(["--append", &guest.append]);
        Ok(Launch { command, console: Console::Stdout, terminal: false, memory: Some(guest.memory) })
    }

    fn devices(&self, disks: &[Disk]) -> Option<Vec<String>> {
        let mut words: Vec<_> = ["--net", "user"].map(str::to_owned).into();
        for Disk { path, format, snapshot } in disks {
            let snapshot = if *snapshot { ",snapshot" } else { "" };
            words.extend(["--disk".to_owned(), format!("{},format={format}{snapshot}", path.display())]);
        }
        Some(words)
    }
}

impl Posada {
    /// What the command says against its engine with this processor model, if anything.
    fn refusal(&self, model: &str) -> anyhow::Result<Option<String>> {
        let output = Command::new(&self.program)
            .args(["run", "--engine", self.engine, "--cpu", model, "--kernel", "/dev/null"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().next().unwrap_or_default().to_owned();
        Ok((!said.contains(NO_KERNEL)).then_some(first))
    }
}

/// Builds the command, and returns where it is.
pub(in super::super) fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "posada"])
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("the command does not compile");
    }
    // This program, itself built for release, lies beside it.
    Ok(std::env::current_exe()?.with_file_name("posada"))
}
