//! The header (QEMU's `docs/interop/qcow2.txt`, "Header" and "Header extensions").

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::bytes::{be32, be64};
use crate::file::HostFile;
use crate::qcow2::geometry::{Geometry, MAX_L1, MAX_REFCOUNT_TABLE};
use crate::{Error, Format, Result};

pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// The length of a header of version 3 with all the fields known here.
pub(crate) const LENGTH_V3: u32 = 112;
const LENGTH_V2: u32 = 72;
/// The longest name of a backing file.
pub(crate) const MAX_BACKING_NAME: u32 = 1023;
const MAX_SNAPSHOTS: u32 = 65536;

/// Bits of incompatible features.
pub(crate) const DIRTY: u64 = 1;
pub(crate) const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Autoclear bit: the bitmaps extension is consistent with the disk.
pub(crate) const BITMAPS: u64 = 1;

/// Where the feature words lie in the header.
pub(crate) const INCOMPATIBLE_AT: u64 = 72;
pub(crate) const AUTOCLEAR_AT: u64 = 88;
/// Where the place and size of the refcount table lie: 8 and 4 bytes.
pub(crate) const REFCOUNT_TABLE_AT: u64 = 48;

pub(crate) const EXTENSION_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Deflate,
    Zstd,
}

/// A part of the file: an offset and a number of what it consists of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Table {
    pub offset: u64,
    pub entries: u64,
}

/// Where the bitmaps' directory lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bitmaps {
    pub count: u32,
    pub directory: u64,
    pub directory_size: u64,
}

/// What a header says.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub geometry: Geometry,
    pub l1: Table,
    /// Its entries are clusters.
    pub refcount_table: Table,
    pub snapshots: Table,
    pub incompatible: u64,
    pub autoclear: u64,
    pub compression: Compression,
    /// The name of the backing file as it stands there.
    pub backing: Option<PathBuf>,
    /// The format of the backing file, if it is recorded.
    pub backing_format: Option<String>,
    pub bitmaps: Option<Bitmaps>,
}

impl Header {
    /// Reads and checks it.
    pub(crate) fn read(file: &HostFile) -> Result<Self> {
        let path = file.path();
        let mut head = [0; LENGTH_V3 as usize];
        let had = file.read_some(0, &mut head)?;
        if had < LENGTH_V2 as usize || be32(&head, 0) != MAGIC {
            return Err(corrupt(path, "it has no complete header"));
        }
        let version = be32(&head, 4);
        let header_length = match version {
            2 => {
                // What follows in version 2 is no header.
                head[LENGTH_V2 as usize..].fill(0);
                head[99] = 4;
                LENGTH_V2
            }
            3 if had >= 104 => {
                let length = be32(&head, 100);
                if length < LENGTH_V3 {
                    head[length.max(104) as usize..].fill(0);
                }
                length
            }
            3 => return Err(corrupt(path, "it has no complete header")),
            _ => return Err(unsupported(path, format!("it has version {version}; 2 and 3 are known here"))),
        };
        let geometry = Geometry {
            version,
            cluster_bits: be32(&head, 20),
            refcount_order: be32(&head, 96),
            size: be64(&head, 24).checked_next_multiple_of(crate::SECTOR).unwrap_or(u64::MAX),
        };
        if !(9..=21).contains(&geometry.cluster_bits) {
            let bits = geometry.cluster_bits;
            return Err(unsupported(
                path,
                format!("its clusters have 2^{bits} bytes; 2^9 to 2^21 are known"),
            ));
        }
        if geometry.refcount_order > 6 {
            let order = geometry.refcount_order;
            return Err(corrupt(path, format!("its refcounts would have 2^{order} bits; 64 is the most")));
        }
        if header_length > geometry.cluster() as u32 || (version == 3 && header_length < 104) {
            return Err(corrupt(path, format!("its header says that it has {header_length} bytes")));
        }
        let mut header = Self {
            geometry,
            l1: Table { offset: be64(&head, 40), entries: be32(&head, 36).into() },
            refcount_table: Table { offset: be64(&head, 48), entries: be32(&head, 56).into() },
            snapshots: Table { offset: be64(&head, 64), entries: be32(&head, 60).into() },
            incompatible: be64(&head, 72),
            autoclear: be64(&head, 88),
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
            bitmaps: None,
        };
        header.check_features(path, be32(&head, 32), head[104])?;
        header.check_tables(path)?;
        header.read_rest(file, header_length, be64(&head, 8), be32(&head, 16))?;
        Ok(header)
    }

    fn check_features(&mut self, path: &Path, encryption: u32, compression: u8) -> Result<()> {
        if encryption != 0 {
            return Err(unsupported(path, "it is encrypted; decrypt it first with `qemu-img convert`"));
        }
        if self.incompatible & DATA_FILE != 0 {
            return Err(unsupported(
                path,
                "its data lie in another file; convert it first with `qemu-img convert`",
            ));
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return Err(unsupported(
                path,
                "it has extended L2 entries; convert it first with `qemu-img convert`",
            ));
        }
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown != 0 {
            return Err(unsupported(
                path,
                format!("it has incompatible features that are unknown here ({unknown:#x})"),
            ));
        }
        self.compression = match (self.incompatible & COMPRESSION != 0, compression) {
            (false, 0) => Compression::Deflate,
            (true, 1) => Compression::Zstd,
            (flag, kind) => {
                let flag = if flag { "set" } else { "not set" };
                let problem = format!("it names compression type {kind} while that feature is {flag}");
                return Err(corrupt(path, problem));
            }
        };
        Ok(())
    }

    fn check_tables(&self, path: &Path) -> Result<()> {
        let geometry = &self.geometry;
        let table = |name: &str, table: Table, entry: u64, limit: u64| {
            if table.offset & (geometry.cluster() - 1) != 0 {
                return Err(corrupt(
                    path,
                    format!("its {name} lies at {:#x}, inside a cluster", table.offset),
                ));
            }
            let bytes = table.entries.saturating_mul(entry);
            if bytes > limit {
                return Err(corrupt(path, format!("its {name} has {bytes} bytes; {limit} is the most")));
            }
            if table.offset.checked_add(bytes).is_none_or(|end| end > 1 << 56) {
                return Err(corrupt(path, format!("its {name} lies at {:#x}, past any file", table.offset)));
            }
            Ok(())
        };
        table("L1 table", self.l1, 8, MAX_L1)?;
        table(
            "refcount table",
            self.refcount_table,
            geometry.cluster(),
            MAX_REFCOUNT_TABLE.max(geometry.cluster()),
        )?;
        table("snapshot table", self.snapshots, 40, u64::from(MAX_SNAPSHOTS) * 40)?;
        if self.l1.entries < geometry.l1_entries() {
            let (size, has, needs) = (geometry.size, self.l1.entries, geometry.l1_entries());
            return Err(corrupt(
                path,
                format!("its L1 table has {has} entries; {size} bytes of disk need {needs}"),
            ));
        }
        if self.l1.entries > 0 && self.l1.offset == 0 {
            return Err(corrupt(path, "its L1 table would lie in its header"));
        }
        if self.refcount_table.offset == 0 || self.refcount_table.entries == 0 {
            return Err(corrupt(path, "it has no refcount table"));
        }
        Ok(())
    }

    /// Reads the extensions and the name of the backing file.
    fn read_rest(&mut self, file: &HostFile, length: u32, name_at: u64, name_length: u32) -> Result<()> {
        let path = file.path();
        let cluster = self.geometry.cluster();
        // An extension may fill the rest of the first cluster, but no known one is long.
        let mut first = vec![0; cluster.min(65536) as usize];
        let had = file.read_some(0, &mut first)?;
        first.truncate(had);
        let end =
            if name_at == 0 { first.len() } else { first.len().min(usize::try_from(name_at).unwrap_or(0)) };
        self.read_extensions(path, first.get(length as usize..end).unwrap_or_default())?;
        if name_at == 0 {
            return Ok(());
        }
        if name_length == 0 {
            return Err(corrupt(path, "it has a backing file without a name"));
        }
        if name_length > MAX_BACKING_NAME
            || name_at.checked_add(name_length.into()).is_none_or(|end| end > cluster)
        {
            return Err(corrupt(
                path,
                format!("its backing file's name would have {name_length} bytes at {name_at:#x}"),
            ));
        }
        let mut name = vec![0; name_length as usize];
        if file.read_some(name_at, &mut name)? < name.len() {
            return Err(corrupt(path, "it ends within its backing file's name"));
        }
        if name.contains(&0) {
            return Err(corrupt(path, "its backing file's name has a zero byte"));
        }
        self.backing = Some(OsString::from_vec(name).into());
        Ok(())
    }

    fn read_extensions(&mut self, path: &Path, mut rest: &[u8]) -> Result<()> {
        while rest.len() >= 8 {
            let (kind, length) = (be32(rest, 0), be32(rest, 4) as usize);
            if kind == 0 {
                break;
            }
            let Some(data) = rest.get(8..8 + length) else {
                return Err(corrupt(
                    path,
                    format!("its header extension {kind:#x} has {length} bytes, more than there are"),
                ));
            };
            match kind {
                EXTENSION_FORMAT => self.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
                EXTENSION_BITMAPS if length >= 24 => {
                    self.bitmaps = Some(Bitmaps {
                        count: be32(data, 0),
                        directory_size: be64(data, 8),
                        directory: be64(data, 16),
                    });
                }
                _ => {}
            }
            rest = rest.get(8 + length.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(())
    }
}

pub(crate) fn corrupt(path: &Path, problem: impl Into<String>) -> Error {
    Error::Corrupt { path: path.to_owned(), format: Format::Qcow2, problem: problem.into() }
}

fn unsupported(path: &Path, problem: impl Into<String>) -> Error {
    Error::Unsupported { path: path.to_owned(), format: Format::Qcow2, problem: problem.into() }
}
