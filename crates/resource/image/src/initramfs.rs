//! Writes initramfs archives: cpio in the "newc" format, as `Documentation/driver-api/early-userspace/
//! buffer-format.rst` of the Linux kernel defines it.
//!
//! The archives stay uncompressed. The guest's processor may be an interpreter, which takes longer to decompress a
//! megabyte than to copy ten.

use std::collections::BTreeSet;
use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive in the making. Folders above a file are made along with it.
pub struct Initramfs<W: Write> {
    /// `None` only while an entry is written, or after an error.
    out: Option<W>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl<W: Write> Initramfs<W> {
    /// An empty archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out: Some(out), entries: 0, folders: BTreeSet::new() }
    }

    /// Adds a folder with these permissions.
    pub fn folder(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.parents(path)?;
        self.folders.insert(path.to_owned());
        self.entry(path, ModeFileType::Directory, permissions, (0, 0), &[])
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, path: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Regular, permissions, (0, 0), contents)
    }

    /// Adds a symbolic link to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Symlink, 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, permissions: u32, number: (u32, u32)) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, ModeFileType::Char, permissions, number, &[])
    }

    /// Ends the archive. Its length is a multiple of four, so that another one may follow.
    pub fn finish(mut self) -> io::Result<W> {
        trailer(self.take()?)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            if self.folders.insert(path[..at].to_owned()) {
                self.entry(&path[..at], ModeFileType::Directory, 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &str,
        kind: ModeFileType,
        permissions: u32,
        device: (u32, u32),
        contents: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(contents.len())
            .map_err(|_| io::Error::other(format!("{path} is too long for a cpio archive")))?;
        let out = self.take()?;
        self.entries += 1;
        let mut writer = Builder::new(path)
            .ino(self.entries)
            .mode(permissions)
            .set_mode_file_type(kind)
            .rdev_major(device.0)
            .rdev_minor(device.1)
            .write(out, length);
        writer.write_all(contents)?;
        self.out = Some(writer.finish()?);
        Ok(())
    }

    fn take(&mut self) -> io::Result<W> {
        self.out.take().ok_or_else(|| io::Error::other("the archive is incomplete"))
    }
}

#[cfg(test)]
#[path = "initramfs_test.rs"]
mod tests;
