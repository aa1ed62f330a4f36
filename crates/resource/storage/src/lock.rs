//! Locks that keep two processes from writing to one image, or one from reading what another writes.
//!
//! They are QEMU's (`block/file-posix.c`), so its tools are noticed and notice us: open file description locks
//! (fcntl(2)), all of them shared. A byte from 100 on says what its holder does, and a byte from 200 on what it does not
//! want others to do. They end with the process. A block device or a file system without locks is used without.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Bit numbers of QEMU's permissions, which are the distances from these bytes.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
const DOES: i64 = 100;
const MINDS: i64 = 200;

/// Takes the locks of a reader or writer. `Ok(false)`: somebody else has the file open in a way that does not go with it.
pub(crate) fn acquire(file: &File, writing: bool) -> io::Result<bool> {
    let does: &[i64] = if writing { &[CONSISTENT_READ, WRITE, RESIZE] } else { &[CONSISTENT_READ] };
    let minds = [WRITE, RESIZE];
    // First ours, then those of others: of two that do so at once at least one sees the other.
    for byte in does.iter().map(|bit| DOES + bit).chain(minds.iter().map(|bit| MINDS + bit)) {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            // Somebody locks the whole file.
            Err(Errno::EAGAIN | Errno::EACCES) => return Ok(false),
            Err(Errno::ENOLCK | Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    for byte in does.iter().map(|bit| MINDS + bit).chain(minds.iter().map(|bit| DOES + bit)) {
        let mut found = range(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        if found.l_type != libc::F_UNLCK as libc::c_short {
            return Ok(false);
        }
    }
    Ok(true)
}

fn range(kind: libc::c_int, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
#[path = "lock_test.rs"]
mod tests;
