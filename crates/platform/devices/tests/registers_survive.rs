//! Whatever a guest does to the registers of the devices, in whatever order, they survive it.
//!
//! The operations are those of the fuzz target `device_registers`; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/device_registers.rs"]
mod device_registers;

/// xorshift64*: a fixed sequence that needs no crate.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn random_operations_on_every_device() {
    let mut seed = 0x0005_eed0_f090_5ada;
    for _ in 0..400 {
        let input: Vec<u8> = (0..4096).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        device_registers::run(&input);
    }
}

#[test]
fn no_operation_at_all() {
    device_registers::run(&[]);
}
