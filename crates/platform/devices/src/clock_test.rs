use super::*;

#[test]
fn tick_times_are_the_first_moment_of_their_tick() {
    for hz in [1, 32_768, 1_193_182, 3_579_545, 999_999_999, 1_000_000_000, 2_599_999_997, 20_000_000_003] {
        for count in [0, 1, 2, 17, 1_193_182, 987_654_321, 1 << 40] {
            let at = time_of_tick(count, hz);
            if at == Nanos::MAX {
                continue;
            }
            assert!(ticks(at, hz) >= count, "{hz} {count}");
            if at > 0 {
                assert!(ticks(at - 1, hz) < count, "{hz} {count}");
            }
        }
    }
}

#[test]
fn a_day_of_pit_ticks_is_exact() {
    assert_eq!(ticks(86_400 * SECOND, 1_193_182), 86_400 * 1_193_182);
}

#[test]
fn the_narrow_computation_is_the_wide_one() {
    let wide = |now: Nanos, hz: u64| (u128::from(now) * u128::from(hz) / 1_000_000_000) as u64;
    for hz in [1_193_182, 2_599_999_997] {
        for now in [0, 1, 999_999_999, 1_000_000_001, 86_400_123_456_789, 1 << 60] {
            assert_eq!(ticks(now, hz), wide(now, hz), "{now} {hz}");
        }
    }
}

#[test]
fn conversions_saturate_instead_of_overflowing() {
    assert_eq!(ticks(u64::MAX, u64::MAX), u64::MAX);
    assert_eq!(time_of_tick(u64::MAX, 1), u64::MAX);
    assert_eq!(time_of_tick(5, 0), u64::MAX);
}

#[test]
fn a_tsc_set_back_still_knows_when_a_value_is_reached() {
    let mut tsc = TscClock::new(1_000_000_000);
    tsc.write(1_000, 10);
    assert_eq!(tsc.read(1_000), 10);
    assert_eq!(tsc.time_of(110), Some(1_100));
    assert_eq!(tsc.time_of(u64::MAX), None);
}
