//! A supervisor's end of the control socket.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use posada_pc::{CardUse, DiskUse, Handle, Port};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clients::{Clients, Connected, Refusal, no_room};
use crate::console::Console;
use crate::entry::{CONTROL, Entry};
use crate::error::{Error, Result};
use crate::protocol::{Answer, Balloon, Disk, Network, Request, Stats, Status, line, parse, read_line};
use crate::short_path;

/// How long one who connects may take to say what it wants, or to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server controls.
#[derive(Clone)]
pub struct Machine {
    /// The machine.
    pub handle: Handle,
    /// What it says.
    pub console: Console,
    /// Asks the guest to end.
    pub stop: Arc<dyn Fn() + Send + Sync>,
    /// Ends the run.
    pub kill: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// Takes requests until it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: Arc<UnixListener>,
    console: Console,
}

impl Server {
    /// Starts to take requests for this machine.
    ///
    /// # Errors
    /// [`Error::Io`] if the socket or a thread cannot be made.
    pub fn start(entry: &Entry, machine: Machine) -> Result<Self> {
        let path = entry.folder().join(CONTROL);
        let failed = Error::io("make the socket", &path);
        let console = machine.console.clone();
        let start = || {
            let (path, _folder) = short_path(entry.folder(), CONTROL)?;
            let listener = Arc::new(UnixListener::bind(path)?);
            let served = Arc::clone(&listener);
            thread::Builder::new().name("control".into()).spawn(move || accept(&served, &machine))?;
            Ok(listener)
        };
        match start() {
            Ok(listener) => Ok(Self { listener, console }),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(failed(error))
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        self.console.end();
    }
}

fn accept(listener: &UnixListener, machine: &Machine) {
    let clients = Clients::default();
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            // Shut down.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => return,
            Err(error) => {
                tracing::warn!(%error, "the control socket");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if !is_own(&stream) {
            tracing::warn!("somebody else's program asked for control");
            continue;
        }
        let (mut client, machine) = (clients.enter(stream), machine.clone());
        let work = move || {
            if let Err(error) = serve(&mut client, &machine) {
                tracing::debug!(%error, "a control connection");
            }
        };
        if let Err(error) = thread::Builder::new().name("controlled".into()).spawn(work) {
            tracing::warn!(%error, "cannot serve a control connection");
        }
    }
}

/// Whether the other end is this user's, or root's.
fn is_own(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|other| other.uid == own || other.uid.is_root())
}

fn serve(client: &mut Connected, machine: &Machine) -> std::io::Result<()> {
    client.stream().set_read_timeout(Some(PATIENCE))?;
    client.stream().set_write_timeout(Some(PATIENCE))?;
    let asked = read_line(client.stream())?;
    let begun = client.begin();
    let mut stream = client.stream();
    match begun {
        Ok(()) => {}
        Err(Refusal::PutOut) => return Ok(()),
        Err(Refusal::Busy) => return stream.write_all(&no_room()),
    }
    let request = match parse::<Request>(&asked) {
        Ok(request) => request,
        Err(problem) => return stream.write_all(&line(&Answer::Refused { problem })),
    };
    tracing::debug!(?request, "asked");
    let handle = &machine.handle;
    let answer = match request {
        Request::Status => {
            let (paused, guest_time) = (handle.is_paused(), handle.guest_time().as_secs_f64());
            Answer::Status(Status { paused, guest_time })
        }
        Request::Stop => {
            // A guest that stands still would hear nothing.
            handle.resume();
            (machine.stop)();
            Answer::Done
        }
        Request::Kill => {
            (machine.kill)();
            Answer::Done
        }
        Request::Pause if handle.pause() => Answer::Done,
        Request::Pause => Answer::Refused { problem: "it is about to end".to_owned() },
        Request::Resume => {
            handle.resume();
            Answer::Done
        }
        Request::Stats => Answer::Stats(stats(handle)),
        Request::Balloon { bytes } => match handle.set_balloon(bytes) {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Refused { problem: error.to_string() },
        },
        Request::Console => match machine.console.look() {
            Some((kept, said)) => {
                stream.write_all(&line(&Answer::Done))?;
                return join_console(stream, machine, &kept, &said);
            }
            None => Answer::Refused { problem: "too many look on already".to_owned() },
        },
    };
    stream.write_all(&line(&answer))
}

fn stats(handle: &Handle) -> Stats {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Stats {
        paused: handle.is_paused(),
        guest_time: handle.guest_time().as_secs_f64(),
        cpu_time: used.tv_sec as f64 + used.tv_nsec as f64 / 1e9,
        memory: resident_memory().unwrap_or(0),
        processors: handle.reports().unwrap_or_default(),
        disks: handle.disks().into_iter().map(disk).collect(),
        networks: handle.cards().into_iter().map(network).collect(),
        balloon: handle.balloon().map(|used| Balloon { target: used.target, actual: used.actual }),
    }
}

fn disk(used: DiskUse) -> Disk {
    let counts = used.counts;
    Disk {
        serial: used.serial,
        reads: counts.reads,
        read_bytes: counts.read_bytes,
        writes: counts.writes,
        written_bytes: counts.written_bytes,
        flushes: counts.flushes,
        discards: counts.discards,
        discarded_bytes: counts.discarded_bytes,
        errors: counts.errors,
    }
}

fn network(used: CardUse) -> Network {
    Network {
        address: used.address.map(|byte| format!("{byte:02x}")).join(":"),
        sent_packets: used.sent.packets,
        sent_bytes: used.sent.bytes,
        received_packets: used.received.packets,
        received_bytes: used.received.bytes,
    }
}

/// Bytes of memory that this process occupies (proc(5), statm, the second figure, in pages).
fn resident_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// Passes the console's bytes both ways until either side has had enough.
fn join_console(
    stream: &UnixStream,
    machine: &Machine,
    kept: &[u8],
    said: &Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(None)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = (&*stream).read(&mut buffer) {
                if machine.handle.send_serial(Port::Com1, &buffer[..count]).is_err() {
                    return;
                }
            }
        });
        let result = show_console(stream, kept, said);
        let _ = stream.shutdown(Shutdown::Both);
        result
    })
}

fn show_console(mut stream: &UnixStream, kept: &[u8], said: &Receiver<Vec<u8>>) -> std::io::Result<()> {
    stream.write_all(kept)?;
    loop {
        match said.recv_timeout(Duration::from_secs(1)) {
            Ok(bytes) => stream.write_all(&bytes)?,
            Err(RecvTimeoutError::Timeout) if is_gone(stream) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Whether the other end is closed; one that only sends no more is not.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
