//! A small guest: a processor mode with all that goes with it, some code, and what became of it.
//!
//! Each exception's handler is a `hlt` of its own, so where the guest has halted tells what happened.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use posada_memory::{Gpa, GuestRam, Value};

use super::Engine;
use super::board::{Recorder, Script};
use super::tables::{Paging, Tables, pte};
use crate::x86::{Segment, State, Table, cr0, cr4, efer, gpr, rflags};
use crate::{Attention, Clock, Connections, Exit, Vcpu};

/// Where code begins.
pub(crate) const CODE: u64 = 0x8000;
/// Where a program at CPL 3 begins, in those guests that have two.
pub(crate) const USER_CODE: u64 = 0xa000;
/// Memory free to use, up to [`RAM`].
pub(crate) const DATA: u64 = 0xc000;
/// Top of the stack that a guest begins with.
pub(crate) const STACK: u64 = 0x7000;
/// Top of the stack that the task-state segment has for CPL 0.
pub(crate) const KERNEL_STACK: u64 = 0x6000;
/// Top of the stacks that the task-state segment has under IST 1 to 7: 0x100 bytes each.
pub(crate) const IST: u64 = 0x5800;
/// Bytes of RAM.
pub(crate) const RAM: u64 = 32 << 20;
/// Linear addresses from here on are mapped by nobody but the test.
pub(crate) const FREE: u64 = 0x4000_0000;
/// Physical addresses from here on are no RAM.
pub(crate) const MMIO: u64 = 0x1000_0000;

pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const TSS: u64 = 0x3000;
/// The handlers, [`HANDLER`] bytes each.
pub(crate) const HANDLERS: u64 = 0x4000;
const HANDLER: u64 = 8;
const TABLES: u64 = 0x10_0000;
const HLT: u8 = 0xf4;

/// Selectors of the descriptors that every guest's table has. From [`selector::FREE`] on it is empty.
#[allow(missing_docs)]
pub(crate) mod selector {
    pub(crate) const CODE64: u16 = 0x08;
    pub(crate) const DATA: u16 = 0x10;
    pub(crate) const CODE32: u16 = 0x18;
    pub(crate) const CODE16: u16 = 0x20;
    pub(crate) const DATA16: u16 = 0x28;
    pub(crate) const USER_CODE32: u16 = 0x33;
    pub(crate) const USER_DATA: u16 = 0x3b;
    pub(crate) const USER_CODE64: u16 = 0x43;
    pub(crate) const TSS: u16 = 0x48;
    pub(crate) const FREE: u16 = 0x60;
}

/// Descriptors as tables have them.
pub(crate) mod descriptor {
    /// A code or data segment: base, limit as the descriptor counts it, access byte and flags as
    /// [`crate::x86::Segment::attributes`] has them.
    pub(crate) fn segment(base: u32, limit: u32, attributes: u16) -> u64 {
        let (base, limit) = (u64::from(base), u64::from(limit));
        let low = limit & 0xffff | (base & 0xff_ffff) << 16 | u64::from(attributes) << 40;
        low | (limit >> 16 & 0xf) << 48 | (base >> 24) << 56
    }

    /// A gate's first eight bytes: where it leads, its access byte, and its parameter count or IST.
    pub(crate) fn gate(selector: u16, offset: u64, access: u8, count: u8) -> u64 {
        let low = offset & 0xffff | u64::from(selector) << 16 | u64::from(count) << 32;
        low | u64::from(access) << 40 | (offset >> 16 & 0xffff) << 48
    }
}

/// Types of gates and system segments, present, for CPL 0.
#[allow(missing_docs)]
pub(crate) mod kind {
    pub(crate) const TASK_GATE: u8 = 0x85;
    pub(crate) const CALL_GATE16: u8 = 0x84;
    pub(crate) const INTERRUPT_GATE16: u8 = 0x86;
    pub(crate) const LDT: u8 = 0x82;
    pub(crate) const TSS: u8 = 0x89;
    pub(crate) const TSS_BUSY: u8 = 0x8b;
    pub(crate) const CALL_GATE: u8 = 0x8c;
    pub(crate) const INTERRUPT_GATE: u8 = 0x8e;
    pub(crate) const TRAP_GATE: u8 = 0x8f;
    /// For CPL 3.
    pub(crate) const DPL3: u8 = 0x60;
}

/// A guest to be.
pub(crate) struct Machine<'a> {
    engine: &'a Engine,
    /// What the processor begins with.
    pub state: State,
    pub ram: GuestRam,
    pub bus: Arc<Recorder>,
    pub interrupts: Arc<Script>,
    pub attention: Arc<Attention>,
    /// 16, 32 or 64: the size of code.
    pub bits: u32,
    tables: Option<Tables>,
    /// Where the `hlt`s are that end its code.
    ends: Vec<u64>,
}

/// An exception as its handler sees it. Outside 64-bit mode `rsp` and `ss` are those of the stack frame only if
/// the privilege level has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub vector: u8,
    pub error: Option<u32>,
    pub rip: u64,
    pub cs: u16,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
}

/// What became of a guest.
pub(crate) struct End {
    pub exit: Exit,
    pub state: State,
    pub ram: GuestRam,
    pub bus: Arc<Recorder>,
    pub interrupts: Arc<Script>,
    pub attention: Arc<Attention>,
    pub tables: Option<Tables>,
    ends: Vec<u64>,
    pub vcpu: Box<dyn Vcpu>,
}

impl<'a> Machine<'a> {
    fn new(engine: &'a Engine, bits: u32, state: State) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("RAM can be had");
        let mut machine = Self {
            engine,
            state,
            ram,
            bus: Arc::default(),
            interrupts: Arc::default(),
            attention: Arc::default(),
            bits,
            tables: None,
            ends: Vec::new(),
        };
        machine.state.rip = CODE;
        machine.state.gpr[gpr::RSP] = STACK;
        for vector in 0..256 {
            machine.put(HANDLERS + vector * HANDLER, HLT);
        }
        machine
    }

    /// Real mode, all segments at 0.
    pub(crate) fn real(engine: &'a Engine) -> Self {
        let mut state = State::reset();
        state.segments.cs = Segment { attributes: 0x9b, ..Segment::real_mode(0) };
        state.idtr = Table { base: 0, limit: 0x3ff };
        let machine = Self::new(engine, 16, state);
        for vector in 0..256 {
            machine.put(vector * 4, (HANDLERS + vector * HANDLER) as u32);
        }
        machine
    }

    /// Flat 32-bit protected mode at CPL 0, no paging.
    pub(crate) fn protected(engine: &'a Engine) -> Self {
        let mut machine = Self::new(engine, 32, State::protected_mode(0));
        machine.structures(Paging::Bits32);
        machine
    }

    /// Paging: 32-bit protected mode, or 64-bit mode, at CPL 0. All of RAM is mapped where it is, and
    /// [`MMIO`]'s first 4 MiB, for CPL 0 to 3, by large pages.
    pub(crate) fn paged(engine: &'a Engine, paging: Paging) -> Self {
        let long = paging == Paging::Long;
        let state = if long { State::long_mode(0, TABLES) } else { State::protected_mode(0) };
        let mut machine = Self::new(engine, if long { 64 } else { 32 }, state);
        machine.structures(paging);
        machine.tables = Some(Tables::new(paging, TABLES));
        let size = paging.page_size(1);
        for from in [0, MMIO] {
            let end = from + if from == 0 { RAM } else { 4 << 20 };
            for page in (from..end).step_by(size as usize) {
                machine.map_level(page, page, 1, pte::ALL | pte::PS | pte::A | pte::D);
            }
        }
        let state = &mut machine.state;
        state.cr3 = TABLES;
        state.cr0 |= cr0::PG | cr0::WP;
        state.cr4 |= match paging {
            Paging::Bits32 => cr4::PSE,
            Paging::Pae | Paging::Long => cr4::PAE,
        };
        if paging != Paging::Bits32 {
            state.msrs.efer |= efer::NXE;
        }
        machine
    }

    /// 64-bit mode at CPL 0; see [`paged`](Self::paged).
    pub(crate) fn long(engine: &'a Engine) -> Self {
        Self::paged(engine, Paging::Long)
    }

    /// Compatibility mode (32-bit) at CPL 0.
    pub(crate) fn compatibility(engine: &'a Engine) -> Self {
        let mut machine = Self::long(engine);
        machine.bits = 32;
        machine.state.segments.cs = machine.segment(selector::CODE32);
        machine
    }

    /// Virtual-8086 mode under 32-bit protected mode, all segments at 0, IOPL 0.
    pub(crate) fn v8086(engine: &'a Engine) -> Self {
        let mut machine = Self::protected(engine);
        machine.bits = 16;
        machine.state.rflags |= rflags::VM;
        let segment = Segment { attributes: 0xf3, ..Segment::real_mode(0) };
        machine.state.segments.set_flat(segment, segment);
        machine
    }

    /// Descriptor tables, handlers and task-state segment of protected mode.
    fn structures(&mut self, paging: Paging) {
        let long = paging == Paging::Long;
        let descriptors = [
            0,
            descriptor::segment(0, 0xf_ffff, 0xa09b),
            descriptor::segment(0, 0xf_ffff, 0xc093),
            descriptor::segment(0, 0xf_ffff, 0xc09b),
            descriptor::segment(0, 0xffff, 0x009b),
            descriptor::segment(0, 0xffff, 0x0093),
            descriptor::segment(0, 0xf_ffff, 0xc0fb),
            descriptor::segment(0, 0xf_ffff, 0xc0f3),
            descriptor::segment(0, 0xf_ffff, 0xa0fb),
            descriptor::segment(TSS as u32, 0x67, u16::from(kind::TSS_BUSY)),
        ];
        for (n, descriptor) in descriptors.into_iter().enumerate() {
            self.put(GDT + n as u64 * 8, descriptor);
        }
        for vector in 0..=255 {
            let code = if long { selector::CODE64 } else { selector::CODE32 };
            self.gate(vector, code, HANDLERS + u64::from(vector) * HANDLER, kind::INTERRUPT_GATE, 0, long);
        }
        if long {
            self.put(TSS + 4, KERNEL_STACK);
            for ist in 1..8 {
                self.put(TSS + 0x1c + ist * 8, IST - ist * 0x100);
            }
        } else {
            self.put(TSS + 4, KERNEL_STACK as u32);
            self.put(TSS + 8, u32::from(selector::DATA));
        }
        // No I/O permission bitmap.
        self.put(TSS + 0x66, 0x68_u16);
        self.state.gdtr = Table { base: GDT, limit: 0xfff };
        self.state.idtr = Table { base: IDT, limit: 0xfff };
        let (code, data) = (
            self.segment(if long { selector::CODE64 } else { selector::CODE32 }),
            self.segment(selector::DATA),
        );
        self.state.segments.set_flat(code, data);
        self.state.segments.tr = self.segment(selector::TSS);
        self.state.segments.ldtr = Segment::default();
    }

    /// Makes a gate of the interrupt descriptor table.
    pub(crate) fn gate(&self, vector: u8, selector: u16, offset: u64, access: u8, ist: u8, long: bool) {
        let at = IDT + u64::from(vector) * if long { 16 } else { 8 };
        self.put(at, descriptor::gate(selector, offset, access, ist));
        if long {
            self.put(at + 8, offset >> 32);
        }
    }

    /// The segment register that a load of `selector` from the guest's table gives.
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        let descriptor: u64 = self.ram.load((GDT + u64::from(selector & !7)) as usize);
        Segment::from_descriptor(selector, descriptor)
    }

    /// Begins at CPL 3, in a code segment of the same size.
    #[must_use]
    pub(crate) fn user(mut self) -> Self {
        let code = if self.bits == 64 { selector::USER_CODE64 } else { selector::USER_CODE32 };
        let (code, data) = (self.segment(code), self.segment(selector::USER_DATA));
        self.state.segments.set_flat(code, data);
        self
    }

    /// Changes the state that it begins with.
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state);
        self
    }

    /// A general-purpose register to begin with, by its number.
    #[must_use]
    pub(crate) fn reg(mut self, number: usize, value: u64) -> Self {
        self.state.gpr[number] = value;
        self
    }

    /// Flags to begin with.
    #[must_use]
    pub(crate) fn flags(mut self, flags: u64) -> Self {
        self.state.rflags |= flags;
        self
    }

    /// Code at [`CODE`], of the mode's size. A `hlt` follows it.
    #[must_use]
    pub(crate) fn code(self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let bits = self.bits;
        self.code_at(CODE, bits, write)
    }

    /// Code anywhere, of any size. A `hlt` follows it.
    #[must_use]
    pub(crate) fn code_at(
        mut self,
        at: u64,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64");
        write(&mut assembler).expect("the instructions exist");
        let mut bytes = assembler.assemble(at).expect("the instructions can be encoded");
        self.ends.push(at + bytes.len() as u64);
        bytes.push(HLT);
        self.bytes_at(at, &bytes)
    }

    /// Bytes in RAM.
    #[must_use]
    pub(crate) fn bytes_at(self, at: u64, bytes: &[u8]) -> Self {
        self.ram.write(Gpa(at), bytes).expect("inside RAM");
        self
    }

    /// A value in RAM.
    pub(crate) fn put<T: Value>(&self, at: u64, value: T) {
        self.ram.store(at as usize, value);
    }

    /// Code for an exception's handler instead of its `hlt`; eight bytes at most.
    #[must_use]
    pub(crate) fn handler(
        self,
        vector: u8,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let mut assembler = CodeAssembler::new(bits).expect("16, 32 or 64");
        write(&mut assembler).expect("the instructions exist");
        let at = handler(vector);
        let bytes = assembler.assemble(at).expect("the instructions can be encoded");
        assert!(bytes.len() as u64 <= HANDLER, "handlers are short");
        self.bytes_at(at, &bytes)
    }

    /// Maps a 4 KiB page.
    pub(crate) fn map(&mut self, linear: u64, physical: u64, bits: u64) {
        self.map_level(linear, physical, 0, bits);
    }

    /// Maps a page by an entry of the given level.
    pub(crate) fn map_level(&mut self, linear: u64, physical: u64, level: u32, bits: u64) {
        let tables = self.tables.as_mut().expect("a mode with paging");
        tables.map(&self.ram, linear, physical, level, bits);
    }

    /// Where the entry for `linear` is.
    pub(crate) fn entry(&mut self, linear: u64, level: u32) -> u64 {
        self.tables.as_mut().expect("a mode with paging").entry(&self.ram, linear, level)
    }

    /// One of its processors, in the state that it begins with.
    pub(crate) fn processor(
        &self,
        index: u32,
        count: u32,
        interrupts: &Arc<Script>,
        attention: &Arc<Attention>,
    ) -> Box<dyn Vcpu> {
        let mut vcpu = (self.engine)(Connections {
            index,
            count,
            ram: self.ram.clone(),
            bus: self.bus.clone(),
            interrupts: Arc::clone(interrupts) as _,
            attention: Arc::clone(attention),
            clock: Arc::new(Clock::new()),
        });
        vcpu.set_state(&self.state).expect("the engine takes the state");
        vcpu
    }

    /// Runs it up to its first exit.
    pub(crate) fn run(self) -> End {
        let mut vcpu = self.processor(0, 1, &self.interrupts, &self.attention);
        let exit = vcpu.run().expect("the engine runs");
        End {
            exit,
            state: vcpu.state(),
            ram: self.ram,
            bus: self.bus,
            interrupts: self.interrupts,
            attention: self.attention,
            tables: self.tables,
            ends: self.ends,
            vcpu,
        }
    }
}

/// Where a vector's handler is.
pub(crate) fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * HANDLER
}

impl End {
    /// Goes on, up to the next exit.
    pub(crate) fn resume(&mut self) {
        self.exit = self.vcpu.run().expect("the engine runs");
        self.state = self.vcpu.state();
    }

    /// A general-purpose register, by its number.
    pub(crate) fn reg(&self, number: usize) -> u64 {
        self.state.gpr[number]
    }

    /// Whether all of these flags are set.
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.state.rflags & flags == flags
    }

    /// A value in RAM.
    pub(crate) fn load<T: Value>(&self, at: u64) -> T {
        self.ram.load(at as usize)
    }

    /// The entry for `linear` as the processor has left it.
    pub(crate) fn entry(&mut self, linear: u64, level: u32) -> u64 {
        self.tables.as_mut().expect("a mode with paging").look(&self.ram, linear, level)
    }

    /// The vector in whose handler it has halted.
    pub(crate) fn vector(&self) -> Option<u8> {
        let inside = self.state.rip.wrapping_sub(HANDLERS);
        (self.exit == Exit::Halted && inside < 256 * HANDLER).then_some((inside / HANDLER) as u8)
    }

    /// It has come to the end of some of its code: halted there, or, where a program may not, kept from it.
    #[track_caller]
    pub(crate) fn expect_end(&self) {
        let frame = if self.vector().is_some() { self.try_frame() } else { None };
        let kept = frame.is_some_and(|f| {
            let program = f.cs & 3 == 3 || f.rflags & rflags::VM != 0;
            (f.vector, f.error) == (13, Some(0)) && program && self.ends.contains(&f.rip)
        });
        let halted = self.exit == Exit::Halted && self.ends.contains(&(self.state.rip.wrapping_sub(1)));
        assert!(halted || kept, "{:?}, exception {frame:x?}, {}", self.exit, self.summary());
    }

    /// Halted just before this offset of the code segment.
    #[track_caller]
    pub(crate) fn expect_end_at(&self, rip: u64) {
        assert_eq!((self.exit, self.state.rip), (Exit::Halted, rip), "{}", self.summary());
    }

    fn summary(&self) -> String {
        let State { gpr, rip, rflags, cr0, cr2, cr3, cr4, .. } = &self.state;
        let (cs, ss) = (self.state.segments.cs.selector, self.state.segments.ss.selector);
        format!(
            "cs:rip {cs:x}:{rip:x}, ss {ss:x}, rflags {rflags:x}, registers {gpr:x?}, \
             cr0 {cr0:x}, cr2 {cr2:x}, cr3 {cr3:x}, cr4 {cr4:x}"
        )
    }

    fn try_frame(&self) -> Option<Frame> {
        let vector = self.vector()?;
        let wide = self.state.msrs.efer & efer::LMA != 0;
        let size = if wide { 8 } else { 4 };
        let stack = self.state.segments.ss.base + self.state.gpr[gpr::RSP];
        let word = |n: u64| {
            let at = (stack + n * size) as usize;
            if wide { self.ram.load::<u64>(at) } else { u64::from(self.ram.load::<u32>(at)) }
        };
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let first = u64::from(has_error);
        Some(Frame {
            vector,
            error: has_error.then(|| word(0) as u32),
            rip: word(first),
            cs: word(first + 1) as u16,
            rflags: word(first + 2),
            rsp: word(first + 3),
            ss: word(first + 4) as u16,
        })
    }

    /// The exception in whose handler it has halted; through a 32-bit or 64-bit gate.
    #[track_caller]
    pub(crate) fn frame(&self) -> Frame {
        self.try_frame().unwrap_or_else(|| panic!("no exception: {:?}, {}", self.exit, self.summary()))
    }

    /// It has halted in the handler of this exception, which came from the instruction at `rip`.
    #[track_caller]
    pub(crate) fn expect_fault(&self, vector: u8, error: Option<u32>, rip: u64) {
        let frame = self.frame();
        assert_eq!((frame.vector, frame.error, frame.rip), (vector, error, rip), "{frame:x?}");
    }

    /// It has halted in the handler of a page fault at `address`.
    #[track_caller]
    pub(crate) fn expect_page_fault(&self, error: u32, address: u64) {
        let frame = self.frame();
        assert_eq!((frame.vector, frame.error), (14, Some(error)), "{frame:x?}, cr2 {:#x}", self.state.cr2);
        assert_eq!(self.state.cr2, address, "cr2");
    }
}
