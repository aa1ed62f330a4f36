//! New images.

use std::fs::OpenOptions;
use std::path::{Component, Path, PathBuf};

use crate::file::HostFile;
use crate::qcow2::{self, Create};
use crate::{Error, Format, Options, Result, SECTOR, open};

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Raw or qcow2.
    pub format: Format,
    /// The disk's size in bytes, rounded up to whole sectors; without it, that of the backing file.
    pub size: Option<u64>,
    /// What the disk reads as until it is written to.
    pub backing: Option<Backing>,
    /// For qcow2: bytes in a cluster, a power of two from 512 to 2 MiB.
    pub cluster_size: u32,
}

/// A backing file for a new image.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Its file, relative to the current folder. The image then names it relative to its own folder, unless this is
    /// absolute.
    pub path: PathBuf,
    /// Its format; without it, what it looks like. The image records it.
    pub format: Option<Format>,
}

impl NewImage {
    /// An empty disk of `size` bytes.
    pub fn new(format: Format, size: u64) -> Self {
        Self { format, size: Some(size), backing: None, cluster_size: 65536 }
    }

    /// A disk that reads as `path` until it is written to.
    pub fn over(path: impl Into<PathBuf>) -> Self {
        let backing = Some(Backing { path: path.into(), format: None });
        Self { format: Format::Qcow2, size: None, backing, cluster_size: 65536 }
    }
}

/// Makes an image in `path`, where there is no file yet. Returns the disk's size.
pub fn create(path: impl AsRef<Path>, image: &NewImage) -> Result<u64> {
    let path = path.as_ref();
    if path.symlink_metadata().is_ok() {
        let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
        return Err(Error::io("create", path)(exists));
    }
    let plan = Plan::new(path, image)?;
    let options = OpenOptions::new().read(true).write(true).create_new(true).clone();
    let file = options.open(path).map_err(Error::io("create", path))?;
    let made = HostFile::new(file, path, true).and_then(|file| plan.make(&file));
    if let Err(error) = made {
        let _ = std::fs::remove_file(path);
        return Err(error);
    }
    Ok(plan.size)
}

/// A new image, as far as it can be known before there is a file.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) size: u64,
    format: Format,
    cluster_bits: u32,
    backing: Option<(PathBuf, Format)>,
}

impl Plan {
    /// Looks at the backing file, and refuses what cannot be.
    pub(crate) fn new(path: &Path, image: &NewImage) -> Result<Self> {
        if !matches!(image.format, Format::Raw | Format::Qcow2) {
            let problem = format!("{} images are only read here; make a raw or a qcow2 image", image.format);
            return Err(Error::Invalid(problem));
        }
        if !(512..=2 << 20).contains(&image.cluster_size) || !image.cluster_size.is_power_of_two() {
            let size = image.cluster_size;
            return Err(Error::Invalid(format!(
                "clusters cannot have {size} bytes, but a power of two from 512 to 2M"
            )));
        }
        let mut size = image.size;
        let mut backing = None;
        if let Some(wanted) = &image.backing {
            if image.format == Format::Raw {
                return Err(Error::Invalid("a raw image cannot have a backing file; use qcow2".to_owned()));
            }
            let format = match wanted.format {
                Some(format) => format,
                None => crate::open::probe(&HostFile::open(&wanted.path, false)?)?,
            };
            let disk =
                open(&wanted.path, &Options { format: Some(format), read_only: true, snapshot: false })?;
            size = size.or(Some(disk.size()));
            backing = Some((name_for(path, &wanted.path)?, format));
        }
        let size = size.ok_or_else(|| Error::Invalid("the size of the new disk is missing".to_owned()))?;
        let size = size.checked_next_multiple_of(SECTOR).filter(|&size| i64::try_from(size).is_ok());
        let size = size.ok_or_else(|| Error::Invalid("that is larger than any disk".to_owned()))?;
        Ok(Self { size, format: image.format, cluster_bits: image.cluster_size.trailing_zeros(), backing })
    }

    /// Makes it in an empty file.
    pub(crate) fn make(&self, file: &HostFile) -> Result<()> {
        match self.format {
            Format::Qcow2 => {
                let backing = self.backing.as_ref().map(|(name, format)| (name.as_path(), *format));
                qcow2::create(file, &Create { size: self.size, cluster_bits: self.cluster_bits, backing })
            }
            _ => file.extend(self.size).and_then(|()| file.sync()),
        }
    }
}

/// What an image in `image` is to call `target`.
fn name_for(image: &Path, target: &Path) -> Result<PathBuf> {
    let whole = |path: &Path| path.canonicalize().map_err(Error::io("find", path));
    if target.is_absolute() {
        return Ok(target.to_owned());
    }
    let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The file itself may be a link that is meant to be followed later.
    let target_folder =
        target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name =
        target.file_name().ok_or_else(|| Error::Invalid(format!("{} is no file", target.display())))?;
    let (from, to) = (whole(folder)?, whole(target_folder)?);
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(common)).collect();
    let path = path.join(name);
    // A colon before the first slash would make it a protocol.
    Ok(if path.to_string_lossy().split('/').next().is_some_and(|first| first.contains(':')) {
        Path::new(".").join(path)
    } else {
        path
    })
}

#[cfg(test)]
#[path = "create_test.rs"]
mod tests;
