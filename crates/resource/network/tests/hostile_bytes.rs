//! Whatever guests and other members of a switch send, the networks survive it.
//!
//! The operations are those of the fuzz targets; here they come from a fixed seed and end.

#[path = "../../../../fuzz/src/guest_frames.rs"]
mod guest_frames;
#[path = "../../../../fuzz/src/switch_peer.rs"]
mod switch_peer;
#[path = "../../../../fuzz/src/tcp_guest.rs"]
mod tcp_guest;

/// Runs `target` on `count` inputs of up to `words` times eight bytes.
fn random_inputs(count: usize, words: u64, target: impl Fn(&[u8])) {
    // xorshift64*: a fixed sequence that needs no crate.
    let mut state = 0x5eed_u64;
    let mut random = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for _ in 0..count {
        let length = random() % words;
        let input: Vec<u8> = (0..=length).flat_map(|_| random().to_le_bytes()).collect();
        target(&input);
    }
}

#[test]
fn random_frames_from_a_guest() {
    random_inputs(1500, 100, guest_frames::run);
}

#[test]
fn random_segments_from_a_guest() {
    random_inputs(6000, 100, tcp_guest::run);
}

#[test]
fn random_messages_from_a_member() {
    random_inputs(20_000, 40, |bytes| {
        switch_peer::run(bytes);
        // Most random messages are none: these begin like frames.
        let mut message = bytes.to_vec();
        message[1] = 2;
        message[3] = [0, 1, 4, 5][usize::from(bytes[3] & 3)];
        switch_peer::run(&message);
    });
}
