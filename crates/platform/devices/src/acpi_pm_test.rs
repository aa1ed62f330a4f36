use super::*;
use crate::clock::SECOND;
use crate::line::test_line::Probe;

fn pm() -> (AcpiPm<Probe>, Probe) {
    let line = Probe::default();
    (AcpiPm::new(line.clone()), line)
}

fn write(pm: &mut AcpiPm<Probe>, offset: u16, size: u8, value: u32) {
    assert_eq!(pm.write(offset, size, value, 0), None);
}

#[test]
fn the_timer_counts_3_579545_megahertz_and_wraps_at_32_bits() {
    let (mut pm, _) = pm();
    assert_eq!(pm.read(TIMER, 4, SECOND / 2), 1_789_772);
    let wrap = time_of_tick(1 << 32, TIMER_HZ);
    assert_eq!(pm.read(TIMER, 4, wrap - 1), u32::MAX);
    assert_eq!(pm.read(TIMER, 4, wrap), 0);
    assert_eq!(pm.read(TIMER, 2, SECOND), 0x0036_9e99 & 0xffff);
}

#[test]
fn acpi_mode_is_entered_and_left_by_the_smi_command() {
    let (mut pm, _) = pm();
    assert_eq!(pm.read(PM1_CONTROL, 2, 0) & 1, 0);
    pm.write_smi_command(ACPI_ENABLE);
    assert_eq!(pm.read(PM1_CONTROL, 2, 0) & 1, 1);
    pm.write_smi_command(0x77);
    assert_eq!(pm.read(PM1_CONTROL, 2, 0) & 1, 1);
    pm.write_smi_command(ACPI_DISABLE);
    assert_eq!(pm.read(PM1_CONTROL, 2, 0) & 1, 0);
}

#[test]
fn soft_off_needs_its_sleep_type_and_the_enable_bit() {
    let (mut pm, _) = pm();
    let s5 = u32::from(SLEEP_TYPE_S5) << 10;
    assert_eq!(pm.write(PM1_CONTROL, 2, s5, 0), None);
    assert_eq!(pm.write(PM1_CONTROL, 2, 1 << 10 | 1 << 13, 0), None, "no other sleep state");
    assert_eq!(pm.write(PM1_CONTROL, 2, s5 | 1 << 13, 0), Some(PowerRequest::Off));
    assert_eq!(pm.read(PM1_CONTROL, 2, 0) & 1 << 13, 0, "write-only");
}

#[test]
fn soft_off_by_bytes() {
    let (mut pm, _) = pm();
    assert_eq!(pm.write(PM1_CONTROL, 1, 1, 0), None);
    assert_eq!(
        pm.write(PM1_CONTROL + 1, 1, (u32::from(SLEEP_TYPE_S5) << 10 | 1 << 13) >> 8, 0),
        Some(PowerRequest::Off)
    );
}

#[test]
fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
    let (mut pm, line) = pm();
    pm.enable_acpi();
    write(&mut pm, PM1_EVENT + 2, 2, POWER_BUTTON.into());
    pm.press_power_button();
    assert!(line.level());
    assert_eq!(pm.read(PM1_EVENT, 2, 0), u32::from(POWER_BUTTON));
    write(&mut pm, PM1_EVENT, 2, 0);
    assert!(line.level(), "zeros clear nothing");
    write(&mut pm, PM1_EVENT, 2, POWER_BUTTON.into());
    assert!(!line.level());
}

#[test]
fn an_event_that_is_not_enabled_raises_nothing_until_it_is() {
    let (mut pm, line) = pm();
    pm.press_sleep_button();
    assert!(!line.level());
    write(&mut pm, PM1_EVENT + 2, 2, SLEEP_BUTTON.into());
    assert!(!line.level(), "in legacy mode it would be an SMI");
    pm.enable_acpi();
    assert!(line.level());
}

#[test]
fn general_purpose_events_have_status_and_enables() {
    let (mut pm, line) = pm();
    pm.enable_acpi();
    write(&mut pm, GPE0 + 4 + 1, 1, 0x02); // event 9
    pm.raise_gpe(9);
    pm.raise_gpe(200);
    assert!(line.level());
    assert_eq!(pm.read(GPE0, 4, 0), 1 << 9);
    write(&mut pm, GPE0 + 1, 1, 0x02);
    assert!(!line.level());
}

#[test]
fn the_timers_carry_interrupts_when_enabled() {
    let (mut pm, line) = pm();
    pm.enable_acpi();
    assert_eq!(pm.next_deadline(), None);
    write(&mut pm, PM1_EVENT + 2, 2, 1);
    let half = time_of_tick(1 << 31, TIMER_HZ);
    assert_eq!(pm.next_deadline(), Some(half));
    pm.tick(half - 1);
    assert!(!line.level());
    pm.tick(half);
    assert!(line.level());
    assert_eq!(pm.next_deadline(), None, "pending");
    assert_eq!(pm.write(PM1_EVENT, 2, 1, half), None);
    assert!(!line.level());
    assert_eq!(pm.next_deadline(), Some(time_of_tick(1 << 32, TIMER_HZ)));
}

#[test]
fn reserved_bits_and_ports_read_as_zero() {
    let (mut pm, _) = pm();
    write(&mut pm, PM1_EVENT + 2, 2, 0xffff);
    assert_eq!(pm.read(PM1_EVENT + 2, 2, 0), u32::from(ENABLE_MASK));
    assert_eq!(pm.read(0x10, 4, 0), 0);
    assert_eq!(pm.read(0xffff, 4, 0), 0, "past the block there is nothing");
    write(&mut pm, 0xfffe, 4, 0xffff_ffff);
}

#[test]
fn a_rise_of_the_reset_bit_resets() {
    let (mut pm, _) = pm();
    // As Linux does: first the kind, then the reset.
    assert_eq!(pm.write_reset_control(0x02), None);
    assert_eq!(pm.write_reset_control(0x06), Some(PowerRequest::Reset));
    assert_eq!(pm.write_reset_control(0x06), None, "no rise");
    assert_eq!(pm.read_reset_control(), 0x06);
    pm.reset();
    assert_eq!(pm.write_reset_control(RESET_VALUE), Some(PowerRequest::Reset), "in one write");
}

#[test]
fn the_state_goes_through_a_file() {
    let (mut pm, _) = pm();
    pm.enable_acpi();
    write(&mut pm, PM1_EVENT + 2, 2, POWER_BUTTON.into());
    pm.press_power_button();
    let text = serde_json::to_string(&pm.state()).unwrap();
    let line = Probe::default();
    let restored = AcpiPm::from_state(serde_json::from_str(&text).unwrap(), line.clone()).unwrap();
    assert_eq!(restored.state(), pm.state());
    assert_eq!(line.edges(), 0);
    assert!(AcpiPm::from_state(AcpiPmState { control: 0xffff, ..pm.state() }, line).is_err());
}

#[test]
fn reset_clears_events_and_returns_to_legacy_mode() {
    let (mut pm, line) = pm();
    pm.enable_acpi();
    write(&mut pm, PM1_EVENT + 2, 2, POWER_BUTTON.into());
    pm.press_power_button();
    pm.reset();
    assert!(!line.level());
    assert_eq!(pm.read(PM1_EVENT, 4, 0), 0);
    assert_eq!(pm.read(TIMER, 4, SECOND), 3_579_545);
}
