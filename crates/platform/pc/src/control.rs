//! What ends a run: the guest, a fault, or somebody outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use posada_devices::acpi_pm::PowerRequest;
use posada_vcpu::x86::State;

use crate::Error;

/// A reason for all processors to stop.
#[derive(Debug)]
pub(crate) enum Request {
    Stop,
    PowerOff,
    Reset,
    DebugExit(u8),
    TripleFault { cpu: u32, state: Box<State> },
    Failed(Error),
}

impl From<PowerRequest> for Request {
    fn from(request: PowerRequest) -> Self {
        match request {
            PowerRequest::Off => Self::PowerOff,
            PowerRequest::Reset => Self::Reset,
        }
    }
}

/// The first request made, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Control {
    request: Mutex<Option<Request>>,
    made: Condvar,
    /// Whether there is one: what processors look at.
    pending: AtomicBool,
    pause: Pause,
}

/// Keeps processors from running for a while.
#[derive(Debug, Default)]
struct Pause {
    wanted: AtomicBool,
    /// How many processors stand still.
    standing: Mutex<u32>,
    changed: Condvar,
}

/// How long a processor that stands still goes without looking whether it is asked something.
const LOOK: Duration = Duration::from_millis(50);

impl Control {
    fn lock(&self) -> MutexGuard<'_, Option<Request>> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request, unless one waits already: what happened first counts. Only a reset, after which the
    /// machine would go on, gives way to what ends it.
    pub(crate) fn request(&self, request: Request) {
        let mut first = self.lock();
        if matches!(*first, None | Some(Request::Reset)) {
            *first = Some(request);
        }
        self.pending.store(true, Ordering::Release);
        self.made.notify_all();
    }

    /// Whether a request waits.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Sleeps until there is a request.
    pub(crate) fn wait(&self) {
        let mut request = self.lock();
        while request.is_none() {
            request = self.made.wait(request).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether processors are to stand still.
    pub(crate) fn is_pause_wanted(&self) -> bool {
        self.pause.wanted.load(Ordering::Acquire)
    }

    /// Wants a pause, or wants it no more.
    pub(crate) fn want_pause(&self, wanted: bool) {
        let standing = self.pause.standing.lock().unwrap_or_else(PoisonError::into_inner);
        self.pause.wanted.store(wanted, Ordering::Release);
        drop(standing);
        self.pause.changed.notify_all();
    }

    /// Waits, while a pause is wanted and the run goes on, until so many processors stand still; whether they do.
    pub(crate) fn wait_for_standing(&self, cpus: u32) -> bool {
        let mut standing = self.pause.standing.lock().unwrap_or_else(PoisonError::into_inner);
        while *standing < cpus && self.is_pause_wanted() && !self.is_pending() {
            standing =
                self.pause.changed.wait_timeout(standing, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        *standing >= cpus
    }

    /// A processor stands still as long as a pause is wanted, and does `meanwhile` now and then.
    pub(crate) fn stand_still(&self, mut meanwhile: impl FnMut()) {
        let mut standing = self.pause.standing.lock().unwrap_or_else(PoisonError::into_inner);
        *standing += 1;
        self.pause.changed.notify_all();
        while self.is_pause_wanted() && !self.is_pending() {
            drop(standing);
            meanwhile();
            standing = self.pause.standing.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_pause_wanted() && !self.is_pending() {
                standing =
                    self.pause.changed.wait_timeout(standing, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        *standing -= 1;
    }

    /// Takes the request, so that the machine can run again.
    pub(crate) fn take(&self) -> Option<Request> {
        let mut request = self.lock();
        self.pending.store(false, Ordering::Release);
        request.take()
    }
}
