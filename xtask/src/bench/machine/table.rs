//! Medians, ratios, and a table of them.

use std::fmt::Write as _;

use super::super::report::{Spread, align, figures, host};
use super::row::{Bar, Row, Value, Values, rows};

/// All rounds of everybody.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) peers: Vec<Peer>,
    /// What went wrong.
    pub(super) problems: Vec<String>,
    /// About guests and the host, for people.
    pub(super) notes: Vec<String>,
}

/// Somebody's rounds.
#[derive(Debug)]
pub(super) struct Peer {
    name: &'static str,
    version: String,
    rounds: Vec<Values>,
}

impl Peer {
    pub(super) fn new(name: &'static str, version: String) -> Self {
        Self { name, version, rounds: Vec::new() }
    }

    pub(super) fn begin_round(&mut self) {
        self.rounds.push(Values::new());
    }

    /// To the round that began last.
    pub(super) fn add(&mut self, values: Values) {
        if let Some(round) = self.rounds.last_mut() {
            round.extend(values);
        }
    }

    fn median(&self, row: &Row, of: impl Fn(&Value) -> Option<f64>) -> Option<f64> {
        Some(Spread::of(self.rounds.iter().filter_map(|round| of(round.get(&row.name)?)))?.median)
    }

    fn value(&self, row: &Row) -> Option<f64> {
        self.median(row, |value| Some(value.value))
    }

    /// The median of the ratios within each round; above 1 is to our advantage.
    fn ratio(&self, row: &Row, to: &Self) -> Option<f64> {
        let pairs = self.rounds.iter().zip(&to.rounds);
        let ratios = pairs.filter_map(|(ours, theirs)| {
            let (ours, theirs) = (ours.get(&row.name)?.value, theirs.get(&row.name)?.value);
            Some(if row.more_is_better { ours / theirs } else { theirs / ours })
        });
        Some(Spread::of(ratios.filter(|ratio| ratio.is_finite()))?.median)
    }
}

impl Table {
    /// In Markdown, columns aligned so that it can be read as it is.
    pub(super) fn markdown(&self) -> String {
        let mut head = vec!["Machine".to_owned(), "unit".to_owned()];
        head.extend(self.peers.iter().map(|peer| peer.name.to_owned()));
        head.extend(["ratio", "bar", "reached"].map(str::to_owned));
        head.extend(self.peers.iter().map(|peer| format!("processors, {}", peer.name)));
        let lines: Vec<_> = [head].into_iter().chain(rows().iter().map(|row| self.line(row))).collect();
        align(&lines)
    }

    fn line(&self, row: &Row) -> Vec<String> {
        let show = |value: Option<f64>| value.map_or("–".to_owned(), figures);
        let mut line = vec![row.name.clone(), row.unit.to_owned()];
        line.extend(self.peers.iter().map(|peer| show(peer.value(row))));
        let ours = self.peers.first();
        let ratio = ours.zip(self.peers.get(1)).and_then(|(ours, theirs)| ours.ratio(row, theirs));
        line.push(show(ratio));
        let (bar, reached) = match row.bar {
            Bar::Ratio(least) => (format!("ratio ≥ {}", figures(least)), ratio.map(|ratio| ratio >= least)),
            Bar::AtMost(most) => {
                let value = ours.and_then(|ours| ours.value(row));
                (format!("≤ {most}"), value.map(|value| value <= most))
            }
            Bar::Nothing => ("–".to_owned(), None),
        };
        line.push(bar);
        line.push(reached.map_or("–", |reached| if reached { "yes" } else { "no" }).to_owned());
        line.extend(self.peers.iter().map(|peer| show(peer.median(row, |value| value.processors))));
        line
    }

    /// What the document says.
    pub(super) fn page(&self) -> String {
        let mut page = self.markdown();
        page.push_str(
            "\nA ratio above 1 is to Posada's advantage. The last columns are how many of the host's processors a monitor had \
             meanwhile, all its threads together.\n\n",
        );
        let rounds = self.peers.iter().map(|peer| peer.rounds.len()).max().unwrap_or(0);
        let _ = writeln!(
            page,
            "- Rounds, in turn: {rounds}. Values are medians; ratios are medians of those within each round."
        );
        for note in &self.notes {
            let _ = writeln!(page, "- {note}");
        }
        let _ = writeln!(page, "- Host: {}.", host());
        for peer in &self.peers {
            let _ = writeln!(page, "- {}.", peer.version);
        }
        for problem in &self.problems {
            let _ = writeln!(page, "- {}", problem.lines().next().unwrap_or_default());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::{IDLE, LOGIN, TO_HOST};
    use super::*;

    fn peer(name: &'static str, rounds: &[&[(&str, f64)]]) -> Peer {
        let mut peer = Peer::new(name, name.to_owned());
        for round in rounds {
            peer.begin_round();
            peer.add(round.iter().map(|(name, value)| ((*name).to_owned(), Value::plain(*value))).collect());
        }
        peer
    }

    fn line(table: &Table, name: &str) -> Vec<String> {
        table.line(rows().iter().find(|row| row.name == name).unwrap())
    }

    #[test]
    fn ratios_are_within_rounds_and_to_posadas_advantage() {
        // The machine became three times slower after the first round.
        let ours = peer("a", &[&[(LOGIN, 1.0), (TO_HOST, 6.0)], &[(LOGIN, 3.0), (TO_HOST, 2.0)]]);
        let theirs = peer("b", &[&[(LOGIN, 2.0), (TO_HOST, 12.0)], &[(LOGIN, 6.0), (TO_HOST, 4.0)]]);
        let table = Table { peers: vec![ours, theirs], ..Table::default() };
        assert_eq!(line(&table, LOGIN)[4..7], ["2.00", "ratio ≥ 1.43", "yes"]);
        assert_eq!(line(&table, TO_HOST)[4..7], ["0.50", "ratio ≥ 1.00", "no"]);
    }

    #[test]
    fn a_value_at_most_is_reached_without_anybody_else() {
        let table = Table { peers: vec![peer("a", &[&[(IDLE, 1.0)]])], ..Table::default() };
        assert_eq!(line(&table, IDLE), ["idle", "%", "1.00", "–", "≤ 2", "yes", "–"]);
        assert_eq!(line(&table, LOGIN)[2..6], ["–", "–", "ratio ≥ 1.43", "–"]);
    }
}
