//! The folder of images: entries that are complete or not there, made by one process at a time.
//!
//! ```text
//! images/lock                       held, as a file lock, while an entry is made or removed
//! images/debian-6.1.…/manifest.json what the entry is, and the length and digest of each of its files
//! images/debian-6.1.…/vmlinuz       …
//! images/.making-AbCdEf/            an entry in the making; left behind only by a crash, and removed by the next maker
//! ```
//!
//! An entry is written to a folder of its own on the same file system, every file synchronized to the disk, and renamed
//! into place last. A crash, a full disk or a lost network at any point leaves the old state.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::progress::Progress;

/// The version of what an entry consists of. Entries of another version are not used, and shown as old.
pub(crate) const FORMAT: u32 = 1;

const MANIFEST: &str = "manifest.json";
const LOCK: &str = "lock";
const MAKING: &str = ".making-";

/// A manifest longer than this is none of ours.
const MAX_MANIFEST: u64 = 1 << 20;

/// A package that an image was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the package file, in hexadecimal.
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) created: u64,
    pub(crate) packages: Vec<Package>,
    pub(crate) files: Vec<FileRecord>,
}

impl Manifest {
    /// Reads the manifest of the entry in `folder`, and compares the lengths of its files.
    pub(crate) fn read(folder: &Path) -> std::result::Result<Self, String> {
        let mut text = String::new();
        File::open(folder.join(MANIFEST))
            .and_then(|file| file.take(MAX_MANIFEST).read_to_string(&mut text))
            .map_err(|error| format!("its {MANIFEST} cannot be read: {error}"))?;
        let manifest: Self =
            serde_json::from_str(&text).map_err(|error| format!("its {MANIFEST} is no manifest: {error}"))?;
        for file in &manifest.files {
            if file.name.contains('/') || file.name == ".." {
                return Err(format!("its {MANIFEST} names a file outside of it"));
            }
            match fs::metadata(folder.join(&file.name)) {
                Ok(found) if found.len() == file.size => {}
                Ok(found) => {
                    return Err(format!("{} is {} bytes long, not {}", file.name, found.len(), file.size));
                }
                Err(error) => return Err(format!("{} cannot be read: {error}", file.name)),
            }
        }
        Ok(manifest)
    }
}

/// A cached image, as [`Images::list`](crate::Images::list) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The image's name: `debian`.
    pub name: String,
    /// Its version: a kernel release such as `6.1.0-56-cloud-amd64`. Empty if the entry is damaged.
    pub version: String,
    /// What it takes on the disk, in bytes.
    pub size: u64,
    /// When it was made.
    pub created: SystemTime,
    /// Its folder.
    pub path: PathBuf,
    /// The packages that it was made from.
    pub packages: Vec<Package>,
    /// Why it will not be used, if so.
    pub problem: Option<String>,
}

/// The folder of images.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache below `root`. Nothing is made before it is needed.
    pub(crate) fn new(root: &Path) -> Self {
        Self { folder: root.join("images") }
    }

    /// The newest usable entry of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<(PathBuf, Manifest)>> {
        let mut best: Option<(PathBuf, Manifest)> = None;
        for folder in self.folders()? {
            match Manifest::read(&folder) {
                Ok(manifest) if manifest.name == name && manifest.format == FORMAT => {
                    if best.as_ref().is_none_or(|(_, best)| best.created <= manifest.created) {
                        best = Some((folder, manifest));
                    }
                }
                Ok(_) => {}
                Err(problem) => {
                    tracing::warn!(folder = %folder.display(), problem, "passing over a damaged image");
                }
            }
        }
        Ok(best)
    }

    /// Every entry, by folder name.
    pub(crate) fn list(&self) -> Result<Vec<Entry>> {
        let entries = self.folders()?.into_iter().map(|path| {
            let size = size(&path);
            match Manifest::read(&path) {
                Ok(manifest) => Entry {
                    problem: (manifest.format != FORMAT)
                        .then(|| "made by another version of posada".to_owned()),
                    name: manifest.name,
                    version: manifest.version,
                    size,
                    created: UNIX_EPOCH
                        .checked_add(Duration::from_secs(manifest.created))
                        .unwrap_or(UNIX_EPOCH),
                    path,
                    packages: manifest.packages,
                },
                Err(problem) => {
                    let folder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    Entry {
                        name: folder.split_once('-').map_or(folder.clone(), |(name, _)| name.to_owned()),
                        version: String::new(),
                        size,
                        created: fs::metadata(&path)
                            .and_then(|metadata| metadata.modified())
                            .unwrap_or(UNIX_EPOCH),
                        path,
                        packages: Vec::new(),
                        problem: Some(problem),
                    }
                }
            }
        });
        Ok(entries.collect())
    }

    /// Removes these entries.
    pub(crate) fn remove(&self, entries: &[Entry], progress: &mut dyn Progress) -> Result<()> {
        let _lock = self.lock(progress)?;
        // Out of sight in one step, so that nobody boots half an entry.
        let bin = self.making()?;
        for (number, entry) in entries.iter().enumerate() {
            match fs::rename(&entry.path, bin.path().join(number.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &entry.path)(error));
                }
                _ => {}
            }
        }
        let path = bin.path().to_owned();
        bin.close().map_err(Error::io("remove", path))
    }

    /// The folders of all entries, sorted.
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let found = match fs::read_dir(&self.folder) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.folder)(error)),
        };
        let mut folders = Vec::new();
        for entry in found {
            let entry = entry.map_err(Error::io("list", &self.folder))?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
        folders.sort();
        Ok(folders)
    }

    /// Waits until no other process makes or removes an entry, and removes what crashed makers left behind.
    pub(crate) fn lock(&self, progress: &mut dyn Progress) -> Result<Lock> {
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let path = self.folder.join(LOCK);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                progress.stage("Waiting for another posada that works on the images", None);
                file.lock().map_err(Error::io("lock", &path))?;
            }
            Err(fs::TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                // Some network file systems have no locks. Renaming keeps entries whole without them; at worst two
                // processes fetch the same.
                tracing::warn!(%error, path = %path.display(), "this file system has no locks");
                return Ok(Lock { _file: file });
            }
            Err(fs::TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
        }
        for entry in fs::read_dir(&self.folder).map_err(Error::io("list", &self.folder))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(MAKING.as_bytes()) {
                tracing::info!(path = %entry.path().display(), "removing what an interrupted run left behind");
                if let Err(error) = fs::remove_dir_all(entry.path()) {
                    tracing::warn!(%error, path = %entry.path().display(), "it cannot be removed");
                }
            }
        }
        Ok(Lock { _file: file })
    }

    /// Begins an entry. The lock shows that nobody else makes one.
    pub(crate) fn stage(&self, _lock: &Lock) -> Result<Staging> {
        let temporary = self.making()?;
        let (entry, scratch) = (temporary.path().join("entry"), temporary.path().join("scratch"));
        for folder in [&entry, &scratch] {
            fs::create_dir(folder).map_err(Error::io("create", folder))?;
        }
        Ok(Staging { temporary, entry, scratch, files: Vec::new() })
    }

    /// Puts a staged entry into its place and returns its folder.
    pub(crate) fn commit(&self, mut staging: Staging, made: Made) -> Result<PathBuf> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let Made { name, version, packages } = made;
        let folder = self.folder.join(folder_name(&name, &packages));
        let manifest =
            Manifest { format: FORMAT, name, version, created, packages, files: staging.files.clone() };
        staging.file(MANIFEST, |out| Ok(serde_json::to_writer_pretty(out, &manifest)?))?;
        synchronize(&staging.entry)?;
        // An entry of the same packages is damaged or of an older format, or it would have been used.
        let old = staging.temporary.path().join("old");
        match fs::rename(&folder, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("replace", &folder)(error));
            }
            _ => {}
        }
        fs::rename(&staging.entry, &folder).map_err(Error::io("create", &folder))?;
        synchronize(&self.folder)?;
        Ok(folder)
    }

    fn making(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(MAKING)
            .tempdir_in(&self.folder)
            .map_err(Error::io("create a folder in", &self.folder))
    }
}

/// Held while an entry is made or removed. Ends with the process at the latest, whatever ends that.
pub(crate) struct Lock {
    _file: File,
}

/// What a recipe says of an entry that it has made.
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) packages: Vec<Package>,
}

/// An entry in the making. Dropping it removes it.
pub(crate) struct Staging {
    temporary: TempDir,
    entry: PathBuf,
    scratch: PathBuf,
    files: Vec<FileRecord>,
}

impl Staging {
    /// A folder for whatever is needed on the way; it goes when the entry is complete.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Writes one file of the entry, to the disk.
    pub(crate) fn file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let path = self.entry.join(name);
        let write_all = || -> io::Result<(u64, String)> {
            let file = File::create_new(&path)?;
            let mut out =
                Hashing { inner: BufWriter::with_capacity(256 * 1024, file), size: 0, hash: Sha256::new() };
            write(&mut out)?;
            out.flush()?;
            out.inner.get_ref().sync_all()?;
            Ok((out.size, hexadecimal(&out.hash.finalize())))
        };
        let (size, sha256) = write_all().map_err(Error::io("write", &path))?;
        self.files.push(FileRecord { name: name.to_owned(), size, sha256 });
        Ok(())
    }

    /// Where a file of the entry is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.entry.join(name)
    }

    /// Makes a file of the [scratch folder](Self::scratch) one of the entry's, which nobody writes to any more.
    pub(crate) fn adopt(&mut self, name: &str, file: &Path) -> Result<()> {
        let keep = || -> io::Result<u64> {
            let mut permissions = fs::metadata(file)?.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(file, permissions)?;
            let opened = File::open(file)?;
            opened.sync_all()?;
            Ok(opened.metadata()?.len())
        };
        let size = keep().map_err(Error::io("write", file))?;
        let sha256 = sha256(file).map_err(Error::io("read", file))?;
        let path = self.entry.join(name);
        fs::rename(file, &path).map_err(Error::io("create", &path))?;
        self.files.push(FileRecord { name: name.to_owned(), size, sha256 });
        Ok(())
    }
}

struct Hashing<W> {
    inner: W,
    size: u64,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Hashing { inner: io::sink(), size: 0, hash: Sha256::new() };
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hexadecimal(&hash.hash.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A digest of names and versions, in hexadecimal.
pub(crate) fn packages_digest(packages: &[Package]) -> String {
    let mut hash = Sha256::new();
    for package in packages {
        hash.update(format!("{} {}\n", package.name, package.version));
    }
    hexadecimal(&hash.finalize())
}

/// How many packages' versions a folder's name spells out.
const SPELLED: usize = 4;

/// What makes an entry another one: its name, its packages' versions and the format.
fn folder_name(name: &str, packages: &[Package]) -> String {
    let mut folder = name.to_owned();
    if packages.len() <= SPELLED {
        for package in packages {
            folder.push('-');
            folder.push_str(&package.version);
        }
    } else {
        folder.push('-');
        folder.push_str(&packages_digest(packages)[..16]);
    }
    let plain = |byte: char| byte.is_ascii_alphanumeric() || ".+~_-".contains(byte);
    let mut folder: String = folder.chars().map(|byte| if plain(byte) { byte } else { '_' }).collect();
    folder.truncate(200);
    format!("{folder}-f{FORMAT}")
}

/// Bytes that the files of a folder take on the disk: a disk image has holes.
fn size(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// Makes the names in a folder last, as `fsync` on a file does for its contents.
fn synchronize(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("write", folder))
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod tests;
