use std::time::Duration;

use super::super::measure::{Boot, Work};
use super::*;

const SORT: &Workload = &Workload { name: "sort", what: "lines", script: "sort" };

fn run(seconds: u64, result: &str) -> Measurement {
    let wall = Duration::from_secs(seconds);
    let work = Work { wall, cpu: wall, result: result.to_owned() };
    Measurement {
        boot: Some(Boot {
            start_to_shell: wall * 3,
            kernel_to_shell: wall * 2,
            kernel_to_shell_cpu: wall * 2,
        }),
        workloads: BTreeMap::from([("sort".to_owned(), work)]),
        memory: 32 << 20,
    }
}

fn peer(name: &'static str, runs: &[Measurement]) -> Peer {
    let mut peer = Peer::new(name, format!("{name} 1.0"));
    peer.runs = runs.to_vec();
    peer
}

fn report(peers: Vec<Peer>, instructions: Option<u64>) -> Report<'static> {
    let counts =
        instructions.map(|count| Counts { boot: 5, workloads: BTreeMap::from([("sort".to_owned(), count)]) });
    Report { guest: "Linux", workloads: &[SORT], peers, counts, problems: Vec::new() }
}

#[test]
fn median_is_the_middle_or_the_mean_of_both_middles() {
    let median = |values: &[f64]| Spread::of(values.iter().copied()).map(|spread| spread.median);
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(median(&[]), None);
}

#[test]
fn speed_is_posadas_count_by_each_monitors_time() {
    let report =
        report(vec![peer("Posada", &[run(2, "x")]), peer("Other", &[run(8, "x")])], Some(400_000_000));
    let tables = report.tables();
    let row = &tables[0].rows[0];
    assert_eq!(row.spreads.iter().map(|spread| spread.unwrap().median).collect::<Vec<_>>(), [200.0, 50.0]);
    assert_eq!(row.ratios, [Some(4.0)]);
}

#[test]
fn ratios_above_one_are_to_the_first_monitors_advantage_in_every_table() {
    let report = report(vec![peer("Posada", &[run(2, "x")]), peer("Other", &[run(8, "x")])], Some(1));
    for table in report.tables().iter().take(2) {
        assert!(table.rows.iter().all(|row| row.ratios == [Some(4.0)]), "{table:?}");
    }
}

#[test]
fn ratios_are_of_runs_in_the_same_round() {
    // The machine became three times slower after the first round.
    let ours = [run(1, "x"), run(3, "x"), run(3, "x")];
    let theirs = [run(2, "x"), run(6, "x"), run(6, "x")];
    let report = report(vec![peer("Posada", &ours), peer("Other", &theirs)], Some(1));
    assert_eq!(report.tables()[0].rows[0].ratios, [Some(2.0)]);
}

#[test]
fn without_counts_there_are_seconds() {
    let report = report(vec![peer("Posada", &[run(2, "x")])], None);
    let tables = report.tables();
    assert_eq!(tables[0].title, TIME);
    assert_eq!(tables[0].rows[0].spreads[0].unwrap().median, 2.0);
}

#[test]
fn a_monitor_that_failed_is_in_the_table_and_its_reason_below() {
    let mut other = peer("Other", &[]);
    other.add(Err(anyhow::anyhow!("no such file")));
    let report = report(vec![peer("Posada", &[run(2, "x")]), other], Some(1));
    assert!(report.markdown().contains("failed"), "{}", report.markdown());
    assert_eq!(report.complaints(), ["Other: no such file"]);
}

#[test]
fn different_results_are_told() {
    let mut report = report(vec![peer("Posada", &[run(2, "x")]), peer("Other", &[run(8, "y")])], Some(1));
    assert!(!report.compare_results());
    assert_eq!(report.problems, ["sort has different results: x in Posada; y in Other"]);
}

#[test]
fn equal_results_are_no_complaint() {
    let mut report = report(vec![peer("Posada", &[run(2, "x")]), peer("Other", &[run(8, "x")])], Some(1));
    assert!(report.compare_results() && report.problems.is_empty());
}

#[test]
fn a_busy_machine_is_told() {
    let mut busy = run(4, "x");
    busy.workloads.get_mut("sort").unwrap().cpu = Duration::from_secs(2);
    let report = report(vec![peer("Posada", &[busy])], Some(1));
    assert!(report.complaints()[0].contains("50 % of a host processor"), "{:?}", report.complaints());
}

#[test]
fn columns_are_aligned() {
    let line = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
    let table = align(&[line(["name", "Bochs"]), line(["größer", "1.5"])]);
    assert_eq!(table, "| name   | Bochs |\n|--------|------:|\n| größer |   1.5 |\n");
}

#[test]
fn only_what_was_measured_is_replaced() {
    let begin = |part: &str| format!("<!-- {part}: measured by cargo xtask bench --save -->\n");
    let (one, two) = (begin("one"), begin("two"));
    let document = format!("# Title\n{one}old\n{END}## More\n{two}old\n{END}");
    let replaced = replace_measured(&document, "two", "new").unwrap();
    assert_eq!(replaced, format!("# Title\n{one}old\n{END}## More\n{two}\nnew\n{END}"));
    assert_eq!(replace_measured("# Title\n", "one", "new"), None);
}
