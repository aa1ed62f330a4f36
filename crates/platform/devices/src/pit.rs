//! The 8254 programmable interval timer and the port that gates its speaker channel.
//!
//! Three 16-bit counters run at 1.193182 MHz: channel 0 drives interrupt request 0, channel 1 once refreshed
//! memory, channel 2 makes the speaker's tone and is gated and read through port 0x61. Facts: Intel 8254 data
//! sheet (231164), "Mode Definitions"; IBM AT Technical Reference for port 0x61.
//!
//! A counter is not stepped. It is computed from the tick at which it was loaded, so reading it is exact at any
//! time and it cannot drift.

use crate::clock::{Nanos, ticks, time_of_tick};
use crate::line::Output;
use crate::{IrqLine, StateError};
use serde::{Deserialize, Serialize};

/// Frequency of the counters' clock in hertz.
pub const HZ: u64 = 1_193_182;

/// Offset of channel 0's data from the timer's first port (0x40).
pub const CHANNEL_0: u8 = 0;
/// Offset of channel 1's data.
pub const CHANNEL_1: u8 = 1;
/// Offset of channel 2's data.
pub const CHANNEL_2: u8 = 2;
/// Offset of the control word register.
pub const CONTROL: u8 = 3;

/// Port 0x61: gate of channel 2.
const GATE_2: u8 = 0x01;
/// Port 0x61: the speaker follows channel 2's output.
const SPEAKER: u8 = 0x02;
/// Port 0x61: parity and channel check enables, which software may set and read back.
const CHECKS: u8 = 0x0c;
/// Port 0x61: toggles with each memory refresh, some 15 microseconds.
const REFRESH: u8 = 0x10;
/// Port 0x61: channel 2's output.
const OUT_2: u8 = 0x20;
/// Ticks between memory refreshes, as a PC's firmware programs channel 1.
const REFRESH_TICKS: u64 = 18;

/// Which bytes of a count an access moves (bits 4 and 5 of the control word).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

/// The six modes of a counter (bits 1 to 3 of the control word).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// 0: interrupt on terminal count.
    TerminalCount,
    /// 1: hardware retriggerable one-shot.
    OneShot,
    /// 2: rate generator.
    Rate,
    /// 3: square wave.
    Square,
    /// 4: software triggered strobe.
    SoftwareStrobe,
    /// 5: hardware triggered strobe.
    HardwareStrobe,
}

impl Mode {
    fn from_control(control: u8) -> Self {
        match control >> 1 & 7 {
            0 => Self::TerminalCount,
            1 => Self::OneShot,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::SoftwareStrobe,
            _ => Self::HardwareStrobe,
        }
    }
}

/// Whether and since when a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// Programmed, but no count loaded (or, in the triggered modes, no trigger yet).
    Idle,
    /// Counting since this tick (of the 1.193182 MHz clock since guest time 0; the tick after the one that loaded
    /// it, since loading takes one).
    Since(i64),
    /// Held by the gate with this many ticks counted.
    Held(i64),
}

/// When a count written during a period of modes 2 and 3 takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Switch {
    /// The tick at which it does: the end of the period, in mode 3 of the half period.
    at: i64,
    /// The tick from which counting goes by the new count.
    start: i64,
}

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    mode: Mode,
    bcd: bool,
    access: Access,
    /// Initial count in use: 1 to 65536 (10000 in BCD).
    reload: u32,
    /// Initial count written that has not taken effect.
    queued: Option<u32>,
    /// When it does, unless a trigger comes first; only ever set together with `queued`.
    switch: Option<Switch>,
    run: Run,
    gate: bool,
    /// Low byte written, waiting for its high byte.
    write_low: Option<u8>,
    /// The next read of an unlatched two-byte count gives the high byte.
    read_high: bool,
    /// Latched count bytes not yet read.
    latched_low: Option<u8>,
    latched_high: Option<u8>,
    latched_status: Option<u8>,
}

/// The saved state of the timer and of port 0x61.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    /// The three counters.
    pub channels: [ChannelState; 3],
    /// Bits of port 0x61 that software wrote.
    port_61: u8,
    /// Level of channel 0's line.
    line: bool,
    /// Rising edges of channel 0 up to and including this tick have been raised.
    seen: i64,
}

impl ChannelState {
    fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            bcd: false,
            access: Access::LowThenHigh,
            reload: 0x1_0000,
            queued: None,
            switch: None,
            run: Run::Idle,
            gate,
            write_low: None,
            read_high: false,
            latched_low: None,
            latched_high: None,
            latched_status: None,
        }
    }

    /// The period of modes 2 and 3, where a count of 1 is not allowed.
    fn period(&self) -> i64 {
        i64::from(self.reload.max(2))
    }

    /// Ticks for which mode 3's output is high.
    fn high_half(&self) -> i64 {
        (self.period() + 1) / 2
    }

    /// Ticks counted since loading or trigger.
    fn elapsed(&self, tick: i64) -> Option<i64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some((tick - start).max(0)),
            Run::Held(counted) => Some(counted),
        }
    }

    /// Lets a queued count take effect if its time has come.
    fn advance(&mut self, tick: i64) {
        if let Some(switch) = self.switch
            && tick >= switch.at
        {
            self.take_queued();
            self.run = Run::Since(switch.start);
        }
    }

    fn take_queued(&mut self) {
        self.switch = None;
        if let Some(reload) = self.queued.take() {
            self.reload = reload;
        }
    }

    /// The output's level.
    fn out(&self, tick: i64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.mode != Mode::TerminalCount };
        let held = matches!(self.run, Run::Held(_));
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= i64::from(self.reload),
            Mode::Rate => held || elapsed % self.period() != self.period() - 1,
            Mode::Square => held || elapsed % self.period() < self.high_half(),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != i64::from(self.reload),
        }
    }

    /// The first tick after `after` at which the output rises of itself.
    fn next_rise(&self, after: i64) -> Option<i64> {
        let mut counter = *self;
        counter.advance(after);
        let rise = counter.next_rise_of_this_count(after);
        let (Some(switch), Some(rise)) = (counter.switch, rise) else { return rise };
        if rise <= switch.at {
            return Some(rise);
        }
        counter.advance(switch.at);
        counter.next_rise_of_this_count(switch.at)
    }

    fn next_rise_of_this_count(&self, after: i64) -> Option<i64> {
        let Run::Since(start) = self.run else { return None };
        let once = |at: i64| (at > after).then_some(at);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => once(start + i64::from(self.reload)),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => once(start + i64::from(self.reload) + 1),
            Mode::Rate | Mode::Square => {
                let period = self.period();
                Some(start + ((after - start).max(0) / period + 1) * period)
            }
        }
    }

    /// The counting element's value as a program reads it.
    fn count(&self, tick: i64) -> u16 {
        let reload = i64::from(self.reload);
        let value = match (self.elapsed(tick), self.mode) {
            (None, _) => reload,
            (Some(elapsed), Mode::Rate) => self.period() - elapsed % self.period(),
            (Some(elapsed), Mode::Square) => {
                // It counts by two, from the next lower even number.
                let position = elapsed % self.period();
                let in_half =
                    if position < self.high_half() { position } else { position - self.high_half() };
                (self.period() & !1) - 2 * in_half
            }
            (Some(elapsed), _) => reload - elapsed,
        };
        if !self.bcd {
            return value as u16;
        }
        let value = value.rem_euclid(10_000) as u16;
        let digit = |unit: u16, shift: u16| (value / unit % 10) << shift;
        digit(1000, 12) | digit(100, 8) | digit(10, 4) | digit(1, 0)
    }

    /// The initial count that the written bytes mean: 0 stands for the greatest.
    fn initial_count(&self, written: u16) -> u32 {
        let written = u32::from(written);
        if !self.bcd {
            return if written == 0 { 0x1_0000 } else { written };
        }
        let digits = [written >> 12, written >> 8 & 15, written >> 4 & 15, written & 15];
        match digits.iter().fold(0, |sum, digit| sum * 10 + digit) % 10_000 {
            0 => 10_000,
            count => count,
        }
    }

    fn load(&mut self, written: u16, tick: i64) {
        let count = self.initial_count(written);
        match (self.mode, self.run) {
            // Until the gate rises: counting will begin, or begin anew, with that.
            (Mode::OneShot | Mode::HardwareStrobe, _) | (Mode::Rate | Mode::Square, Run::Held(_)) => {
                self.queued = Some(count);
            }
            (Mode::Rate | Mode::Square, Run::Since(start)) => {
                self.queued = Some(count);
                let next = Self { reload: count, ..*self };
                let elapsed = (tick - start).max(0);
                let position = elapsed % self.period();
                let end = start + elapsed - position + self.period();
                self.switch = Some(if self.mode == Mode::Square && position < self.high_half() {
                    let at = end - self.period() + self.high_half();
                    Switch { at, start: at - next.high_half() }
                } else {
                    Switch { at: end, start: end }
                });
            }
            _ => {
                self.reload = count;
                self.run = if self.gate { Run::Since(tick + 1) } else { Run::Held(0) };
            }
        }
    }

    fn set_gate(&mut self, gate: bool, tick: i64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (self.mode, self.run, gate) {
            // A trigger without a count to count does nothing, and these modes heed the rise alone.
            (Mode::OneShot | Mode::HardwareStrobe, Run::Idle, true) if self.queued.is_none() => {}
            (Mode::OneShot | Mode::HardwareStrobe, _, false) => {}
            (Mode::OneShot | Mode::HardwareStrobe, _, true)
            | (Mode::Rate | Mode::Square, Run::Held(_), true) => {
                self.take_queued();
                self.run = Run::Since(tick + 1);
            }
            (_, Run::Since(start), false) => {
                self.switch = None;
                self.run = Run::Held((tick - start).max(0));
            }
            (_, Run::Held(counted), true) => self.run = Run::Since(tick - counted),
            _ => {}
        }
    }

    fn control(&mut self, control: u8) {
        *self = Self::new(self.gate);
        self.mode = Mode::from_control(control);
        self.bcd = control & 1 != 0;
        self.access = match control >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowThenHigh,
        };
    }

    fn write(&mut self, value: u8, tick: i64) {
        let byte = u16::from(value);
        match (self.access, self.write_low) {
            (Access::Low, _) => self.load(byte, tick),
            (Access::High, _) => self.load(byte << 8, tick),
            (Access::LowThenHigh, None) => {
                self.write_low = Some(value);
                if self.mode == Mode::TerminalCount {
                    self.run = Run::Idle;
                }
            }
            (Access::LowThenHigh, Some(low)) => {
                self.write_low = None;
                self.load(byte << 8 | u16::from(low), tick);
            }
        }
    }

    fn latch_count(&mut self, tick: i64) {
        if self.latched_low.is_some() || self.latched_high.is_some() {
            return;
        }
        let [low, high] = self.count(tick).to_le_bytes();
        self.latched_low = (self.access != Access::High).then_some(low);
        self.latched_high = (self.access != Access::Low).then_some(high);
    }

    fn latch_status(&mut self, tick: i64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::LowThenHigh => 3,
        };
        let null_count = self.queued.is_some() || self.run == Run::Idle;
        self.latched_status.get_or_insert(
            u8::from(self.out(tick)) << 7
                | u8::from(null_count) << 6
                | access << 4
                | (self.mode as u8) << 1
                | u8::from(self.bcd),
        );
    }

    fn read(&mut self, tick: i64) -> u8 {
        let latched = self
            .latched_status
            .take()
            .or_else(|| self.latched_low.take())
            .or_else(|| self.latched_high.take());
        if let Some(value) = latched {
            return value;
        }
        let [low, high] = self.count(tick).to_le_bytes();
        match self.access {
            Access::Low => low,
            Access::High => high,
            Access::LowThenHigh => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
        }
    }

    fn check(&self) -> Result<(), StateError> {
        // What `now` as u64 nanoseconds can produce, with room for sums.
        let plausible = |tick: i64| (-0x2_0000..1 << 55).contains(&tick);
        let count_ok = |count: u32| (1..=0x1_0000).contains(&count);
        let run_ok = match self.run {
            Run::Idle => true,
            Run::Since(tick) | Run::Held(tick) => plausible(tick),
        };
        let switch_ok = self.switch.is_none_or(|switch| plausible(switch.at) && plausible(switch.start));
        if run_ok && switch_ok && count_ok(self.reload) && self.queued.is_none_or(count_ok) {
            Ok(())
        } else {
            Err(StateError::new("8254", format!("a count out of its range in {self:?}")))
        }
    }
}

/// The timer, with the line of its channel 0.
#[derive(Debug)]
pub struct Pit<L> {
    channels: [ChannelState; 3],
    port_61: u8,
    line: Output<L>,
    seen: i64,
}

impl<L: IrqLine> Pit<L> {
    /// A timer as after power-on: no channel programmed, channel 2 gated off.
    pub fn new(line: L) -> Self {
        Self {
            channels: [ChannelState::new(true), ChannelState::new(true), ChannelState::new(false)],
            port_61: 0,
            line: Output::at(line, false),
            seen: 0,
        }
    }

    /// The saved state.
    pub fn state(&self) -> PitState {
        PitState { channels: self.channels, port_61: self.port_61, line: self.line.level(), seen: self.seen }
    }

    /// A timer in a saved state. The line is not driven.
    pub fn from_state(state: &PitState, line: L) -> Result<Self, StateError> {
        state.channels.iter().try_for_each(ChannelState::check)?;
        if !(0..1 << 55).contains(&state.seen) {
            return Err(StateError::new("8254", format!("tick {} as the last one seen", state.seen)));
        }
        Ok(Self {
            channels: state.channels,
            port_61: state.port_61,
            line: Output::at(line, state.line),
            seen: state.seen,
        })
    }

    /// The machine's reset.
    pub fn reset(&mut self) {
        self.line.set(false);
        self.channels = [ChannelState::new(true), ChannelState::new(true), ChannelState::new(false)];
        self.port_61 = 0;
    }

    /// When [`tick`](Self::tick) is next wanted: the next rise of channel 0's output.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let rise = self.channels[0].next_rise(self.seen)?;
        Some(time_of_tick(rise as u64, HZ))
    }

    /// Raises the interrupt for the edges since the last call: one, however many have been missed.
    pub fn tick(&mut self, now: Nanos) {
        let tick = Self::clock(now);
        if self.channels[0].next_rise(self.seen).is_some_and(|rise| rise <= tick) {
            self.line.edge();
        }
        self.seen = self.seen.max(tick);
        for channel in &mut self.channels {
            channel.advance(tick);
        }
        // In modes 0 and 1 the low phases are long and the line shows them; in the others it stands high between
        // the edges.
        let level = match self.channels[0].mode {
            Mode::TerminalCount | Mode::OneShot => self.channels[0].out(tick),
            _ => true,
        };
        self.line.set(level);
    }

    fn clock(now: Nanos) -> i64 {
        ticks(now, HZ) as i64
    }

    /// Reads the register at `offset` (0 to 3; the control word register and others read as all ones).
    pub fn read(&mut self, offset: u8, now: Nanos) -> u8 {
        self.tick(now);
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) => channel.read(Self::clock(now)),
            None => 0xff,
        }
    }

    /// Writes the register at `offset` (0 to 3; others are ignored).
    pub fn write(&mut self, offset: u8, value: u8, now: Nanos) {
        self.tick(now);
        let tick = Self::clock(now);
        match offset {
            CHANNEL_0..=CHANNEL_2 => self.channels[usize::from(offset)].write(value, tick),
            CONTROL => self.write_control(value, tick),
            _ => {}
        }
        self.tick(now);
    }

    fn write_control(&mut self, control: u8, tick: i64) {
        let selected = usize::from(control >> 6);
        if let Some(channel) = self.channels.get_mut(selected) {
            if control & 0x30 == 0 {
                channel.latch_count(tick);
            } else {
                channel.control(control);
            }
            return;
        }
        // Read-back command: bits 5 and 4 are active low.
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if control >> (index + 1) & 1 != 0 {
                if control & 0x20 == 0 {
                    channel.latch_count(tick);
                }
                if control & 0x10 == 0 {
                    channel.latch_status(tick);
                }
            }
        }
    }

    /// Reads port 0x61.
    pub fn read_port_61(&mut self, now: Nanos) -> u8 {
        self.tick(now);
        let tick = Self::clock(now);
        let refresh = !(ticks(now, HZ) / REFRESH_TICKS).is_multiple_of(2);
        self.port_61 | if refresh { REFRESH } else { 0 } | if self.channels[2].out(tick) { OUT_2 } else { 0 }
    }

    /// Writes port 0x61.
    pub fn write_port_61(&mut self, value: u8, now: Nanos) {
        self.tick(now);
        self.port_61 = value & (GATE_2 | SPEAKER | CHECKS);
        self.channels[2].set_gate(value & GATE_2 != 0, Self::clock(now));
    }
}

#[cfg(test)]
#[path = "pit_test.rs"]
mod tests;
