//! What the translator has done, for those who want to see how it works.

use std::collections::HashMap;
use std::fmt;

use iced_x86::Code;

/// Counts, since the virtual CPU was made.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Blocks translated.
    pub blocks: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Times that the code cache was full, and emptied.
    pub clears: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Instructions left to the interpreter.
    pub interpreted: u64,
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
    /// Times that all translations of addresses were forgotten.
    pub flushes: u64,
    /// Times that blocks were forgotten because their page was written.
    pub invalidations: u64,
    /// Bytes of code.
    pub code_bytes: u64,
}

impl Stats {
    /// Of so many interpreted instructions one is looked at.
    pub const SAMPLE: u64 = 61;
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("blocks translated", self.blocks),
            ("guest instructions in them", self.instructions),
            ("bytes of code", self.code_bytes),
            ("code cache emptied", self.clears),
            ("translated code entered", self.entries),
            ("instructions interpreted", self.interpreted),
            ("jumps tied", self.ties),
            ("left for attention", self.attention),
            ("TLB misses", self.tlb_misses),
            ("changes of the stack's page", self.stack_misses),
            ("jump misses", self.jump_misses),
            ("TLB flushes", self.flushes),
            ("code invalidated by writes", self.invalidations),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:28}{value:>16}")?;
        }
        let mut samples: Vec<_> = self.samples.iter().collect();
        samples.sort_by_key(|(form, count)| (std::cmp::Reverse(**count), format!("{form:?}")));
        for (form, count) in samples.iter().take(24) {
            let name = format!("  {form:?}").to_lowercase();
            writeln!(f, "{name:28}{:>16}", **count * Self::SAMPLE)?;
        }
        Ok(())
    }
}
