//! A file of the host that holds an image: requests at positions, holes, and errors that name it.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::{Error, Result, lock};

/// What zeroes are written from where the file system cannot make them itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

#[derive(Debug)]
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    writable: bool,
    /// Nobody needs what it holds when the process ends.
    volatile: bool,
    #[cfg(test)]
    tap: Option<std::sync::Arc<tap::Tap>>,
}

impl HostFile {
    /// Opens a regular file or a block device.
    pub(crate) fn open(path: &Path, writable: bool) -> Result<Self> {
        let doing = if writable { "open for writing" } else { "open" };
        // Opening a pipe must not wait for its other end.
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true).write(writable), flags);
        let file = options.open(path).map_err(Error::io(doing, path))?;
        Self::new(file, path, writable)
    }

    pub(crate) fn new(file: File, path: &Path, writable: bool) -> Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        let kind = file.metadata().map_err(Error::io("examine", path))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "it is no file and no block device");
            return Err(Error::io("use as a disk", path)(what));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            writable,
            volatile: false,
            #[cfg(test)]
            tap: None,
        })
    }

    /// The same file, which nobody needs when the process ends: nothing is flushed.
    pub(crate) fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    #[cfg(test)]
    pub(crate) fn tapped(mut self, tap: std::sync::Arc<tap::Tap>) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Keeps others from writing to the file, and if it is open for writing from reading it, as long as it is open.
    pub(crate) fn lock(&self) -> Result<()> {
        if lock::acquire(&self.file, self.writable).map_err(Error::io("lock", &self.path))? {
            Ok(())
        } else {
            Err(Error::Locked { path: self.path.clone(), writing: self.writable })
        }
    }

    pub(crate) fn metadata(&self) -> Result<Metadata> {
        self.file.metadata().map_err(Error::io("examine", &self.path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Its length in bytes; that of a block device, too.
    pub(crate) fn len(&self) -> Result<u64> {
        (&self.file).seek(SeekFrom::End(0)).map_err(Error::io("examine", &self.path))
    }

    /// Reads as much of `buffer` as there is, and says how much that was.
    pub(crate) fn read_some(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path)(error)),
            }
        }
        Ok(done)
    }

    /// Writes all of `data`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        #[cfg(test)]
        if let Some(tap) = &self.tap {
            tap.write(offset, data).map_err(Error::io("write", &self.path))?;
        }
        self.file.write_all_at(data, offset).map_err(Error::io("write", &self.path))
    }

    /// Makes the range read as zeroes, with or without giving back its space. Inside the file it does not change the
    /// length; past the end it makes the file longer.
    pub(crate) fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(tap) = &self.tap {
            tap.write(offset, &vec![0; length as usize]).map_err(Error::io("write", &self.path))?;
        }
        let inside = may_unmap && offset + length <= self.len()?;
        let flags = if inside {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(()),
            Err(error) if cannot(error) => self.write_zeroes_plainly(offset, length),
            Err(error) => Err(Error::io("write zeroes to", &self.path)(error.into())),
        }
    }

    /// Writes zeroes, so that the space for them is surely there.
    pub(crate) fn write_zeroes_plainly(&self, offset: u64, length: u64) -> Result<()> {
        let mut done = 0;
        while done < length {
            let part = (length - done).min(ZEROES.len() as u64);
            self.write(offset + done, &ZEROES[..part as usize])?;
            done += part;
        }
        Ok(())
    }

    /// Gives back the space of a range, if the file system can. It may read as before.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        #[cfg(test)]
        if let Some(tap) = &self.tap {
            tap.punch(offset, length);
        }
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => Ok(()),
            Err(error) if cannot(error) => Ok(()),
            Err(error) => Err(Error::io("punch a hole into", &self.path)(error.into())),
        }
    }

    /// Makes a regular file at least this long.
    pub(crate) fn extend(&self, length: u64) -> Result<()> {
        let metadata = self.metadata()?;
        if !metadata.is_file() || metadata.len() >= length {
            return Ok(());
        }
        self.file.set_len(length).map_err(Error::io("enlarge", &self.path))
    }

    /// Waits until what was written is on stable storage.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        if let Some(tap) = &self.tap {
            tap.sync();
        }
        if self.volatile {
            return Ok(());
        }
        self.file.sync_data().map_err(Error::io("flush", &self.path))
    }

    /// The first byte of data at or after `offset`, or of a hole; `None` if there is none before the end.
    pub(crate) fn seek(&self, offset: u64, what: Seekable) -> Result<Option<u64>> {
        let from = match what {
            Seekable::Data => rustix::fs::SeekFrom::Data(offset),
            Seekable::Hole => rustix::fs::SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(&self.file, from) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A block device, for one: it is all data.
            Err(rustix::io::Errno::INVAL) => Ok(matches!(what, Seekable::Data).then_some(offset)),
            Err(error) => Err(Error::io("look for holes in", &self.path)(error.into())),
        }
    }
}

/// What [`HostFile::seek`] looks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seekable {
    Data,
    Hole,
}

/// The file system, or the device, has no such operation.
fn cannot(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL)
}

#[cfg(test)]
#[path = "tap_test.rs"]
pub(crate) mod tap;
