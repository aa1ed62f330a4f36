//! Where members of a switch meet.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;

use super::Error;

/// How many members a switch has at most: every two are connected.
pub(super) const MEMBERS: usize = 64;

/// A member that has just joined.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) listener: OwnedFd,
    /// Connections to those who were there.
    pub(super) peers: Vec<OwnedFd>,
    /// The listener's path, removed when the member leaves.
    pub(super) path: SocketPath,
}

/// A socket's path. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        // It may be gone already: whoever found it refusing has removed it.
        let _ = fs::remove_file(&self.0);
    }
}

/// The user's folder for switches: in `XDG_RUNTIME_DIR`, else one of the user's own in the folder for temporary files.
pub(super) fn folder() -> Result<PathBuf, Error> {
    match env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(runtime) => Ok(runtime.join("posada").join("switch")),
        None => {
            let own = env::temp_dir().join(format!("posada-{}", geteuid().as_raw()));
            private(&own)?;
            Ok(own.join("switch"))
        }
    }
}

/// Makes a folder that only this user can enter, or sees that it is one.
fn private(path: &Path) -> Result<(), Error> {
    let result = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let unsafe_folder = |what| Error::Folder { folder: path.to_owned(), what };
    if let Err(source) = result
        && source.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(Error::Host { name: String::new(), doing: "making", path: path.to_owned(), source });
    }
    let metadata = fs::symlink_metadata(path).map_err(|_| unsafe_folder("it cannot be looked at"))?;
    match () {
        () if !metadata.is_dir() => Err(unsafe_folder("it is no folder")),
        () if metadata.uid() != geteuid().as_raw() => Err(unsafe_folder("it belongs to another user")),
        () if metadata.mode() & 0o077 != 0 => Err(unsafe_folder("others can enter it")),
        () => Ok(()),
    }
}

/// Joins the switch `name` that meets in `folder`.
pub(super) fn join(folder: &Path, name: &str) -> Result<Joined, Error> {
    let folder = folder.join(name);
    private(&folder)?;
    let failed = |doing, path: &Path, source: io::Error| Error::Host {
        name: name.to_owned(),
        doing,
        path: path.to_owned(),
        source,
    };
    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).map_err(|source| failed("making", &lock_path, source))?;
    // Who joins is done in no time; who dies while joining lets go of it.
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| failed("locking", &lock_path, errno.into()))?;

    let peers = connect_all(&folder).map_err(|source| failed("reading", &folder, source))?;
    if peers.len() >= MEMBERS {
        return Err(Error::Full { name: name.to_owned(), members: peers.len() });
    }
    let path = free_path(&folder);
    let listener = listen_at(&path).map_err(|errno| failed("listening at", &path, errno.into()))?;
    Ok(Joined { listener, peers, path: SocketPath(path) })
}

/// Connects to every member, and removes what dead ones have left.
fn connect_all(folder: &Path) -> io::Result<Vec<OwnedFd>> {
    let mut peers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "member") {
            continue;
        }
        match connect_to(&path) {
            Ok(peer) => peers.push(peer),
            Err(Errno::CONNREFUSED) => {
                tracing::debug!(path = %path.display(), "removing what a dead member has left");
                fs::remove_file(&path)?;
            }
            // It does not even take connections: the others do without it.
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "a member of the switch does not answer");
            }
        }
    }
    Ok(peers)
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

fn connect_to(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = seqpacket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = seqpacket()?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, MEMBERS as i32)?;
    Ok(socket)
}

/// A path that no socket has: all stale ones have been removed, and joining is done one at a time.
fn free_path(folder: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.member", std::process::id()));
        if !path.exists() {
            return path;
        }
    }
}
