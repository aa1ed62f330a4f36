//! The one flag that an engine polls while it runs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const INTERRUPT: u32 = 1;
const KICK: u32 = 2;
const LOOK: u32 = 4;

/// Asks one virtual CPU to look up from its work, from any thread.
///
/// An engine polls [`is_raised`](Self::is_raised) at instruction or block boundaries, which costs one relaxed
/// load; a halted virtual CPU sleeps in [`wait`](Self::wait) and uses no host processor.
#[derive(Default)]
pub struct Attention {
    flags: AtomicU32,
    alarm: Mutex<Option<Alarm>>,
    changed: Condvar,
}

/// What is called when something is asked for: see [`Attention::set_alarm`].
pub type Alarm = Box<dyn Fn() + Send>;

impl std::fmt::Debug for Attention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attention").field("flags", &self.flags).finish_non_exhaustive()
    }
}

impl Attention {
    /// The interrupt source may have something new to deliver.
    pub fn interrupt(&self) {
        self.raise(INTERRUPT);
    }

    /// [`Vcpu::run`](crate::Vcpu::run) shall return [`Exit::Kicked`](crate::Exit::Kicked) soon.
    pub fn kick(&self) {
        self.raise(KICK);
    }

    /// Memory has changed of which an engine may keep copies, or another virtual CPU waits for it. Whoever sleeps
    /// goes on sleeping: it looks when it runs again.
    pub fn look(&self) {
        self.set(LOOK);
    }

    fn raise(&self, flag: u32) {
        if self.set(flag) {
            self.changed.notify_all();
        }
    }

    /// Sets a flag; true if it was not set.
    fn set(&self, flag: u32) -> bool {
        let before = self.flags.fetch_or(flag, Ordering::AcqRel);
        let is_new = before & flag == 0;
        if is_new {
            // The lock orders a wake-up after a sleeper's look at the flags, too.
            if let Some(alarm) = &*self.lock() {
                alarm();
            }
        }
        is_new
    }

    fn lock(&self) -> MutexGuard<'_, Option<Alarm>> {
        self.alarm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on calls `alarm` whenever something is asked for that was not asked for already, after
    /// [`is_raised`](Self::is_raised) says so: for engines whose code looks at a flag of its own. The alarm must not call back.
    /// When this returns, the alarm before is called no more.
    pub fn set_alarm(&self, alarm: Option<Alarm>) {
        *self.lock() = alarm;
    }

    /// Whether anything was asked for since it was last taken.
    #[inline(always)]
    pub fn is_raised(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    /// Takes a kick: whether there was one.
    pub fn take_kick(&self) -> bool {
        self.flags.fetch_and(!KICK, Ordering::AcqRel) & KICK != 0
    }

    /// Takes the interrupt flag, before the interrupt source is looked at.
    pub fn take_interrupt(&self) -> bool {
        self.flags.fetch_and(!INTERRUPT, Ordering::AcqRel) & INTERRUPT != 0
    }

    /// Takes the call to look, before looking.
    pub fn take_look(&self) -> bool {
        self.flags.load(Ordering::Acquire) & LOOK != 0
            && self.flags.fetch_and(!LOOK, Ordering::AcqRel) & LOOK != 0
    }

    /// Sleeps until something is asked for, at most for `limit` where there is one.
    pub fn wait(&self, limit: Option<Duration>) {
        let guard = self.lock();
        let idle = |_: &mut Option<Alarm>| self.flags.load(Ordering::Relaxed) & !LOOK == 0;
        match limit {
            None => drop(self.changed.wait_while(guard, idle)),
            Some(limit) => drop(self.changed.wait_timeout_while(guard, limit, idle)),
        }
    }
}
