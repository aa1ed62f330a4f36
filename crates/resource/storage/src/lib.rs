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

mod bytes;
mod check;
mod convert;
mod create;
mod disk;
mod error;
mod file;
mod foreign;
mod format;
mod info;
mod lock;
mod open;
mod overlay;
mod qcow2;
mod raw;

pub use check::{Repair, Report, check};
pub use convert::{Convert, convert};
pub use create::{Backing, NewImage, create};
pub use disk::{Disk, Extent, Limits, SECTOR};
pub use error::{Error, Result};
pub use format::{Format, PROBE};
pub use info::{BackingInfo, Info, Qcow2Info, SnapshotInfo, info};
pub use open::{Options, open};
pub use overlay::throw_away;
