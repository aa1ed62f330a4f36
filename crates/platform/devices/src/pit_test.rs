use super::*;
use crate::clock::SECOND;
use crate::line::test_line::Probe;

/// The first moment of a tick of the counters' clock.
fn at(tick: u64) -> Nanos {
    time_of_tick(tick, HZ)
}

fn pit() -> (Pit<Probe>, Probe) {
    let line = Probe::default();
    (Pit::new(line.clone()), line)
}

/// Programs a channel with a two-byte count; `now` is the tick of all writes.
fn program(pit: &mut Pit<Probe>, channel: u8, mode: u8, count: u16, tick: u64) {
    pit.write(CONTROL, channel << 6 | 0x30 | mode << 1, at(tick));
    let [low, high] = count.to_le_bytes();
    pit.write(channel, low, at(tick));
    pit.write(channel, high, at(tick));
}

fn count(pit: &mut Pit<Probe>, channel: u8, tick: u64) -> u16 {
    pit.write(CONTROL, channel << 6, at(tick));
    u16::from_le_bytes([pit.read(channel, at(tick)), pit.read(channel, at(tick))])
}

fn status(pit: &mut Pit<Probe>, channel: u8, tick: u64) -> u8 {
    pit.write(CONTROL, 0xe0 | 2 << channel, at(tick));
    pit.read(channel, at(tick))
}

fn out_2(pit: &mut Pit<Probe>, tick: u64) -> bool {
    pit.read_port_61(at(tick)) & OUT_2 != 0
}

#[test]
fn mode_0_rises_once_after_count_plus_one_clocks() {
    let (mut pit, line) = pit();
    program(&mut pit, 0, 0, 100, 1000);
    assert!(!line.level());
    assert_eq!(pit.next_deadline(), Some(at(1101)));
    pit.tick(at(1101) - 1);
    assert!(!line.level());
    pit.tick(at(1101));
    assert!(line.level());
    assert_eq!(pit.next_deadline(), None);
    assert_eq!(count(&mut pit, 0, 1101 + 5), 0xfffb, "it counts on past zero");
    program(&mut pit, 0, 0, 7, 2000);
    assert!(!line.level(), "a new count lowers the output");
    assert_eq!(line.edges(), 1);
}

#[test]
fn mode_0_stands_between_the_bytes_of_its_count() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 0, 100, 0);
    pit.write(CHANNEL_0, 50, at(10));
    assert_eq!(pit.next_deadline(), None);
    pit.write(CHANNEL_0, 0, at(500));
    assert_eq!(pit.next_deadline(), Some(at(551)));
}

#[test]
fn mode_2_ticks_at_exact_multiples_for_days() {
    let (mut pit, line) = pit();
    program(&mut pit, 0, 2, 11932, 7);
    let periods = 100 * 86_400;
    for period in [1, 2, 3, 1_000_000, periods] {
        pit.tick(at(8 + (period - 1) * 11932));
        assert_eq!(pit.next_deadline(), Some(at(8 + period * 11932)));
    }
    assert!(line.level());
}

#[test]
fn missed_ticks_become_one_and_the_next_is_on_time() {
    let (mut pit, line) = pit();
    program(&mut pit, 0, 2, 1000, 0);
    let before = line.edges();
    pit.tick(at(1 + 57_500));
    assert_eq!(line.edges(), before + 1);
    assert_eq!(pit.next_deadline(), Some(at(1 + 58_000)));
}

#[test]
fn mode_2_counts_down_to_one_and_reloads() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 4, 0);
    let counts: Vec<u16> = (1..10).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [4, 3, 2, 1, 4, 3, 2, 1, 4]);
    // The output is low for the one clock in which the count is one.
    let levels: Vec<bool> = (1..9).map(|tick| status(&mut pit, 0, tick) & 0x80 != 0).collect();
    assert_eq!(levels, [true, true, true, false, true, true, true, false]);
}

#[test]
fn mode_3_counts_by_two_and_is_high_for_half() {
    let (mut pit, line) = pit();
    program(&mut pit, 0, 3, 6, 0);
    let counts: Vec<u16> = (1..8).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [6, 4, 2, 6, 4, 2, 6]);
    let levels: Vec<bool> = (1..7).map(|tick| status(&mut pit, 0, tick) & 0x80 != 0).collect();
    assert_eq!(levels, [true, true, true, false, false, false]);
    let edges = line.edges();
    pit.tick(at(13));
    assert_eq!(line.edges(), edges + 1);
}

#[test]
fn mode_3_with_an_odd_count_is_high_for_the_longer_half() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 3, 5, 0);
    let counts: Vec<u16> = (1..7).map(|tick| count(&mut pit, 0, tick)).collect();
    assert_eq!(counts, [4, 2, 0, 4, 2, 4]);
    let levels: Vec<bool> = (1..7).map(|tick| status(&mut pit, 0, tick) & 0x80 != 0).collect();
    assert_eq!(levels, [true, true, true, false, false, true]);
}

#[test]
fn mode_4_strobes_low_for_one_clock() {
    let (mut pit, line) = pit();
    program(&mut pit, 0, 4, 10, 0);
    let edges = line.edges();
    assert_ne!(status(&mut pit, 0, 10) & 0x80, 0);
    assert_eq!(status(&mut pit, 0, 11) & 0x80, 0);
    assert_ne!(status(&mut pit, 0, 12) & 0x80, 0);
    assert_eq!(line.edges(), edges + 1);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn mode_1_is_low_for_its_count_after_each_trigger() {
    let (mut pit, _) = pit();
    program(&mut pit, 2, 1, 50, 0);
    assert!(out_2(&mut pit, 20), "no trigger yet");
    pit.write_port_61(GATE_2, at(100));
    assert!(!out_2(&mut pit, 101));
    assert!(!out_2(&mut pit, 150));
    assert!(out_2(&mut pit, 151));
    pit.write_port_61(0, at(200));
    pit.write_port_61(GATE_2, at(210));
    assert!(!out_2(&mut pit, 220));
    // A trigger while it counts begins the count anew.
    pit.write_port_61(0, at(240));
    pit.write_port_61(GATE_2, at(250));
    assert!(!out_2(&mut pit, 300));
    assert!(out_2(&mut pit, 301));
}

#[test]
fn mode_5_strobes_after_a_trigger() {
    let (mut pit, _) = pit();
    program(&mut pit, 2, 5, 20, 0);
    pit.write_port_61(GATE_2, at(100));
    assert!(out_2(&mut pit, 120));
    assert!(!out_2(&mut pit, 121));
    assert!(out_2(&mut pit, 122));
}

#[test]
fn a_low_gate_holds_mode_0() {
    let (mut pit, _) = pit();
    pit.write_port_61(GATE_2, 0);
    program(&mut pit, 2, 0, 100, 0);
    pit.write_port_61(0, at(41));
    assert_eq!(count(&mut pit, 2, 500), 60);
    pit.write_port_61(GATE_2, at(1000));
    assert!(!out_2(&mut pit, 1059));
    assert!(out_2(&mut pit, 1060));
}

#[test]
fn a_rising_gate_reloads_mode_2_and_3() {
    let (mut pit, _) = pit();
    pit.write_port_61(GATE_2, 0);
    program(&mut pit, 2, 3, 1000, 0);
    assert!(!out_2(&mut pit, 600));
    pit.write_port_61(0, at(650));
    assert!(out_2(&mut pit, 700), "a low gate makes the output high at once");
    pit.write_port_61(GATE_2, at(800));
    assert_eq!(count(&mut pit, 2, 801), 1000);
}

#[test]
fn a_new_count_in_mode_2_waits_for_the_period_to_end() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 1000, 0);
    pit.write(CHANNEL_0, 0xf4, at(300));
    pit.write(CHANNEL_0, 0x01, at(300)); // 500
    assert_ne!(status(&mut pit, 0, 301) & 0x40, 0, "null count: not loaded yet");
    assert_eq!(count(&mut pit, 0, 301), 700);
    assert_eq!(pit.next_deadline(), Some(at(1001)));
    pit.tick(at(1001));
    assert_eq!(status(&mut pit, 0, 1001) & 0x40, 0);
    assert_eq!(pit.next_deadline(), Some(at(1501)));
}

#[test]
fn a_new_count_in_mode_3_waits_for_the_half_period_to_end() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 3, 1000, 0);
    pit.write(CHANNEL_0, 100, at(300));
    pit.write(CHANNEL_0, 0, at(300));
    // High until 501, then low by the new count for 50 clocks.
    assert_eq!(pit.next_deadline(), Some(at(551)));
    assert_ne!(status(&mut pit, 0, 500) & 0x80, 0);
    assert_eq!(status(&mut pit, 0, 501) & 0x80, 0);
    assert_ne!(status(&mut pit, 0, 551) & 0x80, 0);
    assert_eq!(pit.next_deadline(), Some(at(651)));
}

#[test]
fn zero_is_the_greatest_count() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 0, 0);
    assert_eq!(pit.next_deadline(), Some(at(1 + 65_536)));
}

#[test]
fn a_bcd_counter_counts_in_decimal() {
    let (mut pit, _) = pit();
    pit.write(CONTROL, 0x31, 0);
    pit.write(CHANNEL_0, 0x00, 0);
    pit.write(CHANNEL_0, 0x10, 0); // 1000
    assert_eq!(count(&mut pit, 0, 2), 0x0999);
    assert_eq!(count(&mut pit, 0, 1002), 0x9999, "past zero");
    pit.write(CONTROL, 0x31, at(2000));
    pit.write(CHANNEL_0, 0x00, at(2000));
    pit.write(CHANNEL_0, 0x00, at(2000)); // 10000
    assert_eq!(pit.next_deadline(), Some(at(12_001)));
}

#[test]
fn a_latched_count_keeps_until_it_is_read() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 1000, 0);
    pit.write(CONTROL, 0x00, at(101));
    pit.write(CONTROL, 0x00, at(301)); // ignored: one is latched
    assert_eq!(pit.read(CHANNEL_0, at(400)), 900u16.to_le_bytes()[0]);
    assert_eq!(pit.read(CHANNEL_0, at(500)), 900u16.to_le_bytes()[1]);
    assert_eq!(pit.read(CHANNEL_0, at(501)), 500u16.to_le_bytes()[0], "live again");
}

#[test]
fn one_byte_access_moves_that_byte_alone() {
    let (mut pit, _) = pit();
    pit.write(CONTROL, 0x24, 0); // channel 0, high byte, mode 2
    pit.write(CHANNEL_0, 2, 0);
    assert_eq!(pit.next_deadline(), Some(at(1 + 512)));
    assert_eq!(pit.read(CHANNEL_0, at(1)), 2);
    assert_eq!(pit.read(CHANNEL_0, at(2)), 1);
    pit.write(CONTROL, 0x14, at(10)); // low byte
    pit.write(CHANNEL_0, 200, at(10));
    assert_eq!(pit.read(CHANNEL_0, at(12)), 199);
}

#[test]
fn read_back_latches_status_and_count_of_several_channels() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 1000, 0);
    program(&mut pit, 1, 3, 18, 0);
    pit.write(CONTROL, 0xc0 | 0x02 | 0x04, at(101));
    assert_eq!(pit.read(CHANNEL_0, at(200)), 0x80 | 0x30 | 2 << 1, "status first");
    assert_eq!(pit.read(CHANNEL_0, at(200)), 900u16.to_le_bytes()[0]);
    assert_eq!(pit.read(CHANNEL_0, at(200)), 900u16.to_le_bytes()[1]);
    assert_eq!(pit.read(CHANNEL_1, at(200)) & 0x3f, 0x30 | 3 << 1);
}

#[test]
fn a_channel_without_a_count_has_a_null_count_and_no_edges() {
    let (mut pit, _) = pit();
    pit.write(CONTROL, 0x34, 0);
    assert_ne!(status(&mut pit, 0, 5) & 0x40, 0);
    assert_eq!(pit.next_deadline(), None);
}

#[test]
fn linux_calibrates_its_tsc_in_50_milliseconds() {
    // native_calibrate_tsc: mode 0 on channel 2, wait for port 0x61 bit 5.
    let (mut pit, _) = pit();
    let start = 3 * SECOND;
    let control = pit.read_port_61(start);
    pit.write_port_61(control & !SPEAKER | GATE_2, start);
    pit.write(CONTROL, 0xb0, start);
    let latch = (HZ / 20) as u16;
    pit.write(CHANNEL_2, latch as u8, start);
    pit.write(CHANNEL_2, (latch >> 8) as u8, start);
    let end = start + SECOND / 20;
    assert_eq!(pit.read_port_61(end - 2_000) & OUT_2, 0);
    assert_eq!(pit.read_port_61(end + 2_000) & OUT_2, OUT_2);
}

#[test]
fn port_61_keeps_what_is_written_and_toggles_with_refresh() {
    let (mut pit, _) = pit();
    pit.write_port_61(0xff, 0);
    assert_eq!(pit.read_port_61(0) & 0xcf, 0x0f);
    let toggles = (0..100).map(|step| pit.read_port_61(step * 15_085) & REFRESH).collect::<Vec<_>>();
    assert!(toggles.windows(2).filter(|pair| pair[0] != pair[1]).count() > 95);
}

#[test]
fn the_control_register_and_beyond_read_as_ones() {
    let (mut pit, _) = pit();
    assert_eq!(pit.read(CONTROL, 0), 0xff);
    assert_eq!(pit.read(200, 0), 0xff);
}

#[test]
fn a_restored_timer_goes_on_to_the_tick() {
    let (mut pit, _) = pit();
    program(&mut pit, 0, 2, 11932, 0);
    pit.tick(at(20_000));
    let text = serde_json::to_string(&pit.state()).unwrap();
    let line = Probe::default();
    let mut restored = Pit::from_state(&serde_json::from_str(&text).unwrap(), line.clone()).unwrap();
    assert_eq!(restored.state(), pit.state());
    assert_eq!(restored.next_deadline(), Some(at(1 + 2 * 11932)));
    assert_eq!(line.edges(), 0, "restoring drives no line");
    restored.tick(at(1 + 2 * 11932));
    assert!(line.level());
}

#[test]
fn an_impossible_state_is_refused() {
    let (pit, line) = pit();
    let mut state = pit.state();
    state.channels[1].reload = 0;
    assert!(Pit::from_state(&state, line.clone()).is_err());
    let mut state = pit.state();
    state.channels[0].run = Run::Since(i64::MIN);
    assert!(Pit::from_state(&state, line).is_err());
}
