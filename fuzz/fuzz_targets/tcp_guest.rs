//! Any segments from a guest to a TCP connection.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| posada_fuzz::tcp_guest(data));
