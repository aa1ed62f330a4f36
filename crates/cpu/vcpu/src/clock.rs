//! The guest's time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Nanoseconds since the guest began, and the time-stamp counter that is read from them.
///
/// All of a guest's timers and counters come from this one clock, so they never drift against each other. It
/// follows the host's monotonic clock, and stands still while the guest is paused.
pub struct Clock {
    started: Instant,
    /// Host nanoseconds since `started` that the guest has not lived through.
    skipped: AtomicU64,
    paused: AtomicBool,
    paused_at: AtomicU64,
    /// Who is asked instead.
    source: Option<Source>,
}

type Source = Box<dyn Fn() -> u64 + Send + Sync>;

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Clock {
    /// How often the time-stamp counter counts in a second. At one count a nanosecond the counter *is* the
    /// clock; guests learn the figure from CPUID leaf 0x15 or calibrate it against a timer.
    pub const TSC_HZ: u64 = 1_000_000_000;

    /// A clock that starts now, at zero.
    pub fn new() -> Self {
        Self::starting_at(0)
    }

    /// A clock that starts now at `nanoseconds`: that of a guest brought back from a snapshot.
    pub fn starting_at(nanoseconds: u64) -> Self {
        Self {
            started: Instant::now(),
            skipped: AtomicU64::new(0u64.wrapping_sub(nanoseconds)),
            paused: AtomicBool::new(false),
            paused_at: AtomicU64::new(0),
            source: None,
        }
    }

    /// A clock that asks `source` each time it is read: one that notes what another says, or repeats it. It is not for
    /// pausing.
    pub fn asking(source: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..Self::new() }
    }

    fn host(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Nanoseconds that the guest has run for.
    #[inline]
    pub fn now(&self) -> u64 {
        if let Some(source) = &self.source {
            return source();
        }
        if self.paused.load(Ordering::Acquire) {
            return self.paused_at.load(Ordering::Acquire);
        }
        self.host().wrapping_sub(self.skipped.load(Ordering::Relaxed))
    }

    /// The time-stamp counter before any offset that the guest has written.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.now()
    }

    /// Stops the clock. To be called while no virtual CPU runs.
    pub fn pause(&self) {
        let now = self.now();
        self.paused_at.store(now, Ordering::Release);
        self.paused.store(true, Ordering::Release);
    }

    /// Lets the clock go on from where it stood.
    pub fn resume(&self) {
        if self.paused.load(Ordering::Acquire) {
            let stood = self.paused_at.load(Ordering::Acquire);
            self.skipped.store(self.host().wrapping_sub(stood), Ordering::Relaxed);
            self.paused.store(false, Ordering::Release);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_clock_stands_still_and_goes_on_from_there() {
        let clock = Clock::starting_at(1_000_000_000);
        clock.pause();
        let stood = clock.now();
        assert!(stood >= 1_000_000_000);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(clock.now(), stood);
        clock.resume();
        let after = clock.now();
        assert!(after >= stood);
    }
}
