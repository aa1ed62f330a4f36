//! Bochs, the interpreter that Posada's is measured against.
//!
//! It boots only as a PC does, from a disk: the guest's files go onto a CD image with ISOLINUX. Boot times from the
//! kernel's first line leave that detour out.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::super::guest::{Guest, MEMORY};
use super::super::measure::{Console, Launch, tethered};
use super::{Monitor, line_of};

const LOADER: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const LOADER_LIBRARY: &str = "/usr/lib/syslinux/modules/bios/ldlinux.c32";

#[derive(Debug, Default)]
pub(super) struct Bochs {
    configuration: PathBuf,
    debugger_commands: PathBuf,
}

impl Monitor for Bochs {
    fn key(&self) -> &'static str {
        "bochs"
    }

    fn name(&self) -> &'static str {
        "Bochs"
    }

    fn prepare(&mut self, guest: &Guest) -> anyhow::Result<String> {
        let folder = guest.folder.join("bochs");
        let disc = folder.join("disc");
        fs::create_dir_all(disc.join("isolinux"))?;
        fs::copy(&guest.kernel, disc.join("vmlinuz"))?;
        fs::copy(&guest.initrd, disc.join("initrd"))?;
        for file in [LOADER, LOADER_LIBRARY].map(PathBuf::from) {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, disc.join("isolinux").join(name))
                .with_context(|| format!("copying {}", file.display()))?;
        }
        fs::write(disc.join("isolinux/isolinux.cfg"), loader_configuration(&guest.append))?;
        let image = folder.join("disc.iso");
        make_disc(&disc, &image)?;

        // Debian's Bochs has its debugger built in, which waits for a command before the first instruction.
        self.debugger_commands = folder.join("commands");
        fs::write(&self.debugger_commands, "continue\n")?;
        self.configuration = folder.join("bochsrc");
        let log = folder.join("log");
        let path = |path: &PathBuf| path.display().to_string();
        fs::write(&self.configuration, configuration(&path(&image), &path(&log)))?;

        let version = line_of("bochs", &["--help", "cpu"], |line| line.starts_with("Bochs x86 Emulator"))?;
        Ok(version)
    }

    fn launch(&self, _: &Guest) -> anyhow::Result<Launch> {
        let mut command = tethered("bochs");
        command
            .arg("-q")
            .arg("-f")
            .arg(&self.configuration)
            .arg("-rc")
            .arg(&self.debugger_commands)
            .env("TERM", "vt100");
        Ok(Launch { command, console: Console::Stderr, terminal: true, memory: Some(MEMORY) })
    }
}

/// The loader is silent: what it says to a serial port costs time.
fn loader_configuration(append: &str) -> String {
    format!("DEFAULT guest\nPROMPT 0\nLABEL guest\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {append}\n")
}

/// `bochsrc`. One line on the console is one write to standard error; time is that of the instructions.
fn configuration(disc: &str, log: &str) -> String {
    let megabytes = MEMORY >> 20;
    format!(
        "memory: guest={megabytes}, host={megabytes}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         cpu: model=bx_generic, count=1, ips=100000000, reset_on_triple_fault=0\n\
         cpuid: x86_64=1, mmx=1, sep=1, simd=sse4_2, aes=1, xsave=1, xsaveopt=1, apic=x2apic, 1g_pages=1, pcid=1\n\
         cpuid: fsgsbase=1, smep=1, smap=1, mwait=0\n\
         clock: sync=none\n\
         ata0: enabled=1\n\
         ata0-master: type=cdrom, path={disc}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev=/dev/stderr\n\
         com2: enabled=1, mode=null\n\
         speaker: enabled=0\n\
         display_library: term\n\
         log: {log}\n\
         panic: action=fatal\n\
         error: action=report\n"
    )
}

fn make_disc(folder: &std::path::Path, image: &std::path::Path) -> anyhow::Result<()> {
    let output = Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-o"])
        .arg(image)
        .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .context("starting xorriso")?;
    if !output.status.success() {
        bail!("xorriso could not make {}:\n{}", image.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
