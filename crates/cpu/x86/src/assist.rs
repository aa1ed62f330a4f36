//! What another engine of the same architecture asks of the interpreter.
//!
//! A translator carries out most instructions itself, and leaves the rest to the interpreter: it keeps the
//! registers while its own code runs, hands them back, has one instruction interpreted, and takes them again. All
//! that is not a general-purpose register, an arithmetic flag or a vector stays with the interpreter.

use posada_memory::Membership;
use posada_vcpu::x86::{X87, cr0, cr4, rflags};
use posada_vcpu::{Connections, Exit};

use crate::core::{Counts, segment};
use crate::integer::PIECE;
use crate::mmu::{self, Access, Place, Stale};
use crate::op::Stop;
use crate::{Interpreter, Model};

/// CF, PF, AF, ZF, SF and OF.
const ARITHMETIC: u64 = 0x8d5;

/// Whose rights memory accesses have: what an engine may keep apart, so that it need not ask at each access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum View {
    /// CPL below 3, with user pages out of reach (SMAP).
    SupervisorGuarded = 0,
    /// CPL below 3.
    Supervisor = 1,
    /// CPL 3.
    User = 2,
}

/// What came between two instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// The run is over.
    Exit(Exit),
    /// An instruction has been carried out, with all that goes with it: there may be more to see to.
    Stepped,
    /// Nothing that has not been seen to.
    Done,
}

/// The interpreter as another engine's assistant.
pub trait Assist {
    /// The general-purpose registers, as instructions number them.
    fn gpr(&mut self) -> &mut [u64; 16];
    /// The instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer.
    fn set_rip(&mut self, rip: u64);
    /// `rflags`.
    fn rflags(&self) -> u64;
    /// Sets CF, PF, AF, ZF, SF and OF, from where `rflags` has them.
    fn set_arithmetic_flags(&mut self, bits: u64);
    /// The vector registers, low quarter first.
    fn ymm(&mut self) -> &mut [[u64; 4]; 16];
    /// The SSE unit's control and status register.
    fn mxcsr(&mut self) -> &mut u32;
    /// The x87 unit, MMX registers included.
    fn x87(&mut self) -> &mut X87;
    /// Sets the flags that are not arithmetic, in 64-bit mode.
    fn set_system_flags(&mut self, bits: u64);
    /// The bases of `fs` and `gs`, and what `swapgs` exchanges the latter with.
    fn bases(&self) -> [u64; 3];
    /// Sets the bases.
    fn set_bases(&mut self, bases: [u64; 3]);
    /// The selectors in `es`, `cs`, `ss`, `ds`, `fs` and `gs`.
    fn selectors(&self) -> [u16; 6];
    /// Whether supervisors are kept from users' pages unless `rflags.AC` is set.
    fn smap(&self) -> bool;
    /// Its place among the virtual CPUs of the guest.
    fn membership(&self) -> &Membership;
    /// What the board gave.
    fn connections(&self) -> &Connections;
    /// What has happened.
    fn counts(&self) -> Counts;
    /// What the processor announces.
    fn model(&self) -> &Model;

    /// Whose rights count, if the processor is in 64-bit mode and nothing has to be looked at between
    /// instructions: shadows, single steps, breakpoints, alignment checks.
    fn view(&self) -> Option<View>;
    /// Whether SSE instructions can be carried out now.
    fn sse(&self) -> bool;
    /// Which translations of addresses have been forgotten since this was last asked.
    fn take_stale(&mut self) -> Stale;
    /// Whether the page of `linear`, of which [`place`](Self::place) or [`place_code`](Self::place_code) has just
    /// told where it is, is a global one.
    fn is_global(&self, linear: u64) -> bool;
    /// The time-stamp counter, if a program may read it now.
    fn tsc(&self) -> Option<u64>;
    /// Whether an exception of SSE instructions is unmasked.
    fn sse_unmasked(&self) -> bool;
    /// Whether AVX instructions can be carried out now.
    fn avx(&self) -> bool;
    /// Whether x87 and MMX instructions can be carried out now, and no x87 exception is unmasked or waits.
    fn x87_masked(&self) -> bool;
    /// Whether an interrupt source may have something that waits for IF.
    fn interrupts_wait(&self) -> bool;

    /// Where in RAM the code at a linear address is. `None`: nowhere, or fetching it faults.
    fn place_code(&mut self, linear: u64) -> Option<usize>;
    /// Where in RAM the byte at a linear address is, if it may be accessed. `None`: it is a device's, or the access
    /// faults.
    fn place(&mut self, linear: u64, write: bool) -> Option<usize>;

    /// Sees to everything that waits between instructions. To be called before any instruction of this engine or of
    /// another when [`view`](Self::view) says `None`, or attention was asked for.
    fn between_instructions(&mut self) -> Between;
    /// Carries out one instruction in 64-bit mode, or a few elsewhere, or delivers a fault.
    fn interpret(&mut self);
    /// After how many elements a repeated string instruction is left, at the latest, with the instruction pointer still
    /// at it; `None`: where interrupts are to be looked at.
    fn set_piece(&mut self, elements: Option<u64>);
    /// Carries out one instruction in any mode, or delivers its fault.
    fn interpret_one(&mut self);
}

impl Assist for Interpreter {
    fn gpr(&mut self) -> &mut [u64; 16] {
        self.core.registers.first_chunk_mut().unwrap_or_else(|| unreachable!("there are more than sixteen"))
    }

    fn rip(&self) -> u64 {
        self.core.rip()
    }

    fn set_rip(&mut self, rip: u64) {
        self.core.set_rip(rip);
    }

    fn rflags(&self) -> u64 {
        self.core.rflags()
    }

    fn set_arithmetic_flags(&mut self, bits: u64) {
        self.core.flags.set(bits);
    }

    fn ymm(&mut self) -> &mut [[u64; 4]; 16] {
        &mut self.core.ymm
    }

    fn mxcsr(&mut self) -> &mut u32 {
        &mut self.core.mxcsr
    }

    fn x87(&mut self) -> &mut X87 {
        &mut self.core.x87
    }

    fn set_system_flags(&mut self, bits: u64) {
        self.core.set_system_flags(bits & !ARITHMETIC | rflags::FIXED);
    }

    fn bases(&self) -> [u64; 3] {
        let [fs, gs] = [segment::FS, segment::GS].map(|number| self.core.views[usize::from(number)].base);
        [fs, gs, self.core.msrs.kernel_gs_base]
    }

    fn set_bases(&mut self, bases: [u64; 3]) {
        for (number, base) in [segment::FS, segment::GS].into_iter().zip(bases) {
            self.core.segments[usize::from(number)].base = base;
            self.core.views[usize::from(number)].base = base;
        }
        self.core.msrs.kernel_gs_base = bases[2];
    }

    fn selectors(&self) -> [u16; 6] {
        self.core.segments.map(|segment| segment.selector)
    }

    fn smap(&self) -> bool {
        self.core.cr4 & cr4::SMAP != 0
    }

    fn membership(&self) -> &Membership {
        &self.core.membership
    }

    fn connections(&self) -> &Connections {
        &self.core.connections
    }

    fn counts(&self) -> Counts {
        self.core.counts
    }

    fn model(&self) -> &Model {
        &self.core.model
    }

    fn view(&self) -> Option<View> {
        let core = &self.core;
        // CPL 1 and 2 are supervisors to the page tables, but not to sensitive instructions; nobody uses them.
        if !core.long64 || core.slow || core.debugging || matches!(core.cpl, 1 | 2) {
            return None;
        }
        match core.mmu.view() {
            mmu::View::SupervisorGuarded => Some(View::SupervisorGuarded),
            mmu::View::Supervisor => Some(View::Supervisor),
            mmu::View::User => Some(View::User),
            mmu::View::Watched => None,
        }
    }

    fn sse(&self) -> bool {
        const RESERVED: u32 = !0xffff;
        !self.core.sse_off && self.core.mxcsr & RESERVED == 0
    }

    fn sse_unmasked(&self) -> bool {
        const MASKED: u32 = 0x1f80;
        self.core.mxcsr & MASKED != MASKED
    }

    fn avx(&self) -> bool {
        self.core.avx_enabled() && self.core.cr0 & cr0::TS == 0
    }

    fn x87_masked(&self) -> bool {
        const MASKED: u16 = 0x3f;
        const SUMMARY: u16 = 0x80;
        let x87 = &self.core.x87;
        self.core.cr0 & (cr0::EM | cr0::TS) == 0
            && x87.control & MASKED == MASKED
            && x87.status & SUMMARY == 0
    }

    fn take_stale(&mut self) -> Stale {
        self.core.mmu.take_stale()
    }

    fn is_global(&self, linear: u64) -> bool {
        self.core.mmu.is_global(linear)
    }

    fn tsc(&self) -> Option<u64> {
        let allowed = self.core.cpl == 0 || self.core.cr4 & cr4::TSD == 0;
        allowed.then(|| self.core.tsc())
    }

    fn interrupts_wait(&self) -> bool {
        self.core.interrupts_wait
    }

    fn place_code(&mut self, linear: u64) -> Option<usize> {
        match self.core.place(segment::CS, linear, Access::Execute) {
            Ok(Place::Ram(at)) => Some(at),
            _ => None,
        }
    }

    fn place(&mut self, linear: u64, write: bool) -> Option<usize> {
        let access = if write { Access::Write } else { Access::Read };
        match self.core.place(segment::DS, linear, access) {
            Ok(Place::Ram(at)) => Some(at),
            _ => None,
        }
    }

    fn between_instructions(&mut self) -> Between {
        if self.core.slow || self.core.connections.attention.is_raised() {
            if let Some(exit) = self.between() {
                return Between::Exit(exit);
            }
            if self.core.needs_stepping() {
                self.step();
                return Between::Stepped;
            }
        }
        Between::Done
    }

    fn interpret(&mut self) {
        if self.block(self.core.long64) == Err(Stop::Fault) {
            self.core.deliver_fault();
        }
    }

    fn set_piece(&mut self, elements: Option<u64>) {
        self.core.piece = elements.map_or(PIECE, |elements| elements.clamp(1, PIECE));
    }

    fn interpret_one(&mut self) {
        if self.block(true) == Err(Stop::Fault) {
            self.core.deliver_fault();
        }
    }
}
