//! Those who are connected to a control socket: so many at most, and nobody keeps others out by saying nothing.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::protocol::{Answer, line};

/// How many may be silent at once, and for how many at once something is done.
const CLIENTS: usize = 32;

/// How many threads there are at most: those of clients, and of some who have been put out and have yet to end.
const THREADS: usize = 3 * CLIENTS;

/// All who are connected. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Debug, Default)]
struct Inner {
    /// Those who have not said yet what they want, the first to connect first.
    silent: VecDeque<Arc<UnixStream>>,
    /// For how many something is done.
    busy: usize,
    threads: usize,
}

/// One who is connected.
#[derive(Debug)]
pub(crate) struct Connected {
    clients: Clients,
    stream: Arc<UnixStream>,
    is_busy: bool,
}

/// Why nothing is done for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was put out while it said nothing, and has been told so.
    PutOut,
    /// Too much is being done already.
    Busy,
}

/// What those are told for whom there is no room.
pub(crate) fn no_room() -> Vec<u8> {
    let problem = "too many programs control this guest at once; try again later".to_owned();
    line(&Answer::Refused { problem })
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in who has just connected. Whoever has been silent for longest makes room.
    pub(crate) fn enter(&self, stream: UnixStream) -> Connected {
        let stream = Arc::new(stream);
        let mut inner = self.lock();
        while inner.threads >= THREADS {
            // Those who were put out have nothing left to do but to end.
            inner = self.0.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.silent.len() >= CLIENTS
            && let Some(oldest) = inner.silent.pop_front()
        {
            // It has been sent nothing before: there is room for this, and it need not read it.
            let _ = (&*oldest).write_all(&no_room());
            let _ = oldest.shutdown(Shutdown::Both);
        }
        inner.silent.push_back(Arc::clone(&stream));
        inner.threads += 1;
        Connected { clients: self.clone(), stream, is_busy: false }
    }
}

impl Connected {
    /// Its socket.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// It has said what it wants: whether that is to be done. If so, this counts until it is dropped.
    pub(crate) fn begin(&mut self) -> Result<(), Refusal> {
        let mut inner = self.clients.lock();
        let place = inner.silent.iter().position(|other| Arc::ptr_eq(other, &self.stream));
        place.and_then(|place| inner.silent.remove(place)).ok_or(Refusal::PutOut)?;
        if inner.busy >= CLIENTS {
            return Err(Refusal::Busy);
        }
        inner.busy += 1;
        self.is_busy = true;
        Ok(())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut inner = self.clients.lock();
        inner.silent.retain(|other| !Arc::ptr_eq(other, &self.stream));
        inner.busy -= usize::from(self.is_busy);
        inner.threads -= 1;
        drop(inner);
        self.clients.0.1.notify_all();
    }
}

#[cfg(test)]
#[path = "clients_test.rs"]
mod tests;
