//! Those who must agree on which pages hold code: the virtual CPUs of a guest.
//!
//! An engine that translates lets its code store without a look at marks, to pages that it has been *lent*
//! ([`GuestRam::lend`](crate::GuestRam::lend)): pages without watched code. When another one wants to watch code of
//! such a page, all must give it back first. So each member says when it is *inside*, where stores may be made that
//! look at no mark; who wants to watch asks all, calls those inside out, and waits until they are. It waits outside
//! itself, so two who do so at once do not wait for each other.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::barrier;

/// Looks at a member that is being waited for before the host's processor is left to others.
const SPINS: u32 = 200;

struct Member {
    call: Box<dyn Fn() + Send + Sync>,
    /// Stores may be made that look at no mark.
    inside: AtomicBool,
    /// How often it has been asked for the pages that hold code by now.
    asked: AtomicU64,
    /// How often it had been asked when it last gave them back.
    answered: AtomicU64,
}

impl Member {
    /// Waits until it is outside, or has been, since it was asked for the `nth` time.
    fn wait(&self, nth: u64) {
        let mut spins = 0;
        while self.inside.load(Ordering::Acquire) && self.answered.load(Ordering::Acquire) < nth {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// All members of one guest.
#[derive(Default)]
pub(crate) struct Members {
    list: RwLock<Vec<Arc<Member>>>,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("count", &self.list().len()).finish()
    }
}

impl Members {
    fn list(&self) -> RwLockReadGuard<'_, Vec<Arc<Member>>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page's mark has been set: when this returns, no store to it goes unnoticed that is not visible yet.
    /// `lent`: members may have been lent the page before.
    pub(crate) fn settle(&self, lent: bool) {
        let list = self.list();
        if lent {
            for member in list.iter() {
                member.asked.fetch_add(1, Ordering::AcqRel);
            }
        }
        if list.len() > 1 {
            // Behind it, every member either is seen inside, or sees on its way in that it has been asked; and the
            // stores of those who look at marks are visible, or will see this one.
            barrier::everywhere();
        }
        if !lent {
            return;
        }
        let inside = list.iter().filter(|member| member.inside.load(Ordering::Acquire));
        let called: Vec<_> = inside.map(|member| (member, member.asked.load(Ordering::Acquire))).collect();
        for (member, _) in &called {
            (member.call)();
        }
        for (member, nth) in called {
            member.wait(nth);
        }
    }

    /// Code has been written to: calls everyone, for they may have copies.
    pub(crate) fn code_written(&self) {
        for member in self.list().iter() {
            (member.call)();
        }
    }
}

/// One virtual CPU's place among those of its guest, given up when dropped.
pub struct Membership {
    member: Arc<Member>,
    members: Arc<Members>,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").finish_non_exhaustive()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.leave();
        let mut list = self.members.list.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|member| !Arc::ptr_eq(member, &self.member));
    }
}

impl Membership {
    pub(crate) fn new(members: &Arc<Members>, call: Box<dyn Fn() + Send + Sync>) -> Self {
        barrier::prepare();
        let (asked, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        let member = Arc::new(Member { call, inside: AtomicBool::new(false), asked, answered });
        members.list.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&member));
        Self { member, members: Arc::clone(members) }
    }

    /// Goes inside, where [lent](crate::GuestRam::lend) pages may be stored to. False, and still outside: some of
    /// them have been asked for, and must be [given back](Self::give_back) first. Inside, no code may be
    /// [watched](crate::GuestRam::watch_code), and a call must be answered by [leaving](Self::leave) soon.
    #[inline]
    #[must_use]
    pub fn enter(&self) -> bool {
        let member = &*self.member;
        member.inside.store(true, Ordering::Relaxed);
        // The processor may exchange the two; whoever asks has a barrier for that.
        compiler_fence(Ordering::SeqCst);
        if member.asked.load(Ordering::Acquire) == member.answered.load(Ordering::Relaxed) {
            return true;
        }
        self.leave();
        false
    }

    /// Goes outside.
    #[inline]
    pub fn leave(&self) {
        self.member.inside.store(false, Ordering::Release);
    }

    /// Answers all that was asked: `forget` must forget every lent page that [is
    /// watched](crate::GuestRam::is_watched) by now.
    pub fn give_back(&self, forget: impl FnOnce()) {
        let asked = self.member.asked.load(Ordering::Acquire);
        forget();
        self.member.answered.store(asked, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn member(members: &Arc<Members>, calls: &Arc<AtomicUsize>) -> Membership {
        let calls = Arc::clone(calls);
        let call = move || {
            calls.fetch_add(1, Ordering::Relaxed);
        };
        Membership::new(members, Box::new(call))
    }

    #[test]
    fn nobody_waits_for_those_outside() {
        let (members, calls) = (Arc::default(), Arc::default());
        let (a, _b) = (member(&members, &calls), member(&members, &calls));
        members.settle(true);
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        assert!(!a.enter(), "it has been asked");
        a.give_back(|| ());
        assert!(a.enter());
        a.leave();
    }

    #[test]
    fn who_is_inside_is_called_out_and_waited_for() {
        let (members, calls) = (Arc::default(), Arc::default());
        let (a, _b) = (member(&members, &calls), member(&members, &calls));
        let out = AtomicBool::new(false);
        assert!(a.enter());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while calls.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                out.store(true, Ordering::Relaxed);
                a.leave();
            });
            members.settle(true);
            assert!(out.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn the_barrier_returns() {
        barrier::prepare();
        barrier::everywhere();
    }
}
