//! Delivery of exceptions and interrupts (AMD APM volume 2, chapter 8), and the instructions that cause or
//! prevent them.

use std::fmt;

use iced_x86::{Instruction, Mnemonic};
use posada_vcpu::x86::{Running, Segment, rflags};

use super::descriptor::{Descriptor, is_null, kind, name};
use super::stack::{Stack, null_stack_segment};
use super::task::Cause;
use crate::core::{Core, segment};
use crate::exception::{Exception, vector};
use crate::int::Int;
use crate::op::{Op, Run, Step, Stop};

/// What is delivered.
#[derive(Clone, Copy, Debug)]
struct Event {
    vector: u8,
    /// Error code, for the exceptions that push one.
    error: Option<u32>,
    origin: Origin,
    /// Length of the instruction that asked for it, 0 if none did.
    len: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// An exception. `rip` is where it shall be pushed from.
    Exception,
    /// From outside the processor.
    External,
    /// `int n`, `int3`, `into`: the gate's privilege level counts.
    Software,
    /// `int1`: as `Software`, but any program may.
    Privileged,
}

impl Event {
    fn exception(exception: Exception) -> Self {
        Self { vector: exception.vector, error: exception.error, origin: Origin::Exception, len: 0 }
    }

    fn external(vector: u8) -> Self {
        Self { vector, error: None, origin: Origin::External, len: 0 }
    }

    /// Bit 0 of the error code of a fault during delivery: the program has not asked for this event.
    fn ext(&self) -> u16 {
        u16::from(self.origin != Origin::Software)
    }

    fn class(&self) -> Class {
        match self.vector {
            _ if self.origin != Origin::Exception => Class::Benign,
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }

    /// A fault, after which the same instruction is tried again: not a trap.
    fn is_fault(&self) -> bool {
        self.origin == Origin::Exception && !matches!(self.vector, vector::DB | vector::BP | vector::OF)
    }
}

/// By its mnemonic, with the error code in hexadecimal: `#PF(2)`.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "DE", "DB", "NMI", "BP", "OF", "BR", "UD", "NM", "DF", "9", "TS", "NP", "SS", "GP", "PF", "15",
            "MF", "AC", "MC", "XM",
        ];
        let name = NAMES.get(usize::from(self.vector));
        match (name, self.error) {
            (Some(name), Some(error)) if self.origin == Origin::Exception => write!(f, "#{name}({error:x})"),
            (Some(name), None) if self.origin == Origin::Exception => write!(f, "#{name}"),
            _ => write!(f, "interrupt {:#04x}", self.vector),
        }
    }
}

/// What becomes of an exception during the delivery of another one (AMD APM volume 2, section 8.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Core {
    /// Delivers [`Core::fault`], with double and triple faults. The instruction pointer is where the exception
    /// is to be reported: at the faulting instruction, or after it in the case of a trap.
    pub(crate) fn deliver_fault(&mut self) {
        self.counts.faults += 1;
        if self.fault.vector == vector::PF {
            self.cr2 = self.fault.address;
        }
        self.deliver_at_all_costs(Event::exception(self.fault));
    }

    /// Delivers a maskable interrupt from outside.
    pub(crate) fn deliver_external(&mut self, vector: u8) {
        self.counts.interrupts += 1;
        self.activity.running = Running::Running;
        self.deliver_at_all_costs(Event::external(vector));
    }

    /// Delivers the pending non-maskable interrupt, and blocks others until `iret`.
    pub(crate) fn deliver_nmi(&mut self) {
        self.activity.running = Running::Running;
        self.activity.nmi_pending = false;
        self.activity.nmi_blocked = true;
        self.deliver_at_all_costs(Event::external(vector::NMI));
    }

    /// Delivers an event, or the exception that comes of trying, or the double fault that comes of that; or
    /// shuts down.
    fn deliver_at_all_costs(&mut self, mut event: Event) {
        self.trace(&event);
        while self.deliver(&event).is_err() {
            let next = Event::exception(self.fault);
            if next.vector == vector::PF {
                self.cr2 = self.fault.address;
            }
            event = match (event.class(), next.class()) {
                (Class::DoubleFault, Class::Contributory | Class::PageFault) => return self.shut_down(),
                (Class::Contributory, Class::Contributory)
                | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                    Event { vector: vector::DF, error: Some(0), origin: Origin::Exception, len: 0 }
                }
                _ => next,
            };
            self.trace(&event);
        }
    }

    /// Shows those who study a guest what happens to it.
    fn trace(&self, event: &Event) {
        let cs = self.segments[usize::from(segment::CS)].selector;
        tracing::trace!(target: "cpu", cpu = self.connections.index, "{event} at {cs:04x}:{:x}", self.rip());
        if event.class() == Class::PageFault {
            tracing::trace!(target: "cpu", cpu = self.connections.index, "cr2 {:x}", self.cr2);
        }
    }

    #[cold]
    fn shut_down(&mut self) {
        tracing::trace!(target: "cpu", cpu = self.connections.index, "shutdown");
        self.activity.running = Running::Shutdown;
        self.slow = true;
    }

    /// One attempt at delivery; after a fault nothing has changed (unless it was in a new task already).
    #[inline]
    fn deliver(&mut self, event: &Event) -> Step {
        if self.long_active() {
            self.as_supervisor(|core| core.deliver_long(event))
        } else if self.protected() {
            self.as_supervisor(|core| core.deliver_protected(event))
        } else {
            self.deliver_real(event)
        }
    }

    /// The flags as they are pushed: faults set RF, so that an instruction breakpoint does not hit again when
    /// the instruction is tried again.
    fn flags_image(&self, event: &Event) -> u64 {
        self.rflags() | if event.is_fault() { rflags::RF } else { 0 }
    }

    /// Through the interrupt vector table of real mode.
    fn deliver_real(&mut self, event: &Event) -> Step {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(at as u16 | 2 | event.ext()));
        }
        let entry: u32 = self.read_system(self.idtr.base.wrapping_add(at))?;
        let (selector, offset) = ((entry >> 16) as u16, entry & 0xffff);
        let mut stack = self.current_stack(0);
        let cs = u64::from(self.segments[usize::from(segment::CS)].selector);
        self.push_frame::<u16>(&mut stack, &[self.rflags(), cs, self.rip()])?;
        self.set_stack_pointer(stack.pointer);
        let flags = self.system_flags & !(rflags::IF | rflags::TF | rflags::RF | rflags::AC);
        self.set_system_flags(flags);
        self.set_real_code(selector, u64::from(offset));
        Ok(())
    }

    /// The code segment that a gate leads to: it must be code, as privileged as the current code or more so.
    #[inline]
    fn gate_code(&mut self, selector: u16, ext: u16) -> Step<Descriptor> {
        if is_null(selector) {
            return Err(self.gp(ext));
        }
        let code = self.descriptor_or_gp(selector, ext)?;
        if !code.is_code() || code.dpl() > self.cpl {
            return Err(self.gp(name(selector) | ext));
        }
        if !code.present() {
            return Err(self.np(name(selector) | ext));
        }
        Ok(code)
    }

    /// Through a gate of the interrupt descriptor table outside long mode.
    fn deliver_protected(&mut self, event: &Event) -> Step {
        let ext = event.ext();
        let at = u64::from(event.vector) * 8;
        let error = at as u16 | 2 | ext;
        if at + 7 > u64::from(self.idtr.limit) {
            return Err(self.gp(error));
        }
        let at = self.idtr.base.wrapping_add(at);
        let gate = Descriptor { selector: error, raw: self.read_system(at)?, at };
        let wide = match gate.kind() {
            kind::INTERRUPT_GATE | kind::TRAP_GATE => true,
            kind::INTERRUPT_GATE16 | kind::TRAP_GATE16 | kind::TASK_GATE => false,
            _ => return Err(self.gp(error)),
        };
        if event.origin == Origin::Software && gate.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.np(error));
        }
        if gate.kind() == kind::TASK_GATE {
            return self.deliver_to_task(event, gate.gate_selector());
        }
        let code = self.gate_code(gate.gate_selector(), ext)?;
        let inner = !code.is_conforming() && code.dpl() < self.cpl;
        if self.v8086() && (!inner || code.dpl() != 0) {
            return Err(self.gp(name(code.selector) | ext));
        }
        if gate.gate_offset() > u64::from(code.segment().limit) {
            return Err(self.gp(ext));
        }
        let cpl = if inner { code.dpl() } else { self.cpl };
        let mut stack = if inner { self.inner_stack(cpl, ext)? } else { self.current_stack(ext) };
        self.mark_accessed(&code)?;
        if wide {
            self.push_interrupt_frame::<u32>(&mut stack, event, inner)?;
        } else {
            self.push_interrupt_frame::<u16>(&mut stack, event, inner)?;
        }
        // Nothing can fail from here.
        if self.v8086() {
            for number in [segment::ES, segment::DS, segment::FS, segment::GS] {
                self.segments[usize::from(number)] = Segment::default();
                self.update_view(number);
            }
        }
        let trap = matches!(gate.kind(), kind::TRAP_GATE | kind::TRAP_GATE16);
        self.enter_handler(trap);
        if inner {
            self.segments[usize::from(segment::SS)] = stack.segment;
        }
        self.set_code(code.segment(), cpl, gate.gate_offset());
        self.set_stack_pointer(stack.pointer);
        Ok(())
    }

    /// Pushes what a handler finds on its stack outside long mode.
    fn push_interrupt_frame<T: Int>(&mut self, stack: &mut Stack, event: &Event, inner: bool) -> Step {
        let selector = |number: u8| u64::from(self.segments[usize::from(number)].selector);
        let mut frame = [0; 10];
        let mut len = 0;
        let mut add = |values: &[u64]| {
            frame[len..len + values.len()].copy_from_slice(values);
            len += values.len();
        };
        if self.v8086() {
            add(&[segment::GS, segment::FS, segment::DS, segment::ES].map(selector));
        }
        if inner {
            add(&[selector(segment::SS), self.registers[4]]);
        }
        add(&[self.flags_image(event), selector(segment::CS), self.rip()]);
        if let Some(error) = event.error {
            add(&[u64::from(error)]);
        }
        self.push_frame::<T>(stack, &frame[..len])
    }

    /// The flags with which a handler begins.
    #[inline]
    fn enter_handler(&mut self, trap: bool) {
        let clear = rflags::TF | rflags::NT | rflags::RF | rflags::VM | if trap { 0 } else { rflags::IF };
        self.set_system_flags(self.system_flags & !clear);
    }

    /// Through a gate of long mode (AMD APM volume 2, section 8.9).
    fn deliver_long(&mut self, event: &Event) -> Step {
        let ext = event.ext();
        let at = u64::from(event.vector) * 16;
        let error = (u16::from(event.vector) * 8) | 2 | ext;
        if at + 15 > u64::from(self.idtr.limit) {
            return Err(self.gp(error));
        }
        let at = self.idtr.base.wrapping_add(at);
        let gate = Descriptor { selector: error, raw: self.read_system(at)?, at };
        let trap = match gate.kind() {
            kind::INTERRUPT_GATE => false,
            kind::TRAP_GATE => true,
            _ => return Err(self.gp(error)),
        };
        if event.origin == Origin::Software && gate.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.np(error));
        }
        let high: u64 = self.read_system(at.wrapping_add(8))?;
        let target = gate.gate_offset() | high << 32;
        let code = self.gate_code(gate.gate_selector(), ext)?;
        let segment = code.segment();
        if !segment.long() || segment.db() {
            return Err(self.gp(name(code.selector) | ext));
        }
        if !Self::is_canonical(target) {
            return Err(self.gp(ext));
        }
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        let inner = cpl != self.cpl;
        let old_pointer = if self.long64 { self.registers[4] } else { self.registers[4] & 0xffff_ffff };
        let pointer = match (gate.raw >> 32) & 7 {
            0 if !inner => old_pointer,
            0 => self.tss_stack_pointer(4 + u64::from(cpl) * 8, ext)?,
            ist => self.tss_stack_pointer(0x1c + ist * 8, ext)?,
        };
        let old = &self.segments[usize::from(segment::SS)];
        let (old_selector, new) = (old.selector, if inner { null_stack_segment(cpl) } else { *old });
        let mut stack = Stack::long(new, pointer & !0xf, ext);
        let cs = u64::from(self.segments[usize::from(segment::CS)].selector);
        let frame = [
            u64::from(old_selector),
            old_pointer,
            self.flags_image(event),
            cs,
            self.rip(),
            u64::from(event.error.unwrap_or(0)),
        ];
        let len = if event.error.is_some() { 6 } else { 5 };
        self.mark_accessed(&code)?;
        self.push_frame::<u64>(&mut stack, &frame[..len])?;
        // Nothing can fail from here.
        self.enter_handler(trap);
        self.segments[usize::from(segment::SS)] = stack.segment;
        self.registers[4] = stack.pointer;
        self.set_code(segment, cpl, target);
        Ok(())
    }

    /// Through a task gate.
    #[cold]
    fn deliver_to_task(&mut self, event: &Event, selector: u16) -> Step {
        let ext = event.ext();
        if is_null(selector) || selector & 4 != 0 {
            return Err(self.gp(name(selector) | ext));
        }
        let tss = self.descriptor_or_gp(selector, ext)?;
        if !matches!(tss.kind(), kind::TSS | kind::TSS16) {
            return Err(self.gp(name(selector) | ext));
        }
        if !tss.present() {
            return Err(self.np(name(selector) | ext));
        }
        let fault = event.is_fault();
        self.switch_task(&tss, Cause::Interrupt { error: event.error, fault, ext }, event.len)
    }

    /// An interrupt that an instruction asks for.
    fn software_interrupt(&mut self, vector: u8, origin: Origin, op: &Op) -> Step {
        self.deliver(&Event { vector, error: None, origin, len: op.len })?;
        self.entered = true;
        Ok(())
    }
}

fn int(core: &mut Core, op: &Op) -> Step {
    if core.v8086() && core.iopl() < 3 {
        return Err(core.gp(0));
    }
    core.software_interrupt(op.imm as u8, Origin::Software, op)
}

fn int3(core: &mut Core, op: &Op) -> Step {
    core.software_interrupt(vector::BP, Origin::Software, op)
}

fn int1(core: &mut Core, op: &Op) -> Step {
    core.software_interrupt(vector::DB, Origin::Privileged, op)
}

fn into(core: &mut Core, op: &Op) -> Step {
    if core.flags.of() { core.software_interrupt(vector::OF, Origin::Software, op) } else { Ok(()) }
}

/// Whether the program may change the interrupt flag.
fn may_mask(core: &mut Core) -> Step {
    if core.protected() && core.cpl > core.iopl() { Err(core.gp(0)) } else { Ok(()) }
}

fn cli(core: &mut Core, _: &Op) -> Step {
    may_mask(core)?;
    core.set_system_flags(core.system_flags & !rflags::IF);
    Ok(())
}

fn sti(core: &mut Core, _: &Op) -> Step {
    may_mask(core)?;
    if core.system_flags & rflags::IF != 0 {
        return Ok(());
    }
    core.set_system_flags(core.system_flags | rflags::IF);
    core.activity.sti_shadow = true;
    core.slow = true;
    Err(Stop::Leave)
}

fn hlt(core: &mut Core, _: &Op) -> Step {
    if core.cpl != 0 {
        return Err(core.gp(0));
    }
    core.activity.running = Running::Halted;
    core.slow = true;
    Err(Stop::Leave)
}

fn bound<T: Int>(core: &mut Core, op: &Op) -> Step {
    let offset = op.address(core);
    let lower = core.read::<T>(op.segment, offset)?;
    let wrap = u64::MAX >> op.address_shift;
    let upper = core.read::<T>(op.segment, offset.wrapping_add(T::BYTES) & wrap)?;
    let index = core.reg::<T>(op.dst).sext() as i64;
    if index < lower.sext() as i64 || index > upper.sext() as i64 {
        return Err(core.raise(vector::BR, None));
    }
    Ok(())
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.mnemonic() {
        Mnemonic::Int => int,
        Mnemonic::Int3 => int3,
        Mnemonic::Int1 => int1,
        Mnemonic::Into => into,
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Hlt => hlt,
        Mnemonic::Bound if i.op0_register().size() == 2 => bound::<u16>,
        Mnemonic::Bound => bound::<u32>,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    match i.mnemonic() {
        Mnemonic::Int => op.imm = u64::from(i.immediate8()),
        Mnemonic::Bound => op.dst = crate::op::register_number(i.op0_register()),
        _ => {}
    }
    Some(op)
}

#[cfg(test)]
#[path = "interrupt_test.rs"]
mod tests;
