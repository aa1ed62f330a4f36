//! From a file's name to a disk.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::file::HostFile;
use crate::qcow2::{self, Qcow2};
use crate::raw::Raw;
use crate::{Disk, Error, Format, PROBE, Result, foreign, overlay};

/// How many images may lie beneath one.
const MAX_CHAIN: usize = 64;

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The format; without it, what the file's first bytes look like.
    pub format: Option<Format>,
    /// Refuse every change.
    pub read_only: bool,
    /// Take changes, and throw them away in the end. The image itself is only read.
    pub snapshot: bool,
}

/// Opens the image in `path`, and those that it takes unwritten data from.
///
/// The file is locked: one process writes, or several read. What lies beneath is only read, and locked for that.
///
/// A disk whose file looks like no image is raw. If that was found out by looking, then nothing may be written to it that
/// would make it look like an image next time: a guest could else name a file of the host as the backing file of its own
/// disk. With `format` given, a guest may write what it likes.
///
/// An image from elsewhere may name any file as its backing file, and whoever runs it gives the guest what that holds, as
/// far as the own rights go. [`info`](crate::info) shows the name.
pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Arc<dyn Disk>> {
    let read_only = options.read_only || options.snapshot;
    let disk = open_image(path.as_ref(), options.format, read_only, &mut Vec::new())?;
    if options.snapshot && !options.read_only { overlay::throw_away(disk) } else { Ok(disk) }
}

/// A file by device and number, whatever its name.
type Identity = (u64, u64);

fn open_image(
    path: &Path,
    format: Option<Format>,
    read_only: bool,
    above: &mut Vec<Identity>,
) -> Result<Arc<dyn Disk>> {
    let file = HostFile::open(path, !read_only)?;
    let identity = file.identity()?;
    if above.contains(&identity) {
        return Err(Error::Invalid(format!("{} is its own backing file", path.display())));
    }
    if above.len() > MAX_CHAIN {
        return Err(Error::Invalid(format!("more than {MAX_CHAIN} images take data from one another")));
    }
    file.lock()?;
    above.push(identity);
    let probed = probe(&file)?;
    let disk: Arc<dyn Disk> = match format.unwrap_or(probed) {
        Format::Raw => Arc::new(Raw::new(file, format.is_none())?),
        Format::Qcow2 => Arc::new(open_qcow2(file, above)?),
        other if !read_only => {
            let problem =
                "it is only read here: open it with `ro` or `snapshot`, or convert it to qcow2".to_owned();
            return Err(Error::Unsupported { path: path.to_owned(), format: other, problem });
        }
        other => foreign::open(file, other)?,
    };
    above.pop();
    Ok(disk)
}

/// Finds out the format by the first bytes.
pub(crate) fn probe(file: &HostFile) -> Result<Format> {
    let mut head = [0; PROBE];
    let had = file.read_some(0, &mut head)?;
    Ok(Format::probe(&head[..had]))
}

/// Opens a qcow2 image and its backing file.
pub(crate) fn open_qcow2(file: HostFile, above: &mut Vec<Identity>) -> Result<Qcow2> {
    let header = qcow2::header(&file)?;
    let backing = match &header.backing {
        None => None,
        Some(name) => {
            let wrap = |cause| Error::Backing { path: file.path().to_owned(), cause: Box::new(cause) };
            let format = header.backing_format.as_deref().map(str::parse).transpose();
            let format = format.map_err(Error::Invalid).map_err(wrap)?;
            let path = backing_path(file.path(), name).map_err(wrap)?;
            Some(open_image(&path, format, true, above).map_err(wrap)?)
        }
    };
    Qcow2::open(file, header, backing)
}

/// Where the backing file is that an image in `image` calls `name`: relative to the image's folder.
pub(crate) fn backing_path(image: &Path, name: &Path) -> Result<PathBuf> {
    let bytes = name.as_os_str().as_bytes();
    let before_slash = bytes.split(|&byte| byte == b'/').next().unwrap_or_default();
    let name = match before_slash.iter().position(|&byte| byte == b':') {
        None => name.to_owned(),
        Some(4) if bytes.starts_with(b"file") => PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[5..])),
        Some(_) => {
            let problem = format!("`{}` is no file; only files can be backing files here", name.display());
            return Err(Error::Invalid(problem));
        }
    };
    Ok(image.parent().unwrap_or(Path::new("")).join(name))
}

impl HostFile {
    fn identity(&self) -> Result<Identity> {
        let metadata = self.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }
}
