//! Virtual hard disks (Microsoft's "Virtual Hard Disk Image Format Specification", 2006): a footer, and for dynamic disks
//! a copy of it at the start, a header and a table of blocks. Each block begins with a bitmap of its sectors, which only
//! differencing disks need.

use std::sync::Arc;

use super::{Blocks, Layout, Place, corrupt, read_all, unsupported};
use crate::bytes::{be32, be64};
use crate::file::HostFile;
use crate::{Disk, Format, Result, SECTOR};

#[derive(Debug)]
pub(super) struct Dynamic {
    size: u64,
    block: u64,
    table: u64,
    /// Bytes of the bitmap before each block.
    bitmap: u64,
}

/// A fixed disk: all of the file but the footer. It is one block after another.
#[derive(Debug)]
pub(super) struct Fixed {
    size: u64,
}

pub(super) fn open(file: HostFile) -> Result<Arc<dyn Disk>> {
    let length = file.len()?;
    let mut footer = [0; 512];
    read_all(&file, Format::Vhd, length.saturating_sub(512), &mut footer, "footer")?;
    if !footer.starts_with(b"conectix") {
        // The copy, if the end is missing.
        read_all(&file, Format::Vhd, 0, &mut footer, "header")?;
    }
    if !footer.starts_with(b"conectix") {
        return Err(corrupt(&file, Format::Vhd, "it has no footer"));
    }
    let mut sum = footer;
    sum[64..68].fill(0);
    let sum = !sum.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    if sum != be32(&footer, 64) {
        return Err(corrupt(&file, Format::Vhd, "the checksum of its footer is wrong"));
    }
    let size = be64(&footer, 48);
    match be32(&footer, 60) {
        2 if size <= length.saturating_sub(512) => Ok(Arc::new(Blocks::new(file, Fixed { size })?)),
        2 => Err(corrupt(
            &file,
            Format::Vhd,
            format!("it has {length} bytes, too few for {size} bytes of disk"),
        )),
        3 => open_dynamic(file, size, be64(&footer, 16)),
        4 => Err(unsupported(&file, Format::Vhd, "it holds the differences to another image only")),
        kind => Err(unsupported(&file, Format::Vhd, format!("it is of the unknown kind {kind}"))),
    }
}

fn open_dynamic(file: HostFile, size: u64, at: u64) -> Result<Arc<dyn Disk>> {
    let mut header = [0; 1024];
    read_all(&file, Format::Vhd, at, &mut header, "dynamic header")?;
    if !header.starts_with(b"cxsparse") {
        return Err(corrupt(&file, Format::Vhd, format!("it has no dynamic header at {at:#x}")));
    }
    let (table, entries, block) = (be64(&header, 16), be32(&header, 28), u64::from(be32(&header, 32)));
    if block == 0 || size.div_ceil(block) > entries.into() || table > i64::MAX as u64 {
        let problem = format!("{entries} blocks of {block} bytes are no {size} bytes of disk");
        return Err(corrupt(&file, Format::Vhd, problem));
    }
    let bitmap = (block / SECTOR).div_ceil(8).next_multiple_of(SECTOR);
    Ok(Arc::new(Blocks::new(file, Dynamic { size, block, table, bitmap })?))
}

impl Layout for Dynamic {
    const FORMAT: Format = Format::Vhd;

    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn find(&self, file: &HostFile, block: u64) -> Result<Place> {
        let mut entry = [0; 4];
        read_all(file, Format::Vhd, self.table + 4 * block, &mut entry, "table of blocks")?;
        Ok(match be32(&entry, 0) {
            u32::MAX => Place::Zero,
            sector => Place::At(u64::from(sector) * SECTOR + self.bitmap),
        })
    }
}

impl Layout for Fixed {
    const FORMAT: Format = Format::Vhd;

    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        1 << 20
    }

    fn find(&self, _: &HostFile, block: u64) -> Result<Place> {
        Ok(Place::At(block << 20))
    }
}
