//! What every guest gets from Posada itself: the first process, the agent and a few configuration files.
//!
//! These travel in a second, small archive behind the image's own, made anew for each run: Linux unpacks archives one
//! after another into the same root. So the cache holds only what came from packages, and a new version of Posada
//! brings its own `/init` and agent to images that are cached already.

use std::io;

use crate::initramfs::Initramfs;
use crate::session::{Session, SessionError};

const DHCP: &[u8] = include_bytes!("guest/udhcpc.script");
const INIT: &[u8] = include_bytes!("guest/init.sh");

/// Compiled by the build script from `guests/agent`.
pub(crate) const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/posada-agent"));

const FILES: [(&str, &[u8]); 6] = [
    ("etc/fstab", include_bytes!("guest/fstab")),
    ("etc/profile", include_bytes!("guest/profile")),
    ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("etc/group", b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/shells", b"/bin/sh\n"),
];

/// The archive for one session in a guest of this name.
///
/// # Errors
/// [`SessionError`] if the session's command cannot be passed on.
pub(crate) fn archive(hostname: &str, session: &Session) -> Result<Vec<u8>, SessionError> {
    let with_power_button = session.is_shell();
    let session = session.encode()?;
    let write = || -> io::Result<Vec<u8>> {
        let mut archive = Initramfs::new(Vec::with_capacity(64 * 1024 + session.len()));
        for folder in ["dev", "proc", "sys", "run", "mnt", "var/tmp", "var/log", "usr/local/bin"] {
            archive.folder(folder, 0o755)?;
        }
        archive.folder("root", 0o700)?;
        archive.folder("tmp", 0o1777)?;
        archive.link("var/run", "/run")?;
        archive.link("etc/mtab", "/proc/self/mounts")?;
        // The kernel opens it for the first process, before anything is mounted on /dev.
        archive.character_device("dev/console", 0o600, (5, 1))?;
        archive.file("init", 0o755, INIT)?;
        archive.file("etc/udhcpc.script", 0o755, DHCP)?;
        archive.file("sbin/posada-agent", 0o755, AGENT)?;
        for (path, contents) in FILES {
            archive.file(path, 0o644, contents)?;
        }
        if with_power_button {
            // The event's name and value, as acpid looks it up: KEY_POWER.
            archive.file("etc/acpi/PWRF/00000080", 0o755, b"#!/bin/sh\nexec poweroff\n")?;
        }
        archive.file("etc/hostname", 0o644, format!("{hostname}\n").as_bytes())?;
        archive.file(crate::session::SESSION_FILE, 0o600, &session)?;
        archive.finish()
    };
    Ok(write().expect("writing to memory does not fail"))
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod tests;
