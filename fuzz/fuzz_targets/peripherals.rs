//! Any driver of the AHCI controller and of the e1000.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::peripherals(data));
