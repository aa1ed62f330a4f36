//! Sockets between guest and host (virtio 1.2 §5.10), joined to Unix sockets of the host.
//!
//! - A program of the host connects to the socket at the device's path, writes `CONNECT port` and a newline, and, when
//!   the guest's program that listens on that port has been reached, reads `OK port` and a newline; then the stream is
//!   the guest's.
//! - A program of the guest that connects to the host (context ID 2) at a port reaches whoever listens on the socket at
//!   the device's path followed by `_` and the port.
//!
//! This is the custom of other monitors, so their clients work here.

mod connection;
mod mux;
mod packet;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use mio::net::UnixListener;

use crate::{Bell, Device, Kind, Rings, Service};
use mux::Mux;

const QUEUE_SIZE: u16 = 256;
pub(crate) const RECEIVE: usize = 0;
pub(crate) const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// Stream sockets are there (§5.10.3).
const STREAM: u64 = 1;

/// The device.
#[derive(Debug)]
pub struct Vsock {
    guest: u32,
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Vsock {
    /// The device of the guest with this context ID (from 3 on), with the host's socket at `path`. A socket that is
    /// there already and that nobody listens on, as a monitor leaves behind that was killed, is replaced.
    ///
    /// # Errors
    /// The socket cannot be made, or somebody listens on it.
    pub fn new(guest: u32, path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        if let Err(error) = std::os::unix::net::UnixStream::connect(&path)
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            std::fs::remove_file(&path)?;
        }
        let listener = Some(UnixListener::bind(&path)?);
        Ok(Self { guest, path, listener })
    }
}

impl Device for Vsock {
    fn kind(&self) -> Kind {
        Kind { id: 19, class: [0x07, 0x80, 0], name: "socket device" }
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn configuration(&self) -> Vec<u8> {
        u64::from(self.guest).to_le_bytes().to_vec()
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let listener =
            self.listener.take().ok_or_else(|| io::Error::other("the socket is in use already"))?;
        let (rings, guest, path) = (Arc::clone(rings), self.guest, self.path.clone());
        let make = move |_: Arc<Bell>| Mux::new(rings, guest, path, listener);
        Ok(vec![Service::new([RECEIVE, TRANSMIT, EVENT], make)])
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
