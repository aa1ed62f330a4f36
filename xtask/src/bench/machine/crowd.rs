//! Many guests at once, each with the same work: whether one of them starves.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use posada_image::{Images, Progress};

use super::super::guest::{Guest, script};
use super::super::measure::measure;
use super::super::monitor::Monitor;
use super::Part;
use super::row::{CROWD, STARVED, Value, Values};

/// How many there are.
pub(super) const GUESTS: usize = 16;

/// Of each.
const MEMORY: u64 = 256 << 20;

/// What each does after its boot, in busybox's shell: a second or so of a host processor for a translator.
const WORK: &str =
    "i=0; while [ $i -lt 24 ]; do cat /bin/busybox; i=$((i + 1)); done | sha256sum | cut -c1-64";

pub(super) struct Crowd {
    guest: Guest,
}

impl Crowd {
    pub(super) fn new(folder: &Path, progress: &mut dyn Progress) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let image = Images::open()?.get("debian", progress)?;
        let mut guest = Guest::of(&image, folder, &script([("work", WORK)]), |_| Ok(()))?;
        guest.memory = MEMORY;
        Ok(Self { guest })
    }

    /// How long each took from the common start until it was done, in seconds.
    fn run(&self, monitor: &dyn Monitor) -> anyhow::Result<Vec<f64>> {
        let mut launches = Vec::new();
        for _ in 0..GUESTS {
            let mut launch = monitor.launch(&self.guest)?;
            launch.command.args(monitor.devices(&[]).context("it has no network")?);
            // Their memory is of no interest here, and looking would stop them.
            launch.memory = None;
            launches.push(launch);
        }
        let start = Instant::now();
        let guests: Vec<_> = launches
            .into_iter()
            .map(|launch| {
                thread::spawn(move || measure(launch, &mut |_| {}).map(|_| start.elapsed().as_secs_f64()))
            })
            .collect();
        let end = |guest: thread::JoinHandle<anyhow::Result<f64>>| {
            guest.join().unwrap_or_else(|_| Err(anyhow::anyhow!("its watcher panicked")))
        };
        // All are waited for, whatever becomes of one.
        guests.into_iter().map(end).collect::<Vec<_>>().into_iter().collect()
    }
}

impl Part for Crowd {
    fn name(&self) -> &'static str {
        "many guests at once"
    }

    fn measure(&self, monitor: &dyn Monitor) -> (Values, Option<anyhow::Error>) {
        match self.run(monitor) {
            Ok(times) => (summary(&times), None),
            Err(error) => (Values::new(), Some(error)),
        }
    }
}

fn summary(times: &[f64]) -> Values {
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let fastest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let values = [(STARVED, slowest / fastest), (CROWD, slowest)];
    values.map(|(name, value)| (name.to_owned(), Value::plain(value))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_is_told_in_times_of_the_fastest() {
        let values = summary(&[4.0, 8.0, 6.0]);
        assert_eq!(values[STARVED], Value::plain(2.0));
        assert_eq!(values[CROWD], Value::plain(8.0));
    }
}
