//! The files that the guest knows of, each opened only so far that it can be named.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// The number of the root.
pub(super) const ROOT: u64 = 1;

/// What is opened of the folder to be shared.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Nothing that lies outside of the folder that a lookup begins in.
fn inside() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
}

/// The permissions of `mode`, without set-user-ID and set-group-ID.
pub(super) fn harmless(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o1777)
}

/// The path by which the host's kernel finds what is open: itself, and not what it may be a link to.
pub(super) fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A file, folder or link.
#[derive(Debug)]
struct Node {
    fd: OwnedFd,
    /// How often the guest has been told of it and has not forgotten it.
    lookups: u64,
    /// Device and number on the host.
    identity: (u64, u64),
}

/// All files that the guest knows of, by number.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<u64, Node>,
    /// So that one file has one number, whatever its names.
    numbers: BTreeMap<(u64, u64), u64>,
    next: u64,
    most: usize,
}

impl Tree {
    /// With a root, and room for `most` files.
    pub(super) fn new(root: OwnedFd, most: usize) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let identity = (stat.st_dev, stat.st_ino);
        let root = Node { fd: root, lookups: u64::MAX, identity };
        Ok(Self { nodes: [(ROOT, root)].into(), numbers: [(identity, ROOT)].into(), next: ROOT + 1, most })
    }

    /// Forgets all but the root.
    pub(super) fn reset(&mut self) {
        self.nodes.retain(|number, _| *number == ROOT);
        self.numbers.retain(|_, number| *number == ROOT);
    }

    pub(super) fn fd(&self, number: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.nodes.get(&number).map(|node| node.fd.as_fd()).ok_or(Errno::STALE)
    }

    pub(super) fn stat(&self, number: u64) -> Result<Stat, Errno> {
        rustix::fs::fstat(self.fd(number)?)
    }

    /// What is called `name`, one component, in a folder: its number and attributes. The guest then knows of it.
    pub(super) fn lookup(&mut self, folder: u64, name: &[u8]) -> Result<(u64, Stat), Errno> {
        // A link is opened itself; a name of one component has no others.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(self.fd(folder)?, name, flags, Mode::empty(), inside())?;
        let stat = rustix::fs::fstat(&fd)?;
        let identity = (stat.st_dev, stat.st_ino);
        if let Some(number) = self.numbers.get(&identity)
            && let Some(node) = self.nodes.get_mut(number)
        {
            node.lookups = node.lookups.saturating_add(1);
            return Ok((*number, stat));
        }
        if self.nodes.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node { fd, lookups: 1, identity });
        self.numbers.insert(identity, number);
        Ok((number, stat))
    }

    /// The guest forgets a file `count` times.
    pub(super) fn forget(&mut self, number: u64, count: u64) {
        if number == ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&number) {
            node.lookups = node.lookups.saturating_sub(count);
            if node.lookups == 0 {
                self.numbers.remove(&node.identity);
                self.nodes.remove(&number);
            }
        }
    }

    /// Opens a file for reading or writing. Only files and folders can be: opening anything else does something.
    pub(super) fn open(&self, number: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let fd = self.fd(number)?;
        match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let allowed = OFlags::RDONLY | OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC | OFlags::DIRECTORY;
        let flags = flags & allowed | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::open(magic(fd), flags, Mode::empty())
    }

    /// Makes a file in a folder, unless it is there already, and opens it.
    pub(super) fn create(
        &self,
        folder: u64,
        name: &[u8],
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, Errno> {
        let allowed = OFlags::RDONLY | OFlags::WRONLY | OFlags::RDWR | OFlags::EXCL | OFlags::TRUNC;
        let more = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let folder = self.fd(folder)?;
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) => return Err(Errno::EXIST),
            Err(error) => return Err(error),
        }
        rustix::fs::openat2(folder, name, flags & allowed | more, harmless(mode), inside())
    }
}
