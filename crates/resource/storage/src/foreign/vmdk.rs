//! VMware's virtual disks in one file (VMware's "Virtual Disk Format 1.1"): monolithicSparse, whose grains lie plainly,
//! and streamOptimized, whose grains are compressed and whose directory is found from a footer.

use super::{Blocks, Layout, Place, corrupt, read_all, unsupported};
use crate::bytes::{le16, le32, le64};
use crate::file::HostFile;
use crate::{Format, Result, SECTOR};

/// The largest grain directory that is read, in bytes: 256 TiB of disk with the usual grains.
const MAX_DIRECTORY: u64 = 32 << 20;
const MAX_DESCRIPTOR: u64 = 1 << 20;
/// The directory's place in the header of a file that was written as a stream: it is in the footer.
const AT_END: u64 = u64::MAX;

const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;

#[derive(Debug)]
pub(super) struct Vmdk {
    size: u64,
    grain: u64,
    /// Entries in a grain table.
    entries: u64,
    /// The sectors of the grain tables.
    directory: Vec<u32>,
    flags: u32,
}

pub(super) fn open(file: HostFile) -> Result<Blocks<Vmdk>> {
    let mut header = [0; 512];
    // A description alone may be shorter than a header.
    file.read_some(0, &mut header)?;
    if header.starts_with(b"# Disk") {
        let problem =
            "it only describes a disk in several files; give it to VMware's or QEMU's tools to join them";
        return Err(unsupported(&file, Format::Vmdk, problem));
    }
    if !header.starts_with(b"KDMV") {
        return Err(unsupported(&file, Format::Vmdk, "it is none of monolithicSparse and streamOptimized"));
    }
    check_descriptor(&file, &header)?;
    if le64(&header, 56) == AT_END {
        let end = file.len()?;
        read_all(&file, Format::Vmdk, end.saturating_sub(1024), &mut header, "footer")?;
        if !header.starts_with(b"KDMV") || le64(&header, 56) == AT_END {
            return Err(corrupt(&file, Format::Vmdk, "it has no footer; is it complete?"));
        }
    }
    let version = le32(&header, 4);
    if !(1..=3).contains(&version) {
        return Err(unsupported(
            &file,
            Format::Vmdk,
            format!("it has version {version}; 1 to 3 are known here"),
        ));
    }
    let flags = le32(&header, 8);
    if flags & COMPRESSED != 0 && le16(&header, 77) != 1 {
        return Err(unsupported(&file, Format::Vmdk, "its grains are compressed in an unknown way"));
    }
    let sectors = |at| le64(&header, at).checked_mul(SECTOR).filter(|&bytes| i64::try_from(bytes).is_ok());
    let (Some(size), Some(grain), Some(at)) = (sectors(12), sectors(20), sectors(56)) else {
        return Err(corrupt(&file, Format::Vmdk, "its header has numbers past any disk"));
    };
    let entries = u64::from(le32(&header, 44));
    let Some(span) = grain.checked_mul(entries).filter(|&span| span > 0) else {
        return Err(corrupt(&file, Format::Vmdk, "its grain tables would be empty"));
    };
    let bytes = size.div_ceil(span) * 4;
    if bytes > MAX_DIRECTORY {
        return Err(corrupt(&file, Format::Vmdk, format!("its grain directory would have {bytes} bytes")));
    }
    let mut directory = vec![0; bytes as usize];
    read_all(&file, Format::Vmdk, at, &mut directory, "grain directory")?;
    let directory = directory.chunks(4).map(|entry| le32(entry, 0)).collect();
    Blocks::new(file, Vmdk { size, grain, entries, directory, flags })
}

/// Refuses what holds the differences to another disk only.
fn check_descriptor(file: &HostFile, header: &[u8]) -> Result<()> {
    let (at, length) = (le64(header, 28).saturating_mul(SECTOR), le64(header, 36).saturating_mul(SECTOR));
    if at == 0 || at > i64::MAX as u64 {
        return Ok(());
    }
    let mut text = vec![0; length.min(MAX_DESCRIPTOR) as usize];
    let had = file.read_some(at, &mut text)?;
    let text = String::from_utf8_lossy(&text[..had]);
    let parent = text.lines().find_map(|line| line.trim().strip_prefix("parentCID="));
    match parent.map(str::trim) {
        Some(parent) if !parent.eq_ignore_ascii_case("ffffffff") => {
            Err(unsupported(file, Format::Vmdk, "it holds the differences to another image only"))
        }
        _ => Ok(()),
    }
}

impl Layout for Vmdk {
    const FORMAT: Format = Format::Vmdk;

    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.grain
    }

    fn find(&self, file: &HostFile, block: u64) -> Result<Place> {
        let table = match self.directory.get((block / self.entries) as usize) {
            None | Some(0) => return Ok(Place::Zero),
            Some(&sector) => u64::from(sector) * SECTOR,
        };
        let mut entry = [0; 4];
        read_all(file, Format::Vmdk, table + block % self.entries * 4, &mut entry, "grain table")?;
        let at = match le32(&entry, 0) {
            0 => return Ok(Place::Zero),
            1 if self.flags & ZERO_GRAINS != 0 => return Ok(Place::Zero),
            sector => u64::from(sector) * SECTOR,
        };
        if self.flags & COMPRESSED == 0 {
            return Ok(Place::At(at));
        }
        // The grain's sector on the disk, and how many bytes follow.
        let mut marker = [0; 12];
        read_all(file, Format::Vmdk, at, &mut marker, "grain")?;
        Ok(Place::Packed(at + 12, le32(&marker, 8).into()))
    }
}
