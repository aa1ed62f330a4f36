//! Any bytes as a message from another member of a switch, for a guest that accepts any offloads.
//!
//! Beside "no panic" it checks that what reaches the guest is what it accepts, and no flood.

use posada_network::link::{Features, MAX_FRAME};
use posada_network::switch::fuzz_message;
use posada_network::wire::conform;

/// Takes one message.
///
/// # Panics
/// If a guest would get what it does not accept: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((features, message)) = data.split_first() else { return };
    let accepted = Features::from(*features);
    let Some(packet) = fuzz_message(message) else { return };
    let mut frames = 0;
    let _ = conform(packet, accepted, &mut |packet| {
        assert!(accepted.allow(&packet.offload));
        assert!(packet.bytes.len() <= MAX_FRAME);
        frames += 1;
    });
    // 64 KiB in the smallest segments.
    assert!(frames <= 1400, "one frame became {frames}");
}
