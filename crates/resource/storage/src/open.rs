//! From a file's name to a disk.

use std::path::Path;
use std::sync::Arc;

use crate::raw::Raw;
use crate::{Disk, Result};

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Refuse every change.
    pub read_only: bool,
}

/// Opens the image in `path`.
pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Arc<dyn Disk>> {
    Ok(Arc::new(Raw::open(path.as_ref(), options.read_only)?))
}
