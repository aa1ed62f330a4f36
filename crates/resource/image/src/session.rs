//! A session: one command in the guest, its streams, its terminal and how it ended.
//!
//! A guest's console carries the kernel's messages, changes line ends and has one stream for everything. A command
//! whose output must arrive byte for byte therefore gets a channel of its own, the guest's second serial port
//! ([`CHANNEL`]). In the guest, a small agent (`guests/agent`, compiled into this crate) starts the command and speaks
//! [`wire`]'s protocol; on the host, [`Host`] is the same protocol as a pure state machine, and [`Relay`] wires it to
//! three streams with a few threads.
//!
//! ```
//! use posada_image::session::{Ending, Event, Host};
//!
//! let mut host = Host::new();
//! // What a guest sends for `sh -c 'echo hi; exit 3'`.
//! let mut bytes = b"BIOS noise\x00posada\x01".to_vec();
//! bytes.extend(b"\x01\x04\x00\x00\x40\x00\x00"); // hello, 16 KiB of standard input
//! bytes.extend(b"\x02\x03\x00hi\n"); // standard output
//! bytes.extend(b"\x04\x05\x00\x00\x03\x00\x00\x00"); // exited with 3
//!
//! let mut seen = Vec::new();
//! host.receive(&bytes, &mut |event| {
//!     if let Event::Stdout(bytes) = event {
//!         seen.extend_from_slice(bytes);
//!     }
//! })?;
//! assert_eq!(seen, b"hi\n");
//! assert_eq!(host.ending(), Some(Ending::Exited(3)));
//! # Ok::<(), posada_image::session::ProtocolError>(())
//! ```

mod host;
mod relay;
mod spec;
pub mod wire;

pub use host::{Ending, Event, Host, ProtocolError, Stream};
pub use relay::{PortWriter, Relay, Streams};
pub(crate) use spec::SESSION_FILE;
pub use spec::{CHANNEL, CONSOLE, Session, SessionError, Size};
