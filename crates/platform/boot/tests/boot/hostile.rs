//! Files that somebody has broken: an error or a kernel, never a panic, and never a byte where none belongs.
//!
//! The check is that of the fuzz target `boot_image`; here the files come from a fixed seed and end.

#[path = "../../../../../fuzz/src/boot_image.rs"]
mod boot_image;

use crate::images::{BzImage, Elf, Segment, flat_multiboot, multiboot_header};
use crate::{Guest, MIB, kernel};

/// A small generator with a fixed seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut multiboot = multiboot_header(3, &[]);
    multiboot.resize(0x40, 0x90);
    let pvh = |wide| {
        let code = Segment::load(MIB, MIB, vec![0x90; 0x100]);
        Elf::new(wide, MIB, vec![code, Segment::pvh(&(MIB as u32).to_le_bytes())]).build()
    };
    vec![
        BzImage { code: vec![0x90; 0x400], ..BzImage::default() }.build(),
        BzImage { xloadflags: 0, ..BzImage::default() }.build(),
        pvh(false),
        pvh(true),
        Elf::new(false, MIB, vec![Segment::load(MIB, MIB, multiboot.clone())]).build(),
        Elf::new(true, MIB, vec![Segment::load(MIB, MIB, multiboot)]).build(),
        flat_multiboot(&[0xf4; 64], 0x10_1000),
    ]
}

/// Changes a few fields, preferably to values that are extreme, and now and then the length.
fn mutate(image: &mut Vec<u8>, random: &mut Random) {
    const EXTREME: [u64; 10] =
        [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX - 0xfff, u64::MAX];
    for _ in 0..=random.below(3) {
        // Headers lie near the start.
        let limit = if random.below(4) == 0 { image.len() } else { image.len().min(0x290) };
        let at = random.below(limit);
        let width = 1 << random.below(4);
        let value = if random.below(2) == 0 { EXTREME[random.below(EXTREME.len())] } else { random.next() };
        for (byte, new) in image[at..].iter_mut().take(width).zip(value.to_le_bytes()) {
            *byte = new;
        }
    }
    if random.below(8) == 0 {
        image.truncate(random.below(image.len()));
    }
}

#[test]
fn a_broken_file_neither_panics_nor_touches_what_is_not_its_own() {
    let mut random = Random(0x5eed_0fb0_0742);
    for _ in 0..600 {
        for mut image in seeds() {
            mutate(&mut image, &mut random);
            image.insert(0, random.next() as u8);
            boot_image::run(&image);
        }
    }
}

#[test]
fn every_prefix_of_every_image_is_an_error_or_a_kernel() {
    let guest = Guest::new(32 * MIB);
    for seed in seeds() {
        for len in 0..seed.len() {
            let _ = guest.load(&kernel(&seed[..len]));
        }
        guest.load(&kernel(&seed)).unwrap();
    }
}
