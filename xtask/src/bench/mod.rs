//! `cargo xtask bench`: Posada beside Bochs and QEMU's translator, in one run, on the same guest.
//!
//! | module | what it does |
//! |---|---|
//! | `workload` | what is carried out in the guest |
//! | `guest` | the files that every monitor boots |
//! | `console` | the marks on the guest's console |
//! | `monitor` | how each monitor is made ready and started |
//! | `measure` | one run, from outside: times and memory |
//! | `memory` | what of a process is not guest RAM |
//! | `count` | how many instructions each workload is |
//! | `report` | medians and ratios, and tables of them |
//! | `plot` | the same as a picture |

mod console;
mod count;
mod guest;
mod measure;
mod memory;
mod monitor;
mod plot;
mod report;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use console::Event;
use guest::Guest;
use report::{Peer, Report};
use workload::WORKLOADS;

use crate::packages;

/// What to measure, and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// One run of each monitor
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,

    /// How many runs of each monitor, one after another in turn; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only these: posada, bochs, qemu
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// Only these workloads
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,

    /// Put the results into docs/benchmarks.md and docs/benchmarks.svg
    #[arg(long)]
    save: bool,
}

/// A program that each package brings.
const PACKAGES: &[(&str, &str)] = &[
    ("setpriv", "util-linux"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("bochs", "bochs"),
    ("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"),
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/bochs/VGABIOS-lgpl-latest", "vgabios"),
    ("xorriso", "xorriso"),
    ("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        return run_for_release();
    }
    // What is missing shows in the table; the rest can be measured.
    if let Err(error) = packages::ensure(PACKAGES) {
        eprintln!("xtask: {error:#}");
    }
    let workloads =
        choose("workload", WORKLOADS.iter().collect(), &options.workload, |workload| workload.name)?;
    let mut monitors = choose("monitor", monitor::all(), &options.only, |monitor| monitor.key())?;
    let rounds = if options.quick { 1 } else { options.rounds };
    let folder = tempfile::Builder::new().prefix("posada-bench").tempdir()?;
    let mut progress = Progress::new(monitors.len(), rounds, workloads.len());
    let guest = Guest::new(folder.path(), &workloads, &mut progress)?;
    let mut report = Report::new(&guest, &workloads);
    for monitor in &mut monitors {
        progress.say(format!("preparing {}", monitor.name()));
        let version = monitor.prepare(&guest);
        report.peers.push(Peer::new(monitor.name(), version));
    }
    progress.say("counting instructions".to_owned());
    match count::count(&guest, &mut |event| progress.at("counting instructions", event)) {
        Ok(counts) => report.counts = Some(counts),
        Err(error) => report.problems.push(format!("instructions were not counted: {error:#}")),
    }
    for round in 1..=rounds {
        for (monitor, peer) in monitors.iter().zip(&mut report.peers) {
            // What failed once would fail again, and may take its time.
            if !peer.failed() {
                let doing = format!("round {round} of {rounds}: {}", monitor.name());
                progress.say(doing.clone());
                let run = monitor
                    .launch(&guest)
                    .and_then(|launch| measure::measure(launch, &mut |event| progress.at(&doing, event)));
                peer.add(run);
            }
        }
    }
    progress.end();
    let same = report.compare_results();
    show(&report);
    if options.save {
        save(&report)?;
    }
    ensure!(same, "the monitors do not agree on what the guest computes");
    Ok(())
}

/// Those of all things whose names are wanted; all, if none is named.
fn choose<T>(
    kind: &str,
    all: Vec<T>,
    wanted: &[String],
    name: impl Fn(&T) -> &'static str,
) -> anyhow::Result<Vec<T>> {
    let names: Vec<_> = all.iter().map(&name).collect();
    if let Some(unknown) = wanted.iter().find(|wanted| !names.contains(&wanted.as_str())) {
        bail!("there is no {kind} {unknown}; there are {}", names.join(", "));
    }
    let is_wanted = |thing: &T| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name(thing));
    Ok(all.into_iter().filter(is_wanted).collect())
}

fn show(report: &Report<'_>) {
    println!("{}", report.markdown());
    for complaint in report.complaints() {
        eprintln!("{complaint}\n");
    }
}

/// Replaces this process's work by that of the same program, built for release.
fn run_for_release() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
        .args(std::env::args_os().skip(1))
        .status()
        .context("starting cargo")?;
    if status.success() { Ok(()) } else { std::process::exit(status.code().unwrap_or(1)) }
}

/// Puts table and plot where the documents have them.
fn save(report: &Report<'_>) -> anyhow::Result<()> {
    let docs: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let text = report::replace_measured(&text, &report.page())
        .with_context(|| format!("{} has no lines that say where measurements go", page.display()))?;
    std::fs::write(&page, text).with_context(|| format!("writing {}", page.display()))?;
    let plot = docs.join("benchmarks.svg");
    std::fs::write(&plot, plot::svg(report)).with_context(|| format!("writing {}", plot.display()))?;
    eprintln!("the results are in docs/benchmarks.md and docs/benchmarks.svg");
    Ok(())
}

/// What is being done, on a terminal; nothing in a pipe.
struct Progress(ProgressBar);

impl Progress {
    fn new(monitors: usize, rounds: u32, workloads: usize) -> Self {
        // Of every run, two events of the boot and two of each workload; counting is one more run.
        let runs = monitors as u64 * u64::from(rounds) + 1;
        let bar = ProgressBar::new(runs * (3 + 2 * workloads as u64));
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Self(bar)
    }

    fn say(&self, what: String) {
        self.0.set_message(what);
    }

    fn at(&self, doing: &str, event: &Event) {
        self.0.inc(1);
        let what = match event {
            Event::Kernel => "booting",
            Event::Begin(workload) => workload,
            Event::Shell | Event::End { .. } | Event::Done => return,
        };
        self.say(format!("{doing}: {what}"));
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl posada_image::Progress for Progress {
    fn stage(&mut self, what: &str, _: Option<u64>) {
        self.say(what.to_owned());
    }

    fn advance(&mut self, _: u64) {}

    fn done(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_by_name_is_chosen_and_everything_if_nothing_is() {
        let choose = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().copied().map(str::to_owned).collect();
            choose("letter", vec!["a", "b", "c"], &wanted, |name| name)
        };
        assert_eq!(choose(&["c", "a"]).unwrap(), ["a", "c"]);
        assert_eq!(choose(&[]).unwrap(), ["a", "b", "c"]);
        assert_eq!(choose(&["d"]).unwrap_err().to_string(), "there is no letter d; there are a, b, c");
    }
}
