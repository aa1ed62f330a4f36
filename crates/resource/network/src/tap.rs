//! Tap: a network interface of the host whose frames are the guest's.
//!
//! Where the user has the rights. `ip tuntap add mode tap user NAME name tap0` gives a user one for good; who has
//! CAP_NET_ADMIN needs no such preparation. What it is joined to (a bridge, an address) is the host's affair.
//! Offloads pass both ways (Linux's `Documentation/networking/tuntap.rst`, `IFF_VNET_HDR`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use thiserror::Error;
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::header;
use crate::limit::{Port, Rates};
use crate::link::{Features, Link, MAX_FRAME, Packet};
use crate::wire;

/// The longest name of an interface (Linux's `IFNAMSIZ`, less the zero).
const MAX_NAME: usize = 15;
/// How many frames go one way before the other has its turn.
const TURN: usize = 64;

/// A tap that could not be opened.
#[derive(Debug, Error)]
pub enum Error {
    /// No name of an interface.
    #[error("{name:?} is no name of a network interface: 1 to 15 letters, digits, dots, dashes")]
    Name {
        /// What was given.
        name: String,
    },
    /// A right is missing.
    #[error(
        "cannot open the tap interface {name}: not permitted; it needs CAP_NET_ADMIN, or an interface that was made for \
         this user: ip tuntap add mode tap user $USER name {name}"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// The host has no taps, or not for us.
    #[error("cannot open /dev/net/tun for the tap interface {name}: {source}; {advice}")]
    Device {
        /// The interface.
        name: String,
        /// What can be done about it.
        advice: &'static str,
        /// What the host says.
        source: io::Error,
    },
    /// The host refuses what an event loop needs.
    #[error("cannot start a tap: {0}")]
    Host(#[from] io::Error),
}

impl Error {
    fn opening(name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        let advice = match Errno::from_io_error(&source) {
            Some(Errno::PERM) => return Self::Permission { name },
            Some(Errno::ACCESS) => "this user may not open it: its mode is usually 0666",
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "the host's kernel lacks the tun module, or a container has no such device"
            }
            Some(Errno::BUSY) => "another program, such as another guest, has it open",
            Some(Errno::INVAL) => "an interface of that name exists and is no tap, or has several queues",
            _ => "see ip tuntap",
        };
        Self::Device { name, advice, source }
    }
}

/// A running tap. It ends when it is dropped, or when the other end of the link is.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Opens the interface `name`, making it if there is none, and joins it to `link`.
    ///
    /// # Errors
    /// A bad name, a missing right, or a host without taps.
    pub fn start(name: &str, rates: Rates, link: Link) -> Result<Self, Error> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(good) || [".", ".."].contains(&name)
        {
            return Err(Error::Name { name: name.to_owned() });
        }
        let device = open(name).map_err(|source| Error::opening(name, source))?;
        // The kernel takes these from an interface with a header, always.
        link.accept(Features { udp: device.udp_gso(), ..Features::ALL });
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let readable = [
            (device.as_raw_fd(), DEVICE),
            (link.readable().as_raw_fd(), FRAMES),
            (link.writable().as_raw_fd(), ROOM),
        ];
        for (fd, token) in readable {
            poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let pump = Pump {
            device,
            port: Port::new(link, rates),
            poll,
            held: None,
            buffer: vec![0; MAX_FRAME],
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("tap".into()).spawn(move || pump.run())?;
        Ok(Self { stop, waker, thread: Some(thread) })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(name: &str) -> io::Result<SyncDevice> {
    // Bringing it up would need a right that the owner of a prepared interface lacks.
    let device =
        DeviceBuilder::new().name(name).layer(Layer::L2).offload(true).inherit_enable_state().build_sync()?;
    let flags = fcntl_getfl(device.as_fd())?;
    fcntl_setfl(device.as_fd(), flags | OFlags::NONBLOCK)?;
    Ok(device)
}

const DEVICE: Token = Token(0);
const FRAMES: Token = Token(1);
const ROOM: Token = Token(2);
const WAKE: Token = Token(3);

/// Carries frames between the two.
struct Pump {
    device: SyncDevice,
    port: Port,
    poll: Poll,
    /// A frame for which the guest had no room.
    held: Option<Packet>,
    buffer: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl Pump {
    fn run(mut self) {
        let mut events = Events::with_capacity(8);
        let (mut device, mut frames) = (true, true);
        while !self.stop.load(Ordering::Acquire) && !self.port.link().is_closed() {
            let timeout = self.timeout(device, frames);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "the tap ends: waiting for events failed");
                    return;
                }
                _ => {}
            }
            for event in &events {
                device |= event.token() == DEVICE;
                frames |= event.token() == FRAMES;
            }
            frames = frames && self.take_from_guest();
            match self.give_to_guest(device) {
                Ok(more) => device = more,
                Err(error) => {
                    tracing::error!(%error, "the tap ends: its interface is gone");
                    return;
                }
            }
        }
    }

    fn timeout(&self, device: bool, frames: bool) -> Option<Duration> {
        let (receive_at, send_at) = self.port.retry_at();
        if frames && receive_at.is_none() || device && self.held.is_none() {
            return Some(Duration::ZERO);
        }
        let receive_at = receive_at.filter(|_| frames);
        let next = receive_at.into_iter().chain(send_at.filter(|_| self.held.is_some())).min()?;
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_micros(999))
    }

    /// One turn of frames from the guest. Whether there may be more.
    fn take_from_guest(&mut self) -> bool {
        for _ in 0..TURN {
            let Some(packet) = self.port.receive() else { return self.port.retry_at().0.is_some() };
            let accepted = Features { udp: self.device.udp_gso(), ..Features::ALL };
            let device = &self.device;
            // What the interface does not take now is lost, as on a wire; so is what makes no sense.
            let _ = wire::conform(packet, accepted, &mut |packet| {
                let header = header::encode(&packet.offload);
                let _ = rustix::io::writev(device, &[IoSlice::new(&header), IoSlice::new(&packet.bytes)]);
            });
        }
        true
    }

    /// One turn of frames to the guest. Whether there may be more.
    fn give_to_guest(&mut self, readable: bool) -> Result<bool, Errno> {
        if let Some(packet) = self.held.take()
            && let Err(packet) = self.port.send(packet)
        {
            self.held = Some(packet);
            return Ok(readable);
        }
        if !readable {
            return Ok(false);
        }
        for _ in 0..TURN {
            let mut header = [0; header::LENGTH];
            let slices = &mut [IoSliceMut::new(&mut header), IoSliceMut::new(&mut self.buffer)];
            let length = match rustix::io::readv(&self.device, slices) {
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                // Nothing there, or the interface is down: either way, more is an event.
                Err(Errno::AGAIN | Errno::IO) => return Ok(false),
                Err(errno) => return Err(errno),
            };
            let Some(bytes) = length.checked_sub(header::LENGTH).and_then(|length| self.buffer.get(..length))
            else {
                continue;
            };
            let Some(offload) = header::decode(&header) else { continue };
            let packet = Packet { bytes: bytes.to_vec(), offload };
            let (accepted, port, held) = (self.port.link().accepted(), &mut self.port, &mut self.held);
            let _ = wire::conform(packet, accepted, &mut |packet| {
                // Of a frame that is cut, what does not fit any more is lost.
                if let Err(packet) = port.send(packet) {
                    held.get_or_insert(packet);
                }
            });
            if self.held.is_some() {
                break;
            }
        }
        Ok(true)
    }
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump").field("port", &self.port).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
