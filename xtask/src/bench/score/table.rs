//! The scoreboard in Markdown.

use std::fmt::Write as _;

use super::super::guest::MEMORY;
use super::super::report::{align, figures, host};
use super::NATIVE;
use super::board::{Board, Cell, Column};
use super::row::Group;

/// Who is compared with whom besides native.
const RIVALS: (&str, &str) = ("translate", "qemu");

/// All tables, columns aligned so that they can be read as they are.
pub(crate) fn tables(board: &Board<'_>) -> String {
    let mut text = String::new();
    for group in Group::ALL {
        if board.group(group).next().is_some() {
            text.push_str(&align(&lines(board, group)));
            text.push('\n');
        }
    }
    let boots = boots(board);
    if boots.len() > 1 {
        text.push_str(&align(&boots));
        text.push('\n');
    }
    text
}

fn lines(board: &Board<'_>, group: Group) -> Vec<Vec<String>> {
    let native = board.column(NATIVE).filter(|column| !column.runs.is_empty());
    let rivals = rivals(board);
    let mut head = vec![group.title().to_owned()];
    head.extend(board.columns.iter().map(|column| column.name.to_owned()));
    head.extend(rivals.map(|(ours, theirs)| format!("{} : {}", ours.name, theirs.name)));
    let mut lines = vec![head];
    for row in board.group(group) {
        let mut line = vec![row.name.to_owned()];
        for column in &board.columns {
            let is_native = column.key == NATIVE;
            line.push(match native {
                Some(native) if !is_native => {
                    cell(column, &column.ratio(row, native), |x| format!("×{}", figures(x)))
                }
                _ => cell(column, &column.time(row), |nanoseconds| per_unit(nanoseconds, row.unit)),
            });
        }
        if let Some((ours, theirs)) = rivals {
            let ratio = theirs.ratio(row, ours).spread();
            line.push(ratio.map_or("–".to_owned(), |ratio| format!("{:.2}", ratio.median)));
        }
        lines.push(line);
    }
    if let Some(native) = native {
        let mut line = vec!["geometric mean".to_owned()];
        for column in &board.columns {
            let mean = board.mean(group, column, native).filter(|_| column.key != NATIVE);
            line.push(mean.map_or("–".to_owned(), |(mean, _)| format!("×{}", figures(mean))));
        }
        if let Some((ours, theirs)) = rivals {
            let means = board.mean(group, theirs, native).zip(board.mean(group, ours, native));
            line.push(
                means.map_or("–".to_owned(), |((theirs, _), (ours, _))| format!("{:.2}", theirs / ours)),
            );
        }
        if line.iter().skip(1).any(|cell| cell != "–") {
            lines.push(line);
        }
    }
    lines
}

/// Both of whom are there.
fn rivals<'a>(board: &'a Board<'_>) -> Option<(&'a Column, &'a Column)> {
    let there = |key| board.column(key).filter(|column| !column.runs.is_empty());
    there(RIVALS.0).zip(there(RIVALS.1))
}

fn boots(board: &Board<'_>) -> Vec<Vec<String>> {
    let mut lines = vec![
        ["Seconds to the first process", "from the monitor's start", "from the kernel's first line"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for column in &board.columns {
        let times = [column.boot(|boot| boot.start_to_shell), column.boot(|boot| boot.kernel_to_shell)];
        if let [Some(start), Some(kernel)] = times {
            lines.push(vec![column.name.to_owned(), figures(start.median), figures(kernel.median)]);
        }
    }
    lines
}

fn cell(column: &Column, cell: &Cell, value: impl Fn(f64) -> String) -> String {
    match cell {
        Cell::Value(spread) => value(spread.median),
        Cell::Lacks(what) => what.replace('-', " "),
        Cell::Failed => "failed".to_owned(),
        Cell::Empty if column.version.is_none() => "absent".to_owned(),
        Cell::Empty => "–".to_owned(),
    }
}

/// A time for a unit of work, in a unit of time that suits it.
fn per_unit(nanoseconds: f64, unit: &str) -> String {
    let (value, time) = match nanoseconds {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{} {time}/{unit}", figures(value))
}

/// What the documents say.
pub(crate) fn page(board: &Board<'_>, picture: &str) -> String {
    let mut page = format!("![Slowdowns against native]({picture})\n\n");
    page.push_str(&tables(board));
    page.push_str(
        "×2 is twice as slow as native. The last column says how many times faster Posada's translator is than QEMU's. A \
         geometric mean is over those rows that everybody has.\n\n",
    );
    let rounds = board.columns.iter().map(|column| column.runs.len()).max().unwrap_or(0);
    let _ = writeln!(
        page,
        "- Runs of each, in turn: {rounds}. Values are medians of the ratios within each round."
    );
    let _ = writeln!(page, "- Guest: {}, {} MiB, one processor.", board.guest, MEMORY >> 20);
    let _ = writeln!(page, "- Host: {}.", host());
    for column in &board.columns {
        let Some(version) = &column.version else { continue };
        let model = column.model.as_ref().map(|model| format!(", processor {model}")).unwrap_or_default();
        let part =
            if column.divide > 1 { format!(", 1/{} of the work", column.divide) } else { String::new() };
        let _ = writeln!(page, "- {version}{model}{part}.");
    }
    page.push_str("- Rows:\n");
    for row in board.rows {
        let _ = writeln!(page, "  - {}: {}", row.name, row.what);
    }
    for complaint in board.complaints() {
        let _ = writeln!(page, "- {}", complaint.lines().next().unwrap_or_default());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::super::board::tests::{board, column, done};
    use super::*;

    #[test]
    fn native_is_a_time_and_others_are_slowdowns() {
        let columns = vec![
            column("native", &[("call", done(2.0)), ("sort", done(1.0))]),
            column("qemu", &[("call", done(20.0)), ("sort", done(9.0))]),
            column("translate", &[("call", done(5.0)), ("sort", done(4.0))]),
        ];
        let lines = lines(&board(columns), Group::Small);
        assert_eq!(lines[0], ["Small tests", "native", "qemu", "translate", "translate : qemu"]);
        assert_eq!(lines[1], ["call", "2.00 ns/call", "×10.0", "×2.50", "4.00"]);
        assert_eq!(lines[3], ["geometric mean", "–", "×9.49", "×3.16", "3.00"]);
    }

    #[test]
    fn without_native_there_are_times() {
        let lines = lines(&board(vec![column("qemu", &[("call", done(20_000.0))])]), Group::Small);
        assert_eq!(lines[1], ["call", "20.0 µs/call"]);
    }

    #[test]
    fn who_is_not_there_is_absent_and_not_a_failure() {
        let absent = Column::absent("translate", "translate", &anyhow::anyhow!("no such engine"));
        let lines = lines(&board(vec![column("native", &[("call", done(2.0))]), absent]), Group::Small);
        assert_eq!(lines[1], ["call", "2.00 ns/call", "absent"]);
    }
}
