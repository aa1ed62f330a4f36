//! Any bytes as an instruction, here and on the host's processor.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::against_host(data));
