//! What an engine is at, for those who want to know where the time goes.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Kinds of work that an engine tells apart, at most.
const KINDS: usize = 16;

/// What a virtual CPU is at now, told by it with one store each time, and counted by whoever [looks](Self::look) now
/// and then from another thread. So the time of each kind of work is known from samples, and no clock is read where
/// the guest runs.
#[derive(Debug)]
pub struct Activity {
    now: AtomicU8,
    names: &'static [&'static str],
    seen: [AtomicU64; KINDS],
}

impl Activity {
    /// For kinds of work with these names, 16 at most (it panics). The first is what it is at to begin with.
    pub fn new(names: &'static [&'static str]) -> Self {
        assert!((1..=KINDS).contains(&names.len()), "so many kinds of work cannot be told apart");
        Self { now: AtomicU8::new(0), names, seen: [const { AtomicU64::new(0) }; KINDS] }
    }

    /// From now on it is at the work of this number, which must be that of a name; returns what it was at.
    #[inline(always)]
    pub fn set(&self, kind: u8) -> u8 {
        // One thread writes, so that this need be no exchange.
        let before = self.now.load(Ordering::Relaxed);
        self.now.store(kind, Ordering::Relaxed);
        before
    }

    /// Counts what it is at.
    pub fn look(&self) {
        let now = usize::from(self.now.load(Ordering::Relaxed));
        self.seen[now % KINDS].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was seen at each kind of work.
    pub fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.names.iter().zip(&self.seen).map(|(name, seen)| (*name, seen.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_count_what_it_is_at() {
        let activity = Activity::new(&["waiting", "working"]);
        activity.look();
        assert_eq!(activity.set(1), 0);
        activity.look();
        activity.look();
        assert_eq!(activity.seen().collect::<Vec<_>>(), [("waiting", 1), ("working", 2)]);
    }
}
