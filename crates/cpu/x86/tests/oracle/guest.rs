//! Carries a case out on an engine, as a program at CPL 3 of a small guest.
//!
//! The guest stands for Linux: the same descriptors under the same selectors, the case's memory mapped with the
//! same rights, and a handler for each exception, which halts.

use std::sync::Arc;

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{Segment, State, Table, cr0, cr4, efer, gpr};
use posada_vcpu::{Attention, Bus, Clock, Connections, Error, Exit, NoInterrupts, Vcpu};

use super::generate::is_wide;
use super::{
    CODE, CONSTANTS, Case, DATA, End, MEMORY, Memory, Outcome, PAGE, Region, Registers, Rights, STACK,
};

/// Where the guest's own memory is mapped: its physical addresses follow from here.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const KERNEL_STACK: u64 = 0x5000;
const HANDLERS: u64 = 0x5000;
/// Bytes between the handlers of two vectors.
const HANDLER: u64 = 16;
const TABLES: u64 = 0x6000;
const CASE: u64 = 0x10_0000;
const RAM: u64 = 0x20_0000;

/// Linux's descriptors (arch/x86/include/asm/segment.h): 32-bit and 64-bit code and data of the kernel, then of
/// programs; then the TSS, and little that a program could use.
const DESCRIPTORS: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    (TSS & 0xff_ffff) << 16 | 0x8b00_0000_0067,
    KERNEL >> 32,
    0,
    0,
    0,
    0,
    0,
    // Its limit tells a program which processor it is on: the first, here.
    0x0040_f500_0000_0000,
];

struct NoBus;
impl Bus for NoBus {}

/// Makes an engine.
pub type Factory = dyn Fn(Connections) -> Box<dyn Vcpu>;

/// A guest that runs cases.
pub struct Guest {
    vcpu: Box<dyn Vcpu>,
    ram: GuestRam,
    attention: Arc<Attention>,
    base: State,
}

impl Guest {
    /// A guest on the engine that `factory` makes.
    pub fn new(factory: &Factory) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("2 MiB can be had");
        let attention = Arc::new(Attention::default());
        let vcpu = factory(Connections {
            index: 0,
            count: 1,
            ram: ram.clone(),
            bus: Arc::new(NoBus),
            interrupts: Arc::new(NoInterrupts),
            attention: Arc::clone(&attention),
            clock: Arc::new(Clock::new()),
        });
        let guest = Self { vcpu, ram, attention, base: base_state() };
        guest.prepare();
        guest
    }

    /// How others reach the engine while it runs.
    pub fn attention(&self) -> Arc<Attention> {
        Arc::clone(&self.attention)
    }

    fn put(&self, address: u64, value: u64) {
        self.ram.store(address as usize, value);
    }

    fn prepare(&self) {
        // Present, writable, user.
        const TABLE: u64 = 7;
        for (n, descriptor) in DESCRIPTORS.into_iter().enumerate() {
            self.put(GDT + n as u64 * 8, descriptor);
        }
        self.put(TSS + 4, KERNEL + KERNEL_STACK);
        // No port is a program's.
        self.ram.store((TSS + 0x66) as usize, 0x68_u16);
        for vector in 0..256 {
            const HLT: u8 = 0xf4;
            let handler = HANDLERS + vector * HANDLER;
            self.ram.store(handler as usize, HLT);
            // Programs may ask for a breakpoint and for an overflow exception.
            let dpl = if vector == 3 || vector == 4 { 3 } else { 0 };
            let offset = KERNEL + handler;
            let gate =
                offset & 0xffff | 0x10 << 16 | (0x8e00 | dpl << 13) << 32 | (offset & 0xffff_0000) << 32;
            self.put(IDT + vector * 16, gate);
            self.put(IDT + vector * 16 + 8, offset >> 32);
        }
        let [top, upper, directory, kernel_upper, kernel_directory] =
            [0, 1, 2, 3, 4].map(|n| TABLES + n * PAGE);
        self.put(top, upper | TABLE);
        self.put(top + (KERNEL >> 39 & 511) * 8, kernel_upper | 3);
        self.put(kernel_upper, kernel_directory | 3);
        // One 2 MiB page holds all of RAM.
        self.put(kernel_directory, 0x83);
        self.put(upper, directory | TABLE);
        let mut table = kernel_directory;
        let mut physical = CASE;
        for region in [CODE, DATA, CONSTANTS, STACK] {
            let entry = directory + (region.start >> 21) * 8;
            if self.ram.load::<u64>(entry as usize) == 0 {
                table += PAGE;
                self.put(entry, table | TABLE);
            }
            for page in (region.start..region.end()).step_by(PAGE as usize) {
                let rights = match region.rights {
                    Rights::Execute => 5,
                    Rights::ReadWrite => 7 | 1 << 63,
                    Rights::Read => 5 | 1 << 63,
                };
                self.put(table + (page >> 12 & 511) * 8, physical | rights);
                physical += PAGE;
            }
        }
        let filler = vec![0xcc; CODE.size as usize];
        self.write(CODE.start, &filler);
    }

    /// The physical address of one of the case's own.
    fn physical(address: u64) -> u64 {
        let mut physical = CASE;
        for region in [CODE, DATA, CONSTANTS, STACK] {
            if region.contains(address) {
                return physical + (address - region.start);
            }
            physical += region.size;
        }
        unreachable!("only asked for what is mapped")
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write(Gpa(Self::physical(address)), bytes).expect("inside RAM");
    }

    /// Carries out `case`.
    pub fn run(&mut self, case: &Case) -> Result<Outcome, Error> {
        self.write(case.before.rip, &case.code);
        for region in MEMORY {
            self.write(region.start, case.memory.of(&region));
        }
        self.vcpu.set_state(&self.state(&case.before))?;
        let exit = self.vcpu.run()?;
        let state = self.vcpu.state();
        let (end, after) = self.outcome(exit, &state);
        let memory = self.memory();
        self.write(case.before.rip, &vec![0xcc; case.code.len()]);
        Ok(Outcome { end, after, memory })
    }

    fn memory(&self) -> Memory {
        let mut memory = Memory::new();
        let mut start = 0;
        for Region { start: address, size, .. } in MEMORY {
            let bytes = &mut memory.0[start..start + size as usize];
            self.ram.read(Gpa(Self::physical(address)), bytes).expect("inside RAM");
            start += size as usize;
        }
        memory
    }

    fn segment(&self, selector: u16) -> Segment {
        if selector & !3 == 0 {
            return Segment { selector, ..Segment::default() };
        }
        let descriptor = self.ram.load::<u64>((GDT + u64::from(selector & !7)) as usize);
        Segment::from_descriptor(selector, descriptor)
    }

    fn state(&self, r: &Registers) -> State {
        let mut state = self.base.clone();
        (state.gpr, state.rip, state.rflags) = (r.gpr, r.rip, r.rflags);
        let [es, cs, ss, ds, fs, gs] = r.selectors.map(|selector| self.segment(selector));
        let s = &mut state.segments;
        (s.es, s.cs, s.ss, s.ds, s.fs, s.gs) = (es, cs, ss, ds, fs, gs);
        (s.fs.base, s.gs.base) = (r.fs_base, r.gs_base);
        (state.x87, state.mxcsr) = (r.x87.clone(), r.mxcsr);
        for (ymm, [low, high]) in state.ymm.iter_mut().zip(r.xmm) {
            (ymm[0], ymm[1]) = (low, high);
        }
        if is_wide() {
            state.xcr0 = 7;
            for (ymm, [low, high]) in state.ymm.iter_mut().zip(r.upper) {
                (ymm[2], ymm[3]) = (low, high);
            }
        }
        state
    }

    /// What the handler that has halted tells of the program it interrupted.
    fn outcome(&self, exit: Exit, state: &State) -> (End, Registers) {
        let s = &state.segments;
        let mut after = Registers {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            selectors: [s.es, s.cs, s.ss, s.ds, s.fs, s.gs].map(|segment| segment.selector),
            fs_base: s.fs.base,
            gs_base: s.gs.base,
            x87: state.x87.clone(),
            xmm: std::array::from_fn(|n| [state.ymm[n][0], state.ymm[n][1]]),
            upper: std::array::from_fn(|n| [state.ymm[n][2], state.ymm[n][3]]),
            mxcsr: state.mxcsr,
        };
        let handler = state.rip.wrapping_sub(KERNEL + HANDLERS);
        match exit {
            Exit::Halted if handler < 256 * HANDLER => {}
            Exit::Kicked => return (End::Endless, after),
            Exit::Halted => return (End::Other(0, 0), after),
            Exit::Shutdown => return (End::Other(0, 1), after),
        }
        let vector = (handler / HANDLER) as u8;
        let frame = |below: u64| self.ram.load::<u64>((KERNEL_STACK - below) as usize);
        after.rip = frame(40);
        after.selectors[1] = frame(32) as u16;
        after.rflags = frame(24);
        after.gpr[gpr::RSP] = frame(16);
        after.selectors[2] = frame(8) as u16;
        let end = match vector {
            0 => End::Divide,
            1 => End::Debug,
            3 => End::Breakpoint,
            4 | 5 | 13 => End::Protection,
            6 => End::Invalid,
            11 | 12 => End::Segment,
            14 => End::Page { address: state.cr2, present: frame(48) & 1 != 0 },
            16 | 19 => End::FloatingPoint,
            17 => End::Alignment,
            other => End::Other(1, i32::from(other)),
        };
        (end, after)
    }
}

fn base_state() -> State {
    let mut state = State::long_mode(0, TABLES);
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.cr4 = cr4::DE
        | cr4::PSE
        | cr4::PAE
        | cr4::PGE
        | cr4::OSFXSR
        | cr4::OSXMMEXCPT
        | cr4::OSXSAVE
        | cr4::UMIP
        | cr4::FSGSBASE
        | cr4::SMEP
        | cr4::SMAP;
    state.msrs.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.gdtr = Table { base: KERNEL + GDT, limit: (DESCRIPTORS.len() * 8 - 1) as u16 };
    state.idtr = Table { base: KERNEL + IDT, limit: 0xfff };
    state.segments.ldtr = Segment::default();
    state.segments.tr = Segment { selector: 0x40, base: KERNEL + TSS, limit: 0x67, attributes: 0x8b };
    state
}
