//! What `guests/scoreboard` says at the end of a row: `UNITS NANOSECONDS CHECKSUM`.

use std::time::Duration;

use super::super::measure::Work;

/// By how much a guest's clock may differ from the host's: a part of the time, and a time that marks take.
const SKEW: (f64, Duration) = (0.05, Duration::from_millis(40));

/// One row, once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sample {
    /// It was carried out.
    Done {
        /// Nanoseconds for a unit of work, by the guest's clock.
        per_unit: f64,
        checksum: String,
        /// What the guest's clock and the host's say, if they do not agree.
        skew: Option<(Duration, Duration)>,
    },
    /// The processor lacks what it takes.
    Absent(String),
    /// It did not work.
    Failed,
}

impl Sample {
    pub(crate) fn of(work: &Work) -> Self {
        Self::parse(&work.result, work.wall).unwrap_or(Self::Failed)
    }

    fn parse(result: &str, wall: Duration) -> Option<Self> {
        let mut words = result.split(' ');
        let units: u64 = words.next()?.parse().ok()?;
        let nanoseconds: u64 = words.next()?.parse().ok()?;
        let last = words.next()?.to_owned();
        if last == "failed" || words.next().is_some() {
            return None;
        }
        if units == 0 {
            return Some(Self::Absent(last));
        }
        let inside = Duration::from_nanos(nanoseconds);
        let near = inside.abs_diff(wall) <= SKEW.1 + wall.mul_f64(SKEW.0);
        let per_unit = nanoseconds.max(1) as f64 / units as f64;
        Some(Self::Done { per_unit, checksum: last, skew: (!near).then_some((inside, wall)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(result: &str, milliseconds: u64) -> Sample {
        let wall = Duration::from_millis(milliseconds);
        Sample::of(&Work { wall, cpu: wall, result: result.to_owned() })
    }

    #[test]
    fn time_is_by_unit() {
        let expected = Sample::Done { per_unit: 2.5, checksum: "00ab".to_owned(), skew: None };
        assert_eq!(sample("400000000 1000000000 00ab", 1001), expected);
    }

    #[test]
    fn a_clock_that_is_wrong_is_seen() {
        let Sample::Done { skew, .. } = sample("1 1000000000 00ab", 1500) else { panic!("it is done") };
        assert_eq!(skew, Some((Duration::from_secs(1), Duration::from_millis(1500))));
    }

    #[test]
    fn what_the_processor_lacks_is_no_failure_and_anything_else_is_one() {
        assert_eq!(sample("0 0 no-avx2", 1), Sample::Absent("no-avx2".to_owned()));
        for result in ["0 0 failed", "", "1 2", "1 x 00ab", "1 2 3 4"] {
            assert_eq!(sample(result, 1), Sample::Failed, "{result}");
        }
    }
}
