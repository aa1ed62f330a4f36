//! Host memory that is not Rust's: the context, and the code cache.

use std::fs::File;
use std::io::Write;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
/// Bytes of what [`Mapping::fill`] repeats: fewer take more mappings. When one page is looked at, Linux lends all of them.
const PATTERN: usize = 16 << 10;

/// A mapping of the host's, given back when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to whoever has the value, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Readable and writable memory, all zeros, of which the host lends a page when it is first touched.
    pub(crate) fn zeroed(len: usize) -> std::io::Result<Self> {
        // SAFETY: the kernel chooses where; nothing that exists is touched.
        let start = unsafe {
            mmap_anonymous(ptr::null_mut(), len, READ_WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE)
        }?;
        Self::new(start.cast(), len)
    }

    /// Lets each number of some parts be `value` instead of zero. Until they are written, a few of the host's pages make up all of
    /// them.
    ///
    /// # Panics
    /// If a part, an offset and a length in bytes, is not in the mapping, or its length not a multiple of [`PATTERN`].
    pub(crate) fn fill(
        &mut self,
        parts: impl IntoIterator<Item = (usize, usize)>,
        value: u64,
    ) -> std::io::Result<()> {
        let mut file = File::from(memfd_create("posada-pattern", MemfdFlags::CLOEXEC)?);
        file.write_all(&value.to_ne_bytes().repeat(PATTERN / size_of::<u64>()))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        for (offset, len) in parts {
            assert!(offset <= self.len && len <= self.len - offset && len.is_multiple_of(PATTERN));
            for at in (offset..offset + len).step_by(PATTERN) {
                // SAFETY: the part was just seen to lie inside the mapping, which is ours alone; no Rust reference covers its
                // memory yet.
                unsafe { mmap(self.start.as_ptr().add(at).cast(), PATTERN, READ_WRITE, flags, &file, 0) }?;
            }
        }
        Ok(())
    }

    fn new(start: *mut u8, len: usize) -> std::io::Result<Self> {
        let start = NonNull::new(start).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this type, and whoever used it is gone with the value. A failure would
        // leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Gives memory back to the host until it is touched again: it is then what it was at first. False if the host does not take it.
///
/// # Safety
/// It must be valid for writes, whole pages, and part of a [`Mapping`] of data; what it was at first must be good for whatever it is.
pub(crate) unsafe fn give_back(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller's.
    unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontNeed) }.is_ok()
}

/// Memory for code: mapped twice, once to be written and once to be executed, so that no address is ever both.
///
/// It has two parts, each filled from its start: what runs often, and what runs seldom and would only lie between.
#[derive(Debug)]
pub(crate) struct CodeMemory {
    writable: Mapping,
    executable: Mapping,
    parts: [Part; 2],
}

/// Offsets.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: usize,
    used: usize,
    end: usize,
}

/// Which part of [`CodeMemory`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Warmth {
    Hot = 0,
    Cold = 1,
}

impl CodeMemory {
    /// `len` bytes, of which `cold` are for what runs seldom.
    pub(crate) fn new(len: usize, cold: usize) -> std::io::Result<Self> {
        let file = memfd_create("posada-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        let map = |protection| {
            // SAFETY: the kernel chooses where; nothing that exists is touched.
            let start = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) }?;
            Mapping::new(start.cast(), len)
        };
        let part = |start, end| Part { start, used: start, end };
        let border = len - cold;
        Ok(Self {
            writable: map(READ_WRITE)?,
            executable: map(ProtFlags::READ | ProtFlags::EXEC)?,
            parts: [part(0, border), part(border, len)],
        })
    }

    /// Where code may be: its address and length.
    pub(crate) fn range(&self) -> (usize, usize) {
        (self.start(), self.executable.len)
    }

    /// The address of the first byte.
    pub(crate) fn start(&self) -> usize {
        self.executable.start().as_ptr() as usize
    }

    /// Where the next code goes.
    pub(crate) fn next(&self, part: Warmth) -> usize {
        self.start() + self.parts[part as usize].used
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.parts.iter().map(|part| part.used - part.start).sum()
    }

    /// Bytes left in a part.
    pub(crate) fn left(&self, part: Warmth) -> usize {
        let part = &self.parts[part as usize];
        part.end - part.used
    }

    /// Puts code at [`next`](Self::next); false when there is no room.
    pub(crate) fn push(&mut self, part: Warmth, code: &[u8]) -> bool {
        const ALIGN: usize = 16;
        if code.len() > self.left(part) {
            return false;
        }
        let Part { used, end, .. } = &mut self.parts[part as usize];
        // SAFETY: the bytes from `used` on were just seen to lie inside the mapping. No Rust reference covers it.
        unsafe {
            let to = self.writable.start().as_ptr().add(*used);
            ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        *used += code.len();
        if matches!(part, Warmth::Hot) {
            *used = used.next_multiple_of(ALIGN).min(*end);
        }
        true
    }

    /// Replaces the four bytes at `at`, an address of code, by `value`.
    pub(crate) fn patch(&mut self, at: usize, value: i32) {
        let offset = at - self.start();
        assert!(offset + 4 <= self.writable.len, "outside the code cache");
        // SAFETY: the place was just seen to lie inside the mapping. The thread that runs this code is this one.
        unsafe { self.writable.start().as_ptr().add(offset).cast::<i32>().write_unaligned(value) };
    }

    /// A copy of code.
    pub(crate) fn copy(&self, at: usize, len: usize) -> Vec<u8> {
        let offset = at - self.start();
        assert!(offset <= self.writable.len && len <= self.writable.len - offset, "outside the code cache");
        let mut code = vec![0; len];
        // SAFETY: the bytes were just seen to lie inside the mapping, whose memory no Rust reference covers.
        unsafe {
            let from = self.writable.start().as_ptr().add(offset);
            ptr::copy_nonoverlapping(from, code.as_mut_ptr(), len);
        }
        code
    }

    /// Forgets all code.
    pub(crate) fn clear(&mut self) {
        for part in &mut self.parts {
            part.used = part.start;
        }
    }
}
