//! The board: all devices, and the machine's reset.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use posada_devices::acpi_pm::AcpiPm;
use posada_devices::cmos::Cmos;
use posada_devices::i8042::I8042;
use posada_devices::pci::{Address, HostBridge, MessageBus, PciBus, PciFunction};
use posada_devices::pit::Pit;
use posada_devices::{IrqLine, Nanos};
use posada_memory::GuestRam;
use posada_vcpu::Clock;
use posada_virtio::{Device, VirtioPci};

use crate::Error;
use crate::alarm::Alarm;
use crate::apics::Apics;
use crate::console::SerialPort;
use crate::control::{Control, Request};
use crate::layout::{ECAM, Layout, PCI_DEVICES, SCI, SERIAL};
use crate::wiring::{IsaLine, PciPin, Wiring};

/// How long output may be collected before it is written out, if the guest does not pause.
const OUTPUT_DELAY: Duration = Duration::from_millis(4);
/// Timers that a guest sets closer than this are served this far apart.
const CLOSEST: Nanos = 10_000;

/// All devices of one machine.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) clock: Arc<Clock>,
    pub(crate) wiring: Arc<Wiring>,
    pub(crate) control: Control,
    pub(crate) alarm: Alarm,
    pub(crate) serial: [SerialPort; 2],
    pub(crate) debug_exit: bool,
    /// Whether processors run, or are about to.
    pub(crate) running: AtomicBool,
    /// Held by whoever pauses the machine or lets it go on.
    pub(crate) pausing: Mutex<()>,
    /// Whether no guest will read what is sent to it.
    pub(crate) ended: AtomicBool,
    pit: Mutex<Pit<IsaLine>>,
    cmos: Mutex<Cmos<IsaLine>>,
    power: Mutex<AcpiPm<IsaLine>>,
    keyboard: Mutex<I8042<IsaLine>>,
    pub(crate) pci: PciBus,
    output: Output,
}

/// Tells the thread that writes out what guests send.
#[derive(Debug, Default)]
struct Output {
    waiting: Mutex<bool>,
    changed: std::sync::Condvar,
}

/// The earlier of two deadlines, if there are any.
pub(crate) fn earlier(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a function that is on the bus as it is, from the guest's memory, the way of its messages, and its pin.
pub(crate) type FunctionMaker = Box<
    dyn FnOnce(&GuestRam, Arc<dyn MessageBus>, Box<dyn IrqLine>) -> io::Result<Box<dyn PciFunction>> + Send,
>;

/// What goes into a place on the bus.
pub(crate) enum Card {
    /// A device behind the virtio transport.
    Virtio(Box<dyn Device>),
    /// One of another kind, with what it is called in messages.
    Other(&'static str, FunctionMaker),
}

/// Puts cards on the bus, each a device of its own.
fn plug(cards: Vec<Card>, pci: &mut PciBus, wiring: &Arc<Wiring>, ram: &GuestRam) -> Result<(), Error> {
    if cards.len() > PCI_DEVICES.len() {
        return Err(Error::Devices { devices: cards.len() });
    }
    for (device, card) in PCI_DEVICES.zip(cards) {
        let pin: Box<dyn IrqLine> = Box::new(PciPin { wiring: Arc::clone(wiring), device });
        let bus = Arc::clone(wiring) as Arc<dyn MessageBus>;
        let (name, function) = match card {
            Card::Virtio(card) => {
                let name = card.kind().name;
                let function = VirtioPci::new(card, ram, bus, pin);
                (name, function.map(|function| Box::new(function) as Box<dyn PciFunction>))
            }
            Card::Other(name, make) => (name, make(ram, bus, pin)),
        };
        pci.add(Address::new(device, 0), function.map_err(|cause| Error::Device { name, cause })?);
    }
    Ok(())
}

impl Board {
    pub(crate) fn new(
        layout: &Layout,
        cpus: u32,
        outputs: [Box<dyn Write + Send>; 2],
        debug_exit: bool,
        cards: Vec<Card>,
        ram: &GuestRam,
    ) -> Result<Arc<Self>, Error> {
        let apics = Arc::new(Apics::new(cpus));
        let wiring = Arc::new(Wiring::new(apics));
        let line = |irq| IsaLine { wiring: Arc::clone(&wiring), irq };
        let clock = Arc::new(Clock::new());
        // Until it runs.
        clock.pause();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut cmos = Cmos::new(since_1970.as_secs() as i64, line(8));
        cmos.set_memory_size(layout.low_end, layout.high);
        let mut pci = PciBus::new();
        pci.add(Address::new(0, 0), Box::new(HostBridge::new(Some(ECAM))));
        plug(cards, &mut pci, &wiring, ram)?;
        let mut serial = SERIAL.into_iter().zip(outputs);
        let mut port = || {
            let ((_, irq), output) = serial.next().expect("two ports and two outputs");
            SerialPort::new(line(irq), output)
        };
        Ok(Arc::new(Self {
            clock,
            control: Control::default(),
            alarm: Alarm::new(),
            serial: [port(), port()],
            debug_exit,
            running: AtomicBool::new(false),
            pausing: Mutex::new(()),
            ended: AtomicBool::new(false),
            pit: Mutex::new(Pit::new(line(0))),
            cmos: Mutex::new(cmos),
            power: Mutex::new(AcpiPm::new(line(SCI))),
            keyboard: Mutex::new(I8042::new(line(1), line(12))),
            pci,
            output: Output::default(),
            wiring,
        }))
    }

    pub(crate) fn pit(&self) -> MutexGuard<'_, Pit<IsaLine>> {
        lock(&self.pit)
    }

    pub(crate) fn cmos(&self) -> MutexGuard<'_, Cmos<IsaLine>> {
        lock(&self.cmos)
    }

    pub(crate) fn power(&self) -> MutexGuard<'_, AcpiPm<IsaLine>> {
        lock(&self.power)
    }

    pub(crate) fn keyboard(&self) -> MutexGuard<'_, I8042<IsaLine>> {
        lock(&self.keyboard)
    }

    /// Asks for the end of the run.
    pub(crate) fn request(&self, request: impl Into<Request>) {
        self.control.request(request.into());
        self.wiring.apics.kick();
    }

    /// The machine's reset line, then what firmware sets up in the devices.
    pub(crate) fn reset(&self) {
        self.pit().reset();
        self.cmos().reset();
        self.power().reset();
        self.keyboard().reset();
        self.pci.reset();
        for serial in &self.serial {
            serial.reset();
        }
        self.wiring.reset();
        self.set_up_as_firmware();
    }

    /// Lets every timer act whose time has come; when one is next wanted.
    fn tick(&self) -> Option<Nanos> {
        let now = self.clock.now();
        macro_rules! tick {
            ($device:expr) => {{
                let mut device = $device;
                if device.next_deadline().is_some_and(|due| due <= now) {
                    device.tick(now);
                }
                device.next_deadline()
            }};
        }
        let devices = [tick!(self.pit()), tick!(self.cmos()), tick!(self.power())];
        let next = devices.into_iter().fold(self.wiring.apics.tick(now), earlier);
        next.map(|next| next.max(now + CLOSEST))
    }

    /// The timer thread.
    pub(crate) fn keep_time(&self) {
        loop {
            self.alarm.begin();
            // Looked at after `begin`, which forgets the wake-up that comes with the end of the run.
            if !self.running.load(Ordering::Acquire) {
                return;
            }
            // A clock that stands still reaches no deadline.
            let next = if self.control.is_pause_wanted() { None } else { self.tick() };
            self.alarm.sleep(&self.clock, next);
        }
    }

    /// There is output that should be written out soon.
    pub(crate) fn output_waits(&self) {
        *lock(&self.output.waiting) = true;
        self.output.changed.notify_one();
    }

    /// Writes out what the guest has sent.
    pub(crate) fn flush(&self) {
        for serial in &self.serial {
            serial.flush();
        }
    }

    /// The thread that writes output out when the guest neither ends its lines nor pauses.
    pub(crate) fn keep_flushing(&self) {
        let mut waiting = lock(&self.output.waiting);
        while self.running.load(Ordering::Acquire) {
            if !*waiting {
                waiting = self.output.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            *waiting = false;
            drop(waiting);
            std::thread::sleep(OUTPUT_DELAY);
            self.flush();
            waiting = lock(&self.output.waiting);
        }
    }

    /// Ends the threads that keep time and write output, and all waiting for the guest.
    pub(crate) fn end_run(&self) {
        self.running.store(false, Ordering::Release);
        self.alarm.at(Some(0));
        self.output_waits();
        self.wiring.apics.kick();
        self.flush();
    }
}
