//! Any sequence of reads, writes, ticks, interrupts, resets, saves and restores on the devices of a PC.
//!
//! Beside "no panic" it checks what a board relies on: after a tick no deadline lies in the past (or the board
//! would spin), and a device restored from its state has that state.

use posada_devices::acpi_pm::AcpiPm;
use posada_devices::apic::Message;
use posada_devices::cmos::Cmos;
use posada_devices::debug_exit::DebugExit;
use posada_devices::i8042::{Buttons, I8042, Key};
use posada_devices::ioapic::{self, Ioapic};
use posada_devices::lapic::{self, Action, Lapic};
use posada_devices::pci::{
    self, Address, Bar, BarKind, ConfigSpace, HostBridge, Identity, PciBus, PciFunction,
};
use posada_devices::pic::Pic;
use posada_devices::pit::Pit;
use posada_devices::serial::Serial;
use posada_devices::{IrqLine, Nanos, TscClock};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

/// Carries out the operations that `data` encodes, until it ends.
///
/// # Panics
/// If a device misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut machine = Machine::new();
    while !bytes.0.is_empty() {
        machine.step(&mut bytes);
        machine.route();
    }
}

/// The input; what it no longer has is zero.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// Mostly small, sometimes anything.
    fn u64(&mut self) -> u64 {
        let value = u64::from(self.u32()) | u64::from(self.u32()) << 32;
        value >> (self.u8() & 63)
    }

    fn size(&mut self) -> u8 {
        1 << (self.u8() % 3)
    }

    fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }
}

/// Interrupt messages on their way to the local APICs.
struct Bus(Sender<Message>);

impl ioapic::MessageSink for Bus {
    fn deliver(&self, message: Message) {
        // The receiver lives as long as the machine.
        let _ = self.0.send(message);
    }
}

type SharedIoapic = Arc<Mutex<Ioapic<Bus>>>;

/// An interrupt request, wired to both kinds of controller.
#[derive(Clone)]
struct Wire {
    irq: u8,
    pic: Arc<Mutex<Pic>>,
    ioapic: SharedIoapic,
}

impl IrqLine for Wire {
    fn set(&self, level: bool) {
        lock(&self.pic).set_irq(self.irq, level);
        lock(&self.ioapic).set_irq(if self.irq == 0 { 2 } else { self.irq }, level);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody has panicked")
}

/// A PCI function with base address registers of every kind.
struct Card(ConfigSpace);

impl Card {
    fn new() -> Self {
        let mut config = ConfigSpace::new_express(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: [0x01, 0x80, 0x00],
            revision: 1,
            subsystem: (0x1af4, 0x1100),
        });
        config.add_bar(0, Bar { kind: BarKind::Io, size: 0x20 });
        config.add_bar(1, Bar { kind: BarKind::Memory32 { prefetchable: false }, size: 0x1000 });
        config.add_bar(4, Bar { kind: BarKind::Memory64 { prefetchable: true }, size: 1 << 40 });
        config.add_capability(pci::CAPABILITY_MSIX, &[0; 10]);
        Self(config)
    }
}

impl PciFunction for Card {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn read_bar(&mut self, bar: usize, offset: u64, _size: u8) -> u64 {
        assert!(offset < [0x20, 0x1000, 0, 0, 1 << 40, 0][bar], "an access outside BAR {bar}");
        0
    }
}

struct Machine {
    now: Nanos,
    pic: Arc<Mutex<Pic>>,
    ioapic: SharedIoapic,
    bus: Receiver<Message>,
    lapics: Vec<Lapic>,
    pit: Pit<Wire>,
    cmos: Cmos<Wire>,
    serial: Serial<Wire>,
    i8042: I8042<Wire>,
    pm: AcpiPm<Wire>,
    pci: PciBus,
}

impl Machine {
    fn new() -> Self {
        let pic = Arc::new(Mutex::new(Pic::new()));
        let (sender, bus) = channel();
        let ioapic = Arc::new(Mutex::new(Ioapic::new(0, Bus(sender))));
        let wire = |irq| Wire { irq, pic: Arc::clone(&pic), ioapic: Arc::clone(&ioapic) };
        let lapic = |id| {
            Lapic::new(lapic::Config {
                id,
                bootstrap: id == 0,
                timer_hz: 1_000_000_000,
                tsc: TscClock::new(2_600_000_000),
                physical_bits: 40,
            })
        };
        let mut pci = PciBus::new();
        pci.add(Address::new(0, 0), Box::new(HostBridge::new(Some(0xe000_0000))));
        pci.add(Address::new(3, 0), Box::new(Card::new()));
        Self {
            now: 0,
            bus,
            lapics: [0, 1, 300].map(lapic).into(),
            pit: Pit::new(wire(0)),
            cmos: Cmos::new(1_700_000_000, wire(8)),
            serial: Serial::new(wire(4), Box::new(io::sink())),
            i8042: I8042::new(wire(1), wire(12)),
            pm: AcpiPm::new(wire(9)),
            pci,
            pic,
            ioapic,
        }
    }

    fn wire(&self, irq: u8) -> Wire {
        Wire { irq, pic: Arc::clone(&self.pic), ioapic: Arc::clone(&self.ioapic) }
    }

    /// Hands waiting messages to the local APICs.
    fn route(&mut self) {
        for message in self.bus.try_iter() {
            for lapic in &mut self.lapics {
                if lapic.matches(message.destination) {
                    lapic.accept(&message);
                }
            }
        }
    }

    fn act(&mut self, action: Option<Action>) {
        match action {
            None => {}
            Some(Action::Ipi(message)) => {
                for lapic in &mut self.lapics {
                    if lapic.matches(message.destination) {
                        lapic.accept(&message);
                    }
                }
            }
            Some(Action::EndOfInterrupt(vector)) => lock(&self.ioapic).end_of_interrupt(vector),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 16 {
            0 | 1 => self.read_port(bytes),
            2..=4 => self.write_port(bytes),
            5 => self.lapic_memory(bytes),
            6 => self.lapic_msr(bytes),
            7 => self.processor(bytes),
            8 => self.ioapic_memory(bytes),
            9 => self.pci_memory(bytes),
            10 => self.world(bytes),
            11 | 12 => self.advance(bytes),
            13 => self.save_and_restore(bytes.u8()),
            14 => {
                let (irq, level) = (bytes.u8(), bytes.flag());
                lock(&self.pic).set_irq(irq, level);
                lock(&self.ioapic).set_irq(irq, level);
            }
            _ => self.reset(bytes.u8()),
        }
    }

    /// The time, or, as from a thread that asked before another and comes after it, one shortly before.
    fn now_or_before(&self, bytes: &mut Bytes<'_>) -> Nanos {
        let early = bytes.u8();
        if early < 240 { self.now } else { self.now.saturating_sub(u64::from(early - 239) << 16) }
    }

    fn read_port(&mut self, bytes: &mut Bytes<'_>) {
        let (device, offset, size, now) = (bytes.u8(), bytes.u16(), bytes.size(), self.now_or_before(bytes));
        match device % 10 {
            0 => drop(self.serial.read(offset as u8 & 15)),
            1 => {
                let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, offset][usize::from(offset % 7)];
                lock(&self.pic).read(port);
            }
            2 => drop(self.pit.read(offset as u8 & 7, now)),
            3 => drop(self.pit.read_port_61(now)),
            4 => {
                self.cmos.write_index(offset as u8);
                self.cmos.read_data(now);
            }
            5 => drop(self.i8042.read_data()),
            6 => {
                let _ = (self.i8042.read_status(), self.i8042.read_system_control(), self.i8042.a20());
            }
            7 => drop(self.pm.read(offset % 0x50, size, now)),
            8 => {
                let value = self.pci.read_port(0xcf0 + offset % 32, size);
                assert!(size == 4 || u64::from(value) < 1 << (8 * size), "more bits than were read");
            }
            _ => drop((self.pci.read_io(offset, size), self.pm.read_reset_control(), DebugExit.read())),
        }
    }

    fn write_port(&mut self, bytes: &mut Bytes<'_>) {
        let (device, offset, size, now) = (bytes.u8(), bytes.u16(), bytes.size(), self.now_or_before(bytes));
        match device % 10 {
            0 => self.serial.write(offset as u8 & 15, bytes.u8()),
            1 => {
                let port = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, offset][usize::from(offset % 7)];
                lock(&self.pic).write(port, bytes.u8());
            }
            2 => self.pit.write(offset as u8 & 7, bytes.u8(), now),
            3 => self.pit.write_port_61(offset as u8, now),
            4 => {
                self.cmos.write_index(offset as u8);
                self.cmos.write_data(bytes.u8(), now);
            }
            5 => drop(self.i8042.write_data(offset as u8)),
            6 => drop((self.i8042.write_command(offset as u8), self.i8042.write_system_control(bytes.u8()))),
            7 => {
                let _ = self.pm.write(offset % 0x50, size, bytes.u32(), now);
                self.pm.write_smi_command(bytes.u8());
            }
            8 => self.pci.write_port(0xcf0 + offset % 32, size, bytes.u32()),
            _ => {
                self.pci.write_io(offset, size, bytes.u32());
                let _ = self.pm.write_reset_control(bytes.u8());
                assert_ne!(DebugExit.write(offset.into()), 0, "a status of success");
            }
        }
    }

    fn lapic_memory(&mut self, bytes: &mut Bytes<'_>) {
        let index = usize::from(bytes.u8()) % self.lapics.len();
        // Registers lie at multiples of 16; now and then between them.
        let offset = if bytes.u8() == 0 { bytes.u16() & 0xfff } else { u16::from(bytes.u8()) << 4 };
        let now = self.now_or_before(bytes);
        let action = if bytes.flag() {
            let value = if bytes.flag() { bytes.u32() } else { bytes.u16().into() };
            self.lapics[index].write(offset, value, now)
        } else {
            self.lapics[index].read(offset, now);
            None
        };
        self.act(action);
    }

    fn lapic_msr(&mut self, bytes: &mut Bytes<'_>) {
        let index = usize::from(bytes.u8()) % self.lapics.len();
        let msr = match bytes.u8() {
            0..40 => lapic::IA32_APIC_BASE,
            40..80 => lapic::IA32_TSC_DEADLINE,
            other => lapic::X2APIC_FIRST + u32::from(other & 0x3f),
        };
        if !bytes.flag() {
            let _ = self.lapics[index].read_msr(msr, self.now);
            return;
        }
        let value = match msr {
            lapic::IA32_APIC_BASE => lapic::DEFAULT_BASE | u64::from(bytes.u16()) & 0x0f00,
            lapic::IA32_TSC_DEADLINE if bytes.flag() => {
                self.lapics[index].tsc().read(self.now).wrapping_add(bytes.u32().into())
            }
            _ => bytes.u64(),
        };
        if let Ok(action) = self.lapics[index].write_msr(msr, value, self.now) {
            self.act(action);
        }
    }

    fn processor(&mut self, bytes: &mut Bytes<'_>) {
        let index = usize::from(bytes.u8()) % self.lapics.len();
        let lapic = &mut self.lapics[index];
        match bytes.u8() % 12 {
            0..=2 => {
                let pending = lapic.pending();
                assert_eq!(lapic.acknowledge(), pending, "what was pending is what is taken");
            }
            3..=5 => {
                let action = lapic.write(0xb0, 0, self.now);
                self.act(action);
            }
            6 => {
                let mut pic = lock(&self.pic);
                if pic.has_interrupt() && lapic.accepts_pic() {
                    pic.acknowledge();
                }
            }
            7 => lapic.set_cr8(bytes.u8() & 15),
            8 => {
                if lapic.take_init() {
                    lapic.init();
                }
                let _ = (lapic.take_nmi(), lapic.take_smi(), lapic.take_start_up(), lapic.take_ext_int());
                assert!(!lapic.has_event());
            }
            9 => lapic.set_lint(bytes.u8().into(), bytes.flag()),
            10 => {
                let mut tsc = lapic.tsc();
                tsc.write(self.now, bytes.u64());
                lapic.set_tsc(tsc);
            }
            _ => lapic.enter_virtual_wire_mode(),
        }
    }

    fn ioapic_memory(&mut self, bytes: &mut Bytes<'_>) {
        let mut ioapic = lock(&self.ioapic);
        ioapic.write(0, bytes.u8().into());
        let offset = [0x00, 0x10, 0x10, 0x40, bytes.u16()][usize::from(bytes.u8() % 5)];
        if bytes.flag() {
            ioapic.write(offset, bytes.u32());
        } else {
            ioapic.read(offset);
        }
    }

    fn pci_memory(&mut self, bytes: &mut Bytes<'_>) {
        let (address, size) = (bytes.u64(), bytes.size());
        // Where the functions are, or anywhere.
        let ecam = if bytes.flag() { u64::from(bytes.u16()) & 0x1fff | 3 << 15 } else { address };
        match bytes.u8() % 4 {
            0 => drop(self.pci.read_ecam(ecam, size)),
            1 => self.pci.write_ecam(ecam, size, bytes.u32()),
            2 => drop(self.pci.read_memory(address, size * 2)),
            _ => drop(self.pci.write_memory(address, size * 2, bytes.u64())),
        }
    }

    /// What comes from outside the machine.
    fn world(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.u8() % 7 {
            0 => {
                let text: Vec<u8> = (0..bytes.u8() % 40).map(|_| bytes.u8()).collect();
                self.serial.receive(&text);
            }
            1 => self.serial.receive_break(),
            2 => self.i8042.press(Key::new(bytes.u8()), bytes.flag()),
            3 => self.i8042.press(Key::extended(bytes.u8()), bytes.flag()),
            4 => {
                let way = bytes.u64();
                let buttons = Buttons { left: bytes.flag(), right: bytes.flag(), middle: bytes.flag() };
                self.i8042.move_mouse(way as i32, (way >> 32) as i32, buttons);
            }
            5 => self.pm.press_power_button(),
            _ => self.pm.raise_gpe(bytes.u8()),
        }
    }

    /// Time passes: to the next deadline or by any amount, up to some thirty years in all.
    fn advance(&mut self, bytes: &mut Bytes<'_>) {
        const END: Nanos = 1 << 60;
        let next = self.deadlines().into_iter().flatten().min();
        self.now = match next {
            Some(next) if bytes.flag() => self.now.max(next),
            _ => self.now.saturating_add(bytes.u64() >> 8),
        };
        self.now = self.now.min(END);
        let now = self.now;
        self.pit.tick(now);
        self.cmos.tick(now);
        self.pm.tick(now);
        for lapic in &mut self.lapics {
            lapic.tick(now);
        }
        if now < END {
            for deadline in self.deadlines().into_iter().flatten() {
                assert!(deadline > now, "a deadline at {deadline} after the tick at {now}");
            }
        }
    }

    fn deadlines(&self) -> Vec<Option<Nanos>> {
        let mut deadlines =
            vec![self.pit.next_deadline(), self.cmos.next_deadline(), self.pm.next_deadline()];
        deadlines.extend(self.lapics.iter().map(Lapic::next_deadline));
        deadlines
    }

    fn save_and_restore(&mut self, device: u8) {
        const SAME: &str = "a device accepts its own state";
        match device % 8 {
            0 => {
                let state = self.pit.state();
                self.pit = Pit::from_state(&state, self.wire(0)).expect(SAME);
                assert_eq!(self.pit.state(), state);
            }
            1 => {
                let state = self.cmos.state();
                self.cmos = Cmos::from_state(state.clone(), self.wire(8)).expect(SAME);
                assert_eq!(self.cmos.state(), state);
            }
            2 => {
                self.serial.flush();
                let state = self.serial.state();
                self.serial = Serial::from_state(&state, self.wire(4), Box::new(io::sink())).expect(SAME);
                assert_eq!(self.serial.state(), state);
            }
            3 => {
                let state = self.i8042.state();
                self.i8042 = I8042::from_state(state.clone(), self.wire(1), self.wire(12)).expect(SAME);
                assert_eq!(self.i8042.state(), state);
            }
            4 => {
                let state = self.pm.state();
                self.pm = AcpiPm::from_state(state, self.wire(9)).expect(SAME);
                assert_eq!(self.pm.state(), state);
            }
            5 => {
                let mut pic = lock(&self.pic);
                *pic = Pic::from_state(pic.state()).expect(SAME);
            }
            6 => {
                for lapic in &mut self.lapics {
                    let state = lapic.state();
                    *lapic = Lapic::from_state(state.clone()).expect(SAME);
                    assert_eq!(lapic.state(), state);
                }
            }
            _ => {
                let state = lock(&self.ioapic).state();
                let (sender, bus) = channel();
                *lock(&self.ioapic) = Ioapic::from_state(state.clone(), Bus(sender)).expect(SAME);
                self.bus = bus;
                assert_eq!(lock(&self.ioapic).state(), state);
            }
        }
    }

    fn reset(&mut self, device: u8) {
        match device % 10 {
            0 => self.pit.reset(),
            1 => self.cmos.reset(),
            2 => self.serial.reset(),
            3 => self.i8042.reset(),
            4 => self.pm.reset(),
            5 => lock(&self.pic).reset(),
            6 => lock(&self.ioapic).reset(),
            7 => self.pci.reset(),
            8 => self.lapics.iter_mut().for_each(Lapic::reset),
            _ => self.cmos.set_memory_size(1 << (device / 4), 1 << (device / 8)),
        }
    }
}
