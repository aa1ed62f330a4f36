//! Task switches (AMD APM volume 2, chapter 12): outside long mode only.

use posada_vcpu::x86::{Segment, cr0, rflags};

use super::descriptor::{Descriptor, is_null, kind, name, rpl};
use super::segments::v8086_segment;
use crate::core::{Core, segment};
use crate::exception::vector;
use crate::mmu::Access;
use crate::op::{Step, Stop};

/// Why tasks are switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Jump,
    Call,
    /// `iret` in a nested task.
    Return,
    /// Through a task gate of the interrupt descriptor table.
    Interrupt {
        /// Pushed on the new task's stack.
        error: Option<u32>,
        /// The interrupted instruction will be tried again.
        fault: bool,
        /// Bit 0 of error codes.
        ext: u16,
    },
}

impl Cause {
    fn ext(self) -> u16 {
        if let Self::Interrupt { ext, .. } = self { ext } else { 0 }
    }

    /// The new task remembers the old one, and will return to it.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Interrupt { .. })
    }
}

/// The registers of a task, as its TSS holds them.
#[derive(Clone, Copy, Debug, Default)]
struct Task {
    cr3: u32,
    eip: u32,
    eflags: u32,
    /// `eax` to `edi`.
    general: [u32; 8],
    /// `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    selectors: [u16; 6],
    ldt: u16,
    /// Raise a debug trap when the task begins.
    trap: bool,
}

/// Where a TSS of one of the two sizes keeps what.
struct Layout {
    wide: bool,
    /// The smallest limit.
    limit: u32,
    /// Instruction pointer; flags and general-purpose registers follow, `size` bytes each.
    eip: u64,
    size: u64,
    /// The first selector; the others follow, `size` bytes each.
    selectors: u64,
    selector_count: u64,
    ldt: u64,
}

const LAYOUT16: Layout =
    Layout { wide: false, limit: 0x2b, eip: 0xe, size: 2, selectors: 0x22, selector_count: 4, ldt: 0x2a };
const LAYOUT32: Layout =
    Layout { wide: true, limit: 0x67, eip: 0x20, size: 4, selectors: 0x48, selector_count: 6, ldt: 0x60 };
/// Of a 32-bit TSS.
const CR3: u64 = 0x1c;
const TRAP: u64 = 0x64;

/// The current task's local breakpoints, in `dr7`.
const LOCAL_BREAKPOINTS: u64 = 0x155;
/// A task switch caused the debug exception, in `dr6`.
const TASK_SWITCHED: u64 = 1 << 15;

impl Layout {
    fn of(tss: &Segment) -> &'static Self {
        if tss.kind() & 8 != 0 { &LAYOUT32 } else { &LAYOUT16 }
    }
}

impl Core {
    /// Switches to the task whose TSS is `tss`: present, and busy or not as the cause demands. `len` is the
    /// length of the instruction that asks for it.
    ///
    /// A fault is either the old task's, which has not changed then, or the new task's, at its first instruction.
    pub(super) fn switch_task(&mut self, tss: &Descriptor, cause: Cause, len: u8) -> Step {
        let mut new = tss.system_segment();
        if new.limit < Layout::of(&new).limit {
            return Err(self.ts(name(tss.selector) | cause.ext()));
        }
        let task = self.as_supervisor(|core| {
            let task = core.read_task(&new)?;
            core.leave_task(tss, cause)?;
            Ok(task)
        })?;
        new.attributes |= u16::from(kind::BUSY);
        self.tr = new;
        let entered = self.enter_task(&task, cause);
        if entered == Err(Stop::Fault) {
            // Whoever reports an instruction's fault takes its length off the instruction pointer.
            self.set_rip(self.rip().wrapping_add(u64::from(len)));
        }
        entered
    }

    /// A field of a TSS, of its natural size.
    fn read_field(&mut self, at: u64, wide: bool) -> Step<u32> {
        if wide { self.read_system(at) } else { Ok(self.read_system::<u16>(at)?.into()) }
    }

    fn read_task(&mut self, tss: &Segment) -> Step<Task> {
        let layout = Layout::of(tss);
        let field = |n: u64| tss.base.wrapping_add(layout.eip + n * layout.size);
        let mut task = Task {
            eip: self.read_field(field(0), layout.wide)?,
            eflags: self.read_field(field(1), layout.wide)?,
            ldt: self.read_system(tss.base.wrapping_add(layout.ldt))?,
            ..Task::default()
        };
        for (value, n) in task.general.iter_mut().zip(2..) {
            *value = self.read_field(field(n), layout.wide)?;
        }
        for n in 0..layout.selector_count {
            let at = tss.base.wrapping_add(layout.selectors + n * layout.size);
            task.selectors[n as usize] = self.read_system(at)?;
        }
        if layout.wide {
            task.cr3 = self.read_system(tss.base.wrapping_add(CR3))?;
            task.trap = self.read_system::<u16>(tss.base.wrapping_add(TRAP))? & 1 != 0;
        }
        Ok(task)
    }

    /// Saves the old task's registers in its TSS, links the new task to it, and brings both busy flags up to
    /// date; after a fault nothing of that has happened.
    fn leave_task(&mut self, new: &Descriptor, cause: Cause) -> Step {
        let old = self.tr;
        let layout = Layout::of(&old);
        let first = old.base.wrapping_add(layout.eip);
        let old_descriptor =
            (!is_null(old.selector)).then(|| self.gdtr.base.wrapping_add(u64::from(old.selector & !7)));
        let released = old_descriptor.filter(|_| !cause.nests());
        for at in [first, old.base.wrapping_add(layout.ldt - 1)] {
            self.system_place(at, Access::Write)?;
        }
        if let Some(at) = released {
            self.system_place(at.wrapping_add(5), Access::Write)?;
        }
        self.system_place(new.at.wrapping_add(5), Access::Write)?;
        if cause.nests() {
            self.write_system(new.system_segment().base, old.selector)?;
        }
        let mut eflags = self.rflags() as u32;
        match cause {
            Cause::Return => eflags &= !(rflags::NT as u32),
            Cause::Interrupt { fault: true, .. } => eflags |= rflags::RF as u32,
            _ => {}
        }
        let mut fields = [0; 10];
        fields[..2].copy_from_slice(&[self.rip() as u32, eflags]);
        for (field, register) in fields[2..].iter_mut().zip(&self.registers[..8]) {
            *field = *register as u32;
        }
        for (n, field) in (0..).zip(fields) {
            let at = first.wrapping_add(n * layout.size);
            if layout.wide {
                self.write_system(at, field)?;
            } else {
                self.write_system(at, field as u16)?;
            }
        }
        for n in 0..layout.selector_count {
            let selector = self.segments[n as usize].selector;
            self.write_system(old.base.wrapping_add(layout.selectors + n * layout.size), selector)?;
        }
        if let Some(at) = released {
            self.change_type(at, 0, kind::BUSY)?;
        }
        self.change_type(new.at, kind::BUSY, 0)
    }

    /// Takes over a task's registers; `tr` is the task's already. Its segments are checked when all the rest is
    /// in place, so that a fault there is the new task's.
    fn enter_task(&mut self, task: &Task, cause: Cause) -> Step {
        let wide = Layout::of(&self.tr).wide;
        let ext = cause.ext();
        self.cr0 |= cr0::TS;
        self.dr7 &= !LOCAL_BREAKPOINTS;
        self.update_debug();
        self.update_debug();
        if wide && self.cr0 & cr0::PG != 0 {
            self.cr3 = u64::from(task.cr3);
            self.mmu.switch(0, false);
        }
        for (number, value) in task.general.into_iter().enumerate() {
            if wide {
                self.set_reg(number as u8, value);
            } else {
                self.set_reg(number as u8, value as u16);
            }
        }
        self.set_rip(u64::from(task.eip));
        let nested = if cause.nests() { rflags::NT } else { 0 };
        self.set_rflags(u64::from(task.eflags) | nested);
        let v8086 = self.v8086();
        self.cpl = if v8086 { 3 } else { rpl(task.selectors[1]) };
        for (segment, selector) in self.segments.iter_mut().zip(task.selectors) {
            *segment = if v8086 {
                v8086_segment(selector)
            } else {
                Segment { selector, attributes: u16::from(self.cpl) << 5, ..Segment::default() }
            };
        }
        self.ldtr = Segment { selector: task.ldt, ..Segment::default() };
        self.slow = true;
        self.update_mode();
        let loaded = self.load_task_segments(task, ext);
        self.update_mode();
        loaded?;
        if let Cause::Interrupt { error: Some(error), .. } = cause {
            let mut stack = self.current_stack(ext);
            let error = u64::from(error);
            if wide {
                self.push_frame::<u32>(&mut stack, &[error])?;
            } else {
                self.push_frame::<u16>(&mut stack, &[error])?;
            }
            self.set_stack_pointer(stack.pointer);
        }
        if self.rip() > u64::from(self.segments[usize::from(segment::CS)].limit) {
            return Err(self.gp(ext));
        }
        if task.trap {
            self.dr6 |= TASK_SWITCHED;
            return Err(self.raise(vector::DB, None));
        }
        Ok(())
    }

    fn load_task_segments(&mut self, task: &Task, ext: u16) -> Step {
        if !is_null(task.ldt) {
            let error = name(task.ldt) | ext;
            let found = if task.ldt & 4 == 0 { self.descriptor(task.ldt)? } else { None };
            let Some(ldt) = found.filter(|d| d.kind() == kind::LDT && d.present()) else {
                return Err(self.ts(error));
            };
            self.ldtr = ldt.system_segment();
        }
        if self.v8086() {
            return Ok(());
        }
        let [es, cs, ss, ds, fs, gs] = task.selectors;
        let cpl = self.cpl;
        self.load_task_segment(segment::CS, cs, ext, |d| {
            d.is_code() && if d.is_conforming() { d.dpl() <= cpl } else { d.dpl() == cpl }
        })?;
        self.load_task_segment(segment::SS, ss, ext, |d| {
            d.is_writable() && d.dpl() == cpl && rpl(d.selector) == cpl
        })?;
        for (number, selector) in [(segment::ES, es), (segment::DS, ds), (segment::FS, fs), (segment::GS, gs)]
        {
            if is_null(selector) {
                self.segments[usize::from(number)] = Segment { selector, ..Segment::default() };
                continue;
            }
            self.load_task_segment(number, selector, ext, |d| {
                d.is_readable() && (d.is_conforming() || d.dpl() >= cpl.max(rpl(d.selector)))
            })?;
        }
        Ok(())
    }

    fn load_task_segment(
        &mut self,
        number: u8,
        selector: u16,
        ext: u16,
        allowed: impl Fn(&Descriptor) -> bool,
    ) -> Step {
        let error = name(selector) | ext;
        let found = if is_null(selector) { None } else { self.descriptor(selector)? };
        let Some(descriptor) = found.filter(allowed) else { return Err(self.ts(error)) };
        if !descriptor.present() {
            return Err(if number == segment::SS { self.ss_fault(error) } else { self.np(error) });
        }
        self.mark_accessed(&descriptor)?;
        self.segments[usize::from(number)] = descriptor.segment();
        Ok(())
    }
}

#[cfg(test)]
#[path = "task_test.rs"]
mod tests;
