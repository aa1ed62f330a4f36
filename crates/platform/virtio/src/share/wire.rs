//! Messages: integers little-endian, names ended by a zero byte.

use rustix::fs::Stat;
use rustix::io::Errno;

/// A request's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    /// The file that the request is about.
    pub(super) node: u64,
}

/// A request, read from the front. What ends too early is `EINVAL`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a>(&'a [u8]);

impl<'a> Request<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn header(&mut self) -> Result<Header, Errno> {
        let (_len, opcode) = (self.u32()?, self.u32()?);
        let header = Header { opcode, unique: self.u64()?, node: self.u64()? };
        // User, group, process, and what is reserved.
        self.bytes(16)?;
        Ok(header)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (now, later) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = later;
        Ok(now)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (now, later) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = later;
        Ok(*now)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string without its end.
    pub(super) fn string(&mut self) -> Result<&'a [u8], Errno> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let string = self.bytes(len)?;
        self.bytes(1)?;
        Ok(string)
    }

    /// The name of something in a folder: one component, neither the folder itself nor the one above.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.string()?;
        match name {
            b"" | b"." | b".." => Err(Errno::INVAL),
            _ if name.contains(&b'/') => Err(Errno::INVAL),
            _ if name.len() > 255 => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Reply(Vec<u8>);

impl Reply {
    /// Bytes before the body.
    pub(super) const HEADER: usize = 16;

    pub(super) fn new() -> Self {
        Self(vec![0; Self::HEADER])
    }

    /// Bytes of the body so far.
    pub(super) fn len(&self) -> usize {
        self.0.len() - Self::HEADER
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn zeroes(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `struct fuse_attr`.
    pub(super) fn attributes(&mut self, stat: &Stat) -> &mut Self {
        self.u64(stat.st_ino).u64(stat.st_size as u64).u64(stat.st_blocks as u64);
        self.u64(stat.st_atime as u64).u64(stat.st_mtime as u64).u64(stat.st_ctime as u64);
        self.u32(stat.st_atime_nsec as u32).u32(stat.st_mtime_nsec as u32).u32(stat.st_ctime_nsec as u32);
        self.u32(stat.st_mode).u32(stat.st_nlink as u32).u32(stat.st_uid).u32(stat.st_gid);
        self.u32(stat.st_rdev as u32).u32(stat.st_blksize as u32).u32(0)
    }

    /// The whole answer; `error` in place of the body, if there is one.
    pub(super) fn finish(mut self, unique: u64, error: Option<Errno>) -> Vec<u8> {
        if error.is_some() {
            self.0.truncate(Self::HEADER);
        }
        let code = error.map_or(0, |error| -error.raw_os_error());
        let len = (self.0.len() as u32).to_le_bytes();
        self.0[..4].copy_from_slice(&len);
        self.0[4..8].copy_from_slice(&code.to_le_bytes());
        self.0[8..16].copy_from_slice(&unique.to_le_bytes());
        self.0
    }
}
