//! A row of the scoreboard.

use std::fmt;
use std::io;

use nix::time::{ClockId, clock_gettime};

/// One batch of work; returns its checksum.
pub(crate) type Batch = Box<dyn FnMut() -> Result<u64, Failure>>;

/// Makes ready, untimed.
pub(crate) type Prepare = Box<dyn FnOnce() -> Result<Batch, Failure>>;

/// Why a row has no time.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The processor lacks what it takes: one word.
    Absent(&'static str),
    /// Something that should work did not.
    Broken(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A fixed amount of work.
pub(crate) struct Row {
    pub(crate) name: String,
    /// What a unit is.
    pub(crate) unit: &'static str,
    /// How many batches take about half a second on a processor of 2020 or so.
    pub(crate) batches: u32,
    /// Units of a batch.
    pub(crate) units: u64,
    pub(crate) prepare: Prepare,
}

/// What came of a row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done { units: u64, nanoseconds: u64, checksum: u64 },
    Absent(&'static str),
}

impl Row {
    pub(crate) fn new<B>(
        name: &str,
        unit: &'static str,
        batches: u32,
        units: u64,
        prepare: impl FnOnce() -> Result<B, Failure> + 'static,
    ) -> Self
    where
        B: FnMut() -> Result<u64, Failure> + 'static,
    {
        let prepare = || prepare().map(|batch| Box::new(batch) as Batch);
        Self { name: name.to_owned(), unit, batches, units, prepare: Box::new(prepare) }
    }

    /// Does one of `divide` parts of the work, at least a batch. Calls `begin` right before it is timed.
    pub(crate) fn run(
        self,
        divide: u32,
        begin: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Outcome, Broken> {
        let Self { name, units, batches, prepare, .. } = self;
        let broken = |what: String| Broken { name: name.clone(), what };
        let mut batch = match prepare() {
            Ok(batch) => batch,
            Err(Failure::Absent(why)) => {
                begin().map_err(|error| broken(error.to_string()))?;
                return Ok(Outcome::Absent(why));
            }
            Err(Failure::Broken(what)) => return Err(broken(what)),
        };
        let mut once = || match batch() {
            Ok(checksum) => Ok(checksum),
            Err(Failure::Absent(what)) => Err(broken(what.to_owned())),
            Err(Failure::Broken(what)) => Err(broken(what)),
        };
        // The first warms caches: those of the processor, of the kernel, and of translated code.
        let checksum = once()?;
        let batches = (batches / divide).max(1);
        begin().map_err(|error| broken(error.to_string()))?;
        let start = now();
        let mut same = true;
        for _ in 0..batches {
            same &= once()? == checksum;
        }
        let nanoseconds = now() - start;
        if !same {
            return Err(broken("its batches do not agree".to_owned()));
        }
        Ok(Outcome::Done { units: units * u64::from(batches), nanoseconds, checksum })
    }
}

/// A row that failed.
#[derive(Debug)]
pub(crate) struct Broken {
    name: String,
    what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

impl std::error::Error for Broken {}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_the_work_has_the_same_checksum() {
        let row = || Row::new("row", "unit", 8, 10, || Ok(|| Ok(7)));
        for (divide, expected) in [(1, 80), (4, 20), (100, 10)] {
            let Outcome::Done { units, checksum, .. } = row().run(divide, &mut || Ok(())).unwrap() else {
                panic!("it is there")
            };
            assert_eq!((units, checksum), (expected, 7), "{divide}");
        }
    }

    #[test]
    fn batches_that_differ_are_told() {
        let row = Row::new("row", "unit", 2, 1, || {
            let mut count = 0;
            Ok(move || {
                count += 1;
                Ok(count)
            })
        });
        let error = row.run(1, &mut || Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "row: its batches do not agree");
    }

    #[test]
    fn what_the_processor_lacks_is_absent_and_no_error() {
        let row = Row::new("row", "unit", 2, 1, || Err::<Batch, _>(Failure::Absent("no-avx2")));
        assert_eq!(row.run(1, &mut || Ok(())).unwrap(), Outcome::Absent("no-avx2"));
    }
}
