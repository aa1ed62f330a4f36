//! `cargo xtask bench`: Posada's engines beside native runs, QEMU's translator and Bochs, in one run.
//!
//! | module | what it does |
//! |---|---|
//! | `score` | the scoreboard: small tests and whole programs, against native |
//! | `comparison` | instructions a second, boot and memory, against other monitors |
//! | `nano` | single operations of a virtual processor |
//! | `machine` | disks, networks, and a whole Debian |
//! | `workload` | what the comparison carries out in the guest |
//! | `guest` | the files that every monitor boots |
//! | `console` | the marks on the guest's console |
//! | `monitor` | how each monitor is made ready and started |
//! | `measure` | one run, from outside: times and memory |
//! | `memory` | what of a process is not guest RAM |
//! | `count` | how many instructions each workload is |
//! | `report` | medians and ratios, and tables of them |
//! | `plot` | the same as a picture |
//! | `progress` | what is being done, on a terminal |

mod comparison;
mod console;
mod count;
mod guest;
mod machine;
mod measure;
mod memory;
mod monitor;
mod nano;
mod plot;
mod progress;
mod report;
mod score;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::packages;

/// What to measure, and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// One run of each
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,

    /// How many runs of each, one after another in turn; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only these: native, interpret, translate, qemu, bochs
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,

    /// Only these rows of the scoreboard
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    row: Vec<String>,

    /// Only these workloads of the comparison with Bochs
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    workload: Vec<String>,

    /// Only the nanobenchmarks: single operations that an engine has to do something about
    #[arg(long, conflicts_with_all = ["row", "workload"])]
    nano: bool,

    /// Only the machine: disks, networks, a whole Debian, many guests at once
    #[arg(long, conflicts_with_all = ["row", "workload", "nano"])]
    machine: bool,

    /// The guest's processor on the scoreboard: x86-64-v2 or x86-64-v3 [default: the best that the translator has]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,

    /// Put the results into docs/benchmarks.md and its pictures
    #[arg(long)]
    save: bool,
}

impl Options {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }

    /// Whether somebody of this name takes part.
    fn wants(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }
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

/// What comes of a part of the benchmarks.
pub(crate) struct Results {
    /// Which place of the document it has, and what its picture is called.
    part: &'static str,
    /// For a terminal.
    tables: String,
    /// What went wrong.
    complaints: Vec<String>,
    /// For the document.
    page: String,
    picture: Option<String>,
    /// Whether everybody came to the same results.
    agreed: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        return run_for_release();
    }
    let keys: Vec<_> = [score::NATIVE].into_iter().chain(monitor::all().iter().map(|m| m.key())).collect();
    if let Some(unknown) = options.only.iter().find(|only| !keys.contains(&only.as_str())) {
        bail!("there is nothing called {unknown}; there are {}", keys.join(", "));
    }
    // What is missing shows in the table; the rest can be measured.
    if let Err(error) = packages::ensure(PACKAGES) {
        eprintln!("xtask: {error:#}");
    }
    let mut agreed = true;
    let mut keep = |results: Results| {
        println!("{}", results.tables);
        for complaint in &results.complaints {
            eprintln!("{complaint}\n");
        }
        agreed &= results.agreed;
        if options.save { save(&results) } else { Ok(()) }
    };
    let all = options.row.is_empty() && options.workload.is_empty() && !options.nano && !options.machine;
    if all || !options.row.is_empty() {
        keep(score::run(options)?)?;
    }
    if all || !options.workload.is_empty() {
        keep(comparison::run(options)?)?;
    }
    if all || options.nano {
        keep(nano::run(options)?)?;
    }
    if all || options.machine {
        keep(machine::run(options)?)?;
    }
    ensure!(agreed, "they do not agree on what the guest computes");
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

/// Puts tables and picture where the documents have them.
fn save(results: &Results) -> anyhow::Result<()> {
    let docs: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let page = docs.join("benchmarks.md");
    let text = std::fs::read_to_string(&page).with_context(|| format!("reading {}", page.display()))?;
    let text = report::replace_measured(&text, results.part, &results.page).with_context(|| {
        format!("{} has no lines that say where the {} goes", page.display(), results.part)
    })?;
    std::fs::write(&page, text).with_context(|| format!("writing {}", page.display()))?;
    if let Some(picture) = &results.picture {
        let plot = docs.join(picture_name(results.part));
        std::fs::write(&plot, picture).with_context(|| format!("writing {}", plot.display()))?;
    }
    eprintln!("the results of the {} are in docs/benchmarks.md", results.part);
    Ok(())
}

/// The file of a part's picture.
fn picture_name(part: &str) -> String {
    format!("benchmarks-{part}.svg")
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
