//! The snapshot table (QEMU's `docs/interop/qcow2.txt`, "Snapshots"). Snapshots are kept as they are: what they refer to
//! counts as in use, and the disk's own writes go elsewhere.

use super::geometry::MAX_L1;
use super::header::{Header, Table, corrupt};
use crate::Result;
use crate::bytes::{be16, be32, be64};
use crate::file::HostFile;

/// The longest extra data that an entry may have. QEMU has the same limit.
const MAX_EXTRA: u32 = 1024;

/// A snapshot inside the image.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub id: String,
    pub name: String,
    /// Seconds since 1970.
    pub date: u32,
    pub l1: Table,
}

/// Reads the table. Returns its length in bytes, too.
pub(crate) fn read(file: &HostFile, header: &Header) -> Result<(Vec<Snapshot>, u64)> {
    let mut snapshots = Vec::new();
    let mut at = header.snapshots.offset;
    for number in 0..header.snapshots.entries {
        let short = || corrupt(file.path(), format!("its snapshot table ends within entry {number}"));
        let mut fixed = [0; 40];
        if file.read_some(at, &mut fixed)? < fixed.len() {
            return Err(short());
        }
        let l1 = Table { offset: be64(&fixed, 0), entries: be32(&fixed, 8).into() };
        let (id, name, extra) = (be16(&fixed, 12), be16(&fixed, 14), be32(&fixed, 36));
        if l1.entries * 8 > MAX_L1 || header.geometry.within(l1.offset) != 0 || extra > MAX_EXTRA {
            return Err(corrupt(file.path(), format!("entry {number} of its snapshot table makes no sense")));
        }
        let mut names = vec![0; usize::from(id) + usize::from(name)];
        if file.read_some(at + 40 + u64::from(extra), &mut names)? < names.len() {
            return Err(short());
        }
        let (id, name) = names.split_at(id.into());
        snapshots.push(Snapshot {
            id: String::from_utf8_lossy(id).into_owned(),
            name: String::from_utf8_lossy(name).into_owned(),
            date: be32(&fixed, 16),
            l1,
        });
        at += (40 + u64::from(extra) + names.len() as u64).next_multiple_of(8);
    }
    Ok((snapshots, at - header.snapshots.offset))
}
