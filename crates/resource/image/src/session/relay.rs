//! Wires a session's [`Host`] to three streams and the guest's port.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::host::{Ending, Event, Host, ProtocolError, Stream};
use super::spec::Size;
use super::wire;

/// The host's streams that become the command's.
pub struct Streams {
    /// Read until its end. `None` is empty.
    pub stdin: Option<Box<dyn Read + Send>>,
    /// Gets the command's standard output, flushed after every piece.
    pub stdout: Box<dyn Write + Send>,
    /// Gets the command's standard error, flushed after every piece.
    pub stderr: Box<dyn Write + Send>,
}

impl Streams {
    /// This process's own standard streams.
    pub fn inherit() -> Self {
        Self {
            stdin: Some(Box::new(io::stdin())),
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }
}

/// A running relay. Its threads end after [`finish`](Self::finish).
///
/// The guest's port gives its bytes to the [`PortWriter`] and gets its bytes from the function passed to
/// [`start`](Self::start). Neither ever waits for the other, and a host stream that is slow, or a command that does not
/// read, makes only its own stream wait.
pub struct Relay {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<io::Result<()>>>,
    pump: JoinHandle<()>,
}

/// Where the guest's port writes its bytes.
///
/// It never blocks and never fails; bytes that are no session are remembered and reported by [`Relay::finish`].
pub struct PortWriter {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    host: Host,
    /// Output that waits for its writer: at most a window each, or two after a reboot.
    queues: [VecDeque<u8>; 2],
    /// The guest will send no more.
    over: bool,
    error: Option<ProtocolError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` has a value.
    fn wait_for<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return value;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Changes the state and wakes whoever waits for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }
}

impl Relay {
    /// Starts relaying. `to_guest` is called, from a thread of the relay's, with bytes for the guest's port, and may
    /// block until the port has room.
    pub fn start(
        streams: Streams,
        mut to_guest: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> (Self, PortWriter) {
        let state =
            State { host: Host::new(), queues: [VecDeque::new(), VecDeque::new()], over: false, error: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });

        let pump = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Some(bytes) = shared.wait_for(|state| match () {
                    () if state.over => Some(None),
                    () if state.host.has_output() => Some(Some(state.host.take_output())),
                    () => None,
                }) {
                    // Standard input may have waited for this.
                    shared.changed.notify_all();
                    if let Err(error) = to_guest(&bytes) {
                        tracing::debug!(%error, "the guest's port takes no more");
                        return;
                    }
                }
            }
        });
        match streams.stdin {
            // Not joined: a read from a terminal or a pipe cannot be called off.
            Some(stdin) => drop(thread::spawn({
                let shared = Arc::clone(&shared);
                move || pass_stdin(&shared, stdin)
            })),
            None => shared.change(|state| state.host.end_stdin()),
        }
        let writers = [(Stream::Stdout, streams.stdout), (Stream::Stderr, streams.stderr)];
        let writers = writers.map(|(stream, sink)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || pass_output(&shared, stream, sink))
        });
        (Self { shared: Arc::clone(&shared), writers: writers.into(), pump }, PortWriter { shared })
    }

    /// Gives the command's terminal a new size.
    pub fn resize(&self, size: Size) {
        self.shared.change(|state| state.host.resize(size));
    }

    /// Sends a signal to the command and its process group.
    pub fn signal(&self, signal: u8) {
        self.shared.change(|state| state.host.signal(signal));
    }

    /// Whether the guest's agent has reported for duty.
    pub fn is_ready(&self) -> bool {
        self.shared.lock().host.is_ready()
    }

    /// How the command ended, if it has. The guest powers itself off next.
    pub fn ending(&self) -> Option<Ending> {
        self.shared.lock().host.ending()
    }

    /// To be called when the guest has stopped: waits until all output is written and returns how the command ended;
    /// `None` if the guest stopped without a word on that.
    ///
    /// # Errors
    /// [`ProtocolError`], wrapped, if the guest sent bytes that are no session; otherwise what went wrong with writing
    /// to the host's streams, except that their reader went away.
    pub fn finish(self) -> io::Result<Option<Ending>> {
        self.shared.change(|state| state.over = true);
        let mut result = Ok(());
        for writer in self.writers {
            let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("a writer panicked")));
            result = result.and(written);
        }
        drop(self.pump);
        let state = self.shared.lock();
        match state.error {
            Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            None => result.map(|()| state.host.ending()),
        }
    }
}

impl Write for PortWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        let State { host, queues, error, .. } = &mut *state;
        // A port writes byte by byte: wake the others for a whole frame only.
        let mut news = false;
        let result = host.receive(bytes, &mut |event| {
            news = true;
            match event {
                Event::Stdout(bytes) => queues[0].extend(bytes),
                Event::Stderr(bytes) => queues[1].extend(bytes),
                _ => {}
            }
        });
        if let (Err(found), None) = (result, *error) {
            tracing::warn!(error = %found, "the session's channel is lost");
            *error = Some(found);
            news = true;
        }
        drop(state);
        if news {
            self.shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pass_stdin(shared: &Shared, mut stdin: Box<dyn Read + Send>) {
    let mut buffer = [0; wire::MAX_PAYLOAD];
    loop {
        let room = shared.wait_for(|state| match state.host.stdin_window() {
            _ if state.over || state.host.is_stdin_closed() => Some(0),
            0 => None,
            window => Some(window),
        });
        if room == 0 {
            return;
        }
        let room = room.min(buffer.len());
        match stdin.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => {
                shared.change(|state| state.host.send_stdin(&buffer[..count]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot read standard input; the guest's ends here");
                break;
            }
        }
    }
    shared.change(|state| state.host.end_stdin());
}

fn pass_output(shared: &Shared, stream: Stream, mut sink: Box<dyn Write + Send>) -> io::Result<()> {
    loop {
        let bytes: Vec<u8> = shared.wait_for(|state| {
            let queue = &mut state.queues[stream as usize];
            (!queue.is_empty() || state.over).then(|| std::mem::take(queue).into())
        });
        if bytes.is_empty() {
            return Ok(());
        }
        let written = sink.write_all(&bytes).and_then(|()| sink.flush());
        shared.change(|state| match &written {
            Ok(()) => state.host.consumed(stream, bytes.len()),
            Err(_) => state.host.close_output(stream),
        });
        match written {
            Ok(()) => {}
            // As in a shell's pipeline, a reader that has gone is the command's affair, not an error here.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "relay_test.rs"]
mod tests;
