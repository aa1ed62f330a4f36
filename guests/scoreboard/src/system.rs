//! Rows in which the kernel works: system calls, page faults, processes.

use std::ffi::CString;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, execv, fork, getppid, pipe};

use crate::NOTHING;
use crate::row::{Failure, Row};

type Prepared<B> = Result<B, Failure>;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new("getppid", "call", 64, CALLS, || {
            Ok(|| {
                // The first process has none, others do not have it changed.
                let parent = getppid();
                Ok((0..CALLS).map(|_| u64::from(getppid() == parent)).sum())
            })
        }),
        Row::new("page-fault", "page", 64, PAGES as u64, || Ok(page_faults)),
        Row::new("fork-wait", "process", 64, FORKS, || {
            Ok(|| {
                let mut sum = 0;
                for number in 0..FORKS {
                    sum += wait_for(child(|| number as i32)?)?;
                }
                Ok(sum)
            })
        }),
        Row::new("fork-exec", "process", 64, EXECS, fork_exec),
        Row::new("pipe", "round", 64, ROUNDS, ping_pong),
    ]
}

const CALLS: u64 = 40_000;

const PAGES: usize = 4_096;

const PAGE: usize = 4096;

/// Maps pages, writes to each, and gives them back.
fn page_faults() -> Result<u64, Failure> {
    let length = NonZeroUsize::new(PAGES * PAGE).unwrap_or(NonZeroUsize::MIN);
    // SAFETY: a new mapping, which nobody else knows of.
    let memory = unsafe {
        mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
    };
    // A kernel without huge pages says that it knows no such advice.
    // SAFETY: it is the mapping just made.
    let _ = unsafe { madvise(memory, length.get(), MmapAdvise::MADV_NOHUGEPAGE) };
    let bytes = memory.as_ptr().cast::<u8>();
    let mut sum = 0;
    for page in 0..PAGES {
        // SAFETY: within the mapping.
        unsafe {
            let byte = bytes.add(page * PAGE);
            byte.write_volatile(page as u8 | 1);
            sum += u64::from(byte.read_volatile());
        }
    }
    // SAFETY: nothing refers to it any more.
    unsafe { munmap(memory, length.get())? };
    Ok(sum)
}

const FORKS: u64 = 64;

/// Starts a process that does this and ends with the result for its status.
fn child(work: impl FnOnce() -> i32) -> Result<Pid, Failure> {
    // SAFETY: this process has a single thread, so its copy may do everything.
    match unsafe { fork()? } {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = work();
            // SAFETY: it ends this process, which has nothing to clean up.
            unsafe { nix::libc::_exit(status) }
        }
    }
}

/// The status that a process ends with.
fn wait_for(process: Pid) -> Result<u64, Failure> {
    match waitpid(process, None)? {
        WaitStatus::Exited(_, status) => Ok(status as u64),
        other => Err(Failure::Broken(format!("a process ended unexpectedly: {other:?}"))),
    }
}

const EXECS: u64 = 16;

/// Processes that become this program anew, and end.
fn fork_exec() -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let path = CString::new("/proc/self/exe")?;
    let arguments = [CString::new("scoreboard")?, CString::new(NOTHING)?];
    Ok(move || {
        let mut done = 0;
        for _ in 0..EXECS {
            let process = child(|| execv(&path, &arguments).map_or(1, |never| match never {}))?;
            done += u64::from(wait_for(process)? == 0);
        }
        if done < EXECS {
            Err(Failure::Broken("this program cannot be executed".to_owned()))
        } else {
            Ok(done)
        }
    })
}

const ROUNDS: u64 = 2_000;

/// A process that answers.
struct Partner {
    process: Pid,
    /// To it; none once it shall end.
    to: Option<io::PipeWriter>,
    from: io::PipeReader,
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.to = None;
        let _ = wait_for(self.process);
    }
}

/// A byte to another process and one back.
fn ping_pong() -> Prepared<impl FnMut() -> Result<u64, Failure>> {
    let (there, to): (OwnedFd, OwnedFd) = pipe()?;
    let (from, back) = pipe()?;
    let (mut there, mut back) = (io::PipeReader::from(there), io::PipeWriter::from(back));
    let (to, from) = (io::PipeWriter::from(to), io::PipeReader::from(from));
    let mut both = Some((to, from));
    let process = child(|| {
        both = None;
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() {
            byte[0] = byte[0].wrapping_add(1);
            if back.write_all(&byte).is_err() {
                return 1;
            }
        }
        0
    })?;
    let (to, from) = both.ok_or_else(|| Failure::Broken("the pipes are gone".to_owned()))?;
    let mut partner = Partner { process, to: Some(to), from };
    Ok(move || {
        let mut sum = 0;
        for round in 0..ROUNDS {
            let mut byte = [round as u8];
            if let Some(to) = &mut partner.to {
                to.write_all(&byte)?;
            }
            partner.from.read_exact(&mut byte)?;
            sum += u64::from(byte[0]);
        }
        Ok(sum)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_written() {
        let expected = (0..PAGES).map(|page| u64::from(page as u8 | 1)).sum::<u64>();
        assert_eq!(page_faults().unwrap_or(0), expected);
    }
}
