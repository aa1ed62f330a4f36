//! How many instructions the guest carries out between two marks.
//!
//! Posada's interpreter counts them. Here it runs the guest once, inside this process, and is stopped at every mark; how
//! long that takes does not matter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, bail};
use posada_boot::{Kernel, Source};
use posada_pc::{Engine, Handle, Outcome, PcBuilder, Port};

use super::console::{Event, Lines};
use super::guest::{Guest, MEMORY};

/// Instructions of one run. A repeated string instruction counts once for every piece that it is worked off in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// From the first instruction to the shell.
    pub(crate) boot: u64,
    /// By workload.
    pub(crate) workloads: BTreeMap<String, u64>,
}

/// Runs the guest, and counts. Calls `report` at each event.
pub(crate) fn count(guest: &Guest, report: &mut dyn FnMut(&Event)) -> anyhow::Result<Counts> {
    let source = |path: &Path| -> anyhow::Result<Source> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Source::file(file).with_context(|| format!("reading {}", path.display()))
    };
    let kernel =
        Kernel::new(source(&guest.kernel)?).initrd(source(&guest.initrd)?).append(guest.append.clone());
    let (sender, events) = channel();
    let handle = Arc::new(OnceLock::new());
    let console = Watcher { lines: Lines::default(), events: sender, machine: Arc::clone(&handle) };
    let builder = PcBuilder::new(kernel).engine(Engine::Interpret).memory(MEMORY);
    let mut pc = builder.serial(Port::Com1, console).build()?;
    let _ = handle.set(pc.handle());

    let mut tally = Tally::default();
    loop {
        let outcome = pc.run()?;
        let instructions = pc.instructions().context("the engine does not count instructions")?;
        for event in events.try_iter() {
            report(&event);
            if event == Event::Done {
                return Ok(tally.counts);
            }
            tally.add(instructions, event);
        }
        if outcome != Outcome::Stopped {
            bail!("{outcome} before it was done");
        }
    }
}

/// The console: stops the machine at each mark.
struct Watcher {
    lines: Lines,
    events: Sender<Event>,
    machine: Arc<OnceLock<Handle>>,
}

impl Write for Watcher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (events, machine) = (&self.events, &self.machine);
        self.lines.take(bytes, &mut |event| {
            // The machine runs no longer than who counts.
            let _ = events.send(event);
            if let Some(machine) = machine.get() {
                machine.stop();
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes counts of events.
#[derive(Debug, Default)]
struct Tally {
    running: Option<(String, u64)>,
    counts: Counts,
}

impl Tally {
    /// Takes an event, with the number of instructions up to it.
    fn add(&mut self, instructions: u64, event: Event) {
        match event {
            Event::Shell => self.counts.boot = instructions,
            Event::Begin(workload) => self.running = Some((workload, instructions)),
            Event::End { workload, .. } => {
                if let Some((name, before)) = self.running.take()
                    && name == workload
                {
                    self.counts.workloads.insert(workload, instructions.saturating_sub(before));
                }
            }
            Event::Kernel | Event::Done => {}
        }
    }
}

#[cfg(test)]
#[path = "count_test.rs"]
mod tests;
