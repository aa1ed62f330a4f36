//! Building a machine, and running it.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use posada_boot::{Kernel, MemoryMap};
use posada_devices::pci::PciFunction;
use posada_memory::GuestRam;
use posada_network::link::Link;
use posada_peripherals::ahci::{Ahci, Drive, MAX_DRIVES};
use posada_peripherals::e1000::E1000;
use posada_storage::{Disk, metered};
use posada_vcpu::x86::State;
use posada_vcpu::{Activity, Connections, Exit, Vcpu};
use posada_virtio::Device;
use posada_virtio::balloon::Balloon;
use posada_virtio::block::Block;
use posada_virtio::network::Network;
use posada_x86::Model;

use crate::board::{Board, Card, FunctionMaker};
use crate::control::Request;
use crate::cpu::Cpu;
use crate::engine::{DEFAULT_CODE_CACHE, MAX_CODE_CACHE, MIN_CODE_CACHE};
use crate::handle::{Handle, Inquiries, Port};
use crate::layout::Layout;
use crate::lent::Lent;
use crate::{Engine, Error, firmware};

/// How long the thread sleeps that looks what processors are at.
const SAMPLES_APART: Duration = Duration::from_millis(1);

/// What a machine does when its guest resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// Starts again with the same kernel, as a PC does.
    #[default]
    Reboot,
    /// Ends the run with [`Outcome::Reset`].
    Exit,
}

/// What a machine does when a processor shuts down because of a triple fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTripleFault {
    /// Ends the run with [`Outcome::TripleFault`], which says where it happened.
    #[default]
    Exit,
    /// Resets, as a PC does.
    Reset,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched the machine off.
    PoweredOff,
    /// The guest reset the machine, and that was to end the run.
    Reset,
    /// The guest wrote to the test port; this is the exit status that it asks for.
    DebugExit(u8),
    /// A processor met a fault while it handled a fault while it handled a fault.
    TripleFault {
        /// Which processor, counted from 0.
        cpu: u32,
        /// Its state: [`Display`](fmt::Display) shows the registers.
        state: Box<State>,
    },
    /// [`Handle::stop`] was called.
    Stopped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::DebugExit(status) => write!(f, "the guest ended the run with exit status {status}"),
            Self::TripleFault { cpu, .. } => write!(f, "triple fault on processor {cpu}"),
            Self::Stopped => f.write_str("the run was stopped"),
        }
    }
}

/// A machine yet to be built.
///
/// ```no_run
/// use posada_boot::{Kernel, Source};
/// use posada_pc::{PcBuilder, Port};
///
/// let kernel = Kernel::new(Source::file(std::fs::File::open("vmlinuz")?)?).append("console=ttyS0");
/// let mut pc = PcBuilder::new(kernel)
///     .memory(512 << 20)
///     .serial(Port::Com1, std::io::stdout())
///     .build()?;
/// println!("{}", pc.run()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PcBuilder {
    kernel: Kernel,
    memory: u64,
    cpus: u32,
    cpu_model: String,
    engine: Engine,
    code_cache: u64,
    sampled: bool,
    debug_exit: bool,
    on_reset: OnReset,
    on_triple_fault: OnTripleFault,
    outputs: [Box<dyn Write + Send>; 2],
    devices: Vec<Maker>,
    /// What is at the ports of the SATA controller, which the machine has if anything is.
    drives: Vec<Drive>,
    lent: Lent,
    /// What the guest's balloon is to take at first, in bytes.
    balloon: u64,
}

/// Makes a device for a machine with a number of processors.
type Maker = Box<dyn FnOnce(u32) -> Card + Send>;

impl fmt::Debug for PcBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcBuilder")
            .field("kernel", &self.kernel)
            .field("memory", &self.memory)
            .field("cpus", &self.cpus)
            .field("cpu_model", &self.cpu_model)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl PcBuilder {
    /// A machine that boots `kernel`: 512 MiB of memory, one processor of model `x86-64-v2`, the interpreter,
    /// and serial ports that nobody listens to.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            memory: 512 << 20,
            cpus: 1,
            cpu_model: "x86-64-v2".into(),
            engine: Engine::default(),
            code_cache: DEFAULT_CODE_CACHE,
            sampled: false,
            debug_exit: false,
            on_reset: OnReset::default(),
            on_triple_fault: OnTripleFault::default(),
            outputs: [Box::new(io::sink()), Box::new(io::sink())],
            devices: Vec::new(),
            drives: Vec::new(),
            lent: Lent::default(),
            balloon: 0,
        }
    }

    /// Sets the size of the guest's memory in bytes: [`MIN_MEMORY`](crate::MIN_MEMORY) to
    /// [`MAX_MEMORY`](crate::MAX_MEMORY), a multiple of 4096.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets the number of processors, 1 to [`Pc::MAX_CPUS`].
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the processor model, one of [`posada_x86::Model::NAMES`].
    #[must_use]
    pub fn cpu_model(mut self, name: impl Into<String>) -> Self {
        self.cpu_model = name.into();
        self
    }

    /// Sets who carries out the instructions.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Sets how many bytes of translated code each processor keeps: [`MIN_CODE_CACHE`](crate::MIN_CODE_CACHE) to
    /// [`MAX_CODE_CACHE`](crate::MAX_CODE_CACHE). The host lends memory for what is used only. The interpreter keeps
    /// none.
    #[must_use]
    pub fn code_cache(mut self, bytes: u64) -> Self {
        self.code_cache = bytes;
        self
    }

    /// Sets whether a thread looks a thousand times a second what each processor is at, for its
    /// [report](Pc::reports) to tell where the time went.
    #[must_use]
    pub fn sampled(mut self, sampled: bool) -> Self {
        self.sampled = sampled;
        self
    }

    /// Sets where the output of a serial port goes. A write that blocks holds up the guest; it must not itself
    /// send to the same port, which is locked meanwhile.
    #[must_use]
    pub fn serial(mut self, port: Port, output: impl Write + Send + 'static) -> Self {
        self.outputs[port as usize] = Box::new(output);
        self
    }

    /// Plugs a virtio device into the next place on the PCI bus. What the device cannot do at once, a thread of its own
    /// does.
    #[must_use]
    pub fn device(mut self, device: impl Device + 'static) -> Self {
        self.devices.push(Box::new(|_| Card::Virtio(Box::new(device))));
        self
    }

    /// Plugs in a balloon, through which the guest can be asked to do without a part of its memory
    /// ([`Handle::set_balloon`]), at first of so many bytes. A guest that can do so also tells which memory it has no use
    /// for at present.
    #[must_use]
    pub fn balloon(mut self, bytes: u64) -> Self {
        let balloon = Balloon::new();
        (self.balloon, self.lent.balloon) = (bytes, Some(balloon.control()));
        self.device(balloon)
    }

    /// Plugs in a disk, with a serial number of at most 20 bytes by which guests can tell it from others.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>, serial: impl Into<String>) -> Self {
        let serial = serial.into();
        let disk = self.meter(disk, &serial);
        self.devices.push(Box::new(move |cpus| Card::Virtio(Box::new(Block::new(disk, &serial, cpus)))));
        self
    }

    /// Has a disk's use counted.
    fn meter(&mut self, disk: Arc<dyn Disk>, serial: &str) -> Arc<dyn Disk> {
        let (disk, meter) = metered(disk);
        self.lent.disks.push((serial.to_owned(), meter));
        disk
    }

    /// Plugs in a network card with this Ethernet address at one end of a link. The network at the other end has
    /// started before, so that the card knows what it can be sent.
    #[must_use]
    pub fn network(mut self, link: Link, address: [u8; 6]) -> Self {
        self.lent.cards.push((address, link.meter()));
        self.devices.push(Box::new(move |cpus| Card::Virtio(Box::new(Network::new(link, address, cpus)))));
        self
    }

    /// Plugs in a network card as [`network`](Self::network) does, but an Intel 82540EM, for guests without virtio.
    #[must_use]
    pub fn e1000(mut self, link: Link, address: [u8; 6]) -> Self {
        self.lent.cards.push((address, link.meter()));
        let make: FunctionMaker = Box::new(move |ram, bus, pin| {
            Ok(Box::new(E1000::new(link, address, ram, bus, pin)?) as Box<dyn PciFunction>)
        });
        self.devices.push(Box::new(|_| Card::Other("network card", make)));
        self
    }

    /// Plugs a disk or a CD-ROM drive into the next port of the machine's SATA controller, for guests without virtio.
    #[must_use]
    pub fn drive(mut self, drive: Drive) -> Self {
        let drive = match drive {
            Drive::Disk { disk, serial } => Drive::Disk { disk: self.meter(disk, &serial), serial },
            Drive::CdRom { disc, serial } => Drive::CdRom { disc: self.meter(disc, &serial), serial },
        };
        self.drives.push(drive);
        self
    }

    /// Gives the machine the test port: a guest's write of `v` to I/O port 0xf4 ends the run with exit status
    /// `(v << 1) | 1`.
    #[must_use]
    pub fn debug_exit(mut self, present: bool) -> Self {
        self.debug_exit = present;
        self
    }

    /// Sets what a reset does.
    #[must_use]
    pub fn on_reset(mut self, policy: OnReset) -> Self {
        self.on_reset = policy;
        self
    }

    /// Sets what a triple fault does.
    #[must_use]
    pub fn on_triple_fault(mut self, policy: OnTripleFault) -> Self {
        self.on_triple_fault = policy;
        self
    }

    /// Builds the machine and loads the kernel.
    pub fn build(mut self) -> Result<Pc, Error> {
        let layout = Layout::new(self.memory)?;
        if !(1..=Pc::MAX_CPUS).contains(&self.cpus) {
            return Err(Error::Cpus { cpus: self.cpus });
        }
        if !(MIN_CODE_CACHE..=MAX_CODE_CACHE).contains(&self.code_cache) {
            return Err(Error::CodeCache { bytes: self.code_cache });
        }
        check_host_memory(self.memory, host_memory())?;
        self.lent.memory = self.memory;
        if self.balloon != 0 {
            self.lent.set_balloon(self.balloon)?;
        }
        let model = Model::named(&self.cpu_model)?;
        let ram = GuestRam::new(&layout.ram())?;
        if self.drives.len() > MAX_DRIVES {
            return Err(Error::Drives { drives: self.drives.len() });
        }
        let mut cards: Vec<Card> = self.devices.into_iter().map(|make| make(self.cpus)).collect();
        if !self.drives.is_empty() {
            cards.push(sata(self.drives));
        }
        let board = Board::new(&layout, self.cpus, self.outputs, self.debug_exit, cards, &ram)?;
        let vcpus = (0..self.cpus).map(|index| {
            let cpu = Arc::new(Cpu::new(Arc::clone(&board), ram.clone(), index));
            let connections = Connections {
                index,
                count: self.cpus,
                ram: ram.clone(),
                bus: cpu.clone(),
                interrupts: cpu,
                attention: Arc::clone(&board.wiring.apics.cpus[index as usize].attention),
                clock: Arc::clone(&board.clock),
            };
            self.engine.make(connections, model.clone(), self.code_cache as usize)
        });
        let mut pc = Pc {
            vcpus: vcpus.collect::<Result<_, _>>()?,
            map: layout.memory_map()?,
            inquiries: (0..self.cpus).map(|_| Inquiries::default()).collect(),
            lent: Arc::new(self.lent),
            layout,
            kernel: self.kernel,
            sampled: self.sampled,
            on_reset: self.on_reset,
            on_triple_fault: self.on_triple_fault,
            ram,
            board,
        };
        pc.reset()?;
        Ok(pc)
    }
}

/// How long devices may take for what they are at when a run ends.
const PATIENCE_WITH_DEVICES: Duration = Duration::from_secs(1);

/// The SATA controller.
fn sata(drives: Vec<Drive>) -> Card {
    let make: FunctionMaker =
        Box::new(|ram, bus, pin| Ok(Box::new(Ahci::new(drives, ram, bus, pin)?) as Box<dyn PciFunction>));
    Card::Other("SATA controller", make)
}

/// The host's memory in bytes, swap space included.
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    let units = (info.totalram as u64).saturating_add(info.totalswap as u64);
    units.saturating_mul(u64::from(info.mem_unit))
}

/// Refuses more memory than the host could ever give, before the guest has used half of it.
fn check_host_memory(bytes: u64, host: u64) -> Result<(), Error> {
    if bytes > host { Err(Error::HostMemory { bytes, host }) } else { Ok(()) }
}

/// A machine: processors, memory and devices, with a kernel ready to run.
pub struct Pc {
    vcpus: Vec<Box<dyn Vcpu>>,
    board: Arc<Board>,
    ram: GuestRam,
    map: MemoryMap,
    layout: Layout,
    kernel: Kernel,
    sampled: bool,
    on_reset: OnReset,
    on_triple_fault: OnTripleFault,
    inquiries: Arc<[Inquiries]>,
    lent: Arc<Lent>,
}

impl fmt::Debug for Pc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pc")
            .field("board", &self.board)
            .field("ram", &self.ram)
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

impl Pc {
    /// The most processors that a machine can have.
    pub const MAX_CPUS: u32 = 64;

    /// Reaches the machine from other threads while it runs.
    pub fn handle(&self) -> Handle {
        let (board, inquiries) = (Arc::clone(&self.board), Arc::clone(&self.inquiries));
        Handle { board, inquiries, lent: Arc::clone(&self.lent) }
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The state of every processor, the boot processor's first.
    pub fn states(&self) -> Vec<State> {
        self.vcpus.iter().map(|vcpu| vcpu.state()).collect()
    }

    /// How many instructions the guest has carried out, where the engine counts them.
    pub fn instructions(&self) -> Option<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.instructions()).sum()
    }

    /// What the engine tells of each processor's work, where it keeps an account.
    pub fn reports(&self) -> Vec<String> {
        self.vcpus.iter().filter_map(|vcpu| vcpu.report()).collect()
    }

    /// How long the guest has lived: the time of its clocks, which stand still while it does not run.
    pub fn guest_time(&self) -> Duration {
        Duration::from_nanos(self.board.clock.now())
    }

    /// The machine's reset: devices, firmware's work, the kernel loaded anew.
    fn reset(&mut self) -> Result<(), Error> {
        self.board.reset();
        let rsdp = firmware::write_tables(&self.ram, &self.layout, self.vcpus.len() as u32)?;
        let boot = firmware::boot(&self.ram, &self.kernel, &self.map, rsdp)?;
        let waiting = firmware::waiting_processor();
        for (cpu, vcpu) in (0..).zip(&mut self.vcpus) {
            let state = if cpu == 0 { &boot } else { &waiting };
            vcpu.set_state(state).map_err(|cause| Error::Engine { cpu, cause })?;
        }
        Ok(())
    }

    /// Ends all that devices still do for the guest, once they have done what it had told them to (or a second has
    /// passed): nothing is written to its disks any more when this returns. The guest cannot go on afterwards.
    pub fn stop_devices(&mut self) {
        self.board.pci.settle(Instant::now() + PATIENCE_WITH_DEVICES);
        self.board.pci.reset();
    }

    /// Runs the guest until something ends the run. A machine that was [stopped](Handle::stop) goes on where it
    /// was if this is called again.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        self.board.ended.store(false, Ordering::Release);
        self.board.control.want_pause(false);
        self.board.clock.resume();
        let outcome = self.run_with_resets();
        // Devices of a machine that was paused finish what they were told, as those of any other. One who is at pausing it is
        // waited for.
        let pausing = self.board.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        self.board.pci.resume();
        drop(pausing);
        self.board.clock.pause();
        self.board.ended.store(true, Ordering::Release);
        for serial in &self.board.serial {
            serial.end();
        }
        outcome
    }

    fn run_with_resets(&mut self) -> Result<Outcome, Error> {
        loop {
            let request = self.run_once();
            tracing::debug!(?request, "run ended");
            let outcome = match request {
                Request::Stop => Outcome::Stopped,
                Request::PowerOff => Outcome::PoweredOff,
                Request::Reset => Outcome::Reset,
                Request::DebugExit(status) => Outcome::DebugExit(status),
                Request::TripleFault { cpu, state } => Outcome::TripleFault { cpu, state },
                Request::Failed(error) => return Err(error),
            };
            match outcome {
                Outcome::Reset if self.on_reset == OnReset::Reboot => self.reset()?,
                Outcome::TripleFault { .. } if self.on_triple_fault == OnTripleFault::Reset => {
                    match self.on_reset {
                        OnReset::Reboot => self.reset()?,
                        OnReset::Exit => return Ok(Outcome::Reset),
                    }
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Runs every processor on a thread of its own until there is a request, and returns that.
    fn run_once(&mut self) -> Request {
        let board = &*self.board;
        board.running.store(true, Ordering::Release);
        let sampled = if self.sampled {
            self.vcpus.iter().filter_map(|vcpu| vcpu.activity()).collect()
        } else {
            Vec::new()
        };
        thread::scope(|scope| {
            if let Err(error) = start_threads(scope, board, &self.inquiries, &mut self.vcpus, sampled) {
                board.request(Request::Failed(Error::Thread(error)));
            }
            board.control.wait();
            board.end_run();
        });
        // Every thread has seen the request by now.
        board.control.take().unwrap_or(Request::Stop)
    }
}

fn start_threads<'scope>(
    scope: &'scope Scope<'scope, '_>,
    board: &'scope Board,
    inquiries: &'scope [Inquiries],
    vcpus: &'scope mut [Box<dyn Vcpu>],
    sampled: Vec<Arc<Activity>>,
) -> io::Result<()> {
    let named = |name: String| thread::Builder::new().name(name);
    if !sampled.is_empty() {
        named("samples".into()).spawn_scoped(scope, move || keep_looking(board, &sampled))?;
    }
    named("timers".into()).spawn_scoped(scope, || board.keep_time())?;
    named("output".into()).spawn_scoped(scope, || board.keep_flushing())?;
    for (index, (vcpu, inquiries)) in vcpus.iter_mut().zip(inquiries).enumerate() {
        let work = move || keep_running(board, index, vcpu.as_mut(), inquiries);
        named(format!("cpu {index}")).spawn_scoped(scope, work)?;
    }
    Ok(())
}

/// Looks what processors are at, now and then.
fn keep_looking(board: &Board, sampled: &[Arc<Activity>]) {
    while !board.control.is_pending() {
        thread::sleep(SAMPLES_APART);
        for activity in sampled {
            activity.look();
        }
    }
}

/// Ends the run if a processor's thread panics, which would leave the others waiting for ever.
struct EndOnPanic<'a>(&'a Board);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.request(Request::Stop);
        }
    }
}

/// One processor's thread.
fn keep_running(board: &Board, index: usize, vcpu: &mut dyn Vcpu, inquiries: &Inquiries) {
    let _guard = EndOnPanic(board);
    let attention = &board.wiring.apics.cpus[index].attention;
    let answer = |vcpu: &dyn Vcpu| {
        for inquiry in inquiries.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            inquiry(vcpu);
        }
    };
    while !board.control.is_pending() {
        if board.control.is_pause_wanted() {
            board.flush();
            board.control.stand_still(|| answer(vcpu));
            continue;
        }
        match vcpu.run() {
            Ok(Exit::Kicked) => answer(vcpu),
            Ok(Exit::Halted) => {
                board.flush();
                attention.wait(None);
            }
            Ok(Exit::Shutdown) => {
                let state = Box::new(vcpu.state());
                board.request(Request::TripleFault { cpu: index as u32, state });
            }
            Err(cause) => board.request(Request::Failed(Error::Engine { cpu: index as u32, cause })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_the_host_has_is_refused() {
        assert!(check_host_memory(1 << 30, 1 << 30).is_ok());
        let error = check_host_memory((1 << 30) + 4096, 1 << 30).unwrap_err();
        assert!(error.to_string().contains("this host has 1 GiB"), "{error}");
    }
}
