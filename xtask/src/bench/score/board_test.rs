use super::super::row::ROWS;
use super::*;

pub(crate) fn done(per_unit: f64) -> Sample {
    Sample::Done { per_unit, checksum: "00ab".to_owned(), skew: None }
}

fn run(samples: &[(&str, Sample)]) -> Run {
    let samples = samples.iter().map(|(name, sample)| ((*name).to_owned(), sample.clone())).collect();
    Run { samples, boot: None, wall: Duration::from_secs(2), cpu: Duration::from_secs(2) }
}

/// Somebody with one run.
pub(crate) fn column(key: &'static str, samples: &[(&str, Sample)]) -> Column {
    let mut column = Column::new(key, key, format!("{key} 1.0"), 1);
    column.runs.push(run(samples));
    column
}

/// A board with the rows `call` and `sort`.
pub(crate) fn board(columns: Vec<Column>) -> Board<'static> {
    static CALL: &[&Row] = &[&ROWS[0], &ROWS[5]];
    let mut board = Board::new(CALL, "Linux");
    board.columns = columns;
    board
}

#[test]
fn ratios_are_of_runs_in_the_same_round() {
    // The machine became three times slower after the first round.
    let mut native = column("native", &[("call", done(1.0))]);
    let mut other = column("qemu", &[("call", done(2.0))]);
    for _ in 0..2 {
        native.runs.push(run(&[("call", done(3.0))]));
        other.runs.push(run(&[("call", done(6.0))]));
    }
    assert_eq!(other.ratio(&ROWS[0], &native).spread().unwrap().median, 2.0);
}

#[test]
fn a_mean_is_over_rows_that_everybody_has() {
    let samples = |call, sort| [("call", done(call)), ("sort", done(sort))];
    let absent = [("call", done(4.0)), ("sort", Sample::Absent("no-sort".to_owned()))];
    let mean = |third: &[(&str, Sample)]| {
        let columns = vec![
            column("native", &samples(1.0, 1.0)),
            column("qemu", &samples(2.0, 8.0)),
            column("interpret", third),
        ];
        let board = board(columns);
        let (qemu, native) = (board.column("qemu").unwrap(), board.column("native").unwrap());
        board.mean(Group::Small, qemu, native)
    };
    assert_eq!(mean(&samples(3.0, 3.0)), Some((4.0, 2)));
    // One row is no mean.
    assert_eq!(mean(&absent), None);
}

#[test]
fn different_checksums_are_told() {
    let other = Sample::Done { per_unit: 1.0, checksum: "00ff".to_owned(), skew: None };
    let mut board = board(vec![column("native", &[("call", done(1.0))]), column("qemu", &[("call", other)])]);
    assert!(!board.compare_results());
    assert_eq!(board.problems, ["call has different checksums: 00ab in native; 00ff in qemu"]);
}

#[test]
fn a_row_that_the_processor_lacks_agrees_with_everybody() {
    let absent = Sample::Absent("no-avx2".to_owned());
    let mut board =
        board(vec![column("native", &[("call", done(1.0))]), column("qemu", &[("call", absent)])]);
    assert!(board.compare_results() && board.complaints().is_empty());
    let (qemu, native) = (board.column("qemu").unwrap(), board.column("native").unwrap());
    assert_eq!(qemu.ratio(&ROWS[0], native), Cell::Lacks("no-avx2".to_owned()));
}

#[test]
fn a_run_that_broke_off_leaves_failed_rows() {
    let mut column = column("translate", &[("call", done(1.0))]);
    column.failure = Some("it ended".to_owned());
    assert!(matches!(column.time(&ROWS[0]), Cell::Value(_)));
    assert_eq!(column.time(&ROWS[5]), Cell::Failed);
    assert_eq!(board(vec![column]).complaints(), ["translate: it ended"]);
}
