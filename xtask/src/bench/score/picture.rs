//! The scoreboard as a picture: a row for each test, a mark for each engine, on a logarithmic axis of slowdowns.

use std::fmt::Write as _;

use super::super::plot::{Axis, COLOURS, LEFT, MARGIN, RIGHT, WIDTH, escape};
use super::super::report::Spread;
use super::NATIVE;
use super::board::{Board, Column};
use super::row::Group;

const ROW: f64 = 22.0;

/// A line of the picture: a name, and for each column what it has.
type Line = (String, Vec<Option<Spread>>);

/// The picture, in SVG.
pub(crate) fn svg(board: &Board<'_>) -> String {
    let there = |column: &&Column| column.key != NATIVE && !column.runs.is_empty();
    let columns: Vec<_> = board.columns.iter().filter(there).collect();
    let groups: Vec<_> = Group::ALL.map(|group| (group, lines(board, group, &columns))).into();
    let values = groups
        .iter()
        .flat_map(|(_, lines)| lines)
        .flat_map(|(_, spreads)| spreads.iter().flatten())
        .flat_map(|spread| [spread.least, spread.most]);
    // Native is always in the picture.
    let axis = Axis::holding(values.chain([1.0]).collect::<Vec<_>>().into_iter());
    let mut body = String::new();
    legend(&mut body, &columns);
    let mut y = 44.0;
    for (group, lines) in &groups {
        if !lines.is_empty() {
            y = panel(&mut body, axis, *group, lines, y);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <title>Slowdowns against native</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

/// The rows of a group, and their mean.
fn lines(board: &Board<'_>, group: Group, columns: &[&Column]) -> Vec<Line> {
    let Some(native) = board.column(NATIVE) else { return Vec::new() };
    let mut lines: Vec<Line> = board
        .group(group)
        .map(|row| {
            let spreads = columns.iter().map(|column| column.ratio(row, native).spread()).collect();
            (row.name.to_owned(), spreads)
        })
        .collect();
    let mean = |column: &&Column| {
        let (mean, _) = board.mean(group, column, native)?;
        Some(Spread { least: mean, median: mean, most: mean })
    };
    let means: Vec<_> = columns.iter().map(mean).collect();
    if means.iter().any(Option::is_some) {
        lines.push((MEAN.to_owned(), means));
    }
    lines
}

const MEAN: &str = "geometric mean";

/// Which mark is whose.
fn legend(out: &mut String, columns: &[&Column]) {
    let mut x = MARGIN + 6.0;
    for (index, column) in columns.iter().enumerate() {
        mark(out, index, x, 20.0);
        let _ = writeln!(out, "<text x=\"{}\" y=\"24\">{}</text>", x + 12.0, escape(column.name));
        x += 48.0 + 7.5 * column.name.chars().count() as f64;
    }
}

/// A group. Returns where the next begins.
fn panel(out: &mut String, axis: Axis, group: Group, lines: &[Line], top: f64) -> f64 {
    let head = top + 14.0;
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{head}\" font-size=\"14\"><tspan font-weight=\"bold\">{}</tspan> \
         <tspan fill=\"#666\">times as slow as native; logarithmic</tspan></text>",
        group.title()
    );
    let top = head + 10.0;
    let bottom = top + lines.len() as f64 * ROW;
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let (colour, width) = if (tick - 1.0).abs() < 1e-9 { ("#222", 1.5) } else { ("#ddd", 1.0) };
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" fill=\"#666\" text-anchor=\"middle\">×{tick}</text>",
            bottom + 15.0
        );
    }
    for (index, (name, spreads)) in lines.iter().enumerate() {
        let y = top + (index as f64 + 0.5) * ROW;
        let weight = if name == MEAN { " font-weight=\"bold\"" } else { "" };
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {y}H{RIGHT}\" stroke=\"#eee\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\"{weight}>{}</text>",
            LEFT - 10.0,
            y + 4.0,
            escape(name)
        );
        for (index, spread) in spreads.iter().enumerate() {
            let Some(Spread { least, median, most }) = spread else { continue };
            let colour = COLOURS[index % COLOURS.len()];
            let _ = writeln!(
                out,
                "<path d=\"M{:.1} {y}H{:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                axis.at(*least),
                axis.at(*most)
            );
            mark(out, index, axis.at(*median), y);
        }
    }
    bottom + 34.0
}

/// A mark that is told from others by colour and by shape.
fn mark(out: &mut String, index: usize, x: f64, y: f64) {
    let colour = COLOURS[index % COLOURS.len()];
    let _ = match index % 3 {
        0 => writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{colour}\"/>",
            x - 4.5,
            y - 4.5
        ),
        1 => writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5.5\" fill=\"{colour}\"/>"),
        _ => writeln!(
            out,
            "<path d=\"M{x:.1} {:.1}l6.5 6.5l-6.5 6.5l-6.5 -6.5z\" fill=\"{colour}\"/>",
            y - 6.5
        ),
    };
}

#[cfg(test)]
mod tests {
    use super::super::board::tests::{board, column, done};
    use super::*;

    #[test]
    fn everybody_but_native_has_a_mark_in_each_row_and_one_in_the_legend() {
        let samples = |time| [("call", done(time)), ("sort", done(time))];
        let columns =
            vec![column("native", &samples(1.0)), column("qemu", &samples(8.0)), column("x", &samples(2.0))];
        let svg = svg(&board(columns));
        // Two rows and their mean.
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
        assert!(svg.contains(">sort<") && svg.contains(">geometric mean<") && svg.contains(">×1<"), "{svg}");
    }
}
