//! Disk images: the files that guests' disks lie in.
//!
//! [`open`] gives a [`Disk`], which several threads read and write at once.
//!
//! ```
//! # let file = tempfile::NamedTempFile::new().unwrap();
//! # let path = file.path();
//! use posada_storage::{Options, open};
//!
//! std::fs::write(path, [0; 1 << 20])?;
//! let disk = open(path, &Options::default())?;
//! disk.write(512, b"what a guest has written")?;
//! disk.flush()?; // now it is on stable storage
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod disk;
mod error;
mod file;
mod open;
mod raw;

pub use disk::{Disk, Extent, Limits, SECTOR};
pub use error::{Error, Result};
pub use open::{Options, open};
