//! When the timer thread is next wanted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use posada_devices::Nanos;
use posada_vcpu::Clock;

/// A sleep until the earliest of many deadlines, which any thread can bring forward.
///
/// A guest reprograms its timers thousands of times a second, so the usual case, a deadline later than the one
/// that is slept for already, is a single atomic operation.
#[derive(Debug)]
pub(crate) struct Alarm {
    earliest: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        Self { earliest: AtomicU64::new(0), lock: Mutex::new(()), changed: Condvar::new() }
    }

    /// Wakes the sleeper at `deadline`, if there is one, unless it would wake before.
    #[inline]
    pub(crate) fn at(&self, deadline: Option<Nanos>) {
        if let Some(deadline) = deadline
            && deadline < self.earliest.fetch_min(deadline, Ordering::AcqRel)
        {
            // The lock orders this wake-up after a sleeper's look at the deadline.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_one();
        }
    }

    /// Forgets all deadlines, before they are gathered anew. One that is set meanwhile is not lost.
    pub(crate) fn begin(&self) {
        // A full barrier: no look at a timer moves ahead of it.
        self.earliest.swap(Nanos::MAX, Ordering::SeqCst);
    }

    /// Sleeps until `deadline` or an earlier one that another thread has set or sets.
    pub(crate) fn sleep(&self, clock: &Clock, deadline: Option<Nanos>) {
        self.earliest.fetch_min(deadline.unwrap_or(Nanos::MAX), Ordering::AcqRel);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (due, now) = (self.earliest.load(Ordering::Acquire), clock.now());
            if due <= now {
                return;
            }
            guard = if due == Nanos::MAX {
                self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
            } else {
                let limit = Duration::from_nanos(due - now);
                self.changed.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn an_earlier_deadline_wakes_the_sleeper() {
        let (alarm, clock) = (Arc::new(Alarm::new()), Arc::new(Clock::new()));
        alarm.begin();
        let sleeper = {
            let (alarm, clock) = (Arc::clone(&alarm), Arc::clone(&clock));
            std::thread::spawn(move || alarm.sleep(&clock, None))
        };
        alarm.at(Some(clock.now() + 1_000_000));
        sleeper.join().unwrap();
    }

    #[test]
    fn a_deadline_set_before_the_sleep_is_kept() {
        let (alarm, clock) = (Alarm::new(), Clock::new());
        alarm.begin();
        alarm.at(Some(1));
        alarm.sleep(&clock, Some(u64::MAX - 1));
        assert!(clock.now() >= 1);
    }
}
