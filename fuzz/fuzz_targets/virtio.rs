//! Any driver of every virtio device.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::virtio(data));
