//! Segment registers and descriptor-table registers (AMD APM volume 2, chapter 4).

use serde::{Deserialize, Serialize};

/// A segment register: the selector that programs see, and the descriptor behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// What programs load and store.
    pub selector: u16,
    /// Linear address of the first byte.
    pub base: u64,
    /// The last valid offset in bytes, granularity already applied.
    pub limit: u32,
    /// Access rights as the second doubleword of a descriptor has them, shifted right by 8: type 3:0, S 4,
    /// DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15. A null selector leaves P clear.
    pub attributes: u16,
}

impl Segment {
    /// Present.
    pub const P: u16 = 1 << 7;
    /// A code or data segment, not a system one.
    pub const S: u16 = 1 << 4;
    /// 64-bit code.
    pub const L: u16 = 1 << 13;
    /// 32-bit code, or a 32-bit stack.
    pub const DB: u16 = 1 << 14;
    /// The limit counts pages.
    pub const G: u16 = 1 << 15;

    /// What a load in real or virtual-8086 mode gives, as data.
    pub fn real_mode(selector: u16) -> Self {
        Self { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes: 0x93 }
    }

    /// All 4 GiB, 32-bit code, ring 0.
    pub fn flat_code32(selector: u16) -> Self {
        Self { selector, base: 0, limit: u32::MAX, attributes: 0xc09b }
    }

    /// 64-bit code, ring 0.
    pub fn flat_code64(selector: u16) -> Self {
        Self { selector, base: 0, limit: u32::MAX, attributes: 0xa09b }
    }

    /// All 4 GiB, read-write data, ring 0.
    pub fn flat_data(selector: u16) -> Self {
        Self { selector, base: 0, limit: u32::MAX, attributes: 0xc093 }
    }

    /// The hidden part from the two doublewords of a descriptor in a table; system descriptors of 64-bit mode
    /// add the upper half of their base themselves.
    pub fn from_descriptor(selector: u16, descriptor: u64) -> Self {
        let base = (descriptor >> 16 & 0xff_ffff) | (descriptor >> 56) << 24;
        let raw_limit = (descriptor & 0xffff) as u32 | (descriptor >> 32) as u32 & 0xf_0000;
        let attributes = (descriptor >> 40) as u16 & 0xf0ff;
        let limit = if attributes & Self::G != 0 { raw_limit << 12 | 0xfff } else { raw_limit };
        Self { selector, base, limit, attributes }
    }

    /// Type, bits 3:0 of the access rights.
    pub fn kind(&self) -> u8 {
        self.attributes as u8 & 0xf
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        self.attributes as u8 >> 5 & 3
    }

    /// Present.
    pub fn present(&self) -> bool {
        self.attributes & Self::P != 0
    }

    /// A code or data segment.
    pub fn is_user(&self) -> bool {
        self.attributes & Self::S != 0
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        self.is_user() && self.kind() & 8 != 0
    }

    /// 32-bit code or stack.
    pub fn db(&self) -> bool {
        self.attributes & Self::DB != 0
    }

    /// 64-bit code.
    pub fn long(&self) -> bool {
        self.attributes & Self::L != 0
    }
}

/// All segment registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Segments {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
}

impl Segments {
    /// `es`, `ss`, `ds`, `fs` and `gs`.
    pub fn data_mut(&mut self) -> [&mut Segment; 5] {
        [&mut self.es, &mut self.ss, &mut self.ds, &mut self.fs, &mut self.gs]
    }

    /// One code segment and one for all data.
    pub fn set_flat(&mut self, code: Segment, data: Segment) {
        self.cs = code;
        for segment in self.data_mut() {
            *segment = data;
        }
    }
}

/// `gdtr` or `idtr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Linear address.
    pub base: u64,
    /// The last valid offset in bytes.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_with_page_granularity_covers_whole_pages() {
        let flat = Segment::from_descriptor(0x18, 0x00cf_9300_0000_ffff);
        assert_eq!(flat, Segment::flat_data(0x18));
        let odd = Segment::from_descriptor(8, 0x1240_9a34_5678_9abc);
        assert_eq!((odd.base, odd.limit, odd.attributes), (0x1234_5678, 0x9abc, 0x409a));
    }
}
