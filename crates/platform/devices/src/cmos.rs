//! The MC146818 real-time clock and its battery-backed memory.
//!
//! An index register at port 0x70, whose high bit masks NMI, and a data register at 0x71 reach 128 bytes: 14 of
//! the clock and 114 of memory, in which a PC keeps its memory size and the century. Facts: Motorola MC146818A
//! data sheet; the memory's layout as in the IBM AT Technical Reference and what firmware agreed on since.
//!
//! The clock runs by guest time from a start that is given in seconds since 1970, so it neither drifts from the
//! guest's other clocks nor asks the host. It updates in no time; the warning that it is about to (UIP) comes
//! 244 microseconds before, as in the data sheet.

use crate::clock::{Nanos, SECOND, ticks, time_of_tick};
use crate::line::Output;
use crate::{IrqLine, StateError};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use time::{Date, Month, OffsetDateTime, Time};

/// The index port.
pub const INDEX_PORT: u16 = 0x70;
/// The data port.
pub const DATA_PORT: u16 = 0x71;

/// Registers of the clock and agreed places in the memory.
pub mod register {
    /// Seconds.
    pub const SECONDS: u8 = 0x00;
    /// Seconds of the alarm.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// Minutes.
    pub const MINUTES: u8 = 0x02;
    /// Minutes of the alarm.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// Hours; in 12-hour format bit 7 is set after noon.
    pub const HOURS: u8 = 0x04;
    /// Hours of the alarm.
    pub const HOURS_ALARM: u8 = 0x05;
    /// Day of the week, 1 is Sunday.
    pub const DAY_OF_WEEK: u8 = 0x06;
    /// Day of the month.
    pub const DAY: u8 = 0x07;
    /// Month.
    pub const MONTH: u8 = 0x08;
    /// Year without the century.
    pub const YEAR: u8 = 0x09;
    /// Register A: update in progress, divider, rate.
    pub const A: u8 = 0x0a;
    /// Register B: set, interrupt enables, formats.
    pub const B: u8 = 0x0b;
    /// Register C: interrupt flags.
    pub const C: u8 = 0x0c;
    /// Register D: valid RAM and time.
    pub const D: u8 = 0x0d;
    /// Base memory in KiB, low byte; the high byte follows.
    pub const BASE_MEMORY: u8 = 0x15;
    /// Memory above 1 MiB in KiB, at most 65535; the high byte follows.
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// The same again, as measured.
    pub const EXTENDED_MEMORY_2: u8 = 0x30;
    /// Century.
    pub const CENTURY: u8 = 0x32;
    /// Memory above 16 MiB, below 4 GiB, in 64 KiB units; the high byte follows.
    pub const MEMORY_ABOVE_16M: u8 = 0x34;
    /// Memory above 4 GiB in 64 KiB units; two more bytes follow.
    pub const MEMORY_ABOVE_4G: u8 = 0x5b;
}

use register as reg;

const A_UIP: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_PERIODIC: u8 = 0x40;
const B_ALARM: u8 = 0x20;
const B_UPDATE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_IRQ: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;

/// Divider bits of register A that run the clock from a 32.768 kHz crystal.
const A_RUNNING: u8 = 0x20;
/// What firmware leaves in register A: running, periodic rate 1024 Hz.
const A_DEFAULT: u8 = A_RUNNING | 6;
/// Frequency of the crystal in hertz.
const CRYSTAL_HZ: u64 = 32_768;
/// How long before the update UIP is set.
const UIP_TIME: Nanos = 244_000;
/// After a reset of the divider the first update is this far off.
const FIRST_UPDATE: Nanos = SECOND / 2;
/// The times that four digits of year can tell, in seconds since 1970: 0000-01-01 to 9999-12-31.
const TIMES: RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;
const DAY: i64 = 86_400;
/// An alarm byte of this value or more matches anything.
const ALARM_ANY: u8 = 0xc0;

/// The saved state of the clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CmosState {
    /// The index register.
    index: u8,
    /// All 128 bytes. The bytes of the time are in use only while the clock stands.
    #[serde(with = "bytes")]
    memory: [u8; 128],
    /// While the clock runs: what it showed, in seconds since 1970, when its second began at `since`.
    seconds: i64,
    since: Nanos,
    /// Days by which the day of the week is off the date's.
    weekday_offset: u8,
    /// Interrupt flags have been brought up to date until this moment.
    seen: Nanos,
    line: bool,
}

mod bytes {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 128], serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 128], D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        bytes
            .try_into()
            .map_err(|bytes: Vec<u8>| D::Error::invalid_length(bytes.len(), &"128 bytes of CMOS memory"))
    }
}

/// The clock and its memory, with the line of interrupt request 8.
///
/// ```
/// use posada_devices::cmos::{Cmos, register};
/// use posada_devices::Unconnected;
///
/// let mut cmos = Cmos::new(1_000_000_000, Unconnected); // 2001-09-09 01:46:40 UTC
/// cmos.write_index(register::MINUTES);
/// assert_eq!(cmos.read_data(0), 0x46); // BCD
/// assert_eq!(cmos.read_data(20_000_000_000), 0x47);
/// ```
#[derive(Debug)]
pub struct Cmos<L> {
    regs: CmosState,
    line: Output<L>,
}

impl<L: IrqLine> Cmos<L> {
    /// A clock that shows `wall_clock` (seconds since 1970-01-01 00:00, in the time zone that the guest expects,
    /// usually UTC) at guest time 0, as firmware leaves it: running, BCD, 24 hours.
    pub fn new(wall_clock: i64, line: L) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(reg::A)] = A_DEFAULT;
        memory[usize::from(reg::B)] = B_24_HOURS;
        memory[usize::from(reg::D)] = D_VALID;
        let seconds = wall_clock.clamp(*TIMES.start(), *TIMES.end());
        let regs = CmosState { index: 0, memory, seconds, since: 0, weekday_offset: 0, seen: 0, line: false };
        Self { regs, line: Output::at(line, false) }
    }

    /// The saved state.
    pub fn state(&self) -> CmosState {
        CmosState { line: self.line.level(), ..self.regs.clone() }
    }

    /// The clock in a saved state. The line is not driven.
    pub fn from_state(state: CmosState, line: L) -> Result<Self, StateError> {
        if !TIMES.contains(&state.seconds) || state.weekday_offset > 6 || state.index > 0x7f {
            return Err(StateError::new("real-time clock", "a time out of its range"));
        }
        let level = state.line;
        Ok(Self { regs: state, line: Output::at(line, level) })
    }

    /// The machine's reset: interrupts are off and forgotten. Time and memory go on, for there is a battery.
    pub fn reset(&mut self) {
        self.regs.index = 0;
        *self.byte(reg::B) &= !(B_PERIODIC | B_ALARM | B_UPDATE | 0x08);
        *self.byte(reg::C) = 0;
        self.line.set(false);
    }

    /// Notes the memory size where firmware and old kernels look for it. `low` is the memory below 4 GiB in
    /// bytes, counted from address 0; `high` what lies above 4 GiB.
    pub fn set_memory_size(&mut self, low: u64, high: u64) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let limit = |value: u64, most: u64| value.min(most).to_le_bytes();
        let base = limit(low / KIB, 640);
        let extended = limit(low.saturating_sub(MIB) / KIB, 0xffff);
        let above_16m = limit(low.saturating_sub(16 * MIB) / (64 * KIB), 0xffff);
        let above_4g = limit(high / (64 * KIB), 0xff_ffff);
        self.store(reg::BASE_MEMORY, &base[..2]);
        self.store(reg::EXTENDED_MEMORY, &extended[..2]);
        self.store(reg::EXTENDED_MEMORY_2, &extended[..2]);
        self.store(reg::MEMORY_ABOVE_16M, &above_16m[..2]);
        self.store(reg::MEMORY_ABOVE_4G, &above_4g[..3]);
    }

    /// Puts bytes into the memory, for what a board's firmware expects there. Places from 0x0e on are memory;
    /// what would not fit is left out.
    pub fn store(&mut self, at: u8, bytes: &[u8]) {
        for (place, &byte) in (at..128).zip(bytes) {
            if place > reg::D {
                *self.byte(place) = byte;
            }
        }
    }

    /// Reads the index port, which is write-only: as on most chipsets, all ones.
    pub fn read_index(&self) -> u8 {
        0xff
    }

    /// Writes the index port. Bit 7 would mask NMI; nothing here raises one through the chipset, so it is ignored.
    pub fn write_index(&mut self, value: u8) {
        self.regs.index = value & 0x7f;
    }

    /// Reads the selected byte.
    pub fn read_data(&mut self, now: Nanos) -> u8 {
        self.tick(now);
        match self.regs.index {
            reg::A => self.get(reg::A) | if self.update_in_progress(now) { A_UIP } else { 0 },
            reg::C => {
                let flags = std::mem::take(self.byte(reg::C));
                self.line.set(false);
                flags
            }
            index if is_time(index) && self.runs() => self.show(index, self.seconds_at(now)),
            index => self.get(index),
        }
    }

    /// Writes the selected byte.
    pub fn write_data(&mut self, value: u8, now: Nanos) {
        self.tick(now);
        match self.regs.index {
            reg::C | reg::D => {}
            // Alarms and memory.
            index if index > reg::B && index != reg::CENTURY || matches!(index, 1 | 3 | 5) => {
                *self.byte(index) = value;
            }
            // The time, and what makes it stand or run or be read differently.
            index => {
                let reset = self.divider_is_reset();
                if self.runs() {
                    self.stop(now);
                }
                *self.byte(index) = match index {
                    reg::A => value & !A_UIP,
                    // Setting the time ends the update interrupt.
                    reg::B if value & B_SET != 0 => value & !B_UPDATE,
                    _ => value,
                };
                if self.runs() {
                    self.start(now, reset);
                }
            }
        }
        self.raise(0);
    }

    fn byte(&mut self, index: u8) -> &mut u8 {
        &mut self.regs.memory[usize::from(index & 0x7f)]
    }

    fn get(&self, index: u8) -> u8 {
        self.regs.memory[usize::from(index & 0x7f)]
    }

    // Time.

    fn divider_runs(&self) -> bool {
        self.get(reg::A) & 0x70 == A_RUNNING
    }

    fn divider_is_reset(&self) -> bool {
        self.get(reg::A) & 0x60 == 0x60
    }

    /// Whether the time goes on.
    fn runs(&self) -> bool {
        self.divider_runs() && self.get(reg::B) & B_SET == 0
    }

    fn seconds_at(&self, now: Nanos) -> i64 {
        let gone = now.saturating_sub(self.regs.since) / SECOND;
        // The calendar's end is the end of the clock.
        self.regs.seconds.saturating_add_unsigned(gone).min(*TIMES.end())
    }

    fn update_in_progress(&self, now: Nanos) -> bool {
        self.runs() && now.saturating_sub(self.regs.since) % SECOND >= SECOND - UIP_TIME
    }

    /// A byte of the time as it appears in its register.
    fn show(&self, index: u8, seconds: i64) -> u8 {
        let Ok(time) = OffsetDateTime::from_unix_timestamp(seconds) else { return 0 };
        let year = time.year().unsigned_abs();
        let value = match index {
            reg::SECONDS => time.second(),
            reg::MINUTES => time.minute(),
            reg::HOURS => return self.encode_hour(time.hour()),
            reg::DAY_OF_WEEK => (time.weekday().number_days_from_sunday() + self.regs.weekday_offset) % 7 + 1,
            reg::DAY => time.day(),
            reg::MONTH => u8::from(time.month()),
            reg::YEAR => (year % 100) as u8,
            _ => (year / 100) as u8,
        };
        self.encode(value)
    }

    /// `value` (0 to 99) in the format in force.
    fn encode(&self, value: u8) -> u8 {
        if self.get(reg::B) & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.get(reg::B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    /// What a byte means; nonsense digits give nonsense, up to 165.
    fn decode(&self, byte: u8) -> u8 {
        if self.get(reg::B) & B_BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 15) }
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.get(reg::B) & B_24_HOURS != 0 {
            return self.decode(byte);
        }
        self.decode(byte & 0x7f) % 12 + if byte & 0x80 != 0 { 12 } else { 0 }
    }

    /// The time stands: its registers hold it from now on.
    fn stop(&mut self, now: Nanos) {
        let seconds = self.seconds_at(now);
        for index in (reg::SECONDS..=reg::YEAR).chain([reg::CENTURY]).filter(|&index| is_time(index)) {
            *self.byte(index) = self.show(index, seconds);
        }
        self.regs.since = now - now.saturating_sub(self.regs.since) % SECOND;
    }

    /// The time goes on from what its registers hold. A date that does not exist becomes the nearest before it.
    fn start(&mut self, now: Nanos, divider_was_reset: bool) {
        let part = |index: u8, range: RangeInclusive<u8>| {
            self.decode(self.get(index)).clamp(*range.start(), *range.end())
        };
        let year = i32::from(part(reg::CENTURY, 0..=99)) * 100 + i32::from(part(reg::YEAR, 0..=99));
        let month = Month::try_from(part(reg::MONTH, 1..=12)).unwrap_or(Month::January);
        let day = part(reg::DAY, 1..=31).min(month.length(year));
        let hour = self.decode_hour(self.get(reg::HOURS)).min(23);
        let date = Date::from_calendar_date(year, month, day);
        let time = Time::from_hms(hour, part(reg::MINUTES, 0..=59), part(reg::SECONDS, 0..=59));
        let weekday = part(reg::DAY_OF_WEEK, 1..=7) - 1;
        // The parts are in range, so both exist.
        let (Ok(date), Ok(time)) = (date, time) else { return };
        self.regs.weekday_offset = (weekday + 7 - date.weekday().number_days_from_sunday()) % 7;
        self.regs.seconds = date.with_time(time).assume_utc().unix_timestamp();
        // The second goes on, too, unless the divider begins anew.
        self.regs.since = if divider_was_reset {
            now.saturating_sub(FIRST_UPDATE)
        } else {
            now - now.saturating_sub(self.regs.since) % SECOND
        };
    }

    // Interrupts.

    /// Ticks of the crystal between periodic interrupts, by register A's rate; 0 is none.
    fn period(&self) -> u64 {
        match self.get(reg::A) & 15 {
            _ if !self.divider_runs() => 0,
            0 => 0,
            rate @ 1..=2 => 1 << (rate + 6),
            rate => 1 << (rate - 1),
        }
    }

    /// The first second after `after` at which the alarm's time of day comes.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let matches = |index: u8, shown: u8| {
            let alarm = self.get(index);
            alarm >= ALARM_ANY || alarm == shown
        };
        let midnight = after - after.rem_euclid(DAY);
        for day in [midnight, midnight + DAY] {
            for hour in (0..24).filter(|&hour| matches(reg::HOURS_ALARM, self.encode_hour(hour))) {
                let hour = day + i64::from(hour) * 3600;
                if hour + 3599 <= after {
                    continue;
                }
                for minute in (0..60).filter(|&minute| matches(reg::MINUTES_ALARM, self.encode(minute))) {
                    let minute = hour + i64::from(minute) * 60;
                    let seconds = (0..60).filter(|&second| matches(reg::SECONDS_ALARM, self.encode(second)));
                    let found =
                        seconds.map(|second| minute + i64::from(second)).find(|&second| second > after);
                    if found.is_some() {
                        return found;
                    }
                }
            }
        }
        None
    }

    /// Brings the interrupt flags up to date.
    pub fn tick(&mut self, now: Nanos) {
        let seen = self.regs.seen;
        if now <= seen {
            return;
        }
        self.regs.seen = now;
        let mut flags = 0;
        let periods = |at| ticks(at, CRYSTAL_HZ).checked_div(self.period());
        if periods(now) > periods(seen) {
            flags |= C_PERIODIC;
        }
        let (before, shown) = (self.seconds_at(seen), self.seconds_at(now));
        if self.runs() && shown > before {
            flags |= C_UPDATE;
            if self.next_alarm(before).is_some_and(|alarm| alarm <= shown) {
                flags |= C_ALARM;
            }
        }
        self.raise(flags);
    }

    fn raise(&mut self, flags: u8) {
        let enables = self.get(reg::B) & (B_PERIODIC | B_ALARM | B_UPDATE);
        let c = self.byte(reg::C);
        *c = (*c | flags) & !C_IRQ;
        let interrupt = *c & enables != 0;
        if interrupt {
            *c |= C_IRQ;
        }
        self.line.set(interrupt);
    }

    /// When [`tick`](Self::tick) is next wanted: at the next enabled interrupt, unless one is pending.
    pub fn next_deadline(&self) -> Option<Nanos> {
        if self.line.level() {
            return None;
        }
        let enabled = |bit| self.get(reg::B) & bit != 0;
        let seen = self.regs.seen;
        let mut next = None;
        let mut consider = |at: Nanos| next = Some(next.map_or(at, |other: Nanos| other.min(at)));
        let period = self.period();
        if enabled(B_PERIODIC) && period != 0 {
            consider(time_of_tick((ticks(seen, CRYSTAL_HZ) / period + 1) * period, CRYSTAL_HZ));
        }
        if self.runs() {
            let shown = self.seconds_at(seen);
            // No second begins after the calendar's last.
            let begins = |second: i64| {
                let after =
                    u64::try_from(second - self.regs.seconds).ok().filter(|_| TIMES.contains(&second));
                after.and_then(|after| after.checked_mul(SECOND)?.checked_add(self.regs.since))
            };
            if enabled(B_UPDATE) {
                begins(shown + 1).into_iter().for_each(&mut consider);
            }
            if enabled(B_ALARM) {
                self.next_alarm(shown).and_then(begins).into_iter().for_each(&mut consider);
            }
        }
        next
    }
}

/// Whether the byte is one of the time's.
fn is_time(index: u8) -> bool {
    matches!(
        index,
        reg::SECONDS
            | reg::MINUTES
            | reg::HOURS
            | reg::DAY_OF_WEEK
            | reg::DAY
            | reg::MONTH
            | reg::YEAR
            | reg::CENTURY
    )
}

#[cfg(test)]
#[path = "cmos_test.rs"]
mod tests;
