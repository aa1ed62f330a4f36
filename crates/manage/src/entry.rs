//! The folder of a running guest.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::console::older;
use crate::error::{Error, Result};

const LOCK: &str = "lock";
const STARTED: &str = "started.json";
const ENDED: &str = "ended.json";
const LOG: &str = "console.log";
pub(crate) const CONTROL: &str = "control.sock";
const VSOCK: &str = "vsock.sock";

/// A record longer than this is none of ours.
const MAX_RECORD: u64 = 1 << 20;

/// How long somebody who only looks may hold a lock.
const LOOKING: Duration = Duration::from_millis(500);

/// What a supervisor was started with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// The supervisor's process.
    pub process: u32,
    /// When, in seconds since 1970.
    pub at: u64,
    /// Whether it runs by itself, without the terminal that it was started from.
    pub detached: bool,
    /// What is run, in a few words: an image or a kernel.
    pub what: String,
    /// Every setting, by its name.
    pub settings: serde_json::Value,
    /// The socket that leads to the guest's own, if there is one.
    pub vsock: Option<PathBuf>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The supervisor's exit status.
    pub status: u8,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The folder of one user's running guests.
#[derive(Debug, Clone)]
pub struct Running {
    folder: PathBuf,
}

/// A supervisor's place among them. Dropping it gives it up.
#[derive(Debug)]
pub struct Entry {
    name: String,
    folder: PathBuf,
    keeps: bool,
    /// Locked as long as it is open.
    _lock: File,
}

/// What is found in the folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    name: String,
    folder: PathBuf,
    runs: bool,
    started: Option<Started>,
    ended: Option<Ended>,
}

/// The lock of a folder, if it is to be had now; an error of kind `NotFound` if there is no folder.
fn try_lock(folder: &Path, create: bool) -> io::Result<Option<File>> {
    let path = folder.join(LOCK);
    loop {
        let file = OpenOptions::new().read(true).write(true).create(create).mode(0o600).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever removes an entry holds its lock: this may be that of a folder that is gone.
        match fs::metadata(&path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether somebody has the lock of a folder; an error of kind `NotFound` if there is none. Those who only ask do not
/// stand in each other's way.
fn is_locked(folder: &Path) -> io::Result<bool> {
    match File::open(folder.join(LOCK))?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(MAX_RECORD).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).map_err(|error| tracing::debug!(%error, path = %path.display())).ok()
}

fn write(path: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::from);
    // Written beside and renamed: nobody reads half of it.
    let new = path.with_extension("new");
    let file = |text: Vec<u8>| {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, path)
    };
    text.and_then(file).map_err(Error::io("write", path))
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove this");
    }
}

/// Removes what leads to a supervisor that there is no more.
fn remove_sockets(folder: &Path) {
    for name in [CONTROL, VSOCK] {
        remove(&folder.join(name));
    }
}

impl Running {
    /// Those in the user's state folder: `$XDG_STATE_HOME/posada/running`, or `~/.local/state/posada/running` (XDG Base
    /// Directory Specification). Nothing is created before a guest runs.
    ///
    /// # Errors
    /// [`Error::NoStateFolder`] if there is no home either.
    pub fn open() -> Result<Self> {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home =
            || std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".local/state"));
        let state = state.or_else(home).ok_or(Error::NoStateFolder)?;
        Ok(Self::at(state.join("posada/running")))
    }

    /// Those in another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Takes the place of the guest `name`, and clears away what one before it has left.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Runs`] if a guest of this name runs; [`Error::Io`].
    pub fn take(&self, name: &str) -> Result<Entry> {
        posada_image::check_name(name).map_err(Error::Name)?;
        let folder = self.folder.join(name);
        let deadline = Instant::now() + LOOKING;
        let lock = loop {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(Error::io("create", &folder))?;
            match try_lock(&folder, true) {
                Ok(Some(lock)) => break lock,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
                Ok(None) => {
                    let started: Option<Started> = read(&folder.join(STARTED));
                    let process = started.map(|started| started.process);
                    return Err(Error::Runs { name: name.to_owned(), process });
                }
                // Somebody has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("lock", &folder)(error)),
            }
        };
        remove_sockets(&folder);
        let log = folder.join(LOG);
        for path in [folder.join(STARTED), folder.join(ENDED), older(&log), log] {
            remove(&path);
        }
        Ok(Entry { name: name.to_owned(), folder, keeps: false, _lock: lock })
    }

    /// What there is of the guest `name`; what a killed supervisor has left is cleared away.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Io`].
    pub fn find(&self, name: &str) -> Result<Option<Found>> {
        posada_image::check_name(name).map_err(Error::Name)?;
        let folder = self.folder.join(name);
        let failed = |error| Error::io("look at", &folder)(error);
        let runs = match is_locked(&folder) {
            Ok(runs) => runs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let started: Option<Started> = read(&folder.join(STARTED));
        let ended = read(&folder.join(ENDED));
        // Of one that was killed, its log is of use only if nobody has seen it.
        let stays = started.as_ref().is_some_and(|started| started.detached);
        if !runs && (!stays || folder.join(CONTROL).exists() || folder.join(VSOCK).exists()) {
            match try_lock(&folder, false) {
                Ok(Some(_lock)) if stays => remove_sockets(&folder),
                Ok(Some(_lock)) => {
                    fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
                    return Ok(None);
                }
                // Somebody looks or begins: it is cleared by them, or the next time.
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Some(Found { name: name.to_owned(), folder, runs, started, ended }))
    }

    /// All that there are, by name, as [`find`](Self::find) finds them.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn list(&self) -> Result<Vec<Found>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.folder)(error)),
        };
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        let found = names.iter().filter_map(|name| {
            self.find(name).unwrap_or_else(|error| {
                tracing::warn!(%error, name, "passing over an entry");
                None
            })
        });
        Ok(found.collect())
    }

    /// The guest `name`, which runs.
    ///
    /// # Errors
    /// [`Error::RunsNot`] if it does not; those of [`find`](Self::find).
    pub fn running(&self, name: &str) -> Result<Found> {
        let found = self.find(name)?.filter(Found::runs);
        found.ok_or_else(|| Error::RunsNot { name: name.to_owned() })
    }

    /// Removes what is left of a guest that ran; whether there was anything.
    ///
    /// # Errors
    /// [`Error::Runs`] if it still does; [`Error::Io`].
    pub fn remove(&self, name: &str) -> Result<bool> {
        if self.find(name)?.is_none() {
            return Ok(false);
        }
        // Whoever has the place and gives it up leaves nothing.
        self.take(name)?;
        Ok(true)
    }
}

impl Entry {
    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder, which is the user's alone.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where its log goes.
    pub fn log(&self) -> PathBuf {
        self.folder.join(LOG)
    }

    /// Where the way to the guest's sockets is, unless the user wants it elsewhere.
    pub fn vsock(&self) -> PathBuf {
        self.folder.join(VSOCK)
    }

    /// Says what the guest was started with: from now on it is found with that. What a detached one leaves is kept.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn start(
        &mut self,
        what: String,
        settings: serde_json::Value,
        detached: bool,
        vsock: PathBuf,
    ) -> Result<()> {
        self.keeps = detached;
        let process = std::process::id();
        let started = Started { process, at: now(), detached, what, settings, vsock: Some(vsock) };
        write(&self.folder.join(STARTED), &started)
    }

    /// Says how it ended.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn end(self, status: u8) -> Result<()> {
        if self.keeps { write(&self.folder.join(ENDED), &Ended { at: now(), status }) } else { Ok(()) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        remove_sockets(&self.folder);
        if !self.keeps
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!(%error, path = %self.folder.display(), "cannot remove this");
        }
    }
}

impl Found {
    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its supervisor lived when it was looked for.
    pub fn runs(&self) -> bool {
        self.runs
    }

    /// What it was started with, unless it is only about to start.
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// How it ended; `None` if it runs, or if its supervisor was killed.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// The files of its log, the older first; they need not exist.
    pub fn logs(&self) -> [PathBuf; 2] {
        let log = self.folder.join(LOG);
        [older(&log), log]
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether its supervisor lives now.
    pub fn still_runs(&self) -> bool {
        is_locked(&self.folder).unwrap_or(false)
    }
}

#[cfg(test)]
#[path = "entry_test.rs"]
mod tests;
