//! What ends a run: the guest, a fault, or somebody outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

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
}

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

    /// Takes the request, so that the machine can run again.
    pub(crate) fn take(&self) -> Option<Request> {
        let mut request = self.lock();
        self.pending.store(false, Ordering::Release);
        request.take()
    }
}
