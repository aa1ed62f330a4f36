//! A barrier for everybody: the costly half of an agreement whose other half is free.
//!
//! A virtual CPU stores, then looks at the page's mark; who translates sets the mark, then reads the bytes. Both
//! could miss each other, for processors let a load pass an earlier store. A fence at each store would be too dear,
//! so the one who sets marks, which is rare, has the host put a fence into every thread at once.

use std::arch::asm;
use std::sync::{Mutex, OnceLock, PoisonError};

use vm_memory::MmapRegion;

const SYS_MPROTECT: usize = 10;
const SYS_MEMBARRIER: usize = 324;
const PRIVATE_EXPEDITED: usize = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: usize = 1 << 4;
const PROT_READ: usize = 1;
const PROT_WRITE: usize = 2;

/// How the host is asked.
enum Way {
    /// membarrier(2).
    Membarrier,
    /// A page that this process loses its right to: the host then interrupts every processor that runs it.
    Page(Mutex<MmapRegion<()>>),
    /// Nothing that is known works. The race remains, on hosts that lend neither.
    None,
}

fn way() -> &'static Way {
    static WAY: OnceLock<Way> = OnceLock::new();
    WAY.get_or_init(|| {
        // SAFETY: membarrier(2) changes no memory.
        if unsafe { syscall(SYS_MEMBARRIER, [REGISTER_PRIVATE_EXPEDITED, 0, 0]) } == 0 {
            return Way::Membarrier;
        }
        MmapRegion::new(crate::PAGE_SIZE).map_or(Way::None, |region| Way::Page(Mutex::new(region)))
    })
}

/// Prepares what [`everywhere`] needs.
pub(crate) fn prepare() {
    way();
}

/// When this returns, every thread of the process has passed a full memory barrier.
pub(crate) fn everywhere() {
    match way() {
        Way::Membarrier => {
            // SAFETY: as in `way`.
            unsafe { syscall(SYS_MEMBARRIER, [PRIVATE_EXPEDITED, 0, 0]) };
        }
        Way::Page(region) => {
            let region = region.lock().unwrap_or_else(PoisonError::into_inner);
            let page = region.as_ptr();
            // SAFETY: the page is this function's alone, under the lock; between the two calls it can be written.
            unsafe {
                syscall(SYS_MPROTECT, [page as usize, crate::PAGE_SIZE, PROT_READ | PROT_WRITE]);
                page.write_volatile(1);
                syscall(SYS_MPROTECT, [page as usize, crate::PAGE_SIZE, PROT_READ]);
            }
        }
        Way::None => {}
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// # Safety
/// The call must do nothing to memory that Rust knows of.
unsafe fn syscall(number: usize, [a, b, c]: [usize; 3]) -> isize {
    let result: isize;
    // SAFETY: a system call changes `rax`, `rcx` and `r11`; what it does is the caller's to answer for.
    unsafe {
        asm!("syscall", inout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result
}
