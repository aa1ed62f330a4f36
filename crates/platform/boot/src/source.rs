//! Where the bytes of a kernel or a module come from.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use object::read::ReadCacheOps;
use posada_memory::vm_memory::{Bytes, GuestAddress};
use posada_memory::{Gpa, GuestRam};

/// A file, or bytes in memory. It can be read any number of times, so that a guest can reboot.
#[derive(Debug)]
pub struct Source {
    from: From,
    len: u64,
}

#[derive(Debug)]
enum From {
    Bytes(Arc<[u8]>),
    File(File),
}

impl Source {
    /// A pipe is read to its end, at most this many bytes.
    const MAX_STREAM: u64 = 1 << 30;

    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { len: bytes.len() as u64, from: From::Bytes(bytes) }
    }

    /// A file, whose bytes later go straight into guest RAM. What is no regular file, such as a pipe, is read
    /// to its end now; more than 1 GiB of that is an error.
    pub fn file(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
        }
        if metadata.is_file() {
            return Ok(Self { len: metadata.len(), from: From::File(file) });
        }
        let mut bytes = Vec::new();
        file.take(Self::MAX_STREAM + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > Self::MAX_STREAM {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the stream has more than 1 GiB"));
        }
        Ok(Self::bytes(bytes))
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads as many of the first `limit` bytes as there are.
    pub(crate) fn head(&self, limit: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; limit.min(usize::try_from(self.len).unwrap_or(usize::MAX))];
        self.read_exact_at(&mut head, 0)?;
        Ok(head)
    }

    pub(crate) fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.from {
            From::File(file) => file.read_exact_at(data, offset),
            From::Bytes(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let part =
                    rest.and_then(|rest| rest.get(..data.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
                data.copy_from_slice(part);
                Ok(())
            }
        }
    }

    /// Copies `size` bytes from `offset` to guest memory at `to`, without a copy in between.
    pub(crate) fn copy_to(&self, offset: u64, size: u64, ram: &GuestRam, to: Gpa) -> io::Result<()> {
        let end = offset.checked_add(size).filter(|&end| end <= self.len);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (to, size) = (GuestAddress(to.0), size as usize);
        match &self.from {
            From::File(file) => {
                let mut file = file;
                Seek::seek(&mut file, SeekFrom::Start(offset))?;
                ram.view().read_exact_volatile_from(to, &mut file, size).map_err(io::Error::other)
            }
            From::Bytes(bytes) => {
                let from = &bytes[offset as usize..][..size];
                ram.view().write_slice(from, to).map_err(io::Error::other)
            }
        }
    }
}

/// [`Source`] as a stream, for the ELF reader.
pub(crate) struct Stream<'a> {
    source: &'a Source,
    position: u64,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, position: 0 }
    }
}

impl ReadCacheOps for Stream<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.source.len)
    }

    fn seek(&mut self, position: u64) -> Result<u64, ()> {
        self.position = position;
        Ok(position)
    }

    fn read(&mut self, data: &mut [u8]) -> Result<usize, ()> {
        let left = self.source.len.saturating_sub(self.position);
        let size = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.read_exact(&mut data[..size]).map(|()| size)
    }

    fn read_exact(&mut self, data: &mut [u8]) -> Result<(), ()> {
        self.source.read_exact_at(data, self.position).map_err(|_| ())?;
        self.position += data.len() as u64;
        Ok(())
    }
}
