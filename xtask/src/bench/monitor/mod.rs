//! The monitors that are compared. Another one is another file here, and a line in [`all`].

mod bochs;
pub(super) mod posada;
mod qemu;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;

use super::guest::Guest;
use super::measure::Launch;

/// An image file that a guest has for a disk, in the host's page cache.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    /// `raw` or `qcow2`.
    pub(crate) format: &'static str,
    /// Whether what the guest writes is thrown away.
    pub(crate) snapshot: bool,
}

/// Something that boots a [`Guest`].
pub(crate) trait Monitor {
    /// What `--only` calls it: one word in small letters.
    fn key(&self) -> &'static str;

    /// Its name, as tables and plots show it.
    fn name(&self) -> &'static str;

    /// Makes whatever it needs to boot this guest, once, and returns its version.
    fn prepare(&mut self, guest: &Guest) -> anyhow::Result<String>;

    /// Whether it can have this processor model, once it is prepared.
    fn has_model(&self, _: &str) -> bool {
        true
    }

    /// How to start it with this guest: with [`Guest::memory`] bytes of memory, one processor with the features of
    /// [`Guest::cpu`], the console on the first serial port, and a second serial port.
    fn launch(&self, guest: &Guest) -> anyhow::Result<Launch>;

    /// What else to say on its command line for these disks, as virtio block devices in this order, and for a virtio
    /// network card on a network in user mode; none if it has no such devices.
    fn devices(&self, _disks: &[Disk]) -> Option<Vec<String>> {
        None
    }
}

/// All of them, Posada first: others are compared with it.
pub(crate) fn all() -> Vec<Box<dyn Monitor>> {
    vec![
        Box::new(posada::INTERPRET),
        Box::new(posada::TRANSLATE),
        Box::new(bochs::Bochs::default()),
        Box::new(qemu::Qemu),
    ]
}

/// One of them.
pub(crate) fn named(key: &str) -> Option<Box<dyn Monitor>> {
    all().into_iter().find(|monitor| monitor.key() == key)
}

/// The first of the lines that a program prints which `matches`.
fn line_of(
    program: &str,
    arguments: &[impl AsRef<OsStr>],
    matches: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| matches(line));
    line.map(str::to_owned).with_context(|| format!("{program} does not tell its version"))
}
