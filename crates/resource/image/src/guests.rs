//! Guests that have a name, and keep their disk under it.
//!
//! ```text
//! guests/web/guest.json   which image it began with
//! guests/web/disk.qcow2   what has changed since: an image whose backing file is the image's disk
//! guests/.making-AbCdEf/  a guest in the making; left behind only by a crash, and removed by the next maker
//! ```
//!
//! A guest stands on the very version of the image that it began with, with that version's kernel: a newer one is for
//! new guests.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use posada_storage::NewImage;
use serde::{Deserialize, Serialize};

use crate::cache::Entry;
use crate::error::{Error, Result};
use crate::images::{Image, Images};
use crate::progress::Progress;

/// The version of what a guest's folder consists of.
const FORMAT: u32 = 1;

const RECORD: &str = "guest.json";
const DISK: &str = "disk.qcow2";
const MAKING: &str = ".making-";

/// A record longer than this is none of ours.
const MAX_RECORD: u64 = 64 << 10;

/// The longest host name that Linux takes (hostname(7)).
const MAX_NAME: usize = 63;

/// The named guests of one user.
#[derive(Debug, Clone)]
pub struct Guests {
    folder: PathBuf,
}

/// What is known of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The image's name.
    image: String,
    /// The folder of the image's version that it began with.
    base: PathBuf,
    /// When it was made, in seconds since 1970.
    created: u64,
}

/// A named guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    name: String,
    folder: PathBuf,
    record: Record,
}

impl Guests {
    /// Those in the user's state folder: `$XDG_STATE_HOME/posada/guests`, or `~/.local/state/posada/guests` (XDG Base
    /// Directory Specification). Nothing is created before a guest is.
    ///
    /// # Errors
    /// [`Error::NoStateFolder`] if there is no home either.
    pub fn open() -> Result<Self> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home =
            || std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".local/state"));
        let state = state.or_else(home).ok_or(Error::NoStateFolder)?;
        Ok(Self::at(state.join("posada/guests")))
    }

    /// Those in another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The guest of this name, if there is one.
    ///
    /// # Errors
    /// [`Error::GuestName`] if no guest can have that name; [`Error::GuestRecord`] if its record is damaged.
    pub fn find(&self, name: &str) -> Result<Option<Guest>> {
        check_name(name)?;
        let folder = self.folder.join(name);
        if !folder.is_dir() {
            return Ok(None);
        }
        let record = read_record(&folder.join(RECORD))?;
        Ok(Some(Guest { name: name.to_owned(), folder, record }))
    }

    /// The guest of this name; if there is none, a new one of the image `image`, which is made if need be.
    ///
    /// # Errors
    /// [`Error::OtherImage`] if there is one of another image; [`Error::NoDisk`] if the image has no disk that could be
    /// kept; those of [`Images::get`].
    pub fn open_or_create(
        &self,
        name: &str,
        image: &str,
        images: &Images,
        progress: &mut dyn Progress,
    ) -> Result<Guest> {
        if let Some(guest) = self.find(name)? {
            if guest.record.image == image {
                return Ok(guest);
            }
            return Err(Error::OtherImage {
                guest: name.to_owned(),
                has: guest.record.image,
                wanted: image.to_owned(),
            });
        }
        let image = images.get(image, progress)?;
        self.create(name, &image)?;
        // Whoever was first has made it.
        self.find(name)?
            .ok_or_else(|| Error::io("create", self.folder.join(name))(io::ErrorKind::NotFound.into()))
    }

    fn create(&self, name: &str, image: &Image) -> Result<()> {
        let base = image.disk().ok_or_else(|| Error::NoDisk { image: image.name().to_owned() })?;
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        self.sweep();
        let making = tempfile::Builder::new()
            .prefix(MAKING)
            .tempdir_in(&self.folder)
            .map_err(Error::io("create a folder in", &self.folder))?;
        let record = Record {
            format: FORMAT,
            image: image.name().to_owned(),
            base: base.parent().unwrap_or(Path::new("/")).to_owned(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        let disk = making.path().join(DISK);
        posada_storage::create(&disk, &NewImage::over(&base)).map_err(|error| Error::Disk {
            doing: "create",
            path: disk,
            problem: error.to_string(),
        })?;
        let path = making.path().join(RECORD);
        let text = serde_json::to_vec_pretty(&record).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(Error::io("write", &path))?;
        for part in [&*path, making.path()] {
            File::open(part).and_then(|part| part.sync_all()).map_err(Error::io("write", part))?;
        }
        let folder = self.folder.join(name);
        match fs::rename(making.path(), &folder) {
            Ok(()) => {
                // It has another name by now, and stays.
                let _ = making.keep();
                Ok(())
            }
            Err(error) if folder.is_dir() => {
                tracing::info!(%error, name, "somebody else has made this guest meanwhile");
                Ok(())
            }
            Err(error) => Err(Error::io("create", &folder)(error)),
        }
    }

    /// Removes what makers left behind that are gone: nobody takes an hour.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_making = entry.file_name().as_encoded_bytes().starts_with(MAKING.as_bytes());
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            let is_old = matches!(age, Ok(Ok(age)) if age.as_secs() > 3600);
            if is_making && is_old {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// All guests, by name. Those whose records are damaged are left out.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Guest>> {
        let found = match fs::read_dir(&self.folder) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.folder)(error)),
        };
        let mut names: Vec<String> =
            found.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        let guests = names.iter().filter(|name| check_name(name).is_ok()).filter_map(|name| {
            self.find(name).unwrap_or_else(|error| {
                tracing::warn!(%error, name, "passing over a damaged guest");
                None
            })
        });
        Ok(guests.collect())
    }

    /// Removes a guest and its disk. Whether it runs is for the caller to see to.
    ///
    /// # Errors
    /// [`Error::NoGuest`] if there is none; [`Error::Io`] if it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let folder = self.folder.join(name);
        // Out of sight in one step, so that nobody runs half a guest.
        let bin = self.folder.join(format!("{MAKING}removed-{name}-{}", std::process::id()));
        match fs::rename(&folder, &bin) {
            Ok(()) => fs::remove_dir_all(&bin).map_err(Error::io("remove", &bin)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NoGuest { name: name.to_owned() })
            }
            Err(error) => Err(Error::io("remove", &folder)(error)),
        }
    }

    /// Makes sure that no guest stands on any of these images.
    ///
    /// # Errors
    /// [`Error::InUse`] if one does; as [`list`](Self::list).
    pub fn check_unused(&self, images: &[Entry]) -> Result<()> {
        let guests = self.list()?;
        for image in images {
            let standing = guests.iter().filter(|guest| guest.record.base == image.path);
            let names: Vec<String> = standing.map(|guest| format!("`{}`", guest.name)).collect();
            if !names.is_empty() {
                let (image, guests) = (format!("{} {}", image.name, image.version), names.join(", "));
                return Err(Error::InUse { image, guests });
            }
        }
        Ok(())
    }
}

impl Guest {
    /// Its name, which is its host name as well.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the image that it began with.
    pub fn image_name(&self) -> &str {
        &self.record.image
    }

    /// Its disk.
    pub fn disk(&self) -> PathBuf {
        self.folder.join(DISK)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The version of the image that it stands on.
    ///
    /// # Errors
    /// [`Error::NoBase`] if that is not in the cache any more.
    pub fn image(&self) -> Result<Image> {
        Image::at_folder(&self.record.base).map_err(|problem| Error::NoBase {
            guest: self.name.clone(),
            base: self.record.base.clone(),
            problem,
        })
    }
}

/// Makes sure that a guest can have this name: one part of a host name (RFC 1123, section 2.1), of letters, digits and
/// hyphens; and so no path.
///
/// # Errors
/// [`Error::GuestName`] if none can.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_good = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_good { Ok(()) } else { Err(Error::GuestName { name: name.to_owned() }) }
}

fn read_record(path: &Path) -> Result<Record> {
    let damaged = |problem: String| Error::GuestRecord { path: path.to_owned(), problem };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_RECORD).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    if record.format == FORMAT {
        Ok(record)
    } else {
        Err(damaged(format!("it has the format {}, and this posada knows {FORMAT}", record.format)))
    }
}

#[cfg(test)]
#[path = "guests_test.rs"]
mod tests;
