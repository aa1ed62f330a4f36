//! Any file as a disk image.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::disk_image(data));
