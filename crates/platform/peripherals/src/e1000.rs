//! The Intel 82540EM network card: one end of a [`Link`] (Intel, "PCI/PCI-X Family of Gigabit Ethernet Controllers
//! Software Developer's Manual", "SDM" below).
//!
//! One thread moves frames both ways between the link and the rings. Processors only reach registers; a write to a tail
//! pointer wakes the thread. What the link has no room for waits, and the transmit ring with it; what the driver has no
//! room for stays on the link. So nothing is lost between the two, and nothing grows.
//!
//! Checksums and segments that the driver leaves to the card (SDM §3.3, §3.5) pass on as the link has them, so that
//! large segments need not be cut. Interrupts are not delayed: `ITR` and the delay timers are notes of the driver's, but
//! one interrupt tells of all that has been moved in a round.
//!
//! Not there: VLAN filtering and stripping, wake on LAN, packet split, checking of received checksums, flash memory.

mod eeprom;
mod receive;
mod registers;
mod transmit;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use posada_devices::pci::{Bar, BarKind, ConfigSpace, ConfigSpaceState, Identity, MessageBus, PciFunction};
use posada_devices::{IrqLine, StateError};
use posada_memory::{Gpa, GuestRam};
use posada_network::link::{Features, Link, Packet};
use posada_network::wire::conform;
use posada_worker::{Handler, Worker};
use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;
use registers::{Cause, Effect, Registers};
use transmit::Transmitter;

/// Base address registers: the registers in memory, and a window to them at ports (SDM §13.3).
const MEMORY: usize = 0;
const MEMORY_LEN: u64 = 0x2_0000;
const PORTS: usize = 1;
const PORTS_LEN: u64 = 0x40;
/// The window: an address, and the data there.
const WINDOW_ADDRESS: u64 = 0;
const WINDOW_DATA: u64 = 4;

/// Tokens of the link.
const READABLE: Token = Token(0);
const WRITABLE: Token = Token(1);
/// How many descriptors, and frames, are dealt with before the other direction's turn.
const BATCH: usize = 64;

/// The saved state of the card's registers and rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    configuration: ConfigSpaceState,
    registers: Registers,
    window: u32,
}

/// Registers, and what goes with them.
#[derive(Debug)]
struct Shared {
    registers: Registers,
    interrupt: Interrupt,
    /// Counts up whenever what the thread is at becomes void.
    epoch: u64,
}

impl Shared {
    fn raise(&mut self, causes: u32) {
        self.registers.raise(causes);
        self.tell();
    }

    fn tell(&mut self) {
        let level = self.registers.interrupts();
        self.interrupt.set(level, false);
    }
}

/// The card as a PCI function, with its thread.
pub struct E1000 {
    config: ConfigSpace,
    shared: Arc<Mutex<Shared>>,
    worker: Worker,
    window: u32,
    address: [u8; 6],
}

impl fmt::Debug for E1000 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("E1000").field("shared", &self.shared).finish_non_exhaustive()
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl E1000 {
    /// A card with this Ethernet address at one end of a link, and starts its thread.
    pub fn new(
        link: Link,
        address: [u8; 6],
        ram: &GuestRam,
        bus: Arc<dyn MessageBus>,
        line: Box<dyn IrqLine>,
    ) -> io::Result<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: eeprom::DEVICE,
            class: [0x02, 0, 0],
            revision: 2,
            subsystem: (0x8086, eeprom::SUBSYSTEM),
        });
        config.set_interrupt_pin(1);
        config.add_bar(MEMORY, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: MEMORY_LEN });
        config.add_bar(PORTS, Bar { kind: BarKind::Io, size: PORTS_LEN });
        let registers = Registers::new(address);
        let interrupt = Interrupt::new(bus, line);
        let shared = Arc::new(Mutex::new(Shared { registers, interrupt, epoch: 0 }));
        let card = Card {
            ram: ram.clone(),
            shared: Arc::clone(&shared),
            link,
            transmitter: Transmitter::default(),
            epoch: 0,
            unsent: VecDeque::new(),
            undelivered: None,
            readable: true,
            sending: false,
        };
        let worker = Worker::start("e1000".to_owned(), |_| Box::new(card))?;
        Ok(Self { config, shared, worker, window: 0, address })
    }

    /// The saved state. A frame of which the driver has given only a part counts as never begun.
    pub fn state(&self) -> State {
        let registers = lock(&self.shared).registers.clone();
        State { configuration: self.config.state(), registers, window: self.window }
    }

    /// Puts a saved state in force.
    pub fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.config.restore(&state.configuration)?;
        self.window = state.window;
        self.reset_card();
        let mut shared = lock(&self.shared);
        shared.registers = state.registers.clone();
        shared.interrupt.configure(&self.config);
        shared.tell();
        drop(shared);
        self.worker.bell().notify(0);
        Ok(())
    }

    /// Makes what the thread is at void, and waits until it has finished that.
    fn void_work(&self) {
        lock(&self.shared).epoch += 1;
        self.worker.settle();
    }

    /// `CTRL.RST`. Afterwards the thread touches nothing of the driver's.
    fn reset_card(&self) {
        let mut shared = lock(&self.shared);
        shared.registers = Registers::new(self.address);
        shared.epoch += 1;
        shared.tell();
        drop(shared);
        self.worker.settle();
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut shared = lock(&self.shared);
        let value = shared.registers.read(offset as u32);
        // Reading the causes clears them.
        shared.tell();
        value
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let mut shared = lock(&self.shared);
        let effect = shared.registers.write(offset as u32, value);
        shared.tell();
        drop(shared);
        match effect {
            Effect::None => {}
            Effect::Work => self.worker.bell().notify(0),
            Effect::Stop => self.void_work(),
            Effect::Reset => self.reset_card(),
        }
    }
}

impl PciFunction for E1000 {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn write_config(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        lock(&self.shared).interrupt.configure(&self.config);
    }

    /// Registers are 32 bits wide; smaller reads get their part, and one of 64 bits gets two.
    fn read_bar(&mut self, bar: usize, offset: u64, size: u8) -> u64 {
        if bar == PORTS {
            return match offset & !3 {
                WINDOW_ADDRESS => self.window.into(),
                WINDOW_DATA => self.read_register(u64::from(self.window) & !3).into(),
                _ => 0,
            };
        }
        let value = u64::from(self.read_register(offset & !3)) >> (8 * (offset & 3));
        match size {
            8 => u64::from(self.read_register((offset & !3) + 4)) << 32 | value,
            4 => value,
            _ => value & ((1 << (8 * size.clamp(1, 2))) - 1),
        }
    }

    /// Writes are of whole registers (SDM §13.2); others are ignored.
    fn write_bar(&mut self, bar: usize, offset: u64, size: u8, value: u64) {
        if !offset.is_multiple_of(4) || size < 4 {
            return;
        }
        match (bar, offset) {
            (PORTS, WINDOW_ADDRESS) => self.window = value as u32 & (MEMORY_LEN as u32 - 1),
            (PORTS, WINDOW_DATA) => self.write_register(u64::from(self.window) & !3, value as u32),
            (PORTS, _) => {}
            _ => {
                self.write_register(offset, value as u32);
                if size == 8 {
                    self.write_register(offset + 4, (value >> 32) as u32);
                }
            }
        }
    }

    fn settle(&mut self, deadline: Instant) {
        self.worker.finish(deadline);
    }

    fn pause(&mut self) {
        self.worker.pause();
    }

    fn resume(&mut self) {
        self.worker.resume();
    }

    fn reset(&mut self) {
        self.reset_card();
        self.config.reset();
        self.window = 0;
        lock(&self.shared).interrupt.configure(&self.config);
    }
}

/// The card's thread.
struct Card {
    ram: GuestRam,
    shared: Arc<Mutex<Shared>>,
    link: Link,
    transmitter: Transmitter,
    /// What the frames below belong to.
    epoch: u64,
    /// What the link had no room for.
    unsent: VecDeque<Packet>,
    /// What the driver had no room for.
    undelivered: Option<Packet>,
    /// Whether the link may have frames.
    readable: bool,
    /// Whether the transmit ring may have some.
    sending: bool,
}

impl Card {
    /// Forgets what belongs to a time before a reset.
    fn catch_up(&mut self) {
        let epoch = lock(&self.shared).epoch;
        if self.epoch != epoch {
            self.epoch = epoch;
            self.transmitter = Transmitter::default();
            self.unsent.clear();
            self.undelivered = None;
        }
    }

    /// Tells the driver, unless it has reset the card meanwhile.
    fn raise(&self, causes: u32) {
        let mut shared = lock(&self.shared);
        if shared.epoch == self.epoch {
            shared.raise(causes);
        }
    }

    // From the guest.

    /// Works on the transmit ring; whether there is more.
    fn transmit(&mut self) -> bool {
        self.catch_up();
        let (mut causes, mut more) = (0, true);
        for _ in 0..BATCH {
            if !self.send_waiting() {
                // Goes on when the link has room.
                more = false;
                break;
            }
            let shared = lock(&self.shared);
            let ring = shared.registers.transmit_ring();
            let is_void = shared.epoch != self.epoch;
            drop(shared);
            let Some(place) = ring.next().filter(|_| !is_void) else {
                if causes != 0 && !is_void {
                    causes |= Cause::TXQE;
                }
                more = false;
                break;
            };
            match self.transmit_one(place) {
                Some(more_causes) => causes |= more_causes,
                None => {
                    // The ring is where there is no memory: nothing goes on until the driver resets the card.
                    more = false;
                    break;
                }
            }
        }
        if causes != 0 {
            self.raise(causes);
        }
        more
    }

    /// One descriptor: what it tells the driver, if it could be had.
    fn transmit_one(&mut self, place: u64) -> Option<u32> {
        let mut descriptor = [0; transmit::DESCRIPTOR_LEN];
        self.ram.read(Gpa(place), &mut descriptor).ok()?;
        if let Some(packet) = self.transmitter.take(&self.ram, &descriptor) {
            // One that is not what the driver says of it is dropped, as are those that a wire damages.
            let _ = conform(packet, self.link.accepted(), &mut |packet| self.unsent.push_back(packet));
            self.send_waiting();
        }
        let mut shared = lock(&self.shared);
        if shared.epoch != self.epoch {
            return Some(0);
        }
        let causes = match transmit::done(&descriptor) {
            // The status is in the low half of byte 12.
            Some(status) => {
                self.ram.write(Gpa(place.wrapping_add(12)), &[status]).ok()?;
                Cause::TXDW
            }
            None => 0,
        };
        shared.registers.advance_transmit();
        Some(causes)
    }

    /// Hands what waits to the link; whether nothing waits any more.
    fn send_waiting(&mut self) -> bool {
        while let Some(packet) = self.unsent.pop_front() {
            if let Err(packet) = self.link.send(packet)
                && !self.link.is_closed()
            {
                self.unsent.push_front(packet);
                return false;
            }
        }
        true
    }

    // To the guest.

    /// Moves frames from the link to the guest; whether there may be more.
    fn receive(&mut self) -> bool {
        self.catch_up();
        let (mut causes, mut more) = (0, true);
        for _ in 0..BATCH {
            if !lock(&self.shared).registers.receives() {
                more = false;
                break;
            }
            let Some(packet) = self.undelivered.take().or_else(|| self.link.receive()) else {
                more = false;
                break;
            };
            let mut shared = lock(&self.shared);
            if shared.epoch != self.epoch {
                more = false;
                break;
            }
            match receive::deliver(&self.ram, &mut shared.registers, &packet) {
                receive::Outcome::Delivered => causes |= Cause::RXT0,
                receive::Outcome::Dropped => {}
                receive::Outcome::NoRoom => {
                    causes |= Cause::RXDMT0;
                    self.undelivered = Some(packet);
                    more = false;
                    break;
                }
            }
            if shared.registers.is_short_of_buffers() {
                causes |= Cause::RXDMT0;
            }
        }
        if causes != 0 {
            self.raise(causes);
        }
        more
    }
}

impl Handler for Card {
    fn start(&mut self, registry: &Registry) -> io::Result<()> {
        // What drivers of the card know, it cannot take: complete frames only.
        self.link.accept(Features::NONE);
        registry.register(&mut SourceFd(&self.link.readable().as_raw_fd()), READABLE, Interest::READABLE)?;
        registry.register(&mut SourceFd(&self.link.writable().as_raw_fd()), WRITABLE, Interest::READABLE)
    }

    /// A tail pointer or a control register has been written.
    fn queue(&mut self, _queue: usize) -> bool {
        self.readable = true;
        self.transmit()
    }

    fn ready(&mut self, token: Token, _registry: &Registry) {
        match token {
            READABLE => self.readable = true,
            _ => self.sending = true,
        }
    }

    fn round(&mut self, _registry: &Registry) -> bool {
        if self.readable {
            self.readable = self.receive();
        }
        if self.sending {
            self.sending = self.transmit();
        }
        self.readable || self.sending
    }
}

#[cfg(test)]
#[path = "e1000_test.rs"]
mod tests;
