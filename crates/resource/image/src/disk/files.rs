//! Files that a guest with a disk gets beside its packages: once, when the disk is built, and anew for each run.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::guest::AGENT;
use crate::initramfs::Initramfs;
use crate::session::{Session, SessionError};
use crate::suites::{Source, keys, source_list};

const BUILD: &[u8] = include_bytes!("build.sh");
const BOOT: &[u8] = include_bytes!("boot.sh");

/// Where Debian's own package puts its keys.
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-";

/// Where the host's other keys go in the guest (sources.list(5) suggests it).
const OTHER_KEYS: &str = "/etc/apt/keyrings/";

/// A key file is not believed to be longer.
const MAX_KEY: u64 = 4 << 20;

/// What makes the disk a guest's of Posada, whatever its packages: put over the installed system.
const FILES: [(&str, &str); 6] = [
    ("etc/fstab", "/dev/vda  /  ext4  defaults,errors=remount-ro  0  1\n"),
    ("etc/hostname", "debian\n"),
    (
        "etc/hosts",
        "127.0.0.1 localhost\n127.0.1.1 debian\n\n::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n",
    ),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    (
        "etc/network/interfaces",
        "# See interfaces(5).\nsource /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n\
         # The first network card, whenever there is one.\nallow-hotplug eth0\niface eth0 inet dhcp\n",
    ),
    // A login without a password on every serial console: who has the console has the machine.
    (
        "etc/systemd/system/serial-getty@.service.d/autologin.conf",
        "[Service]\nExecStart=\n\
         ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM\n",
    ),
];

/// What a build needs beside the base initramfs.
pub(super) struct Build<'a> {
    /// Package files, in order: those that are unpacked first, and the others.
    pub(super) first: &'a [PathBuf],
    pub(super) rest: &'a [PathBuf],
    /// mke2fs, tune2fs, e2fsck, dpkg-deb, tar, their loader and libraries, by file name.
    pub(super) tools: &'a [(String, Vec<u8>)],
    /// The sources of the guest.
    pub(super) sources: &'a [Source],
    /// Lines for the guest's apt.conf.
    pub(super) apt: &'a str,
    /// The package lists of these sources.
    pub(super) lists: &'a [PathBuf],
}

impl Build<'_> {
    /// The archive that turns the base initramfs into the one that builds the disk.
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let read = |path: &Path| fs::read(path).map_err(Error::io("read", path));
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut archive = Initramfs::new(Vec::new());
        let names = |paths: &[PathBuf]| paths.iter().map(|path| name(path) + "\n").collect::<String>();
        let mut files: Vec<(String, u32, Vec<u8>)> = vec![
            ("init".into(), 0o755, BUILD.into()),
            ("build/first".into(), 0o644, names(self.first).into()),
            ("build/rest".into(), 0o644, names(self.rest).into()),
            // mke2fs and dpkg ask for the user and group root.
            ("etc/passwd".into(), 0o644, b"root:x:0:0:root:/root:/bin/sh\n".into()),
            ("etc/group".into(), 0o644, b"root:x:0:\n".into()),
        ];
        for (tool, contents) in self.tools {
            let path =
                if tool == "mke2fs.conf" { format!("etc/{tool}") } else { format!("build/tools/{tool}") };
            files.push((path, 0o755, contents.clone()));
        }
        for (path, contents) in FILES {
            files.push((format!("build/files/{path}"), 0o644, contents.into()));
        }
        for (path, contents) in sources(self.sources, self.apt)? {
            files.push((format!("build/files/{path}"), 0o644, contents));
        }
        let write = |error: io::Error| Error::io("make an archive of", "the packages")(error);
        for folder in ["dev", "proc", "sys", "tmp"] {
            archive.folder(folder, 0o755).map_err(write)?;
        }
        archive.character_device("dev/console", 0o600, (5, 1)).map_err(write)?;
        for (path, permissions, contents) in files {
            archive.file(&path, permissions, &contents).map_err(write)?;
        }
        for path in self.first.iter().chain(self.rest) {
            archive.file(&format!("build/packages/{}", name(path)), 0o644, &read(path)?).map_err(write)?;
        }
        for path in self.lists {
            archive.file(&format!("build/lists/{}", name(path)), 0o644, &read(path)?).map_err(write)?;
        }
        archive.finish().map_err(write)
    }
}

/// apt's configuration in the guest: the host's sources of this suite, with their keys.
fn sources(sources: &[Source], apt: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let place = |path: &str| {
        // Debian's keys come with the package debian-archive-keyring.
        if path.starts_with(DEBIAN_KEYS) {
            return path.to_owned();
        }
        format!("{OTHER_KEYS}{}", path.rsplit('/').next().unwrap_or(path))
    };
    let mut files =
        vec![("etc/apt/sources.list.d/debian.sources".to_owned(), source_list(sources, place).into())];
    if !apt.is_empty() {
        files.push(("etc/apt/apt.conf.d/90posada".to_owned(), apt.into()));
    }
    let others: BTreeSet<PathBuf> =
        keys(sources).into_iter().filter(|path| !path.to_string_lossy().starts_with(DEBIAN_KEYS)).collect();
    for path in others {
        let length = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        if length <= MAX_KEY {
            let key = fs::read(&path).map_err(Error::io("read", &path))?;
            files.push((place(&path.to_string_lossy()).trim_start_matches('/').to_owned(), key));
        }
    }
    Ok(files)
}

/// What is added to units if the machine has a network card, so that a command finds the network working: ifupdown's unit
/// counts as started while it still asks for an address.
const NETWORK: [(&str, &str); 2] = [
    ("posada-session.service.d", "[Unit]\nWants=ifup@eth0.service\nAfter=ifup@eth0.service\n"),
    ("ifup@eth0.service.d", "[Service]\nType=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=90\n"),
];

/// The unit that runs a session in a guest whose first process is systemd, and ends the machine with it.
fn unit(keeps_disk: bool) -> String {
    // Where nothing is kept, nothing needs to be written back or ended in good order.
    let action = if keeps_disk { "poweroff" } else { "poweroff-immediate" };
    format!(
        "[Unit]\nDescription=Posada's session\n\
         After=systemd-user-sessions.service dbus.service systemd-logind.service network.target\n\
         SuccessAction={action}\nFailureAction={action}\n\n\
         [Service]\nExecStart=/run/posada/agent /run/posada/session\nStandardInput=null\n\
         Restart=no\nTimeoutStopSec=5\n"
    )
}

/// The unit that takes commands from outside, where the machine has a socket device.
const EXEC: &str = "[Unit]\nDescription=Posada's commands from outside\nDefaultDependencies=no\n\
     Conflicts=shutdown.target\nBefore=shutdown.target\n\n\
     [Service]\nExecStart=/run/posada/agent --serve\nStandardInput=null\nRestart=on-failure\nRestartSec=1\n\
     TimeoutStopSec=5\n";

/// What a run brings to a guest with a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot<'a> {
    /// What is run in it; without one there is a login on the serial console.
    pub(crate) session: Option<&'a Session>,
    /// Whether the disk is kept after the run.
    pub(crate) keeps_disk: bool,
}

impl Boot<'_> {
    /// The archive that turns the base initramfs into the one that starts the disk's system.
    pub(crate) fn archive(&self) -> std::result::Result<Vec<u8>, SessionError> {
        let session = self.session.map(|session| session.on_a_system().encode()).transpose()?;
        let write = || -> io::Result<Vec<u8>> {
            let mut archive = Initramfs::new(Vec::with_capacity(64 << 10));
            for folder in ["dev", "proc", "sys", "root"] {
                archive.folder(folder, 0o755)?;
            }
            archive.character_device("dev/console", 0o600, (5, 1))?;
            archive.file("init", 0o755, BOOT)?;
            // A kept disk is checked before it is written to; a new one needs no check.
            let options = if self.keeps_disk { "ro" } else { "rw" };
            archive.file("posada/boot", 0o644, format!("options={options}\n").as_bytes())?;
            archive.folder("posada/run", 0o755)?;
            if self.session.is_some_and(|session| !session.is_shell()) {
                for (folder, text) in NETWORK {
                    archive.file(&format!("posada/network/{folder}/posada.conf"), 0o644, text.as_bytes())?;
                }
            }
            archive.file("posada/run/posada/agent", 0o755, AGENT)?;
            archive.file("posada/exec/posada-exec.service", 0o644, EXEC.as_bytes())?;
            archive.link(
                "posada/exec/multi-user.target.wants/posada-exec.service",
                "/run/systemd/system/posada-exec.service",
            )?;
            if let Some(session) = session {
                archive.file("posada/run/posada/session", 0o600, &session)?;
                let units = "posada/run/systemd/system";
                archive.file(
                    &format!("{units}/posada-session.service"),
                    0o644,
                    unit(self.keeps_disk).as_bytes(),
                )?;
                let wants = format!("{units}/multi-user.target.wants/posada-session.service");
                archive.link(&wants, "/run/systemd/system/posada-session.service")?;
                // The console is the session's, or nobody's.
                archive.link(&format!("{units}/serial-getty@ttyS0.service"), "/dev/null")?;
            }
            archive.finish()
        };
        Ok(write().expect("writing to memory does not fail"))
    }
}

#[cfg(test)]
#[path = "files_test.rs"]
mod tests;
