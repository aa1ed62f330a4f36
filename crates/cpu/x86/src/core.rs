//! One processor as the interpreter works on it: the architectural state, laid out for speed, with what is
//! derived from it kept beside it.

use std::sync::Arc;

use posada_memory::Membership;
use posada_vcpu::x86::{Activity, Msrs, Segment, State, Table, X87, cr0, cr4, efer, rflags};
use posada_vcpu::{Connections, Exit};

use crate::exception::Exception;
use crate::flags::Flags;
use crate::int::{Int, REGISTERS, RIP};
use crate::integer::PIECE;
use crate::mmu::Mmu;
use crate::model::Model;
use crate::op::Mode;
use crate::simd::Native;
use crate::system::random::{self, Random};

/// Numbers of the segment registers, as instructions encode them; `ldtr` and `tr` are kept apart.
pub(crate) mod segment {
    pub(crate) const ES: u8 = 0;
    pub(crate) const CS: u8 = 1;
    pub(crate) const SS: u8 = 2;
    pub(crate) const DS: u8 = 3;
    pub(crate) const FS: u8 = 4;
    pub(crate) const GS: u8 = 5;
}

/// What a memory access through a segment needs: derived from the segment register and the mode.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SegmentView {
    /// Added to the effective address.
    pub base: u64,
    /// Reads (bit 0) or writes (bit 1) must first be checked against limit and rights.
    pub check: u8,
}

/// What has happened on a virtual CPU, besides instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Maskable interrupts taken.
    pub interrupts: u64,
    /// Faults delivered.
    pub faults: u64,
    /// Page tables looked into for the translation of an address.
    pub walks: u64,
}

pub(crate) struct Core {
    /// 0 to 15 are the general-purpose registers, [`RIP`] is the instruction pointer, [`crate::int::ZERO`] stays 0.
    pub registers: [u64; REGISTERS],
    pub flags: Flags,
    /// All of `rflags` but the arithmetic flags, bit 1 set.
    pub system_flags: u64,
    pub views: [SegmentView; 8],
    /// Linear addresses are cut to this: 32 bits, except in 64-bit mode.
    pub linear_mask: u64,
    pub mmu: Mmu,

    /// How code is decoded now.
    pub mode: Mode,
    pub cpl: u8,
    /// Long mode is active and the code segment is a 64-bit one.
    pub long64: bool,
    /// The exception that [`crate::op::Stop::Fault`] speaks of.
    pub fault: Exception,
    /// Something besides instructions waits: shadows, single-stepping, NMI, an inactive processor, an exit.
    pub slow: bool,
    /// The interrupt source may have something: it has called, and not answered since that there is nothing.
    pub interrupts_wait: bool,
    /// What [`posada_vcpu::Vcpu::run`] shall return, when the current instruction is over.
    pub exit: Option<Exit>,
    /// Instructions carried out.
    pub instructions: u64,
    pub counts: Counts,
    /// Debug conditions met by the current instruction, as bits of `dr6`, for the trap after it.
    pub debug_hits: u64,
    /// Debug conditions that wait for the instruction after a load of `ss`.
    pub debug_pending: u64,
    /// The current instruction has entered a handler: no single step ends with it.
    pub entered: bool,
    /// A store has hit code that is decoded somewhere: the current block may be stale.
    pub code_changed: bool,
    /// Elements of a repeated string instruction that are worked off before interrupts are looked at.
    pub piece: u64,
    /// A breakpoint is armed: instructions are carried out one at a time.
    pub debugging: bool,

    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub breakpoints: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub xcr0: u64,
    pub msrs: Msrs,
    pub x87: X87,
    pub ymm: [[u64; 4]; 16],
    pub mxcsr: u32,
    /// SSE instructions raise an exception now, because of `cr0` or `cr4`.
    pub sse_off: bool,
    pub activity: Activity,

    /// What carries out the instructions that this interpreter has no way of its own for.
    pub native: Option<Box<dyn Native>>,
    pub random: Random,
    pub model: Model,
    pub connections: Connections,
    /// Who learns of writes to code.
    pub membership: Membership,
}

impl Core {
    pub(crate) fn new(connections: Connections, model: Model) -> Self {
        let state = State::reset();
        let attention = Arc::clone(&connections.attention);
        let membership = connections.ram.join(move || attention.look());
        let mut core = Self {
            registers: [0; REGISTERS],
            flags: Flags::new(0),
            system_flags: rflags::FIXED,
            views: [SegmentView::default(); 8],
            linear_mask: 0xffff_ffff,
            mmu: Mmu::new(),
            mode: Mode { code_bits: 16, stack_bits: 16 },
            cpl: 0,
            long64: false,
            fault: Exception { vector: 0, error: None, address: 0 },
            slow: false,
            interrupts_wait: true,
            exit: None,
            instructions: 0,
            counts: Counts::default(),
            debug_hits: 0,
            debug_pending: 0,
            entered: false,
            code_changed: false,
            piece: PIECE,
            debugging: false,
            segments: [Segment::default(); 6],
            ldtr: state.segments.ldtr,
            tr: state.segments.tr,
            gdtr: state.gdtr,
            idtr: state.idtr,
            cr0: state.cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            breakpoints: [0; 4],
            dr6: state.dr6,
            dr7: state.dr7,
            xcr0: 1,
            msrs: Msrs::default(),
            x87: X87::default(),
            ymm: [[0; 4]; 16],
            mxcsr: state.mxcsr,
            sse_off: true,
            activity: Activity::default(),
            native: None,
            random: random::of_host(),
            model,
            connections,
            membership,
        };
        core.load_state(&state);
        core
    }

    /// Takes over a whole architectural state.
    pub(crate) fn load_state(&mut self, state: &State) {
        self.registers = [0; REGISTERS];
        self.registers[..16].copy_from_slice(&state.gpr);
        self.registers[usize::from(RIP)] = state.rip;
        self.set_rflags(state.rflags);
        let s = &state.segments;
        self.segments = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs];
        (self.ldtr, self.tr, self.gdtr, self.idtr) = (s.ldtr, s.tr, state.gdtr, state.idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        (self.breakpoints, self.dr6, self.dr7) = (state.breakpoints, state.dr6, state.dr7);
        (self.xcr0, self.mxcsr, self.ymm) = (state.xcr0, state.mxcsr, state.ymm);
        self.msrs = state.msrs.clone();
        self.x87 = state.x87.clone();
        self.activity = state.activity;
        self.mmu.flush_all();
        self.cpl = state.cpl();
        self.debug_pending = 0;
        self.update_mode();
        self.update_debug();
        (self.slow, self.interrupts_wait) = (true, true);
    }

    /// The whole architectural state.
    pub(crate) fn save_state(&self) -> State {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.registers[..16]);
        let mut state = State {
            gpr,
            rip: self.rip(),
            rflags: self.rflags(),
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            breakpoints: self.breakpoints,
            dr6: self.dr6,
            dr7: self.dr7,
            xcr0: self.xcr0,
            msrs: self.msrs.clone(),
            x87: self.x87.clone(),
            ymm: self.ymm,
            mxcsr: self.mxcsr,
            activity: self.activity,
            segments: posada_vcpu::x86::Segments::default(),
        };
        let [es, cs, ss, ds, fs, gs] = self.segments;
        state.segments = posada_vcpu::x86::Segments { es, cs, ss, ds, fs, gs, ldtr: self.ldtr, tr: self.tr };
        state
    }

    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.registers[usize::from(RIP)]
    }

    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        self.registers[usize::from(RIP)] = rip;
    }

    /// A register operand.
    #[inline(always)]
    pub(crate) fn reg<T: Int>(&self, number: u8) -> T {
        T::get(&self.registers, number)
    }

    /// Writes a register operand: 32 bits clear the upper half, fewer leave the rest.
    #[inline(always)]
    pub(crate) fn set_reg<T: Int>(&mut self, number: u8, value: T) {
        T::set(&mut self.registers, number, value);
    }

    /// All of `rflags`.
    pub(crate) fn rflags(&self) -> u64 {
        self.system_flags | self.flags.bits()
    }

    /// Sets all of `rflags` that exists, without any privilege check, and what follows from it.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        const SYSTEM: u64 = rflags::TF
            | rflags::IF
            | rflags::DF
            | rflags::IOPL
            | rflags::NT
            | rflags::RF
            | rflags::VM
            | rflags::AC
            | rflags::VIF
            | rflags::VIP
            | rflags::ID;
        self.flags.set(value);
        self.set_system_flags(value & SYSTEM | rflags::FIXED);
    }

    /// Sets the flags that are not arithmetic, and what follows from them.
    pub(crate) fn set_system_flags(&mut self, value: u64) {
        let changed = self.system_flags ^ value;
        self.system_flags = value;
        // An interrupt may wait for IF; a trap for TF.
        let set = changed & value;
        self.slow |= set & (rflags::TF | rflags::RF) != 0 || set & rflags::IF != 0 && self.interrupts_wait;
        if changed & (rflags::AC | rflags::VM) != 0 {
            self.update_access();
        }
    }

    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    pub(crate) fn v8086(&self) -> bool {
        self.system_flags & rflags::VM != 0
    }

    /// Protected mode and not virtual-8086 mode: selectors name descriptors.
    pub(crate) fn uses_descriptors(&self) -> bool {
        self.protected() && !self.v8086()
    }

    pub(crate) fn long_active(&self) -> bool {
        self.msrs.efer & efer::LMA != 0
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.system_flags >> 12 & 3) as u8
    }

    /// Works out again all that depends on the mode: to be called after any change of `cr0`, `cr4`, EFER, CPL or
    /// `rflags.VM`, or of a segment register, followed by [`crate::op::Stop::Leave`].
    pub(crate) fn update_mode(&mut self) {
        let cs = self.segments[usize::from(segment::CS)];
        self.long64 = self.long_active() && cs.long();
        self.mode = if self.long64 { Mode { code_bits: 64, stack_bits: 64 } } else { self.legacy_mode() };
        self.linear_mask = if self.long64 { u64::MAX } else { 0xffff_ffff };
        self.sse_off = self.cr0 & (cr0::EM | cr0::TS) != 0 || self.cr4 & cr4::OSFXSR == 0;
        for number in 0..6 {
            self.update_view(number);
        }
        self.update_access();
    }

    /// Works out again all that depends on `cs`, `ss` and CPL: after a change of these alone.
    #[inline]
    pub(crate) fn update_code(&mut self) {
        let long64 = self.long_active() && self.segments[usize::from(segment::CS)].long();
        if long64 != self.long64 {
            // All segments have another meaning.
            return self.update_mode();
        }
        if !long64 {
            self.mode = self.legacy_mode();
            self.update_view(segment::CS);
            self.update_view(segment::SS);
        }
        self.update_access();
    }

    /// How code is decoded outside 64-bit mode.
    fn legacy_mode(&self) -> Mode {
        let bits = |number: u8| if self.segments[usize::from(number)].db() { 32 } else { 16 };
        Mode { code_bits: bits(segment::CS), stack_bits: bits(segment::SS) }
    }

    /// Works out again what accesses through one segment register need.
    pub(crate) fn update_view(&mut self, number: u8) {
        let s = &self.segments[usize::from(number)];
        let view = if self.long64 {
            let based = matches!(number, segment::FS | segment::GS);
            SegmentView { base: if based { s.base } else { 0 }, check: 0 }
        } else {
            let (code, bit1) = (s.kind() & 8 != 0, s.kind() & 2 != 0);
            let flat = s.present() && s.limit == u32::MAX && (code || s.kind() & 4 == 0);
            let readable = flat && (!code || bit1);
            let writable = flat && !code && bit1;
            SegmentView { base: s.base, check: u8::from(!readable) | u8::from(!writable) << 1 }
        };
        self.views[usize::from(number)] = view;
    }

    /// Works out again whose rights memory accesses have: after a change of CPL, `cr0`, `cr4` or `rflags.AC`.
    pub(crate) fn update_access(&mut self) {
        let user = self.cpl == 3;
        let smap = self.cr4 & cr4::SMAP != 0 && self.system_flags & rflags::AC == 0;
        self.mmu.set_access(user, smap);
        let alignment = self.cr0 & cr0::AM != 0 && self.system_flags & rflags::AC != 0 && user;
        self.mmu.set_alignment_check(alignment);
    }

    /// The time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.connections.clock.tsc().wrapping_add(self.msrs.tsc_offset)
    }
}
