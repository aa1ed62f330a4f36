//! Which instruction forms have been compared, and which have not.

use std::collections::BTreeMap;

use iced_x86::{Code, EncodingKind};

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

    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        for (code, count) in &other.0 {
            *self.0.entry(*code).or_default() += count;
        }
    }

    /// The number of forms compared.
    pub fn covered(&self) -> usize {
        self.0.len()
    }

    /// The forms that the model announces but nothing compared, each with the reason.
    pub fn uncovered(&self) -> Vec<(Code, &'static str)> {
        announced()
            .filter(|code| !self.0.contains_key(code))
            .map(|code| (code, exclusion(code).unwrap_or_else(|| reason(code))))
            .collect()
    }
}

/// Every form that the model announces.
pub fn announced() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let op_code = code.op_code();
        op_code.is_instruction() && is_announced(*code) && op_code.encoding() == EncodingKind::Legacy
    })
}

fn reason(code: Code) -> &'static str {
    let op_code = code.op_code();
    if !op_code.mode32() && !op_code.mode64() {
        "there is no such instruction in a program of the host"
    } else {
        "not compared"
    }
}
