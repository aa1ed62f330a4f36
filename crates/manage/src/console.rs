//! What a guest says on its console: kept, written down, and shown to those who look on.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long the file of a log may become, in bytes; then it becomes the older one of two.
pub const LOG_SIZE: u64 = 4 << 20;

/// How much is kept for whoever attaches, in bytes.
const KEPT: usize = 16 << 10;

/// How many pieces of output may wait for one who looks on.
const WAITING: usize = 4096;

/// The most that look on at once.
const ONLOOKERS: usize = 16;

/// Where a guest's console goes. Clones are the same one.
///
/// It never makes the guest wait: one who looks on and does not keep up is cut off.
#[derive(Clone)]
pub struct Console(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

struct Inner {
    kept: VecDeque<u8>,
    log: Option<Log>,
    onlookers: Vec<SyncSender<Vec<u8>>>,
    /// What the guest has said since it was last passed on.
    unsaid: Vec<u8>,
}

/// The file that everything is written to.
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length >= LOG_SIZE {
            fs::rename(&self.path, older(&self.path))?;
            self.file = Self::open(&self.path)?;
            self.length = 0;
        }
        self.length += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

/// Where what was said before the log was begun anew is.
pub(crate) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl Console {
    /// A console that is kept in memory alone, or in this file as well, begun anew.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(log: Option<&Path>) -> io::Result<Self> {
        let log = match log {
            Some(path) => Some(Log { path: path.to_owned(), file: Log::open(path)?, length: 0 }),
            None => None,
        };
        let inner = Inner { kept: VecDeque::new(), log, onlookers: Vec::new(), unsaid: Vec::new() };
        Ok(Self(Arc::new(Mutex::new(inner))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of what was said, and all that is said from now on; `None` if too many look on already.
    pub(crate) fn look(&self) -> Option<(Vec<u8>, Receiver<Vec<u8>>)> {
        let mut inner = self.lock();
        inner.pass_on();
        if inner.onlookers.len() >= ONLOOKERS {
            return None;
        }
        let (sender, receiver) = sync_channel(WAITING);
        inner.onlookers.push(sender);
        Some((inner.kept.iter().copied().collect(), receiver))
    }

    /// Ends it for all who look on, after what was said.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.pass_on();
        inner.onlookers.clear();
    }
}

impl Inner {
    fn pass_on(&mut self) {
        let said = std::mem::take(&mut self.unsaid);
        if said.is_empty() {
            return;
        }
        self.kept.extend(&said);
        let excess = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..excess);
        if let Some(log) = &mut self.log
            && let Err(error) = log.write(&said)
        {
            tracing::warn!(%error, path = %log.path.display(), "the console's log ends here");
            self.log = None;
        }
        self.onlookers.retain(|onlooker| match onlooker.try_send(said.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        });
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        inner.unsaid.extend_from_slice(bytes);
        if inner.unsaid.len() >= 4096 {
            inner.pass_on();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().pass_on();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_attaches_sees_the_end_and_then_what_is_said() {
        let mut console = Console::new(None).unwrap();
        console.write_all(&vec![b'.'; 3 * KEPT]).unwrap();
        console.write_all(b"prompt").unwrap();
        let (kept, said) = console.look().unwrap();
        assert!(kept.len() == KEPT && kept.ends_with(b"..prompt"));
        console.write_all(b"# ").unwrap();
        console.flush().unwrap();
        assert_eq!(said.recv().unwrap(), b"# ");
        console.end();
        assert!(said.recv().is_err());
    }

    #[test]
    fn one_who_does_not_read_is_cut_off_and_too_many_are_refused() {
        let mut console = Console::new(None).unwrap();
        let lookers: Vec<_> = (0..ONLOOKERS).map(|_| console.look().unwrap()).collect();
        assert!(console.look().is_none());
        for _ in 0..=WAITING {
            console.write_all(b"x").unwrap();
            console.flush().unwrap();
        }
        assert_eq!(lookers[0].1.iter().count(), WAITING);
        assert!(console.look().is_some());
    }

    #[test]
    fn a_log_is_two_files_of_bounded_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut console = Console::new(Some(&path)).unwrap();
        for _ in 0..=LOG_SIZE / 4096 * 5 / 2 {
            console.write_all(&[b'x'; 4096]).unwrap();
        }
        console.write_all(b"end").unwrap();
        console.flush().unwrap();
        assert!(fs::read(&path).unwrap().ends_with(b"end"));
        assert_eq!(fs::metadata(older(&path)).unwrap().len(), LOG_SIZE);
        assert!(fs::metadata(&path).unwrap().len() <= LOG_SIZE);
    }
}
