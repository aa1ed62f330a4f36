//! The tables as bars on logarithmic axes, in SVG.

use std::fmt::Write as _;

use super::report::{Report, Spread, Table, figures};

/// Colours that everybody can tell apart (Okabe and Ito), by monitor.
pub(crate) const COLOURS: [&str; 5] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"];

pub(crate) const WIDTH: f64 = 860.0;
pub(crate) const MARGIN: f64 = 20.0;
/// Where axes begin and end.
pub(crate) const LEFT: f64 = 210.0;
pub(crate) const RIGHT: f64 = WIDTH - 70.0;
const BAR: f64 = 13.0;
const GAP: f64 = 9.0;

/// A logarithmic axis from one round number to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that holds all these values, with room before the least, for a bar has to begin somewhere.
    pub(crate) fn holding(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).clamp(1e-3, 1e6);
        let most = values.fold(0.0, f64::max).clamp(least, 1e7);
        // 1, 2 or 5 times a power of ten.
        let steps = |value: f64| {
            let power = 10f64.powf(value.log10().floor());
            [0.5, 1.0, 2.0, 5.0, 10.0].map(|step| step * power)
        };
        let from = steps(least / 1.5).into_iter().rfind(|step| *step <= least / 1.5).unwrap_or(least);
        let to = steps(most).into_iter().find(|step| *step >= most).unwrap_or(most);
        Self { from, to }
    }

    /// Where a value lies, in the picture.
    pub(crate) fn at(self, value: f64) -> f64 {
        let part = (value.max(self.from) / self.from).log10() / (self.to / self.from).log10();
        LEFT + part.min(1.0) * (RIGHT - LEFT)
    }

    /// The round numbers on it.
    pub(crate) fn ticks(self) -> Vec<f64> {
        let first = self.from.log10().floor() as i32;
        let last = self.to.log10().ceil() as i32;
        let all = (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)));
        all.filter(|tick| (self.from * 0.999..=self.to * 1.001).contains(tick)).collect()
    }
}

/// The picture of a report.
pub(crate) fn svg(report: &Report<'_>) -> String {
    let names: Vec<_> = report.names().collect();
    let tables = report.tables();
    let mut body = String::new();
    let mut top = legend(&mut body, &names);
    for table in &tables {
        top = panel(&mut body, table, names.len(), top);
    }
    let height = top;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\" font-size=\"12\" \
         fill=\"#222\">\n<title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n",
        escape(&names.join(", ")),
    )
}

/// Which colour is whose. Returns where the rest begins.
fn legend(out: &mut String, names: &[&str]) -> f64 {
    let mut x = MARGIN;
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"14\" width=\"{BAR}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"25\">{}</text>",
            x + BAR + 6.0,
            escape(name)
        );
        x += 40.0 + 8.0 * name.chars().count() as f64;
    }
    38.0
}

/// One table. Returns where the next begins.
fn panel(out: &mut String, table: &Table, monitors: usize, top: f64) -> f64 {
    let spreads = || table.rows.iter().flat_map(|row| row.spreads.iter().flatten());
    if spreads().next().is_none() {
        return top;
    }
    let axis = Axis::holding(spreads().flat_map(|spread| [spread.least, spread.most]).chain(table.limit));
    let better = if table.more_is_better { "more is better" } else { "less is better" };
    let limit = table.limit.map(|limit| format!("; dashed: Posada's limit, {limit}")).unwrap_or_default();
    let mut y = top + 24.0;
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"14\"><tspan font-weight=\"bold\">{}</tspan> \
         <tspan fill=\"#666\">logarithmic; {better}{limit}</tspan></text>",
        escape(table.title)
    );
    y += 12.0;
    let row_height = monitors as f64 * BAR + GAP;
    let bottom = y + table.rows.len() as f64 * row_height;
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {y}V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" fill=\"#666\" \
             text-anchor=\"middle\">{tick}</text>",
            bottom + 15.0
        );
    }
    for row in &table.rows {
        let middle = y + row_height / 2.0 + 4.0;
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            escape(&row.name)
        );
        for (index, (spread, colour)) in row.spreads.iter().zip(COLOURS.iter().cycle()).enumerate() {
            draw(out, axis, *spread, colour, y + GAP / 2.0 + index as f64 * BAR);
        }
        y += row_height;
    }
    if let Some(limit) = table.limit {
        let x = axis.at(limit);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {}V{bottom}\" stroke=\"#d00\" stroke-dasharray=\"4 3\"/>",
            bottom - row_height
        );
    }
    bottom + 24.0
}

/// One bar: to the median, with a line from the least to the most, and the median as a number.
fn draw(out: &mut String, axis: Axis, spread: Option<Spread>, colour: &str, y: f64) {
    let Some(Spread { least, median, most }) = spread else {
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" font-size=\"11\" fill=\"#999\">–</text>",
            LEFT + 4.0,
            y + 10.0
        );
        return;
    };
    let (x, middle, end) = (axis.at(median), y + BAR / 2.0 - 0.5, axis.at(most));
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
         <path d=\"M{:.1} {middle}H{end:.1}\" stroke=\"#222\"/>\
         <text x=\"{:.1}\" y=\"{}\" font-size=\"11\">{}</text>",
        x - LEFT,
        BAR - 1.0,
        axis.at(least),
        end.max(x) + 5.0,
        y + 10.0,
        figures(median)
    );
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
#[path = "plot_test.rs"]
mod tests;
