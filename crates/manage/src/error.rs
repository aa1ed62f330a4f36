//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// As the standard library's, with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a guest cannot be found, taken or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no home to keep state in.
    #[error("there is no folder to keep guests in: set HOME, or XDG_STATE_HOME to an absolute path")]
    NoStateFolder,

    /// The name is none.
    #[error(transparent)]
    Name(posada_image::Error),

    /// A guest of this name runs.
    #[error("the guest `{name}` runs already{}", by(*.process))]
    Runs {
        /// Its name.
        name: String,
        /// Its supervisor, if it has said so.
        process: Option<u32>,
    },

    /// No guest of this name runs.
    #[error("no guest named `{name}` runs; `posada ps` lists those that do")]
    RunsNot {
        /// The name.
        name: String,
    },

    /// Nothing is known of a guest of this name.
    #[error("there is no guest named `{name}`; `posada ps --all` lists those that there are")]
    Unknown {
        /// The name.
        name: String,
    },

    /// A file or socket of an entry.
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The supervisor's answer, or how it was asked.
    #[error("asking the guest `{name}`: {problem}")]
    Talk {
        /// The guest.
        name: String,
        /// What went wrong.
        problem: String,
    },
}

fn by(process: Option<u32>) -> String {
    process.map(|id| format!(" (process {id})")).unwrap_or_default()
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
