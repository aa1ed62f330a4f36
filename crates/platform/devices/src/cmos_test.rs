use super::*;
use crate::line::test_line::Probe;

/// 2024-02-29 23:59:50 UTC, a Thursday.
const LEAP_DAY: i64 = 1_709_251_190;

fn cmos_at(start: i64) -> (Cmos<Probe>, Probe) {
    let line = Probe::default();
    (Cmos::new(start, line.clone()), line)
}

fn read(cmos: &mut Cmos<Probe>, index: u8, now: Nanos) -> u8 {
    cmos.write_index(index);
    cmos.read_data(now)
}

fn write(cmos: &mut Cmos<Probe>, index: u8, value: u8, now: Nanos) {
    cmos.write_index(index);
    cmos.write_data(value, now);
}

/// Century, year, month, day, hours, minutes, seconds, day of the week.
fn shown(cmos: &mut Cmos<Probe>, now: Nanos) -> [u8; 8] {
    [reg::CENTURY, reg::YEAR, reg::MONTH, reg::DAY, reg::HOURS, reg::MINUTES, reg::SECONDS, reg::DAY_OF_WEEK]
        .map(|index| read(cmos, index, now))
}

#[test]
fn it_shows_the_time_it_was_given_and_goes_on_by_guest_time() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    assert_eq!(shown(&mut cmos, 0), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x50, 5]);
    assert_eq!(shown(&mut cmos, 10 * SECOND - 1), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x59, 5]);
    assert_eq!(shown(&mut cmos, 10 * SECOND), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6]);
}

#[test]
fn binary_and_12_hour_formats() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::B, B_BINARY, 0);
    // A change of format does not convert what stands: the time must be set anew.
    write(&mut cmos, reg::B, B_SET | B_BINARY, 0);
    for (index, value) in [(reg::HOURS, 0x80 | 0x0c), (reg::MINUTES, 59), (reg::SECONDS, 58), (reg::DAY, 31)]
    {
        write(&mut cmos, index, value, 0);
    }
    for (index, value) in [(reg::MONTH, 12), (reg::YEAR, 99), (reg::CENTURY, 19), (reg::DAY_OF_WEEK, 6)] {
        write(&mut cmos, index, value, 0);
    }
    write(&mut cmos, reg::B, B_BINARY, 0);
    assert_eq!(shown(&mut cmos, 0), [19, 99, 12, 31, 0x8c, 59, 58, 6]);
    assert_eq!(shown(&mut cmos, 2 * SECOND), [19, 99, 12, 31, 0x81, 0, 0, 6]);
    assert_eq!(shown(&mut cmos, (11 * 3600 + 2) * SECOND), [20, 0, 1, 1, 12, 0, 0, 7], "12 is midnight");
}

#[test]
fn the_time_stands_while_it_is_set() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::B, B_SET | B_24_HOURS, 0);
    assert_eq!(shown(&mut cmos, 500 * SECOND)[6], 0x50);
    write(&mut cmos, reg::SECONDS, 0x07, 500 * SECOND);
    write(&mut cmos, reg::B, B_24_HOURS, 500 * SECOND);
    assert_eq!(shown(&mut cmos, 500 * SECOND)[6], 0x07);
    assert_eq!(shown(&mut cmos, 501 * SECOND)[6], 0x08);
}

#[test]
fn a_byte_of_the_running_time_can_be_written() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::HOURS, 0x05, SECOND / 2);
    assert_eq!(shown(&mut cmos, SECOND / 2)[4..7], [0x05, 0x59, 0x50]);
    assert_eq!(shown(&mut cmos, SECOND)[6], 0x51, "the second goes on");
}

#[test]
fn the_first_update_after_a_divider_reset_is_half_a_second_off() {
    // So Linux and others set the clock to the moment.
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    let now = 3 * SECOND + 700_000_000;
    write(&mut cmos, reg::A, 0x70, now);
    write(&mut cmos, reg::SECONDS, 0x10, now);
    write(&mut cmos, reg::A, A_DEFAULT, now);
    assert_eq!(shown(&mut cmos, now + SECOND / 2 - 1)[6], 0x10);
    assert_eq!(shown(&mut cmos, now + SECOND / 2)[6], 0x11);
}

#[test]
fn nonsense_dates_become_dates() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::B, B_SET | B_24_HOURS, 0);
    for index in [0, 2, 4, 6, 7, 8, 9, reg::CENTURY] {
        write(&mut cmos, index, 0xff, 0);
    }
    write(&mut cmos, reg::B, B_24_HOURS, 0);
    assert_eq!(shown(&mut cmos, 0), [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 7]);
    // The calendar ends there, and so does the clock.
    assert_eq!(shown(&mut cmos, 5 * SECOND)[6], 0x59);
    write(&mut cmos, reg::B, B_24_HOURS | B_UPDATE | B_ALARM, 5 * SECOND);
    assert_eq!(cmos.next_deadline(), None);
}

#[test]
fn update_in_progress_warns_244_microseconds_ahead() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    assert_eq!(read(&mut cmos, reg::A, SECOND - 244_001) & A_UIP, 0);
    assert_eq!(read(&mut cmos, reg::A, SECOND - 244_000) & A_UIP, A_UIP);
    assert_eq!(read(&mut cmos, reg::A, SECOND) & A_UIP, 0);
    write(&mut cmos, reg::B, B_SET | B_24_HOURS, SECOND);
    assert_eq!(read(&mut cmos, reg::A, 2 * SECOND - 1) & A_UIP, 0, "no update while it is set");
}

#[test]
fn the_periodic_interrupt_has_its_rate_and_waits_for_register_c() {
    let (mut cmos, line) = cmos_at(LEAP_DAY);
    assert_eq!(cmos.next_deadline(), None);
    write(&mut cmos, reg::B, B_24_HOURS | B_PERIODIC, 0);
    // Rate 6: 1024 Hz.
    let due = cmos.next_deadline().unwrap();
    assert_eq!(due, time_of_tick(32, CRYSTAL_HZ));
    cmos.tick(due);
    assert!(line.level());
    assert_eq!(cmos.next_deadline(), None, "pending");
    assert_eq!(read(&mut cmos, reg::C, due), C_IRQ | C_PERIODIC);
    assert!(!line.level());
    assert_eq!(cmos.next_deadline(), Some(time_of_tick(64, CRYSTAL_HZ)));
    assert_eq!(read(&mut cmos, reg::C, due), 0);
}

#[test]
fn rates_1_and_2_are_those_of_8_and_9() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (8, 256), (9, 128), (15, 2)] {
        write(&mut cmos, reg::A, A_RUNNING | rate, 0);
        assert_eq!(cmos.period(), CRYSTAL_HZ / hz, "rate {rate}");
    }
    write(&mut cmos, reg::A, A_RUNNING, 0);
    assert_eq!(cmos.period(), 0);
}

#[test]
fn the_update_interrupt_comes_with_each_second() {
    let (mut cmos, line) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::B, B_24_HOURS | B_UPDATE, 100);
    assert_eq!(cmos.next_deadline(), Some(SECOND));
    cmos.tick(SECOND);
    assert!(line.level());
    assert_eq!(read(&mut cmos, reg::C, SECOND) & C_UPDATE, C_UPDATE);
    assert_eq!(cmos.next_deadline(), Some(2 * SECOND));
}

#[test]
fn the_alarm_comes_at_its_time_of_day() {
    let (mut cmos, line) = cmos_at(LEAP_DAY); // 23:59:50
    for (index, value) in [(reg::HOURS_ALARM, 0x00), (reg::MINUTES_ALARM, 0x05), (reg::SECONDS_ALARM, 0x30)] {
        write(&mut cmos, index, value, 0);
    }
    write(&mut cmos, reg::B, B_24_HOURS | B_ALARM, 0);
    let due = (10 + 5 * 60 + 30) * SECOND;
    assert_eq!(cmos.next_deadline(), Some(due));
    cmos.tick(due - 1);
    assert!(!line.level());
    cmos.tick(due);
    assert!(line.level());
    assert_eq!(read(&mut cmos, reg::C, due) & C_ALARM, C_ALARM);
    assert_eq!(cmos.next_deadline(), Some(due + 86_400 * SECOND));
}

#[test]
fn alarm_bytes_from_c0_match_anything() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    for (index, value) in [(reg::HOURS_ALARM, 0xff), (reg::MINUTES_ALARM, 0xc0), (reg::SECONDS_ALARM, 0x55)] {
        write(&mut cmos, index, value, 0);
    }
    write(&mut cmos, reg::B, B_24_HOURS | B_ALARM, 0);
    assert_eq!(cmos.next_deadline(), Some(5 * SECOND));
    write(&mut cmos, reg::SECONDS_ALARM, 0xff, 0);
    assert_eq!(cmos.next_deadline(), Some(SECOND));
    write(&mut cmos, reg::SECONDS_ALARM, 0x7f, 0);
    assert_eq!(cmos.next_deadline(), None, "a second that never comes");
}

#[test]
fn a_flag_that_was_set_before_its_enable_interrupts_at_once() {
    let (mut cmos, line) = cmos_at(LEAP_DAY);
    cmos.tick(2 * SECOND);
    assert!(!line.level());
    write(&mut cmos, reg::B, B_24_HOURS | B_UPDATE, 2 * SECOND);
    assert!(line.level());
    write(&mut cmos, reg::B, B_24_HOURS, 2 * SECOND);
    assert!(!line.level());
}

#[test]
fn setting_the_time_ends_the_update_interrupt() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, reg::B, B_SET | B_24_HOURS | B_UPDATE, 0);
    assert_eq!(read(&mut cmos, reg::B, 0), B_SET | B_24_HOURS);
}

#[test]
fn memory_keeps_what_is_written_and_the_index_ignores_the_nmi_bit() {
    let (mut cmos, _) = cmos_at(0);
    write(&mut cmos, 0x80 | 0x40, 0x5a, 0);
    assert_eq!(read(&mut cmos, 0x40, 0), 0x5a);
    write(&mut cmos, reg::D, 0, 0);
    assert_eq!(read(&mut cmos, reg::D, 0), D_VALID);
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let (mut cmos, _) = cmos_at(0);
    cmos.set_memory_size(0xc000_0000, 0x1_4000_0000);
    let mut word = |index| u16::from_le_bytes([read(&mut cmos, index, 0), read(&mut cmos, index + 1, 0)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x30), 0xffff);
    assert_eq!(word(0x34), 0xbf00);
    assert_eq!(word(0x5b), 0x4000);
    assert_eq!(read(&mut cmos, 0x5d, 0), 1);
    cmos.set_memory_size(8 << 20, 0);
    assert_eq!(u16::from_le_bytes([read(&mut cmos, 0x30, 0), read(&mut cmos, 0x31, 0)]), 7 * 1024);
    assert_eq!(read(&mut cmos, 0x34, 0), 0);
}

#[test]
fn reset_keeps_time_and_memory() {
    let (mut cmos, line) = cmos_at(LEAP_DAY);
    write(&mut cmos, 0x40, 0x5a, 0);
    write(&mut cmos, reg::B, B_24_HOURS | B_UPDATE, 0);
    cmos.tick(SECOND);
    cmos.reset();
    assert!(!line.level());
    assert_eq!(read(&mut cmos, 0x40, 0), 0x5a);
    assert_eq!(shown(&mut cmos, 2 * SECOND)[6], 0x52);
    assert_eq!(read(&mut cmos, reg::B, 2 * SECOND), B_24_HOURS);
}

#[test]
fn the_state_goes_through_a_file() {
    let (mut cmos, _) = cmos_at(LEAP_DAY);
    write(&mut cmos, 0x7f, 0xa5, 0);
    write(&mut cmos, reg::B, B_24_HOURS | B_PERIODIC, SECOND / 3);
    let text = serde_json::to_string(&cmos.state()).unwrap();
    let mut restored = Cmos::from_state(serde_json::from_str(&text).unwrap(), Probe::default()).unwrap();
    assert_eq!(restored.state(), cmos.state());
    assert_eq!(restored.next_deadline(), cmos.next_deadline());
    assert_eq!(shown(&mut restored, SECOND), shown(&mut cmos, SECOND));
    let short = text.replace("165]", "165,0]");
    assert!(serde_json::from_str::<CmosState>(&short).is_err(), "129 bytes");
}
