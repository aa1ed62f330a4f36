//! The registers (SDM §13.4).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::eeprom::Eeprom;

/// Offsets.
mod at {
    pub(super) const CTRL: u32 = 0x0000;
    pub(super) const STATUS: u32 = 0x0008;
    pub(super) const EECD: u32 = 0x0010;
    pub(super) const EERD: u32 = 0x0014;
    pub(super) const MDIC: u32 = 0x0020;
    pub(super) const ICR: u32 = 0x00c0;
    pub(super) const ICS: u32 = 0x00c8;
    pub(super) const IMS: u32 = 0x00d0;
    pub(super) const IMC: u32 = 0x00d8;
    pub(super) const RCTL: u32 = 0x0100;
    pub(super) const TCTL: u32 = 0x0400;
    pub(super) const PBA: u32 = 0x1000;
    pub(super) const RECEIVE: u32 = 0x2800;
    pub(super) const TRANSMIT: u32 = 0x3800;
    pub(super) const RXCSUM: u32 = 0x5000;
    pub(super) const MTA: u32 = 0x5200;
    pub(super) const RA: u32 = 0x5400;
    pub(super) const RA_END: u32 = 0x5480;
}

/// Registers that the driver writes and reads, and that change nothing here: flow control, delays and intervals, LEDs,
/// thresholds, filters of VLANs, wake-up.
const NOTES: [std::ops::RangeInclusive<u32>; 15] = [
    0x0018..=0x0018,
    0x0028..=0x0038,
    0x00c4..=0x00c4,
    0x0170..=0x0178,
    0x0410..=0x0410,
    0x0458..=0x0458,
    0x0e00..=0x0e00,
    0x1000..=0x1000,
    0x2160..=0x2168,
    0x2820..=0x282c,
    0x3820..=0x3830,
    0x5000..=0x5000,
    0x5200..=0x53fc,
    0x5600..=0x57fc,
    0x5800..=0x5838,
];

/// `CTRL`: the card's reset, and the PHY's; both end at once.
const CTRL_RST: u32 = 1 << 26;
const CTRL_PHY_RST: u32 = 1 << 31;
/// `STATUS`: full duplex, link up, 1000 Mb/s.
const STATUS: u32 = 1 | 1 << 1 | 2 << 6;
/// `TCTL.EN` and `RCTL.EN`.
const ENABLE: u32 = 1 << 1;
/// `RAH.AV`: the entry is valid.
const ADDRESS_VALID: u32 = 1 << 31;

/// Bits of `RCTL` (SDM §13.4.22).
mod rctl {
    pub(super) const UNICAST_ALL: u32 = 1 << 3;
    pub(super) const MULTICAST_ALL: u32 = 1 << 4;
    pub(super) const LONG: u32 = 1 << 5;
    pub(super) const BROADCAST: u32 = 1 << 15;
    pub(super) const SIZE_TIMES_16: u32 = 1 << 25;
    pub(super) const STRIP_CRC: u32 = 1 << 26;
}

/// Causes of interrupts (SDM §13.4.17).
pub(super) struct Cause;

impl Cause {
    /// A descriptor that asked for it has been dealt with.
    pub(super) const TXDW: u32 = 1 << 0;
    /// The transmit ring is empty.
    pub(super) const TXQE: u32 = 1 << 1;
    /// Few receive descriptors are left.
    pub(super) const RXDMT0: u32 = 1 << 4;
    /// Frames have been received.
    pub(super) const RXT0: u32 = 1 << 7;
    /// An access to the PHY is complete.
    const MDAC: u32 = 1 << 9;
    /// All that there are.
    const ALL: u32 = 0x1_ffff;
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// There may be something to do.
    Work,
    /// A ring has been moved or switched off: what is being done is void.
    Stop,
    Reset,
}

/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u32 = 16;

/// A ring of descriptors: where it lies, and which of them are the card's: from head to tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ring {
    base: u64,
    /// Bytes.
    len: u32,
    head: u32,
    tail: u32,
    enabled: bool,
}

impl Ring {
    fn count(&self) -> u32 {
        self.len / DESCRIPTOR_LEN
    }

    /// How many descriptors are the card's; none of a ring whose pointers lie outside of it.
    pub(super) fn available(&self) -> u32 {
        let count = self.count();
        if !self.enabled || self.head >= count || self.tail >= count {
            return 0;
        }
        if self.tail >= self.head { self.tail - self.head } else { self.tail + count - self.head }
    }

    /// Where the next descriptor lies.
    pub(super) fn next(&self) -> Option<u64> {
        let offset = u64::from(self.head) * u64::from(DESCRIPTOR_LEN);
        (self.available() != 0).then(|| self.base.wrapping_add(offset))
    }

    pub(super) fn advance(&mut self) {
        self.head = if self.head + 1 >= self.count() { 0 } else { self.head + 1 };
    }

    fn read(&self, register: u32) -> u32 {
        match register {
            0x00 => self.base as u32,
            0x04 => (self.base >> 32) as u32,
            0x08 => self.len,
            0x10 => self.head,
            0x18 => self.tail,
            _ => 0,
        }
    }

    fn write(&mut self, register: u32, value: u32) -> Effect {
        match register {
            0x00 => self.base = self.base >> 32 << 32 | u64::from(value & !0xf),
            0x04 => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            0x08 => self.len = value & 0xf_ff80,
            0x10 => self.head = value & 0xffff,
            0x18 => {
                self.tail = value & 0xffff;
                return Effect::Work;
            }
            _ => return Effect::None,
        }
        Effect::Stop
    }
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    ctrl: u32,
    causes: u32,
    mask: u32,
    rctl: u32,
    tctl: u32,
    mdic: u32,
    pub(super) receive: Ring,
    transmit: Ring,
    /// Receive addresses: low and high halves in turn.
    addresses: [u32; 32],
    eeprom: Eeprom,
    phy: BTreeMap<u8, u16>,
    notes: BTreeMap<u32, u32>,
}

/// Registers of the PHY after a reset (Marvell 88E1011S, IEEE 802.3 §22.2.4): negotiated, 1000 Mb/s, full duplex.
const PHY: [(u8, u16); 11] = [
    (0, 0x1140),
    (1, 0x796d),
    (2, 0x0141),
    (3, 0x0c20),
    (4, 0x0de1),
    (5, 0xcde1),
    (6, 0x000d),
    (9, 0x0e00),
    (10, 0x3c00),
    (15, 0x3000),
    (17, 0xac00),
];
/// Those that the driver writes: control, advertisement, 1000BASE-T control, and some of Marvell's own.
const PHY_WRITABLE: [u8; 10] = [0, 4, 9, 16, 18, 20, 24, 26, 29, 30];
/// The PHY's own reset and the restart of negotiation, which end at once.
const PHY_RESET: u16 = 1 << 15 | 1 << 9;

impl Registers {
    /// After a reset of a card with this address.
    pub(super) fn new(address: [u8; 6]) -> Self {
        let mut addresses = [0; 32];
        addresses[0] = u32::from_le_bytes([address[0], address[1], address[2], address[3]]);
        addresses[1] = u32::from(u16::from_le_bytes([address[4], address[5]])) | ADDRESS_VALID;
        Self {
            // Full duplex, link up.
            ctrl: 1 | 1 << 6,
            causes: 0,
            mask: 0,
            rctl: 0,
            tctl: 0,
            mdic: 1 << 28,
            receive: Ring::default(),
            transmit: Ring::default(),
            addresses,
            eeprom: Eeprom::new(address),
            phy: PHY.into_iter().collect(),
            // Packet buffer: 48 KiB for what is received, 16 for what is sent.
            notes: [(at::PBA, 0x0010_0030)].into_iter().collect(),
        }
    }

    /// Whether there is an interrupt.
    pub(super) fn interrupts(&self) -> bool {
        self.causes & self.mask != 0
    }

    pub(super) fn raise(&mut self, causes: u32) {
        self.causes |= causes;
    }

    pub(super) fn transmit_ring(&self) -> Ring {
        self.transmit
    }

    pub(super) fn advance_transmit(&mut self) {
        self.transmit.advance();
    }

    /// Whether the receiver is on.
    pub(super) fn receives(&self) -> bool {
        self.rctl & ENABLE != 0
    }

    /// Bytes of each receive buffer (`RCTL.BSIZE`, `BSEX`).
    pub(super) fn buffer_len(&self) -> usize {
        let size = 2048 >> (self.rctl >> 16 & 3);
        match (self.rctl & rctl::SIZE_TIMES_16 != 0, size) {
            (false, size) => size,
            // Reserved.
            (true, 2048) => 2048,
            (true, size) => 16 * size,
        }
    }

    pub(super) fn strips_crc(&self) -> bool {
        self.rctl & rctl::STRIP_CRC != 0
    }

    pub(super) fn takes_long_frames(&self) -> bool {
        self.rctl & rctl::LONG != 0
    }

    /// Whether the driver wants to hear that TCP and UDP checksums are good (`RXCSUM.TUOFL`).
    pub(super) fn tells_checksums(&self) -> bool {
        self.note(at::RXCSUM) & 1 << 9 != 0
    }

    /// Whether fewer descriptors are left than the driver wants (`RCTL.RDMTS`).
    pub(super) fn is_short_of_buffers(&self) -> bool {
        self.receive.available() <= self.receive.count() >> (1 + (self.rctl >> 8 & 3)).min(3)
    }

    /// Whether a frame to this destination is for the guest (SDM §3.2.1).
    pub(super) fn accepts(&self, destination: [u8; 6]) -> bool {
        let is_group = destination[0] & 1 != 0;
        if destination == [0xff; 6] && self.rctl & rctl::BROADCAST != 0 {
            return true;
        }
        let all = if is_group { rctl::MULTICAST_ALL } else { rctl::UNICAST_ALL };
        if self.rctl & all != 0 {
            return true;
        }
        let [a, b, c, d, e, f] = destination;
        let low = u32::from_le_bytes([a, b, c, d]);
        let high = u32::from(u16::from_le_bytes([e, f])) | ADDRESS_VALID;
        let valid = ADDRESS_VALID | 0xffff;
        let exact = self.addresses.chunks_exact(2).any(|entry| entry[0] == low && entry[1] & valid == high);
        exact || is_group && self.hash_accepts(u32::from(u16::from_le_bytes([e, f])))
    }

    /// The multicast table: 12 bits of the address's last 16 (`RCTL.MO`) number a bit.
    fn hash_accepts(&self, last: u32) -> bool {
        let shift = [4, 3, 2, 0][(self.rctl >> 12 & 3) as usize];
        let hash = last >> shift & 0xfff;
        self.note(at::MTA + (hash >> 5) * 4) >> (hash & 31) & 1 != 0
    }

    fn note(&self, offset: u32) -> u32 {
        self.notes.get(&offset).copied().unwrap_or(0)
    }

    /// Reads the register at an offset that is a multiple of 4.
    pub(super) fn read(&mut self, offset: u32) -> u32 {
        match offset {
            at::CTRL => self.ctrl,
            at::STATUS => STATUS,
            at::EECD => self.eeprom.read_eecd(),
            at::EERD => self.eeprom.read_eerd(),
            at::MDIC => self.mdic,
            at::ICR => std::mem::take(&mut self.causes),
            at::IMS => self.mask,
            at::RCTL => self.rctl,
            at::TCTL => self.tctl,
            at::RECEIVE..=0x2818 => self.receive.read(offset - at::RECEIVE),
            at::TRANSMIT..=0x3818 => self.transmit.read(offset - at::TRANSMIT),
            at::RA..at::RA_END => self.addresses[((offset - at::RA) / 4) as usize],
            // Statistics are never counted: drivers count themselves.
            _ => self.note(offset),
        }
    }

    /// Writes the register at an offset that is a multiple of 4.
    pub(super) fn write(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            at::CTRL if value & CTRL_RST != 0 => return Effect::Reset,
            at::CTRL => self.ctrl = value & !CTRL_PHY_RST,
            at::EECD => self.eeprom.write_eecd(value),
            at::EERD => self.eeprom.write_eerd(value),
            at::MDIC => self.access_phy(value),
            at::ICR => self.causes &= !value,
            at::ICS => self.causes |= value & Cause::ALL,
            at::IMS => self.mask |= value & Cause::ALL,
            at::IMC => self.mask &= !value,
            at::RCTL => {
                self.rctl = value;
                return Self::switch(&mut self.receive, value);
            }
            at::TCTL => {
                self.tctl = value;
                return Self::switch(&mut self.transmit, value);
            }
            at::RECEIVE..=0x2818 => return self.receive.write(offset - at::RECEIVE, value),
            at::TRANSMIT..=0x3818 => return self.transmit.write(offset - at::TRANSMIT, value),
            at::RA..at::RA_END => self.addresses[((offset - at::RA) / 4) as usize] = value,
            _ if NOTES.iter().any(|range| range.contains(&offset)) => {
                self.notes.insert(offset, value);
            }
            _ => {}
        }
        Effect::None
    }

    /// A ring's direction is switched on or off.
    fn switch(ring: &mut Ring, control: u32) -> Effect {
        let before = std::mem::replace(&mut ring.enabled, control & ENABLE != 0);
        if before && !ring.enabled { Effect::Stop } else { Effect::Work }
    }

    /// `MDIC`: reads or writes a register of the PHY, which is number 1 (SDM §13.4.8).
    fn access_phy(&mut self, value: u32) {
        const READY: u32 = 1 << 28;
        const INTERRUPT: u32 = 1 << 29;
        const ERROR: u32 = 1 << 30;
        let (register, phy) = ((value >> 16 & 31) as u8, value >> 21 & 31);
        let mut result = value & !(READY | ERROR);
        match (phy, value >> 26 & 3) {
            (1, 1) if PHY_WRITABLE.contains(&register) => {
                let value = value as u16;
                let value = if register == 0 { value & !PHY_RESET } else { value };
                self.phy.insert(register, value);
            }
            (1, 1) => {}
            (1, 2) => {
                let value = self.phy.get(&register).copied().unwrap_or(0);
                result = result & !0xffff | u32::from(value);
            }
            _ => result |= ERROR,
        }
        self.mdic = result | READY;
        if value & INTERRUPT != 0 {
            self.raise(Cause::MDAC);
        }
    }
}
