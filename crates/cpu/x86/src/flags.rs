//! The arithmetic flags, worked out only when somebody looks.
//!
//! Most instructions set the flags and few read them. So an instruction leaves its result and the vector of
//! carries out of each bit position, from which every flag follows: the carry into and out of the top bit give
//! CF and OF, the carry out of bit 3 AF, the result the rest. Corrections (`aux`) cover what no result can give,
//! such as ZF and SF both set by `popf`.

use posada_vcpu::x86::rflags;

use crate::int::Int;

/// Carry out of the top bit: CF.
const CARRY_OUT: u64 = 1 << 63;
/// Carry into the top bit: OF is whether it differs from the carry out.
const CARRY_IN: u64 = 1 << 62;
/// Carry out of bit 3: AF.
const CARRY_3: u64 = 1 << 3;
/// SF is the opposite of the result's sign.
const SIGN_DELTA: u64 = 1 << 4;
/// Eight bits from here are exclusive-ored into the byte whose parity is PF.
const PARITY_DELTA: u32 = 8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    /// The last result, sign-extended from its size.
    result: u64,
    aux: u64,
}

impl Flags {
    pub(crate) fn new(bits: u64) -> Self {
        let mut flags = Self { result: 0, aux: 0 };
        flags.set(bits);
        flags
    }

    #[inline(always)]
    fn carries<T: Int>(carries: u64) -> u64 {
        if T::BITS == 64 {
            carries & (CARRY_OUT | CARRY_IN | CARRY_3)
        } else {
            (carries << (64 - T::BITS) & (CARRY_OUT | CARRY_IN)) | carries & CARRY_3
        }
    }

    /// After `result = a + b (+ carry)`.
    #[inline(always)]
    pub(crate) fn add<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, r) = (a.zext(), b.zext(), result.zext());
        self.result = result.sext();
        self.aux = Self::carries::<T>(a & b | (a | b) & !r);
    }

    /// After `result = a - b (- borrow)`.
    #[inline(always)]
    pub(crate) fn sub<T: Int>(&mut self, a: T, b: T, result: T) {
        let (a, b, r) = (a.zext(), b.zext(), result.zext());
        self.result = result.sext();
        self.aux = Self::carries::<T>(!a & b | (!a | b) & r);
    }

    /// After `and`, `or`, `xor`, `test`: CF, OF and AF clear.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, result: T) {
        self.result = result.sext();
        self.aux = 0;
    }

    /// After `inc`: as an addition of one, but CF stays.
    #[inline(always)]
    pub(crate) fn inc<T: Int>(&mut self, result: T) {
        let carry = self.cf();
        self.add(T::new(result.zext().wrapping_sub(1)), T::new(1), result);
        self.replace_cf(carry);
    }

    /// After `dec`: as a subtraction of one, but CF stays.
    #[inline(always)]
    pub(crate) fn dec<T: Int>(&mut self, result: T) {
        let carry = self.cf();
        self.sub(T::new(result.zext().wrapping_add(1)), T::new(1), result);
        self.replace_cf(carry);
    }

    /// Shifts, multiplications and the like: SF, ZF and PF from the result, CF and OF as given, AF clear.
    #[inline(always)]
    pub(crate) fn result_with<T: Int>(&mut self, result: T, cf: bool, of: bool) {
        self.result = result.sext();
        self.aux = u64::from(cf) << 63 | u64::from(cf != of) << 62;
    }

    /// Shifts, as Zen has them: SF, ZF and PF from the result, CF and OF as given, AF set.
    #[inline(always)]
    pub(crate) fn shifted<T: Int>(&mut self, result: T, cf: bool, of: bool) {
        self.result_with(result, cf, of);
        self.aux |= CARRY_3;
    }

    /// CF alone changes.
    #[inline(always)]
    pub(crate) fn replace_cf(&mut self, cf: bool) {
        let of = self.of();
        self.aux = self.aux & !(CARRY_OUT | CARRY_IN) | u64::from(cf) << 63 | u64::from(cf != of) << 62;
    }

    /// CF and OF alone change.
    #[inline(always)]
    pub(crate) fn replace_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !(CARRY_OUT | CARRY_IN) | u64::from(cf) << 63 | u64::from(cf != of) << 62;
    }

    #[inline(always)]
    pub(crate) fn cf(&self) -> bool {
        self.aux & CARRY_OUT != 0
    }

    #[inline(always)]
    pub(crate) fn of(&self) -> bool {
        (self.aux ^ self.aux << 1) & CARRY_OUT != 0
    }

    #[inline(always)]
    pub(crate) fn zf(&self) -> bool {
        self.result == 0
    }

    #[inline(always)]
    pub(crate) fn sf(&self) -> bool {
        (self.result ^ self.aux << 59) >> 63 != 0
    }

    #[inline(always)]
    pub(crate) fn pf(&self) -> bool {
        (self.result as u8 ^ (self.aux >> PARITY_DELTA) as u8).count_ones() & 1 == 0
    }

    #[inline(always)]
    pub(crate) fn af(&self) -> bool {
        self.aux & CARRY_3 != 0
    }

    /// The six flags where `rflags` has them.
    pub(crate) fn bits(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Sets all six from where `rflags` has them.
    pub(crate) fn set(&mut self, bits: u64) {
        let has = |flag| bits & flag != 0;
        self.result = u64::from(!has(rflags::ZF));
        let (cf, of) = (has(rflags::CF), has(rflags::OF));
        // The result's own parity is even when it is zero and odd when it is one.
        let parity_delta = u64::from(has(rflags::PF) != has(rflags::ZF));
        self.aux = u64::from(cf) << 63
            | u64::from(cf != of) << 62
            | if has(rflags::AF) { CARRY_3 } else { 0 }
            | if has(rflags::SF) { SIGN_DELTA } else { 0 }
            | parity_delta << PARITY_DELTA;
    }

    /// Sets those in `mask`, and leaves the rest.
    pub(crate) fn replace(&mut self, mask: u64, bits: u64) {
        self.set(self.bits() & !mask | bits & mask);
    }

    /// The condition that the low four bits of `jcc`, `setcc` and `cmovcc` opcodes name.
    #[inline(always)]
    pub(crate) fn condition(&self, code: u8) -> bool {
        let base = match code >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() | (self.sf() != self.of()),
        };
        base != (code & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_combination_of_flags_can_be_set_and_read_back() {
        for n in 0..64u64 {
            let bits = n & 1
                | (n >> 1 & 1) << 2
                | (n >> 2 & 1) << 4
                | (n >> 3 & 1) << 6
                | (n >> 4 & 1) << 7
                | (n >> 5 & 1) << 11;
            assert_eq!(Flags::new(bits).bits(), bits, "{bits:#x}");
        }
    }

    #[test]
    fn byte_additions_and_subtractions_agree_with_plain_arithmetic() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let expect = |r: u8, cf: bool, of: bool, af: bool| {
                    u64::from(cf)
                        | u64::from(r.count_ones().is_multiple_of(2)) << 2
                        | u64::from(af) << 4
                        | u64::from(r == 0) << 6
                        | u64::from(r >> 7) << 7
                        | u64::from(of) << 11
                };
                let mut flags = Flags::new(0);
                let (r, cf) = a.overflowing_add(b);
                let of = (a as i8).checked_add(b as i8).is_none();
                flags.add(a, b, r);
                assert_eq!(flags.bits(), expect(r, cf, of, (a & 15) + (b & 15) > 15));
                let (r, cf) = a.overflowing_sub(b);
                let of = (a as i8).checked_sub(b as i8).is_none();
                flags.sub(a, b, r);
                assert_eq!(flags.bits(), expect(r, cf, of, a & 15 < b & 15));
            }
        }
    }

    #[test]
    fn increments_keep_the_carry() {
        for carry in [false, true] {
            let mut flags = Flags::new(u64::from(carry));
            flags.inc(0x80_u8);
            assert!(flags.cf() == carry && flags.of() && flags.sf() && flags.af());
            flags.dec(0x7f_u8);
            assert!(flags.cf() == carry && flags.of() && !flags.sf() && flags.af());
            flags.inc(0_u32);
            assert!(flags.cf() == carry && !flags.of() && flags.zf());
        }
    }
}
