//! Unix sockets in folders whose paths may be long.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The longest path that a socket can have, with room for a zero byte and for what device models put behind it
/// (unix(7): 108 bytes).
const MAX_PATH: usize = 90;

/// A path to a socket in `folder`, short enough for unix(7): if the folder's own is too long, by way of a descriptor of
/// it. The path holds as long as the file that comes with it is open.
///
/// # Errors
/// The folder cannot be opened.
pub fn short_path(folder: &Path, name: impl AsRef<Path>) -> io::Result<(PathBuf, Option<File>)> {
    let name = name.as_ref();
    let path = folder.join(name);
    if path.as_os_str().len() <= MAX_PATH {
        return Ok((path, None));
    }
    let folder = File::open(folder)?;
    Ok((Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name), Some(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_socket_may_be_far_down() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120)).join("y".repeat(120));
        fs::create_dir_all(&deep).unwrap();
        let (path, kept) = short_path(&deep, "s").unwrap();
        assert!(kept.is_some() && path.as_os_str().len() < MAX_PATH);
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(deep.join("s").exists());
        UnixStream::connect(&path).unwrap();
        assert!(short_path(Path::new("/run"), "s").unwrap().1.is_none());
    }
}
