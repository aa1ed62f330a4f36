//! The fixed hardware of ACPI: power management events, timer, sleep, and the reset register.
//!
//! One block of ports holds the PM1a event and control registers, the timer and a general-purpose event block, at
//! the offsets below, which the board adds to its base and writes into the FADT. Beside it answer the SMI command
//! port, by which an operating system takes power management from the firmware, and the reset control register of
//! Intel chipsets at 0xcf9. Facts: ACPI 6.4 §4.8 "ACPI Register Model"; ICH9 data sheet (316972) §13.7.5 for 0xcf9.
//!
//! Asleep means S5 here, soft off: there is no other sleep state.

use crate::clock::{Nanos, ticks, time_of_tick};
use crate::line::Output;
use crate::{IrqLine, StateError};
use serde::{Deserialize, Serialize};

/// Offset of the PM1a event block: two bytes of status, two of enables.
pub const PM1_EVENT: u16 = 0x00;
/// Offset of the PM1a control block, two bytes.
pub const PM1_CONTROL: u16 = 0x04;
/// Offset of the timer, which is 32 bits wide (FADT flag `TMR_VAL_EXT`).
pub const TIMER: u16 = 0x08;
/// Offset of general-purpose event block 0.
pub const GPE0: u16 = 0x20;
/// Length of general-purpose event block 0 (FADT `GPE0_BLK_LEN`): half of it status, half enables.
pub const GPE0_LEN: u8 = 8;
/// Length of the whole block of ports.
pub const BLOCK_LEN: u16 = 0x40;

/// Frequency of the timer in hertz.
pub const TIMER_HZ: u64 = 3_579_545;

/// The SMI command port (FADT `SMI_CMD`).
pub const SMI_COMMAND: u16 = 0xb2;
/// What is written there to enter ACPI mode (FADT `ACPI_ENABLE`).
pub const ACPI_ENABLE: u8 = 0xf1;
/// What is written there to leave ACPI mode (FADT `ACPI_DISABLE`).
pub const ACPI_DISABLE: u8 = 0xf0;

/// SLP_TYP of soft off, for the DSDT's `_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The reset control register (FADT `RESET_REG`).
pub const RESET_CONTROL: u16 = 0xcf9;
/// What is written there for a hard reset (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 0x06;

const TIMER_STATUS: u16 = 1 << 0;
const GLOBAL_STATUS: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const SLEEP_BUTTON: u16 = 1 << 9;
const RTC: u16 = 1 << 10;
const WAKE_STATUS: u16 = 1 << 15;
/// Status bits that exist; each is cleared by writing it.
const STATUS_MASK: u16 = TIMER_STATUS | GLOBAL_STATUS | POWER_BUTTON | SLEEP_BUTTON | RTC | WAKE_STATUS;
const ENABLE_MASK: u16 = TIMER_STATUS | GLOBAL_STATUS | POWER_BUTTON | SLEEP_BUTTON | RTC;

const SCI_ENABLE: u16 = 1 << 0;
/// SCI_EN, BM_RLD, SLP_TYP. SLP_EN is write-only, and so is GBL_RLS, by which firmware would be told that the
/// global lock is free.
const CONTROL_MASK: u16 = 0x1c03;
const SLEEP_ENABLE: u16 = 1 << 13;

/// Reset control: the kind of reset that setting [`RESET_CPU`] makes.
const RESET_MASK: u8 = 0x0e;
const RESET_CPU: u8 = 1 << 2;

/// What the guest asked the machine to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the guest waits for this to happen"]
pub enum PowerRequest {
    /// Soft off (S5).
    Off,
    /// Reset of the whole machine.
    Reset,
}

/// The saved state of the power management hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u32,
    gpe_enable: u32,
    reset_control: u8,
    /// How often the timer's highest bit had changed when its status was last brought up to date.
    timer_halves: u64,
    line: bool,
}

/// The power management hardware, with the line of its system control interrupt (SCI), which is a level.
///
/// ```
/// use posada_devices::acpi_pm::{self, AcpiPm, PowerRequest};
/// use posada_devices::Unconnected;
///
/// let mut pm = AcpiPm::new(Unconnected);
/// assert_eq!(pm.read(acpi_pm::TIMER, 4, 1_000_000_000), 3_579_545);
/// let soft_off = u32::from(acpi_pm::SLEEP_TYPE_S5) << 10 | 1 << 13;
/// assert_eq!(pm.write(acpi_pm::PM1_CONTROL, 2, soft_off, 0), Some(PowerRequest::Off));
/// ```
#[derive(Debug)]
pub struct AcpiPm<L> {
    regs: AcpiPmState,
    line: Output<L>,
}

impl<L: IrqLine> AcpiPm<L> {
    /// The hardware as after power-on, in legacy mode.
    pub fn new(line: L) -> Self {
        Self { regs: AcpiPmState::default(), line: Output::at(line, false) }
    }

    /// The saved state.
    pub fn state(&self) -> AcpiPmState {
        AcpiPmState { line: self.line.level(), ..self.regs }
    }

    /// The hardware in a saved state. The line is not driven.
    pub fn from_state(state: AcpiPmState, line: L) -> Result<Self, StateError> {
        if state.status & !STATUS_MASK != 0
            || state.enable & !ENABLE_MASK != 0
            || state.control & !CONTROL_MASK != 0
        {
            return Err(StateError::new("ACPI hardware", format!("bits that do not exist in {state:x?}")));
        }
        Ok(Self { regs: state, line: Output::at(line, state.line) })
    }

    /// The machine's reset. The timer, which counts guest time, goes on.
    pub fn reset(&mut self) {
        self.regs = AcpiPmState { timer_halves: self.regs.timer_halves, ..AcpiPmState::default() };
        self.update_line();
    }

    /// Enters ACPI mode, as firmware does that has no legacy mode to offer (then FADT `SMI_CMD` is 0).
    pub fn enable_acpi(&mut self) {
        self.regs.control |= SCI_ENABLE;
        self.update_line();
    }

    /// Somebody presses the power button: an operating system shuts down in order.
    pub fn press_power_button(&mut self) {
        self.raise(POWER_BUTTON);
    }

    /// Somebody presses the sleep button.
    pub fn press_sleep_button(&mut self) {
        self.raise(SLEEP_BUTTON);
    }

    fn raise(&mut self, status: u16) {
        self.regs.status |= status;
        self.update_line();
    }

    /// Raises general-purpose event `number` (0 to 31; others do not exist: ignored).
    pub fn raise_gpe(&mut self, number: u8) {
        self.regs.gpe_status |= 1u32.checked_shl(number.into()).unwrap_or(0);
        self.update_line();
    }

    fn update_line(&mut self) {
        let regs = &self.regs;
        let events = regs.status & regs.enable != 0 || regs.gpe_status & regs.gpe_enable != 0;
        self.line.set(events && regs.control & SCI_ENABLE != 0);
    }

    /// The timer's value at `now`.
    fn timer(now: Nanos) -> u32 {
        ticks(now, TIMER_HZ) as u32
    }

    /// When [`tick`](Self::tick) is next wanted: when the timer's highest bit changes, if that interrupt is
    /// enabled and not pending.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let wanted = self.regs.enable & !self.regs.status & TIMER_STATUS != 0;
        let tick = self.regs.timer_halves.checked_add(1)?.checked_mul(1 << 31)?;
        wanted.then(|| time_of_tick(tick, TIMER_HZ))
    }

    /// Brings the timer's status up to date.
    pub fn tick(&mut self, now: Nanos) {
        let halves = ticks(now, TIMER_HZ) >> 31;
        if halves > self.regs.timer_halves {
            self.regs.timer_halves = halves;
            self.raise(TIMER_STATUS);
        }
    }

    /// Reads `size` bytes (1, 2 or 4) at `offset` in the block.
    pub fn read(&mut self, offset: u16, size: u8, now: Nanos) -> u32 {
        self.tick(now);
        (0..size.min(4)).fold(0, |value, byte| {
            value | u32::from(self.read_byte(offset.saturating_add(byte.into()), now)) << (8 * byte)
        })
    }

    fn read_byte(&self, offset: u16, now: Nanos) -> u8 {
        let regs = &self.regs;
        let half = usize::from(GPE0_LEN / 2);
        let index = usize::from(offset);
        match offset {
            0x00..=0x01 => regs.status.to_le_bytes()[index],
            0x02..=0x03 => regs.enable.to_le_bytes()[index - 2],
            0x04..=0x05 => regs.control.to_le_bytes()[index - 4],
            0x08..=0x0b => Self::timer(now).to_le_bytes()[index - 8],
            0x20..=0x23 => regs.gpe_status.to_le_bytes()[index - 0x20],
            0x24..=0x27 => regs.gpe_enable.to_le_bytes()[index - 0x20 - half],
            _ => 0,
        }
    }

    /// Writes `size` bytes (1, 2 or 4) at `offset` in the block.
    pub fn write(&mut self, offset: u16, size: u8, value: u32, now: Nanos) -> Option<PowerRequest> {
        self.tick(now);
        let mut sleep = false;
        for byte in 0..size.min(4) {
            sleep |= self.write_byte(offset.saturating_add(byte.into()), (value >> (8 * byte)) as u8);
        }
        self.update_line();
        let sleep_type = (self.regs.control >> 10 & 7) as u8;
        (sleep && sleep_type == SLEEP_TYPE_S5).then_some(PowerRequest::Off)
    }

    /// Writes one byte; whether it set SLP_EN.
    fn write_byte(&mut self, offset: u16, value: u8) -> bool {
        let regs = &mut self.regs;
        let shift = 8 * (offset & 1);
        let place = |old: u16| old & !(0xff << shift) | u16::from(value) << shift;
        match offset {
            0x00..=0x01 => regs.status &= !(u16::from(value) << shift),
            0x02..=0x03 => regs.enable = place(regs.enable) & ENABLE_MASK,
            0x04..=0x05 => {
                let written = place(regs.control);
                regs.control = written & CONTROL_MASK;
                return offset == 0x05 && written & SLEEP_ENABLE != 0;
            }
            0x20..=0x23 => regs.gpe_status &= !(u32::from(value) << (8 * (offset - 0x20))),
            0x24..=0x27 => {
                let shift = 8 * (offset - 0x24);
                regs.gpe_enable = regs.gpe_enable & !(0xff << shift) | u32::from(value) << shift;
            }
            _ => {}
        }
        false
    }

    /// Writes the SMI command port.
    pub fn write_smi_command(&mut self, value: u8) {
        match value {
            ACPI_ENABLE => self.regs.control |= SCI_ENABLE,
            ACPI_DISABLE => self.regs.control &= !SCI_ENABLE,
            _ => {}
        }
        self.update_line();
    }

    /// Reads the reset control register.
    pub fn read_reset_control(&self) -> u8 {
        self.regs.reset_control
    }

    /// Writes the reset control register: a rise of bit 2 resets the machine. Whether software asked for a soft
    /// or a hard reset makes no difference here.
    pub fn write_reset_control(&mut self, value: u8) -> Option<PowerRequest> {
        let rose = value & !self.regs.reset_control & RESET_CPU != 0;
        self.regs.reset_control = value & RESET_MASK;
        rose.then_some(PowerRequest::Reset)
    }
}

#[cfg(test)]
#[path = "acpi_pm_test.rs"]
mod tests;
