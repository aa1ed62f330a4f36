//! Exceptions that the host's processor raises in translated code.
//!
//! Memory accesses are checked before they are made, so translated code never faults there. But a division, and an
//! SSE operation whose exceptions the guest has unmasked, run on the host as they are, and raise on it what they
//! would raise in the guest: Linux then sends `SIGFPE`. The handler here looks up the place in the code's table of
//! *recoveries* and has the thread go on there: with code that leaves in front of the instruction, which has
//! changed nothing, for the interpreter to carry it out and to deliver the exception.

use std::cell::Cell;
use std::mem;
use std::ptr;
use std::sync::{Once, OnceLock};

use libc::{REG_RIP, SIGFPE, c_int, c_void, siginfo_t, ucontext_t};

/// Where code may run that is not Rust's, and who knows where to go on in it.
#[derive(Clone, Copy)]
pub(crate) struct Guarded {
    /// Addresses of code.
    pub(crate) start: usize,
    pub(crate) len: usize,
    /// Where to go on after an exception at an address of code, if anywhere. Called in a signal handler, with
    /// `whose`, while the code is interrupted.
    pub(crate) recover: unsafe fn(whose: *const (), at: usize) -> Option<usize>,
    pub(crate) whose: *const (),
}

thread_local! {
    /// What this thread runs. No destructor and a constant first value: so a signal handler may look at it.
    static RUNNING: Cell<Option<Guarded>> = const { Cell::new(None) };
}

/// While it lives, exceptions in some code are recovered from; then what was before is in force again.
pub(crate) struct Guard {
    before: Option<Guarded>,
}

impl Guard {
    /// # Safety
    /// `guarded.recover` must be good to call, as [`Guarded`] says, until the guard is dropped.
    pub(crate) unsafe fn new(guarded: Guarded) -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        Self { before: RUNNING.replace(Some(guarded)) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RUNNING.set(self.before.take());
    }
}

/// What the program did about the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() {
    // SAFETY: all zeros is a `sigaction`: the default action.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: this asks, and changes nothing but `before`.
    unsafe { libc::sigaction(SIGFPE, ptr::null(), &raw mut before) };
    // It must be there before the handler is.
    let _ = BEFORE.set(before);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_signal;
    action.sa_sigaction = handler as usize;
    // On the alternate stack, where a thread has one: others may expect that of handlers.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO demands, and does nothing but what handlers may.
    unsafe { libc::sigaction(SIGFPE, &raw const action, ptr::null_mut()) };
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, ucontext: *mut c_void) {
    // SAFETY: the kernel passes valid pointers of these types to a handler with SA_SIGINFO, for its duration.
    let (code, rip) = unsafe {
        let context = &raw mut (*ucontext.cast::<ucontext_t>()).uc_mcontext;
        ((*info).si_code, &mut (*context).gregs[REG_RIP as usize])
    };
    // The processor's own have positive codes; what another process sends does not.
    if let Some(guarded) = RUNNING.get().filter(|_| code > 0)
        && (*rip as usize).wrapping_sub(guarded.start) < guarded.len
        // SAFETY: the guard's owner vouches for it, and its code is what was interrupted.
        && let Some(to) = unsafe { (guarded.recover)(guarded.whose, *rip as usize) }
    {
        *rip = to as i64;
        return;
    }
    pass_on(signal, info, ucontext);
}

/// Does what would have been done without this handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, ucontext: *mut c_void) {
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction is tried again, and then ends the process, as it would have at once.
            // SAFETY: `before` came from this call.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it said that it has this signature.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { mem::transmute(handler) };
            handler(signal, info, ucontext);
        }
        handler => {
            // SAFETY: as above.
            let handler: extern "C" fn(c_int) = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Places where code may raise an exception, and where it then goes on: addresses in the order of the code.
#[derive(Default)]
pub(crate) struct Recoveries(Vec<(usize, usize)>);

impl Recoveries {
    /// Adds those of code that lies behind all that is known.
    pub(crate) fn extend(&mut self, mut more: Vec<(usize, usize)>) {
        more.sort_unstable();
        self.0.extend(more);
        debug_assert!(self.0.is_sorted(), "code is written in the order of its addresses");
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Where to go on after an exception at `at`.
    pub(crate) fn find(&self, at: usize) -> Option<usize> {
        let found = self.0.binary_search_by_key(&at, |(from, _)| *from).ok()?;
        Some(self.0[found].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_is_found_by_the_exact_address_alone() {
        let mut recoveries = Recoveries::default();
        recoveries.extend(vec![(30, 31), (10, 11)]);
        recoveries.extend(vec![(50, 51)]);
        assert_eq!(
            [10, 30, 50, 11, 49, 0].map(|at| recoveries.find(at)),
            [Some(11), Some(31), Some(51), None, None, None]
        );
        recoveries.clear();
        assert_eq!(recoveries.find(10), None);
    }

    #[test]
    fn guards_nest() {
        unsafe fn nowhere(_: *const (), _: usize) -> Option<usize> {
            None
        }
        let guarded = |start| Guarded { start, len: 1, recover: nowhere, whose: ptr::null() };
        let current = || RUNNING.get().map(|guarded| guarded.start);
        // SAFETY: the function is good to call at any time.
        let outer = unsafe { Guard::new(guarded(1)) };
        // SAFETY: as above.
        let inner = unsafe { Guard::new(guarded(2)) };
        assert_eq!(current(), Some(2));
        drop(inner);
        assert_eq!(current(), Some(1));
        drop(outer);
        assert_eq!(current(), None);
    }
}
