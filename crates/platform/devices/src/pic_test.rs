use super::*;

/// Controllers as a PC's firmware or kernel sets them up: vectors 0x20 and 0x28, nothing masked.
fn initialized() -> Pic {
    let mut pic = Pic::new();
    initialize(&mut pic, 0x01);
    pic
}

fn initialize(pic: &mut Pic, icw4: u8) {
    for (port, words) in [(MASTER, [0x11, 0x20, 0x04, icw4]), (SLAVE, [0x11, 0x28, 0x02, icw4])] {
        pic.write(port, words[0]);
        for word in &words[1..] {
            pic.write(port + 1, *word);
        }
    }
}

fn pulse(pic: &mut Pic, irq: u8) {
    pic.set_irq(irq, true);
    pic.set_irq(irq, false);
}

fn in_service(pic: &mut Pic, port: u16) -> u8 {
    pic.write(port, 0x0b);
    pic.read(port)
}

fn requested(pic: &mut Pic, port: u16) -> u8 {
    pic.write(port, 0x0a);
    pic.read(port)
}

#[test]
fn an_edge_is_delivered_once_with_its_vector() {
    let mut pic = initialized();
    pic.set_irq(4, true);
    assert!(pic.has_interrupt());
    assert_eq!(pic.acknowledge(), 0x24);
    pic.write(MASTER, 0x20);
    assert!(!pic.has_interrupt(), "the line is still high, but there was no new edge");
    pic.set_irq(4, false);
    pic.set_irq(4, true);
    assert!(pic.has_interrupt());
}

#[test]
fn an_edge_survives_the_fall_of_its_line() {
    let mut pic = initialized();
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x20);
}

#[test]
fn a_level_requests_until_its_line_falls() {
    let mut pic = initialized();
    pic.write(ELCR, 1 << 5);
    pic.set_irq(5, true);
    assert_eq!(pic.acknowledge(), 0x25);
    pic.write(MASTER, 0x20);
    assert!(pic.has_interrupt(), "still asserted");
    pic.set_irq(5, false);
    assert!(!pic.has_interrupt());
}

#[test]
fn edge_only_inputs_cannot_be_made_level_triggered() {
    let mut pic = initialized();
    pic.write(ELCR, 0xff);
    pic.write(ELCR + 1, 0xff);
    assert_eq!(pic.read(ELCR), 0xf8);
    assert_eq!(pic.read(ELCR + 1), 0xde);
}

#[test]
fn a_lower_number_goes_first_and_interrupts_a_higher() {
    let mut pic = initialized();
    pulse(&mut pic, 6);
    pulse(&mut pic, 3);
    assert_eq!(pic.acknowledge(), 0x23);
    assert!(!pic.has_interrupt(), "6 waits for 3");
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
    pic.write(MASTER, 0x20); // ends 1, the highest in service
    assert_eq!(in_service(&mut pic, MASTER), 1 << 3);
    pic.write(MASTER, 0x20);
    assert_eq!(pic.acknowledge(), 0x26);
}

#[test]
fn a_masked_edge_waits_for_its_unmasking() {
    let mut pic = initialized();
    pic.write(MASTER + 1, 1 << 4);
    pulse(&mut pic, 4);
    assert!(!pic.has_interrupt());
    assert_eq!(requested(&mut pic, MASTER), 1 << 4);
    pic.write(MASTER + 1, 0);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn the_slaves_inputs_come_through_the_cascade() {
    let mut pic = initialized();
    pulse(&mut pic, 12);
    assert_eq!(requested(&mut pic, MASTER), 1 << 2);
    assert_eq!(pic.acknowledge(), 0x2c);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 2);
    assert_eq!(in_service(&mut pic, SLAVE), 1 << 4);
    // A higher input of the slave has to wait for the master's input 2 ...
    pulse(&mut pic, 8);
    assert!(!pic.has_interrupt());
    // ... so both get an end of interrupt.
    pic.write(SLAVE, 0x20);
    pic.write(MASTER, 0x20);
    assert_eq!(pic.acknowledge(), 0x28);
}

#[test]
fn in_special_fully_nested_mode_the_slave_interrupts_its_own_service() {
    let mut pic = Pic::new();
    initialize(&mut pic, 0x11);
    pulse(&mut pic, 12);
    assert_eq!(pic.acknowledge(), 0x2c);
    pulse(&mut pic, 8);
    assert_eq!(pic.acknowledge(), 0x28);
}

#[test]
fn a_request_that_has_gone_is_the_spurious_7() {
    let mut pic = initialized();
    pic.write(ELCR, 1 << 5);
    pic.set_irq(5, true);
    assert!(pic.has_interrupt());
    pic.set_irq(5, false);
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(in_service(&mut pic, MASTER), 0, "nothing to end");
}

#[test]
fn a_request_that_has_gone_from_the_slave_goes_from_the_master_too() {
    let mut pic = initialized();
    pic.write(ELCR + 1, 1 << 2);
    pic.set_irq(10, true);
    assert!(pic.has_interrupt());
    pic.set_irq(10, false);
    assert_eq!(pic.acknowledge(), 0x27);
    assert_eq!(in_service(&mut pic, MASTER), 0);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
}

#[test]
fn automatic_end_of_interrupt_leaves_nothing_in_service() {
    let mut pic = Pic::new();
    initialize(&mut pic, 0x03);
    pulse(&mut pic, 9);
    assert_eq!(pic.acknowledge(), 0x29);
    assert_eq!(in_service(&mut pic, MASTER), 0);
    assert_eq!(in_service(&mut pic, SLAVE), 0);
}

#[test]
fn a_specific_end_of_interrupt_ends_the_one_it_names() {
    let mut pic = initialized();
    pulse(&mut pic, 6);
    pic.acknowledge();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.write(MASTER, 0x60 | 6);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 3);
}

#[test]
fn rotation_on_end_of_interrupt_makes_the_ended_one_the_lowest() {
    let mut pic = initialized();
    pulse(&mut pic, 3);
    pic.acknowledge();
    pic.write(MASTER, 0xa0);
    pulse(&mut pic, 3);
    pulse(&mut pic, 4);
    assert_eq!(pic.acknowledge(), 0x24);
}

#[test]
fn set_priority_names_the_lowest() {
    let mut pic = initialized();
    pic.write(MASTER, 0xc0 | 5); // so 6 is highest
    pulse(&mut pic, 0);
    pulse(&mut pic, 6);
    assert_eq!(pic.acknowledge(), 0x26);
}

#[test]
fn rotation_in_automatic_mode_goes_with_each_acknowledge() {
    let mut pic = Pic::new();
    initialize(&mut pic, 0x03);
    pic.write(MASTER, 0x80);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x20);
    pulse(&mut pic, 0);
    pulse(&mut pic, 1);
    assert_eq!(pic.acknowledge(), 0x21);
}

#[test]
fn special_mask_mode_lets_lower_requests_pass_a_masked_service() {
    let mut pic = initialized();
    pulse(&mut pic, 1);
    pic.acknowledge();
    pulse(&mut pic, 5);
    assert!(!pic.has_interrupt());
    pic.write(MASTER + 1, 1 << 1);
    assert!(!pic.has_interrupt(), "masking alone does not free the lower ones");
    pic.write(MASTER, 0x68);
    assert_eq!(pic.acknowledge(), 0x25);
}

#[test]
fn a_poll_acknowledges_by_reading() {
    let mut pic = initialized();
    pulse(&mut pic, 3);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0x80 | 3);
    assert_eq!(in_service(&mut pic, MASTER), 1 << 3);
    pic.write(MASTER, 0x0c);
    assert_eq!(pic.read(MASTER), 0, "nothing pending");
}

#[test]
fn initialization_clears_mask_service_and_edges() {
    let mut pic = initialized();
    pic.write(MASTER + 1, 0xf0);
    pulse(&mut pic, 1);
    pulse(&mut pic, 2);
    pic.acknowledge();
    initialize(&mut pic, 0x01);
    assert_eq!(pic.read(MASTER + 1), 0);
    assert_eq!(in_service(&mut pic, MASTER), 0);
    assert!(!pic.has_interrupt());
}

#[test]
fn initialization_without_icw4_takes_two_words_less() {
    let mut pic = Pic::new();
    pic.write(MASTER, 0x12); // single, no ICW4
    pic.write(MASTER + 1, 0x40);
    pic.write(MASTER + 1, 0xfe); // already the mask
    assert_eq!(pic.read(MASTER + 1), 0xfe);
    pulse(&mut pic, 0);
    assert_eq!(pic.acknowledge(), 0x40);
}

#[test]
fn the_cascade_input_has_no_line_of_its_own() {
    let mut pic = initialized();
    pic.set_irq(2, true);
    pic.set_irq(16, true);
    assert!(!pic.has_interrupt());
}

#[test]
fn the_mask_can_be_probed() {
    // So Linux finds out whether there is a controller at all.
    let mut pic = initialized();
    pic.write(SLAVE + 1, 0xff);
    pic.write(MASTER + 1, 0xfb);
    assert_eq!(pic.read(MASTER + 1), 0xfb);
}

#[test]
fn the_state_goes_through_a_file() {
    let mut pic = initialized();
    pulse(&mut pic, 12);
    pic.acknowledge();
    pulse(&mut pic, 1);
    let text = serde_json::to_string(&pic.state()).unwrap();
    let mut restored = Pic::from_state(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(restored.state(), pic.state());
    assert_eq!(restored.acknowledge(), 0x21);
}

#[test]
fn an_impossible_state_is_refused() {
    let mut state = initialized().state();
    state.chips[0].highest = 9;
    assert!(Pic::from_state(state).is_err());
}

#[test]
fn reset_forgets_all_but_the_lines() {
    let mut pic = initialized();
    pic.write(ELCR, 1 << 5);
    pic.set_irq(5, true);
    pic.reset();
    assert!(!pic.has_interrupt());
    initialize(&mut pic, 0x01);
    pic.write(ELCR, 1 << 5);
    assert_eq!(pic.acknowledge(), 0x25);
}
