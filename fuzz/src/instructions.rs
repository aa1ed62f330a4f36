//! Any bytes as code, in any mode of the processor, from any state.
//!
//! Beside "no panic, no end to it" it checks what snapshots rely on: a processor that is given the state it has
//! still has it.
//!
//! The guest has one MiB of RAM with page tables, descriptors and handlers in it, all of which the code may spoil.
//! A handler skips the byte at which its exception left off, so that one fault does not end a run. Nothing here
//! asks the host for time, and a run is as long as the number of its looks at the interrupts; only a *calm* run,
//! which nothing disturbs, is ended by a watchdog.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{Running, Segment, State, Table, cr0, cr4, efer, gpr, rflags};
use posada_vcpu::{Attention, Bus, Clock, Connections, Event, Exit, Interrupts, Vcpu};
use posada_x86::{Interpreter, Model};

const RAM: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
/// Page tables, from the top down, a page each.
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
/// Two task state segments, half a page each.
const TSS: u64 = 0x7000;
const HANDLERS: u64 = 0x8000;
/// Bytes between the handlers of two vectors.
const HANDLER: u64 = 16;
const KERNEL_STACK: u64 = 0xb000;
const CODE: u64 = 0xc000;
const STACK: u64 = 0xe800;
const DATA: u64 = 0xf000;
/// No RAM here.
const DEVICES: u64 = 0x20_0000;

/// Looks at the interrupts, most of them after a block of code each.
const LOOKS: u64 = 100;
/// How often a processor that has halted is woken.
const RUNS: u32 = 8;
/// How long a calm run may take.
const PATIENCE: Duration = Duration::from_millis(2);

/// Descriptors: code of 64, 32 and 16 bits and data, for ring 0 and for ring 3; and whatever the input has.
const DESCRIPTORS: [u64; 9] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x008f_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x008f_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
];
const CODE64: u16 = 0x08;
const CODE32: u16 = 0x10;
const DATA0: u16 = 0x20;
/// The current task's segment, two descriptors long in long mode; then another task's, gates and an LDT.
const TASK: u16 = 0x48;
const OTHER_TASK: u16 = 0x58;
const CALL_GATE: u16 = 0x68;
const TASK_GATE: u16 = 0x78;
const LDT: u16 = 0x80;
/// Descriptors of the input's own.
const OWN: u64 = 0x90;
const GDT_LIMIT: u16 = 0xff;

/// Runs the guest that `data` describes.
///
/// # Panics
/// If the interpreter misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let guest = Guest::new(&mut input);
    let calm = input.u8().is_multiple_of(8);
    let attention = Arc::new(Attention::default());
    let outside = Arc::new(Outside {
        attention: Arc::clone(&attention),
        looks: AtomicU64::new(LOOKS),
        random: AtomicU64::new(u64::from(input.u8()) << 8 | 1),
        calm,
    });
    let clock = Clock::new();
    clock.pause();
    let connections = Connections {
        index: 0,
        count: 1,
        ram: guest.ram.clone(),
        bus: outside.clone(),
        interrupts: outside,
        attention: Arc::clone(&attention),
        clock: Arc::new(clock),
    };
    // Those that the interpreter can carry out.
    let names = &Model::NAMES[..2];
    let model = Model::named(names[usize::from(input.u8()) % names.len()]).expect("a listed model exists");
    // What is left of the input is the code; `hlt` follows.
    guest.put(CODE, &[0xf4; 2 * PAGE as usize]);
    let at = CODE + u64::from(guest.offset);
    guest.put(at, &input.0[..input.0.len().min((2 * PAGE) as usize - usize::from(guest.offset))]);
    let mut interpreter = Interpreter::new(connections, model).expect("it takes any connections");
    interpreter.set_state(&guest.state).expect("it takes any state");
    let watchdog = calm.then(|| {
        let attention = Arc::clone(&attention);
        thread::spawn(move || {
            thread::park_timeout(PATIENCE);
            attention.kick();
        })
    });
    for _ in 0..RUNS {
        match interpreter.run().expect("it never fails") {
            Exit::Halted => attention.interrupt(),
            Exit::Kicked | Exit::Shutdown => break,
        }
    }
    if let Some(watchdog) = watchdog {
        watchdog.thread().unpark();
        watchdog.join().expect("it does not panic");
    }
    let state = interpreter.state();
    interpreter.set_state(&state).expect("it takes any state");
    assert_eq!(interpreter.state(), state, "it takes back its own state");
}

/// The input; what it no longer has is zero.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.u8()))
    }

    fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A value that means something to the guest, one near it, or any value.
    fn value(&mut self) -> u64 {
        const KNOWN: [u64; 16] = [
            0,
            1,
            DATA,
            DATA + PAGE,
            STACK,
            CODE,
            TABLES,
            GDT,
            IDT,
            DEVICES,
            RAM,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff,
            0xffff_8000_0000_0000,
            u64::MAX,
        ];
        let choice = self.u8();
        match choice >> 4 {
            0..8 => KNOWN[usize::from(choice & 15)],
            8..12 => KNOWN[usize::from(choice & 15)].wrapping_add(i64::from(self.u8() as i8) as u64),
            12..14 => u64::from(self.u16()),
            _ => self.u64(),
        }
    }
}

/// Everything outside the processor: a bus on which every address answers, and interrupts of any kind.
struct Outside {
    attention: Arc<Attention>,
    /// How often the interrupts may still be looked at.
    looks: AtomicU64,
    random: AtomicU64,
    /// Asks for no attention of its own.
    calm: bool,
}

impl Outside {
    /// xorshift64*.
    fn random(&self) -> u64 {
        let mut x = self.random.load(Ordering::Relaxed);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.store(x, Ordering::Relaxed);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn read(&self, data: &mut [u8]) {
        let value = self.random().to_le_bytes();
        data.copy_from_slice(&value[..data.len()]);
        self.attention.interrupt();
    }
}

impl Bus for Outside {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        self.read(data);
    }

    fn port_write(&self, _: u16, _: &[u8]) {
        self.attention.interrupt();
    }

    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        self.read(data);
    }

    fn mmio_write(&self, _: u64, _: &[u8]) {
        self.attention.interrupt();
    }
}

impl Interrupts for Outside {
    fn pending(&self) -> bool {
        self.random().is_multiple_of(4)
    }

    fn acknowledge(&self) -> Option<u8> {
        let random = self.random();
        (random >> 32).is_multiple_of(8).then_some(random as u8 | 0x20)
    }

    fn take_event(&self) -> Option<Event> {
        let left = self.looks.load(Ordering::Relaxed);
        if left == 0 {
            self.attention.kick();
            return None;
        }
        self.looks.store(left - 1, Ordering::Relaxed);
        if !self.calm {
            self.attention.interrupt();
        }
        let random = self.random();
        match random >> 32 & 0xff {
            0..4 => Some(Event::Nmi),
            4 => Some(Event::Init),
            5..8 => Some(Event::StartUp((CODE >> 12) as u8)),
            _ => None,
        }
    }

    fn cr8(&self) -> u8 {
        self.random() as u8 & 15
    }

    fn read_msr(&self, _: u32) -> Result<u64, posada_vcpu::MsrError> {
        Ok(self.random())
    }

    fn write_msr(&self, _: u32, _: u64) -> Result<(), posada_vcpu::MsrError> {
        Ok(())
    }
}

/// How the processor's code and its memory are arranged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    V8086,
    Protected,
    /// Protected mode with 32-bit page tables.
    Paged,
    /// Protected mode with PAE's page tables.
    Pae,
    Long,
}

struct Guest {
    ram: GuestRam,
    state: State,
    /// Where in its page the code begins.
    offset: u16,
}

impl Guest {
    fn new(input: &mut Input<'_>) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("a MiB can be had");
        let mode = match input.u8() % 8 {
            0 => Mode::Real,
            1 => Mode::V8086,
            2 => Mode::Protected,
            3 => Mode::Paged,
            4 => Mode::Pae,
            _ => Mode::Long,
        };
        // In long mode: 64-bit code three times out of four.
        let shape = input.u8();
        let ring = u16::from(shape & 3);
        let bits = match mode {
            Mode::Real | Mode::V8086 => 16,
            Mode::Long if shape & 0xc != 0 => 64,
            _ if shape & 16 != 0 => 16,
            _ => 32,
        };
        let mut guest = Self { ram, state: State::reset(), offset: 0 };
        guest.state = Self::registers(mode, bits, ring, input);
        guest.descriptors(mode, input);
        guest.tables(mode, input);
        guest.offset = if input.flag() { input.u16() % PAGE as u16 } else { 0 };
        guest.state.rip = CODE + u64::from(guest.offset);
        for _ in 0..input.u8() & 7 {
            guest.spoil(input);
        }
        guest
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.write(Gpa(at), bytes).expect("inside RAM");
    }

    fn put64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    fn registers(mode: Mode, bits: u32, ring: u16, input: &mut Input<'_>) -> State {
        let mut state = match mode {
            Mode::Real => State { cr0: cr0::ET, ..State::reset() },
            Mode::Long => State::long_mode(CODE, TABLES),
            _ => State::protected_mode(CODE as u32),
        };
        let s = &mut state.segments;
        if matches!(mode, Mode::Real | Mode::V8086) {
            let attributes = if mode == Mode::V8086 { 0xf3 } else { 0x93 };
            let segment = Segment { attributes, ..Segment::real_mode(0) };
            s.set_flat(Segment { attributes: attributes | 8, ..segment }, segment);
        } else {
            let size = match bits {
                64 => Segment::L,
                32 => Segment::DB,
                _ => 0,
            };
            for segment in s.data_mut() {
                (segment.selector, segment.attributes) = (DATA0 | ring, segment.attributes | ring << 5);
            }
            let code = s.cs.attributes & !(Segment::L | Segment::DB);
            let selector = if bits == 64 { CODE64 } else { CODE32 };
            (s.cs.selector, s.cs.attributes) = (selector | ring, code | size | ring << 5);
        }
        s.tr = Segment { selector: TASK, base: TSS, limit: 0x7ff, attributes: 0x8b };
        (state.gdtr, state.idtr) = (Table { base: GDT, limit: GDT_LIMIT }, Table { base: IDT, limit: 0xfff });
        match mode {
            Mode::Real => state.idtr = Table { base: 0, limit: 0x3ff },
            Mode::V8086 => state.rflags |= rflags::VM,
            Mode::Paged => state.cr4 |= cr4::PSE,
            Mode::Pae => state.cr4 |= cr4::PAE,
            _ => {}
        }
        if matches!(mode, Mode::Paged | Mode::Pae) {
            (state.cr0, state.cr3) = (state.cr0 | cr0::PG | cr0::WP, TABLES);
        }
        if mode == Mode::Long {
            state.msrs.efer |= efer::LMA | efer::SCE;
            (state.msrs.lstar, state.msrs.star) = (CODE, 0x0033_0008_0000_0000);
        }
        state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE;
        for register in &mut state.gpr {
            *register = input.value();
        }
        state.gpr[gpr::RSP] = STACK;
        state.rflags |=
            u64::from(input.u16()) & (rflags::ARITHMETIC | rflags::DF | rflags::IF | rflags::IOPL);
        let fill = input.value();
        for (n, register) in state.x87.registers.iter_mut().enumerate() {
            register.significand = fill.rotate_left(n as u32 * 8);
            register.sign_exponent = 0x3fff_u16.wrapping_add(n as u16 * (fill as u16 >> 3));
        }
        state.x87.occupied = fill as u8;
        for (n, register) in state.ymm.iter_mut().enumerate() {
            *register = std::array::from_fn(|lane| fill.wrapping_mul(n as u64 * 4 + lane as u64));
        }
        state
    }

    /// Descriptor tables, tasks and handlers.
    fn descriptors(&self, mode: Mode, input: &mut Input<'_>) {
        let long = mode == Mode::Long;
        for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
            self.put64(GDT + n as u64 * 8, descriptor);
        }
        let system = |base: u64, limit: u64, kind: u64| limit | base << 16 | (0xe0 | kind) << 40;
        let code = if long { CODE64 } else { CODE32 };
        let gate = |selector: u16, offset: u64, kind: u64| {
            offset & 0xffff | u64::from(selector) << 16 | (0xe0 | kind) << 40 | offset >> 16 << 48
        };
        for (selector, descriptor) in [
            (TASK, system(TSS, 0x7ff, 0xb)),
            (OTHER_TASK, system(TSS + 0x800, 0x7ff, 9)),
            (CALL_GATE, gate(code, HANDLERS, 0xc)),
            (TASK_GATE, gate(OTHER_TASK, 0, 5)),
            (LDT, system(GDT, 0xff, 2)),
        ] {
            self.put64(GDT + u64::from(selector), descriptor);
        }
        for slot in (OWN..=u64::from(GDT_LIMIT)).step_by(8).take(usize::from(input.u8() & 3)) {
            self.put64(GDT + slot, input.u64());
        }
        for vector in 0..256 {
            let handler = HANDLERS + vector * HANDLER;
            // Interrupt and trap gates by turns.
            let descriptor = gate(code, handler, 0xe | vector & 1);
            if long {
                self.put64(IDT + vector * 16, descriptor);
            } else {
                self.put64(IDT + vector * 8, descriptor);
            }
            if mode == Mode::Real {
                self.put(vector * 4, &(handler as u32).to_le_bytes());
            }
            self.put(handler, Self::handler(mode, matches!(vector, 8 | 10..=14 | 17)));
        }
        for task in [TSS, TSS + 0x800] {
            if long {
                // `rsp0` to `rsp2` and the interrupt stacks.
                for at in [4, 12, 20, 36, 44, 52, 60, 68, 76, 84] {
                    self.put64(task + at, KERNEL_STACK);
                }
            } else {
                let stack = u64::from(DATA0) << 32 | KERNEL_STACK;
                self.put64(task + 4, stack);
                // A task's own registers: `cr3`, `eip`, flags, `esp`, segments.
                let registers = [(28, TABLES), (32, CODE), (36, 2), (56, STACK), (76, CODE32.into())];
                let segments = [72, 80, 84, 88, 92].map(|at| (at, u64::from(DATA0)));
                for (at, value) in registers.into_iter().chain(segments) {
                    self.put(task + at, &(value as u32).to_le_bytes());
                }
            }
        }
    }

    /// Adds one to the saved instruction pointer, drops the error code, and returns.
    fn handler(mode: Mode, error_code: bool) -> &'static [u8] {
        match (mode, error_code) {
            (Mode::Real, _) => &[0x55, 0x89, 0xe5, 0xff, 0x46, 0x02, 0x5d, 0xcf],
            (Mode::Long, false) => &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf],
            (Mode::Long, true) => &[0x48, 0xff, 0x44, 0x24, 0x08, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf],
            (_, false) => &[0xff, 0x04, 0x24, 0xcf],
            (_, true) => &[0xff, 0x44, 0x24, 0x04, 0x83, 0xc4, 0x04, 0xcf],
        }
    }

    /// Page tables: RAM at its own address, a page at a time, then devices; a few pages with other rights.
    fn tables(&self, mode: Mode, input: &mut Input<'_>) {
        let (width, levels): (u64, &[u64]) = match mode {
            Mode::Paged => (4, &[TABLES]),
            Mode::Pae => (8, &[TABLES, TABLES + PAGE]),
            Mode::Long => (8, &[TABLES, TABLES + PAGE, TABLES + 2 * PAGE]),
            _ => return,
        };
        let put = |at: u64, entry: u64| self.put(at, &entry.to_le_bytes()[..width as usize]);
        for (n, table) in levels.iter().enumerate() {
            // The four entries of PAE's top level have no rights.
            let rights = if mode == Mode::Pae && n == 0 { 1 } else { 7 };
            put(*table, (table + PAGE) | rights);
        }
        let directory = levels.last().expect("there is one");
        let large = if mode == Mode::Paged { 4 << 20 } else { 2 << 20 };
        for n in 1..4 {
            put(directory + n * width, (n * large) | 0x87);
        }
        for page in 0..PAGE / width {
            put(directory + PAGE + page * width, (page * PAGE) | 7);
        }
        for _ in 0..input.u8() & 3 {
            let page = u64::from(input.u8());
            put(directory + PAGE + page * width, input.u64());
        }
    }

    /// Something that no guest would have, or few.
    fn spoil(&mut self, input: &mut Input<'_>) {
        let state = &mut self.state;
        let s = &mut state.segments;
        match input.u8() % 24 {
            0 => state.cr0 ^= input.value(),
            1 => state.cr0 ^= 1 << (input.u8() & 31),
            2 => state.cr3 = input.value(),
            3 => state.cr4 ^= input.value(),
            4 => state.cr4 ^= 1 << (input.u8() & 31),
            5 => state.msrs.efer ^= 1 << (input.u8() & 15),
            6 => state.rflags ^= 1 << (input.u8() & 31),
            7 => state.rip = input.value(),
            8 => state.gpr[gpr::RSP] = input.value(),
            9 => s.cs.limit = input.value() as u32,
            10 => s.cs.base = input.value(),
            11 => s.cs.attributes ^= input.u16(),
            12 => {
                *s.data_mut()[usize::from(input.u8() % 5)] = Segment {
                    selector: input.u16(),
                    base: input.value(),
                    limit: input.value() as u32,
                    attributes: input.u16(),
                };
            }
            13 => state.gdtr = Table { base: input.value(), limit: input.u16() },
            14 => state.idtr = Table { base: input.value(), limit: input.u16() },
            15 => s.tr = Segment { base: input.value(), limit: input.value() as u32, ..s.tr },
            16 => {
                s.ldtr = Segment { base: GDT, limit: input.u16().into(), attributes: input.u16(), ..s.ldtr }
            }
            17 => (state.x87.control, state.x87.status) = (input.u16(), input.u16()),
            18 => state.mxcsr = input.value() as u32,
            19 => {
                state.breakpoints[usize::from(input.u8() & 3)] = input.value();
                state.dr7 = input.value();
            }
            20 => {
                state.activity.running = match input.u8() & 3 {
                    0 => Running::Running,
                    1 => Running::Halted,
                    2 => Running::WaitForStartUp,
                    _ => Running::Shutdown,
                };
                let bits = input.u8();
                state.activity.sti_shadow = bits & 1 != 0;
                state.activity.mov_ss_shadow = bits & 2 != 0;
                state.activity.nmi_blocked = bits & 4 != 0;
                state.activity.nmi_pending = bits & 8 != 0;
            }
            21 => state.xcr0 = input.value(),
            22 => (state.msrs.lstar, state.msrs.star) = (input.value(), input.u64()),
            _ => {
                state.msrs.sysenter_cs = input.u16().into();
                (state.msrs.sysenter_eip, state.msrs.sysenter_esp) = (input.value(), input.value());
            }
        }
    }
}
