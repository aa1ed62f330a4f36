//! Images that somebody has broken, and requests in any order: the logic of the fuzz targets, from a fixed seed.

#[path = "../../../../fuzz/src/disk_image.rs"]
mod disk_image;
#[path = "../../../../fuzz/src/disk_requests.rs"]
mod disk_requests;

use fastrand::Rng;

/// Values that are one too many somewhere.
const EXTREME: [u64; 10] = [
    0,
    1,
    0xff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 62,
    1 << 63,
    u64::MAX,
    0x8000_0000_0000_0200,
    0x00ff_ffff_ffff_fe00,
];

#[test]
fn a_broken_image_is_an_error_or_a_disk() {
    for kind in 0..5 {
        disk_image::run(&[kind]);
    }
    let mut rng = Rng::with_seed(31);
    for round in 0..1500 {
        // A kind of image, and up to six changes of its header or its tables.
        let mut data = vec![rng.u8(..5)];
        for _ in 0..rng.u8(1..6) {
            let at = if rng.bool() { rng.u16(..128) } else { rng.u16(..8192) };
            data.extend((at & !(if rng.bool() { 3 } else { 0 })).to_le_bytes());
            let value =
                if rng.bool() { EXTREME[rng.usize(..EXTREME.len())] } else { rng.u64(..) >> rng.u8(..64) };
            data.extend(if round % 2 == 0 { value.to_be_bytes() } else { value.to_le_bytes() });
        }
        disk_image::run(&data);
    }
}

#[test]
fn requests_in_any_order_leave_an_image_in_order() {
    let mut rng = Rng::with_seed(32);
    for _ in 0..150 {
        let mut data = vec![0; rng.usize(1..200)];
        rng.fill(&mut data);
        disk_requests::run(&data);
    }
}
