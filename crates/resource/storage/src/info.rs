//! What a file says about the disk in it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::file::HostFile;
use crate::open::{backing_path, probe};
use crate::{Format, Result, qcow2};

/// An image as its header describes it. Nothing that it names is opened.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// The file.
    pub path: PathBuf,
    /// The format.
    pub format: Format,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// How much of the host's disk the file takes, in bytes.
    pub allocated: u64,
    /// What it takes unwritten data from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<BackingInfo>,
    /// What only qcow2 has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<Qcow2Info>,
    /// What somebody should know before using it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What an image says of its backing file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackingInfo {
    /// Its name, as it stands in the image.
    pub name: PathBuf,
    /// The file that this means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its format, if it is recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// What a qcow2 header says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Bytes in a cluster.
    pub cluster_size: u64,
    /// How compressed clusters are: `deflate` or `zstd`.
    pub compression: &'static str,
    /// Bits in a refcount.
    pub refcount_bits: u32,
    /// The last writer has not finished; it is repaired when it is next opened for writing.
    pub dirty: bool,
    /// Somebody has found it damaged.
    pub corrupt: bool,
    /// The snapshots inside it.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A snapshot inside an image.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotInfo {
    /// Its number or other short name.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub date: u32,
}

/// Reads what `path` says about itself, whether it is in use or not.
pub fn info(path: impl AsRef<Path>, format: Option<Format>) -> Result<Info> {
    let path = path.as_ref();
    let file = HostFile::open(path, false)?;
    let format = match format {
        Some(format) => format,
        None => probe(&file)?,
    };
    let mut info = Info {
        path: path.to_owned(),
        format,
        virtual_size: 0,
        file_size: file.len()?,
        allocated: file.metadata()?.blocks() * 512,
        backing: None,
        qcow2: None,
        warnings: Vec::new(),
    };
    match format {
        Format::Raw => info.virtual_size = info.file_size.next_multiple_of(crate::SECTOR),
        Format::Qcow2 => info.describe_qcow2(&file)?,
        other => info.virtual_size = crate::foreign::open(file, other)?.size(),
    }
    Ok(info)
}

impl Info {
    fn describe_qcow2(&mut self, file: &HostFile) -> Result<()> {
        let header = qcow2::header(file)?;
        self.virtual_size = header.geometry.size;
        let mut details = qcow2::details(&header);
        match qcow2::snapshots(file, &header) {
            Ok(snapshots) => details.snapshots = snapshots,
            Err(error) => self.warnings.push(error.to_string()),
        }
        self.qcow2 = Some(details);
        let Some(name) = header.backing else { return Ok(()) };
        let path = backing_path(&self.path, &name);
        match &path {
            Ok(path) if self.is_elsewhere(path) => {
                let problem = format!(
                    "the guest reads {} as its disk; run this only if you trust where the image comes from",
                    path.display()
                );
                self.warnings.push(problem);
            }
            Ok(_) => {}
            Err(error) => self.warnings.push(error.to_string()),
        }
        if header.backing_format.is_none() {
            let problem = "the backing file's format is not recorded: it is found out from its contents";
            self.warnings.push(problem.to_owned());
        }
        self.backing = Some(BackingInfo { name, path: path.ok(), format: header.backing_format });
        Ok(())
    }

    /// Whether a file lies outside of the image's folder.
    fn is_elsewhere(&self, path: &Path) -> bool {
        let folder =
            |path: &Path| path.parent().map(|folder| folder.join(".").canonicalize().unwrap_or_default());
        folder(&self.path) != folder(path) || path.is_symlink()
    }
}
