//! Operand sizes as types.

use posada_memory::Value;

/// Room for every number that names a register: there are the general-purpose ones, and two more for address
/// arithmetic. With room for all that a byte can hold no number needs to be checked.
pub(crate) const REGISTERS: usize = 256;
/// Number of the instruction pointer among the registers; while an instruction runs it holds the next one's.
pub(crate) const RIP: u8 = 16;
/// Number of a register that always reads as zero: an absent base or index.
pub(crate) const ZERO: u8 = 17;
/// Added to a byte register's number for `ah`, `ch`, `dh` and `bh`, on top of `al` to `bl`.
pub(crate) const HIGH_BYTE: u8 = 0x20;

/// An operand size: `u8`, `u16`, `u32` or `u64`.
pub(crate) trait Int: Value + std::fmt::Debug + Default + Ord + 'static {
    const BITS: u32;
    const BYTES: u64 = Self::BITS as u64 / 8;
    /// All bits set, as 64 bits.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);

    /// The low bits of `value`.
    fn new(value: u64) -> Self;
    /// Zero-extended.
    fn zext(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// Register `number`, as an operand of this size.
    fn get(registers: &[u64; REGISTERS], number: u8) -> Self;
    /// Writes register `number`: 32 bits clear the upper half, fewer leave the rest as it is.
    fn set(registers: &mut [u64; REGISTERS], number: u8, value: Self);
    /// The first bytes of `bytes`, little-endian.
    fn from_le(bytes: [u8; 8]) -> Self {
        Self::new(u64::from_le_bytes(bytes))
    }
}

macro_rules! int {
    ($type:ty, $signed:ty, |$get_regs:ident, $get_n:ident| $get:expr, |$set_regs:ident, $set_n:ident, $v:ident| $set:expr) => {
        impl Int for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn new(value: u64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn zext(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn get($get_regs: &[u64; REGISTERS], $get_n: u8) -> Self {
                $get
            }
            #[inline(always)]
            fn set($set_regs: &mut [u64; REGISTERS], $set_n: u8, $v: Self) {
                $set
            }
        }
    };
}

int!(u8, i8, |r, n| (r[usize::from(n & 0x1f)] >> (n >> 2 & 8)) as u8, |r, n, v| {
    let (slot, shift) = (&mut r[usize::from(n & 0x1f)], n >> 2 & 8);
    *slot = *slot & !(0xff << shift) | u64::from(v) << shift;
});
int!(u16, i16, |r, n| r[usize::from(n)] as u16, |r, n, v| {
    let slot = &mut r[usize::from(n)];
    *slot = *slot & !0xffff | u64::from(v);
});
int!(u32, i32, |r, n| r[usize::from(n)] as u32, |r, n, v| r[usize::from(n)] = u64::from(v));
int!(u64, i64, |r, n| r[usize::from(n)], |r, n, v| r[usize::from(n)] = v);
