//! Requests and their answers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, Gid, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;
use rustix::process::Resource;

use super::tree::{Tree, harmless, magic};
use super::wire::{Header, Reply, Request};

/// The most bytes that are read or written by one request, and the longest request.
const MAX_DATA: u32 = 1 << 20;
pub(super) const MAX_MESSAGE: usize = MAX_DATA as usize + 4096;
/// The most pages in one request.
const MAX_PAGES: u16 = 256;
/// Descriptors that are left to everything else in this process.
const OTHER_DESCRIPTORS: u64 = 256;
/// The most files that a guest knows of, or has open.
const MAX_FILES: u64 = 1 << 18;
/// How many seconds the guest may believe what it has been told.
const VALID: u64 = 1;

/// The protocol's version.
const MAJOR: u32 = 7;
const MINOR: u32 = 36;

/// Kinds of requests.
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
}

/// Flags of INIT.
mod init {
    pub(super) const ASYNC_READ: u32 = 1 << 0;
    pub(super) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(super) const BIG_WRITES: u32 = 1 << 5;
    pub(super) const READDIRPLUS: u32 = 1 << 13;
    pub(super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(super) const MAX_PAGES: u32 = 1 << 22;
    pub(super) const ALL: u32 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | READDIRPLUS
        | READDIRPLUS_AUTO
        | PARALLEL_DIROPS
        | MAX_PAGES;
}

/// Bits of SETATTR's `valid`.
mod valid {
    pub(super) const MODE: u32 = 1;
    pub(super) const UID: u32 = 2;
    pub(super) const GID: u32 = 4;
    pub(super) const SIZE: u32 = 8;
    pub(super) const ATIME: u32 = 0x10;
    pub(super) const MTIME: u32 = 0x20;
    pub(super) const ATIME_NOW: u32 = 0x80;
    pub(super) const MTIME_NOW: u32 = 0x100;
}

/// A file that the guest has open.
#[derive(Debug)]
enum Handle {
    File(OwnedFd),
    Folder(Dir),
}

/// One guest's view of the folder.
#[derive(Debug)]
pub(super) struct Server {
    tree: Tree,
    handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    most_handles: usize,
    read_only: bool,
}

impl Server {
    /// Serves what lies in `root`. The process gets as many descriptors as it may have, for each file that the guest
    /// knows of takes one.
    pub(super) fn new(root: OwnedFd, read_only: bool) -> io::Result<Self> {
        let mut limit = rustix::process::getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        // Where it is refused, the limit stays as it is.
        let _ = rustix::process::setrlimit(Resource::Nofile, limit);
        let descriptors = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Half for files known, half for files open.
        let most = (descriptors.saturating_sub(OTHER_DESCRIPTORS) / 2).clamp(64, MAX_FILES) as usize;
        let tree = Tree::new(root, most)?;
        Ok(Self { tree, handles: BTreeMap::new(), next_handle: 1, most_handles: most, read_only })
    }

    /// Forgets all that the guest has opened.
    pub(super) fn reset(&mut self) {
        self.handles.clear();
        self.tree.reset();
    }

    /// The answer to a request, of at most `room` bytes; empty if it gets none.
    pub(super) fn answer(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut request = Request::new(request);
        let Ok(header) = request.header() else { return Vec::new() };
        match header.opcode {
            op::FORGET | op::BATCH_FORGET => {
                // A list that ends early is forgotten as far as it goes.
                let _ = self.forget(&header, request);
                return Vec::new();
            }
            // Requests are answered in order, so there is never one to be called off.
            op::INTERRUPT => return Vec::new(),
            _ => {}
        }
        let mut reply = Reply::new();
        let result = self.carry_out(&header, request, &mut reply, room.saturating_sub(Reply::HEADER));
        let fits = Reply::HEADER + reply.len() <= room;
        let error = result.err().or((!fits).then_some(Errno::IO));
        let bytes = reply.finish(header.unique, error);
        if bytes.len() <= room { bytes } else { Vec::new() }
    }

    fn forget(&mut self, header: &Header, mut request: Request<'_>) -> Result<(), Errno> {
        if header.opcode == op::FORGET {
            self.tree.forget(header.node, request.u64()?);
            return Ok(());
        }
        let (count, _) = (request.u32()?, request.u32()?);
        for _ in 0..count {
            let (node, times) = (request.u64()?, request.u64()?);
            self.tree.forget(node, times);
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        header: &Header,
        request: Request<'_>,
        reply: &mut Reply,
        room: usize,
    ) -> Result<(), Errno> {
        let node = header.node;
        match header.opcode {
            op::INIT => self.init(request, reply),
            op::DESTROY => {
                self.reset();
                Ok(())
            }
            op::LOOKUP => self.lookup(node, request, reply),
            op::GETATTR => self.getattr(node, reply),
            op::READLINK => self.readlink(node, reply),
            op::STATFS => self.statfs(node, reply),
            op::OPEN | op::OPENDIR => self.open(node, header.opcode == op::OPENDIR, request, reply),
            op::READ => self.read(request, reply, room),
            op::READDIR | op::READDIRPLUS => {
                self.readdir(node, header.opcode == op::READDIRPLUS, request, reply, room)
            }
            op::RELEASE | op::RELEASEDIR => self.release(request),
            // What was written is with the host already.
            op::FLUSH => Ok(()),
            op::FSYNC | op::FSYNCDIR => self.fsync(request),
            _ if self.read_only => {
                Err(if is_known_change(header.opcode) { Errno::ROFS } else { Errno::NOSYS })
            }
            op::SETATTR => self.setattr(node, request, reply),
            op::SYMLINK => self.symlink(node, request, reply),
            op::MKNOD => self.mknod(node, request, reply),
            op::MKDIR => self.mkdir(node, request, reply),
            op::UNLINK => self.unlink(node, request, AtFlags::empty()),
            op::RMDIR => self.unlink(node, request, AtFlags::REMOVEDIR),
            op::RENAME | op::RENAME2 => self.rename(node, header.opcode == op::RENAME2, request),
            op::LINK => self.link(node, request, reply),
            op::WRITE => self.write(request, reply),
            op::CREATE => self.create(node, request, reply),
            op::FALLOCATE => self.fallocate(request),
            // Extended attributes, locks and what else a guest then does itself or does without.
            _ => Err(Errno::NOSYS),
        }
    }

    // The session.

    fn init(&mut self, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (major, _minor, readahead, flags) =
            (request.u32()?, request.u32()?, request.u32()?, request.u32()?);
        self.reset();
        if major < MAJOR {
            return Err(Errno::PROTO);
        }
        reply.u32(MAJOR).u32(MINOR).u32(readahead).u32(flags & init::ALL);
        // Requests in the background, and when there are many; write size, nanoseconds in a time stamp's grain, pages.
        reply.u16(64).u16(48).u32(MAX_DATA).u32(1).u16(MAX_PAGES).u16(0);
        reply.zeroes(32);
        Ok(())
    }

    // Looking.

    fn lookup(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        self.entry(folder, request.name()?, reply)
    }

    /// `struct fuse_entry_out` of what is called `name` in a folder.
    fn entry(&mut self, folder: u64, name: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        let (number, stat) = self.tree.lookup(folder, name)?;
        put_entry(number, &stat, reply);
        Ok(())
    }

    fn getattr(&self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let stat = self.tree.stat(node)?;
        reply.u64(VALID).u64(0).attributes(&stat);
        Ok(())
    }

    fn readlink(&self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let target = rustix::fs::readlinkat(self.tree.fd(node)?, "", Vec::new())?;
        reply.put(target.as_bytes());
        Ok(())
    }

    fn statfs(&self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let stat = rustix::fs::fstatvfs(self.tree.fd(node)?)?;
        reply.u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail).u64(stat.f_files).u64(stat.f_ffree);
        reply.u32(stat.f_bsize as u32).u32(stat.f_namemax as u32).u32(stat.f_frsize as u32).zeroes(28);
        Ok(())
    }

    // Files.

    fn hold(&mut self, handle: Handle) -> Result<u64, Errno> {
        if self.handles.len() >= self.most_handles {
            return Err(Errno::NFILE);
        }
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, handle);
        Ok(number)
    }

    fn file(&self, handle: u64) -> Result<BorrowedFd<'_>, Errno> {
        match self.handles.get(&handle) {
            Some(Handle::File(file)) => Ok(file.as_fd()),
            Some(Handle::Folder(_)) => Err(Errno::ISDIR),
            None => Err(Errno::BADF),
        }
    }

    fn open(
        &mut self,
        node: u64,
        folder: bool,
        mut request: Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let flags = OFlags::from_bits_retain(request.u32()?);
        if self.read_only && flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            return Err(Errno::ROFS);
        }
        let handle = if folder {
            Handle::Folder(Dir::new(self.tree.open(node, OFlags::RDONLY | OFlags::DIRECTORY)?)?)
        } else {
            Handle::File(self.tree.open(node, flags & !OFlags::DIRECTORY)?)
        };
        let handle = self.hold(handle)?;
        reply.u64(handle).u64(0);
        Ok(())
    }

    fn create(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (flags, mode) = (OFlags::from_bits_retain(request.u32()?), request.u32()?);
        // The guest has applied its mask.
        request.u64()?;
        let name = request.name()?;
        let file = self.tree.create(folder, name, flags, mode)?;
        self.entry(folder, name, reply)?;
        let handle = self.hold(Handle::File(file))?;
        reply.u64(handle).u64(0);
        Ok(())
    }

    fn read(&self, mut request: Request<'_>, reply: &mut Reply, room: usize) -> Result<(), Errno> {
        let (handle, offset, count) = (request.u64()?, request.u64()?, request.u32()?);
        let mut data = vec![0; (count.min(MAX_DATA) as usize).min(room)];
        let len = rustix::io::pread(self.file(handle)?, &mut data[..], offset)?;
        reply.put(&data[..len]);
        Ok(())
    }

    fn write(&self, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (handle, offset, count) = (request.u64()?, request.u64()?, request.u32()?);
        // Flags, and the owner of a lock.
        request.bytes(20)?;
        let data = request.bytes(count as usize)?;
        let len = rustix::io::pwrite(self.file(handle)?, data, offset)?;
        reply.u32(len as u32).u32(0);
        Ok(())
    }

    fn release(&mut self, mut request: Request<'_>) -> Result<(), Errno> {
        self.handles.remove(&request.u64()?).map(drop).ok_or(Errno::BADF)
    }

    fn fsync(&self, mut request: Request<'_>) -> Result<(), Errno> {
        /// Without attributes that nobody needs to find the data.
        const DATA_ONLY: u32 = 1;
        let (handle, flags) = (request.u64()?, request.u32()?);
        match self.handles.get(&handle).ok_or(Errno::BADF)? {
            Handle::File(file) if flags & DATA_ONLY != 0 => rustix::fs::fdatasync(file),
            Handle::File(file) => rustix::fs::fsync(file),
            Handle::Folder(folder) => rustix::fs::fsync(folder.fd()?),
        }
    }

    fn fallocate(&self, mut request: Request<'_>) -> Result<(), Errno> {
        let (handle, offset, len, mode) = (request.u64()?, request.u64()?, request.u64()?, request.u32()?);
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::fallocate(self.file(handle)?, mode, offset, len)
    }

    /// Lists a folder from a place on, with what a lookup would give if `plus`.
    fn readdir(
        &mut self,
        node: u64,
        plus: bool,
        mut request: Request<'_>,
        reply: &mut Reply,
        room: usize,
    ) -> Result<(), Errno> {
        /// Bytes of `struct fuse_dirent` before the name, and of `struct fuse_entry_out`.
        const DIRENT: usize = 24;
        const ENTRY: usize = 128;
        let (handle, offset, size) = (request.u64()?, request.u64()?, request.u32()?);
        let room = (size as usize).min(room);
        let Some(Handle::Folder(folder)) = self.handles.get_mut(&handle) else { return Err(Errno::BADF) };
        folder.seek(i64::try_from(offset).map_err(|_| Errno::INVAL)?)?;
        while let Some(entry) = folder.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let len = (DIRENT + name.len()).next_multiple_of(8) + if plus { ENTRY } else { 0 };
            if reply.len() + len > room {
                break;
            }
            if plus {
                // The two that every folder has are not looked up; nor is what has gone meanwhile.
                let found =
                    if name == b"." || name == b".." { None } else { self.tree.lookup(node, name).ok() };
                match found {
                    Some((number, stat)) => put_entry(number, &stat, reply),
                    None => drop(reply.zeroes(ENTRY)),
                }
            }
            let kind = entry.file_type().as_raw_mode() >> 12;
            reply.u64(entry.ino()).u64(entry.offset() as u64).u32(name.len() as u32).u32(kind).put(name);
            reply.zeroes((DIRENT + name.len()).next_multiple_of(8) - DIRENT - name.len());
        }
        Ok(())
    }

    // Names.

    fn symlink(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (name, target) = (request.name()?, request.string()?);
        rustix::fs::symlinkat(target, self.tree.fd(folder)?, name)?;
        self.entry(folder, name, reply)
    }

    fn mknod(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let mode = request.u32()?;
        // Device number and mask.
        request.bytes(12)?;
        let (name, kind) = (request.name()?, FileType::from_raw_mode(mode));
        if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
            return Err(Errno::PERM);
        }
        rustix::fs::mknodat(self.tree.fd(folder)?, name, kind, harmless(mode), 0)?;
        self.entry(folder, name, reply)
    }

    fn mkdir(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (mode, _mask, name) = (request.u32()?, request.u32()?, request.name()?);
        rustix::fs::mkdirat(self.tree.fd(folder)?, name, harmless(mode))?;
        self.entry(folder, name, reply)
    }

    fn unlink(&self, folder: u64, mut request: Request<'_>, flags: AtFlags) -> Result<(), Errno> {
        rustix::fs::unlinkat(self.tree.fd(folder)?, request.name()?, flags)
    }

    fn rename(&self, from: u64, with_flags: bool, mut request: Request<'_>) -> Result<(), Errno> {
        let to = request.u64()?;
        let flags = if with_flags { request.u64()? as u32 } else { 0 };
        let (old, new) = (request.name()?, request.name()?);
        let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        let flags = RenameFlags::from_bits_retain(flags);
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        rustix::fs::renameat_with(self.tree.fd(from)?, old, self.tree.fd(to)?, new, flags)
    }

    fn link(&mut self, folder: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (node, name) = (request.u64()?, request.name()?);
        let file = magic(self.tree.fd(node)?);
        rustix::fs::linkat(CWD, file, self.tree.fd(folder)?, name, AtFlags::SYMLINK_FOLLOW)?;
        self.entry(folder, name, reply)
    }

    fn setattr(&self, node: u64, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let (which, _) = (request.u32()?, request.u32()?);
        let (_handle, size, _owner) = (request.u64()?, request.u64()?, request.u64()?);
        let (atime, mtime, _ctime) = (request.u64()?, request.u64()?, request.u64()?);
        let (atime_nsec, mtime_nsec, _) = (request.u32()?, request.u32()?, request.u32()?);
        let (mode, _, uid, gid) = (request.u32()?, request.u32()?, request.u32()?, request.u32()?);
        let fd = self.tree.fd(node)?;
        let is_link = FileType::from_raw_mode(self.tree.stat(node)?.st_mode) == FileType::Symlink;
        if which & valid::MODE != 0 {
            if is_link {
                return Err(Errno::OPNOTSUPP);
            }
            rustix::fs::chmodat(CWD, magic(fd), harmless(mode), AtFlags::empty())?;
        }
        if which & (valid::UID | valid::GID) != 0 {
            let owner = (which & valid::UID != 0 && uid != u32::MAX).then(|| Uid::from_raw(uid));
            let group = (which & valid::GID != 0 && gid != u32::MAX).then(|| Gid::from_raw(gid));
            rustix::fs::chownat(fd, "", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if which & valid::SIZE != 0 {
            rustix::fs::ftruncate(self.tree.open(node, OFlags::WRONLY)?, size)?;
        }
        if which & (valid::ATIME | valid::MTIME) != 0 && !is_link {
            let time = |asked: u32, now: u32, seconds: u64, nanoseconds: u32| {
                let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
                match (which & asked != 0, which & now != 0) {
                    (false, _) => special(rustix::fs::UTIME_OMIT),
                    (true, true) => special(rustix::fs::UTIME_NOW),
                    (true, false) => {
                        Timespec { tv_sec: seconds as i64, tv_nsec: i64::from(nanoseconds % 1_000_000_000) }
                    }
                }
            };
            let times = Timestamps {
                last_access: time(valid::ATIME, valid::ATIME_NOW, atime, atime_nsec),
                last_modification: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_nsec),
            };
            rustix::fs::utimensat(CWD, magic(fd), &times, AtFlags::empty())?;
        }
        self.getattr(node, reply)
    }
}

/// `struct fuse_entry_out`.
fn put_entry(number: u64, stat: &Stat, reply: &mut Reply) {
    // Numbers are never used again, so there is one generation.
    reply.u64(number).u64(0).u64(VALID).u64(VALID).u64(0).attributes(stat);
}

/// Whether a request is one that changes something here.
fn is_known_change(opcode: u32) -> bool {
    use op::{
        CREATE, FALLOCATE, LINK, MKDIR, MKNOD, RENAME, RENAME2, RMDIR, SETATTR, SYMLINK, UNLINK, WRITE,
    };
    let changes =
        [SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK, WRITE, CREATE, FALLOCATE];
    changes.contains(&opcode)
}
