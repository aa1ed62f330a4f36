//! Descriptor tables and the task register, and questions about descriptors (AMD APM volume 2, section 4.10):
//! `lgdt`, `lidt`, `lldt`, `ltr` and their stores, `smsw`, `lmsw`, `lar`, `lsl`, `verr`, `verw`, `arpl`.

use iced_x86::{Code, Instruction, Mnemonic};
use posada_vcpu::x86::{Segment, Table, cr0, cr4, rflags};

use super::descriptor::{Descriptor, is_null, kind, name, rpl};
use crate::core::Core;
use crate::op::{Op, Run, Step, is_memory, register_number};

/// The 16-bit operand, in a register or in memory.
fn selector<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step<u16> {
    if MEMORY { core.read_op(op) } else { Ok(core.reg(op.src)) }
}

/// To a register of `aux` bytes, with zeros above, or as 16 bits to memory.
fn store<const MEMORY: bool>(core: &mut Core, op: &Op, value: u64) -> Step {
    if MEMORY {
        return core.write_op(op, value as u16);
    }
    match op.aux {
        2 => core.set_reg(op.dst, value as u16),
        4 => core.set_reg(op.dst, value as u32),
        _ => core.set_reg(op.dst, value),
    }
    Ok(())
}

impl Core {
    /// `#UD` where selectors name no descriptors.
    fn needs_descriptors(&mut self) -> Step {
        if self.uses_descriptors() { Ok(()) } else { Err(self.ud()) }
    }

    /// User-mode instruction prevention.
    fn umip(&mut self) -> Step {
        if self.cpl != 0 && self.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// The descriptor of an LDT or TSS that is to be loaded, as its register will hold it.
    fn system_descriptor(&mut self, selector: u16, kinds: &[u8]) -> Step<(Descriptor, Segment)> {
        if selector & 4 != 0 {
            return Err(self.gp(name(selector)));
        }
        let descriptor = self.descriptor_or_gp(selector, 0)?;
        if !kinds.contains(&descriptor.kind()) {
            return Err(self.gp(name(selector)));
        }
        let mut segment = descriptor.system_segment();
        if self.long_active() {
            segment.base |= self.upper_half(selector, 0)? << 32;
            if !Self::is_canonical(segment.base) {
                return Err(self.gp(name(selector)));
            }
        }
        if !descriptor.present() {
            return Err(self.np(name(selector)));
        }
        Ok((descriptor, segment))
    }

    /// The descriptor that a program asks about, if it may see it: one of a type in `system`, or a code or data
    /// segment.
    fn visible(&mut self, selector: u16, system: &[u8]) -> Step<Option<Descriptor>> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.descriptor(selector)? else { return Ok(None) };
        let known = descriptor.kind() & 0x10 != 0 || system.contains(&descriptor.kind());
        let privileged = descriptor.is_conforming() || self.cpl.max(rpl(selector)) <= descriptor.dpl();
        Ok((known && privileged).then_some(descriptor))
    }

    fn set_zf(&mut self, zf: bool) {
        self.flags.replace(rflags::ZF, if zf { rflags::ZF } else { 0 });
    }
}

fn lldt<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    core.need_ring_0()?;
    let selector = selector::<MEMORY>(core, op)?;
    core.ldtr = if is_null(selector) {
        Segment { selector, ..Segment::default() }
    } else {
        core.system_descriptor(selector, &[kind::LDT])?.1
    };
    Ok(())
}

fn ltr<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    core.need_ring_0()?;
    let selector = selector::<MEMORY>(core, op)?;
    if is_null(selector) {
        return Err(core.gp(0));
    }
    let kinds: &[u8] = if core.long_active() { &[kind::TSS] } else { &[kind::TSS, kind::TSS16] };
    let (descriptor, mut segment) = core.system_descriptor(selector, kinds)?;
    core.change_type(descriptor.at, kind::BUSY, 0)?;
    segment.attributes |= u16::from(kind::BUSY);
    core.tr = segment;
    Ok(())
}

fn sldt<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    core.umip()?;
    store::<MEMORY>(core, op, u64::from(core.ldtr.selector))
}

fn str<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    core.umip()?;
    store::<MEMORY>(core, op, u64::from(core.tr.selector))
}

fn smsw<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.umip()?;
    store::<MEMORY>(core, op, core.cr0)
}

/// The low four bits of `cr0`; PE can be set, but not cleared.
fn lmsw<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.need_ring_0()?;
    let value = u64::from(selector::<MEMORY>(core, op)?);
    let kept = core.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    core.write_cr0(kept | value & (cr0::PE | cr0::MP | cr0::EM | cr0::TS))
}

/// Bytes of the operand's base part, and which of its bits count.
fn base_size(op: &Op) -> (u64, u64) {
    match op.aux {
        2 => (4, 0xff_ffff),
        4 => (4, 0xffff_ffff),
        _ => (8, u64::MAX),
    }
}

fn store_table(core: &mut Core, op: &Op, table: Table) -> Step {
    core.umip()?;
    // Even with a 16-bit operand all 32 bits of the base are stored.
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let offset = op.address(core);
    core.write_bytes(op.segment, offset, 1, &bytes[..2 + base_size(op).0 as usize])
}

fn load_table(core: &mut Core, op: &Op) -> Step<Table> {
    core.need_ring_0()?;
    let (size, mask) = base_size(op);
    let mut bytes = [0; 10];
    let offset = op.address(core);
    core.read_bytes(op.segment, offset, 1, &mut bytes[..2 + size as usize])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = [0; 8];
    base.copy_from_slice(&bytes[2..]);
    let base = u64::from_le_bytes(base) & mask;
    if core.long64 && !Core::is_canonical(base) {
        return Err(core.gp(0));
    }
    Ok(Table { base, limit })
}

fn sgdt(core: &mut Core, op: &Op) -> Step {
    store_table(core, op, core.gdtr)
}

fn sidt(core: &mut Core, op: &Op) -> Step {
    store_table(core, op, core.idtr)
}

fn lgdt(core: &mut Core, op: &Op) -> Step {
    core.gdtr = load_table(core, op)?;
    Ok(())
}

fn lidt(core: &mut Core, op: &Op) -> Step {
    core.idtr = load_table(core, op)?;
    Ok(())
}

/// Access rights: the descriptor's second doubleword, without its base and the high bits of its limit.
fn lar<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    let selector = selector::<MEMORY>(core, op)?;
    let kinds: &[u8] = if core.long_active() {
        &[kind::LDT, kind::TSS, kind::TSS_BUSY, kind::CALL_GATE]
    } else {
        &[
            kind::TSS16,
            kind::LDT,
            kind::TSS16_BUSY,
            kind::CALL_GATE16,
            kind::TASK_GATE,
            kind::TSS,
            kind::TSS_BUSY,
            kind::CALL_GATE,
        ]
    };
    let found = core.visible(selector, kinds)?;
    if let Some(descriptor) = found {
        let rights = (descriptor.raw >> 32) & 0x00ff_ff00;
        store::<false>(core, op, rights)?;
    }
    core.set_zf(found.is_some());
    Ok(())
}

/// The limit in bytes.
fn lsl<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    let selector = selector::<MEMORY>(core, op)?;
    let kinds: &[u8] = if core.long_active() {
        &[kind::LDT, kind::TSS, kind::TSS_BUSY]
    } else {
        &[kind::TSS16, kind::LDT, kind::TSS16_BUSY, kind::TSS, kind::TSS_BUSY]
    };
    let found = core.visible(selector, kinds)?;
    if let Some(descriptor) = found {
        store::<false>(core, op, u64::from(descriptor.system_segment().limit))?;
    }
    core.set_zf(found.is_some());
    Ok(())
}

fn verify<const MEMORY: bool>(core: &mut Core, op: &Op, allows: fn(&Descriptor) -> bool) -> Step {
    core.needs_descriptors()?;
    let selector = selector::<MEMORY>(core, op)?;
    let found = core.visible(selector, &[])?;
    core.set_zf(found.is_some_and(|descriptor| allows(&descriptor)));
    Ok(())
}

fn verr<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    verify::<MEMORY>(core, op, Descriptor::is_readable)
}

fn verw<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    verify::<MEMORY>(core, op, Descriptor::is_writable)
}

/// Raises a selector's RPL to that of another.
fn arpl<const MEMORY: bool>(core: &mut Core, op: &Op) -> Step {
    core.needs_descriptors()?;
    let least = core.reg::<u16>(op.src) & 3;
    let raise = |old: u16| {
        let raised = old & 3 < least;
        (if raised { name(old) | least } else { old }, raised)
    };
    let raised = if MEMORY {
        let (new, raised) = raise(core.read_op(op)?);
        // Where nothing is to be raised the operand need not be writable.
        if raised {
            core.write_op(op, new)?;
        }
        raised
    } else {
        let (new, raised) = raise(core.reg(op.dst));
        core.set_reg(op.dst, new);
        raised
    };
    core.set_zf(raised);
    Ok(())
}

/// Picks the version of a handler for a register or a memory operand.
macro_rules! form {
    ($memory:expr, $function:ident) => {
        if $memory { $function::<true> as Run } else { $function::<false> as Run }
    };
}

/// The operation that carries out `instruction`, if it is one of this module.
pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let memory = i.op_kinds().any(is_memory);
    let run: Run = match i.mnemonic() {
        Mnemonic::Lgdt => lgdt,
        Mnemonic::Lidt => lidt,
        Mnemonic::Sgdt => sgdt,
        Mnemonic::Sidt => sidt,
        Mnemonic::Lldt => form!(memory, lldt),
        Mnemonic::Ltr => form!(memory, ltr),
        Mnemonic::Sldt => form!(memory, sldt),
        Mnemonic::Str => form!(memory, str),
        Mnemonic::Smsw => form!(memory, smsw),
        Mnemonic::Lmsw => form!(memory, lmsw),
        Mnemonic::Lar => form!(memory, lar),
        Mnemonic::Lsl => form!(memory, lsl),
        Mnemonic::Verr => form!(memory, verr),
        Mnemonic::Verw => form!(memory, verw),
        Mnemonic::Arpl => form!(memory, arpl),
        _ => return None,
    };
    let mut op = Op::new(run, i);
    op.dst = register_number(i.op0_register());
    // The operand that is only read: the second one, or the only one.
    op.src = register_number(if i.op_count() == 2 { i.op1_register() } else { i.op0_register() });
    op.aux = match i.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 2,
        Code::Lgdt_m1632 | Code::Lidt_m1632 | Code::Sgdt_m1632 | Code::Sidt_m1632 => 4,
        _ if memory && i.op_count() == 1 => 8,
        _ => i.op0_register().size() as u8,
    };
    Some(op)
}

#[cfg(test)]
#[path = "tables_test.rs"]
mod tests;
