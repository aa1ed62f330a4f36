//! What tests of privileged instructions need besides a [`Guest`]: descriptor tables, a task, and a handler for
//! each vector that halts, so that where the guest ends says what was delivered.

use posada_memory::Value;
use posada_vcpu::x86::{Segment, State, Table, cr0, efer};
use posada_vcpu::{Exit, Vcpu};

use super::descriptor::kind;
use crate::op::Stop;
use crate::testing::{Guest, Outcome};

pub(super) const GDT: u64 = 0x1_0000;
pub(super) const IDT: u64 = 0x1_1000;
pub(super) const TSS: u64 = 0x1_2000;
pub(super) const OTHER_TSS: u64 = 0x1_3000;
pub(super) const LDT: u64 = 0x1_4000;
/// Handlers are [`HANDLER_SIZE`] bytes apart. In real mode: at `0x2000:0`.
pub(super) const HANDLERS: u64 = 0x2_0000;
pub(super) const HANDLER_SIZE: u64 = 16;
/// Tops of the stacks in the TSS.
pub(super) const STACK0: u64 = 0x3_0000;
pub(super) const STACK1: u64 = 0x3_1000;
pub(super) const IST1: u64 = 0x3_2000;
pub(super) const IST2: u64 = 0x3_3000;

// Selectors. `CODE` and `DATA` are what guests begin with at privilege level 0; `CODE` is of the guest's size.
pub(super) const CODE64: u16 = 0x08;
pub(super) const CODE: u16 = 0x10;
pub(super) const DATA: u16 = 0x18;
pub(super) const CODE32: u16 = 0x20;
pub(super) const CODE16: u16 = 0x28;
pub(super) const DATA16: u16 = 0x30;
pub(super) const USER_CODE32: u16 = 0x3b;
pub(super) const USER_DATA: u16 = 0x43;
pub(super) const USER_CODE64: u16 = 0x4b;
pub(super) const CONFORMING32: u16 = 0x50;
pub(super) const CODE32_1: u16 = 0x59;
pub(super) const DATA_1: u16 = 0x61;
pub(super) const ABSENT: u16 = 0x68;
pub(super) const TASK: u16 = 0x70;
pub(super) const OTHER_TASK: u16 = 0x80;
pub(super) const LOCAL_TABLE: u16 = 0x90;
/// Free for tests: 16 bytes.
pub(super) const FREE: u16 = 0xa0;
const GDT_LIMIT: u16 = 0xff;

/// A descriptor; `limit` counts what its granularity says, `rights` are those of [`Segment::attributes`].
pub(super) fn descriptor(base: u64, limit: u32, rights: u16) -> u64 {
    let (limit, rights) = (u64::from(limit), u64::from(rights));
    let rights = rights | (limit >> 16 & 0xf) << 8;
    limit & 0xffff | (base & 0xff_ffff) << 16 | rights << 40 | (base >> 24 & 0xff) << 56
}

/// The lower 8 bytes of a gate of system type `kind`, present.
pub(super) fn gate(kind: u8, dpl: u8, selector: u16, offset: u64) -> u64 {
    let rights = u64::from(0x80 | dpl << 5 | kind);
    offset & 0xffff | u64::from(selector) << 16 | rights << 40 | (offset >> 16 & 0xffff) << 48
}

/// Where the handler of `vector` begins.
pub(super) fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * HANDLER_SIZE
}

fn is_long(state: &State) -> bool {
    state.msrs.efer & efer::LMA != 0
}

impl Guest {
    /// A value in memory.
    pub(super) fn store<T: Value>(self, address: u64, value: T) -> Self {
        self.connections.ram.store(address as usize, value);
        self
    }

    /// Descriptor tables, a TSS, and a handler for every vector: through interrupt gates of the guest's size to
    /// privilege level 0, which no program may use by `int n`; the vector table in real mode.
    pub(super) fn with_system(mut self) -> Self {
        for vector in 0..=255 {
            self = self.memory(handler(vector), &[0xf4]);
        }
        self.state.idtr = Table { base: IDT, limit: 0xfff };
        if self.state.cr0 & cr0::PE == 0 {
            for vector in 0..=255_u8 {
                let offset = u64::from(vector) * HANDLER_SIZE;
                self = self.store(IDT + u64::from(vector) * 4, 0x2000_0000 | offset as u32);
            }
            return self;
        }
        let long = is_long(&self.state);
        let own = if long { 0xa09b } else { self.state.segments.cs.attributes & 0xff9f };
        let (own, own_limit) = if self.state.rflags & 1 << 17 != 0 {
            (0xc09b, 0xf_ffff)
        } else {
            (own, if own & Segment::G != 0 { 0xf_ffff } else { 0xffff })
        };
        let task = if long || own & Segment::DB != 0 { kind::TSS } else { kind::TSS16 };
        let table = [
            (CODE64, descriptor(0, 0xf_ffff, 0xa09b)),
            (CODE, descriptor(0, own_limit, own)),
            (DATA, descriptor(0, 0xf_ffff, 0xc093)),
            (CODE32, descriptor(0, 0xf_ffff, 0xc09b)),
            (CODE16, descriptor(0, 0xffff, 0x9b)),
            (DATA16, descriptor(0, 0xffff, 0x93)),
            (USER_CODE32, descriptor(0, 0xf_ffff, 0xc0fb)),
            (USER_DATA, descriptor(0, 0xf_ffff, 0xc0f3)),
            (USER_CODE64, descriptor(0, 0xf_ffff, 0xa0fb)),
            (CONFORMING32, descriptor(0, 0xf_ffff, 0xc09f)),
            (CODE32_1, descriptor(0, 0xf_ffff, 0xc0bb)),
            (DATA_1, descriptor(0, 0xf_ffff, 0xc0b3)),
            (ABSENT, descriptor(0, 0xf_ffff, 0xc013)),
            (TASK, descriptor(TSS, 0x67, u16::from(0x80 | task | kind::BUSY))),
            (OTHER_TASK, descriptor(OTHER_TSS, 0x67, u16::from(0x80 | task))),
            (LOCAL_TABLE, descriptor(LDT, 0x1f, u16::from(0x80 | kind::LDT))),
        ];
        for (selector, raw) in table {
            self = self.descriptor(selector, raw);
        }
        self.state.gdtr = Table { base: GDT, limit: GDT_LIMIT };
        self.state.segments.tr = Segment::from_descriptor(TASK, table[13].1);
        for vector in 0..=255 {
            self = self.gate(vector, if task == kind::TSS { kind::INTERRUPT_GATE } else { 6 }, 0, CODE);
        }
        if long {
            for (at, pointer) in [(4, STACK0), (12, STACK1), (0x24, IST1), (0x2c, IST2)] {
                self = self.store(TSS + at, pointer);
            }
        } else {
            for (at, (pointer, selector)) in [(4, (STACK0, DATA)), (12, (STACK1, DATA_1))] {
                self = self.store(TSS + at, pointer as u32).store(TSS + at + 4, u32::from(selector));
            }
        }
        self
    }

    /// Puts a descriptor into the global table.
    pub(super) fn descriptor(self, selector: u16, raw: u64) -> Self {
        self.store(GDT + u64::from(selector & !7), raw)
    }

    /// The gate of `vector` to its handler in a code segment. In long mode with IST `selector >> 16`: none.
    pub(super) fn gate(self, vector: u8, kind: u8, dpl: u8, selector: u16) -> Self {
        let raw = gate(kind, dpl, selector, handler(vector));
        self.raw_gate(vector, raw)
    }

    /// As [`gate`](Self::gate), on one of the interrupt stacks of long mode.
    pub(super) fn gate_on(self, vector: u8, ist: u64) -> Self {
        let raw = gate(kind::INTERRUPT_GATE, 0, CODE, handler(vector)) | ist << 32;
        self.raw_gate(vector, raw)
    }

    /// The lower 8 bytes of the gate of `vector`; the upper ones are clear.
    pub(super) fn raw_gate(self, vector: u8, raw: u64) -> Self {
        let vector = u64::from(vector);
        if is_long(&self.state) {
            self.store(IDT + vector * 16, raw).store(IDT + vector * 16 + 8, 0_u64)
        } else {
            self.store(IDT + vector * 8, raw)
        }
    }

    /// Carries out so many instructions, or up to the first fault, which is not delivered.
    pub(super) fn steps(self, count: u32) -> Outcome {
        let mut interpreter = self.interpreter();
        let faulted = (0..count).any(|_| interpreter.single_step() == Err(Stop::Fault));
        let fault = faulted.then(|| interpreter.core().fault);
        Outcome { state: interpreter.state(), fault, exit: None, ram: self.connections.ram, interpreter }
    }

    /// Begins at privilege level 3, in code of the guest's size.
    pub(super) fn at_user_level(mut self) -> Self {
        let long = self.state.segments.cs.long();
        let code = if long { Segment::flat_code64(USER_CODE64) } else { Segment::flat_code32(USER_CODE32) };
        let user = |s: Segment| Segment { attributes: s.attributes | 3 << 5, ..s };
        self.state.segments.set_flat(user(code), user(Segment::flat_data(USER_DATA)));
        self
    }
}

impl Outcome {
    /// The vector whose handler the guest has halted in.
    pub(super) fn delivered(&self) -> Option<u8> {
        let at = if self.state.cr0 & cr0::PE == 0 {
            self.state.segments.cs.base + self.state.rip
        } else {
            self.state.rip
        };
        let into = at.wrapping_sub(HANDLERS + 1);
        let halted = self.exit == Some(Exit::Halted) && into < 256 * HANDLER_SIZE;
        (halted && into % HANDLER_SIZE == 0).then_some((into / HANDLER_SIZE) as u8)
    }

    /// The stack from its top on: `N` values of one size.
    pub(super) fn stack<T: Value + Into<u64>, const N: usize>(&self) -> [u64; N] {
        let top = self.state.segments.ss.base + self.state.gpr[4];
        std::array::from_fn(|n| self.load::<T>(top + (n * size_of::<T>()) as u64).into())
    }
}
