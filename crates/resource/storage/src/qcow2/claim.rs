//! Who is changing how which clusters are mapped.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Ranges of clusters of the disk that requests have claimed.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    ranges: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// A claim; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    range: Range<u64>,
}

impl Claims {
    /// Waits until nobody else has claimed any of `range`, and claims it. Whoever has a claim must not wait for another.
    pub(crate) fn claim(&self, range: Range<u64>) -> Claim<'_> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        while ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
            ranges = self.released.wait(ranges).unwrap_or_else(PoisonError::into_inner);
        }
        ranges.push(range.clone());
        Claim { claims: self, range }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut ranges = self.claims.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(at);
        }
        drop(ranges);
        self.claims.released.notify_all();
    }
}
