//! Single accesses to guest memory, one host instruction each.
//!
//! They are written in assembly because Rust's atomics demand alignment and its plain loads and stores forbid
//! races, while x86 guests may do both: an unaligned, even a page-crossing, locked operation is legal
//! (Intel SDM volume 3A, section 9.1).

use std::arch::asm;
use std::arch::x86_64::__m128i;

mod sealed {
    pub trait Sealed {}
}

/// An integer that one host instruction moves to or from memory: `u8`, `u16`, `u32` or `u64`.
pub trait Value: Copy + Eq + sealed::Sealed {
    /// # Safety
    /// `from` must be valid for reads of `size_of::<Self>()` bytes; alignment is not needed.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `to` must be valid for writes of `size_of::<Self>()` bytes; alignment is not needed.
    unsafe fn store(to: *mut u8, value: Self);
    /// Compare-and-exchange under a bus lock; returns what memory held before, equal to `old` on success.
    /// # Safety
    /// `at` must be valid for reads and writes of `size_of::<Self>()` bytes; alignment is not needed.
    unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self;
}

macro_rules! value {
    ($type:ty, $class:ident, $acc:tt, $mov_load:literal, $mov_store:literal, $cmpxchg:literal) => {
        impl sealed::Sealed for $type {}
        impl Value for $type {
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller promises a readable place; the instruction touches nothing else.
                unsafe {
                    asm!($mov_load, out($class) value, in(reg) from,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }
            #[inline(always)]
            unsafe fn store(to: *mut u8, value: Self) {
                // SAFETY: the caller promises a writable place; the instruction touches nothing else.
                unsafe {
                    asm!($mov_store, in(reg) to, in($class) value, options(nostack, preserves_flags));
                }
            }
            #[inline(always)]
            unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self {
                let seen: $type;
                // SAFETY: the caller promises a writable place; flags are declared as clobbered.
                unsafe {
                    asm!($cmpxchg, in(reg) at, in($class) new, inout($acc) old => seen, options(nostack));
                }
                seen
            }
        }
    };
}

value!(
    u8,
    reg_byte,
    "al",
    "mov {}, byte ptr [{}]",
    "mov byte ptr [{}], {}",
    "lock cmpxchg byte ptr [{}], {}"
);
value!(
    u16,
    reg,
    "ax",
    "mov {:x}, word ptr [{}]",
    "mov word ptr [{}], {:x}",
    "lock cmpxchg word ptr [{}], {:x}"
);
value!(
    u32,
    reg,
    "eax",
    "mov {:e}, dword ptr [{}]",
    "mov dword ptr [{}], {:e}",
    "lock cmpxchg dword ptr [{}], {:e}"
);
value!(
    u64,
    reg,
    "rax",
    "mov {}, qword ptr [{}]",
    "mov qword ptr [{}], {}",
    "lock cmpxchg qword ptr [{}], {}"
);

/// Sixteen bytes under a bus lock; returns what memory held before.
///
/// # Safety
/// `at` must be valid for reads and writes of 16 bytes and aligned to 16.
#[inline]
pub(crate) unsafe fn compare_exchange_16(at: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller promises the place and its alignment. `rbx` belongs to the compiler, so the new low
    // half is exchanged into it around the instruction.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(low) | u128::from(high) << 64
}

/// Sixteen bytes at once, low half first.
///
/// # Safety
/// `from` must be valid for reads of 16 bytes; alignment is not needed.
#[inline(always)]
pub(crate) unsafe fn load_16(from: *const u8) -> [u64; 2] {
    let value: __m128i;
    // SAFETY: the caller promises a readable place; the instruction touches nothing else. Both types are sixteen
    // bytes of which any is valid.
    unsafe {
        asm!("movdqu {}, xmmword ptr [{}]", out(xmm_reg) value, in(reg) from,
            options(nostack, preserves_flags, readonly));
        std::mem::transmute::<__m128i, [u64; 2]>(value)
    }
}

/// Sixteen bytes at once, low half first.
///
/// # Safety
/// `to` must be valid for writes of 16 bytes; alignment is not needed.
#[inline(always)]
pub(crate) unsafe fn store_16(to: *mut u8, value: [u64; 2]) {
    // SAFETY: the caller promises a writable place; the instruction touches nothing else. Both types are sixteen
    // bytes of which any is valid.
    unsafe {
        let value = std::mem::transmute::<[u64; 2], __m128i>(value);
        asm!("movdqu xmmword ptr [{}], {}", in(reg) to, in(xmm_reg) value, options(nostack, preserves_flags));
    }
}
