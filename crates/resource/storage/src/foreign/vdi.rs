//! VirtualBox's disk images (`include/VBox/vd.h` and `src/VBox/Storage/VDICore.h` of VirtualBox): a header of 512 bytes,
//! a map with a number for each block, and the blocks.

use super::{Blocks, Layout, Place, corrupt, read_all, unsupported};
use crate::bytes::{le32, le64};
use crate::file::HostFile;
use crate::{Format, Result};

/// Numbers from here on are no blocks, but zeroes or nothing.
const NONE: u32 = 0xffff_fffe;

#[derive(Debug)]
pub(super) struct Vdi {
    size: u64,
    block: u64,
    blocks: u64,
    map: u64,
    data: u64,
}

pub(super) fn open(file: HostFile) -> Result<Blocks<Vdi>> {
    let mut header = [0; 512];
    read_all(&file, Format::Vdi, 0, &mut header, "header")?;
    if le32(&header, 0x40) != 0xbeda_107f {
        return Err(corrupt(&file, Format::Vdi, "it has no header"));
    }
    let version = le32(&header, 0x44);
    if version != 0x1_0001 {
        let (major, minor) = (version >> 16, version & 0xffff);
        return Err(unsupported(
            &file,
            Format::Vdi,
            format!("it has version {major}.{minor}; 1.1 is known here"),
        ));
    }
    match le32(&header, 0x4c) {
        1 | 2 => {}
        3 | 4 => {
            return Err(unsupported(&file, Format::Vdi, "it holds the differences to another image only"));
        }
        kind => return Err(unsupported(&file, Format::Vdi, format!("it is of the unknown kind {kind}"))),
    }
    if le32(&header, 0x17c) != 0 {
        return Err(unsupported(&file, Format::Vdi, "its blocks have extra data"));
    }
    let layout = Vdi {
        size: le64(&header, 0x170),
        block: le32(&header, 0x178).into(),
        blocks: le32(&header, 0x180).into(),
        map: le32(&header, 0x154).into(),
        data: le32(&header, 0x158).into(),
    };
    if layout.block == 0 || layout.size.div_ceil(layout.block) > layout.blocks {
        let Vdi { size, block, blocks, .. } = layout;
        return Err(corrupt(
            &file,
            Format::Vdi,
            format!("{blocks} blocks of {block} bytes are no {size} bytes of disk"),
        ));
    }
    Blocks::new(file, layout)
}

impl Layout for Vdi {
    const FORMAT: Format = Format::Vdi;

    fn size(&self) -> u64 {
        self.size
    }

    fn block(&self) -> u64 {
        self.block
    }

    fn find(&self, file: &HostFile, block: u64) -> Result<Place> {
        let mut entry = [0; 4];
        read_all(file, Format::Vdi, self.map + 4 * block, &mut entry, "map of blocks")?;
        Ok(match le32(&entry, 0) {
            NONE.. => Place::Zero,
            number => Place::At(self.data + u64::from(number) * self.block),
        })
    }
}
