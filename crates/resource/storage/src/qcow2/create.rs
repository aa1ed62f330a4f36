//! New images.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::geometry::{Geometry, MAX_L1, MAX_REFCOUNT_TABLE};
use super::header::{EXTENSION_FORMAT, LENGTH_V3, MAGIC, MAX_BACKING_NAME};
use crate::file::HostFile;
use crate::{Error, Format, Result};

/// What a new image is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Create<'a> {
    /// The disk's size in bytes.
    pub size: u64,
    /// As a power of two: 16 is a good choice.
    pub cluster_bits: u32,
    /// The name of the backing file as it is to stand in the image, and its format.
    pub backing: Option<(&'a Path, Format)>,
}

/// The parts of a new image, in clusters.
#[derive(Debug)]
struct Layout {
    table: u64,
    blocks: u64,
    l1: u64,
}

impl Layout {
    fn new(geometry: &Geometry) -> Self {
        let l1 = geometry.clusters(8 * geometry.l1_entries());
        // Enough table for a full disk, as long as it may be that long.
        let full = geometry.size / geometry.cluster() + geometry.size / geometry.cluster() / 64 + 64;
        let entries = (full / geometry.block_clusters() + 1).min(MAX_REFCOUNT_TABLE / 8);
        let table = geometry.clusters(8 * entries);
        let mut blocks = 1;
        while blocks * geometry.block_clusters() < 1 + table + blocks + l1 {
            blocks += 1;
        }
        Self { table, blocks, l1 }
    }

    fn end(&self) -> u64 {
        1 + self.table + self.blocks + self.l1
    }
}

/// Makes an image in an empty file.
pub(crate) fn create(file: &HostFile, create: &Create<'_>) -> Result<()> {
    let geometry =
        Geometry { version: 3, cluster_bits: create.cluster_bits, refcount_order: 4, size: create.size };
    if geometry.l1_entries().saturating_mul(8) > MAX_L1 {
        return Err(Error::Invalid(format!("a qcow2 image of {} bytes is too large", create.size)));
    }
    let layout = Layout::new(&geometry);
    let bits = geometry.cluster_bits;
    file.extend(layout.end() << bits)?;
    // No holes: what is counted and referred to in them can then be written when the host's disk is full.
    file.write_zeroes_plainly(1 << bits, (layout.end() - 1) << bits)?;
    let table: Vec<_> =
        (0..layout.blocks).flat_map(|at| ((1 + layout.table + at) << bits).to_be_bytes()).collect();
    file.write(1 << bits, &table)?;
    let counts = 1_u16.to_be_bytes().repeat(layout.end() as usize);
    file.write((1 + layout.table) << bits, &counts)?;
    // The header last: without it this is no image.
    file.sync()?;
    file.write(0, &header(&geometry, &layout, create)?)?;
    file.sync()
}

fn header(geometry: &Geometry, layout: &Layout, create: &Create<'_>) -> Result<Vec<u8>> {
    let mut extensions = Vec::new();
    if let Some((_, format)) = create.backing {
        let name = format.name().replace("vhd", "vpc");
        extensions.extend(EXTENSION_FORMAT.to_be_bytes());
        extensions.extend((name.len() as u32).to_be_bytes());
        extensions.extend(name.as_bytes());
        extensions.resize(extensions.len().next_multiple_of(8), 0);
    }
    extensions.extend([0; 8]);
    let name = create.backing.map(|(path, _)| path.as_os_str().as_bytes()).unwrap_or_default();
    let name_at = if name.is_empty() { 0 } else { u64::from(LENGTH_V3) + extensions.len() as u64 };
    if name.len() > MAX_BACKING_NAME as usize || name_at + name.len() as u64 > geometry.cluster() {
        let problem = format!(
            "the name of a backing file may have {MAX_BACKING_NAME} bytes, and this has {}",
            name.len()
        );
        return Err(Error::Invalid(problem));
    }
    let mut header = Vec::new();
    header.extend(MAGIC.to_be_bytes());
    header.extend(geometry.version.to_be_bytes());
    header.extend(name_at.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(geometry.cluster_bits.to_be_bytes());
    header.extend(geometry.size.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // no encryption
    header.extend((geometry.l1_entries() as u32).to_be_bytes());
    header.extend(((1 + layout.table + layout.blocks) << geometry.cluster_bits).to_be_bytes());
    header.extend((1_u64 << geometry.cluster_bits).to_be_bytes());
    header.extend((layout.table as u32).to_be_bytes());
    header.extend([0; 4 + 8]); // no snapshots
    header.extend([0; 3 * 8]); // no features
    header.extend(geometry.refcount_order.to_be_bytes());
    header.extend(LENGTH_V3.to_be_bytes());
    header.resize(LENGTH_V3 as usize, 0); // deflate
    header.extend(extensions);
    header.extend(name);
    Ok(header)
}
