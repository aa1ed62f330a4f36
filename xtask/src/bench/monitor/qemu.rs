//! QEMU with its translator, the Tiny Code Generator.

use super::super::guest::{Guest, MEMORY};
use super::super::measure::{Console, Launch, tethered};
use super::{Monitor, line_of};

const PROGRAM: &str = "qemu-system-x86_64";

/// `x86-64-v2` and what kernels notice of Posada's model, as far as this translator has it.
const CPU: &str =
    "Westmere,+xsave,+xsaveopt,+rdrand,+arat,+fsgsbase,+smep,+smap,+erms,+umip,+clflushopt,+clwb,+pdpe1gb";

#[derive(Debug)]
pub(super) struct Qemu;

impl Monitor for Qemu {
    fn key(&self) -> &'static str {
        "qemu"
    }

    fn name(&self) -> &'static str {
        "QEMU TCG"
    }

    fn prepare(&mut self, _: &Guest) -> anyhow::Result<String> {
        line_of(PROGRAM, &["--version"], |line| line.contains("version"))
    }

    fn launch(&self, guest: &Guest) -> anyhow::Result<Launch> {
        let mut command = tethered(PROGRAM);
        command
            .args(["-accel", "tcg", "-machine", "pc", "-cpu", CPU, "-smp", "1"])
            .args(["-m", &format!("{}M", MEMORY >> 20)])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-serial",
                "null",
            ])
            .arg("-kernel")
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initrd)
            .args(["-append", &guest.append]);
        Ok(Launch { command, console: Console::Stdout, terminal: false, memory: MEMORY })
    }
}
