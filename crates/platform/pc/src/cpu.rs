//! One processor's view of the board: which device answers where, and what its local APIC has for it.

use std::sync::Arc;

use posada_devices::acpi_pm::{self, PowerRequest};
use posada_devices::apic::{DeliveryMode, Destination, Message, TriggerMode};
use posada_devices::cmos::{DATA_PORT as CMOS_DATA, INDEX_PORT as CMOS_INDEX};
use posada_devices::debug_exit::{self, DebugExit};
use posada_devices::i8042::{self, COMMAND_PORT, DATA_PORT, SYSTEM_CONTROL_A};
use posada_devices::lapic::{Action, GeneralProtection, Lapic};
use posada_devices::pic::Pic;
use posada_devices::{ioapic, pci};
use posada_memory::{Gpa, GuestRam};
use posada_vcpu::{Bus, Event, Interrupts, MsrError};

use crate::apics::LocalApic;
use crate::board::Board;
use crate::control::Request;
use crate::layout::{ECAM, ECAM_LEN, PM};

/// The gate of the timer's channel 2, and the speaker.
const PORT_61: u16 = 0x61;
const PM_END: u16 = PM + acpi_pm::BLOCK_LEN - 1;
const PCI_FIRST: u16 = pci::CONFIG_ADDRESS;
const PCI_LAST: u16 = pci::CONFIG_DATA + 3;

/// The board as one processor sees it.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    board: Arc<Board>,
    ram: GuestRam,
    index: usize,
}

/// An access of up to eight bytes as a number, and back.
fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn fill(data: &mut [u8], value: u64) {
    for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = from;
    }
}

impl Cpu {
    pub(crate) fn new(board: Arc<Board>, ram: GuestRam, index: u32) -> Self {
        Self { board, ram, index: index as usize }
    }

    fn apic(&self) -> &LocalApic {
        &self.board.wiring.apics.cpus[self.index]
    }

    /// Ports of devices whose registers are one byte wide: an access of more bytes is several of one, as on the
    /// ISA bus.
    fn read_byte(&self, port: u16) -> u8 {
        let board = &*self.board;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => board.wiring.with_pic(|pic| pic.read(port)),
            0x40..=0x43 => board.pit().read((port - 0x40) as u8, board.clock.now()),
            PORT_61 => board.pit().read_port_61(board.clock.now()),
            DATA_PORT => board.keyboard().read_data(),
            COMMAND_PORT => board.keyboard().read_status(),
            SYSTEM_CONTROL_A => board.keyboard().read_system_control(),
            CMOS_INDEX => board.cmos().read_index(),
            CMOS_DATA => {
                let mut cmos = board.cmos();
                let value = cmos.read_data(board.clock.now());
                // Reading acknowledges an interrupt, so there may be a next one.
                board.alarm.at(cmos.next_deadline());
                value
            }
            0x3f8..=0x3ff => board.serial[0].read((port & 7) as u8),
            0x2f8..=0x2ff => board.serial[1].read((port & 7) as u8),
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        let board = &*self.board;
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => board.wiring.with_pic(|pic| pic.write(port, value)),
            0x40..=0x43 => {
                let mut pit = board.pit();
                pit.write((port - 0x40) as u8, value, board.clock.now());
                board.alarm.at(pit.next_deadline());
            }
            PORT_61 => board.pit().write_port_61(value, board.clock.now()),
            DATA_PORT => self.keyboard_request(board.keyboard().write_data(value)),
            COMMAND_PORT => self.keyboard_request(board.keyboard().write_command(value)),
            SYSTEM_CONTROL_A => self.keyboard_request(board.keyboard().write_system_control(value)),
            CMOS_INDEX => board.cmos().write_index(value),
            CMOS_DATA => {
                let mut cmos = board.cmos();
                cmos.write_data(value, board.clock.now());
                board.alarm.at(cmos.next_deadline());
            }
            0x3f8..=0x3ff => self.write_serial(0, port, value),
            0x2f8..=0x2ff => self.write_serial(1, port, value),
            acpi_pm::SMI_COMMAND => board.power().write_smi_command(value),
            _ => {}
        }
    }

    fn write_serial(&self, index: usize, port: u16, value: u8) {
        if self.board.serial[index].write((port & 7) as u8, value) {
            self.board.output_waits();
        }
    }

    fn keyboard_request(&self, request: Option<i8042::Request>) {
        // Engines have no gate on address line 20: it is always open.
        if request == Some(i8042::Request::Reset) {
            self.board.request(Request::Reset);
        }
    }

    fn power_request(&self, request: Option<PowerRequest>) {
        if let Some(request) = request {
            self.board.request(request);
        }
    }

    fn read_power(&self, port: u16, size: u8) -> u32 {
        let mut power = self.board.power();
        power.read(port - PM, size, self.board.clock.now())
    }

    fn write_power(&self, port: u16, size: u8, value: u32) {
        let mut power = self.board.power();
        let request = power.write(port - PM, size, value, self.board.clock.now());
        let next = power.next_deadline();
        drop(power);
        self.board.alarm.at(next);
        self.power_request(request);
    }

    /// Reads from the local APIC's page: the registers have 32 bits and are read whole; what a narrower read
    /// gets is not defined.
    fn read_apic(&self, offset: u16, data: &mut [u8]) {
        let value = self.apic().lock().read(offset & !3, self.board.clock.now());
        fill(data, u64::from(value) >> (8 * (offset & 3)));
    }

    fn write_apic(&self, offset: u16, data: &[u8]) {
        // What a narrower write does is not defined: nothing, here.
        if data.len() >= 4 {
            let mut lapic = self.apic().lock();
            let action = lapic.write(offset, value(data) as u32, self.board.clock.now());
            self.after_apic(&lapic);
            drop(lapic);
            self.act(action);
        }
    }

    /// After a change of the local APIC by its own processor.
    fn after_apic(&self, lapic: &Lapic) {
        self.board.alarm.at(lapic.next_deadline());
        if self.board.wiring.apics.has_interrupt(lapic) {
            self.apic().attention.interrupt();
        }
    }

    fn act(&self, action: Option<Action>) {
        match action {
            Some(Action::Ipi(message)) => self.send(&message),
            Some(Action::EndOfInterrupt(vector)) => self.board.wiring.ioapic().end_of_interrupt(vector),
            None => {}
        }
    }

    fn send(&self, message: &Message) {
        self.board.wiring.apics.send(message);
    }

    fn read_device_memory(&self, address: u64, data: &mut [u8]) {
        if let Some(offset) = self.apic().offset(address) {
            return self.read_apic(offset, data);
        }
        let size = data.len() as u8;
        let value = match address {
            ioapic::DEFAULT_BASE..IOAPIC_END if size <= 4 => {
                let offset = (address - ioapic::DEFAULT_BASE) as u16;
                let value = self.board.wiring.ioapic().read(offset & !3);
                u64::from(value) >> (8 * (offset & 3))
            }
            ECAM..ECAM_END => self.read_ecam(address - ECAM, size),
            RESET_AREA..FOUR_GIB => {
                let shadow = Gpa(SHADOW + (address - RESET_AREA));
                // There is RAM from here up to at least 4 MiB.
                return self.ram.read(shadow, data).unwrap_or_else(|_| data.fill(0xff));
            }
            _ => self.board.pci.read_memory(address, size).unwrap_or(u64::MAX),
        };
        fill(data, value);
    }

    fn read_ecam(&self, offset: u64, size: u8) -> u64 {
        let pci = &self.board.pci;
        match size {
            8 => {
                let (low, high) = (pci.read_ecam(offset, 4), pci.read_ecam(offset.wrapping_add(4), 4));
                u64::from(high) << 32 | u64::from(low)
            }
            _ => u64::from(pci.read_ecam(offset, size)),
        }
    }

    fn write_device_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = self.apic().offset(address) {
            return self.write_apic(offset, data);
        }
        let (size, value) = (data.len() as u8, value(data));
        match address {
            ioapic::DEFAULT_BASE..IOAPIC_END => {
                if size >= 4 {
                    let offset = (address - ioapic::DEFAULT_BASE) as u16;
                    self.board.wiring.ioapic().write(offset, value as u32);
                }
            }
            ECAM..ECAM_END => {
                let (offset, pci) = (address - ECAM, &self.board.pci);
                pci.write_ecam(offset, size.min(4), value as u32);
                if size == 8 {
                    pci.write_ecam(offset.wrapping_add(4), 4, (value >> 32) as u32);
                }
            }
            _ => {
                self.board.pci.write_memory(address, size, value);
            }
        }
    }
}

const IOAPIC_END: u64 = ioapic::DEFAULT_BASE + ioapic::MMIO_LEN;
const ECAM_END: u64 = ECAM + ECAM_LEN;
/// The 64 KiB in which processors begin after a reset show what lies below 1 MiB.
const RESET_AREA: u64 = 0xffff_0000;
const SHADOW: u64 = 0xf_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Ports that belong to no device of the board's own, so that a PCI function may claim them.
fn is_unclaimed(port: u16) -> bool {
    port >= 0x1000
}

impl Bus for Cpu {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let size = data.len() as u8;
        match port {
            // One write in three of a kernel that boots: a delay, or a code for a display that is not there.
            0x80 => data.fill(0xff),
            acpi_pm::RESET_CONTROL if size == 1 => data[0] = self.board.power().read_reset_control(),
            PCI_FIRST..=PCI_LAST => fill(data, u64::from(self.board.pci.read_port(port, size))),
            PM..=PM_END => fill(data, u64::from(self.read_power(port, size))),
            _ if is_unclaimed(port) => {
                let value = self.board.pci.read_io(port, size).unwrap_or(u32::MAX);
                fill(data, u64::from(value));
            }
            _ => {
                for (offset, byte) in (0..).zip(data.iter_mut()) {
                    *byte = self.read_byte(port.wrapping_add(offset));
                }
            }
        }
        tracing::trace!(target: "io", cpu = self.index, "in  {port:#06x} -> {data:02x?}");
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        tracing::trace!(target: "io", cpu = self.index, "out {port:#06x} <- {data:02x?}");
        let size = data.len() as u8;
        match port {
            0x80 => {}
            acpi_pm::RESET_CONTROL if size == 1 => {
                let request = self.board.power().write_reset_control(data[0]);
                self.power_request(request);
            }
            PCI_FIRST..=PCI_LAST => self.board.pci.write_port(port, size, value(data) as u32),
            PM..=PM_END => self.write_power(port, size, value(data) as u32),
            debug_exit::PORT if self.board.debug_exit => {
                self.board.request(Request::DebugExit(DebugExit.write(value(data) as u32)));
            }
            _ if is_unclaimed(port) => {
                self.board.pci.write_io(port, size, value(data) as u32);
            }
            _ => {
                for (offset, &byte) in (0..).zip(data) {
                    self.write_byte(port.wrapping_add(offset), byte);
                }
            }
        }
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.read_device_memory(address, data);
        tracing::trace!(target: "io", cpu = self.index, "load  {address:#010x} -> {data:02x?}");
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        tracing::trace!(target: "io", cpu = self.index, "store {address:#010x} <- {data:02x?}");
        self.write_device_memory(address, data);
    }
}

fn start_up_message(vector: u8) -> Message {
    Message {
        destination: Destination::All,
        mode: DeliveryMode::StartUp,
        vector,
        trigger: TriggerMode::Edge,
        assert: true,
    }
}

fn refused(_: GeneralProtection) -> MsrError {
    MsrError
}

impl Interrupts for Cpu {
    fn pending(&self) -> bool {
        self.board.wiring.apics.has_interrupt(&self.apic().lock())
    }

    fn acknowledge(&self) -> Option<u8> {
        let mut lapic = self.apic().lock();
        let vector = match lapic.acknowledge() {
            Some(vector) => Some(vector),
            None if self.board.wiring.apics.has_pic_interrupt(&lapic) => {
                lapic.take_ext_int();
                // The PIC is locked before a local APIC, never after.
                drop(lapic);
                Some(self.board.wiring.with_pic(Pic::acknowledge))
            }
            None => None,
        };
        if let Some(vector) = vector {
            tracing::trace!(target: "irq", cpu = self.index, vector, "taken");
        }
        vector
    }

    fn take_event(&self) -> Option<Event> {
        let mut lapic = self.apic().lock();
        if !lapic.has_event() {
            return None;
        }
        // There is no system management mode.
        lapic.take_smi();
        let event = if lapic.take_init() {
            // The start-up message that has followed already is for after it.
            let start_up = lapic.take_start_up();
            lapic.init();
            if let Some(vector) = start_up {
                lapic.accept(&start_up_message(vector));
            }
            Event::Init
        } else if let Some(page) = lapic.take_start_up() {
            Event::StartUp(page)
        } else if lapic.take_nmi() {
            Event::Nmi
        } else {
            return None;
        };
        tracing::trace!(target: "irq", cpu = self.index, ?event, "taken");
        Some(event)
    }

    fn cr8(&self) -> u8 {
        self.apic().lock().cr8()
    }

    fn set_cr8(&self, priority: u8) {
        let mut lapic = self.apic().lock();
        lapic.set_cr8(priority & 15);
        self.after_apic(&lapic);
    }

    fn read_msr(&self, msr: u32) -> Result<u64, MsrError> {
        self.apic().lock().read_msr(msr, self.board.clock.now()).map_err(refused)
    }

    fn write_msr(&self, msr: u32, value: u64) -> Result<(), MsrError> {
        let mut lapic = self.apic().lock();
        let action = lapic.write_msr(msr, value, self.board.clock.now()).map_err(refused)?;
        self.apic().moved(&lapic);
        self.after_apic(&lapic);
        drop(lapic);
        self.act(action);
        Ok(())
    }
}
