//! Disk images: the files that guests' disks lie in.
//!
//! [`open`] finds out the format and gives a [`Disk`], which several threads read and write at once.
//!
//! | module            | what it does                                                                              |
//! |-------------------|-------------------------------------------------------------------------------------------|
//! | `disk`, `open`    | [`Disk`], [`close`]; from a file's name to one, with what lies beneath                    |
//! | `format`          | [`Format`]: how a file shows its own                                                      |
//! | `raw`             | byte for byte; sparse; block devices                                                      |
//! | `qcow2`           | QEMU's `docs/interop/qcow2.txt`, versions 2 and 3                                         |
//! | `foreign`         | VMDK, VDI and VHD, which are read                                                         |
//! | `overlay`         | [`throw_away`]: changes that nobody keeps                                                 |
//! | `lock`            | one writer or several readers; QEMU's tools take part                                     |
//! | `meter`           | [`metered`]: what is asked of a disk, counted                                             |
//! | `create`, `info`, `convert`, `check` | what `posada disk` does                                                |
//! | `file`            | files of the host: positions, holes, flushes                                              |
//!
//! | format            | read | written | not supported                                                            |
//! |-------------------|------|---------|--------------------------------------------------------------------------|
//! | raw               | yes  | yes     |                                                                          |
//! | qcow2             | yes  | yes     | encryption, external data files, extended L2 entries: refused            |
//! | VMDK              | yes  | no      | several files, differences: refused                                      |
//! | VDI, VHD          | yes  | no      | differences, VHDX: refused. A fixed VHD must be named by its format      |
//!
//! Images come from anywhere: whatever a file says, it is an error or a disk. What a guest may not do is in [`open`].
//! Beside buffers of single requests an open qcow2 image takes at most about 25 MiB, and its L1 and refcount tables.
//!
//! ```
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("disk.qcow2");
//! use posada_storage::{Format, NewImage, Options, create, open};
//!
//! create(&path, &NewImage::new(Format::Qcow2, 20 << 30))?;
//! let disk = open(&path, &Options::default())?;
//! disk.write(512, b"what a guest has written")?;
//! disk.flush()?; // now it is on stable storage
//! # Ok::<(), posada_storage::Error>(())
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
mod meter;
mod open;
mod overlay;
mod qcow2;
mod raw;

pub use check::{Repair, Report, check};
pub use convert::{Convert, convert};
pub use create::{Backing, NewImage, create};
pub use disk::{Disk, Extent, Limits, SECTOR, close};
pub use error::{Error, Result};
pub use format::{Format, PROBE};
pub use info::{BackingInfo, Info, Qcow2Info, SnapshotInfo, info};
pub use meter::{Counts, Meter, metered};
pub use open::{Options, open};
pub use overlay::throw_away;
