//! Whatever a driver does to the registers and rings of a virtio device, the device survives it.
//!
//! The operations are those of the fuzz target `virtio`; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/virtio.rs"]
mod virtio;

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
    for round in 0..350 {
        let mut input: Vec<u8> = (0..512).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        input[0] = round as u8 % 7;
        virtio::run(&input);
    }
}

#[test]
fn no_operation_at_all() {
    for device in 0..7 {
        virtio::run(&[device]);
    }
}
