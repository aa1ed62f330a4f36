//! Looks for differences between two runs of a case.

use std::fmt::Write as _;

use iced_x86::{Formatter, InstructionInfoFactory, Mnemonic, NasmFormatter, RflagsBits};
use posada_vcpu::x86::{X87Register, rflags};

use super::generate::is_wide;
use super::{Case, End, Memory, Outcome, Registers};

/// One thing that two runs do not agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What: a register, a flag, a byte of memory.
    pub what: String,
    pub native: String,
    pub engine: String,
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
const FLAGS: [(&str, u64); 16] = [
    ("CF", rflags::CF),
    ("PF", rflags::PF),
    ("AF", rflags::AF),
    ("ZF", rflags::ZF),
    ("SF", rflags::SF),
    ("TF", rflags::TF),
    ("IF", rflags::IF),
    ("DF", rflags::DF),
    ("OF", rflags::OF),
    ("IOPL", rflags::IOPL),
    ("NT", rflags::NT),
    ("RF", rflags::RF),
    ("VM", rflags::VM),
    ("AC", rflags::AC),
    ("VIF", rflags::VIF),
    ("VIP", rflags::VIP),
];

/// All differences that the manuals do not allow.
pub fn differences(case: &Case, native: &Outcome, engine: &Outcome) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    found.check("end", &format!("{:?}", native.end), &format!("{:?}", engine.end));
    if native.end == End::Endless || engine.end == End::Endless {
        return found.0;
    }
    let (n, e) = (&native.after, &engine.after);
    // A 32-bit program's registers end at bit 31.
    let (mask, count) = if case.bits == 64 { (u64::MAX, 16) } else { (0xffff_ffff, 8) };
    for (number, name) in GPR.iter().enumerate().take(count) {
        found.number(name, n.gpr[number] & mask, e.gpr[number] & mask);
    }
    found.number("rip", n.rip, e.rip);
    for (number, name) in SEGMENTS.iter().enumerate() {
        found.number(name, n.selectors[number].into(), e.selectors[number].into());
    }
    if case.bits == 64 {
        found.number("fs base", n.fs_base, e.fs_base);
        found.number("gs base", n.gs_base, e.gs_base);
    }
    let undefined = undefined_flags(case, native);
    for (name, flag) in FLAGS {
        if undefined & flag == 0 {
            found.number(name, u64::from(n.rflags & flag != 0), u64::from(e.rflags & flag != 0));
        }
    }
    floating(&mut found, case, n, e);
    memory(&mut found, case, &native.memory, &engine.memory);
    found.0
}

struct Found(Vec<Difference>);

impl Found {
    fn check(&mut self, what: &str, native: &str, engine: &str) {
        if native != engine {
            let difference =
                Difference { what: what.to_owned(), native: native.to_owned(), engine: engine.to_owned() };
            self.0.push(difference);
        }
    }

    fn number(&mut self, what: &str, native: u64, engine: u64) {
        if native != engine {
            self.check(what, &format!("{native:#x}"), &format!("{engine:#x}"));
        }
    }
}

/// Flags that the manuals leave undefined after this case.
fn undefined_flags(case: &Case, native: &Outcome) -> u64 {
    if native.end != End::Breakpoint && native.end != End::Debug {
        return 0;
    }
    let bits = case.instruction.rflags_undefined();
    [
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::OF, rflags::OF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |mask, (_, flag)| mask | flag)
}

/// Instructions that need not be exact: reciprocals (relative error up to 1.5 * 2^-12) and the x87 unit's
/// transcendental functions. How far two results may be apart, in units of their last place.
pub fn is_approximate(mnemonic: Mnemonic) -> Option<u64> {
    use Mnemonic as M;
    match mnemonic {
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Some(1 << 13),
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1 => Some(4),
        _ => None,
    }
}

fn floating(found: &mut Found, case: &Case, n: &Registers, e: &Registers) {
    let approximate = is_approximate(case.instruction.mnemonic());
    for number in 0..16 {
        if n.upper[number] != e.upper[number] {
            let text = |[low, high]: [u64; 2]| format!("{high:016x}_{low:016x}");
            found.check(&format!("upper{number}"), &text(n.upper[number]), &text(e.upper[number]));
        }
        let (a, b) = (n.xmm[number], e.xmm[number]);
        let close = approximate.is_some_and(|tolerance| {
            let lanes = |v: [u64; 2]| v.into_iter().flat_map(|half| [half as u32, (half >> 32) as u32]);
            lanes(a).zip(lanes(b)).all(|(a, b)| u64::from(a.abs_diff(b)) <= tolerance)
        });
        if a != b && !close {
            let text = |v: [u64; 2]| format!("{:016x}_{:016x}", v[1], v[0]);
            found.check(&format!("xmm{number}"), &text(a), &text(b));
        }
    }
    found.number("mxcsr", n.mxcsr.into(), e.mxcsr.into());
    let (a, b) = (&n.x87, &e.x87);
    found.number("x87 control", a.control.into(), b.control.into());
    // C1 says which way the last result was rounded: of an approximate one, nothing that could be relied on.
    let status_mask = if approximate.is_some() { !0x200 } else { u16::MAX };
    found.number("x87 status", (a.status & status_mask).into(), (b.status & status_mask).into());
    found.number("x87 occupied", a.occupied.into(), b.occupied.into());
    for number in 0..8 {
        let (a, b) = (a.registers[number], b.registers[number]);
        let close = approximate.is_some_and(|tolerance| {
            // As an integer, which counts on from one exponent to the next.
            let ordered =
                |r: X87Register| u128::from(r.sign_exponent) << 63 | u128::from(r.significand << 1 >> 1);
            ordered(a).abs_diff(ordered(b)) <= tolerance.into()
        });
        if a != b && !close {
            let text = |r: X87Register| format!("{:04x}_{:016x}", r.sign_exponent, r.significand);
            found.check(&format!("x87 register {number}"), &text(a), &text(b));
        }
    }
}

fn memory(found: &mut Found, case: &Case, native: &Memory, engine: &Memory) {
    if native == engine {
        return;
    }
    let ignored = ignored_memory(case);
    let mut shown = 0;
    for (index, (a, b)) in native.0.iter().zip(&engine.0).enumerate() {
        let address = Memory::address(index);
        // Under a hypervisor `rflags.ID` is not always what the program has made of it.
        let identification = matches!(case.instruction.mnemonic(), Mnemonic::Pushfd | Mnemonic::Pushfq)
            && a ^ b == (rflags::ID >> 16) as u8;
        if a == b || identification || ignored.iter().any(|(start, end)| (*start..*end).contains(&address)) {
            continue;
        }
        shown += 1;
        if shown <= 16 {
            found.number(&format!("memory {address:#x}"), (*a).into(), (*b).into());
        }
    }
}

/// Bytes of memory that tell nothing: what `fxsave` leaves reserved, and where AMD's processors keep the x87
/// unit's pointers only while an exception is pending.
fn ignored_memory(case: &Case) -> Vec<(u64, u64)> {
    use Mnemonic as M;
    let i = &case.instruction;
    let Some(address) = operand_address(case) else { return Vec::new() };
    let ranges: &[(u64, u64)] = match i.mnemonic() {
        // Opcode and pointers, MXCSR mask, the upper parts of registers, the rest of the area.
        M::Fxsave | M::Fxsave64 => &[
            (6, 24),
            (28, 32),
            (42, 48),
            (58, 64),
            (74, 80),
            (90, 96),
            (106, 112),
            (122, 128),
            (138, 144),
            (154, 160),
            (416, 512),
        ],
        M::Fnstenv | M::Fnsave if i.memory_size().size() == 14 || i.memory_size().size() == 94 => &[(6, 14)],
        M::Fnstenv | M::Fnsave => &[(2, 4), (6, 8), (10, 28)],
        _ => &[],
    };
    ranges.iter().map(|(start, end)| (address + start, address + end)).collect()
}

/// The linear address of the instruction's explicit memory operand.
pub fn operand_address(case: &Case) -> Option<u64> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&case.instruction);
    let used = info.used_memory().first()?;
    used.virtual_address(0, |register, _, _| {
        let full = register.full_register();
        Some(match register {
            r if r.is_segment_register() => match r {
                iced_x86::Register::FS => case.before.fs_base,
                iced_x86::Register::GS => case.before.gs_base,
                _ => 0,
            },
            r if r.is_gpr() => {
                let value = case.before.gpr[full.number()];
                if r.size() == 8 { value } else { value & ((1 << (r.size() * 8)) - 1) }
            }
            _ => 0,
        })
    })
}

/// The instruction as an assembler would have it.
pub fn text(case: &Case) -> String {
    let mut output = String::new();
    NasmFormatter::new().format(&case.instruction, &mut output);
    output
}

/// All that is needed to see a difference again.
pub fn report(case: &Case, native: &Outcome, differences: &[Difference]) -> String {
    let mut out = String::new();
    let bytes: Vec<String> = case.code.iter().map(|byte| format!("{byte:02x}")).collect();
    let i = &case.instruction;
    let _ = writeln!(
        out,
        "{}-bit `{}` ({:?}), bytes {} at {:#x}; natively: {:?}",
        case.bits,
        text(case),
        i.code(),
        bytes.join(" "),
        case.before.rip,
        native.end
    );
    for difference in differences {
        let _ = writeln!(
            out,
            "    {}: expected {}, got {}",
            difference.what, difference.native, difference.engine
        );
    }
    out.push_str(&inputs(case));
    out
}

/// The registers and the memory that the instruction uses, as they were before it.
fn inputs(case: &Case) -> String {
    let mut out = String::new();
    let b = &case.before;
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&case.instruction).clone();
    let mut names: Vec<usize> = info
        .used_registers()
        .iter()
        .filter(|used| used.register().is_gpr())
        .map(|used| used.register().full_register().number())
        .collect();
    names.sort_unstable();
    names.dedup();
    let _ = write!(out, "    before: rflags={:#x}", b.rflags);
    for number in names {
        let _ = write!(out, " {}={:#x}", GPR[number], b.gpr[number]);
    }
    let mut vectors: Vec<usize> = info
        .used_registers()
        .iter()
        .filter(|used| used.register().is_vector_register())
        .map(|used| used.register().number())
        .collect();
    vectors.dedup();
    for number in &vectors {
        let [low, high] = b.xmm[*number];
        let _ = write!(out, " xmm{number}={high:016x}_{low:016x}");
        if is_wide() {
            let [low, high] = b.upper[*number];
            let _ = write!(out, " upper{number}={high:016x}_{low:016x}");
        }
    }
    if !vectors.is_empty() {
        let _ = write!(out, " mxcsr={:#x}", b.mxcsr);
    }
    let name = format!("{:?}", case.instruction.mnemonic());
    let mmx = info.used_registers().iter().any(|used| used.register().is_mm());
    if name.starts_with('F') || mmx || name == "Wait" || name == "Emms" {
        let x = &b.x87;
        let _ =
            write!(out, " x87: control={:#x} status={:#x} occupied={:#x}", x.control, x.status, x.occupied);
        for (n, r) in x.registers.iter().enumerate() {
            let _ = write!(out, " r{n}={:04x}_{:016x}", r.sign_exponent, r.significand);
        }
    }
    out.push('\n');
    for used in info.used_memory() {
        let address = used.virtual_address(0, |register, _, _| {
            let value = |register: iced_x86::Register| b.gpr[register.full_register().number()];
            Some(match register {
                iced_x86::Register::FS => b.fs_base,
                iced_x86::Register::GS => b.gs_base,
                r if r.is_gpr32() => value(r) & 0xffff_ffff,
                r if r.is_gpr16() => value(r) & 0xffff,
                r if r.is_gpr8() => value(r) & 0xff,
                r if r.is_gpr() => value(r),
                _ => 0,
            })
        });
        let Some(address) = address else { continue };
        let size = used.memory_size().size().clamp(1, 32);
        let bytes: Option<Vec<String>> = (0..size as u64)
            .map(|n| {
                Memory::index(address.wrapping_add(n)).map(|index| format!("{:02x}", case.memory.0[index]))
            })
            .collect();
        let _ = writeln!(
            out,
            "    memory {address:#x}: {}",
            bytes.map_or("not all there".to_owned(), |bytes| bytes.join(" "))
        );
    }
    out
}
