//! What can go wrong with a disk image.

use std::io;
use std::path::{Path, PathBuf};

use crate::Format;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a disk cannot be had, or a request not be carried out. Each message says what was being done, what was found and,
/// where something can be done, what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused.
    #[error("could not {doing} {}: {cause}{}", path.display(), advice(cause))]
    Io {
        /// "read", "write", "open".
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why. The message has it already, so it is not the error's source as well.
        cause: io::Error,
    },

    /// A request reaches past the end of the disk.
    #[error(
        "a request for {length} bytes at {offset} reaches past the end of the disk, which has {size} bytes"
    )]
    OutOfRange {
        /// Where it begins.
        offset: u64,
        /// Its length in bytes.
        length: u64,
        /// The size of the disk in bytes.
        size: u64,
    },

    /// The disk may only be read.
    #[error("the disk {} is read-only", path.display())]
    ReadOnly {
        /// Its file.
        path: PathBuf,
    },

    /// Another process has the image open in a way that does not go with this one.
    #[error(
        "{} is already in use{}; end what uses it first, or open it with `ro` or `snapshot` if both only read",
        path.display(),
        if *writing { ", so it cannot be opened for writing" } else { ", which writes to it" }
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Whether it was to be written to.
        writing: bool,
    },

    /// The file contradicts itself or its format.
    #[error("the {format} image {} is damaged: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The image's format.
        format: Format,
        /// What was found.
        problem: String,
    },

    /// The image asks for something that is not done here.
    #[error("the {format} image {} cannot be used: {problem}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The image's format.
        format: Format,
        /// What it asks for, and what to do.
        problem: String,
    },

    /// The file that an image takes unwritten data from cannot be had.
    #[error("the backing file of {}: {cause}", path.display())]
    Backing {
        /// The image that names it.
        path: PathBuf,
        /// What is wrong.
        cause: Box<Error>,
    },

    /// The guest wants to write what would make its raw disk look like an image of another format.
    #[error(
        "refused to write the signature of a {format} image to the start of {}: the disk was taken for raw because it \
         looks like nothing else, and would be taken for {format} next time; say `format=raw` to allow this",
        path.display()
    )]
    Disguise {
        /// The file.
        path: PathBuf,
        /// What it would look like.
        format: Format,
    },

    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),

    /// The file is shorter than it was when it was opened.
    #[error(
        "{} has shrunk: it ends at byte {has}, and had {had} when it was opened; something else changes it while it is \
         in use",
        path.display()
    )]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Where it ends now, in bytes.
        has: u64,
        /// How long it was, in bytes.
        had: u64,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space on the host",
        io::ErrorKind::AlreadyExists => "; choose another name, or remove what is there",
        _ => "",
    }
}

impl Error {
    /// For `map_err`: `path` could not be read, written, and so on.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io { doing, path: path.to_owned(), cause }
    }

    /// What the host said, if this is about a request that it refused.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { cause, .. } => Some(cause.kind()),
            _ => None,
        }
    }
}
