//! What the translator has done, and what its time went to, for those who want to see how it works.

use std::collections::HashMap;
use std::fmt;

use iced_x86::Code;
use posada_vcpu::Activity;
use posada_x86::Counts;

/// What a virtual CPU may be at: numbers for its [`Activity`], and indices into [`WORK`](work::WORK).
pub(crate) mod work {
    pub(crate) const OUTSIDE: u8 = 0;
    pub(crate) const TRANSLATED: u8 = 1;
    pub(crate) const TRANSLATING: u8 = 2;
    pub(crate) const INTERPRETING: u8 = 3;
    pub(crate) const ACCESSES: u8 = 4;
    pub(crate) const JUMPS: u8 = 5;
    pub(crate) const HELPING: u8 = 6;
    pub(crate) const DISPATCHING: u8 = 7;

    /// Their names.
    pub(crate) const WORK: [&str; 8] = [
        "halted",
        "translated code",
        "translating",
        "interpreting, devices",
        "TLB misses, page walks",
        "jump misses",
        "strings and counters",
        "dispatching, interrupts",
    ];
}

/// Why an instruction was left to the interpreter, if not for its kind or what its operands hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Its operand crosses a page, or is not aligned as it must be.
    Crossing,
    /// Its operand is a device's, or the access faults.
    Device,
    /// It writes to a page that holds code.
    Code,
    /// Where it jumps to cannot be translated now.
    Jump,
}

/// [`Left`], for people.
const LEFT: [&str; 4] =
    ["access across pages", "access to devices, faults", "store to a page of code", "jump"];

/// Bits of the filter that knows what has been translated before.
const FILTER: usize = 1 << 20;

/// Counts, since the virtual CPU was made.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Blocks translated.
    pub blocks: u64,
    /// Those of them, about, that had been translated before.
    pub again: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of these.
    pub guest_bytes: u64,
    /// Bytes that they were translated to.
    pub host_bytes: u64,
    /// Times that the code cache was full, and emptied.
    pub clears: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Instructions left to the interpreter.
    pub interpreted: u64,
    /// Those of them that an access or jump was the reason for, as [`Left`] has them.
    left: [u64; LEFT.len()],
    /// Samples of them: one in [`SAMPLE`](Self::SAMPLE), by form.
    pub samples: HashMap<Code, u64>,
    /// Jumps tied to their targets.
    pub ties: u64,
    /// Times that translated code was left because attention was asked for.
    pub attention: u64,
    /// Accesses that the translator's TLB did not know.
    pub tlb_misses: u64,
    /// Accesses to a page of the stack that was not the last one.
    pub stack_misses: u64,
    /// Jumps to addresses that the table did not have.
    pub jump_misses: u64,
    /// Those of them that were links.
    pub link_misses: u64,
    /// Times that all translations of addresses were forgotten.
    pub flushes: u64,
    /// Times that blocks were forgotten because their page was written.
    pub invalidations: u64,
    /// Exceptions that the host's processor raised in translated code.
    pub signals: u64,
    /// Bytes of code that are kept.
    pub code_bytes: u64,
    /// What the interpreter has counted.
    pub counts: Counts,
    /// Samples of what it was at.
    pub seen: Vec<(&'static str, u64)>,
    known: Vec<u64>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            blocks: 0,
            again: 0,
            instructions: 0,
            guest_bytes: 0,
            host_bytes: 0,
            clears: 0,
            entries: 0,
            interpreted: 0,
            left: [0; LEFT.len()],
            samples: HashMap::new(),
            ties: 0,
            attention: 0,
            tlb_misses: 0,
            stack_misses: 0,
            jump_misses: 0,
            link_misses: 0,
            flushes: 0,
            invalidations: 0,
            signals: 0,
            code_bytes: 0,
            counts: Counts::default(),
            seen: Vec::new(),
            known: vec![0; FILTER / 64],
        }
    }
}

impl Stats {
    /// Of so many interpreted instructions one is looked at.
    pub const SAMPLE: u64 = 61;

    /// A block has been translated, of so many instructions and bytes, whose place and mode have this key.
    pub(crate) fn translated(&mut self, key: u64, instructions: usize, [guest, host]: [usize; 2]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        let mixed = key.wrapping_mul(ODD);
        let bit = ((mixed ^ mixed >> 32).wrapping_mul(ODD) >> 40) as usize % FILTER;
        let (word, mask) = (&mut self.known[bit / 64], 1 << (bit % 64));
        self.again += u64::from(*word & mask != 0);
        *word |= mask;
        self.blocks += 1;
        self.instructions += instructions as u64;
        self.guest_bytes += guest as u64;
        self.host_bytes += host as u64;
    }

    /// An instruction is the interpreter's for this reason, which is not its kind.
    pub(crate) fn left(&mut self, why: Left) {
        self.left[why as usize] += 1;
    }

    /// With samples of what it was at.
    pub(crate) fn with_samples(mut self, activity: &Activity) -> Self {
        self.seen = activity.seen().collect();
        self
    }
}

/// A number with its thousands apart.
fn apart(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

fn heading(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    writeln!(f, "\n  {text}")
}

/// A line of a name, a number and something about it.
fn row(f: &mut fmt::Formatter<'_>, name: &str, value: u64, about: &str) -> fmt::Result {
    let line = format!("    {name:30}{:>16}   {about}", apart(value));
    writeln!(f, "{}", line.trim_end())
}

/// A line with a share of a whole, and a bar for it.
fn share(f: &mut fmt::Formatter<'_>, name: &str, value: u64, all: u64) -> fmt::Result {
    const WIDTH: f64 = 40.0;
    let part = ratio(value, all);
    let bar = "#".repeat((part * WIDTH).round() as usize);
    let line = format!("    {name:30}{:>14.1} %   {bar}", part * 100.0);
    writeln!(f, "{}", line.trim_end())
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.time(f)?;
        heading(f, "Translation")?;
        let each = |n: u64, what: &str| format!("{:.1} {what}", ratio(n, self.blocks));
        row(f, "blocks", self.blocks, &each(self.instructions, "instructions each"))?;
        row(f, "  of them again", self.again, "")?;
        row(f, "bytes of guest code", self.guest_bytes, "")?;
        let expansion = format!("{:.1} for each of the guest's", ratio(self.host_bytes, self.guest_bytes));
        row(f, "bytes of host code", self.host_bytes, &expansion)?;
        row(f, "  in the cache now", self.code_bytes, "")?;
        row(f, "cache full, and emptied", self.clears, "")?;
        row(f, "invalidated by writes", self.invalidations, "")?;
        row(f, "jumps tied", self.ties, "")?;
        heading(f, "Running")?;
        row(f, "translated code entered", self.entries, "")?;
        row(f, "left for attention", self.attention, "")?;
        row(f, "TLB misses", self.tlb_misses, "")?;
        row(f, "changes of the stack's page", self.stack_misses, "")?;
        row(f, "page walks", self.counts.walks, "")?;
        row(f, "translations forgotten", self.flushes, "times")?;
        row(f, "jump misses", self.jump_misses, "")?;
        row(f, "  of links", self.link_misses, "")?;
        row(f, "interrupts", self.counts.interrupts, "")?;
        row(f, "exceptions", self.counts.faults, "")?;
        row(f, "signals of the host", self.signals, "")?;
        self.interpreted(f)
    }
}

impl Stats {
    fn time(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.seen.iter().map(|(_, seen)| seen).sum();
        if all == 0 {
            return Ok(());
        }
        heading(f, &format!("Where the time went ({} samples)", apart(all)))?;
        let mut seen = self.seen.clone();
        seen.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        seen.iter().try_for_each(|(name, count)| share(f, name, *count, all))
    }

    fn interpreted(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const FORMS: usize = 16;
        heading(f, "Instructions left to the interpreter")?;
        row(f, "all", self.interpreted, "")?;
        let others: u64 = self.left.iter().sum();
        let kind = ("kind of instruction", self.interpreted.saturating_sub(others));
        for (name, count) in std::iter::once(kind).chain(LEFT.into_iter().zip(self.left)) {
            let share = format!("{:.1} %", ratio(count, self.interpreted) * 100.0);
            row(f, &format!("  {name}"), count, &share)?;
        }
        let mut samples: Vec<_> = self.samples.iter().collect();
        if samples.is_empty() {
            return Ok(());
        }
        samples.sort_by_key(|(form, count)| (std::cmp::Reverse(**count), format!("{form:?}")));
        heading(f, &format!("The most frequent of them, from one in {}", Self::SAMPLE))?;
        let all: u64 = samples.iter().map(|(_, count)| **count).sum();
        for (form, count) in samples.iter().take(FORMS) {
            share(f, &format!("{form:?}").to_lowercase().replace('_', " "), **count, all)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_tells_shares_of_the_time_and_of_reasons() {
        let mut stats =
            Stats { interpreted: 4, seen: vec![("halted", 1), ("translated code", 3)], ..Stats::default() };
        stats.translated(7, 5, [20, 200]);
        stats.translated(7, 5, [20, 200]);
        stats.left(Left::Code);
        let text = stats.to_string();
        for part in [
            "translated code                         75.0 %   ##############################\n",
            "blocks                                       2   5.0 instructions each\n",
            "  of them again                              1\n",
            "10.0 for each of the guest's",
            "  kind of instruction                        3   75.0 %\n",
            "  store to a page of code                    1   25.0 %\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(apart(0), "0");
        assert_eq!(apart(999), "999");
        assert_eq!(apart(1_234_567), "1 234 567");
    }
}
