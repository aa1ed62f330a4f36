//! Whatever a driver does to the registers, command lists and rings of the devices, they survive it.
//!
//! The operations are those of the fuzz target `peripherals`; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/peripherals.rs"]
mod peripherals;

/// xorshift64*: a fixed sequence that needs no crate.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn random_operations_on_both_devices() {
    let mut seed = 0x0005_eed0_a4c1_5ada;
    for round in 0..300 {
        let mut input: Vec<u8> = (0..512).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        input[0] = round as u8;
        peripherals::run(&input);
    }
}

#[test]
fn no_operation_at_all() {
    peripherals::run(&[0]);
    peripherals::run(&[1]);
}
