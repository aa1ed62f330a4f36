//! Whatever a session's guest says, the host survives it and holds little.
//!
//! The operations are those of the fuzz target `session`; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/session.rs"]
mod session;

/// xorshift64*: a fixed sequence that needs no crate.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn random_frames_and_bytes() {
    let mut seed = 0x5eed;
    for _ in 0..3000 {
        let input: Vec<u8> = (0..64).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        session::run(&input);
    }
}

#[test]
fn a_guest_that_reboots_for_ever_fills_no_memory() {
    // A hello, sixteen frames of output, and again.
    let mut input = Vec::new();
    for _ in 0..100 {
        input.extend([1, 0, 0, 1, 0]);
        input.extend([3, 0, 0xff, 0x0f].repeat(15));
    }
    session::run(&input);
}
