//! What is measured, and what has to be reached.

use std::collections::BTreeMap;

/// One run's values by the row's name.
pub(super) type Values = BTreeMap<String, Value>;

/// One value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) value: f64,
    /// How many of the host's processors the monitor had meanwhile, if that is of interest.
    pub(super) processors: Option<f64>,
}

impl Value {
    pub(super) fn plain(value: f64) -> Self {
        Self { value, processors: None }
    }
}

/// What Posada has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// This ratio at least, where above 1 is to its advantage.
    Ratio(f64),
    /// This value at most.
    AtMost(f64),
    Nothing,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) more_is_better: bool,
    pub(super) bar: Bar,
}

/// A test of fio's on a disk: its name, the mode of access, the size of blocks, how many requests are under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Test {
    name: &'static str,
    pub(super) access: &'static str,
    pub(super) block: &'static str,
    pub(super) depth: u32,
    pub(super) unit: &'static str,
}

const fn test(
    name: &'static str,
    access: &'static str,
    block: &'static str,
    depth: u32,
    unit: &'static str,
) -> Test {
    Test { name, access, block, depth, unit }
}

/// The tests, in the order in which they run.
pub(super) const TESTS: [Test; 6] = [
    test("read-1m", "read", "1m", 1, "MiB/s"),
    test("write-1m", "write", "1m", 1, "MiB/s"),
    test("random-read-4k", "randread", "4k", 1, "requests/s"),
    test("random-read-4k-16", "randread", "4k", 16, "requests/s"),
    test("random-write-4k", "randwrite", "4k", 1, "requests/s"),
    test("random-write-4k-16", "randwrite", "4k", 16, "requests/s"),
];

/// The formats of disks, in the order in which the guest has them.
pub(super) const FORMATS: [&str; 2] = ["raw", "qcow2"];

/// Directions of TCP.
pub(super) const TO_HOST: &str = "tcp-to-host";
pub(super) const TO_GUEST: &str = "tcp-to-guest";

/// Seconds from the start of the monitor to the shell of the one who is logged in.
pub(super) const LOGIN: &str = "login";
/// An idle guest's percentage of a host processor.
pub(super) const IDLE: &str = "idle";
/// MiB of the monitor's own, guest RAM and translated code left out.
pub(super) const OWN: &str = "own-memory";
/// The slowest of many guests in times of the fastest.
pub(super) const STARVED: &str = "crowd-slowest";
/// Seconds until the slowest is done.
pub(super) const CROWD: &str = "crowd-all-done";

impl Test {
    /// The row's name on a disk of this format.
    pub(super) fn row(&self, format: &str) -> String {
        format!("{format}-{}", self.name)
    }
}

/// All rows, in the order of the table.
pub(super) fn rows() -> Vec<Row> {
    let more = |name: String, unit| Row { name, unit, more_is_better: true, bar: Bar::Ratio(1.0) };
    let less = |name: &str, unit, bar| Row { name: name.to_owned(), unit, more_is_better: false, bar };
    let disks = FORMATS.iter().flat_map(|format| TESTS.iter().map(|test| more(test.row(format), test.unit)));
    let networks = [TO_HOST, TO_GUEST].map(|name| more(name.to_owned(), "Mbit/s"));
    let machine = [
        // 0.7 of QEMU's time.
        less(LOGIN, "s", Bar::Ratio(1.0 / 0.7)),
        less(IDLE, "%", Bar::AtMost(2.0)),
        less(OWN, "MiB", Bar::AtMost(64.0)),
        less(STARVED, "times the fastest", Bar::AtMost(2.0)),
        less(CROWD, "s", Bar::Nothing),
    ];
    disks.chain(networks).chain(machine).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_each_is_there_once() {
        let mut names: Vec<_> = rows().into_iter().map(|row| row.name).collect();
        assert!(names.iter().all(|name| !name.contains(' ')));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
