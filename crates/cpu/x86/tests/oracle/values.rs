//! Operand values: random ones, and those at which instructions change their mind.

use fastrand::Rng;
use posada_vcpu::x86::{X87, X87Register};

use super::{MEMORY, Memory, Rights};

/// What a vector's lanes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    Float32,
    Float64,
    Integer,
}

/// One of several.
pub fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}

/// True `percent` times in a hundred.
pub fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

/// An integer: often small, a power of two, the largest or smallest of some size, or close to one.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.u8(..10) {
        0..3 => rng.u64(..),
        3 => rng.u64(..) >> rng.u32(..64),
        4 => u64::from(rng.u8(..16)),
        5 => 0u64.wrapping_sub(u64::from(rng.u8(..16))),
        6 => (1u64 << rng.u32(..64)).wrapping_add(u64::from(rng.u8(..3))).wrapping_sub(1),
        7 => 0u64.wrapping_sub(1 << rng.u32(..64)).wrapping_add(u64::from(rng.u8(..3))).wrapping_sub(1),
        8 => {
            let edges = [0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
            pick(rng, &edges) | if rng.bool() { 0 } else { rng.u64(..) << 32 }
        }
        _ => pick(rng, &[0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64, 0x5555_5555_5555_5555]),
    }
}

/// Single precision: zeros, denormals, infinities, NaNs of both kinds, integers, halves, and random bits.
pub fn float32(rng: &mut Rng) -> u32 {
    let sign = u32::from(rng.bool()) << 31;
    sign | match rng.u8(..12) {
        0 => 0,
        1 => pick(rng, &[1, 0x7f_ffff, 0x40_0000]),
        2 => rng.u32(..0x80_0000),
        3 => pick(rng, &[0x80_0000, 0x7f7f_ffff, 0x3f80_0000, 0x3f7f_ffff, 0x3f80_0001]),
        4 => 0x7f80_0000,
        5 => 0x7fc0_0000 | rng.u32(..0x40_0000),
        6 => 0x7f80_0001 | rng.u32(..0x40_0000),
        7 => (rng.i32(-1000..1000) as f32 / 2.0).to_bits() & 0x7fff_ffff,
        8 => (pick(rng, &[31u32, 32, 62, 63, 64, 15, 16]) + 127) << 23 | pick(rng, &[0, 1, 0x7f_ffff]),
        9 => rng.u32(100..160) << 23 | rng.u32(..0x80_0000),
        _ => rng.u32(..) & 0x7fff_ffff,
    }
}

/// Double precision, likewise.
pub fn float64(rng: &mut Rng) -> u64 {
    let sign = u64::from(rng.bool()) << 63;
    let fraction = rng.u64(..1 << 52);
    sign | match rng.u8(..12) {
        0 => 0,
        1 => pick(rng, &[1, (1 << 52) - 1, 1 << 51]),
        2 => fraction,
        3 => {
            let edges = [1 << 52, 0x7fef_ffff_ffff_ffff, 0x3ff0_0000_0000_0000, 0x3fef_ffff_ffff_ffff];
            pick(rng, &edges)
        }
        4 => 0x7ff0_0000_0000_0000,
        5 => 0x7ff8_0000_0000_0000 | fraction,
        6 => 0x7ff0_0000_0000_0001 | fraction >> 1,
        7 => (f64::from(rng.i32(-100_000..100_000)) / 2.0).to_bits() & (u64::MAX >> 1),
        8 => (pick(rng, &[31u64, 32, 62, 63, 64, 15, 16]) + 1023) << 52 | pick(rng, &[0, 1, (1 << 52) - 1]),
        // Around what single precision can hold.
        9 => pick(rng, &[127u64, 128, 129]).wrapping_add(1022) << 52 | fraction,
        10 => (1023 - pick(rng, &[125u64, 126, 127, 149, 150])) << 52 | fraction,
        _ => rng.u64(990..1060) << 52 | fraction,
    }
}

/// Extended precision, with the encodings that modern processors call invalid: pseudo-infinities, pseudo-NaNs
/// and unnormals; denormals and pseudo-denormals too.
pub fn float80(rng: &mut Rng) -> X87Register {
    const INTEGER_BIT: u64 = 1 << 63;
    let random = rng.u64(..);
    let (exponent, significand) = match rng.u8(..20) {
        0 => (0, 0),
        1 => (0, random & !INTEGER_BIT),
        2 => (0, pick(rng, &[1, INTEGER_BIT, INTEGER_BIT | 1, INTEGER_BIT - 1])),
        3 => (0x7fff, INTEGER_BIT),
        4 => (0x7fff, random | 3 << 62),
        5 => (0x7fff, (random | INTEGER_BIT | 1) & !(1 << 62)),
        6 if chance(rng, 40) => (rng.u16(..0x8000), random & !INTEGER_BIT),
        7 => (rng.u16(1..0x7fff), random | INTEGER_BIT),
        8 => (pick(rng, &[1, 2, 0x7ffe, 0x7ffd]), random | INTEGER_BIT),
        9 => (0x3fff, pick(rng, &[INTEGER_BIT, INTEGER_BIT | 1, u64::MAX])),
        // Integers and halves.
        10..13 => {
            let bits = rng.u32(1..63);
            let value = rng.u64(1..1 << bits);
            let shift = value.leading_zeros();
            (0x3fff + 63 - shift as u16 - u16::from(rng.bool()), value << shift)
        }
        // About as large as the integer formats hold.
        13 => (
            0x3fff + pick(rng, &[14, 15, 30, 31, 62, 63]),
            pick(rng, &[INTEGER_BIT, u64::MAX, random]) | INTEGER_BIT,
        ),
        // About as large and as small as double and single precision hold.
        14 => (0x3fff + pick(rng, &[127, 128, 1023, 1024]), random | INTEGER_BIT),
        15 => (0x3fff - pick(rng, &[126, 127, 149, 1022, 1023, 1074]), random | INTEGER_BIT),
        _ => (0x3fff - 40 + rng.u16(..80), random | INTEGER_BIT),
    };
    X87Register { significand, sign_exponent: exponent | u16::from(rng.bool()) << 15 }
}

/// Sixteen bytes of lanes.
pub fn vector(rng: &mut Rng, lanes: Lanes) -> [u64; 2] {
    std::array::from_fn(|_| match lanes {
        Lanes::Float32 => u64::from(float32(rng)) | u64::from(float32(rng)) << 32,
        Lanes::Float64 => float64(rng),
        Lanes::Integer => small_lanes(rng),
    })
}

/// Eight bytes of lanes of some width, each a random one or an edge.
fn small_lanes(rng: &mut Rng) -> u64 {
    let bits = pick(rng, &[8, 16, 32, 64]);
    if bits == 64 {
        return integer(rng);
    }
    let mask = u64::MAX >> (64 - bits);
    (0..64 / bits).fold(0, |lanes, n| {
        let edge = pick(rng, &[0, 1, mask, mask >> 1, (mask >> 1) + 1]);
        let lane = if chance(rng, 40) { edge } else { rng.u64(..) & mask };
        lanes | lane << (n * bits)
    })
}

/// The x87 unit: mostly full and with all exceptions masked.
pub fn x87(rng: &mut Rng) -> X87 {
    const EXCEPTIONS: u16 = 0x3f;
    let mut x87 = X87 {
        control: 0x40 | EXCEPTIONS | rng.u16(..16) << 8 | u16::from(rng.bool()) << 12,
        occupied: if chance(rng, 70) { 0xff } else { rng.u8(..) },
        status: rng.u16(..) & 0x7f00,
        ..X87::default()
    };
    if rng.bool() {
        // Extended precision, to nearest: what every program has.
        x87.control = 0x37f;
    }
    if chance(rng, 15) {
        x87.control &= !(rng.u16(..) & EXCEPTIONS);
    }
    // Flags of exceptions past, sometimes of one that is about to be reported.
    let flags = rng.u16(..0x80);
    if chance(rng, 20) {
        x87.status |= flags & (x87.control | 0x40);
    } else if chance(rng, 3) {
        x87.status |= flags;
    }
    if x87.status & !x87.control & EXCEPTIONS != 0 {
        x87.status |= 0x8080;
    }
    for register in &mut x87.registers {
        *register = float80(rng);
    }
    x87
}

/// SSE control and status: mostly with all exceptions masked.
pub fn mxcsr(rng: &mut Rng) -> u32 {
    let mut mxcsr = 0x1f80;
    if chance(rng, 40) {
        mxcsr |= rng.u32(..4) << 13;
    }
    if chance(rng, 20) {
        mxcsr |= rng.u32(..2) << 15 | rng.u32(..2) << 6;
    }
    if chance(rng, 30) {
        mxcsr |= rng.u32(..0x40);
    }
    if chance(rng, 12) {
        mxcsr &= !(rng.u32(..0x40) << 7);
    }
    mxcsr
}

/// Memory full of random bytes. What the program cannot write is the same in each case: see [`super::native`].
pub fn memory(rng: &mut Rng) -> Memory {
    let mut memory = Memory::new();
    for region in MEMORY {
        let mut fixed = Rng::with_seed(region.start);
        let rng = if region.rights == Rights::ReadWrite { &mut *rng } else { &mut fixed };
        let start = Memory::index(region.start).expect("one of the regions");
        for chunk in memory.0[start..start + region.size as usize].chunks_exact_mut(8) {
            chunk.copy_from_slice(&rng.u64(..).to_le_bytes());
        }
    }
    memory
}
