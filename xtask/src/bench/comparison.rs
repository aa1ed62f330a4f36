//! Instructions a second, seconds to the shell and memory: Posada's interpreter beside other monitors, in the `debian`
//! image's own guest.

use super::guest::Guest;
use super::progress::Progress;
use super::report::{Peer, Report};
use super::workload::WORKLOADS;
use super::{Options, Results, choose, count, measure, monitor, picture_name, plot};

/// Its place in the document.
pub(crate) const PART: &str = "comparison";

pub(crate) fn run(options: &Options) -> anyhow::Result<Results> {
    let workloads =
        choose("workload", WORKLOADS.iter().collect(), &options.workload, |workload| workload.name)?;
    let rounds = options.rounds();
    let folder = tempfile::Builder::new().prefix("posada-bench").tempdir()?;
    let mut monitors: Vec<_> =
        monitor::all().into_iter().filter(|monitor| options.wants(monitor.key())).collect();
    let mut progress = Progress::new(monitors.len() as u64 * u64::from(rounds) + 1, workloads.len());
    let guest = Guest::new(folder.path(), &workloads, &mut progress)?;
    let mut report = Report::new(&guest, &workloads);
    // What is not there yet needs no column.
    monitors.retain_mut(|monitor| {
        progress.say(format!("preparing {}", monitor.name()));
        match monitor.prepare(&guest) {
            Ok(version) => report.peers.push(Peer::new(monitor.name(), version)),
            Err(error) => {
                report.problems.push(format!("{} was left out: {error:#}", monitor.name()));
                return false;
            }
        }
        true
    });
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
    let agreed = report.compare_results();
    Ok(Results {
        part: PART,
        tables: report.markdown(),
        complaints: report.complaints(),
        page: report.page(&picture_name(PART)),
        picture: Some(plot::svg(&report)),
        agreed,
    })
}
