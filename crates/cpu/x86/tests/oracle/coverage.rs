//! Which instruction forms have been compared, and which have not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iced_x86::Code;

use super::generate::{exclusion, is_announced};

/// How often each form has been compared.
#[derive(Clone, Debug, Default)]
pub struct Coverage(BTreeMap<Code, u64>);

impl Coverage {
    /// Counts one comparison.
    pub fn count(&mut self, code: Code) {
        *self.0.entry(code).or_default() += 1;
    }

    /// How often one form has been compared.
    pub fn of(&self, code: Code) -> u64 {
        self.0.get(&code).copied().unwrap_or_default()
    }

    /// The number of forms compared.
    pub fn covered(&self) -> usize {
        self.0.len()
    }

    /// The forms that the model announces but nothing compared, each with the reason: what `uncovered.txt` holds.
    pub fn uncovered(&self) -> String {
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for code in announced().filter(|code| !self.0.contains_key(code)) {
            groups.entry(reason(code)).or_default().push(format!("{code:?}"));
        }
        let mut text = format!(
            "# Instruction forms that x86-64-v2 announces and the oracle does not compare with the host: {} of {}.\n\
             # Written by `cargo run -p posada-x86 --example oracle -- --uncovered`.\n",
            announced().count() - self.covered(),
            announced().count()
        );
        for (reason, codes) in groups {
            let _ = write!(text, "\n# {reason}\n{}\n", codes.join("\n"));
        }
        text
    }
}

/// Every form that the model announces.
pub fn announced() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| code.op_code().is_instruction() && is_announced(*code))
}

fn reason(code: Code) -> &'static str {
    let op_code = code.op_code();
    let name = op_code.op_code_string();
    if let Some(reason) = exclusion(code) {
        return reason;
    }
    if !op_code.mode32() && !op_code.mode64() {
        return "exists in 16-bit code only";
    }
    if !op_code.amd_decoder32() && !op_code.amd_decoder64() {
        return "AMD's processors have no such form";
    }
    if name.starts_with("9B ") {
        return "two instructions to the processor, the first of which is `wait`";
    }
    "not compared yet"
}
