//! Any bytes as code, interpreted and translated.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::translated(data));
