//! Images that appliances come in. They are only read.
//!
//! All are divided into blocks of one size, and have a table that says where each block lies. Entries of the table are
//! read when they are needed: the host's page cache keeps them.

mod vdi;
mod vhd;
mod vmdk;

use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::check_range;
use crate::file::HostFile;
use crate::{Disk, Error, Extent, Format, Limits, Result};

/// Opens an image of a format that is only read.
pub(crate) fn open(file: HostFile, format: Format) -> Result<Arc<dyn Disk>> {
    Ok(match format {
        Format::Vmdk => Arc::new(vmdk::open(file)?),
        Format::Vdi => Arc::new(vdi::open(file)?),
        Format::Vhd => vhd::open(file)?,
        Format::Raw | Format::Qcow2 => {
            return Err(Error::Invalid(format!("{format} images are opened elsewhere")));
        }
    })
}

/// What a format's header says.
trait Layout: Send + Sync + std::fmt::Debug {
    const FORMAT: Format;

    /// The disk's size in bytes.
    fn size(&self) -> u64;

    /// Bytes in a block, a power of two of at most [`MAX_BLOCK`].
    fn block(&self) -> u64;

    /// Where a block of the disk lies.
    fn find(&self, file: &HostFile, block: u64) -> Result<Place>;
}

/// The largest block: unpacking one takes that much memory.
const MAX_BLOCK: u64 = 64 << 20;

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: it is zeroes.
    Zero,
    /// At this offset of the file.
    At(u64),
    /// Packed by zlib, that many bytes at this offset.
    Packed(u64, u64),
}

/// An image of blocks.
#[derive(Debug)]
struct Blocks<L> {
    file: HostFile,
    layout: L,
    /// The block that was unpacked last.
    unpacked: Mutex<Option<(u64, Arc<[u8]>)>>,
}

impl<L: Layout> Blocks<L> {
    fn new(file: HostFile, layout: L) -> Result<Self> {
        let (size, block) = (layout.size(), layout.block());
        if !block.is_power_of_two() || !(512..=MAX_BLOCK).contains(&block) {
            return Err(corrupt(&file, L::FORMAT, format!("its blocks would have {block} bytes")));
        }
        if size % crate::SECTOR != 0 || size > i64::MAX as u64 {
            return Err(corrupt(&file, L::FORMAT, format!("the disk would have {size} bytes")));
        }
        Ok(Self { file, layout, unpacked: Mutex::default() })
    }

    fn read_only(&self) -> Error {
        Error::ReadOnly { path: self.file.path().to_owned() }
    }

    /// Where `offset` lies, and how many bytes of its block follow.
    fn find(&self, offset: u64) -> Result<(Place, u64)> {
        let block = self.layout.block();
        let within = offset % block;
        let place = match self.layout.find(&self.file, offset / block)? {
            Place::At(at) => Place::At(at.saturating_add(within)),
            place => place,
        };
        Ok((place, block - within))
    }

    fn read_packed(&self, at: u64, length: u64, within: u64, buffer: &mut [u8]) -> Result<()> {
        let mut unpacked = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let block = match &*unpacked {
            Some((place, block)) if *place == at => block.clone(),
            _ => {
                let block: Arc<[u8]> = self.unpack(at, length)?.into();
                *unpacked = Some((at, block.clone()));
                block
            }
        };
        drop(unpacked);
        buffer.copy_from_slice(&block[within as usize..][..buffer.len()]);
        Ok(())
    }

    fn unpack(&self, at: u64, length: u64) -> Result<Vec<u8>> {
        let size = self.layout.block();
        if length > 2 * size + 1024 {
            let problem = format!("the compressed block at {at:#x} would have {length} bytes");
            return Err(corrupt(&self.file, L::FORMAT, problem));
        }
        let mut packed = vec![0; length as usize];
        read_all(&self.file, L::FORMAT, at, &mut packed, "compressed block")?;
        let mut block = vec![0; size as usize];
        let mut decoder = flate2::Decompress::new(true);
        let result = decoder.decompress(&packed, &mut block, flate2::FlushDecompress::Finish);
        // The disk's last block may be shorter.
        if let Err(error) = result {
            let problem = format!("the block at {at:#x} cannot be decompressed: {error}");
            return Err(corrupt(&self.file, L::FORMAT, problem));
        }
        Ok(block)
    }
}

impl<L: Layout> Disk for Blocks<L> {
    fn size(&self) -> u64 {
        self.layout.size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len() as u64)?;
        while !buffer.is_empty() {
            let (place, rest) = self.find(offset)?;
            let (part, next) = buffer.split_at_mut(rest.min(buffer.len() as u64) as usize);
            match place {
                Place::Zero => part.fill(0),
                Place::At(at) => read_all(&self.file, L::FORMAT, at, part, "data")?,
                Place::Packed(at, length) => {
                    self.read_packed(at, length, offset % self.layout.block(), part)?;
                }
            }
            offset += part.len() as u64;
            buffer = next;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Err(self.read_only())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<()> {
        Err(self.read_only())
    }

    fn discard(&self, _: u64, _: u64) -> Result<()> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { optimal_io: (self.layout.block() as u32).max(4096), ..Limits::default() }
    }

    fn extent(&self, offset: u64, length: u64) -> Result<(Extent, u64)> {
        check_range(self, offset, length)?;
        let (place, mut end) = self.find(offset)?;
        let kind = |place| if place == Place::Zero { Extent::Zero } else { Extent::Data };
        // A bounded look ahead: the caller asks again.
        for _ in 0..1024 {
            if end >= length || kind(self.find(offset + end)?.0) != kind(place) {
                break;
            }
            end += self.layout.block();
        }
        Ok((kind(place), end.min(length)))
    }
}

fn corrupt(file: &HostFile, format: Format, problem: impl Into<String>) -> Error {
    Error::Corrupt { path: file.path().to_owned(), format, problem: problem.into() }
}

fn unsupported(file: &HostFile, format: Format, problem: impl Into<String>) -> Error {
    Error::Unsupported { path: file.path().to_owned(), format, problem: problem.into() }
}

/// Reads what must be there.
fn read_all(file: &HostFile, format: Format, at: u64, buffer: &mut [u8], what: &str) -> Result<()> {
    let had = if at > i64::MAX as u64 { 0 } else { file.read_some(at, buffer)? };
    if had < buffer.len() {
        let end = file.len()?;
        let problem =
            format!("its {what} at {at:#x} reaches past the end of the file ({end:#x}); is it complete?");
        return Err(corrupt(file, format, problem));
    }
    Ok(())
}

#[cfg(test)]
#[path = "foreign_test.rs"]
mod tests;
