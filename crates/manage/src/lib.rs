//! Guests that run, and how they are controlled from outside.
//!
//! Every guest has one process, its supervisor: the one that runs the machine. There is no daemon. A supervisor that
//! wants to be found takes an [`Entry`] in the user's folder of [`Running`] guests:
//!
//! ```text
//! running/web/lock           locked as long as the supervisor lives, however it ends
//! running/web/started.json   what it was started with
//! running/web/console.log    what the guest has said, and console.log.1 before that
//! running/web/control.sock   where the supervisor takes requests
//! running/web/vsock.sock     the way to the guest's own sockets
//! running/web/ended.json     how it ended; not there if the supervisor was killed
//! ```
//!
//! The lock alone says whether a guest runs: nothing is to be believed of an entry that is not locked, and whoever takes
//! or lists it clears it away.
//!
//! The supervisor starts a [`Server`] beside the machine, with a [`Console`] that keeps the end of what the guest says.
//! A [`Client`] asks, with one request a connection, in [`protocol`]'s lines. Folder and socket are the user's alone; the
//! server asks the kernel as well who has connected.
#![forbid(unsafe_code)]

mod client;
mod clients;
mod console;
mod entry;
mod error;
pub mod protocol;
mod server;
mod socket;

pub use client::{Client, open_exec};
pub use console::{Console, LOG_SIZE};
pub use entry::{Ended, Entry, Found, Running, Started};
pub use error::{Error, Result};
pub use server::{Machine, Server};
pub use socket::short_path;
