//! Two cascaded 8259A interrupt controllers, as in every PC since the AT.
//!
//! The master answers at ports 0x20 and 0x21, the slave at 0xa0 and 0xa1; the slave's output is the master's
//! input 2. Which inputs are level-triggered is chosen in the ELCR at 0x4d0 and 0x4d1 (as in EISA and every PCI
//! chipset), so LTIM in ICW1 has no effect. Facts: Intel 8259A data sheet (231468).
//!
//! An edge is remembered until it is acknowledged, even if the line falls meanwhile: a late host thus never turns
//! a timer tick into a spurious interrupt 7.

use crate::StateError;
use serde::{Deserialize, Serialize};

/// The master's first port.
pub const MASTER: u16 = 0x20;
/// The slave's first port.
pub const SLAVE: u16 = 0xa0;
/// Edge/level control register of the master's inputs; the slave's is the next port.
pub const ELCR: u16 = 0x4d0;

/// The master's input to which the slave is wired.
const CASCADE: u8 = 2;
/// Inputs that can be level-triggered: not the timer, keyboard, cascade (master); not the clock, FPU (slave).
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Where the initialization sequence stands: which control word the odd port expects next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    /// None: the odd port is the interrupt mask register (OCW1).
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// The registers of one 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    /// Levels of the input lines.
    lines: u8,
    /// Interrupt request register: edges not yet acknowledged and lines that are level-triggered and asserted.
    irr: u8,
    /// In-service register.
    isr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    /// Vector of input 0; the low three bits are zero.
    base: u8,
    /// The input of highest priority, 0 to 7; the others follow in a ring.
    highest: u8,
    expect: Expect,
    /// ICW1 said that ICW4 follows.
    icw4_follows: bool,
    /// ICW1 said that there is no cascade, so ICW3 does not follow.
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// The even port reads the ISR, not the IRR.
    read_isr: bool,
    /// OCW3 asked for a poll: the next read acknowledges.
    poll: bool,
}

/// The saved state of both controllers: the master's, then the slave's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Master and slave.
    pub chips: [ChipState; 2],
}

impl ChipState {
    /// The input of highest priority among `bits`.
    fn first(&self, bits: u8) -> Option<u8> {
        if bits == 0 {
            return None;
        }
        let rank = bits.rotate_right(u32::from(self.highest)).trailing_zeros() as u8;
        Some((rank + self.highest) & 7)
    }

    /// How far `input` is from the highest priority: 0 is first.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.highest) & 7
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rose = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.elcr & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rose {
            self.irr |= bit;
        }
    }

    /// The input that requests service of the processor, given the slave's output for the master (`cascade`).
    fn request(&self, cascade: u8) -> Option<u8> {
        let input = self.first((self.irr | cascade) & !self.imr)?;
        // In special mask mode, masking an in-service input frees everything below it; in special fully nested
        // mode, the slave may interrupt its own service.
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested && cascade != 0 {
            in_service &= !(1 << CASCADE);
        }
        let blocked = self.first(in_service).is_some_and(|serviced| self.rank(serviced) <= self.rank(input));
        (!blocked).then_some(input)
    }

    /// The processor's (or a poll's) acknowledgement of `input`.
    fn accept(&mut self, input: u8) {
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.highest = (input + 1) & 7;
        }
    }

    fn icw1(&mut self, value: u8) {
        let kept = Self { lines: self.lines, elcr: self.elcr, base: self.base, ..Self::default() };
        *self = kept;
        // Edges are forgotten; a level-triggered line asserts itself anew.
        self.irr = self.lines & self.elcr;
        self.icw4_follows = value & 0x01 != 0;
        self.single = value & 0x02 != 0;
        self.expect = Expect::Icw2;
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            // Non-specific end of interrupt, without and with rotation.
            command @ (0b001 | 0b101) => {
                // In special mask mode a masked input's service is not the one that ends.
                let ending = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(input) = self.first(ending) {
                    self.isr &= !(1 << input);
                    if command == 0b101 {
                        self.highest = (input + 1) & 7;
                    }
                }
            }
            // Specific end of interrupt, without and with rotation.
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.highest = (level + 1) & 7;
            }
            // Set priority: the input named becomes the lowest.
            0b110 => self.highest = (level + 1) & 7,
            0b100 => self.rotate_on_auto_eoi = true,
            0b000 => self.rotate_on_auto_eoi = false,
            // 0b010: no operation.
            _ => {}
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write(&mut self, odd: bool, value: u8) {
        if !odd {
            match value & 0x18 {
                0x10 | 0x18 => self.icw1(value),
                0x08 => self.ocw3(value),
                _ => self.ocw2(value),
            }
            return;
        }
        self.expect = match self.expect {
            Expect::Ocw1 => {
                self.imr = value;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.base = value & 0xf8;
                match (self.single, self.icw4_follows) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Ocw1,
                }
            }
            // The cascade is wired as it is wired; the word is taken and ignored.
            Expect::Icw3 if self.icw4_follows => Expect::Icw4,
            Expect::Icw3 => Expect::Ocw1,
            Expect::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Expect::Ocw1
            }
        };
    }
}

/// The pair of interrupt controllers.
///
/// ```
/// use posada_devices::pic::Pic;
///
/// let mut pic = Pic::new();
/// for (port, value) in [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1), (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)] {
///     pic.write(port, value);
/// }
/// pic.set_irq(8, true);
/// assert!(pic.has_interrupt());
/// assert_eq!(pic.acknowledge(), 0x28);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Pic {
    state: PicState,
}

impl Pic {
    /// Both controllers as after power-on: nothing initialized, no line asserted.
    pub fn new() -> Self {
        Self::default()
    }

    /// The saved state.
    pub fn state(&self) -> PicState {
        self.state
    }

    /// The controllers in a saved state.
    pub fn from_state(state: PicState) -> Result<Self, StateError> {
        for (chip, mask) in state.chips.iter().zip(ELCR_MASK) {
            if chip.highest > 7 || chip.base & 7 != 0 || chip.elcr & !mask != 0 {
                return Err(StateError::new("8259A", format!("a register out of its range in {chip:x?}")));
            }
        }
        Ok(Self { state })
    }

    /// The machine's reset: as after power-on, with the lines as they are.
    pub fn reset(&mut self) {
        for chip in &mut self.state.chips {
            *chip = ChipState { lines: chip.lines, ..ChipState::default() };
        }
    }

    /// Drives interrupt request `irq` (0 to 15; input 2 is the cascade's and others do not exist: ignored).
    pub fn set_irq(&mut self, irq: u8, level: bool) {
        if irq < 16 && irq != CASCADE {
            self.state.chips[usize::from(irq >> 3)].set_line(irq & 7, level);
        }
    }

    /// Whether the INTR output to the processor (or to LINT0) is asserted.
    pub fn has_interrupt(&self) -> bool {
        self.state.chips[0].request(self.cascade()).is_some()
    }

    /// The processor's interrupt acknowledge cycle: the vector to take.
    ///
    /// If the request has gone meanwhile the answer is the spurious vector, that of input 7, and no service
    /// begins; software tells it by the ISR.
    pub fn acknowledge(&mut self) -> u8 {
        let cascade = self.cascade();
        let [master, slave] = &mut self.state.chips;
        let Some(input) = master.request(cascade) else {
            return master.base | 7;
        };
        master.accept(input);
        if input != CASCADE {
            return master.base | input;
        }
        // Only the slave's request makes input 2 one, so there is an input; else the slave would give its input 7.
        let input = slave.request(0);
        if let Some(input) = input {
            slave.accept(input);
        }
        slave.base | input.unwrap_or(7)
    }

    /// The slave's output as a bit of the master's requests.
    fn cascade(&self) -> u8 {
        u8::from(self.state.chips[1].request(0).is_some()) << CASCADE
    }

    /// Reads a port: 0x20, 0x21, 0xa0, 0xa1, 0x4d0 or 0x4d1; others read as all ones.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.read_chip(usize::from(port >> 7), port & 1 != 0),
            0x4d0 | 0x4d1 => self.state.chips[usize::from(port & 1)].elcr,
            _ => 0xff,
        }
    }

    fn read_chip(&mut self, index: usize, odd: bool) -> u8 {
        let cascade = if index == 0 { self.cascade() } else { 0 };
        let chip = &mut self.state.chips[index];
        if chip.poll {
            chip.poll = false;
            let Some(input) = chip.request(cascade) else { return 0 };
            chip.accept(input);
            return 0x80 | input;
        }
        match (odd, chip.read_isr) {
            (true, _) => chip.imr,
            (false, true) => chip.isr,
            (false, false) => chip.irr | cascade,
        }
    }

    /// Writes a port of those that [`read`](Self::read) knows; others are ignored.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.state.chips[usize::from(port >> 7)].write(port & 1 != 0, value),
            0x4d0 | 0x4d1 => {
                let index = usize::from(port & 1);
                let chip = &mut self.state.chips[index];
                chip.elcr = value & ELCR_MASK[index];
                // A line that becomes level-triggered requests by its level from now on.
                chip.irr = chip.irr & !chip.elcr | chip.lines & chip.elcr;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "pic_test.rs"]
mod tests;
