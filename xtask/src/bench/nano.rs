//! Nanobenchmarks: what single operations take in Posada's engines and in QEMU, beside the numbers of Adams and Agesen, "A Comparison
//! of Software and Hardware Techniques for x86 Virtualization" (ASPLOS 2006), who measured with a 3.8 GHz Pentium 4.
//!
//! `guests/nanobench` prints lines `nano: NAME OPERATIONS TICKS`, of the time stamp counter; its line `tsc` has periods of
//! the interval timer for operations, and so tells what a tick is.

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

/// Who runs the guest, in the order of columns: what it is called on the command line, and in the table.
const RUNNERS: [(&str, &str); 3] =
    [("interpret", "Posada interpret"), ("translate", "Posada translate"), ("qemu", "QEMU TCG")];

/// Nanoseconds of a period of the interval timer.
const PERIOD: f64 = 1e9 / 1_193_182.0;

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
    for (key, name) in RUNNERS.into_iter().filter(|(key, _)| options.wants(key)) {
        let runs: anyhow::Result<Vec<_>> =
            (0..options.rounds()).map(|_| run_guest(command(&posada, key, &kernel))).collect();
        match runs {
            Ok(runs) => columns.push((name, runs)),
            Err(error) => complaints.push(format!("{name}: {error:#}")),
        }
    }
    let tables = align(&lines(&columns, cycle));
    let page = format!(
        "{tables}\nCycles; for Posada and QEMU, of this host, which takes {} ns for an addition that needs the one before, and in \
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

fn command(posada: &Path, runner: &str, kernel: &Path) -> Command {
    let mut command = if runner == "qemu" {
        let mut qemu = tethered("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg",
            "-machine",
            "pc",
            "-cpu",
            "Westmere",
            "-m",
            "64M",
            "-nodefaults",
            "-no-user-config",
        ])
        .args([
            "-display",
            "none",
            "-serial",
            "stdio",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
            "-kernel",
        ]);
        qemu
    } else {
        let mut command = tethered(posada);
        command.args(["run", "--engine", runner, "--memory", "64M", "--debug-exit", "--kernel"]);
        command
    };
    command.arg(kernel).stdin(Stdio::null());
    command
}

fn run_guest(mut command: Command) -> anyhow::Result<Times> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().display()))?;
    let times = parse(&String::from_utf8_lossy(&output.stdout));
    if !times.contains_key("done") {
        bail!("the guest did not end: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(times)
}

/// What the guest printed, in nanoseconds; nothing, if it did not say what its ticks are.
fn parse(text: &str) -> Times {
    let lines = text.lines().filter_map(|line| parse_line(line.trim().strip_prefix("nano: ")?));
    let ticks: Times = lines.collect();
    let Some(tick) = ticks.get("tsc").filter(|ticks| **ticks > 0.0).map(|ticks| PERIOD / ticks) else {
        return Times::new();
    };
    ticks.into_iter().map(|(name, ticks)| (name, ticks * tick)).collect()
}

/// `NAME OPERATIONS TICKS`, of which the scoreboard's are nanoseconds.
fn parse_line(line: &str) -> Option<(String, f64)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let operations: u64 = words.next()?.parse().ok().filter(|count| *count > 0)?;
    let ticks: u64 = words.next()?.parse().ok()?;
    Some((name, ticks as f64 / operations as f64))
}

fn lines(columns: &[(&str, Vec<Times>)], cycle: f64) -> Vec<Vec<String>> {
    let mut head = vec!["Nanobenchmarks".to_owned()];
    head.extend(columns.iter().map(|(name, _)| (*name).to_owned()));
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
        let text =
            "SeaBIOS\nnano: in 200 4000\r\nnano: loop 100 50\nnano: in\nnano: tsc 1193182 2000000000\n";
        let times = parse(text);
        assert!((times["in"] - 10.0).abs() < 1e-9, "two ticks a nanosecond: {times:?}");
        assert_eq!(times.len(), 3);
        assert!(parse("nano: in 200 4000\n").is_empty(), "nobody knows what ticks are");
    }

    #[test]
    fn cycles_are_the_hosts() {
        let times = parse("nano: in 1 20\nnano: tsc 1193182 1000000000\n");
        let lines = lines(&[("Posada translate", vec![times])], 0.5);
        assert_eq!(lines[2], ["port read", "40.0 (20.0 ns)", "3209", "~214", "15826"]);
        assert_eq!(lines[1][1], "–");
    }
}
