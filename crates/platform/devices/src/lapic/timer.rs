//! The local APIC's timer: one-shot, periodic and TSC-deadline.

use super::TscClock;
use crate::clock::{Nanos, ticks, time_of_tick};
use serde::{Deserialize, Serialize};

/// The timer's mode, from bits 17 and 18 of its LVT entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TimerMode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: the timer stands.
    Reserved,
}

impl TimerMode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer's registers. Counts are not stepped but computed from the moment at which the initial count was
/// written, so a period never drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Frequency before the divider.
    hz: u64,
    pub(super) mode: TimerMode,
    /// The initial count register.
    pub(super) initial: u32,
    /// The divide configuration register.
    divide: u8,
    /// Undivided ticks since guest time 0 at which counting from `initial` began, or would have, had the divisor
    /// always been what it is.
    start: i64,
    /// Periods since `start` whose end has been accounted for.
    expired: u64,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    pub(super) deadline: u64,
}

impl Timer {
    pub(super) fn new(hz: u64) -> Self {
        Self { hz, mode: TimerMode::OneShot, initial: 0, divide: 0, start: 0, expired: 0, deadline: 0 }
    }

    /// The timer after a reset: the same, disarmed.
    pub(super) fn cleared(&self) -> Self {
        Self::new(self.hz)
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide.into()
    }

    /// The divisor: bits 0, 1 and 3 of the register are the exponent less one, modulo 8.
    fn divisor(&self) -> u64 {
        let bits = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((bits + 1) & 7)
    }

    /// Undivided ticks in a period.
    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// Undivided ticks since guest time 0.
    fn clock(&self, now: Nanos) -> i64 {
        i64::try_from(ticks(now, self.hz)).unwrap_or(i64::MAX)
    }

    /// Undivided ticks since counting began.
    fn elapsed(&self, now: Nanos) -> u64 {
        self.clock(now).saturating_sub(self.start).max(0).cast_unsigned()
    }

    pub(super) fn set_initial(&mut self, value: u32, now: Nanos) {
        self.initial = value;
        self.start = self.clock(now);
        self.expired = 0;
    }

    /// The current count register.
    pub(super) fn current(&self, now: Nanos) -> u32 {
        if self.initial == 0 {
            return 0;
        }
        let counted = self.elapsed(now) / self.divisor();
        match self.mode {
            TimerMode::OneShot => u64::from(self.initial).saturating_sub(counted) as u32,
            TimerMode::Periodic => self.initial - (counted % u64::from(self.initial)) as u32,
            TimerMode::TscDeadline | TimerMode::Reserved => 0,
        }
    }

    /// Changes the divisor; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, value: u32, now: Nanos) {
        let left = self.current(now);
        let running = self.initial != 0 && left != 0;
        self.divide = value as u8 & 0x0b;
        if running {
            let counted = u64::from(self.initial - left) * self.divisor();
            self.start = self.clock(now).saturating_sub_unsigned(counted);
            self.expired = 0;
        }
    }

    /// Changes the mode. Going to or from TSC-deadline mode disarms the timer; between the others it counts on.
    pub(super) fn set_mode(&mut self, mode: TimerMode, now: Nanos) {
        if mode == self.mode {
            return;
        }
        if mode == TimerMode::TscDeadline || self.mode == TimerMode::TscDeadline {
            self.initial = 0;
            self.deadline = 0;
        }
        self.mode = mode;
        if let Some(periods) = self.elapsed(now).checked_div(self.period()) {
            self.expired = self.expired.max(periods);
        }
    }

    /// Accounts for the time until `now`: whether the timer expired since it was last asked.
    pub(super) fn expire(&mut self, now: Nanos, tsc: TscClock) -> bool {
        match self.mode {
            TimerMode::OneShot | TimerMode::Periodic => {
                let Some(periods) = self.elapsed(now).checked_div(self.period()) else { return false };
                let periods = if self.mode == TimerMode::OneShot { periods.min(1) } else { periods };
                let expired = periods > self.expired;
                self.expired = self.expired.max(periods);
                expired
            }
            TimerMode::TscDeadline => {
                let expired = self.deadline != 0 && tsc.read(now) >= self.deadline;
                if expired {
                    self.deadline = 0;
                }
                expired
            }
            TimerMode::Reserved => false,
        }
    }

    /// When the timer next expires.
    pub(super) fn next_deadline(&self, tsc: TscClock) -> Option<Nanos> {
        match self.mode {
            TimerMode::OneShot if self.initial != 0 && self.expired == 0 => self.end_of_period(1),
            TimerMode::Periodic if self.initial != 0 => self.end_of_period(self.expired.checked_add(1)?),
            TimerMode::TscDeadline if self.deadline != 0 => tsc.time_of(self.deadline),
            _ => None,
        }
    }

    fn end_of_period(&self, count: u64) -> Option<Nanos> {
        let tick = self.period().checked_mul(count)?.checked_add_signed(self.start)?;
        let at = time_of_tick(tick, self.hz);
        (at != Nanos::MAX).then_some(at)
    }
}
