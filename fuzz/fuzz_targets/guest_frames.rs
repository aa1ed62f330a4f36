//! Any frames from a guest to a user-mode network.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::guest_frames(data));
