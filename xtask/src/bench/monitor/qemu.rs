//! QEMU with its translator, the Tiny Code Generator.

use super::super::guest::{Guest, LEVEL};
use super::super::measure::{Console, Launch, tethered};
use super::{Disk, Monitor, line_of};

const PROGRAM: &str = "qemu-system-x86_64";

/// `x86-64-v3`, likewise. What this translator lacks of it, transactions above all, is no part of the level.
const CPU_V3: &str = "Haswell-noTSX,+xsaveopt,+rdrand,+arat,+fsgsbase,+smep,+smap,+erms,+umip,+clflushopt,+clwb,+pdpe1gb,\
     -pcid,-invpcid,-tsc-deadline,-x2apic,-spec-ctrl";

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
        let cpu = if guest.cpu == LEVEL { CPU } else { CPU_V3 };
        let mut command = tethered(PROGRAM);
        command
            .args(["-accel", "tcg", "-machine", "pc", "-cpu", cpu, "-smp", "1"])
            .args(["-m", &format!("{}M", guest.memory >> 20)])
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
        Ok(Launch { command, console: Console::Stdout, terminal: false, memory: Some(guest.memory) })
    }

    fn devices(&self, disks: &[Disk]) -> Option<Vec<String>> {
        let mut words: Vec<_> =
            ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"].map(str::to_owned).into();
        for (index, Disk { path, format, snapshot }) in disks.iter().enumerate() {
            let (file, snapshot) = (path.display(), if *snapshot { "on" } else { "off" });
            words.extend(["-object".to_owned(), format!("iothread,id=thread{index}"), "-drive".to_owned()]);
            words.push(format!(
                "if=none,id=disk{index},file={file},format={format},snapshot={snapshot},cache=writeback,aio=threads"
            ));
            words.push("-device".to_owned());
            words.push(format!("virtio-blk-pci,drive=disk{index},iothread=thread{index}"));
        }
        Some(words)
    }
}
