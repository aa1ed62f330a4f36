//! Messages between members.

use super::{FRAME, HELLO, MAX_MESSAGE, Message, VERSION, decode};
use crate::header;
use crate::link::{Features, MAX_FRAME, Offload, Packet};

#[test]
fn what_is_sent_is_understood() {
    assert_eq!(decode(&[HELLO, VERSION, Features::ALL.to_bits()]), Some(Message::Hello(Features::ALL)));
    let mut message = vec![FRAME];
    message.extend(header::encode(&Offload::default()));
    message.extend([7; 60]);
    assert_eq!(decode(&message), Some(Message::Frame(Packet::new(vec![7; 60]))));
}

#[test]
fn other_messages_are_none() {
    let frame = |length: usize| [vec![FRAME], vec![0; header::LENGTH + length]].concat();
    let bad = [
        vec![],
        vec![0],
        vec![HELLO],
        vec![HELLO, VERSION],
        vec![HELLO, VERSION + 1, 0],
        vec![HELLO, VERSION, 0, 0],
        vec![9; 100],
        frame(0),
        frame(13),
        frame(MAX_FRAME + 1),
        vec![FRAME; 5],
    ];
    for message in bad {
        assert_eq!(decode(&message), None, "{} bytes", message.len());
    }
    assert!(decode(&frame(MAX_FRAME)).is_some());
    assert_eq!(frame(MAX_FRAME).len(), MAX_MESSAGE);
}
