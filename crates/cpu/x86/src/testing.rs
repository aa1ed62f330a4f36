//! Small guests for unit tests: a few instructions in one of the processor's modes, carried out one at a time up
//! to the end of the code, the first fault, or `hlt`.
//!
//! ```ignore
//! let outcome = Guest::long().code(|a| a.add(rax, rbx)).reg(RAX, 1).reg(RBX, 2).run();
//! assert_eq!(outcome.reg(RAX), 3);
//! ```
//!
//! RAM is 16 MiB from address 0. Code lies at [`CODE`], the stack ends at [`STACK`], and [`DATA`] up to the end
//! of RAM is free to use. Where there is paging, linear addresses are physical ones (2 MiB pages for the first
//! GiB, all writable, all the user's in the user modes). There is no descriptor table unless the test makes one.

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use posada_memory::{Gpa, GuestRam, Value};
use posada_vcpu::x86::{Running, Segment, State, gpr, rflags};
use posada_vcpu::{Attention, Bus, Clock, Connections, Exit, Interrupts, NoInterrupts, Vcpu};

use crate::exception::Exception;
use crate::op::Stop;
use crate::{Interpreter, Model};

pub(crate) const CODE: u64 = 0x8000;
pub(crate) const STACK: u64 = 0x7000;
pub(crate) const DATA: u64 = 0xa000;
const TABLES: u64 = 0x1000;
const RAM: u64 = 16 << 20;
/// A guest that has not ended after so many instructions hangs.
const PATIENCE: u32 = 1_000_000;

/// A host with nothing of its own.
struct NoHost;
impl crate::Native for NoHost {
    fn carry_out(&mut self, code: crate::NativeCode, _: &mut crate::NativeOperands<'_>) -> bool {
        unreachable!("no test of the interpreter's own has {code:?}")
    }
}

/// A board with nothing on it.
struct NoBus;
impl Bus for NoBus {}

/// A guest to be.
pub(crate) struct Guest {
    pub state: State,
    pub connections: Connections,
    pub model: Model,
    bits: u32,
    length: u64,
}

/// What became of it.
pub(crate) struct Outcome {
    pub state: State,
    /// The fault that ended it. It was not delivered: the state is the one before the faulting instruction.
    pub fault: Option<Exception>,
    /// What the interpreter asked its caller for, if that ended it.
    pub exit: Option<Exit>,
    pub ram: GuestRam,
    pub interpreter: Interpreter,
}

impl Guest {
    fn new(bits: u32, mut state: State) -> Self {
        state.gpr[gpr::RDX] = 0;
        state.gpr[gpr::RSP] = STACK;
        state.rip = CODE;
        let ram = GuestRam::new(&[(Gpa(0), RAM)]).expect("16 MiB can be had");
        let connections = Connections {
            index: 0,
            count: 1,
            ram,
            bus: Arc::new(NoBus),
            interrupts: Arc::new(NoInterrupts),
            attention: Arc::new(Attention::default()),
            clock: Arc::new(Clock::new()),
        };
        let model = Model::named("x86-64-v2").expect("a listed model exists");
        Self { state, connections, model, bits, length: 0 }
    }

    /// Real mode, all segments at 0.
    pub(crate) fn real() -> Self {
        let mut state = State::reset();
        state.segments.cs = Segment { attributes: 0x9b, ..Segment::real_mode(0) };
        Self::new(16, state)
    }

    /// Virtual-8086 mode at IOPL 3, all segments at 0, no paging.
    pub(crate) fn v8086() -> Self {
        let mut state = State::protected_mode(0);
        state.rflags |= rflags::VM | rflags::IOPL;
        let segment = Segment { attributes: 0xf3, ..Segment::real_mode(0) };
        state.segments.set_flat(segment, segment);
        Self::new(16, state)
    }

    /// Flat 32-bit protected mode at CPL 0, no paging.
    pub(crate) fn protected() -> Self {
        Self::new(32, State::protected_mode(0))
    }

    /// Flat 16-bit protected mode at CPL 0, no paging, a 16-bit stack.
    pub(crate) fn protected16() -> Self {
        let mut state = State::protected_mode(0);
        for segment in state.segments.data_mut() {
            segment.attributes &= !Segment::DB;
        }
        state.segments.cs.attributes &= !Segment::DB;
        Self::new(16, state)
    }

    /// 64-bit mode at CPL 0.
    pub(crate) fn long() -> Self {
        Self::paged(64, 0)
    }

    /// 64-bit mode at CPL 3.
    pub(crate) fn user() -> Self {
        Self::paged(64, 3)
    }

    /// Compatibility mode (32-bit) at CPL 3.
    pub(crate) fn user32() -> Self {
        Self::paged(32, 3)
    }

    fn paged(bits: u32, cpl: u16) -> Self {
        let mut guest = Self::new(bits, State::long_mode(0, TABLES));
        let s = &mut guest.state.segments;
        for segment in s.data_mut() {
            segment.attributes |= cpl << 5;
            segment.selector |= cpl;
        }
        s.cs.attributes |= cpl << 5;
        s.cs.selector |= cpl;
        if bits == 32 {
            s.cs.attributes = s.cs.attributes & !Segment::L | Segment::DB;
        }
        let user = if cpl == 3 { 4 } else { 0 };
        let mut entries = vec![(TABLES, (TABLES + 0x1000) | 7), (TABLES + 0x1000, (TABLES + 0x2000) | 7)];
        entries.extend((0..512).map(|n| (TABLES + 0x2000 + n * 8, n << 21 | 0x83 | user)));
        for (at, entry) in entries {
            guest = guest.memory(at, &entry.to_le_bytes());
        }
        guest
    }

    /// The code, as `iced-x86`'s assembler takes it.
    pub(crate) fn code(self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut assembler = CodeAssembler::new(self.bits).expect("16, 32 or 64");
        write(&mut assembler).expect("the instructions exist");
        let bytes = assembler.assemble(CODE).expect("the instructions can be encoded");
        self.bytes(&bytes)
    }

    /// The code, as bytes.
    pub(crate) fn bytes(mut self, code: &[u8]) -> Self {
        self.length = code.len() as u64;
        self.memory(CODE, code)
    }

    /// Bytes at an address of RAM.
    pub(crate) fn memory(self, address: u64, bytes: &[u8]) -> Self {
        self.connections.ram.write(Gpa(address), bytes).expect("inside RAM");
        self
    }

    /// A general-purpose register, by its number.
    pub(crate) fn reg(mut self, number: usize, value: u64) -> Self {
        self.state.gpr[number] = value;
        self
    }

    /// Flags to be set.
    pub(crate) fn flags(mut self, flags: u64) -> Self {
        self.state.rflags |= flags;
        self
    }

    /// Any other change of the state that it begins with.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut State)) -> Self {
        change(&mut self.state);
        self
    }

    /// Ports and devices.
    pub(crate) fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.connections.bus = bus;
        self
    }

    /// Interrupts.
    pub(crate) fn interrupts(mut self, interrupts: Arc<dyn Interrupts>) -> Self {
        self.connections.interrupts = interrupts;
        self
    }

    /// The interpreter about to run it, for tests that drive it themselves.
    pub(crate) fn interpreter(&self) -> Interpreter {
        let mut interpreter =
            Interpreter::with_native(self.connections.clone(), self.model.clone(), Box::new(NoHost));
        interpreter.set_state(&self.state).expect("the interpreter takes any state");
        interpreter
    }

    /// Runs it instruction by instruction. Nothing is delivered: neither faults nor interrupts.
    pub(crate) fn run(self) -> Outcome {
        let mut interpreter = self.interpreter();
        let mut fault = None;
        let end = CODE + self.length;
        for step in 0.. {
            assert!(step < PATIENCE, "the guest does not end; rip {:#x}", interpreter.core().rip());
            let core = interpreter.core();
            if core.rip() == end || core.activity.running != Running::Running || core.exit.is_some() {
                break;
            }
            if interpreter.single_step() == Err(Stop::Fault) {
                fault = Some(interpreter.core().fault);
                break;
            }
        }
        let (state, exit) = (interpreter.state(), interpreter.core().exit);
        Outcome { state, fault, exit, ram: self.connections.ram, interpreter }
    }

    /// Runs it as a board would: faults and interrupts are delivered, up to the first exit.
    pub(crate) fn run_delivering(self) -> Outcome {
        let mut interpreter = self.interpreter();
        let exit = interpreter.run().expect("the interpreter does not fail");
        let state = interpreter.state();
        Outcome { state, fault: None, exit: Some(exit), ram: self.connections.ram, interpreter }
    }
}

impl Outcome {
    /// A general-purpose register, by its number.
    pub(crate) fn reg(&self, number: usize) -> u64 {
        self.state.gpr[number]
    }

    /// Whether all of these flags are set.
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.state.rflags & flags == flags
    }

    /// A value in memory.
    pub(crate) fn load<T: Value>(&self, address: u64) -> T {
        self.ram.load(address as usize)
    }

    /// Vector and error code of the fault that ended it.
    pub(crate) fn fault(&self) -> Option<(u8, Option<u32>)> {
        self.fault.map(|fault| (fault.vector, fault.error))
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use super::*;

    #[test]
    fn a_guest_runs_to_the_end_of_its_code_in_each_mode() {
        for guest in [Guest::long(), Guest::user()] {
            let outcome = guest.code(|a| a.add(rax, rbx)).reg(gpr::RAX, 1 << 40).reg(gpr::RBX, 2).run();
            assert_eq!((outcome.reg(gpr::RAX), outcome.fault()), (1 << 40 | 2, None));
        }
        for guest in
            [Guest::real(), Guest::v8086(), Guest::protected16(), Guest::protected(), Guest::user32()]
        {
            let outcome = guest.code(|a| a.add(ax, bx)).reg(gpr::RAX, 0xffff).reg(gpr::RBX, 2).run();
            assert_eq!((outcome.reg(gpr::RAX), outcome.fault()), (1, None));
            assert!(outcome.has(rflags::CF));
        }
    }

    #[test]
    fn a_guest_stops_before_its_first_fault() {
        let outcome = Guest::user().code(|a| a.add(qword_ptr(rbx), rax)).reg(gpr::RBX, 1 << 40).run();
        assert_eq!(outcome.fault(), Some((14, Some(6))));
        assert_eq!(outcome.fault.map(|fault| fault.address), Some(1 << 40));
        assert_eq!(outcome.state.rip, CODE);
    }
}
