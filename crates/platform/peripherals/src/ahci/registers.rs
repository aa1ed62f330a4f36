//! The registers (AHCI 1.3.1 §3), and what software's writes do to them.

use serde::{Deserialize, Serialize};

/// Generic host control (§3.1).
mod generic {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const GHC: u64 = 0x04;
    pub(super) const IS: u64 = 0x08;
    pub(super) const PI: u64 = 0x0c;
    pub(super) const VS: u64 = 0x10;
}

/// A port's registers (§3.3).
mod offset {
    pub(super) const CLB: u64 = 0x00;
    pub(super) const CLBU: u64 = 0x04;
    pub(super) const FB: u64 = 0x08;
    pub(super) const FBU: u64 = 0x0c;
    pub(super) const IS: u64 = 0x10;
    pub(super) const IE: u64 = 0x14;
    pub(super) const CMD: u64 = 0x18;
    pub(super) const TFD: u64 = 0x20;
    pub(super) const SIG: u64 = 0x24;
    pub(super) const SSTS: u64 = 0x28;
    pub(super) const SCTL: u64 = 0x2c;
    pub(super) const SERR: u64 = 0x30;
    pub(super) const SACT: u64 = 0x34;
    pub(super) const CI: u64 = 0x38;
}

/// Where the ports begin, and bytes for each.
const PORTS: u64 = 0x100;
const PORT_LEN: u64 = 0x80;

/// `GHC`: AHCI is enabled, interrupts are, and reset.
const GHC_AE: u32 = 1 << 31;
const GHC_IE: u32 = 1 << 1;
const GHC_HR: u32 = 1;

/// `CAP` besides the number of ports: 64-bit addresses, native command queuing, command list override, 6 Gb/s, AHCI
/// mode only, 32 slots.
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | 31 << 8;
const VERSION: u32 = 0x0001_0301;

/// `PxIS` (§3.3.5).
pub(super) mod is {
    /// A Device to Host Register FIS has come.
    pub(in super::super) const DHRS: u32 = 1 << 0;
    /// A PIO Setup FIS has come.
    pub(in super::super) const PSS: u32 = 1 << 1;
    /// A Set Device Bits FIS has come.
    pub(in super::super) const SDBS: u32 = 1 << 3;
    /// The drive's presence has changed: `PxSERR.DIAG.X`.
    pub(super) const PCS: u32 = 1 << 6;
    /// The command has more data than places for it.
    pub(in super::super) const OFS: u32 = 1 << 24;
    /// An error of the interface.
    pub(in super::super) const IFS: u32 = 1 << 27;
    /// Something was to be accessed where there is no memory.
    pub(in super::super) const HBFS: u32 = 1 << 29;
    /// The drive has reported an error.
    pub(in super::super) const TFES: u32 = 1 << 30;
    /// All that there are.
    pub(super) const ALL: u32 = 0xfdc0_00ff;
}

/// `PxCMD` (§3.3.7).
mod cmd {
    pub(super) const ST: u32 = 1 << 0;
    pub(super) const SUD: u32 = 1 << 1;
    pub(super) const POD: u32 = 1 << 2;
    pub(super) const CLO: u32 = 1 << 3;
    pub(super) const FRE: u32 = 1 << 4;
    pub(super) const CCS: u32 = 0x1f << 8;
    pub(super) const FR: u32 = 1 << 14;
    pub(super) const CR: u32 = 1 << 15;
    pub(super) const ATAPI: u32 = 1 << 24;
    /// What software writes and reads back.
    pub(super) const NOTES: u32 = ST | FRE | ATAPI | 1 << 25;
}

/// `PxSERR.DIAG.X`: the drive has been exchanged, or may have been.
const SERR_X: u32 = 1 << 26;
/// `PxSSTS` with a drive: present and reached (`DET`), at 6 Gb/s (`SPD`), active (`IPM`).
const SSTS_PRESENT: u32 = 0x133;
/// `PxSSTS.DET`: the interface is off.
const SSTS_OFFLINE: u32 = 4;
/// `PxTFD` while no drive answers.
const TFD_NONE: u32 = 0x7f;
const TFD_BUSY: u32 = 0x80;
const TFD_DATA_REQUEST: u32 = 0x08;

/// One port's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortRegisters {
    /// Places of the command list and of received FISes.
    pub(super) command_list: u64,
    pub(super) received: u64,
    pub(super) is: u32,
    ie: u32,
    cmd: u32,
    pub(super) tfd: u32,
    sig: u32,
    ssts: u32,
    sctl: u32,
    serr: u32,
    pub(super) sact: u32,
    pub(super) ci: u32,
    /// An error has stopped the command list until software starts it again (§6.2.2).
    halted: bool,
    /// The drive's first FIS, with its signature, waits for `PxCMD.FRE` (§10.3).
    pub(super) signature_waits: bool,
}

impl PortRegisters {
    pub(super) fn receives(&self) -> bool {
        self.cmd & cmd::FRE != 0
    }

    pub(super) fn is_started(&self) -> bool {
        self.cmd & cmd::ST != 0
    }

    /// The next command that can be carried out, after the current one in turn.
    pub(super) fn next_slot(&self) -> Option<u32> {
        if !self.is_started() || self.halted || self.ssts != SSTS_PRESENT || self.ci == 0 {
            return None;
        }
        let after = (self.current_slot() + 1) & 31;
        Some((self.ci.rotate_right(after).trailing_zeros() + after) & 31)
    }

    fn current_slot(&self) -> u32 {
        (self.cmd & cmd::CCS) >> 8
    }

    pub(super) fn begin(&mut self, slot: u32) {
        self.cmd = self.cmd & !cmd::CCS | slot << 8;
    }

    /// The command list has come to rest.
    pub(super) fn rest(&mut self) {
        if !self.is_started() {
            self.cmd &= !cmd::CR;
        }
    }

    /// An error that only software's starting the command list anew ends.
    pub(super) fn fail(&mut self, cause: u32) {
        self.is |= cause;
        self.halted = true;
    }

    /// The drive has answered: its task file.
    pub(super) fn set_task_file(&mut self, status: u8, error: u8) {
        self.tfd = u32::from(error) << 8 | u32::from(status);
    }

    /// The signature has come with the drive's first FIS.
    pub(super) fn set_signature(&mut self, signature: u32) {
        self.sig = signature;
        self.signature_waits = false;
    }

    /// The state after a reset of the port: with the drive found.
    pub(super) fn found() -> Self {
        let mut port = Self { cmd: cmd::SUD | cmd::POD, sig: u32::MAX, tfd: TFD_NONE, ..Self::default() };
        port.link_up();
        port
    }

    fn link_up(&mut self) {
        self.ssts = SSTS_PRESENT;
        self.serr |= SERR_X;
        self.signature_waits = true;
        self.tfd = TFD_BUSY;
    }

    fn link_down(&mut self, ssts: u32) {
        (self.ssts, self.tfd, self.sig) = (ssts, TFD_NONE, u32::MAX);
        self.signature_waits = false;
    }

    fn read(&self, register: u64) -> u32 {
        match register {
            offset::CLB => self.command_list as u32,
            offset::CLBU => (self.command_list >> 32) as u32,
            offset::FB => self.received as u32,
            offset::FBU => (self.received >> 32) as u32,
            offset::IS => self.is_now(),
            offset::IE => self.ie,
            offset::CMD => self.cmd,
            offset::TFD => self.tfd,
            offset::SIG => self.sig,
            offset::SSTS => self.ssts,
            offset::SCTL => self.sctl,
            offset::SERR => self.serr,
            offset::SACT => self.sact,
            offset::CI => self.ci,
            _ => 0,
        }
    }

    fn is_now(&self) -> u32 {
        self.is | if self.serr & SERR_X != 0 { is::PCS } else { 0 }
    }

    /// Whether the port has something to tell.
    fn interrupts(&self) -> bool {
        self.is_now() & self.ie != 0
    }

    /// A write, and what it means for the port's thread.
    fn write(&mut self, register: u64, value: u32) -> PortEffect {
        let low = |old: u64, mask: u32| old >> 32 << 32 | u64::from(value & mask);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match register {
            offset::CLB => self.command_list = low(self.command_list, !0x3ff),
            offset::CLBU => self.command_list = high(self.command_list),
            offset::FB => self.received = low(self.received, !0xff),
            offset::FBU => self.received = high(self.received),
            offset::IS => self.is &= !value,
            offset::IE => self.ie = value & is::ALL,
            offset::CMD => return self.write_cmd(value),
            offset::SCTL => return self.write_sctl(value),
            offset::SERR => self.serr &= !value,
            // Both only while the command list runs (§3.3.13, §3.3.14).
            offset::SACT if self.is_started() => self.sact |= value,
            offset::CI if self.is_started() => {
                self.ci |= value;
                return PortEffect::Work;
            }
            _ => {}
        }
        PortEffect::None
    }

    fn write_cmd(&mut self, value: u32) -> PortEffect {
        let before = self.cmd;
        self.cmd = before & !cmd::NOTES | value & cmd::NOTES;
        if value & cmd::CLO != 0 && before & cmd::ST == 0 {
            self.tfd &= !(TFD_BUSY | TFD_DATA_REQUEST);
        }
        self.cmd = if self.receives() { self.cmd | cmd::FR } else { self.cmd & !cmd::FR };
        match (before & cmd::ST != 0, self.is_started()) {
            (false, true) => {
                // From slot 0 on: the slot after 31.
                self.cmd |= cmd::CR | cmd::CCS;
                self.halted = false;
                PortEffect::Work
            }
            (true, false) => {
                self.cmd &= !cmd::CCS;
                (self.ci, self.sact) = (0, 0);
                PortEffect::Stop
            }
            _ => PortEffect::Work,
        }
    }

    /// `PxSCTL.DET`: 1 is COMRESET for as long as it stands, 4 switches the interface off (§3.3.11).
    fn write_sctl(&mut self, value: u32) -> PortEffect {
        let before = self.sctl & 0xf;
        self.sctl = value & 0xfff;
        match (before, self.sctl & 0xf) {
            (_, 1) => self.link_down(0),
            (_, 4) => self.link_down(SSTS_OFFLINE),
            (1 | 4, 0) => {
                self.link_up();
                return PortEffect::ResetDrive;
            }
            _ => return PortEffect::None,
        }
        PortEffect::Stop
    }
}

/// What a write to a port's registers asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortEffect {
    None,
    /// There may be something to do.
    Work,
    /// Whatever the thread is at counts as never ended.
    Stop,
    /// As that, and the drive is reset.
    ResetDrive,
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The thread of a port may have something to do.
    Work(usize),
    /// The controller is to be reset.
    Reset,
}

/// What a write asks of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) port: usize,
    pub(super) reset_drive: bool,
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    interrupts_enabled: bool,
    /// Ports that have told something, latched (§3.1.3).
    is: u32,
    pub(super) ports: Vec<PortRegisters>,
}

impl Registers {
    pub(super) fn new(ports: usize) -> Self {
        Self { interrupts_enabled: false, is: 0, ports: vec![PortRegisters::found(); ports] }
    }

    /// The register at an offset that is a multiple of 4.
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            generic::CAP => CAP | (self.ports.len() as u32 - 1),
            generic::GHC => GHC_AE | if self.interrupts_enabled { GHC_IE } else { 0 },
            generic::IS => self.is,
            generic::PI => u32::MAX >> (32 - self.ports.len()),
            generic::VS => VERSION,
            PORTS.. => {
                let (port, register) = at_port(offset);
                self.ports.get(port).map_or(0, |port| port.read(register))
            }
            _ => 0,
        }
    }

    /// Writes the register at an offset that is a multiple of 4. Also tells whose thread's work is void.
    pub(super) fn write(&mut self, offset: u64, value: u32) -> (Effect, Option<Stop>) {
        match offset {
            generic::GHC if value & GHC_HR != 0 => return (Effect::Reset, None),
            generic::GHC => self.interrupts_enabled = value & GHC_IE != 0,
            generic::IS => self.is &= !value,
            PORTS.. => {
                let (index, register) = at_port(offset);
                let Some(port) = self.ports.get_mut(index) else { return (Effect::None, None) };
                return match port.write(register, value) {
                    PortEffect::None => (Effect::None, None),
                    PortEffect::Work => (Effect::Work(index), None),
                    PortEffect::Stop => (Effect::None, Some(Stop { port: index, reset_drive: false })),
                    PortEffect::ResetDrive => {
                        (Effect::Work(index), Some(Stop { port: index, reset_drive: true }))
                    }
                };
            }
            _ => {}
        }
        (Effect::None, None)
    }

    /// Latches what ports have to tell. Whether there is an interrupt, and whether it has become one just now.
    pub(super) fn latch(&mut self) -> bool {
        for (index, port) in self.ports.iter().enumerate() {
            self.is |= u32::from(port.interrupts()) << index;
        }
        self.interrupts_enabled && self.is != 0
    }
}

fn at_port(offset: u64) -> (usize, u64) {
    (((offset - PORTS) / PORT_LEN) as usize, offset % PORT_LEN)
}
