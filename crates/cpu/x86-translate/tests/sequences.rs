//! Random programs on the interpreter and on the translator: loops, calls, jumps between pages, faults anywhere.
#![allow(unreachable_pub)]

// Its values and forms of instructions.
#[path = "../../x86/tests/oracle/mod.rs"]
mod oracle;
mod pair;

use std::fmt::Write as _;

use fastrand::Rng;
use iced_x86::{
    Code, Decoder, Encoder, FlowControl, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind, Register,
};
use oracle::generate::{self, Generator};
use oracle::values::{self, Lanes, chance, pick};
use pair::{CODE, CONSTANTS, DATA, DEVICE, KERNEL, Level, PAGE, Pair, STACK, Verdict};
use posada_vcpu::x86::{State, rflags};

/// How many programs run.
const PROGRAMS: u64 = 5000;

/// Counters of loops, which nothing else accesses.
const COUNTERS: u64 = STACK.linear + 0x1f00;
/// Registers that a program has addresses in.
const POINTERS: [Register; 11] = {
    use Register as R;
    [R::RBX, R::RSI, R::RDI, R::RBP, R::R8, R::R10, R::R11, R::R12, R::R13, R::R15, R::R14]
};
/// And what is added to them.
const INDICES: [Register; 6] =
    [Register::RCX, Register::R9, Register::R14, Register::R10, Register::R15, Register::RAX];

/// Adds bytes, some of which are random.
macro_rules! add {
    ($program:ident, $($byte:expr),*) => {{
        let bytes = [$($byte),*];
        $program.add(&bytes);
    }};
}

/// A program in the making.
struct Program<'a> {
    rng: &'a mut Rng,
    forms: &'a [Code],
    level: Level,
    /// Where its stretches of code begin.
    starts: Vec<u64>,
    /// Bytes at addresses; instructions may be taken out one by one.
    code: Vec<(u64, Vec<u8>)>,
    /// Where the next goes.
    at: u64,
}

fn encode(instruction: &Instruction, at: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, at).ok()?;
    Some(encoder.take_buffer())
}

impl Program<'_> {
    fn add(&mut self, bytes: &[u8]) {
        self.code.push((self.at, bytes.to_vec()));
        self.at += bytes.len() as u64;
    }

    /// `mov register, value`, which leaves the flags.
    fn set(&mut self, register: Register, value: u64) {
        let number = register.number() as u8;
        let mut bytes = vec![0x48 | number >> 3, 0xb8 | number & 7];
        bytes.extend(value.to_le_bytes());
        self.add(&bytes);
    }

    /// An address of `size` bytes: nearly always good ones.
    fn address(&mut self, size: u64, writes: bool) -> u64 {
        let rng = &mut *self.rng;
        let good = DATA.end() - DATA.linear + if writes { 0 } else { PAGE };
        match rng.u32(..1000) {
            // About the ends of pages.
            0..200 => {
                let end = DATA.linear + PAGE * rng.u64(1..=2);
                end.wrapping_sub(rng.u64(..=size.max(1)))
            }
            200..215 => CONSTANTS.end().wrapping_sub(rng.u64(..size + 8)),
            215..225 => DATA.linear.wrapping_sub(rng.u64(..size + 8)),
            225..240 => wild_address(rng),
            // Aligned as vectors must be.
            240..600 => (DATA.linear + rng.u64(..good - 64)) & !15,
            600..650 => STACK.linear + rng.u64(..PAGE),
            _ => DATA.linear + rng.u64(..good - 64),
        }
    }

    /// An instruction of any form that has a meaning for programs.
    fn any(&mut self) {
        for _ in 0..50 {
            let code = pick(self.rng, self.forms);
            let Some(bytes) = Generator::instruction(code, 64, self.rng) else { continue };
            let i = generate::decode(64, self.at, &bytes);
            // Nothing would define them: what follows may not be there.
            let last = self.at > CODE.end() - 32 && i.rflags_undefined() != 0;
            if last || i.is_invalid() || i.flow_control() != FlowControl::Next || self.is_excluded(&i) {
                continue;
            }
            if self.place(i).is_some() {
                let rotates = matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
                if (i.rflags_undefined() != 0 || rotates)
                    && !matches!(i.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test)
                {
                    // They stay together: what is undefined must not be looked at.
                    self.define_flags();
                    let (_, definition) = self.code.pop().expect("there is one");
                    let (_, last) = self.code.last_mut().expect("there is one");
                    last.extend(definition);
                }
                return;
            }
        }
    }

    fn is_excluded(&self, i: &Instruction) -> bool {
        use Mnemonic as M;
        let kernel = self.level != Level::User;
        match i.mnemonic() {
            M::Cli | M::Sti | M::Swapgs | M::Stac | M::Clac if kernel => false,
            // They end a program too often, or are never the same twice.
            M::Hlt | M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => true,
            // Reciprocals are the processor's own.
            _ => {
                i.is_privileged()
                    || oracle::compare::is_approximate(i.mnemonic()).is_some()
                    || (0..i.op_count())
                        .any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register())
                    || matches!(
                        i.mnemonic(),
                        M::Wrfsbase
                            // They show the x87 unit's pointers, which the translator keeps only for exceptions.
                            | M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64
                            | M::Wrgsbase
                            | M::Fxrstor
                            | M::Fxrstor64
                            | M::Fldenv
                            | M::Frstor
                    )
            }
        }
    }

    /// Sets all arithmetic flags, of registers.
    fn define_flags(&mut self) {
        let opcode = pick(self.rng, &[0x39, 0x85, 0x29, 0x01, 0x31, 0x3b]);
        let rex = 0x40 | self.rng.u8(..16) & 0xd;
        let modrm = self.rng.u8(..64);
        // Not to the stack pointer.
        let modrm = if modrm & 7 == 4 || modrm >> 3 & 7 == 4 { modrm & 0x1b } else { modrm };
        add!(self, rex, opcode, 0xc0 | modrm);
    }

    /// Gives an instruction operands that are there, and adds it.
    fn place(&mut self, mut i: Instruction) -> Option<()> {
        if i.is_string_instruction() {
            let size = 64;
            for register in [Register::RSI, Register::RDI] {
                let address = self.address(size, true);
                self.set(register, address);
            }
            let count = self.rng.u64(..20);
            self.set(Register::RCX, count);
            if self.rng.u8(..8) == 0 {
                add!(self, pick(self.rng, &[0xfc, 0xfd]));
            }
        }
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if memory && chance(self.rng, 97) {
            self.memory(&mut i)?;
        }
        if i.mnemonic() == Mnemonic::Popfq {
            let flags = (self.rng.u32(..) & 0xcd5) | if chance(self.rng, 50) { 0x202 } else { 2 };
            let mut push = vec![0x68];
            push.extend(flags.to_le_bytes());
            self.add(&push);
        }
        if matches!(i.mnemonic(), Mnemonic::Pop | Mnemonic::Leave)
            || i.stack_pointer_increment() < 0 && chance(self.rng, 20)
        {
            // The stack's end is near, or not.
            let sp = if chance(self.rng, 97) {
                STACK.linear + 0x800 + self.rng.u64(..0x400)
            } else {
                wild_address(self.rng)
            };
            if i.mnemonic() == Mnemonic::Leave {
                self.set(Register::RBP, sp);
            }
            self.set(Register::RSP, sp);
        }
        let mut bytes = encode(&i, self.at)?;
        if chance(self.rng, 3) {
            // Prefixes that mean nothing, or something else.
            let prefix = pick(self.rng, &[0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x3e, 0x64, 0x65]);
            bytes.insert(0, prefix);
            let j = generate::decode(64, self.at, &bytes);
            // What natively is another instruction, or one that the host has not.
            if !j.is_invalid() && (!generate::is_announced(j.code()) || j.mnemonic() != i.mnemonic()) {
                bytes.remove(0);
            }
        }
        self.add(&bytes);
        Some(())
    }

    fn memory(&mut self, i: &mut Instruction) -> Option<()> {
        let size = i.memory_size().size() as u64;
        let mut info = iced_x86::InstructionInfoFactory::new();
        let writes = info
            .info(i)
            .used_memory()
            .iter()
            .any(|m| !matches!(m.access(), iced_x86::OpAccess::Read | iced_x86::OpAccess::CondRead));
        let address = self.address(size.max(1), writes);
        if chance(self.rng, 60) {
            i.set_segment_prefix(Register::None);
        }
        i.set_memory_index(Register::None);
        i.set_memory_index_scale(1);
        i.set_memory_displ_size(8);
        match self.rng.u8(..20) {
            0 | 1 => {
                i.set_memory_base(Register::RIP);
                i.set_memory_displacement64(address);
            }
            2 => {
                i.set_memory_base(Register::None);
                i.set_memory_displacement64(address);
                i.set_memory_displ_size(8);
            }
            kind => {
                let sum =
                    if chance(self.rng, 50) { 0 } else { i64::from(self.rng.i16(..)) >> self.rng.u32(..9) };
                let mut base = pick(self.rng, &POINTERS);
                let mut rest = address.wrapping_sub(sum as u64);
                if kind < 9 {
                    let mut index = pick(self.rng, &INDICES);
                    if index != base {
                        let scale = 1 << self.rng.u32(..4);
                        let value = self.rng.u64(..100).wrapping_sub(50);
                        self.set(index, value);
                        rest = rest.wrapping_sub(value.wrapping_mul(scale));
                        if kind == 3 {
                            index = Register::EAX + index.number() as u32;
                        }
                        i.set_memory_index(index);
                        i.set_memory_index_scale(scale as u32);
                    }
                }
                self.set(base, rest);
                if kind == 3 {
                    base = Register::EAX + base.number() as u32;
                }
                i.set_memory_base(base);
                i.set_memory_displacement64(sum as u64);
                i.set_memory_displ_size(if sum == 0 {
                    0
                } else if i8::try_from(sum).is_ok() {
                    1
                } else if kind == 3 {
                    4
                } else {
                    8
                });
            }
        }
        // Not every instruction has room for every operand.
        encode(i, self.at).map(|_| ())
    }

    /// Reads flags: into a register, or memory.
    fn read_flags(&mut self) {
        let condition = self.rng.u8(..16);
        match self.rng.u8(..5) {
            0 => add!(self, 0x0f, 0x90 | condition, 0xc0 | self.rng_register()),
            1 => add!(self, 0x0f, 0x90 | condition, 0x04, 0x25, 0x10, 0, 0, 0x20),
            2 => add!(self, 0x49, 0x0f, 0x40 | condition, 0xc2),
            3 => add!(self, 0x9f),
            _ => add!(self, 0x9c),
        }
    }

    fn rng_register(&mut self) -> u8 {
        pick(self.rng, &[0, 1, 2, 3, 5, 6, 7])
    }

    /// A jump over the next few instructions.
    fn skip(&mut self, some: impl Fn(&mut Self)) {
        let condition = self.rng.u8(..16);
        let (at, hole) = (self.at, self.code.len());
        add!(self, 0x0f, 0x80 | condition, 0, 0, 0, 0);
        some(self);
        let distance = (self.at - at - 6) as u32;
        self.code[hole].1[2..].copy_from_slice(&distance.to_le_bytes());
    }

    /// The next few instructions several times.
    fn repeat(&mut self, slot: u64, times: u8, some: impl Fn(&mut Self)) {
        let counter = (COUNTERS + slot * 8) as u32;
        let mut set = vec![0xc7, 0x04, 0x25];
        set.extend(counter.to_le_bytes());
        set.extend([times, 0, 0, 0]);
        self.add(&set);
        let start = self.at;
        some(self);
        self.count_down(slot, start);
    }

    /// `dec dword [counter]`, `jnz target`.
    fn count_down(&mut self, slot: u64, target: u64) {
        let counter = (COUNTERS + slot * 8) as u32;
        let mut count = vec![0xff, 0x0c, 0x25];
        count.extend(counter.to_le_bytes());
        self.add(&count);
        self.branch(&[0x0f, 0x85], target);
    }

    fn branch(&mut self, opcode: &[u8], target: u64) {
        let mut bytes = opcode.to_vec();
        let next = self.at + opcode.len() as u64 + 4;
        bytes.extend((target.wrapping_sub(next) as u32).to_le_bytes());
        self.add(&bytes);
    }

    fn some(&mut self) {
        match self.rng.u8(..24) {
            0..3 => self.read_flags(),
            3..6 => self.define_flags(),
            6 => {
                // What a compiler does to its stack.
                let by = self.rng.u8(..0x40) & !7;
                add!(self, 0x48, 0x83, pick(self.rng, &[0xc4, 0xec]), by);
            }
            7 => {
                // ... and with a size that it does not know.
                add!(self, 0xb8, 0x20, 0, 0, 0);
                add!(self, 0x48, pick(self.rng, &[0x29, 0x01]), 0xc4);
            }
            8 => add!(self, 0x48, pick(self.rng, &[0x39, 0x85]), 0xc0 | self.rng.u8(..8) << 3 | 4),
            9..12 => {
                // Pushes and pops of any register.
                let number = self.rng.u8(..16);
                let opcode = pick(self.rng, &[0x50, 0x50, 0x58]);
                if opcode == 0x58 && number == 4 {
                    add!(self, 0x54);
                } else {
                    add!(self, 0x40 | number >> 3, opcode | number & 7);
                }
            }
            _ => self.any(),
        }
    }

    /// The end of a stretch: on to a later one.
    fn leave(&mut self, n: usize) {
        let last = self.starts.len() - 1;
        let target = self.starts[self.rng.usize(n + 1..=last)];
        let other = self.starts[self.rng.usize(n + 1..=last)];
        let register =
            pick(self.rng, &[Register::RAX, Register::R10, Register::R11, Register::R15, Register::RDX]);
        let number = register.number() as u8;
        match self.rng.u8(..11) {
            0 | 1 => self.branch(&[0xe9], target),
            2 | 3 => {
                let condition = self.rng.u8(..16);
                self.branch(&[0x0f, 0x80 | condition], target);
                self.branch(&[0xe9], other);
            }
            4 | 5 => {
                self.branch(&[0xe8], target);
                self.branch(&[0xe9], other);
            }
            6 => {
                self.set(register, target);
                add!(self, 0x40 | number >> 3, 0xff, pick(self.rng, &[0xe0, 0xd0]) | number & 7);
                self.branch(&[0xe9], other);
            }
            7 => {
                self.set(register, target);
                add!(self, 0x40 | number >> 3, 0x50 | number & 7);
                // `ret`, `ret 16`, `jmp [rsp]`, `call [rsp]`.
                let end: &[u8] =
                    pick(self.rng, &[&[0xc3], &[0xc2, 16, 0], &[0xff, 0x24, 0x24], &[0xff, 0x14, 0x24]]);
                self.add(end);
                self.branch(&[0xe9], other);
            }
            8 => {
                // To where a call came from, if there was one.
                add!(self, 0xc3);
            }
            9 => {
                let next = self.starts[n + 1];
                self.branch(&[0xe9], next);
            }
            _ => {
                let wild = wild_address(self.rng);
                if chance(self.rng, 20) {
                    self.set(register, wild);
                    add!(self, 0x40 | number >> 3, 0xff, pick(self.rng, &[0xe0, 0xd0]) | number & 7);
                } else {
                    self.branch(&[0xe9], target);
                }
            }
        }
    }

    fn write(&mut self) {
        for n in 0..self.starts.len() {
            self.at = self.starts[n];
            if n == 0 {
                let mut set = vec![0xc7, 0x04, 0x25];
                set.extend((COUNTERS as u32).to_le_bytes());
                set.extend([self.rng.u8(1..5), 0, 0, 0]);
                self.add(&set);
                // Loops come back to here.
                self.starts[0] = self.at;
            }
            if n + 1 == self.starts.len() {
                let first = self.starts[0];
                self.count_down(0, first);
                add!(self, 0xcc);
                break;
            }
            for k in 0..self.rng.u64(1..7) {
                match self.rng.u8(..10) {
                    0 => self.skip(|p| (0..p.rng.u8(1..4)).for_each(|_| p.some())),
                    1 if k == 1 => {
                        let times = self.rng.u8(1..5);
                        self.repeat(1 + n as u64, times, |p| (0..p.rng.u8(1..4)).for_each(|_| p.some()));
                    }
                    _ => self.some(),
                }
            }
            self.leave(n);
        }
    }
}

/// Addresses of which nothing good comes.
fn wild_address(rng: &mut Rng) -> u64 {
    let near = u64::from(rng.u8(..24)).wrapping_sub(12);
    let base = pick(
        rng,
        &[
            0,
            0xffff_ffff_ffff_fff8,
            0x8000_0000_0000,
            0xffff_7fff_ffff_ffff,
            KERNEL,
            1 << 21,
            1 << 30,
            1 << 39,
            u64::MAX << 31,
            CODE.linear,
            CODE.end(),
            DATA.linear,
            CONSTANTS.end(),
            STACK.end(),
            DEVICE,
            // Where a monitor may have its own memory.
            &raw const near as u64,
            wild_address as *const () as usize as u64,
            0x7fff_f7fc_0000,
        ],
    );
    if rng.u8(..10) == 0 { rng.u64(..) } else { base.wrapping_add(near) }
}

fn initial(rng: &mut Rng, level: Level) -> State {
    let mut state = Pair::state(level);
    for register in &mut state.gpr {
        *register = values::integer(rng);
    }
    state.gpr[4] = STACK.linear + 0x800 + rng.u64(..0x100) * 8;
    state.rflags |= rng.u64(..) & rflags::ARITHMETIC;
    state.segments.fs.base = u64::from(rng.u8(..));
    state.segments.gs.base = u64::from(rng.u8(..));
    state.msrs.kernel_gs_base = u64::from(rng.u8(..));
    state.mxcsr = 0x1f80 | rng.u32(..8) << 13;
    if chance(rng, 10) {
        state.mxcsr &= !(1 << rng.u32(7..13));
    }
    for register in &mut state.ymm {
        let lanes = pick(rng, &[Lanes::Float32, Lanes::Float64, Lanes::Integer]);
        let [low, high] = values::vector(rng, lanes);
        *register = [low, high, 0, 0];
    }
    state
}

fn listing(code: &[(u64, Vec<u8>)]) -> String {
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    for (at, bytes) in code {
        if bytes.iter().all(|byte| *byte == 0x90) {
            continue;
        }
        let _ = write!(text, "    {at:x} {bytes:02x?} ");
        for i in &mut Decoder::with_ip(64, bytes, *at, 0) {
            formatter.format(&i, &mut text);
            text += "; ";
        }
        text += "\n";
    }
    text
}

fn try_out(pair: &mut Pair, code: &[(u64, Vec<u8>)], state: &State) -> Verdict {
    pair.clear_code();
    for (at, bytes) in code {
        let room = CODE.end().saturating_sub(*at) as usize;
        pair.put_code(*at, &bytes[..bytes.len().min(room)]);
    }
    pair.run(state)
}

/// Takes out every instruction without which the difference is still there.
fn smaller(pair: &mut Pair, mut code: Vec<(u64, Vec<u8>)>, state: &State) -> String {
    let mut report = String::new();
    for n in 0..code.len() {
        let bytes = std::mem::take(&mut code[n].1);
        code[n].1 = vec![0x90; bytes.len()];
        match try_out(pair, &code, state) {
            Verdict::Different(told) => report = told,
            _ => code[n].1 = bytes,
        }
    }
    if report.is_empty() {
        report = match try_out(pair, &code, state) {
            Verdict::Different(told) => told,
            other => format!("    not the second time: {other:?}"),
        };
    }
    format!("{}  flags {:#x}, from {:x?}\n{report}", listing(&code), state.rflags, state.gpr)
}

fn forms() -> Vec<Code> {
    let plain = |code: &Code| {
        let op_code = code.op_code();
        op_code.is_instruction()
            && op_code.mode64()
            && generate::is_announced(*code)
            && generate::exclusion(*code).is_none()
    };
    Code::values().filter(plain).collect()
}

/// One program, twice: the second time, what was translated is there already.
fn run(pair: &mut Pair, forms: &[Code], number: u64) -> Result<&'static str, String> {
    let mut rng = Rng::with_seed(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let rng = &mut rng;
    let level = pick(rng, &[Level::User, Level::User, Level::Supervisor, Level::Guarded]);
    pair.map(level, false);
    let memory = values::memory(rng).0;
    pair.put(DATA.physical, &memory[..0x3000]);
    pair.put(STACK.physical, &memory[0x1000..0x3000]);
    // The first slot of each page is left for what runs over the end of the page before it.
    let mut slots: Vec<u64> = (0..16).filter(|slot| slot % 4 != 0).collect();
    rng.shuffle(&mut slots);
    let starts = (0..rng.usize(3..8)).map(|n| {
        let start = CODE.linear + slots[n] * 0x400;
        if slots[n] % 4 == 3 && chance(rng, 40) {
            start + 0x400 - rng.u64(1..60)
        } else {
            start + rng.u64(..0x80)
        }
    });
    let starts: Vec<u64> = starts.collect();
    let mut state = initial(rng, level);
    state.rip = starts[0];
    let mut program = Program { rng, forms, level, at: starts[0], starts, code: Vec::new() };
    program.write();
    let code = program.code;
    for _ in 0..2 {
        match try_out(pair, &code, &state) {
            Verdict::Same(_) => {}
            Verdict::Endless => return Ok("endless"),
            Verdict::Different(_) => {
                return Err(format!("program {number}, {level:?}\n{}", smaller(pair, code, &state)));
            }
        }
    }
    Ok("same")
}

#[test]
fn random_programs_end_alike_on_both_engines() {
    // One in four has RAM at high addresses of the host.
    let [mut pair, mut far] = [Pair::default(), Pair::with_far_ram()];
    let forms = forms();
    let first: u64 = std::env::var("FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let count: u64 = std::env::var("COUNT").ok().and_then(|n| n.parse().ok()).unwrap_or(PROGRAMS);
    let (mut failures, mut endless) = (Vec::new(), 0);
    for number in first..first + count {
        let pair = if number % 4 == 3 { &mut far } else { &mut pair };
        match run(pair, &forms, number) {
            Ok("endless") => endless += 1,
            Ok(_) => {}
            Err(report) => failures.push(report),
        }
    }
    for failure in failures.iter().take(12) {
        println!("{failure}");
    }
    println!("{} of {count} differ, {endless} did not end", failures.len());
    assert!(failures.is_empty(), "the engines differ");
    assert!(endless * 20 < count, "{endless} programs did not end");
}
