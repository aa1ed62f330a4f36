//! Whether an image is in order.

use std::path::Path;

use crate::file::HostFile;
use crate::open::probe;
use crate::qcow2::{self, Qcow2};
use crate::{Error, Format, Result};

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: only look.
    Nothing,
    /// Space that is counted as used and belongs to nothing, as an interrupted writer leaves it. This is safe.
    Leaks,
    /// Reference counts that are too low and the flags that go with them, too.
    All,
}

/// What a check has found, before any repair.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Clusters that are counted as used and belong to nothing.
    pub leaks: u64,
    /// How many things are wrong.
    pub damage: u64,
    /// The first of these, in words.
    pub findings: Vec<String>,
    /// Whether all that was found has been repaired.
    pub repaired: bool,
}

/// Checks the qcow2 image in `path`. Other formats have nothing that could be checked, which is an error.
pub fn check(path: impl AsRef<Path>, repair: Repair) -> Result<Report> {
    let path = path.as_ref();
    let file = HostFile::open(path, repair != Repair::Nothing)?;
    file.lock()?;
    let format = probe(&file)?;
    if format != Format::Qcow2 {
        let problem = "it has no reference counts or the like that could be checked".to_owned();
        return Err(Error::Unsupported { path: path.to_owned(), format, problem });
    }
    let header = qcow2::header(&file)?;
    let image = Qcow2::load(file, header, None)?;
    let (found, repaired) = match repair {
        Repair::Nothing => (image.check()?, false),
        Repair::Leaks => {
            let found = image.repair(qcow2::Repair::Leaks)?;
            let repaired = found.damage == 0;
            (found, repaired)
        }
        Repair::All => (image.repair(qcow2::Repair::All)?, true),
    };
    Ok(Report { leaks: found.leaks, damage: found.damage, findings: found.told, repaired })
}
