//! The same guest on the interpreter and on the translator: registers and memory must be the same at its end.
//!
//! The guest is one program in 64-bit mode, at any level of privilege, in little RAM with page tables, descriptors
//! and a handler for each exception, which halts.

// Each user takes a part of it.
#![allow(dead_code)]

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{Segment, State, Table, cr0, cr4, efer, gpr, rflags};
use posada_vcpu::{Attention, Bus, Clock, Connections, Exit, Interrupts, NoInterrupts, Vcpu};
use posada_x86::{Interpreter, Model};
use posada_x86_translate::Translator;

pub const PAGE: u64 = 0x1000;
const RAM: u64 = 0x48000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// Physical; 16 bytes for each vector.
pub const HANDLERS: u64 = 0x4000;
/// Where stacks of handlers end: of those that come from a program, and those of a kernel.
const STACKS: [u64; 2] = [0x6000, 0x7000];
const TABLES: u64 = 0x8000;
/// Where all of RAM is mapped, for a kernel.
pub const KERNEL: u64 = 0xffff_8000_0000_0000;

/// A range of linear addresses, and where it is in RAM.
#[derive(Clone, Copy)]
pub struct Area {
    pub linear: u64,
    pub physical: u64,
    pub pages: u64,
}

/// Code.
pub const CODE: Area = Area { linear: 0x1000_0000, physical: 0x20000, pages: 4 };
/// Data that can be written.
pub const DATA: Area = Area { linear: 0x2000_0000, physical: 0x30000, pages: 2 };
/// Data that cannot be written; right behind [`DATA`], and nothing after it.
pub const CONSTANTS: Area = Area { linear: 0x2000_2000, physical: 0x32000, pages: 1 };
/// The pages of [`CODE`], to be written.
pub const ALIAS: Area = Area { linear: 0x2000_8000, physical: 0x20000, pages: 4 };
pub const STACK: Area = Area { linear: 0x3000_0000, physical: 0x40000, pages: 2 };
/// No RAM here.
pub const DEVICE: u64 = 0x2010_0000;

impl Area {
    pub const fn end(&self) -> u64 {
        self.linear + self.pages * PAGE
    }
}

/// Whose the guest's code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    User,
    Supervisor,
    /// With SMAP.
    Guarded,
}

/// How a run ended.
#[derive(Debug)]
pub enum Verdict {
    Same(Box<State>),
    Different(String),
    /// It did not end in time.
    Endless,
}

struct Nothing;
impl Bus for Nothing {}

/// A guest on one engine.
pub struct Side {
    vcpu: Box<dyn Vcpu>,
    ram: GuestRam,
    attention: Arc<Attention>,
}

/// Who makes an engine.
pub type Factory = fn(Connections) -> Box<dyn Vcpu>;

pub fn model() -> Model {
    Model::named("x86-64-v2").expect("a listed model exists")
}

pub fn interpreter(connections: Connections) -> Box<dyn Vcpu> {
    Box::new(Interpreter::new(connections, model()).expect("it takes any connections"))
}

/// A translator whose code cache is emptied now and then.
pub fn translator(connections: Connections) -> Box<dyn Vcpu> {
    Box::new(Translator::new(connections, model(), 512 << 10).expect("the host has what a translator needs"))
}

impl Side {
    pub fn new(factory: Factory, interrupts: Arc<dyn Interrupts>) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("so little can be had");
        Self::with_ram(factory, interrupts, ram)
    }

    fn with_ram(factory: Factory, interrupts: Arc<dyn Interrupts>, ram: GuestRam) -> Self {
        let attention = Arc::new(Attention::default());
        let clock = Clock::new();
        clock.pause();
        let vcpu = factory(Connections {
            index: 0,
            count: 1,
            ram: ram.clone(),
            bus: Arc::new(Nothing),
            interrupts,
            attention: Arc::clone(&attention),
            clock: Arc::new(clock),
        });
        Self { vcpu, ram, attention }
    }

    /// How others reach it while it runs.
    pub fn attention(&self) -> Arc<Attention> {
        Arc::clone(&self.attention)
    }

    pub fn state(&self) -> State {
        self.vcpu.state()
    }

    /// Runs from a state, with this in RAM.
    pub fn run(&mut self, state: &State, image: &[u8]) -> Exit {
        // Only what differs is written: code that stays the same stays translated.
        let mut page = [0; PAGE as usize];
        for (n, wanted) in image.chunks(PAGE as usize).enumerate() {
            let at = Gpa(n as u64 * PAGE);
            self.ram.read(at, &mut page).expect("inside RAM");
            if page != wanted {
                self.ram.write(at, wanted).expect("inside RAM");
            }
        }
        self.attention.take_kick();
        self.vcpu.set_state(state).expect("it takes any state");
        self.vcpu.run().expect("it runs")
    }

    pub fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; RAM as usize];
        self.ram.read(Gpa(0), &mut memory).expect("inside RAM");
        memory
    }
}

/// Both engines.
pub struct Pair {
    sides: [Side; 2],
    /// What RAM holds when a run begins.
    image: Vec<u8>,
    /// Runs begun and ended.
    steps: Arc<AtomicU64>,
    /// How long a run may take, in milliseconds; a little more or less.
    patience: Arc<AtomicU64>,
}

impl Default for Pair {
    fn default() -> Self {
        let sides = [interpreter as Factory, translator].map(|make| Side::new(make, Arc::new(NoInterrupts)));
        Self::of(sides)
    }
}

impl Pair {
    /// With more RAM, which nobody touches, than there is room for at low addresses of the host.
    pub fn with_far_ram() -> Self {
        let sides = [interpreter as Factory, translator].map(|make| {
            let ram = GuestRam::new(&[(Gpa(0), RAM), (Gpa(1 << 32), 2 << 30)]).expect("it is not touched");
            assert!(!ram.is_low());
            Side::with_ram(make, Arc::new(NoInterrupts), ram)
        });
        Self::of(sides)
    }

    fn of(sides: [Side; 2]) -> Self {
        let steps = Arc::new(AtomicU64::new(0));
        let attentions = [0, 1].map(|n| Arc::downgrade(&sides[n].attention));
        let patience = Arc::new(AtomicU64::new(120));
        let (watched, limit) = (Arc::downgrade(&steps), Arc::clone(&patience));
        thread::spawn(move || watch(&watched, &attentions, &limit));
        let mut pair = Self { sides, image: vec![0; RAM as usize], steps, patience };
        pair.prepare();
        pair
    }

    /// Puts bytes where RAM has them when a run begins.
    pub fn put(&mut self, physical: u64, bytes: &[u8]) {
        self.image[physical as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn put64(&mut self, physical: u64, value: u64) {
        self.put(physical, &value.to_le_bytes());
    }

    /// What RAM holds when a run begins.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// Bytes of [`CODE`].
    pub fn put_code(&mut self, linear: u64, bytes: &[u8]) {
        let at = CODE.physical + (linear - CODE.linear);
        self.put(at, bytes);
    }

    /// What [`CODE`] holds after a run, in the interpreter's memory.
    pub fn code_at_end(&self) -> Vec<u8> {
        let start = CODE.physical as usize;
        self.sides[0].memory()[start..start + (CODE.pages * PAGE) as usize].to_vec()
    }

    /// Nothing but breakpoints.
    pub fn clear_code(&mut self) {
        self.put(CODE.physical, &[0xcc; (CODE.pages * PAGE) as usize]);
    }

    /// A run may take this many milliseconds; what takes longer has no end.
    pub fn be_patient(&mut self, milliseconds: u64) {
        self.patience.store(milliseconds, Ordering::Relaxed);
    }

    fn prepare(&mut self) {
        let system = |base: u64, kind: u64| base << 16 & 0xff_ffff_0000 | kind << 40;
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            system(TSS, 0x8b) | 0x67,
            KERNEL >> 32,
        ];
        for (n, descriptor) in descriptors.into_iter().enumerate() {
            self.put64(GDT + n as u64 * 8, descriptor);
        }
        self.put64(TSS + 4, KERNEL + STACKS[0]);
        self.put64(TSS + 36, KERNEL + STACKS[1]);
        for vector in 0..256 {
            self.put(HANDLERS + vector * 16, &[0xf4]);
            let offset = KERNEL + HANDLERS + vector * 16;
            // All on the interrupt stack: a kernel's own may be anywhere.
            let gate = offset & 0xffff | 0x08 << 16 | 0xee01 << 32 | (offset & 0xffff_0000) << 32;
            self.put64(IDT + vector * 16, gate);
            self.put64(IDT + vector * 16 + 8, offset >> 32);
        }
        self.clear_code();
    }

    /// Page tables for code of this level; `writable`: it may write its own.
    pub fn map(&mut self, level: Level, writable: bool) {
        let table = |n: u64| TABLES + n * PAGE;
        self.put(TABLES, &vec![0; 9 * PAGE as usize]);
        self.put64(table(0), table(1) | 7);
        self.put64(table(0) + (KERNEL >> 39 & 511) * 8, table(6) | 3);
        self.put64(table(1), table(2) | 7);
        self.put64(table(6), table(7) | 3);
        self.put64(table(7), table(8) | 3);
        for page in 0..RAM / PAGE {
            self.put64(table(8) + page * 8, (page * PAGE) | 3);
        }
        let user = if level == Level::User { 4 } else { 0 };
        let mut map = |table: u64, area: Area, rights: u64| {
            for n in 0..area.pages {
                let entry = table + ((area.linear >> 12) + n) % 512 * 8;
                self.put64(entry, (area.physical + n * PAGE) | rights | user);
            }
        };
        map(table(3), CODE, if writable { 3 } else { 1 });
        map(table(4), DATA, 3 | 1 << 63);
        map(table(4), CONSTANTS, 1 | 1 << 63);
        if writable {
            map(table(4), ALIAS, 3);
        }
        let device = Area { linear: DEVICE, physical: 0x4000_0000, pages: 1 };
        map(table(4), device, 3);
        map(table(5), STACK, 3 | 1 << 63);
        for (n, area) in [(3, CODE), (4, DATA), (5, STACK)] {
            let entry = table(2) + (area.linear >> 21) * 8;
            self.put64(entry, table(n) | 7);
        }
    }

    /// Where in RAM the entry of the page tables for a linear address is, one of [`CODE`]'s to [`STACK`]'s.
    pub fn page_entry(linear: u64) -> u64 {
        let table = match linear >> 28 {
            1 => 3,
            2 => 4,
            _ => 5,
        };
        TABLES + table * PAGE + (linear >> 12) % 512 * 8
    }

    /// A state at the start of [`CODE`].
    pub fn state(level: Level) -> State {
        let mut state = State::long_mode(CODE.linear, TABLES);
        state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        state.cr4 = cr4::DE | cr4::PSE | cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE;
        if level == Level::Guarded {
            state.cr4 |= cr4::SMEP | cr4::SMAP;
        }
        state.msrs.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        state.gdtr = Table { base: KERNEL + GDT, limit: 0x3f };
        state.idtr = Table { base: KERNEL + IDT, limit: 0xfff };
        let s = &mut state.segments;
        let segment =
            |selector: u16, attributes: u16| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let (code, data) = match level {
            Level::User => (segment(0x2b, 0xa0fb), segment(0x23, 0xc0f3)),
            _ => (segment(0x08, 0xa09b), segment(0x10, 0xc093)),
        };
        s.set_flat(code, data);
        s.tr = Segment { selector: 0x30, base: KERNEL + TSS, limit: 0x67, attributes: 0x8b };
        s.ldtr = Segment::default();
        state.gpr = [0; 16];
        state.gpr[gpr::RSP] = STACK.linear + PAGE;
        state.rflags = rflags::FIXED | rflags::IF;
        state
    }

    /// Runs it on both.
    pub fn run(&mut self, state: &State) -> Verdict {
        let exits = [0, 1].map(|n| {
            self.steps.fetch_add(1, Ordering::Relaxed);
            let exit = self.sides[n].run(state, &self.image);
            self.steps.fetch_add(1, Ordering::Relaxed);
            exit
        });
        if exits.contains(&Exit::Kicked) {
            return Verdict::Endless;
        }
        let [a, b] = [0, 1].map(|n| {
            let mut state = self.sides[n].vcpu.state();
            // The translator keeps these only for exceptions.
            let x87 = &mut state.x87;
            (x87.instruction, x87.data, x87.opcode) = (0, 0, 0);
            (x87.instruction_selector, x87.data_selector) = (0, 0);
            state
        });
        let [mut m, mut n] = [0, 1].map(|n| self.sides[n].memory());
        // A page may be marked as accessed by one who only looked.
        for (interpreted, translated) in
            m.iter_mut().zip(&mut n).take(CODE.physical as usize).skip(TABLES as usize).step_by(8)
        {
            *interpreted &= !0x20;
            *translated &= !0x20;
        }
        let mut report = String::new();
        let _ = differences(&mut report, exits, &a, &b, &m, &n);
        if report.is_empty() { Verdict::Same(Box::new(a)) } else { Verdict::Different(report) }
    }
}

fn watch(steps: &Weak<AtomicU64>, attentions: &[Weak<Attention>; 2], patience: &AtomicU64) {
    const TICK: u64 = 40;
    let (mut before, mut ticks) = (0, 0);
    while let Some(counter) = steps.upgrade() {
        let now = counter.load(Ordering::Relaxed);
        drop(counter);
        ticks = if now == before && now % 2 == 1 { ticks + 1 } else { 0 };
        if ticks * TICK >= patience.load(Ordering::Relaxed) {
            attentions.iter().filter_map(Weak::upgrade).for_each(|attention| attention.kick());
        }
        before = now;
        thread::sleep(Duration::from_millis(TICK));
    }
}

fn differences(
    to: &mut String,
    exits: [Exit; 2],
    a: &State,
    b: &State,
    memory: &[u8],
    other: &[u8],
) -> std::fmt::Result {
    if exits[0] != exits[1] {
        writeln!(to, "    ended: interpreted {:?}, translated {:?}", exits[0], exits[1])?;
    }
    for (n, (x, y)) in a.gpr.iter().zip(b.gpr).enumerate().filter(|(_, (x, y))| *x != y) {
        writeln!(to, "    register {n}: interpreted {x:#x}, translated {y:#x}")?;
    }
    for (what, x, y) in [
        ("rip", a.rip, b.rip),
        ("rflags", a.rflags, b.rflags),
        ("cr2", a.cr2, b.cr2),
        ("mxcsr", a.mxcsr.into(), b.mxcsr.into()),
    ] {
        if x != y {
            writeln!(to, "    {what}: interpreted {x:#x}, translated {y:#x}")?;
        }
    }
    for (n, (x, y)) in a.ymm.iter().zip(b.ymm).enumerate().filter(|(_, (x, y))| *x != y) {
        writeln!(to, "    ymm{n}: interpreted {x:x?}, translated {y:x?}")?;
    }
    if to.is_empty() && a != b {
        writeln!(to, "    states: interpreted {a:?}\n    translated {b:?}")?;
    }
    let unequal = memory.iter().zip(other).enumerate().filter(|(_, (x, y))| x != y);
    for (at, (x, y)) in unequal.take(32) {
        writeln!(to, "    byte at {at:#x}: interpreted {x:#x}, translated {y:#x}")?;
    }
    Ok(())
}
