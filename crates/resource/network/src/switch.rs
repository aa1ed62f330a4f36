//! A virtual switch that joins guests of several processes, without a process of its own.
//!
//! Members of one user's switch meet in a folder: each listens there on a Unix-domain socket of its own
//! (`SOCK_SEQPACKET`), and connects to all that are there already when it joins, so that every two are connected. Each
//! sends its guest's frames straight to the member behind which the destination was last seen, or to all. So no member
//! is special: the switch survives the death of any of them. A socket that a dead member left refuses connections, and
//! who joins next removes it. Joining is done under a lock on the folder, which the host releases when its holder dies.
//!
//! | module       | what it does                                                                     |
//! |--------------|----------------------------------------------------------------------------------|
//! | `rendezvous` | the folder, the lock, stale sockets                                                |
//! | `member`     | the event loop                                                                     |
//! | `peer`       | another member: messages, and frames that wait for it                              |
//! | `table`      | which addresses are where: bounded, forgotten after five minutes                   |
//!
//! # Trust
//!
//! The folder is for one user only (mode 0700), and connections of other users are refused. Other members may still
//! be guests' monitors that went wrong: messages are checked for length and kind, a member that sends others is
//! disconnected; each has an equal share of what its receivers take; frames for one that takes none are dropped, after a
//! bounded number. As on any switch, a member may claim any address but that of one's own guest.

mod member;
mod peer;
mod rendezvous;
mod table;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use mio::Waker;
use thiserror::Error;

use crate::limit::Rates;
use crate::link::Link;
use member::Member;
#[doc(hidden)]
pub use peer::fuzz_message;

/// The longest name of a switch.
const MAX_NAME: usize = 32;

/// The name of a switch: 1 to 32 letters, digits, dots, dashes and underscores, not beginning with a dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > MAX_NAME || text.starts_with('.') || !text.bytes().all(good) {
            return Err(Error::Name { name: text.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// A switch that could not be joined.
#[derive(Debug, Error)]
pub enum Error {
    /// No name of a switch.
    #[error(
        "{name:?} is no name of a switch: 1 to 32 letters, digits, dots, dashes and underscores, not a dot first"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// The folder is not safe to meet in.
    #[error(
        "cannot meet the members of a switch in {folder}: {what}; remove it, or set XDG_RUNTIME_DIR to a folder that is only yours"
    )]
    Folder {
        /// Which one.
        folder: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There are as many members as a switch takes.
    #[error("the switch {name} has {members} members already, which is the most")]
    Full {
        /// Which switch.
        name: String,
        /// How many.
        members: usize,
    },
    /// Something failed on the host.
    #[error("cannot join the switch {name}: {doing} {path} failed: {source}")]
    Host {
        /// Which switch.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The host refuses what an event loop needs.
    #[error("cannot join a switch: {0}")]
    Loop(#[from] io::Error),
}

/// A membership of a switch. It ends when it is dropped, or when the other end of the link is.
#[derive(Debug)]
pub struct Switch {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Joins the guest at `link` to this user's switch `name`.
    ///
    /// # Errors
    /// The folder is unsafe or cannot be made, the switch is full, or the host lacks descriptors.
    pub fn join(name: &Name, rates: Rates, link: Link) -> Result<Self, Error> {
        Self::join_in(&rendezvous::folder()?, name, rates, link)
    }

    /// Joins a switch that meets in a folder of `folder` instead of the user's own.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn join_in(folder: &std::path::Path, name: &Name, rates: Rates, link: Link) -> Result<Self, Error> {
        let joined = rendezvous::join(folder, &name.0)?;
        let (member, waker) = Member::new(joined, rates, link)?;
        let stop = member.stop();
        let thread = std::thread::Builder::new().name("switch".into()).spawn(move || member.run())?;
        Ok(Self { stop, waker, thread: Some(thread) })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
