//! Nanobenchmarks: what single operations take in Posada's engines, beside the numbers of Adams and Agesen, "A Comparison
//! of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006), who measured with a 3.8 GHz Pentium 4.
//!
//! `guests/nanobench` prints lines `nano: NAME OPERATIONS TICKS`; Posada's time stamp counter ticks in nanoseconds.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::measure::tethered;
use super::report::{Spread, align, figures, host};
use super::score::files;
use super::{Options, Results, monitor};

/// Its place in the document.
const PART: &str = "nanobench";

/// Posada's engines, in the order of columns.
const ENGINES: [&str; 2] = ["interpret", "translate"];

/// The operations: what the guest calls them, what they are, and cycles in the paper: native, with VMware's translator,
/// and with the first hardware virtualization. What is about right has a wave before it; a dash is not known here.
const OPERATIONS: [(&str, &str, [&str; 3]); 10] = [
    ("syscall", "system call and back", ["–", "~2000 over native", "~native"]),
    ("in", "port read", ["3209", "~214", "15826"]),
    ("cr8wr", "write to CR8", ["~140", "35", "~140"]),
    ("call-ret", "call and return", ["11", "51", "11"]),
    ("pgfault", "page fault, which the guest settles", ["1093", "3927", "11242"]),
    ("divzero", "division by zero", ["–", "–", "–"]),
    ("ptemod", "write to a page table", ["1", "391", "12733"]),
    ("ptemod-invlpg", "the same, and `invlpg`", ["–", "–", "–"]),
    ("addition", "an addition", ["–", "–", "–"]),
    ("loop", "a loop of nothing", ["–", "–", "–"]),
];

/// Nanoseconds by operation.
type Times = BTreeMap<String, f64>;

pub(crate) fn run(options: &Options) -> anyhow::Result<Results> {
    let kernel = files::build("nanobench")?;
    let cycle = cycle(&files::build("scoreboard")?)?;
    let posada = monitor::posada::build()?;
    let mut complaints = Vec::new();
    let mut columns = Vec::new();
    for engine in ENGINES.into_iter().filter(|engine| options.wants(engine)) {
        let runs: anyhow::Result<Vec<_>> =
            (0..options.rounds()).map(|_| run_guest(&posada, engine, &kernel)).collect();
        match runs {
            Ok(runs) => columns.push((engine, runs)),
            Err(error) => complaints.push(format!("Posada {engine}: {error:#}")),
        }
    }
    let tables = align(&lines(&columns, cycle));
    let page = format!(
        "{tables}\nCycles; for Posada, of this host, which takes {} ns for an addition that needs the one before, and in \
         brackets nanoseconds. The loop around an operation is part of its time, but for additions, of which it has \
         sixteen. The paper's columns are of a 3.8 GHz Pentium 4; there, software is VMware's translator. ~ is about, – \
         is not known here.\n\n- Host: {}.\n",
        figures(cycle),
        host()
    );
    Ok(Results { part: PART, tables, complaints, page, picture: None, agreed: true })
}

/// Nanoseconds for a cycle of the host's processor.
fn cycle(scoreboard: &Path) -> anyhow::Result<f64> {
    let output = Command::new(scoreboard).arg("addition").stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_line(&text).map(|(_, time)| time).context("the scoreboard does not say what an addition takes")
}

fn run_guest(posada: &Path, engine: &str, kernel: &Path) -> anyhow::Result<Times> {
    let output = tethered(posada)
        .args(["run", "--engine", engine, "--memory", "64M", "--debug-exit", "--kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .output()
        .context("starting posada")?;
    let times = parse(&String::from_utf8_lossy(&output.stdout));
    if !times.contains_key("done") {
        bail!("the guest did not end: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(times)
}

/// What the guest printed.
fn parse(text: &str) -> Times {
    text.lines().filter_map(|line| parse_line(line.trim().strip_prefix("nano: ")?)).collect()
}

/// `NAME OPERATIONS NANOSECONDS`.
fn parse_line(line: &str) -> Option<(String, f64)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let operations: u64 = words.next()?.parse().ok().filter(|count| *count > 0)?;
    let nanoseconds: u64 = words.next()?.parse().ok()?;
    Some((name, nanoseconds as f64 / operations as f64))
}

fn lines(columns: &[(&str, Vec<Times>)], cycle: f64) -> Vec<Vec<String>> {
    let mut head = vec!["Nanobenchmarks".to_owned()];
    head.extend(columns.iter().map(|(engine, _)| format!("Posada {engine}")));
    head.extend(["2006 native", "2006 software", "2006 hardware"].map(str::to_owned));
    let mut lines = vec![head];
    for (name, what, paper) in OPERATIONS {
        let mut line = vec![what.to_owned()];
        for (_, runs) in columns {
            let spread = Spread::of(runs.iter().filter_map(|times| times.get(name).copied()));
            line.push(spread.map_or("–".to_owned(), |spread| {
                let time = spread.median;
                format!("{} ({} ns)", figures(time / cycle), figures(time))
            }));
        }
        line.extend(paper.map(str::to_owned));
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_prints_is_time_for_one_operation() {
        let times = parse("SeaBIOS\nnano: in 200 4000\r\nnano: loop 100 50\nnano: in\nnano: done 1 1\n");
        assert_eq!(times["in"], 20.0);
        assert_eq!(times.len(), 3);
    }

    #[test]
    fn cycles_are_the_hosts() {
        let times = parse("nano: in 1 20\nnano: loop 1 1\n");
        let lines = lines(&[("translate", vec![times])], 0.5);
        assert_eq!(lines[2], ["port read", "40.0 (20.0 ns)", "3209", "~214", "15826"]);
        assert_eq!(lines[1][1], "–");
    }
}
