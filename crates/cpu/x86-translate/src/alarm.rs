//! How other threads make translated code look up: the *alarm*, which lies where `rsp` leads.
//!
//! A jump back within its page looks at a flag. All other ways by which code could go round for ever compare something anyway:
//! a link its epoch, and a look into a table of jumps the target ([`crate::jumps`]). So they need not look at the flag
//! as well: when the alarm rings, the epochs that links are compared with, and the masks by which tables are looked into, come to be
//! such that nothing is found. What is not found is a stub's, and stubs look at the flag.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use crate::context::BELOW;
use crate::jumps;

/// An epoch that never is.
pub(crate) const NO_EPOCH: u32 = u32::MAX;

/// What others change while translated code runs.
#[repr(C)]
pub(crate) struct Alarm {
    /// Not zero: somebody wants the dispatcher to look up.
    attention: AtomicU32,
    /// The context's epochs, the user's first, or [`NO_EPOCH`].
    epochs: [AtomicU32; 2],
    /// [`jumps::mask`], for other tables and for the largest; or none.
    masks: [AtomicU32; 2],
}

/// Where the flag is, from the context.
pub(crate) const ATTENTION: i32 = -BELOW + offset_of!(Alarm, attention) as i32;

/// Where the epoch is that a view's links are compared with, from the context.
pub(crate) fn epoch_offset(view: u8) -> i32 {
    -BELOW + (offset_of!(Alarm, epochs) + 4 * jumps::epoch(view)) as i32
}

/// Where the mask for a table is, from the context.
pub(crate) fn mask_offset(table: usize) -> i32 {
    -BELOW + (offset_of!(Alarm, masks) + 4 * usize::from(table == jumps::NOTED_TABLE)) as i32
}

impl Alarm {
    /// Makes translated code look up, soon. For any thread.
    pub(crate) fn ring(&self) {
        self.attention.store(1, Ordering::Release);
        self.put(NO_EPOCH, NO_EPOCH, |_| 0);
    }

    /// Whether it has rung since [`answer`](Self::answer).
    pub(crate) fn has_rung(&self) -> bool {
        self.attention.load(Ordering::Acquire) != 0
    }

    /// Whoever rang will be listened to now; who rings from now on is heard again.
    pub(crate) fn answer(&self, epochs: [u32; 2]) {
        self.attention.swap(0, Ordering::SeqCst);
        self.set(epochs);
    }

    /// Lets links of these epochs, and all tables, be followed, unless it has rung.
    pub(crate) fn set(&self, [users, supervisors]: [u32; 2]) {
        self.put(users, supervisors, jumps::mask);
        // Who rings sets the flag first: if it is not seen here, the rest comes after this.
        fence(Ordering::SeqCst);
        if self.has_rung() {
            self.ring();
        }
    }

    fn put(&self, users: u32, supervisors: u32, mask: impl Fn(usize) -> u32) {
        const OTHER: usize = 0;
        const { assert!(OTHER != jumps::NOTED_TABLE) };
        let values = [users, supervisors, mask(OTHER), mask(jumps::NOTED_TABLE)];
        for (place, value) in self.epochs.iter().chain(&self.masks).zip(values) {
            place.store(value, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_rung_is_heard_until_the_answer_whatever_is_set_meanwhile() {
        let alarm = Alarm { attention: 0.into(), epochs: [0.into(), 0.into()], masks: [0.into(), 0.into()] };
        let links = || alarm.epochs.each_ref().map(|epoch| epoch.load(Ordering::Relaxed));
        let tables = || alarm.masks.each_ref().map(|mask| mask.load(Ordering::Relaxed));
        let all = [jumps::mask(0), jumps::mask(jumps::NOTED_TABLE)];
        alarm.set([1, 2]);
        assert_eq!((links(), tables(), alarm.has_rung()), ([1, 2], all, false));
        alarm.ring();
        alarm.set([3, 4]);
        assert_eq!((links(), tables(), alarm.has_rung()), ([NO_EPOCH; 2], [0; 2], true));
        alarm.answer([3, 4]);
        assert_eq!((links(), tables(), alarm.has_rung()), ([3, 4], all, false));
    }
}
