//! What a recipe is, and which there are.

use crate::cache::{Made, Package, Staging};
use crate::debian::Debian;
use crate::disk::DebianDisk;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::progress::Progress;

/// The files of an image.
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd.cpio";
/// What an image with a disk has beside them.
pub(crate) const DISK: &str = "disk.qcow2";

/// Makes an image of one name.
pub(crate) trait Recipe: Sync {
    /// The name: `debian`.
    fn name(&self) -> &str;

    /// Fetches and unpacks the newest version into `staging`: a [`KERNEL`] and an [`INITRD`], and perhaps a [`DISK`],
    /// which takes a machine to make.
    ///
    /// `None` if the newest is what consists of the packages in `have`; then nothing is fetched.
    fn make(
        &self,
        have: &[Package],
        machine: Option<&dyn Machine>,
        staging: &mut Staging,
        progress: &mut dyn Progress,
    ) -> Result<Option<Made>>;
}

/// The names that can be asked for, as people are told them.
pub(crate) const NAMES: [&str; 3] = ["debian", "debian:SUITE", "debian:SUITE-slim"];

/// The recipe of this name.
pub(crate) fn recipe(name: &str) -> Result<Box<dyn Recipe>> {
    if name == "debian" {
        return Ok(Box::new(Debian));
    }
    match DebianDisk::named(name) {
        Some(recipe) => Ok(Box::new(recipe)),
        None => Err(Error::UnknownImage { name: name.to_owned(), known: NAMES.join(", ") }),
    }
}
