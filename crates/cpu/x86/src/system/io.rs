//! Ports: `in`, `out`, `ins`, `outs` (AMD APM volume 1, section 3.8; volume 2, section 12.2.5; volume 3).

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::{gpr, rflags};

use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::int::{Int, RIP};
use crate::mmu::Access;
use crate::op::{Op, Run, Step};

/// A repeated instruction looks for interrupts after so many rounds.
const ROUNDS: u32 = 256;
/// Where a TSS says where its I/O permission bitmap begins.
const BITMAP: u64 = 0x66;

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.code() {
        Code::In_AL_imm8 => in_immediate::<u8>,
        Code::In_AX_imm8 => in_immediate::<u16>,
        Code::In_EAX_imm8 => in_immediate::<u32>,
        Code::In_AL_DX => in_dx::<u8>,
        Code::In_AX_DX => in_dx::<u16>,
        Code::In_EAX_DX => in_dx::<u32>,
        Code::Out_imm8_AL => out_immediate::<u8>,
        Code::Out_imm8_AX => out_immediate::<u16>,
        Code::Out_imm8_EAX => out_immediate::<u32>,
        Code::Out_DX_AL => out_dx::<u8>,
        Code::Out_DX_AX => out_dx::<u16>,
        Code::Out_DX_EAX => out_dx::<u32>,
        Code::Insb_m8_DX => string::<u8, Ins>,
        Code::Insw_m16_DX => string::<u16, Ins>,
        Code::Insd_m32_DX => string::<u32, Ins>,
        Code::Outsb_DX_m8 => string::<u8, Outs>,
        Code::Outsw_DX_m16 => string::<u16, Outs>,
        Code::Outsd_DX_m32 => string::<u32, Outs>,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    match i.code() {
        Code::In_AL_imm8 | Code::In_AX_imm8 | Code::In_EAX_imm8 => op.imm = i.immediate(1) & 0xff,
        Code::Out_imm8_AL | Code::Out_imm8_AX | Code::Out_imm8_EAX => op.imm = i.immediate(0) & 0xff,
        Code::Insb_m8_DX | Code::Insw_m16_DX | Code::Insd_m32_DX => op.segment = segment::ES,
        _ => {}
    }
    op.aux = u8::from(i.has_rep_prefix() || i.has_repne_prefix());
    Some(op)
}

fn in_immediate<T: Int>(core: &mut Core, op: &Op) -> Step {
    input::<T>(core, op.imm as u16)
}

fn in_dx<T: Int>(core: &mut Core, _: &Op) -> Step {
    let port = core.reg(RDX);
    input::<T>(core, port)
}

fn out_immediate<T: Int>(core: &mut Core, op: &Op) -> Step {
    output::<T>(core, op.imm as u16)
}

fn out_dx<T: Int>(core: &mut Core, _: &Op) -> Step {
    let port = core.reg(RDX);
    output::<T>(core, port)
}

fn input<T: Int>(core: &mut Core, port: u16) -> Step {
    core.check_port::<T>(port)?;
    let value = core.port_in::<T>(port);
    core.set_reg(RAX, value);
    Ok(())
}

fn output<T: Int>(core: &mut Core, port: u16) -> Step {
    core.check_port::<T>(port)?;
    let value = core.reg::<T>(RAX);
    core.port_out(port, value);
    // A device may have something to say at once.
    LEAVE
}

/// One round of a string instruction.
trait Direction {
    fn round<T: Int>(core: &mut Core, op: &Op, port: u16) -> Step;
}

struct Ins;
impl Direction for Ins {
    fn round<T: Int>(core: &mut Core, op: &Op, port: u16) -> Step {
        // Nothing may be taken from the device that cannot be stored.
        let offset = op.address(core);
        let linear = core.linear(op.segment, offset, T::BYTES, true)?;
        core.probe(op.segment, linear, T::BYTES, Access::Write)?;
        let value = core.port_in::<T>(port);
        core.write(op.segment, offset, value)
    }
}

struct Outs;
impl Direction for Outs {
    fn round<T: Int>(core: &mut Core, op: &Op, port: u16) -> Step {
        let value = core.read_op::<T>(op)?;
        core.port_out(port, value);
        Ok(())
    }
}

/// The instruction, once or repeated. What is left of a long repetition is done when interrupts have had their
/// chance.
fn string<T: Int, D: Direction>(core: &mut Core, op: &Op) -> Step {
    const RCX: usize = gpr::RCX;
    let port = core.reg(RDX);
    core.check_port::<T>(port)?;
    // The address size goes for the counter, too. 32-bit results clear the upper half, 16-bit ones keep the rest.
    let mask = u64::MAX >> op.address_shift;
    let merge = |old: u64, new: u64| if mask == 0xffff { old & !mask | new & mask } else { new & mask };
    let repeated = op.aux != 0;
    let step = if core.system_flags & rflags::DF != 0 { T::BYTES.wrapping_neg() } else { T::BYTES };
    let alone = core.debugging || core.system_flags & rflags::TF != 0;
    let mut rounds = if alone { 1 } else { ROUNDS };
    if repeated && core.registers[RCX] & mask == 0 {
        return Ok(());
    }
    loop {
        D::round::<T>(core, op, port)?;
        let pointer = &mut core.registers[usize::from(op.base)];
        *pointer = merge(*pointer, pointer.wrapping_add(step));
        if !repeated {
            return LEAVE;
        }
        let counter = &mut core.registers[RCX];
        *counter = merge(*counter, counter.wrapping_sub(1));
        if *counter & mask == 0 {
            return LEAVE;
        }
        rounds -= 1;
        if rounds == 0 || core.connections.attention.is_raised() {
            let rip = &mut core.registers[usize::from(RIP)];
            *rip = rip.wrapping_sub(u64::from(op.len));
            return LEAVE;
        }
    }
}

impl Core {
    /// Whether the current program may use a port: by IOPL, or by the bitmap of its task.
    fn check_port<T: Int>(&mut self, port: u16) -> Step {
        if self.cpl <= self.iopl() && !self.v8086() {
            return Ok(());
        }
        self.check_port_map(port, T::BYTES)
    }

    #[cold]
    fn check_port_map(&mut self, port: u16, size: u64) -> Step {
        /// An 80386's or 64-bit task-state segment, available or busy.
        const TSS: [u8; 2] = [9, 11];
        if !self.tr.present() || !TSS.contains(&self.tr.kind()) || u64::from(self.tr.limit) < BITMAP + 1 {
            return Err(self.gp(0));
        }
        let start = u64::from(self.read_system::<u16>(self.tr.base.wrapping_add(BITMAP))?);
        // Two bytes are always looked at, since ports next to each other may have their bits in both.
        let at = start + u64::from(port / 8);
        if at + 1 > u64::from(self.tr.limit) {
            return Err(self.gp(0));
        }
        let bits = self.read_system::<u16>(self.tr.base.wrapping_add(at))?;
        if bits >> (port % 8) & ((1 << size) - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn port_in<T: Int>(&mut self, port: u16) -> T {
        let mut data = [0; 8];
        self.connections.bus.port_read(port, &mut data[..T::BYTES as usize]);
        self.note_port_access(port, T::BYTES);
        T::from_le(data)
    }

    fn port_out<T: Int>(&mut self, port: u16, value: T) {
        let data = value.zext().to_le_bytes();
        self.connections.bus.port_write(port, &data[..T::BYTES as usize]);
        self.note_port_access(port, T::BYTES);
    }
}

#[cfg(test)]
#[path = "io_test.rs"]
mod tests;
