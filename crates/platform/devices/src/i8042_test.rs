use super::*;
use crate::line::test_line::Probe;

const A: Key = Key::new(0x1c);
const UP: Key = Key::extended(0x75);

struct Wires {
    keyboard: Probe,
    aux: Probe,
}

fn controller() -> (I8042<Probe>, Wires) {
    let wires = Wires { keyboard: Probe::default(), aux: Probe::default() };
    (I8042::new(wires.keyboard.clone(), wires.aux.clone()), wires)
}

fn command(i8042: &mut I8042<Probe>, command: u8) {
    assert_eq!(i8042.write_command(command), None);
}

fn data(i8042: &mut I8042<Probe>, byte: u8) {
    assert_eq!(i8042.write_data(byte), None);
}

fn set_mode(i8042: &mut I8042<Probe>, mode: u8) {
    command(i8042, 0x60);
    data(i8042, mode);
}

/// Everything that waits, keyboard's and mouse's bytes alike.
fn drain(i8042: &mut I8042<Probe>) -> Vec<u8> {
    std::iter::from_fn(|| (i8042.read_status() & STATUS_OUTPUT_FULL != 0).then(|| i8042.read_data()))
        .collect()
}

fn keyboard(i8042: &mut I8042<Probe>, bytes: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    for &byte in bytes {
        data(i8042, byte);
        answers.extend(drain(i8042));
    }
    answers
}

fn mouse(i8042: &mut I8042<Probe>, bytes: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    for &byte in bytes {
        command(i8042, 0xd4);
        data(i8042, byte);
        while i8042.read_status() & STATUS_OUTPUT_FULL != 0 {
            assert_ne!(i8042.read_status() & STATUS_AUX, 0);
            answers.push(i8042.read_data());
        }
    }
    answers
}

// The controller.

#[test]
fn self_and_interface_tests_pass() {
    let (mut i8042, _) = controller();
    for (test, result) in [(0xaa, 0x55), (0xab, 0x00), (0xa9, 0x00)] {
        command(&mut i8042, test);
        assert_eq!(drain(&mut i8042), [result]);
    }
}

#[test]
fn the_mode_byte_is_read_and_written() {
    let (mut i8042, _) = controller();
    set_mode(&mut i8042, 0x65);
    command(&mut i8042, 0x20);
    assert_eq!(drain(&mut i8042), [0x65]);
    command(&mut i8042, 0x6f);
    data(&mut i8042, 0x77);
    command(&mut i8042, 0x2f);
    assert_eq!(drain(&mut i8042), [0x77], "the rest of the RAM, too");
}

#[test]
fn the_status_tells_command_from_data_and_the_system_flag() {
    let (mut i8042, _) = controller();
    assert_eq!(i8042.read_status(), 0x14);
    command(&mut i8042, 0x60);
    assert_eq!(i8042.read_status(), 0x1c);
    data(&mut i8042, 0x00);
    assert_eq!(i8042.read_status(), 0x10);
}

#[test]
fn the_reset_line_is_pulsed() {
    let (mut i8042, _) = controller();
    assert_eq!(i8042.write_command(0xfe), Some(Request::Reset));
    assert_eq!(i8042.write_command(0xf0), Some(Request::Reset));
    assert_eq!(i8042.write_command(0xff), None);
    command(&mut i8042, 0xd1);
    assert_eq!(i8042.write_data(0xfe), Some(Request::Reset));
}

#[test]
fn a20_is_gated_by_output_port_port_92_and_commands() {
    let (mut i8042, _) = controller();
    assert!(i8042.a20());
    command(&mut i8042, 0xd1);
    assert_eq!(i8042.write_data(0xdd), Some(Request::A20(false)));
    command(&mut i8042, 0xd0);
    assert_eq!(i8042.read_data() & 3, 1);
    assert_eq!(i8042.write_system_control(0x02), Some(Request::A20(true)));
    assert_eq!(i8042.write_system_control(0x02), None, "open already");
    assert_eq!(i8042.read_system_control(), 0x02);
    assert_eq!(i8042.write_command(0xdd), Some(Request::A20(false)));
    assert_eq!(i8042.write_command(0xdf), Some(Request::A20(true)));
}

#[test]
fn port_92_resets() {
    let (mut i8042, _) = controller();
    assert_eq!(i8042.write_system_control(0x03), Some(Request::Reset));
}

#[test]
fn the_auxiliary_loopback_answers_as_the_mouse_would() {
    // By this Linux finds the AUX port, and by its interrupt that IRQ 12 works.
    let (mut i8042, wires) = controller();
    set_mode(&mut i8042, 0x67);
    command(&mut i8042, 0xd3);
    data(&mut i8042, 0xa5);
    assert!(wires.aux.level());
    assert_eq!(i8042.read_status() & (STATUS_AUX | STATUS_OUTPUT_FULL), STATUS_AUX | STATUS_OUTPUT_FULL);
    assert_eq!(i8042.read_data(), 0xa5);
    assert!(!wires.aux.level());
}

#[test]
fn devices_are_turned_off_and_on_and_their_bytes_wait() {
    let (mut i8042, wires) = controller();
    command(&mut i8042, 0xad);
    i8042.press(A, true);
    assert_eq!(i8042.read_status() & STATUS_OUTPUT_FULL, 0);
    command(&mut i8042, 0xae);
    assert!(wires.keyboard.level());
    assert_eq!(drain(&mut i8042), [0x1e]);
    command(&mut i8042, 0xa8);
    command(&mut i8042, 0x20);
    assert_eq!(i8042.read_data() & MODE_AUX_OFF, 0);
    command(&mut i8042, 0xa7);
    command(&mut i8042, 0x20);
    assert_ne!(i8042.read_data() & MODE_AUX_OFF, 0);
}

#[test]
fn a_commands_answer_does_not_cost_a_key() {
    let (mut i8042, _) = controller();
    i8042.press(A, true);
    command(&mut i8042, 0x20);
    assert_eq!(drain(&mut i8042), [0x65, 0x1e]);
}

#[test]
fn every_byte_is_an_edge() {
    let (mut i8042, wires) = controller();
    i8042.press(UP, true);
    assert_eq!(wires.keyboard.edges(), 1);
    i8042.read_data();
    assert_eq!(wires.keyboard.edges(), 2);
    i8042.read_data();
    assert!(!wires.keyboard.level());
}

#[test]
fn an_interrupt_that_is_off_raises_nothing() {
    let (mut i8042, wires) = controller();
    set_mode(&mut i8042, 0x44);
    i8042.press(A, true);
    assert_eq!(wires.keyboard.edges(), 0);
    assert_eq!(drain(&mut i8042), [0x1e]);
}

#[test]
fn the_empty_buffer_reads_its_last_byte() {
    let (mut i8042, _) = controller();
    i8042.press(A, true);
    i8042.read_data();
    assert_eq!(i8042.read_data(), 0x1e);
}

// The keyboard.

#[test]
fn keys_come_in_set_1_by_translation_and_in_set_2_without() {
    let (mut i8042, _) = controller();
    i8042.press(A, true);
    i8042.press(A, false);
    i8042.press(UP, true);
    i8042.press(UP, false);
    assert_eq!(drain(&mut i8042), [0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
    set_mode(&mut i8042, 0x05);
    i8042.press(A, true);
    i8042.press(A, false);
    i8042.press(UP, false);
    assert_eq!(drain(&mut i8042), [0x1c, 0xf0, 0x1c, 0xe0, 0xf0, 0x75]);
}

#[test]
fn the_translation_is_that_of_the_at() {
    let (mut i8042, _) = controller();
    // Escape, 1, Q, Enter, space, F1, F7, left Shift, keypad 0.
    for (code, set_1) in [
        (0x76, 0x01),
        (0x16, 0x02),
        (0x15, 0x10),
        (0x5a, 0x1c),
        (0x29, 0x39),
        (0x05, 0x3b),
        (0x83, 0x41),
        (0x12, 0x2a),
        (0x70, 0x52),
    ] {
        i8042.press(Key::new(code), true);
        assert_eq!(drain(&mut i8042), [set_1], "{code:#x}");
    }
}

#[test]
fn reset_and_identification() {
    let (mut i8042, _) = controller();
    set_mode(&mut i8042, 0x05);
    assert_eq!(keyboard(&mut i8042, &[0xff]), [0xfa, 0xaa]);
    assert_eq!(keyboard(&mut i8042, &[0xf2]), [0xfa, 0xab, 0x83]);
    assert_eq!(keyboard(&mut i8042, &[0xee]), [0xee]);
    set_mode(&mut i8042, 0x45);
    assert_eq!(keyboard(&mut i8042, &[0xf2]), [0xfa, 0xab, 0x41], "translated, as Linux knows it");
}

#[test]
fn lamps_rate_and_scan_code_sets_take_a_parameter() {
    let (mut i8042, _) = controller();
    set_mode(&mut i8042, 0x05);
    assert_eq!(keyboard(&mut i8042, &[0xed, 0x05]), [0xfa, 0xfa]);
    assert_eq!(i8042.lamps(), 5);
    assert_eq!(keyboard(&mut i8042, &[0xf3, 0x20]), [0xfa, 0xfa]);
    assert_eq!(keyboard(&mut i8042, &[0xf0, 0x00]), [0xfa, 0xfa, 0x02]);
    assert_eq!(keyboard(&mut i8042, &[0xf0, 0x01]), [0xfa, 0xfa]);
    i8042.press(A, true);
    i8042.press(A, false);
    assert_eq!(drain(&mut i8042), [0x1e, 0x9e]);
    assert_eq!(keyboard(&mut i8042, &[0xf0, 0x03]), [0xfa, 0xfe], "there is no set 3");
    // A command in place of the parameter is a command.
    assert_eq!(keyboard(&mut i8042, &[0xed, 0xf4]), [0xfa, 0xfa]);
}

#[test]
fn scanning_stops_and_starts() {
    let (mut i8042, _) = controller();
    assert_eq!(keyboard(&mut i8042, &[0xf5]), [0xfa]);
    i8042.press(A, true);
    assert!(drain(&mut i8042).is_empty());
    assert_eq!(keyboard(&mut i8042, &[0xf4]), [0xfa]);
    i8042.press(A, true);
    assert_eq!(drain(&mut i8042), [0x1e]);
}

#[test]
fn an_unknown_command_is_refused_and_resend_repeats() {
    let (mut i8042, _) = controller();
    assert_eq!(keyboard(&mut i8042, &[0xf1]), [0xfe]);
    assert_eq!(keyboard(&mut i8042, &[0xf2]).last(), Some(&0x41));
    set_mode(&mut i8042, 0x05);
    assert_eq!(keyboard(&mut i8042, &[0xfe]), [0x83]);
}

#[test]
fn too_many_keys_are_an_overrun_and_no_more() {
    let (mut i8042, _) = controller();
    set_mode(&mut i8042, 0x05);
    for _ in 0..1000 {
        i8042.press(A, true);
    }
    let bytes = drain(&mut i8042);
    assert!(bytes.len() <= 18);
    assert_eq!(bytes.split(|&byte| byte == 0).count(), 2, "one overrun");
}

// The mouse.

fn with_mouse() -> (I8042<Probe>, Wires) {
    let (mut i8042, wires) = controller();
    set_mode(&mut i8042, 0x47);
    (i8042, wires)
}

#[test]
fn the_mouse_resets_and_says_that_it_is_standard() {
    let (mut i8042, _) = with_mouse();
    assert_eq!(mouse(&mut i8042, &[0xff]), [0xfa, 0xaa, 0x00]);
    assert_eq!(mouse(&mut i8042, &[0xf2]), [0xfa, 0x00]);
    assert_eq!(mouse(&mut i8042, &[0xe9]), [0xfa, 0x00, 0x02, 0x64]);
    // The knock that a wheel mouse answers with another identity.
    assert_eq!(
        mouse(&mut i8042, &[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2]),
        [0xfa; 7].into_iter().chain([0]).collect::<Vec<_>>()
    );
}

#[test]
fn movement_is_reported_once_reporting_is_on() {
    let (mut i8042, wires) = with_mouse();
    let left = Buttons { left: true, ..Buttons::default() };
    i8042.move_mouse(5, 5, left);
    assert!(drain(&mut i8042).is_empty());
    assert_eq!(mouse(&mut i8042, &[0xf4]), [0xfa, 0x09, 0, 0], "the button is down, the way is forgotten");
    i8042.move_mouse(5, -3, left);
    assert!(wires.aux.level());
    assert_eq!(drain(&mut i8042), [0x29, 5, 0xfd]);
}

#[test]
fn long_ways_take_several_packets_and_none_is_lost() {
    let (mut i8042, _) = with_mouse();
    mouse(&mut i8042, &[0xf4]);
    i8042.move_mouse(-10_000, 0, Buttons::default());
    let bytes = drain(&mut i8042);
    let way: i32 = bytes
        .chunks(3)
        .map(|packet| i32::from(packet[1]) - if packet[0] & 0x10 != 0 { 256 } else { 0 })
        .sum();
    assert_eq!(way, -10_000);
}

#[test]
fn remote_mode_reports_when_asked() {
    let (mut i8042, _) = with_mouse();
    mouse(&mut i8042, &[0xf4, 0xf0]);
    i8042.move_mouse(7, 8, Buttons::default());
    assert!(drain(&mut i8042).is_empty());
    assert_eq!(mouse(&mut i8042, &[0xeb]), [0xfa, 0x08, 7, 8]);
}

#[test]
fn wrap_mode_sends_everything_back() {
    let (mut i8042, _) = with_mouse();
    assert_eq!(mouse(&mut i8042, &[0xee, 0x12, 0xf4, 0xec]), [0xfa, 0x12, 0xf4, 0xfa]);
}

#[test]
fn a_rate_that_does_not_exist_is_refused() {
    let (mut i8042, _) = with_mouse();
    assert_eq!(mouse(&mut i8042, &[0xf3, 77]), [0xfa, 0xfe]);
}

#[test]
fn the_state_goes_through_a_file() {
    let (mut i8042, _) = with_mouse();
    i8042.press(UP, true);
    i8042.press(UP, false);
    i8042.read_data();
    command(&mut i8042, 0xd4);
    let text = serde_json::to_string(&i8042.state()).unwrap();
    let (keyboard, aux) = (Probe::default(), Probe::default());
    let mut restored =
        I8042::from_state(serde_json::from_str(&text).unwrap(), keyboard.clone(), aux.clone()).unwrap();
    assert_eq!(restored.state(), i8042.state());
    assert_eq!(keyboard.edges() + aux.edges(), 0);
    assert_eq!(drain(&mut restored), [0x48, 0xe0, 0xc8]);
    assert_eq!(restored.write_data(0xf2), None);
    assert_eq!(drain(&mut restored), [0xfa, 0x00], "the mouse was to get the next byte");
}

#[test]
fn reset_forgets_what_waited() {
    let (mut i8042, wires) = controller();
    i8042.press(A, true);
    i8042.reset();
    assert!(!wires.keyboard.level());
    assert!(drain(&mut i8042).is_empty());
}
