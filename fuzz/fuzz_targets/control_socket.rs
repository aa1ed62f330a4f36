//! Any bytes on a control socket.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::control_socket(data));
