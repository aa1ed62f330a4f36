//! Every register of every device, in any order, with any values, at any time.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::device_registers(data));
