//! Selectors and descriptors (AMD APM volume 2, chapter 4).

use posada_vcpu::x86::{Segment, cr4};

use crate::core::Core;
use crate::mmu::{Access, Place};
use crate::op::Step;

/// Types of system descriptors (AMD APM volume 2, table 4-5). Those of 64-bit mode are the 32-bit ones.
pub(super) mod kind {
    pub(crate) const TSS16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS16_BUSY: u8 = 3;
    pub(crate) const CALL_GATE16: u8 = 4;
    pub(crate) const TASK_GATE: u8 = 5;
    pub(crate) const INTERRUPT_GATE16: u8 = 6;
    pub(crate) const TRAP_GATE16: u8 = 7;
    pub(crate) const TSS: u8 = 9;
    pub(crate) const TSS_BUSY: u8 = 0xb;
    pub(crate) const CALL_GATE: u8 = 0xc;
    pub(crate) const INTERRUPT_GATE: u8 = 0xe;
    pub(crate) const TRAP_GATE: u8 = 0xf;
    /// Makes an available TSS a busy one.
    pub(crate) const BUSY: u8 = 2;
    /// In the type of a code or data segment.
    pub(crate) const ACCESSED: u8 = 1;
}

/// A selector as error codes name it: without its privilege level.
pub(super) fn name(selector: u16) -> u16 {
    selector & !3
}

/// Whether a selector names no descriptor.
pub(super) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The requested privilege level.
pub(super) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// A descriptor, and where it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub selector: u16,
    pub raw: u64,
    /// Linear address.
    pub at: u64,
}

impl Descriptor {
    /// Type, with bit 4 set for code and data segments, and clear for the system types of [`kind`].
    pub(super) fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 0x1f
    }

    pub(super) fn dpl(&self) -> u8 {
        (self.raw >> 45) as u8 & 3
    }

    pub(super) fn present(&self) -> bool {
        self.raw & 1 << 47 != 0
    }

    pub(super) fn is_code(&self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    pub(super) fn is_conforming(&self) -> bool {
        self.kind() & 0x1c == 0x1c
    }

    /// Data, or code that may be read.
    pub(super) fn is_readable(&self) -> bool {
        self.kind() & 0x18 == 0x10 || self.kind() & 0x1a == 0x1a
    }

    pub(super) fn is_writable(&self) -> bool {
        self.kind() & 0x1a == 0x12
    }

    /// As a segment register holds it, marked as accessed.
    pub(super) fn segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw | u64::from(kind::ACCESSED) << 40)
    }

    /// As `ldtr` or `tr` holds it.
    pub(super) fn system_segment(&self) -> Segment {
        Segment::from_descriptor(self.selector, self.raw)
    }

    /// Of a gate: what it leads to.
    pub(super) fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// Of a gate: the low 32 bits of where in the segment it leads to; 16 for a 16-bit gate.
    pub(super) fn gate_offset(&self) -> u64 {
        let high = if self.kind() & 8 != 0 { (self.raw >> 32) & 0xffff_0000 } else { 0 };
        self.raw & 0xffff | high
    }
}

impl Core {
    /// Where the descriptor that `selector` names lies, if all its `size` bytes are within the table's limit.
    fn descriptor_address(&self, selector: u16, size: u64) -> Option<u64> {
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.present() {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            return None;
        };
        (offset + size - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The descriptor that `selector` names, which is not null; `None` beyond the table's limit.
    pub(super) fn descriptor(&mut self, selector: u16) -> Step<Option<Descriptor>> {
        let Some(at) = self.descriptor_address(selector, 8) else { return Ok(None) };
        let raw = self.read_system(at)?;
        Ok(Some(Descriptor { selector, raw, at }))
    }

    /// As [`descriptor`](Self::descriptor), with `#GP` beyond the limit; `ext` is bit 0 of its error code.
    pub(super) fn descriptor_or_gp(&mut self, selector: u16, ext: u16) -> Step<Descriptor> {
        match self.descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.gp(name(selector) | ext)),
        }
    }

    /// The upper half of a system descriptor of 64-bit mode; `#GP` when it is beyond the table's limit, or looks
    /// like a descriptor of its own.
    pub(super) fn upper_half(&mut self, selector: u16, ext: u16) -> Step<u64> {
        if let Some(at) = self.descriptor_address(selector, 16) {
            let upper: u64 = self.read_system(at.wrapping_add(8))?;
            if upper & 0x1f00_0000_0000 == 0 {
                return Ok(upper);
            }
        }
        Err(self.gp(name(selector) | ext))
    }

    /// Sets and clears bits in the type of the descriptor at `at`, atomically.
    pub(super) fn change_type(&mut self, at: u64, set: u8, clear: u8) -> Step {
        match self.system_place(at.wrapping_add(5), Access::Write)? {
            Place::Ram(offset) => {
                let (_, code) = self.connections.ram.update(offset, |old: u8| old & !clear | set);
                if code {
                    self.code_written();
                }
            }
            place @ Place::Device(_) => {
                let old: u8 = self.load_place(place);
                self.store_place(place, old & !clear | set);
            }
        }
        Ok(())
    }

    /// Marks the descriptor of a code or data segment as accessed.
    #[inline]
    pub(super) fn mark_accessed(&mut self, descriptor: &Descriptor) -> Step {
        if descriptor.kind() & kind::ACCESSED == 0 {
            self.change_type(descriptor.at, kind::ACCESSED, 0)?;
        }
        Ok(())
    }

    /// Does `work` with the supervisor's rights to memory, whatever the CPL. Afterwards the CPL, which may be
    /// another by then, decides again.
    #[inline]
    pub(super) fn as_supervisor<R>(&mut self, work: impl FnOnce(&mut Self) -> Step<R>) -> Step<R> {
        self.mmu.set_alignment_check(false);
        self.mmu.set_access(false, self.cr4 & cr4::SMAP != 0);
        let result = work(self);
        self.update_access();
        result
    }
}
