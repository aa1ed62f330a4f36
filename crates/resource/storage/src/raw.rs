//! A file that is the disk, byte for byte.

use std::sync::{Mutex, PoisonError};

use crate::disk::check_range;
use crate::file::{HostFile, Seekable};
use crate::{Disk, Error, Extent, Format, Limits, PROBE, Result, SECTOR};

/// A raw image: sparse where the host's file system can, or a block device.
#[derive(Debug)]
pub(crate) struct Raw {
    file: HostFile,
    /// The file's length when it was opened.
    length: u64,
    /// That, rounded up to whole sectors.
    size: u64,
    /// Held while the first bytes are changed, if these must not become those of another format.
    head: Option<Mutex<()>>,
}

impl Raw {
    /// `probed` says that nothing but the contents has made it raw.
    pub(crate) fn new(file: HostFile, probed: bool) -> Result<Self> {
        let length = file.len()?;
        Ok(Self { file, length, size: length.next_multiple_of(SECTOR), head: probed.then(Mutex::default) })
    }

    /// Writes to the start of a disk that is raw because it looks like nothing else, as long as that stays so.
    fn write_head(&self, head: &Mutex<()>, offset: u64, data: &[u8]) -> Result<()> {
        let _one_at_a_time = head.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; PROBE];
        self.file.read_some(0, &mut bytes)?;
        for (byte, new) in bytes.iter_mut().skip(offset as usize).zip(data) {
            *byte = *new;
        }
        match Format::probe(&bytes) {
            Format::Raw => self.file.write(offset, data),
            format => Err(Error::Disguise { path: self.file.path().to_owned(), format }),
        }
    }

    fn check_change(&self, offset: u64, length: u64) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::ReadOnly { path: self.file.path().to_owned() });
        }
        check_range(self, offset, length)
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        !self.file.is_writable()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        let had = self.file.read_some(offset, buffer)?;
        if had < buffer.len() {
            // Only the last, incomplete sector may lie past the end.
            let end = offset + had as u64;
            if end < self.length {
                return Err(Error::Shrunk { path: self.file.path().to_owned(), has: end, had: self.length });
            }
            buffer[had..].fill(0);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_change(offset, data.len() as u64)?;
        match &self.head {
            Some(head) if offset < PROBE as u64 => self.write_head(head, offset, data),
            _ => self.file.write(offset, data),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        self.check_change(offset, length)?;
        self.file.write_zeroes(offset, length, may_unmap)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_change(offset, length)?;
        self.file.punch(offset, length)
    }

    fn flush(&self) -> Result<()> {
        if self.is_read_only() { Ok(()) } else { self.file.sync() }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn extent(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        check_range(self, offset, length)?;
        let end = offset + length;
        match self.file.seek(offset, Seekable::Data)? {
            Some(data) if data <= offset => {
                let hole = self.file.seek(offset, Seekable::Hole)?.unwrap_or(end);
                Ok((Extent::Data, hole.clamp(offset + 1, end) - offset))
            }
            data => {
                let has = self.file.len()?;
                if has < self.length.min(end) {
                    return Err(Error::Shrunk { path: self.file.path().to_owned(), has, had: self.length });
                }
                Ok((Extent::Zero, data.unwrap_or(end).min(end) - offset))
            }
        }
    }
}

#[cfg(test)]
#[path = "raw_test.rs"]
mod tests;
