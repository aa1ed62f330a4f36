//! What can go wrong between a name and a bootable guest.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use thiserror::Error;

use crate::session::SessionError;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image cannot be had, listed or removed. Each message says what was tried, what was found and what to do.
#[derive(Debug, Error)]
pub enum Error {
    /// Neither `XDG_CACHE_HOME` nor a home folder is known.
    #[error("there is no folder to cache images in: set HOME, or XDG_CACHE_HOME to an absolute path")]
    NoCacheFolder,

    /// There is no recipe of this name.
    #[error(
        "there is no image named `{name}`; known images: {known}. Boot anything else with `--kernel FILE` (and \
         `--initrd FILE`)"
    )]
    UnknownImage {
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },

    /// Nothing of this name is cached.
    #[error("no image `{name}` is cached; `posada image ls` lists those that are")]
    NotCached {
        /// The name that was asked for.
        name: String,
    },

    /// The host is no Debian.
    #[error(
        "cannot fetch the `debian` image: it comes from Debian's packages through apt-get, which was not found ({tried}). \
         On a system without it, boot a kernel of your own: `posada run --kernel FILE --initrd FILE --append \
         console=ttyS0`"
    )]
    NoApt {
        /// What the search said.
        tried: String,
    },

    /// An apt command failed.
    #[error(
        "could not {doing}: `{command}` ended with {status}{said}\nCheck the network and apt's sources (`apt-get update` \
         as root shows the same); posada uses the sources of this system"
    )]
    Apt {
        /// What it was to do: "fetch linux-image-…".
        doing: String,
        /// The command without its options.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its last lines, indented, or nothing.
        said: String,
    },

    /// An apt command worked, but not as expected.
    #[error("could not {doing}: `{command}` said {found}, which was not expected; please report this")]
    AptAnswer {
        /// What it was to do.
        doing: String,
        /// The command without its options.
        command: String,
        /// What it said.
        found: String,
    },

    /// No source has the package.
    #[error(
        "no apt source of this system offers the package {package}{said}\nThe `debian` image needs a Debian mirror (on \
         amd64, component main) among the sources, and the network to reach it once"
    )]
    NoPackage {
        /// The package that was asked for.
        package: String,
        /// What apt-get said while it updated its lists, indented, or nothing.
        said: String,
    },

    /// A package file that is not what it should be.
    #[error("the package {} cannot be used: {problem}; try again, and if it stays so check apt's sources", path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// Reading, writing or running something failed.
    #[error("could not {doing} {}: {cause}{}", path.display(), advice(cause))]
    Io {
        /// "write", "read", "create".
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it failed. The message has it already, so it is not the error's source as well.
        cause: io::Error,
    },

    /// A cached image was changed by something else.
    #[error(
        "the cached image in {} is damaged ({problem}); remove it with `posada image rm {name}` and run again",
        path.display()
    )]
    Damaged {
        /// The image's name.
        name: String,
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// The host's apt sources have no such suite.
    #[error(
        "cannot make the image debian:{suite}: the apt sources of this system have no Debian suite `{suite}` with the \
         component main{}{said}\nAdd one to /etc/apt/sources.list.d, as sources.list(5) says",
        if known.is_empty() { "; they have no Debian suite at all".to_owned() } else { format!("; possible are {known}") }
    )]
    NoSuite {
        /// The suite that was asked for.
        suite: String,
        /// The images that could be made instead.
        known: String,
        /// What apt-get said while it updated its lists, indented, or nothing.
        said: String,
    },

    /// Nobody has said what to build a disk in.
    #[error("the image {name} has a disk, which is built in a machine, and this program has brought none")]
    NoMachine {
        /// The image's name.
        name: String,
    },

    /// The guest that builds a disk failed.
    #[error(
        "could not build the disk of {name}: {problem}{said}\nNothing of it is kept; the next run tries again"
    )]
    Build {
        /// The image's name.
        name: String,
        /// What happened.
        problem: String,
        /// The last lines of the guest's console, indented, or nothing.
        said: String,
    },

    /// Neither `XDG_STATE_HOME` nor a home folder is known.
    #[error("there is no folder to keep guests in: set HOME, or XDG_STATE_HOME to an absolute path")]
    NoStateFolder,

    /// No guest can have this name.
    #[error(
        "`{name}` cannot be a guest's name: it becomes a host name, so use up to 63 letters, digits and hyphens, with no \
         hyphen first or last"
    )]
    GuestName {
        /// The name that was asked for.
        name: String,
    },

    /// There is no guest of this name.
    #[error("there is no guest named `{name}`")]
    NoGuest {
        /// The name that was asked for.
        name: String,
    },

    /// A guest's record was changed by something else.
    #[error("the record of a guest, {}, cannot be used: {problem}", path.display())]
    GuestRecord {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// There is a guest of this name, of another image.
    #[error(
        "the guest `{guest}` is one of {has}, not of {wanted}: run it with {has}, or choose another name"
    )]
    OtherImage {
        /// The guest's name.
        guest: String,
        /// Its image.
        has: String,
        /// The image that was asked for.
        wanted: String,
    },

    /// An image without a disk cannot have guests that keep one.
    #[error(
        "a guest of the image {image} has nothing to keep: its files are in memory. Name one with a disk, such as \
         debian:bookworm"
    )]
    NoDisk {
        /// The image's name.
        image: String,
    },

    /// What a guest stands on is gone.
    #[error(
        "the guest `{guest}` stands on the image in {}, which cannot be used: {problem}. Its disk holds only what it \
         has changed since", base.display()
    )]
    NoBase {
        /// The guest's name.
        guest: String,
        /// The folder of the image.
        base: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// An image cannot be removed while guests stand on it.
    #[error(
        "the image {image} is in use by guests ({guests}), whose disks hold only what they have changed since. Remove \
         those guests first, or lose them with --force"
    )]
    InUse {
        /// The image's name and version.
        image: String,
        /// The guests' names.
        guests: String,
    },

    /// A disk image could not be made.
    #[error("could not {doing} the disk {}: {problem}", path.display())]
    Disk {
        /// "create".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },

    /// The guest's command cannot be passed on.
    #[error(transparent)]
    Session(#[from] SessionError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ". An image needs about 100 MB while it is made: free some space, remove old images with `posada image rm`, \
             or set XDG_CACHE_HOME to a folder on a larger disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ". Set XDG_CACHE_HOME to a folder that you may write to"
        }
        _ => "",
    }
}

impl Error {
    /// For `map_err`: `path` could not be read, written, and so on.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |cause| Self::Io { doing, path, cause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do() {
        let error = Error::io("write", "/cache/initrd")(io::ErrorKind::StorageFull.into()).to_string();
        assert!(error.contains("could not write /cache/initrd"), "{error}");
        assert!(error.contains("XDG_CACHE_HOME"), "{error}");
    }

    #[test]
    fn a_system_without_apt_is_told_the_other_way() {
        let error = Error::NoApt { tried: "not in PATH".into() }.to_string();
        assert!(error.contains("--kernel"), "{error}");
    }
}
