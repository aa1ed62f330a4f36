//! Disks, networks and an everyday Debian machine: Posada's translator beside QEMU's, with virtio devices both.
//!
//! | module | what it does |
//! |---|---|
//! | `traffic` | fio and iperf3 in a guest |
//! | `tools` | these two, with their libraries, for a guest |
//! | `everyday` | a whole Debian: how soon one can log in, what it takes while it is idle |
//! | `crowd` | many guests at once |
//! | `row` | what is measured, and what has to be reached |
//! | `table` | medians and ratios, and a table of them |

mod crowd;
mod everyday;
mod row;
mod table;
mod tools;
mod traffic;

use std::fs;

use super::monitor::{self, Monitor};
use super::progress::Progress;
use super::{Options, Results, packages};
use crowd::Crowd;
use everyday::Everyday;
use row::Values;
use table::{Peer, Table};
use traffic::Traffic;

/// Its place in the document.
const PART: &str = "machine";

/// Who is measured, the first against the second.
const KEYS: [&str; 2] = ["translate", "qemu"];

/// Programs of Debian's that only this part needs.
const PACKAGES: &[(&str, &str)] = &[("fio", "fio"), ("iperf3", "iperf3"), ("qemu-img", "qemu-utils")];

/// Something that a monitor does in each round.
trait Part {
    /// For people who wait.
    fn name(&self) -> &'static str;

    /// Does it, and says what was measured, and what went wrong.
    fn measure(&self, monitor: &dyn Monitor) -> (Values, Option<anyhow::Error>);
}

pub(crate) fn run(options: &Options) -> anyhow::Result<Results> {
    packages::ensure(PACKAGES)?;
    let folder = tempfile::Builder::new().prefix("posada-bench").tempdir()?;
    let mut progress = Progress::new(0, 0);
    let load_before = load();
    let traffic = Traffic::new(&folder.path().join("traffic"), &mut progress)?;
    let mut monitors: Vec<_> =
        KEYS.into_iter().filter(|key| options.wants(key)).filter_map(monitor::named).collect();
    let mut table = Table::default();
    monitors.retain_mut(|monitor| match monitor.prepare(&traffic.guest) {
        Ok(version) => {
            table.peers.push(Peer::new(monitor.name(), version));
            true
        }
        Err(error) => {
            table.problems.push(format!("{} was left out: {error:#}", monitor.name()));
            false
        }
    });
    let everyday = Everyday::new(&folder.path().join("everyday"), &mut progress)?;
    let crowd = Crowd::new(&folder.path().join("crowd"), &mut progress)?;
    table.notes = vec![
        format!("Traffic: {}, {}.", traffic.guest.title, traffic.versions),
        format!("Whole Debian: {}.", everyday.guest.title),
    ];
    let parts: [&dyn Part; 3] = [&traffic, &everyday, &crowd];
    for round in 1..=options.rounds() {
        table.peers.iter_mut().for_each(Peer::begin_round);
        for part in parts {
            for (monitor, peer) in monitors.iter().zip(&mut table.peers) {
                let doing =
                    format!("round {round} of {}: {}: {}", options.rounds(), monitor.name(), part.name());
                progress.say(doing);
                let (values, failure) = part.measure(&**monitor);
                peer.add(values);
                if let Some(error) = failure {
                    table.problems.push(format!("{}: {}: {error:#}", monitor.name(), part.name()));
                }
            }
        }
    }
    progress.end();
    if let (Some(before), Some(after)) = (load_before, load()) {
        table.notes.push(format!("Load average of the host before: {before}; at the end: {after}."));
    }
    Ok(Results {
        part: PART,
        tables: table.markdown(),
        complaints: table.problems.clone(),
        page: table.page(),
        picture: None,
        agreed: true,
    })
}

/// The first of the host's load averages (proc(5)).
fn load() -> Option<String> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next().map(str::to_owned)
}
