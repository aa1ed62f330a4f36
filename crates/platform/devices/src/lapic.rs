//! The local APIC: xAPIC by memory, x2APIC by MSRs, its timer, and interprocessor interrupts.
//!
//! One [`Lapic`] belongs to one processor. It knows no other: what it sends comes back from
//! [`write`](Lapic::write) and [`write_msr`](Lapic::write_msr) as an [`Action`], for the board to route. Facts:
//! Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)"; the section titles below are
//! of that chapter.

mod registers;
mod timer;

use crate::apic::{DeliveryMode, Destination, Message, TriggerMode};
use crate::{Nanos, StateError, TscClock};
use registers::{
    DELIVERY_STATUS, ESR_ILLEGAL_REGISTER, ESR_RECEIVED_ILLEGAL_VECTOR, ESR_SEND_ILLEGAL_VECTOR,
    ICR_RESERVED, LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, SVR_ENABLE, SVR_MASK, Vectors, lvt, register,
};
use serde::{Deserialize, Serialize};
use timer::{Timer, TimerMode};

/// Physical address of the registers after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Size of the register page in bytes.
pub const MMIO_LEN: u64 = 0x1000;

/// MSR IA32_APIC_BASE.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// MSR IA32_TSC_DEADLINE.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// The first of the x2APIC's MSRs.
pub const X2APIC_FIRST: u32 = 0x800;
/// The last of the x2APIC's MSRs.
pub const X2APIC_LAST: u32 = 0x8ff;

const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLE: u64 = 1 << 11;

/// Version register: an integrated APIC with six LVT entries, no EOI broadcast suppression.
const VERSION: u32 = 0x0005_0014;

/// The access is not allowed: the processor raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("#GP(0): the local APIC refuses this MSR access")]
pub struct GeneralProtection;

/// What the rest of the machine must do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an interprocessor interrupt or end of interrupt gets lost"]
pub enum Action {
    /// Hand this message to every local APIC whose [`matches`](Lapic::matches) accepts the destination.
    Ipi(Message),
    /// Tell every I/O APIC the end of a level-triggered interrupt with this vector.
    EndOfInterrupt(u8),
}

/// There is no register of this index.
struct NoRegister;

/// The saved state of a local APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    id: u32,
    /// Width of a physical address in bits, which bounds IA32_APIC_BASE.
    physical_bits: u8,
    /// IA32_APIC_BASE.
    base: u64,
    tpr: u8,
    /// Logical destination register in xAPIC mode; an x2APIC's follows from its ID.
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// The error status register as software reads it, and errors since it was last written.
    esr: u32,
    errors: u32,
    icr: u64,
    /// Timer, thermal, performance counters, LINT0, LINT1, error.
    lvt: [u32; 6],
    timer: Timer,
    tsc: TscClock,
    /// Levels of the LINT0 and LINT1 pins.
    lint: [bool; 2],
    nmi: bool,
    smi: bool,
    init: bool,
    start_up: Option<u8>,
    ext_int: bool,
}

/// How a local APIC is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// APIC ID. An ID above 254 can be addressed in x2APIC mode only.
    pub id: u32,
    /// This is the bootstrap processor.
    pub bootstrap: bool,
    /// Frequency of the timer's input, before its divider, in hertz.
    pub timer_hz: u64,
    /// The processor's time stamp counter.
    pub tsc: TscClock,
    /// Width of a physical address in bits (CPUID 0x8000_0008), 32 to 52.
    pub physical_bits: u8,
}

/// A local APIC.
///
/// ```
/// use posada_devices::TscClock;
/// use posada_devices::apic::TriggerMode;
/// use posada_devices::lapic::{Config, Lapic};
///
/// let mut lapic = Lapic::new(Config {
///     id: 0,
///     bootstrap: true,
///     timer_hz: 1_000_000_000,
///     tsc: TscClock::new(2_000_000_000),
///     physical_bits: 40,
/// });
/// assert_eq!(lapic.write(0xf0, 0x1ff, 0), None); // software enable
/// lapic.deliver(0x41, TriggerMode::Edge);
/// assert_eq!(lapic.pending(), Some(0x41));
/// assert_eq!(lapic.acknowledge(), Some(0x41));
/// assert_eq!(lapic.write(0xb0, 0, 0), None); // end of interrupt
/// ```
#[derive(Clone, Debug)]
pub struct Lapic {
    regs: LapicState,
}

impl Lapic {
    /// A local APIC as after power-on: globally enabled in xAPIC mode, disabled by software.
    pub fn new(config: Config) -> Self {
        let bsp = if config.bootstrap { BASE_BSP } else { 0 };
        Self {
            regs: LapicState {
                id: config.id,
                physical_bits: config.physical_bits,
                base: DEFAULT_BASE | BASE_ENABLE | bsp,
                tpr: 0,
                ldr: 0,
                dfr: u32::MAX,
                svr: 0xff,
                isr: Vectors::default(),
                tmr: Vectors::default(),
                irr: Vectors::default(),
                esr: 0,
                errors: 0,
                icr: 0,
                lvt: [LVT_MASKED; 6],
                timer: Timer::new(config.timer_hz),
                tsc: config.tsc,
                lint: [false; 2],
                nmi: false,
                smi: false,
                init: false,
                start_up: None,
                ext_int: false,
            },
        }
    }

    /// The saved state.
    pub fn state(&self) -> LapicState {
        self.regs.clone()
    }

    /// A local APIC in a saved state.
    pub fn from_state(state: LapicState) -> Result<Self, StateError> {
        if !(32..=52).contains(&state.physical_bits) {
            return Err(StateError::new(
                "local APIC",
                format!("{} physical address bits", state.physical_bits),
            ));
        }
        if state.base & (BASE_X2APIC | BASE_ENABLE) == BASE_X2APIC {
            return Err(StateError::new("local APIC", format!("IA32_APIC_BASE {:#x}", state.base)));
        }
        Ok(Self { regs: state })
    }

    /// The machine's reset: as after power-on, with the lines as they are.
    pub fn reset(&mut self) {
        self.regs.base = DEFAULT_BASE | BASE_ENABLE | self.regs.base & BASE_BSP;
        self.init_registers();
    }

    /// What the processor's INIT does to the APIC: all registers as after power-on but the ID and IA32_APIC_BASE
    /// ("Local APIC State After an INIT Reset").
    pub fn init(&mut self) {
        self.init_registers();
    }

    fn init_registers(&mut self) {
        let old = &self.regs;
        let fresh = Self::new(Config {
            id: old.id,
            bootstrap: false,
            timer_hz: 0,
            tsc: old.tsc,
            physical_bits: old.physical_bits,
        });
        self.regs = LapicState { base: old.base, timer: old.timer.cleared(), lint: old.lint, ..fresh.regs };
    }

    /// What a PC's firmware leaves behind on the bootstrap processor: enabled, the 8259A through LINT0 as ExtINT
    /// ("virtual wire mode"), NMI on LINT1. For a board that starts a kernel without firmware.
    pub fn enter_virtual_wire_mode(&mut self) {
        self.regs.svr = SVR_ENABLE | 0xff;
        self.regs.lvt[lvt::LINT0] = 0x700;
        self.regs.lvt[lvt::LINT1] = 0x400;
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        self.regs.id
    }

    /// The address of the register page, or `None` if memory accesses do not reach the APIC: it is disabled or
    /// in x2APIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.is_enabled() && !self.is_x2apic()).then_some(self.regs.base & !(MMIO_LEN - 1))
    }

    fn is_enabled(&self) -> bool {
        self.regs.base & BASE_ENABLE != 0
    }

    /// Whether the APIC is in x2APIC mode.
    pub fn is_x2apic(&self) -> bool {
        self.regs.base & BASE_X2APIC != 0
    }

    fn is_software_enabled(&self) -> bool {
        self.regs.svr & SVR_ENABLE != 0
    }

    // Interrupts in.

    /// Whether a message with this destination is for this APIC ("Determining IPI Destination").
    pub fn matches(&self, destination: Destination) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match destination {
            Destination::All | Destination::Logical(u32::MAX) => true,
            Destination::AllBut(id) => id != self.regs.id,
            Destination::Physical(id) => id == self.regs.id,
            Destination::Logical(mda) if self.is_x2apic() => {
                let ldr = self.logical_id();
                mda >> 16 == ldr >> 16 && mda & ldr & 0xffff != 0
            }
            Destination::Logical(mda) => {
                let ldr = self.regs.ldr >> 24;
                match self.regs.dfr >> 28 {
                    0xf => mda & ldr != 0,
                    0 => (mda >> 4 == 0xf || mda >> 4 == ldr >> 4) && mda & ldr & 0xf != 0,
                    _ => false,
                }
            }
        }
    }

    /// The x2APIC's logical ID: cluster in the high half, a bit in the low ("Deriving Logical x2APIC ID").
    fn logical_id(&self) -> u32 {
        (self.regs.id >> 4) << 16 | 1 << (self.regs.id & 15)
    }

    /// Takes a message that [`matches`](Self::matches).
    pub fn accept(&mut self, message: &Message) {
        let regs = &mut self.regs;
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.deliver(message.vector, message.trigger);
            }
            DeliveryMode::Smi => regs.smi = true,
            DeliveryMode::Nmi => regs.nmi = true,
            DeliveryMode::Init => regs.init |= message.assert,
            DeliveryMode::StartUp => regs.start_up = Some(message.vector),
            DeliveryMode::ExtInt => regs.ext_int = true,
        }
    }

    /// Accepts a fixed interrupt into the IRR. Disabled APICs take none; vectors below 16 are an error that goes
    /// into the ESR.
    pub fn deliver(&mut self, vector: u8, trigger: TriggerMode) {
        if !self.is_enabled() || !self.is_software_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVED_ILLEGAL_VECTOR);
            return;
        }
        self.regs.irr.set(vector, true);
        self.regs.tmr.set(vector, trigger == TriggerMode::Level);
    }

    /// Drives pin LINT0 (`pin` 0), to which a PC wires the 8259A's output, or LINT1 (`pin` 1), its NMI.
    ///
    /// ExtINT is not latched here: the board asks [`accepts_pic`](Self::accepts_pic) and the 8259A itself.
    pub fn set_lint(&mut self, pin: usize, level: bool) {
        let Some(wire) = self.regs.lint.get_mut(pin) else { return };
        let rose = level && !*wire;
        *wire = level;
        if !self.is_enabled() {
            // The pins are the processor's INTR and NMI.
            self.regs.nmi |= pin == 1 && rose;
            return;
        }
        self.serve_lint(pin, rose);
    }

    fn serve_lint(&mut self, pin: usize, rose: bool) {
        let entry = self.regs.lvt[lvt::LINT0 + pin];
        if entry & LVT_MASKED != 0 {
            return;
        }
        // LINT1 is an edge whatever its entry says.
        let level = entry & LVT_LEVEL != 0 && pin == 0;
        let due = if level { self.regs.lint[pin] && entry & LVT_REMOTE_IRR == 0 } else { rose };
        match DeliveryMode::from_bits((entry >> 8) as u8) {
            Some(DeliveryMode::Fixed) if due && level => {
                self.regs.lvt[lvt::LINT0 + pin] |= LVT_REMOTE_IRR;
                self.deliver(entry as u8, TriggerMode::Level);
            }
            Some(DeliveryMode::Fixed) if due => self.deliver(entry as u8, TriggerMode::Edge),
            Some(DeliveryMode::Smi) => self.regs.smi |= rose,
            Some(DeliveryMode::Nmi) => self.regs.nmi |= rose,
            Some(DeliveryMode::Init) => self.regs.init |= rose,
            _ => {}
        }
    }

    fn error(&mut self, error: u32) {
        // The LVT error entry fires once for each kind until software has read it.
        let new = self.regs.errors & error == 0;
        self.regs.errors |= error;
        let entry = self.regs.lvt[lvt::ERROR];
        // An illegal vector in the error entry itself must not call itself.
        if new && entry & LVT_MASKED == 0 && entry as u8 >= 16 {
            self.deliver(entry as u8, TriggerMode::Edge);
        }
    }

    // Interrupts out, to the processor.

    /// The vector that the processor should take now, if it accepts interrupts: the highest requested whose
    /// class is above the processor priority.
    pub fn pending(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = self.regs.irr.highest()?;
        (vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// The processor takes the [`pending`](Self::pending) interrupt: its service begins.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.regs.irr.set(vector, false);
        self.regs.isr.set(vector, true);
        Some(vector)
    }

    /// Whether the 8259A's request reaches this processor: through LINT0 as ExtINT, or because the APIC is
    /// globally disabled and the pin is the processor's INTR.
    pub fn accepts_pic(&self) -> bool {
        let entry = self.regs.lvt[lvt::LINT0];
        !self.is_enabled() || entry & (LVT_MASKED | 0x700) == 0x700
    }

    /// Whether an ExtINT came by message (an I/O APIC's "ExtINT" pin) and waits for its acknowledge cycle.
    pub fn has_ext_int(&self) -> bool {
        self.regs.ext_int
    }

    /// The acknowledge cycle for [`has_ext_int`](Self::has_ext_int) begins.
    pub fn take_ext_int(&mut self) -> bool {
        std::mem::take(&mut self.regs.ext_int)
    }

    /// Whether an NMI, SMI, INIT or start-up message waits: a quick test before the `take_` functions.
    pub fn has_event(&self) -> bool {
        let regs = &self.regs;
        regs.nmi || regs.smi || regs.init || regs.start_up.is_some()
    }

    /// Takes the waiting NMI, if any.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.regs.nmi)
    }

    /// Takes the waiting system management interrupt, if any.
    pub fn take_smi(&mut self) -> bool {
        std::mem::take(&mut self.regs.smi)
    }

    /// Takes the waiting INIT, if any. The board then resets the processor and calls [`init`](Self::init).
    pub fn take_init(&mut self) -> bool {
        std::mem::take(&mut self.regs.init)
    }

    /// Takes the waiting start-up message, if any: the page number (physical address divided by 4096) at which
    /// a processor that waits for it starts. One that does not wait ignores it.
    pub fn take_start_up(&mut self) -> Option<u8> {
        self.regs.start_up.take()
    }

    /// Raises an NMI on this processor alone.
    pub fn raise_nmi(&mut self) {
        self.regs.nmi = true;
    }

    // Priorities.

    /// The processor priority register ("Task and Processor Priorities").
    pub fn ppr(&self) -> u8 {
        let in_service = self.regs.isr.highest().unwrap_or(0) & 0xf0;
        if self.regs.tpr & 0xf0 >= in_service { self.regs.tpr } else { in_service }
    }

    /// CR8: the class of the task priority, 0 to 15.
    pub fn cr8(&self) -> u8 {
        self.regs.tpr >> 4
    }

    /// A write to CR8; the processor has seen to it that `value` is 0 to 15.
    pub fn set_cr8(&mut self, value: u8) {
        self.regs.tpr = value << 4;
    }

    // The timer.

    /// The time stamp counter that TSC-deadline mode goes by.
    pub fn tsc(&self) -> TscClock {
        self.regs.tsc
    }

    /// The processor's time stamp counter has been changed (IA32_TSC or IA32_TSC_ADJUST).
    pub fn set_tsc(&mut self, tsc: TscClock) {
        self.regs.tsc = tsc;
    }

    /// When [`tick`](Self::tick) is next wanted.
    pub fn next_deadline(&self) -> Option<Nanos> {
        if self.regs.lvt[lvt::TIMER] & LVT_MASKED != 0 {
            return None;
        }
        self.regs.timer.next_deadline(self.regs.tsc)
    }

    /// Delivers the timer's interrupt if it expired since the last call: one, however many have been missed.
    pub fn tick(&mut self, now: Nanos) {
        let expired = self.regs.timer.expire(now, self.regs.tsc);
        let entry = self.regs.lvt[lvt::TIMER];
        if expired && entry & LVT_MASKED == 0 {
            self.deliver(entry as u8, TriggerMode::Edge);
        }
    }

    // Registers by memory (xAPIC).

    /// Reads the 32-bit register at `offset` in the page. Registers lie at multiples of 16; the SDM allows
    /// aligned 32-bit accesses only, so the bytes between them read as 0.
    pub fn read(&mut self, offset: u16, now: Nanos) -> u32 {
        if offset & 0xf != 0 {
            return 0;
        }
        let index = u32::from(offset >> 4);
        match index {
            register::ID => self.regs.id << 24,
            register::APR => self.ppr().into(),
            // Remote read is no more; EOI is write-only. Neither is an error.
            register::RRD | register::EOI => 0,
            register::LDR => self.regs.ldr,
            register::DFR => self.regs.dfr,
            register::ICR => self.regs.icr as u32,
            register::ICR_HIGH => (self.regs.icr >> 32) as u32,
            _ => self.read_common(index, now).unwrap_or_else(|NoRegister| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// Writes the 32-bit register at `offset` in the page.
    pub fn write(&mut self, offset: u16, value: u32, now: Nanos) -> Option<Action> {
        if offset & 0xf != 0 {
            return None;
        }
        let index = u32::from(offset >> 4);
        match index {
            // Read only here, as on the processors that have x2APIC.
            register::ID
            | register::VERSION
            | register::APR
            | register::PPR
            | register::RRD
            | register::ISR..=register::IRR_LAST
            | register::CURRENT_COUNT => None,
            register::LDR => {
                self.regs.ldr = value & 0xff00_0000;
                None
            }
            register::DFR => {
                self.regs.dfr = value | 0x0fff_ffff;
                None
            }
            register::ICR => {
                let high = self.regs.icr & 0xffff_ffff_0000_0000;
                self.regs.icr = high | u64::from(value & !(ICR_RESERVED | DELIVERY_STATUS));
                self.send()
            }
            register::ICR_HIGH => {
                self.regs.icr = self.regs.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                None
            }
            register::SELF_IPI => {
                self.error(ESR_ILLEGAL_REGISTER);
                None
            }
            _ => self.write_common(index, value, now).unwrap_or_else(|NoRegister| {
                self.error(ESR_ILLEGAL_REGISTER);
                None
            }),
        }
    }

    /// Registers that both modes read alike.
    fn read_common(&mut self, index: u32, now: Nanos) -> Result<u32, NoRegister> {
        self.tick(now);
        let regs = &self.regs;
        Ok(match index {
            register::VERSION => VERSION,
            register::TPR => regs.tpr.into(),
            register::PPR => self.ppr().into(),
            register::SVR => regs.svr,
            register::ISR..=register::ISR_LAST => regs.isr.0[(index - register::ISR) as usize],
            register::TMR..=register::TMR_LAST => regs.tmr.0[(index - register::TMR) as usize],
            register::IRR..=register::IRR_LAST => regs.irr.0[(index - register::IRR) as usize],
            register::ESR => regs.esr,
            register::LVT_TIMER..=register::LVT_LAST => regs.lvt[(index - register::LVT_TIMER) as usize],
            register::INITIAL_COUNT => regs.timer.initial,
            register::CURRENT_COUNT => regs.timer.current(now),
            register::DIVIDE => regs.timer.divide(),
            _ => return Err(NoRegister),
        })
    }

    /// Registers that both modes write alike.
    fn write_common(&mut self, index: u32, value: u32, now: Nanos) -> Result<Option<Action>, NoRegister> {
        self.tick(now);
        match index {
            register::TPR => self.regs.tpr = value as u8,
            register::EOI => return Ok(self.end_of_interrupt()),
            register::SVR => self.write_svr(value),
            register::ESR => self.regs.esr = std::mem::take(&mut self.regs.errors),
            register::LVT_TIMER..=register::LVT_LAST => {
                self.write_lvt((index - register::LVT_TIMER) as usize, value, now);
            }
            register::INITIAL_COUNT => {
                if self.regs.timer.mode != TimerMode::TscDeadline {
                    self.regs.timer.set_initial(value, now);
                }
            }
            register::DIVIDE => self.regs.timer.set_divide(value, now),
            _ => return Err(NoRegister),
        }
        Ok(None)
    }

    fn write_svr(&mut self, value: u32) {
        self.regs.svr = value & SVR_MASK;
        if !self.is_software_enabled() {
            for entry in &mut self.regs.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32, now: Nanos) {
        let old = self.regs.lvt[index];
        let mut entry = value & lvt::WRITABLE[index];
        if !self.is_software_enabled() {
            entry |= LVT_MASKED;
        }
        // Remote IRR lasts while the entry stays level-triggered.
        if entry & LVT_LEVEL != 0 {
            entry |= old & LVT_REMOTE_IRR;
        }
        self.regs.lvt[index] = entry;
        match index {
            lvt::TIMER => self.regs.timer.set_mode(TimerMode::from_lvt(entry), now),
            lvt::LINT0 | lvt::LINT1 => self.serve_lint(index - lvt::LINT0, false),
            _ => {}
        }
    }

    fn end_of_interrupt(&mut self) -> Option<Action> {
        let vector = self.regs.isr.highest()?;
        self.regs.isr.set(vector, false);
        if !self.regs.tmr.contains(vector) {
            return None;
        }
        for pin in 0..2 {
            let entry = &mut self.regs.lvt[lvt::LINT0 + pin];
            if *entry & LVT_REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !LVT_REMOTE_IRR;
                self.serve_lint(pin, false);
            }
        }
        Some(Action::EndOfInterrupt(vector))
    }

    /// Sends the interprocessor interrupt that the ICR describes ("Issuing Interprocessor Interrupts").
    fn send(&mut self) -> Option<Action> {
        let icr = self.regs.icr as u32;
        let mode = match DeliveryMode::from_bits((icr >> 8) as u8) {
            None | Some(DeliveryMode::ExtInt) => return None,
            Some(mode) => mode,
        };
        let vector = icr as u8;
        if vector < 16 && matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
            return None;
        }
        let logical = icr & 1 << 11 != 0;
        let destination = match (icr >> 18 & 3, self.is_x2apic()) {
            (1, _) => Destination::Physical(self.regs.id),
            (2, _) => Destination::All,
            (3, _) => Destination::AllBut(self.regs.id),
            (_, false) => Destination::from_byte((self.regs.icr >> 56) as u8, logical),
            (_, true) => match (self.regs.icr >> 32) as u32 {
                u32::MAX => Destination::All,
                address if logical => Destination::Logical(address),
                id => Destination::Physical(id),
            },
        };
        // Level and trigger mode matter for the INIT level de-assert alone; all other messages are edges.
        let assert = mode != DeliveryMode::Init || icr & 0xc000 != 0x8000;
        let message = Message { destination, mode, vector, trigger: TriggerMode::Edge, assert };
        if icr >> 18 & 3 == 1 {
            self.accept(&message);
            return None;
        }
        Some(Action::Ipi(message))
    }

    // MSRs.

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or one of the x2APIC's MSRs. Everything else, and a register that
    /// the mode does not have, is refused.
    pub fn read_msr(&mut self, msr: u32, now: Nanos) -> Result<u64, GeneralProtection> {
        match msr {
            IA32_APIC_BASE => return Ok(self.regs.base),
            IA32_TSC_DEADLINE => {
                self.tick(now);
                return Ok(self.regs.timer.deadline);
            }
            X2APIC_FIRST..=X2APIC_LAST if self.is_x2apic() => {}
            _ => return Err(GeneralProtection),
        }
        match msr - X2APIC_FIRST {
            register::ID => Ok(self.regs.id.into()),
            register::LDR => Ok(self.logical_id().into()),
            register::ICR => Ok(self.regs.icr),
            index => self.read_common(index, now).map(u64::from).map_err(|NoRegister| GeneralProtection),
        }
    }

    /// Writes one of the MSRs that [`read_msr`](Self::read_msr) reads. Reserved bits, read-only registers and
    /// transitions that the SDM forbids ("x2APIC State Transitions") are refused.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: Nanos,
    ) -> Result<Option<Action>, GeneralProtection> {
        match msr {
            IA32_APIC_BASE => return self.write_base(value).map(|()| None),
            IA32_TSC_DEADLINE => {
                self.tick(now);
                if self.regs.timer.mode == TimerMode::TscDeadline {
                    self.regs.timer.deadline = value;
                    self.tick(now);
                }
                return Ok(None);
            }
            X2APIC_FIRST..=X2APIC_LAST if self.is_x2apic() => {}
            _ => return Err(GeneralProtection),
        }
        let index = msr - X2APIC_FIRST;
        if index == register::ICR {
            if value as u32 & ICR_RESERVED != 0 {
                return Err(GeneralProtection);
            }
            self.regs.icr = value & !u64::from(DELIVERY_STATUS);
            return Ok(self.send());
        }
        let allowed = match index {
            register::TPR | register::SELF_IPI => 0xff,
            register::EOI | register::ESR => 0,
            register::SVR => SVR_MASK,
            register::LVT_TIMER..=register::LVT_LAST => {
                let entry = (index - register::LVT_TIMER) as usize;
                lvt::WRITABLE[entry] | lvt::READ_ONLY[entry]
            }
            register::INITIAL_COUNT => u32::MAX,
            register::DIVIDE => 0x0b,
            _ => return Err(GeneralProtection),
        };
        if value & !u64::from(allowed) != 0 {
            return Err(GeneralProtection);
        }
        if index == register::SELF_IPI {
            self.deliver(value as u8, TriggerMode::Edge);
            return Ok(None);
        }
        self.write_common(index, value as u32, now).map_err(|NoRegister| GeneralProtection)
    }

    fn write_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let address_bits = (1 << self.regs.physical_bits) - MMIO_LEN;
        if value & !(address_bits | BASE_ENABLE | BASE_X2APIC | BASE_BSP) != 0 {
            return Err(GeneralProtection);
        }
        let mode = |base: u64| (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0);
        match (mode(self.regs.base), mode(value)) {
            // Extended without enable; from disabled straight to x2APIC; from x2APIC straight to xAPIC.
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false)) => {
                return Err(GeneralProtection);
            }
            ((true, _), (false, false)) => self.init_registers(),
            ((true, false), (true, true)) => {
                // The ICR's high half has another format.
                self.regs.icr &= 0xffff_ffff;
            }
            _ => {}
        }
        self.regs.base = value;
        Ok(())
    }
}

#[cfg(test)]
#[path = "lapic_test.rs"]
mod tests;
