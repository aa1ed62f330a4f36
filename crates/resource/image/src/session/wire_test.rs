use super::*;

#[test]
fn a_frame_is_the_same_in_one_piece_and_in_many() {
    let mut bytes = header(kind::STDOUT, 300).to_vec();
    bytes.extend((0..300).map(|at| at as u8));
    bytes.extend(header(kind::STDIN_CLOSED, 0));
    for piece in [1, 2, 3, 4, 7, 299, 303, 1000] {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for mut input in bytes.chunks(piece) {
            while let Some(frame) = decoder.next(&mut input).unwrap() {
                frames.push((frame.kind, frame.payload.to_vec()));
            }
            assert!(input.is_empty());
        }
        assert_eq!(frames[0].0, kind::STDOUT);
        assert_eq!(frames[0].1, bytes[3..303]);
        assert_eq!(frames[1], (kind::STDIN_CLOSED, vec![]));
        assert_eq!(frames.len(), 2);
    }
}

#[test]
fn the_longest_payload_fits_and_a_longer_one_is_refused() {
    let mut bytes = header(kind::STDOUT, MAX_PAYLOAD).to_vec();
    bytes.extend([1; MAX_PAYLOAD]);
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(&mut &bytes[..]).unwrap().unwrap().payload.len(), MAX_PAYLOAD);
    let mut too_long = &[kind::STDOUT, 0x01, 0x10][..];
    assert_eq!(decoder.next(&mut too_long), Err(TooLong { kind: kind::STDOUT, length: 0x1001 }));
}

#[test]
fn numbers_need_a_payload_of_exactly_their_length() {
    assert_eq!(read_u32(&7_u32.to_le_bytes()), Some(7));
    assert_eq!(read_u32(&[1, 2, 3]), None);
    assert_eq!(read_u8_u32(&write_u8_u32(9, 0x0102_0304)), Some((9, 0x0102_0304)));
    assert_eq!(read_u8_u32(&[]), None);
    assert_eq!(read_u16_u16(&[1, 0, 2, 0]), Some((1, 2)));
    assert_eq!(read_u16_u16(&[1, 0, 2, 0, 3]), None);
}
