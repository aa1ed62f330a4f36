//! What a recipe is, and which there are.

use crate::cache::{Made, Package, Staging};
use crate::debian::Debian;
use crate::error::Result;
use crate::progress::Progress;

/// The files of an image.
pub(crate) const KERNEL: &str = "vmlinuz";
pub(crate) const INITRD: &str = "initrd.cpio";

/// Makes an image of one name.
pub(crate) trait Recipe: Sync {
    /// The name: `debian`.
    fn name(&self) -> &'static str;

    /// Fetches and unpacks the newest version into `staging`: a [`KERNEL`] and an [`INITRD`].
    ///
    /// `None` if the newest is what consists of the packages in `have`; then nothing is fetched.
    fn make(
        &self,
        have: &[Package],
        staging: &mut Staging,
        progress: &mut dyn Progress,
    ) -> Result<Option<Made>>;
}

/// Every recipe.
pub(crate) const RECIPES: [&dyn Recipe; 1] = [&Debian];
