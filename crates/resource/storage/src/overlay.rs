//! Changes that nobody keeps: a copy-on-write image in a file without a name.

use std::sync::Arc;

use crate::file::HostFile;
use crate::qcow2::{self, Create, Qcow2};
use crate::{Disk, Error, Result};

/// A disk that reads as `base` and keeps changes in an unnamed file in the folder for temporary files (`TMPDIR`). The
/// host takes its space back when the disk is dropped, or the process ends however it may. A flush does nothing.
pub fn throw_away(base: Arc<dyn Disk>) -> Result<Arc<dyn Disk>> {
    let folder = std::env::temp_dir();
    let file = tempfile::tempfile_in(&folder).map_err(Error::io("make a file for changes in", &folder))?;
    let file = HostFile::new(file, &folder.join("(changes to be thrown away)"), true)?.volatile();
    qcow2::create(&file, &Create { size: base.size(), cluster_bits: 16, backing: None })?;
    let header = qcow2::header(&file)?;
    Ok(Arc::new(Qcow2::open(file, header, Some(base))?))
}
