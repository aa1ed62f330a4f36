//! The console (virtio 1.2 §5.3): one port, bytes both ways.
//!
//! What the guest writes goes to a sink on the device's thread, which may block: the guest then waits for its buffers.
//! What is sent to the guest waits in a bounded queue until it provides buffers.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Bell, Chain, Device, Handler, Kind, Rings, Service};

const QUEUE_SIZE: u16 = 64;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// How much waits for the guest at most, in bytes.
const CAPACITY: usize = 64 << 10;
/// How much is passed on at once.
const PIECE: usize = 4096;
/// The configuration tells the size of the console (§5.3.3).
const SIZE: u64 = 1;

/// What is shared with those that send to the guest.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Waiting>,
    room: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    bell: Option<Arc<Bell>>,
    rings: Option<Arc<Rings>>,
    /// Columns and rows.
    size: (u16, u16),
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends to the guest's console. Clones send to the same one.
#[derive(Clone, Debug)]
pub struct Input(Arc<Shared>);

impl Input {
    /// Sends bytes, and waits while the guest is behind; false if the console is gone.
    pub fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let mut state = self.0.lock();
            while state.bytes.len() >= CAPACITY && !state.ended {
                state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.ended {
                return false;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CAPACITY - state.bytes.len()));
            state.bytes.extend(now);
            if let Some(bell) = &state.bell {
                bell.ring();
            }
            bytes = later;
        }
        true
    }

    /// Says how many columns and rows the terminal has.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut state = self.0.lock();
        state.size = (columns, rows);
        let rings = state.rings.clone();
        drop(state);
        if let Some(rings) = rings.filter(|rings| rings.is_active()) {
            rings.configuration_changed();
        }
    }
}

/// A console.
pub struct Console {
    shared: Arc<Shared>,
    output: Option<Box<dyn Write + Send>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Console {
    /// A console whose output goes to `output`.
    pub fn new(output: impl Write + Send + 'static) -> Self {
        Self { shared: Arc::default(), output: Some(Box::new(output)) }
    }

    /// The way to send to it.
    pub fn input(&self) -> Input {
        Input(Arc::clone(&self.shared))
    }
}

impl Device for Console {
    fn kind(&self) -> Kind {
        Kind { id: 3, class: [0x07, 0x80, 0], name: "console" }
    }

    fn features(&self) -> u64 {
        SIZE
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn configuration(&self) -> Vec<u8> {
        let (columns, rows) = self.shared.lock().size;
        // One port, and no register for emergencies.
        [&columns.to_le_bytes()[..], &rows.to_le_bytes(), &1_u32.to_le_bytes(), &[0; 4]].concat()
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let output = self.output.take().ok_or_else(|| io::Error::other("the console is in use already"))?;
        let (rings, shared) = (Arc::clone(rings), Arc::clone(&self.shared));
        shared.lock().rings = Some(Arc::clone(&rings));
        Ok(vec![Service::new([RECEIVE, TRANSMIT], move |bell| {
            shared.lock().bell = Some(bell);
            Port { rings, shared, output, is_waited_for: false }
        })])
    }
}

/// The thread of the port.
struct Port {
    rings: Arc<Rings>,
    shared: Arc<Shared>,
    output: Box<dyn Write + Send>,
    /// Whether the guest has no buffers, so that only its notification helps.
    is_waited_for: bool,
}

impl Port {
    /// Passes on what waits for the guest, as far as it has buffers.
    fn receive(&mut self) {
        let mut filled = false;
        while !self.shared.lock().bytes.is_empty() {
            let Ok(Some(mut chain)) = self.rings.pop(RECEIVE) else {
                if self.rings.listen(RECEIVE) {
                    continue;
                }
                self.is_waited_for = true;
                break;
            };
            let mut state = self.shared.lock();
            let len = (chain.writable() as usize).min(state.bytes.len()).min(PIECE);
            let bytes: Vec<u8> = state.bytes.drain(..len).collect();
            drop(state);
            self.shared.room.notify_all();
            // Buffers outside memory swallow what was for them.
            let _ = chain.write(&bytes);
            self.rings.push(RECEIVE, &chain);
            filled = true;
        }
        if filled {
            self.rings.signal(RECEIVE);
        }
    }

    fn transmit(&mut self) -> bool {
        let output = &mut self.output;
        let more = self.rings.serve(TRANSMIT, 64, |chain| write_out(chain, output));
        let _ = output.flush();
        more
    }
}

/// Writes out what a request holds. What the host does not take is lost, as on a line that nobody listens to.
fn write_out(chain: &mut Chain, output: &mut dyn Write) {
    let mut bytes = [0; PIECE];
    while chain.readable() != 0 {
        let part = &mut bytes[..(chain.readable() as usize).min(PIECE)];
        if chain.read(part).is_err() || output.write_all(part).is_err() {
            return;
        }
    }
}

impl Handler for Port {
    fn queue(&mut self, queue: usize) -> bool {
        if queue == TRANSMIT {
            return self.transmit();
        }
        self.is_waited_for = false;
        self.receive();
        false
    }

    fn round(&mut self, _registry: &mio::Registry) -> bool {
        if !self.is_waited_for && self.rings.is_active() {
            self.receive();
        }
        false
    }

    fn reset(&mut self) {
        self.is_waited_for = false;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.room.notify_all();
    }
}
