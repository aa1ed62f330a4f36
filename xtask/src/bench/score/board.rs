//! Slowdowns against native, and their means.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::measure::{Boot, Measurement};
use super::super::report::{ALONE, Spread};
use super::NATIVE;
use super::row::{Group, Row};
use super::sample::Sample;

/// All runs of everybody.
#[derive(Debug)]
pub(crate) struct Board<'a> {
    pub(crate) rows: &'a [&'a Row],
    pub(crate) guest: &'a str,
    pub(crate) columns: Vec<Column>,
    /// What is worth a word besides failures.
    pub(crate) problems: Vec<String>,
}

/// Somebody's runs.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    /// For people; none if it is not there at all.
    pub(crate) version: Option<String>,
    /// The guest's processor model.
    pub(crate) model: Option<String>,
    /// It does one of so many parts of the work.
    pub(crate) divide: u32,
    pub(crate) runs: Vec<Run>,
    pub(crate) failure: Option<String>,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    samples: BTreeMap<String, Sample>,
    boot: Option<Boot>,
    wall: Duration,
    cpu: Duration,
}

impl Run {
    pub(crate) fn new(measured: &Measurement) -> Self {
        let works = || measured.workloads.values();
        Self {
            wall: works().map(|work| work.wall).sum(),
            cpu: works().map(|work| work.cpu).sum(),
            samples: measured.workloads.iter().map(|(name, work)| (name.clone(), Sample::of(work))).collect(),
            boot: measured.boot,
        }
    }

    /// Nanoseconds for a unit of this row.
    fn per_unit(&self, row: &str) -> Option<f64> {
        match self.samples.get(row)? {
            Sample::Done { per_unit, .. } => Some(*per_unit),
            Sample::Absent(_) | Sample::Failed => None,
        }
    }
}

/// What a cell of the table says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Value(Spread),
    /// The processor lacks what it takes.
    Lacks(String),
    Failed,
    /// Nobody tried.
    Empty,
}

impl Cell {
    pub(crate) fn spread(&self) -> Option<Spread> {
        match self {
            Self::Value(spread) => Some(*spread),
            _ => None,
        }
    }
}

impl Column {
    pub(crate) fn new(key: &'static str, name: &'static str, version: String, divide: u32) -> Self {
        let version = Some(version);
        Self { key, name, version, model: None, divide, runs: Vec::new(), failure: None }
    }

    /// Somebody who is not there.
    pub(crate) fn absent(key: &'static str, name: &'static str, error: &anyhow::Error) -> Self {
        let failure = Some(format!("absent: {error:#}"));
        Self { key, name, version: None, model: None, divide: 1, runs: Vec::new(), failure }
    }

    /// Nanoseconds for a unit of this row.
    pub(crate) fn time(&self, row: &Row) -> Cell {
        self.cell(row, |run, _| run.per_unit(row.name))
    }

    /// What somebody's times are, in times of somebody else's in the same round.
    pub(crate) fn ratio(&self, row: &Row, to: &Self) -> Cell {
        self.cell(row, |run, round| Some(run.per_unit(row.name)? / to.runs.get(round)?.per_unit(row.name)?))
    }

    fn cell(&self, row: &Row, value: impl Fn(&Run, usize) -> Option<f64>) -> Cell {
        let values = self.runs.iter().enumerate().filter_map(|(round, run)| value(run, round));
        if let Some(spread) = Spread::of(values) {
            return Cell::Value(spread);
        }
        match self.runs.iter().find_map(|run| run.samples.get(row.name)) {
            Some(Sample::Absent(what)) => Cell::Lacks(what.clone()),
            Some(Sample::Failed) => Cell::Failed,
            None if self.failure.is_some() && self.version.is_some() => Cell::Failed,
            Some(Sample::Done { .. }) | None => Cell::Empty,
        }
    }

    /// What a boot took.
    pub(crate) fn boot(&self, time: impl Fn(&Boot) -> Duration) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(|run| Some(time(&run.boot?).as_secs_f64())))
    }

    /// The share of a host processor that it had.
    fn share(&self) -> Option<f64> {
        let wall: f64 = self.runs.iter().map(|run| run.wall.as_secs_f64()).sum();
        let cpu: f64 = self.runs.iter().map(|run| run.cpu.as_secs_f64()).sum();
        // Who is measured in ticks of a hundredth of a second needs some of them.
        (wall > 1.0 && self.key != NATIVE).then(|| cpu / wall)
    }
}

impl<'a> Board<'a> {
    pub(crate) fn new(rows: &'a [&'a Row], guest: &'a str) -> Self {
        Self { rows, guest, columns: Vec::new(), problems: Vec::new() }
    }

    pub(crate) fn column(&self, key: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.key == key)
    }

    pub(crate) fn column_mut(&mut self, key: &str) -> Option<&mut Column> {
        self.columns.iter_mut().find(|column| column.key == key)
    }

    /// The rows of a group.
    pub(crate) fn group(&self, group: Group) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().copied().filter(move |row| row.group == group)
    }

    /// The geometric mean of the slowdowns in a group, over those rows that everybody has who has any; and over how
    /// many.
    pub(crate) fn mean(&self, group: Group, column: &Column, to: &Column) -> Option<(f64, usize)> {
        let takes_part = |column: &&Column| {
            column.key != to.key && self.group(group).any(|row| column.ratio(row, to).spread().is_some())
        };
        let everybody: Vec<_> = self.columns.iter().filter(takes_part).collect();
        let common = |row: &&Row| everybody.iter().all(|other| other.ratio(row, to).spread().is_some());
        let logarithms: Option<Vec<f64>> = self
            .group(group)
            .filter(common)
            .map(|row| Some(column.ratio(row, to).spread()?.median.ln()))
            .collect();
        let logarithms = logarithms.filter(|logarithms| logarithms.len() > 1)?;
        Some(((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp(), logarithms.len()))
    }

    /// Complains of rows whose checksums are not the same everywhere; false if there is one.
    pub(crate) fn compare_results(&mut self) -> bool {
        let mut same = true;
        for row in self.rows {
            let mut by_result: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for column in &self.columns {
                for sample in column.runs.iter().filter_map(|run| run.samples.get(row.name)) {
                    if let Sample::Done { checksum, .. } = sample {
                        let names = by_result.entry(checksum).or_default();
                        if !names.contains(&column.name) {
                            names.push(column.name);
                        }
                    }
                }
            }
            if by_result.len() > 1 {
                let all: Vec<_> = by_result
                    .iter()
                    .map(|(result, names)| format!("{result} in {}", names.join(", ")))
                    .collect();
                same = false;
                self.problems.push(format!("{} has different checksums: {}", row.name, all.join("; ")));
            }
        }
        same
    }

    /// Everything that went wrong.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let mut all = self.problems.clone();
        for column in &self.columns {
            if let Some(failure) = &column.failure {
                all.push(format!("{}: {failure}", column.name));
            }
            let failed = |row: &&&Row| {
                column.runs.iter().any(|run| matches!(run.samples.get(row.name), Some(Sample::Failed)))
            };
            for row in self.rows.iter().filter(failed) {
                all.push(format!("{}: {} failed in the guest", column.name, row.name));
            }
            for run in &column.runs {
                for (name, sample) in &run.samples {
                    if let Sample::Done { skew: Some((inside, wall)), .. } = sample {
                        all.push(format!(
                            "{}: {name} took {inside:.2?} by its own clock, and {wall:.2?} by the host's",
                            column.name
                        ));
                    }
                }
            }
            if let Some(share) = column.share().filter(|share| *share < ALONE) {
                let percent = share * 100.0;
                all.push(format!(
                    "{} had {percent:.0} % of a host processor: the machine was busy, and its times are too long",
                    column.name
                ));
            }
        }
        all
    }
}

#[cfg(test)]
#[path = "board_test.rs"]
pub(super) mod tests;
