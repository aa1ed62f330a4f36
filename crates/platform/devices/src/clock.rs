//! Guest time and the frequencies that are counted from it.
//!
//! Every device is told the time; none reads a clock. All conversions are exact integer arithmetic: a counter
//! of any frequency is the floor of nanoseconds times hertz over 10⁹, so two readings never disagree and no
//! rounding accumulates however long a guest runs.

use serde::{Deserialize, Serialize};

/// Nanoseconds of guest clock, counted from the moment when the machine was switched on. It never goes back, but
/// threads that asked for the time one after the other may tell it in the other order: devices bear that.
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// The highest frequency at which a second's ticks times a second's nanoseconds fit 64 bits: 18 GHz.
const MAX_NARROW_HZ: u64 = u64::MAX / SECOND;

/// Whole ticks of a counter of `hz` since guest time 0 (saturating at `u64::MAX`).
pub fn ticks(now: Nanos, hz: u64) -> u64 {
    if hz > MAX_NARROW_HZ {
        return saturate(u128::from(now) * u128::from(hz) / u128::from(SECOND));
    }
    // Whole seconds give whole ticks, so only the rest is divided, and in 64 bits: guests read clocks often.
    (now / SECOND).saturating_mul(hz).saturating_add(now % SECOND * hz / SECOND)
}

/// The first moment at which [`ticks`] of `hz` has reached `count` (saturating at `u64::MAX`; so it does for a
/// counter of 0 Hz, which never gets there).
pub fn time_of_tick(count: u64, hz: u64) -> Nanos {
    if count == 0 {
        return 0;
    }
    if hz == 0 {
        return Nanos::MAX;
    }
    if hz > MAX_NARROW_HZ {
        return saturate((u128::from(count) * u128::from(SECOND)).div_ceil(u128::from(hz)));
    }
    (count / hz).saturating_mul(SECOND).saturating_add((count % hz * SECOND).div_ceil(hz))
}

fn saturate(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// The time stamp counter: a frequency, and an offset that a guest's write to IA32_TSC or IA32_TSC_ADJUST moves.
///
/// ```
/// use posada_devices::TscClock;
///
/// let mut tsc = TscClock::new(2_000_000_000);
/// assert_eq!(tsc.read(500), 1_000);
/// tsc.write(500, 0); // wrmsr(IA32_TSC, 0)
/// assert_eq!(tsc.read(600), 200);
/// assert_eq!(tsc.time_of(200), Some(600));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscClock {
    /// Frequency in hertz; constant and non-stop.
    pub hz: u64,
    /// What is added to the ticks since guest time 0, modulo 2⁶⁴.
    pub offset: u64,
}

impl TscClock {
    /// A counter that stood at 0 at guest time 0.
    pub fn new(hz: u64) -> Self {
        Self { hz, offset: 0 }
    }

    /// The counter's value at `now`.
    pub fn read(&self, now: Nanos) -> u64 {
        ticks(now, self.hz).wrapping_add(self.offset)
    }

    /// Makes the counter read `value` at `now`.
    pub fn write(&mut self, now: Nanos, value: u64) {
        self.offset = value.wrapping_sub(ticks(now, self.hz));
    }

    /// The first moment at which the counter has reached `value`; 0 if it stood above it from the beginning, and
    /// `None` if no guest lives that long.
    pub fn time_of(&self, value: u64) -> Option<Nanos> {
        // The offset is a signed displacement: a guest that set its counter back has a "negative" one.
        let count = i128::from(value) - i128::from(self.offset.cast_signed());
        if count <= 0 {
            return Some(0);
        }
        let at = time_of_tick(u64::try_from(count).ok()?, self.hz);
        (at != Nanos::MAX).then_some(at)
    }
}

#[cfg(test)]
#[path = "clock_test.rs"]
mod tests;
