//! What builds a disk: a machine, of whatever kind.
//!
//! A disk with a file system, owners and device files is made by a guest, so that nobody needs to be root on the host.
//! This room knows no machine: whoever opens the images brings one.

use std::fmt::Debug;
use std::io::{self, Write};
use std::path::Path;

/// A guest that does one thing and then powers off.
#[derive(Debug)]
pub struct Task<'a> {
    /// A Linux boot image.
    pub kernel: &'a Path,
    /// Its initramfs.
    pub initrd: Vec<u8>,
    /// Its command line.
    pub append: &'a str,
    /// How much memory the guest needs, in bytes.
    pub memory: u64,
    /// An image file of a disk, in any format that Posada's storage knows; the guest writes to it. It is the first
    /// virtio block device.
    pub disk: &'a Path,
}

/// A machine that can carry out a [`Task`].
pub trait Machine: Debug + Send + Sync {
    /// Runs the guest until it powers off. What it writes to its first serial port goes to `console`, what it writes to
    /// its second to `report`; both are dropped at the end.
    ///
    /// # Errors
    /// Why the guest could not run, or did not end by powering off.
    fn run(
        &self,
        task: Task<'_>,
        console: Box<dyn Write + Send>,
        report: Box<dyn Write + Send>,
    ) -> io::Result<()>;
}
