//! The local APIC's registers: where they are and which of their bits exist.

use serde::{Deserialize, Serialize};

pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// Vector, software enable, focus processor checking.
pub(super) const SVR_MASK: u32 = 0x3ff;

pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_LEVEL: u32 = 1 << 15;
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;

pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const ESR_RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// ICR bits that an x2APIC reserves.
pub(super) const ICR_RESERVED: u32 = 0xfff3_2000;
/// Delivery status: always idle here.
pub(super) const DELIVERY_STATUS: u32 = 1 << 12;

/// Registers by offset in the page divided by 16, which is also the MSR number less 0x800.
pub(super) mod register {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const RRD: u32 = 0x0c;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const ISR_LAST: u32 = 0x17;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const TMR_LAST: u32 = 0x1f;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const IRR_LAST: u32 = 0x27;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_LAST: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Index of an entry in the local vector table, in the order of its registers.
pub(super) mod lvt {
    pub(crate) const TIMER: usize = 0;
    pub(crate) const LINT0: usize = 3;
    pub(crate) const LINT1: usize = 4;
    pub(crate) const ERROR: usize = 5;
    /// Bits of each entry that software may set.
    pub(crate) const WRITABLE: [u32; 6] =
        [0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];
    /// Bits that exist but are read-only: delivery status, and remote IRR of the LINT pins.
    pub(crate) const READ_ONLY: [u32; 6] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
}

/// A set of vectors: eight registers of 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vectors(pub(super) [u32; 8]);

impl Vectors {
    pub(super) fn set(&mut self, vector: u8, value: bool) {
        let bit = 1 << (vector & 31);
        let word = &mut self.0[usize::from(vector >> 5)];
        *word = if value { *word | bit } else { *word & !bit };
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((word as u8) << 5 | (31 - self.0[word].leading_zeros() as u8))
    }
}
