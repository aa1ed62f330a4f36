//! What a difference looks like, for people.

use std::fmt::{self, Write as _};

use iced_x86::{Decoder, Formatter, NasmFormatter};
use posada_memory::{GuestRam, PAGE_SIZE};
use posada_vcpu::x86::State;

use super::journal::Entry;
use super::trail::Trail;
use crate::cache::{self, LONGEST};
use crate::translator::LastBlock;

/// Differing words of memory, and entries of the journal, that are shown.
const MOST: usize = 16;

/// Everything that is known where the engines differ; the interpreter's comes first in each pair.
pub(super) struct Report<'a> {
    pub(super) what: &'a str,
    pub(super) instructions: u64,
    pub(super) blocks: u64,
    pub(super) states: [&'a State; 2],
    pub(super) rams: [&'a GuestRam; 2],
    pub(super) pages: &'a [usize],
    pub(super) trail: &'a Trail,
    pub(super) block: Option<LastBlock>,
    pub(super) options: u32,
    pub(super) journal: &'a [Entry],
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, instructions, blocks, .. } = self;
        writeln!(f, "interpreter and translator differ: {what}")?;
        writeln!(f, "\nafter {instructions} instructions, {blocks} blocks the same")?;
        self.registers(f)?;
        self.memory(f)?;
        if !self.journal.is_empty() {
            writeln!(f, "\nthe translator did this outside, and the interpreter not:")?;
            for entry in self.journal.iter().take(MOST) {
                writeln!(f, "  {entry:?}")?;
            }
        }
        writeln!(f, "\nguest code, as the interpreter has carried it out since they were the same:")?;
        self.guest_code(f)?;
        if let Some(block) = &self.block {
            let LastBlock { rip, instructions, place, code } = block;
            writeln!(f, "\nhost code of the block at {rip:#x}, {instructions} instructions:")?;
            disassemble(f, code, *place as u64, self.options)?;
        }
        let [interpreter, translator] = self.states;
        write!(f, "\ninterpreter:\n{interpreter}\n\ntranslator:\n{translator}")
    }
}

impl Report<'_> {
    fn registers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.states.map(rows);
        let [a, b] = &rows;
        let mut differing = a.iter().zip(b).filter(|((_, x), (_, y))| x != y).peekable();
        if differing.peek().is_some() {
            writeln!(f, "\n  {:12}{:>36}{:>36}", "", "interpreter", "translator")?;
        }
        for ((name, x), (_, y)) in differing {
            writeln!(f, "  {name:12}{x:>36}{y:>36}")?;
        }
        Ok(())
    }

    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.rams;
        let places = self.pages.iter().flat_map(|page| (page * PAGE_SIZE..(page + 1) * PAGE_SIZE).step_by(8));
        let mut differing =
            places.filter(|at| a.load::<u64>(*at) != b.load::<u64>(*at)).take(MOST).peekable();
        if differing.peek().is_some() {
            writeln!(f, "\n  {:20}{:>28}{:>36}", "guest physical", "interpreter", "translator")?;
        }
        for at in differing {
            let gpa = a.gpa(at).map_or(0, |gpa| gpa.0);
            let [x, y] = [a, b].map(|ram| format!("{:#018x}", ram.load::<u64>(at)));
            writeln!(f, "  {gpa:#018x}  {x:>28}{y:>36}")?;
        }
        Ok(())
    }

    fn guest_code(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = self.trail.parts();
        for (n, (rip, at)) in first.iter().chain(&last).enumerate() {
            if n == first.len() && self.trail.has_gap() {
                writeln!(f, "  ...")?;
            }
            let Some(at) = at else {
                writeln!(f, "  {rip:016x}  (not in memory)")?;
                continue;
            };
            let ram = self.rams[0];
            let mut bytes = [0; LONGEST];
            let len = LONGEST.min(ram.len() - at);
            cache::load(ram, *at, &mut bytes[..len]);
            let long64 = self.states[0].segments.cs.long();
            let bits = if long64 {
                64
            } else if self.states[0].segments.cs.db() {
                32
            } else {
                16
            };
            let mut decoder = Decoder::with_ip(bits, &bytes[..len], *rip, self.options);
            line(f, &mut decoder, &bytes, *rip)?;
        }
        Ok(())
    }
}

/// One instruction: address, bytes, text.
fn line(f: &mut fmt::Formatter<'_>, decoder: &mut Decoder<'_>, bytes: &[u8], start: u64) -> fmt::Result {
    let from = decoder.position();
    let instruction = decoder.decode();
    let mut text = String::new();
    NasmFormatter::new().format(&instruction, &mut text);
    let mut hex = String::new();
    for byte in &bytes[from..decoder.position()] {
        write!(hex, "{byte:02x}")?;
    }
    writeln!(f, "  {:016x}  {hex:30}  {text}", start + from as u64)
}

fn disassemble(f: &mut fmt::Formatter<'_>, code: &[u8], start: u64, options: u32) -> fmt::Result {
    let mut decoder = Decoder::with_ip(64, code, start, options);
    while decoder.can_decode() {
        line(f, &mut decoder, code, start)?;
    }
    Ok(())
}

/// Every register by name.
fn rows(state: &State) -> Vec<(String, String)> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    let number = |name: &str, value: u64| (name.to_owned(), format!("{value:#018x}"));
    let mut rows: Vec<_> = NAMES.iter().zip(state.gpr).map(|(name, value)| number(name, value)).collect();
    rows.extend([
        number("rip", state.rip),
        number("rflags", state.rflags),
        number("cr0", state.cr0),
        number("cr2", state.cr2),
        number("cr3", state.cr3),
        number("cr4", state.cr4),
        number("dr6", state.dr6),
        number("dr7", state.dr7),
        number("xcr0", state.xcr0),
        number("mxcsr", u64::from(state.mxcsr)),
    ]);
    for (n, [a, b, c, d]) in state.ymm.iter().enumerate() {
        rows.push((format!("xmm{n}"), format!("{b:016x}'{a:016x}")));
        rows.push((format!("ymm{n} high"), format!("{d:016x}'{c:016x}")));
    }
    for (n, register) in state.x87.registers.iter().enumerate() {
        rows.push((
            format!("x87 {n}"),
            format!("{:04x}'{:016x}", register.sign_exponent, register.significand),
        ));
    }
    let x87 = &state.x87;
    rows.push((
        "x87".into(),
        format!("control {:04x} status {:04x} {:02x}", x87.control, x87.status, x87.occupied),
    ));
    let s = &state.segments;
    for (name, segment) in [
        ("es", s.es),
        ("cs", s.cs),
        ("ss", s.ss),
        ("ds", s.ds),
        ("fs", s.fs),
        ("gs", s.gs),
        ("ldtr", s.ldtr),
        ("tr", s.tr),
    ] {
        let text = format!(
            "{:04x} {:x} {:x} {:x}",
            segment.selector, segment.base, segment.limit, segment.attributes
        );
        rows.push((name.into(), text));
    }
    for (name, table) in [("gdtr", state.gdtr), ("idtr", state.idtr)] {
        rows.push((name.into(), format!("{:x} {:x}", table.base, table.limit)));
    }
    rows.push(("activity".into(), format!("{:?}", state.activity)));
    rows.push(("msrs".into(), format!("{:x?}", state.msrs)));
    rows
}
