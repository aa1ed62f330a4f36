//! A register dump, for people: what a monitor shows when a guest has come to grief.

use std::fmt;

use super::{Running, Segment, State, Table, efer, rflags};

const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

const FLAG_NAMES: [(u64, &str); 16] = [
    (rflags::ID, "id"),
    (rflags::VIP, "vip"),
    (rflags::VIF, "vif"),
    (rflags::AC, "ac"),
    (rflags::VM, "vm"),
    (rflags::RF, "rf"),
    (rflags::NT, "nt"),
    (rflags::OF, "of"),
    (rflags::DF, "df"),
    (rflags::IF, "if"),
    (rflags::TF, "tf"),
    (rflags::SF, "sf"),
    (rflags::ZF, "zf"),
    (rflags::AF, "af"),
    (rflags::PF, "pf"),
    (rflags::CF, "cf"),
];

impl fmt::Display for State {
    /// Several lines, the last without a newline: the general registers, then what says how they are meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode_name();
        writeln!(f, "rip {:016x}  {mode}, cpl {}{}", self.rip, self.cpl(), self.activity_name())?;
        write!(f, "rflags {:08x}", self.rflags)?;
        for (_, name) in FLAG_NAMES.iter().filter(|(bit, _)| self.rflags & bit != 0) {
            write!(f, " {name}")?;
        }
        for (index, (name, value)) in GPR_NAMES.iter().zip(self.gpr).enumerate() {
            f.write_str(if index.is_multiple_of(4) { "\n" } else { "  " })?;
            write!(f, "{name:3} {value:016x}")?;
        }
        let segments = &self.segments;
        let named = [
            ("cs", &segments.cs),
            ("ss", &segments.ss),
            ("ds", &segments.ds),
            ("es", &segments.es),
            ("fs", &segments.fs),
            ("gs", &segments.gs),
            ("ldtr", &segments.ldtr),
            ("tr", &segments.tr),
        ];
        for (name, segment) in named {
            let Segment { selector, base, limit, attributes } = *segment;
            write!(
                f,
                "\n{name:4} {selector:04x}  base {base:016x}  limit {limit:08x}  rights {attributes:04x}"
            )?;
        }
        for (name, Table { base, limit }) in [("gdtr", self.gdtr), ("idtr", self.idtr)] {
            write!(f, "\n{name:10}  base {base:016x}  limit {limit:08x}")?;
        }
        write!(
            f,
            "\ncr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.msrs.efer
        )
    }
}

impl State {
    fn mode_name(&self) -> &'static str {
        let (code, wide) = (&self.segments.cs, self.msrs.efer & efer::LMA != 0);
        match (self.cr0 & super::cr0::PE != 0, self.rflags & rflags::VM != 0) {
            (false, _) => "real mode",
            (true, true) => "virtual-8086 mode",
            (true, false) => match (wide, code.long(), code.db()) {
                (true, true, _) => "64-bit mode",
                (true, false, true) => "compatibility mode, 32-bit",
                (true, false, false) => "compatibility mode, 16-bit",
                (false, _, true) => "protected mode, 32-bit",
                (false, _, false) => "protected mode, 16-bit",
            },
        }
    }

    fn activity_name(&self) -> &'static str {
        match self.activity.running {
            Running::Running => "",
            Running::Halted => ", halted",
            Running::WaitForStartUp => ", waiting for start-up",
            Running::Shutdown => ", shut down",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_names_the_mode_the_flags_and_every_register() {
        let mut state = State::long_mode(0xffff_ffff_8100_0000, 0x9000);
        state.rflags |= rflags::IF | rflags::CF;
        state.gpr[12] = 0xdead_beef;
        let text = state.to_string();
        assert!(
            text.starts_with("rip ffffffff81000000  64-bit mode, cpl 0\nrflags 00000203 if cf\n"),
            "{text}"
        );
        assert!(text.contains("r12 00000000deadbeef"), "{text}");
        assert!(text.contains("\ncs   0010  base 0000000000000000  limit ffffffff  rights a09b"), "{text}");
        assert!(text.contains("cr3 0000000000009000"), "{text}");
        assert!(State::reset().to_string().contains("real mode"));
    }
}
