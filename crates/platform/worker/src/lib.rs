//! The threads that serve devices.
//!
//! A virtual CPU that notifies a device sets a bit and, if the thread may sleep, wakes it. The thread waits in one
//! event loop (`mio`) for that and for whatever of the host its device deals with. A thread that is paused takes nothing
//! on: what it is notified of meanwhile, and what becomes ready, it finds when it goes on.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Registry, Token, Waker};

/// What one thread does for its device. Nothing in it waits for anything but the host's storage.
pub trait Handler: Send {
    /// Registers what is to be watched, with any tokens but `usize::MAX`.
    fn start(&mut self, registry: &Registry) -> io::Result<()> {
        let _ = registry;
        Ok(())
    }

    /// The driver has told of something in queue `queue`. Whether there is more to do, for which this is called again
    /// after others have had their turn.
    fn queue(&mut self, queue: usize) -> bool;

    /// Something watched is ready. Readiness is told once: what is not used up must be remembered.
    fn ready(&mut self, token: Token, registry: &Registry) {
        let _ = (token, registry);
    }

    /// Anything else: called after each round, and after [`Bell::ring`]. Whether there is more to do.
    fn round(&mut self, registry: &Registry) -> bool {
        let _ = registry;
        false
    }

    /// The device has been reset: nothing of what the driver had set up is left.
    fn reset(&mut self) {}
}

/// Tokens from here on belong to the event loop.
const MAX_TOKEN: usize = usize::MAX;
const WAKER: Token = Token(MAX_TOKEN);

/// Wakes the thread.
#[derive(Debug)]
pub struct Bell {
    /// Queues that have been notified, one bit each.
    queues: AtomicU64,
    waker: Waker,
    /// Whether the thread sleeps, or is about to.
    asleep: AtomicBool,
    ended: AtomicBool,
}

impl Bell {
    /// Notifies a queue.
    pub fn notify(&self, queue: usize) {
        self.queues.fetch_or(1 << (queue & 63), Ordering::SeqCst);
        self.ring();
    }

    /// Has the handler look around.
    pub fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // It fails only if the thread is gone.
            let _ = self.waker.wake();
        }
    }
}

/// One thread and its handler.
#[derive(Debug)]
pub struct Worker {
    bell: Arc<Bell>,
    handler: HandlerCell,
    thread: Option<JoinHandle<()>>,
}

/// The handler, which the thread shares with those who reset it or have it pause.
#[derive(Clone)]
struct HandlerCell(Arc<Shared>);

struct Shared {
    handler: Mutex<Box<dyn Handler>>,
    /// Looked at with the handler's lock held. Set without it, so that a thread that takes it again and again stops.
    is_paused: AtomicBool,
    /// The thread need not pause any more.
    goes_on: Condvar,
}

impl std::fmt::Debug for HandlerCell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handler")
    }
}

impl HandlerCell {
    fn new(handler: Box<dyn Handler>) -> Self {
        let (handler, is_paused) = (Mutex::new(handler), AtomicBool::new(false));
        Self(Arc::new(Shared { handler, is_paused, goes_on: Condvar::new() }))
    }

    /// The thread holds this for a whole round.
    fn lock(&self) -> MutexGuard<'_, Box<dyn Handler>> {
        self.0.handler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's own: waits as long as it is paused, or until it is to end.
    fn lock_for_round(&self, ended: &AtomicBool) -> MutexGuard<'_, Box<dyn Handler>> {
        let mut handler = self.lock();
        while self.0.is_paused.load(Ordering::SeqCst) && !ended.load(Ordering::SeqCst) {
            handler = self.0.goes_on.wait(handler).unwrap_or_else(PoisonError::into_inner);
        }
        handler
    }
}

impl Worker {
    /// Starts the thread.
    pub fn start(name: String, make: impl FnOnce(Arc<Bell>) -> Box<dyn Handler>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (queues, asleep, ended) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let bell = Arc::new(Bell { queues, waker, asleep, ended });
        let mut handler = make(Arc::clone(&bell));
        handler.start(poll.registry())?;
        let handler = HandlerCell::new(handler);
        let (loop_bell, loop_handler) = (Arc::clone(&bell), handler.clone());
        let work = move || keep_serving(poll, &loop_bell, &loop_handler);
        let thread = Some(thread::Builder::new().name(name).spawn(work)?);
        Ok(Self { bell, handler, thread })
    }

    /// What wakes the thread.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Waits until the thread has finished what it is at.
    pub fn settle(&self) {
        drop(self.handler.lock());
    }

    /// Waits until the thread sleeps, with nothing left to do, but not past `deadline`.
    pub fn finish(&self, deadline: Instant) {
        const OFTEN: Duration = Duration::from_micros(200);
        let bell = &self.bell;
        let is_busy = || !bell.asleep.load(Ordering::SeqCst) || bell.queues.load(Ordering::SeqCst) != 0;
        while is_busy() && Instant::now() < deadline {
            thread::sleep(OFTEN);
        }
    }

    /// Has the thread do nothing more until [`resume`](Self::resume). Returns when it has finished what it is at. A reset
    /// is carried out all the same.
    pub fn pause(&self) {
        self.handler.0.is_paused.store(true, Ordering::SeqCst);
        self.settle();
    }

    /// Lets the thread go on after a [pause](Self::pause).
    pub fn resume(&self) {
        if self.handler.0.is_paused.swap(false, Ordering::SeqCst) {
            // If the thread has seen that it is paused, it waits by now.
            self.settle();
            self.handler.0.goes_on.notify_all();
        }
    }

    /// Resets the handler, when the thread has finished what it is at.
    pub fn reset(&self) {
        self.handler.lock().reset();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.bell.ended.store(true, Ordering::SeqCst);
        let _ = self.bell.waker.wake();
        self.resume();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn keep_serving(mut poll: Poll, bell: &Bell, handler: &HandlerCell) {
    let mut events = Events::with_capacity(64);
    let mut more = false;
    loop {
        // Asleep from before the last look at what is to be done, so that whoever adds to it knows to wake.
        bell.asleep.store(!more, Ordering::SeqCst);
        let busy = more || bell.queues.load(Ordering::SeqCst) != 0;
        let patience = busy.then_some(Duration::ZERO);
        if let Err(error) = poll.poll(&mut events, patience)
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::error!(%error, "a device's event loop failed; the device is dead");
            return;
        }
        bell.asleep.store(false, Ordering::SeqCst);
        let mut handler = handler.lock_for_round(&bell.ended);
        if bell.ended.load(Ordering::SeqCst) {
            return;
        }
        for event in &events {
            if event.token() != WAKER {
                handler.ready(event.token(), poll.registry());
            }
        }
        more = false;
        let mut queues = bell.queues.swap(0, Ordering::SeqCst);
        while queues != 0 {
            let queue = queues.trailing_zeros();
            queues &= queues - 1;
            if handler.queue(queue as usize) {
                bell.queues.fetch_or(1 << queue, Ordering::SeqCst);
                more = true;
            }
        }
        more |= handler.round(poll.registry());
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
