//! What all runs together say: medians, ratios, tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use super::count::Counts;
use super::guest::{Guest, MEMORY};
use super::measure::Measurement;
use super::workload::Workload;

/// Titles of tables.
const SPEED: &str = "Million guest instructions a second of host processor time";
const TIME: &str = "Seconds of host processor time for a workload";

/// What Posada may take for itself, in MiB.
const MEMORY_LIMIT: f64 = 64.0;

/// Below this share of a host processor, a monitor shared it with somebody else while it was measured.
pub(crate) const ALONE: f64 = 0.95;

/// One monitor's runs.
#[derive(Debug)]
pub(crate) struct Peer {
    name: &'static str,
    version: String,
    runs: Vec<Measurement>,
    failure: Option<String>,
}

impl Peer {
    pub(crate) fn new(name: &'static str, version: String) -> Self {
        Self { name, version, runs: Vec::new(), failure: None }
    }

    pub(crate) fn add(&mut self, run: anyhow::Result<Measurement>) {
        match run {
            Ok(run) => self.runs.push(run),
            Err(error) => self.failure = Some(format!("{error:#}")),
        }
    }

    /// Whether a run failed; it is not tried again.
    pub(crate) fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The share of a host processor that it had during the workloads.
    fn share(&self) -> Option<f64> {
        let works = || self.runs.iter().flat_map(|run| run.workloads.values());
        let wall: f64 = works().map(|work| work.wall.as_secs_f64()).sum();
        let cpu: f64 = works().map(|work| work.cpu.as_secs_f64()).sum();
        (wall > 0.0).then(|| cpu / wall)
    }
}

/// All runs.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    guest: &'a str,
    workloads: &'a [&'a Workload],
    pub(crate) peers: Vec<Peer>,
    pub(crate) counts: Option<Counts>,
    /// What went wrong besides failures of monitors.
    pub(crate) problems: Vec<String>,
}

/// Several measurements of the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// None of none.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { least, median, most })
    }
}

/// Rows that are measured in the same unit.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    /// A ratio above 1 is always to the first monitor's advantage.
    pub(crate) more_is_better: bool,
    /// What the first monitor has to stay below, if there is such a thing.
    pub(crate) limit: Option<f64>,
    pub(crate) rows: Vec<Row>,
}

/// One thing that is measured, of every monitor.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// For each monitor; none if it failed.
    pub(crate) spreads: Vec<Option<Spread>>,
    /// The first monitor against each other one: the median over rounds, whose runs were close to each other.
    ratios: Vec<Option<f64>>,
}

#[cfg(test)]
impl Row {
    /// A row without ratios.
    pub(crate) fn of(name: &str, spreads: Vec<Option<Spread>>) -> Self {
        Self { name: name.to_owned(), spreads, ratios: Vec::new() }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(guest: &'a Guest, workloads: &'a [&'a Workload]) -> Self {
        Self { guest: &guest.title, workloads, peers: Vec::new(), counts: None, problems: Vec::new() }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.peers.iter().map(|peer| peer.name)
    }

    /// Complains of workloads whose results are not the same everywhere; false if there is one.
    pub(crate) fn compare_results(&mut self) -> bool {
        let mut same = true;
        for Workload { name, .. } in self.workloads {
            let mut by_result: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for peer in &self.peers {
                for work in peer.runs.iter().filter_map(|run| run.workloads.get(*name)) {
                    let names = by_result.entry(&work.result).or_default();
                    if !names.contains(&peer.name) {
                        names.push(peer.name);
                    }
                }
            }
            if by_result.len() > 1 {
                let all: Vec<_> = by_result
                    .iter()
                    .map(|(result, names)| format!("{result} in {}", names.join(", ")))
                    .collect();
                same = false;
                self.problems.push(format!("{name} has different results: {}", all.join("; ")));
            }
        }
        same
    }

    /// Everything that went wrong.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let failures =
            self.peers.iter().filter_map(|peer| Some(format!("{}: {}", peer.name, peer.failure.as_ref()?)));
        let busy = self.peers.iter().filter_map(|peer| {
            let share = peer.share().filter(|share| *share < ALONE)?;
            let percent = share * 100.0;
            Some(format!(
                "{} had {percent:.0} % of a host processor: the machine was busy, and times by the clock are too long",
                peer.name
            ))
        });
        self.problems.iter().cloned().chain(failures).chain(busy).collect()
    }

    /// The tables.
    pub(crate) fn tables(&self) -> Vec<Table> {
        let row = |name: String, more_is_better: bool, value: &dyn Fn(&Measurement) -> Option<f64>| {
            let of = |peer: &Peer| -> Vec<Option<f64>> { peer.runs.iter().map(value).collect() };
            let first = self.peers.first().map(of).unwrap_or_default();
            let ratio = |other: Vec<Option<f64>>| {
                let pairs = first.iter().zip(other).filter_map(|(ours, theirs)| Some(((*ours)?, theirs?)));
                let ratios =
                    pairs.map(|(ours, theirs)| if more_is_better { ours / theirs } else { theirs / ours });
                Some(Spread::of(ratios)?.median)
            };
            Row {
                name,
                spreads: self.peers.iter().map(|peer| Spread::of(of(peer).into_iter().flatten())).collect(),
                ratios: self.peers.iter().skip(1).map(|peer| ratio(of(peer))).collect(),
            }
        };
        let mut tables = Vec::new();
        // A monitor that shares the machine takes longer by the clock, but hardly more processor time.
        let seconds = |run: &Measurement, name: &str| Some(run.workloads.get(name)?.cpu.as_secs_f64());
        if let Some(counts) = &self.counts {
            let speed = |run: &Measurement, name: &str| {
                Some(*counts.workloads.get(name)? as f64 / 1e6 / seconds(run, name)?)
            };
            let mut rows: Vec<_> = self
                .workloads
                .iter()
                .map(|workload| row(workload.name.to_owned(), true, &|run| speed(run, workload.name)))
                .collect();
            if rows.len() > 1 {
                rows.push(row("geometric mean".to_owned(), true, &|run| {
                    let logarithms: Option<Vec<f64>> =
                        self.workloads.iter().map(|workload| Some(speed(run, workload.name)?.ln())).collect();
                    let logarithms = logarithms?;
                    Some((logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp())
                }));
            }
            tables.push(Table { title: SPEED, more_is_better: true, limit: None, rows });
        } else {
            let rows = self
                .workloads
                .iter()
                .map(|workload| row(workload.name.to_owned(), false, &|run| seconds(run, workload.name)))
                .collect();
            tables.push(Table { title: TIME, more_is_better: false, limit: None, rows });
        }
        let boots = vec![
            row("from the kernel's first line".to_owned(), false, &|run| {
                Some(run.boot?.kernel_to_shell.as_secs_f64())
            }),
            row("– in host processor time".to_owned(), false, &|run| {
                Some(run.boot?.kernel_to_shell_cpu.as_secs_f64())
            }),
            row("from the start of the monitor".to_owned(), false, &|run| {
                Some(run.boot?.start_to_shell.as_secs_f64())
            }),
        ];
        tables.push(Table { title: "Seconds to the shell", more_is_better: false, limit: None, rows: boots });
        let mebibytes = |run: &Measurement| Some(run.memory as f64 / f64::from(1 << 20));
        let memory = vec![row("at most, over guest RAM".to_owned(), false, &mebibytes)];
        tables.push(Table {
            title: "The monitor's own memory, MiB",
            more_is_better: false,
            limit: Some(MEMORY_LIMIT),
            rows: memory,
        });
        tables
    }

    /// All tables in Markdown, columns aligned so that they can be read as they are.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::new();
        for table in self.tables() {
            let mut lines = vec![self.head(table.title)];
            lines.extend(table.rows.iter().map(|row| self.line(row)));
            text.push_str(&align(&lines));
            text.push('\n');
        }
        text
    }

    fn head(&self, title: &str) -> Vec<String> {
        let names = self.names().map(str::to_owned);
        let first = self.names().next().unwrap_or_default();
        let ratios = self.names().skip(1).map(|name| format!("{first} : {name}"));
        [title.to_owned()].into_iter().chain(names).chain(ratios).collect()
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let values = self.peers.iter().zip(&row.spreads).map(|(peer, spread)| match spread {
            Some(spread) => figures(spread.median),
            None if peer.failed() => "failed".to_owned(),
            None => "–".to_owned(),
        });
        let ratios =
            row.ratios.iter().map(|ratio| ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")));
        [row.name.clone()].into_iter().chain(values).chain(ratios).collect()
    }

    /// What the documents say of these runs.
    pub(crate) fn page(&self, picture: &str) -> String {
        let mut page = format!("![The tables below as bars]({picture})\n\n");
        page.push_str(&self.markdown());
        page.push_str("A ratio above 1 is to the first column's advantage.\n\n");
        let rounds = self.peers.iter().map(|peer| peer.runs.len()).max().unwrap_or(0);
        let _ = writeln!(page, "- Runs of each monitor, in turn: {rounds}. Values are medians.");
        let _ = writeln!(page, "- Guest: {}, {} MiB, one processor.", self.guest, MEMORY >> 20);
        let _ = writeln!(page, "- Host: {}.", host());
        for peer in &self.peers {
            let version = &peer.version;
            let share =
                peer.share().map(|share| format!("; it had {:.0} % of a host processor", share * 100.0));
            let _ = writeln!(page, "- {version}{}.", share.unwrap_or_default());
        }
        page.push_str("- Workloads:\n");
        let millions = |count: u64| format!("{} million instructions", figures(count as f64 / 1e6));
        for Workload { name, what, .. } in self.workloads {
            let count = self.counts.as_ref().and_then(|counts| counts.workloads.get(*name));
            let count = count.map(|count| format!(" ({})", millions(*count))).unwrap_or_default();
            let _ = writeln!(page, "  - {name}: {what}{count}");
        }
        if let Some(counts) = &self.counts {
            let _ = writeln!(page, "- Up to the shell, Posada carries out {}.", millions(counts.boot));
        }
        for complaint in self.complaints() {
            let _ = writeln!(page, "- {}", complaint.lines().next().unwrap_or_default());
        }
        page
    }
}

/// Three significant figures, or as many as there are before the point.
pub(crate) fn figures(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// A Markdown table: the first line is the head, the first column stands left, the others right.
pub(crate) fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                let _ = if column == 0 { write!(text, "|-{dashes}-") } else { write!(text, "|-{dashes}:") };
            }
            text.push_str("|\n");
        }
    }
    text
}

/// The machine that all this ran on.
pub(crate) fn host() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?;
        let (_, value) = line.split_once([':', '='])?;
        Some(value.trim().trim_matches('"').to_owned())
    };
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kilobytes =
        field("/proc/meminfo", "MemTotal").and_then(|size| size.trim_end_matches(" kB").parse::<f64>().ok());
    let memory = kilobytes.map(|size| format!(", {:.0} GiB", size / f64::from(1 << 20))).unwrap_or_default();
    let system = field("/etc/os-release", "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned());
    let hypervisor = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" hypervisor "));
    let kind = if hypervisor { ", itself a virtual machine" } else { "" };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    format!("{processor}, {count} processors{memory}, {system}, Linux {release}{kind}")
}

const END: &str = "<!-- end of what was measured -->\n";

/// Puts `measured` where a document has the measurements of this part; none if it says nowhere where that is.
pub(crate) fn replace_measured(document: &str, part: &str, measured: &str) -> Option<String> {
    let begin = format!("<!-- {part}: measured by cargo xtask bench --save -->\n");
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{measured}\n{END}{after}"))
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
