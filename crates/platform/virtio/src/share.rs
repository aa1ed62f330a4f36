//! A folder of the host, shared by virtio-fs (virtio 1.2 §5.11): FUSE requests over virtqueues (Linux's
//! `include/uapi/linux/fuse.h`, version 7.36).
//!
//! Guests mount it with `mount -t virtiofs TAG /mnt`. Names are looked up one at a time in folders that are open
//! already, and no link of the host's is ever followed, so nothing outside the folder can be named, by whatever path,
//! link or race. Files are opened, made and changed with the rights of the user who runs Posada; set-user-ID bits and
//! device nodes are not made.

mod server;
mod tree;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::{Bell, Device, Handler, Kind, Rings, Service};
use server::Server;

/// Linux sends no request with more buffers than the queue has entries.
const QUEUE_SIZE: u16 = 512;
/// The queue for requests that must not wait, and the one for all others.
const URGENT: usize = 0;
const REQUESTS: usize = 1;
/// Bytes of the tag in the configuration.
const TAG_LEN: usize = 36;

/// A shared folder.
#[derive(Debug)]
pub struct Share {
    tag: String,
    root: Option<OwnedFd>,
    read_only: bool,
}

impl Share {
    /// The folder at `path`, under a tag of 1 to 36 bytes by which the guest asks for it.
    ///
    /// Each file that the guest knows of takes one of this process's descriptors.
    ///
    /// # Errors
    /// There is no such folder, or the tag is empty or too long.
    pub fn new(path: impl AsRef<Path>, tag: impl Into<String>, read_only: bool) -> io::Result<Self> {
        let tag = tag.into();
        if tag.is_empty() || tag.len() > TAG_LEN {
            let problem = format!("the tag {tag:?} must have from 1 to {TAG_LEN} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self { tag, root: Some(tree::open_root(path.as_ref())?), read_only })
    }
}

impl Device for Share {
    fn kind(&self) -> Kind {
        Kind { id: 26, class: [0x01, 0x80, 0], name: "shared folder" }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn configuration(&self) -> Vec<u8> {
        let mut bytes = self.tag.clone().into_bytes();
        bytes.resize(TAG_LEN, 0);
        // Queues for requests.
        bytes.extend(1_u32.to_le_bytes());
        bytes
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let root = self.root.take().ok_or_else(|| io::Error::other("the folder is in use already"))?;
        let (rings, server) = (Arc::clone(rings), Server::new(root, self.read_only)?);
        Ok(vec![Service::new([URGENT, REQUESTS], move |_: Arc<Bell>| Folder { rings, server })])
    }
}

struct Folder {
    rings: Arc<Rings>,
    server: Server,
}

impl Handler for Folder {
    fn queue(&mut self, queue: usize) -> bool {
        let server = &mut self.server;
        self.rings.serve(queue, 16, |chain| {
            let room = usize::try_from(chain.writable()).unwrap_or(usize::MAX);
            let Ok(request) = chain.read_all(server::MAX_MESSAGE) else { return };
            let reply = server.answer(&request, room);
            // Where the guest has left no room for an answer it gets none.
            let _ = chain.write(&reply);
        })
    }

    fn reset(&mut self) {
        self.server.reset();
    }
}

#[cfg(test)]
#[path = "share_test.rs"]
mod tests;
