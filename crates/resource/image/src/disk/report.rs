//! What the guest that builds a disk tells of its progress.
//!
//! Lines of `build.sh` begin with `posada: `; others are dpkg's (dpkg(1), `--status-fd`): `status: NAME: STATE`, and
//! `status: NAME : error : MESSAGE`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use crate::progress::Progress;

/// Longer lines are cut.
const MAX_LINE: usize = 4096;

/// How much of the console is kept for when the build fails, in bytes.
const TAIL: usize = 16 << 10;

/// How many lines of it are shown.
const LINES: usize = 12;

/// Where the guest's second serial port goes: sends whole lines.
pub(crate) struct Lines {
    line: Vec<u8>,
    to: SyncSender<String>,
}

impl Lines {
    pub(crate) fn new(to: SyncSender<String>) -> Self {
        Self { line: Vec::new(), to }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.line).trim().to_owned();
                self.line.clear();
                self.to.send(line).map_err(|_| io::ErrorKind::BrokenPipe)?;
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the guest's console goes: the end of it is kept.
#[derive(Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Its last lines, indented, or nothing.
    pub(crate) fn lines(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(kept.make_contiguous()).into_owned();
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(LINES)..].iter().flat_map(|line| ["\n  ", line]).collect()
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a build ended, as far as the guest has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not yet.
    Open,
    /// Everything worked.
    Done,
    /// It did not, for this reason.
    Failed(String),
}

/// The state of a build.
pub(crate) struct Report {
    /// Bytes of each package's file, by name.
    sizes: BTreeMap<String, u64>,
    unpacked: BTreeSet<String>,
    installed: BTreeSet<String>,
    /// dpkg's first error, which explains the others.
    error: Option<String>,
    verdict: Verdict,
}

impl Report {
    /// Of a build from packages of these names, whose files have that many bytes.
    pub(crate) fn new(sizes: BTreeMap<String, u64>) -> Self {
        let (unpacked, installed) = Default::default();
        Self { sizes, unpacked, installed, error: None, verdict: Verdict::Open }
    }

    /// Takes one line of the guest's.
    pub(crate) fn line(&mut self, line: &str, progress: &mut dyn Progress) {
        tracing::debug!(line, "the guest that builds the disk");
        if let Some(ours) = line.strip_prefix("posada: ") {
            let (word, rest) = ours.split_once(' ').unwrap_or((ours, ""));
            match word {
                "stage" => progress.stage(rest, None),
                "install" => {
                    // Each package is unpacked, and then configured.
                    let total = self.sizes.values().sum::<u64>().saturating_mul(2);
                    progress.stage(&format!("Installing {} packages", self.sizes.len()), Some(total));
                }
                "failed" if self.verdict == Verdict::Open => {
                    let error = self.error.take().map(|error| format!(": {error}")).unwrap_or_default();
                    self.verdict = Verdict::Failed(format!("{rest}{error}"));
                }
                "done" if self.verdict == Verdict::Open => self.verdict = Verdict::Done,
                _ => {}
            }
        } else if let Some(status) = line.strip_prefix("status: ") {
            self.status(status, progress);
        }
    }

    fn status(&mut self, status: &str, progress: &mut dyn Progress) {
        if let Some((name, message)) = status.split_once(" : error : ") {
            self.error.get_or_insert_with(|| format!("{name}: {message}"));
            return;
        }
        let Some((name, state)) = status.rsplit_once(": ") else { return };
        let name = name.split(':').next().unwrap_or(name);
        let Some(&size) = self.sizes.get(name) else { return };
        let is_news = match state {
            "unpacked" => self.unpacked.insert(name.to_owned()),
            "installed" => self.installed.insert(name.to_owned()),
            _ => false,
        };
        if is_news {
            progress.advance(size);
        }
    }

    /// How it ended.
    pub(crate) fn verdict(self) -> Verdict {
        self.verdict
    }
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
