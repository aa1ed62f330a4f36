//! Gives registers and memory the values with which an instruction does something: addresses that lead
//! somewhere, selectors that exist, stack frames that can be returned through.

use fastrand::Rng;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use posada_vcpu::x86::{gpr, rflags};

use super::values::{self, Lanes, chance, pick};
use super::{CODE, CONSTANTS, DATA, Memory, PAGE, Registers, STACK, selector};

/// Where a memory operand of `size` bytes may be: mostly in [`DATA`], often aligned, sometimes across its two
/// pages; now and then where it cannot be written, or where nothing is.
pub fn target(rng: &mut Rng, size: u64) -> u64 {
    let size = size.clamp(1, 512);
    match rng.u8(..100) {
        0..5 => DATA.start + PAGE - rng.u64(1..size.max(2)),
        5..9 => CONSTANTS.start + rng.u64(..PAGE - size),
        9..11 => CONSTANTS.start - rng.u64(1..size.max(2)),
        11..13 => CONSTANTS.end() - rng.u64(1..size.max(2)),
        13 => DATA.start - rng.u64(1..size.max(2)),
        14 => CONSTANTS.end() + rng.u64(..0x1_0000),
        // Not canonical; canonical, but the kernel's.
        15 => 0x0000_8000_0000_0000 | rng.u64(..) >> 16,
        16 => 0xffff_9000_0000_0000 | rng.u64(..) >> 24,
        17 => 0x0000_7fff_ffff_ffff - rng.u64(..size),
        18..45 => DATA.start + rng.u64(..DATA.size - size),
        _ => (DATA.start + rng.u64(..DATA.size - size)) & !(size.next_power_of_two() - 1),
    }
}

/// Where an indirect branch may lead: into [`CODE`], or nowhere.
pub fn code_target(rng: &mut Rng) -> u64 {
    match rng.u8(..40) {
        0 => rng.u64(..),
        1 => DATA.start + rng.u64(..PAGE),
        2 => CODE.end() + rng.u64(..PAGE),
        _ => CODE.start + rng.u64(..CODE.size),
    }
}

/// A selector for the code segment: mostly one that works.
pub fn code_selector(rng: &mut Rng) -> u16 {
    pick(rng, &[0x23, 0x23, 0x33, 0x33, 0x23, 0x33, 0x20, 0x30, 0x2b, 0x10, 0x13, 0, 3, 0x1234, 0x40])
}

/// Any selector.
pub fn any_selector(rng: &mut Rng) -> u16 {
    // The last entry of Linux's table differs from one processor to the next, and an empty one may be given
    // away: they are left alone.
    pick(
        rng,
        &[
            0, 1, 3, 0x08, 0x10, 0x13, 0x18, 0x1b, 0x20, 0x23, 0x23, 0x28, 0x2b, 0x2b, 0x2b, 0x33, 0x40,
            0x43, 0x04, 0x0f, 0x80, 0x88, 0x1230, 0xffff,
        ],
    )
}

struct Placing<'a> {
    rng: &'a mut Rng,
    i: &'a Instruction,
    bits: u32,
    before: &'a mut Registers,
    memory: &'a mut Memory,
}

/// Prepares `before` and `memory` for `instruction`.
pub fn place(
    rng: &mut Rng,
    instruction: &Instruction,
    bits: u32,
    before: &mut Registers,
    memory: &mut Memory,
    lanes: Lanes,
) {
    let mut placing = Placing { rng, i: instruction, bits, before, memory };
    placing.stack();
    placing.special_registers();
    let address = placing.explicit_operand();
    placing.string_operands();
    if let Some(address) = address {
        placing.fill(address, lanes);
    }
    placing.contents(address);
}

impl Placing<'_> {
    fn size(&self) -> u64 {
        self.i.memory_size().size() as u64
    }

    fn stack(&mut self) {
        let rng = &mut *self.rng;
        self.before.gpr[gpr::RSP] = match rng.u8(..40) {
            0 => STACK.start + rng.u64(..16),
            1 => STACK.end() - rng.u64(..16),
            2 => target(rng, 8),
            3..6 => STACK.start + rng.u64(0x100..0xf00),
            _ => (STACK.start + rng.u64(0x100..0xf00)) & !15,
        };
    }

    fn special_registers(&mut self) {
        use Mnemonic as M;
        let g = &mut self.before.gpr;
        let rng = &mut *self.rng;
        match self.i.mnemonic() {
            M::Div | M::Idiv if chance(rng, 80) => {
                // A quotient that fits.
                let signed = self.i.mnemonic() == M::Idiv;
                g[gpr::RDX] = if signed && rng.bool() { u64::MAX } else { u64::from(rng.u8(..3)) };
                if chance(rng, 50) {
                    g[gpr::RAX] &= 0xff;
                }
            }
            M::Shl | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => {
                g[gpr::RCX] = g[gpr::RCX] & !0xff | u64::from(rng.u8(..70));
            }
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz | M::Jcxz => {
                g[gpr::RCX] = pick(rng, &[0, 1, 2, 3, 0x1_0000, 0x1_0001, 1 << 32, (1 << 32) + 1, u64::MAX]);
            }
            M::Pcmpestri | M::Pcmpestrm | M::Pcmpestri64 | M::Pcmpestrm64 => {
                for register in [gpr::RAX, gpr::RDX] {
                    if chance(rng, 85) {
                        g[register] = i64::from(rng.i8(-20..21)) as u64;
                    }
                }
            }
            M::Enter | M::Leave => {
                g[gpr::RBP] =
                    if chance(rng, 90) { STACK.start + rng.u64(0x100..0xf00) } else { target(rng, 8) };
            }
            M::Lar | M::Lsl | M::Verr | M::Verw | M::Mov => {
                let source = u32::from(self.i.op_count() > 1);
                let to_segment =
                    self.i.op0_kind() == OpKind::Register && self.i.op0_register().is_segment_register();
                if (to_segment || self.i.mnemonic() != M::Mov) && self.i.op_kind(source) == OpKind::Register {
                    let register = self.i.op_register(source);
                    if register.is_gpr() {
                        g[register.number()] = g[register.number()] & !0xffff | u64::from(any_selector(rng));
                    }
                }
            }
            M::Jmp | M::Call if self.i.op0_kind() == OpKind::Register => {
                g[self.i.op0_register().number()] = code_target(rng);
            }
            M::Wrfsbase | M::Wrgsbase if chance(rng, 70) => {
                let register = self.i.op0_register().number();
                g[register] = g[register] << 17 >> 17;
            }
            _ => {}
        }
    }

    /// The register's value as an address of this size, and back.
    fn set_register(&mut self, register: Register, value: u64) {
        let slot = &mut self.before.gpr[register.number()];
        *slot = match register.size() {
            2 => *slot & !0xffff | value & 0xffff,
            4 if self.bits == 64 => *slot & !0xffff_ffff | value & 0xffff_ffff,
            _ => value,
        };
    }

    fn segment_base(&self) -> u64 {
        match self.i.memory_segment() {
            Register::FS => self.before.fs_base,
            Register::GS => self.before.gs_base,
            _ => 0,
        }
    }

    /// Sends the operand that has base, index and displacement somewhere, and says where.
    fn explicit_operand(&mut self) -> Option<u64> {
        let i = self.i;
        (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory)?;
        let (base, index) = (i.memory_base(), i.memory_index());
        if i.mnemonic() == Mnemonic::Xlatb {
            let address = target(self.rng, 1);
            let value =
                address.wrapping_sub(self.before.gpr[gpr::RAX] & 0xff).wrapping_sub(self.segment_base());
            self.set_register(base, value);
            return Some(address);
        }
        if i.is_ip_rel_memory_operand() || base == Register::None && index == Register::None {
            return Some(i.memory_displacement64().wrapping_add(self.segment_base()));
        }
        if base.size() == 2 || index.size() == 2 {
            // No 16-bit address leads anywhere.
            return None;
        }
        let size = self.size();
        let mut address = target(self.rng, size);
        let bit_offset = self.bit_offset();
        let scale = u64::from(i.memory_index_scale());
        let rest = address.wrapping_sub(i.memory_displacement64()).wrapping_sub(self.segment_base());
        if base == Register::None {
            let count = rest / scale;
            self.set_register(index, count);
            address = (count.wrapping_mul(scale))
                .wrapping_add(i.memory_displacement64())
                .wrapping_add(self.segment_base());
        } else if index == Register::None {
            self.set_register(base, rest);
        } else if base == index {
            self.set_register(base, rest / (scale + 1));
        } else {
            if chance(self.rng, 60) {
                let small = i64::from(self.rng.i16(..)) as u64;
                self.set_register(index, small);
            }
            let at = self.before.gpr[index.number()].wrapping_mul(scale);
            self.set_register(base, rest.wrapping_sub(at));
        }
        Some(address.wrapping_add(bit_offset))
    }

    /// `bt` and its like reach far beyond their operand: how far is kept within reason.
    fn bit_offset(&mut self) -> u64 {
        use Mnemonic as M;
        let i = self.i;
        if !matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) || i.op1_kind() != OpKind::Register {
            return 0;
        }
        let register = i.op1_register();
        if chance(self.rng, 80) {
            let bits = i64::from(self.rng.i16(..)) >> 2;
            self.before.gpr[register.number()] = bits as u64;
        }
        let operand = self.size() as i64 * 8;
        let value = self.before.gpr[register.number()] as i64;
        let value = match register.size() {
            2 => i64::from(value as i16),
            4 => i64::from(value as i32),
            _ => value,
        };
        (value.div_euclid(operand) * (operand / 8)) as u64
    }

    fn string_operands(&mut self) {
        let i = self.i;
        let mut any = false;
        for n in 0..i.op_count() {
            let (register, size) = match i.op_kind(n) {
                OpKind::MemorySegSI => (Register::SI, 16),
                OpKind::MemorySegESI => (Register::ESI, 32),
                OpKind::MemorySegRSI => (Register::RSI, 64),
                OpKind::MemorySegDI | OpKind::MemoryESDI => (Register::DI, 16),
                OpKind::MemorySegEDI | OpKind::MemoryESEDI => (Register::EDI, 32),
                OpKind::MemorySegRDI | OpKind::MemoryESRDI => (Register::RDI, 64),
                _ => continue,
            };
            any = true;
            let address = target(self.rng, self.size());
            if size != 16 {
                self.set_register(register, address);
            }
            let lane = if self.rng.bool() { 0 } else { self.rng.u8(..) };
            // Runs of the same bytes, for `scas` and `cmps` to run along.
            if chance(self.rng, 50) {
                self.memory.put(address & !0x3f, &[lane; 256]);
            }
        }
        if any && i.mnemonic() != Mnemonic::Maskmovq && i.mnemonic() != Mnemonic::Maskmovdqu {
            self.before.gpr[gpr::RCX] = match self.rng.u8(..20) {
                0 => 0,
                1 => u64::from(self.rng.u16(..6000)),
                2 => 1 << 32 | u64::from(self.rng.u8(..4)),
                3 => 1 << 16 | u64::from(self.rng.u8(..4)),
                _ => u64::from(self.rng.u8(..40)),
            };
            if self.rng.bool() {
                self.before.rflags ^= rflags::DF;
            }
            if self.rng.bool() {
                self.before.gpr[gpr::RAX] = 0;
            }
        }
    }

    /// Values worth an instruction's while at its operand.
    fn fill(&mut self, address: u64, lanes: Lanes) {
        use iced_x86::MemorySize as S;
        let size = self.size();
        let rng = &mut *self.rng;
        let float80 = |rng: &mut Rng| {
            let value = values::float80(rng);
            let mut bytes = value.significand.to_le_bytes().to_vec();
            bytes.extend(value.sign_exponent.to_le_bytes());
            bytes
        };
        let bytes = match self.i.memory_size() {
            S::Float32 => values::float32(rng).to_le_bytes().to_vec(),
            S::Float64 => values::float64(rng).to_le_bytes().to_vec(),
            S::Float80 => float80(rng),
            S::Bcd => {
                let mut digits: Vec<u8> = (0..10).map(|_| rng.u8(..10) << 4 | rng.u8(..10)).collect();
                digits[9] = pick(rng, &[0, 0x80]);
                if chance(rng, 10) {
                    digits[rng.usize(..10)] = rng.u8(..);
                }
                digits
            }
            _ if size == 16 => {
                values::vector(rng, lanes).iter().flat_map(|half| half.to_le_bytes()).collect()
            }
            _ => values::integer(rng).to_le_bytes().to_vec(),
        };
        let mut bytes = bytes;
        if self.size() < 8 {
            bytes.truncate(self.size().max(1) as usize);
        }
        self.memory.put(address, &bytes);
    }

    /// What particular instructions find in memory, or expect it to equal.
    fn contents(&mut self, address: Option<u64>) {
        use Mnemonic as M;
        let i = self.i;
        let sp = self.before.gpr[gpr::RSP];
        match i.mnemonic() {
            M::Cmpxchg if self.rng.bool() => self.match_accumulator(address),
            M::Cmpxchg8b | M::Cmpxchg16b if chance(self.rng, 60) => {
                let Some(address) = address else { return };
                let half = self.size() / 2;
                let halves = [self.before.gpr[gpr::RAX], self.before.gpr[gpr::RDX]];
                for (n, value) in halves.into_iter().enumerate() {
                    let bytes = value.to_le_bytes();
                    self.memory.put(address.wrapping_add(n as u64 * half), &bytes[..half as usize]);
                }
            }
            M::Ldmxcsr => {
                if let Some(address) = address {
                    let mut value = values::mxcsr(self.rng);
                    if chance(self.rng, 10) {
                        value |= 1 << wrong_bit(self.rng);
                    }
                    self.memory.put(address, &value.to_le_bytes());
                }
            }
            M::Fxrstor | M::Fxrstor64 => {
                if let Some(address) = address {
                    let mut value = values::mxcsr(self.rng);
                    if chance(self.rng, 10) {
                        value |= 1 << wrong_bit(self.rng);
                    }
                    self.memory.put(address.wrapping_add(24), &value.to_le_bytes());
                }
            }
            M::Mov | M::Lar | M::Lsl | M::Verr | M::Verw => {
                let (true, Some(address)) = (self.size() == 2, address) else { return };
                let selector = any_selector(self.rng);
                self.memory.put(address, &selector.to_le_bytes());
            }
            M::Jmp | M::Call => {
                let Some(address) = address else { return };
                let target = code_target(self.rng);
                // A far pointer is an offset and the selector behind it.
                let offset = match i.memory_size() {
                    iced_x86::MemorySize::SegPtr16 => Some(2),
                    iced_x86::MemorySize::SegPtr32 => Some(4),
                    iced_x86::MemorySize::SegPtr64 => Some(8),
                    _ => None,
                };
                let size = offset.unwrap_or(self.size());
                self.memory.put(address, &target.to_le_bytes()[..size.min(8) as usize]);
                if offset.is_some() {
                    let selector = code_selector(self.rng);
                    self.memory.put(address.wrapping_add(size), &selector.to_le_bytes());
                }
            }
            M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
                let Some(address) = address else { return };
                let selector = any_selector(self.rng);
                self.memory.put(address.wrapping_add(self.size() - 2), &selector.to_le_bytes());
            }
            M::Ret => {
                let target = code_target(self.rng);
                self.put_stack(sp, &[target], 8);
            }
            M::Retf => {
                let size = operand_size(i);
                let frame = [code_target(self.rng), u64::from(code_selector(self.rng))];
                self.put_stack(sp, &frame, size);
            }
            M::Iret | M::Iretd | M::Iretq => {
                let size = operand_size(i);
                let flags = self.flags();
                let stack = STACK.start + self.rng.u64(0x100..0xf00);
                let ss = if chance(self.rng, 90) { selector::DATA } else { any_selector(self.rng) };
                let frame =
                    [code_target(self.rng), u64::from(code_selector(self.rng)), flags, stack, u64::from(ss)];
                self.put_stack(sp, &frame, size);
                if chance(self.rng, 95) {
                    self.before.rflags &= !rflags::NT;
                }
            }
            M::Popf | M::Popfd | M::Popfq => {
                let flags = self.flags();
                self.put_stack(sp, &[flags], 8);
            }
            M::Pop if i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register() => {
                let selector = any_selector(self.rng);
                self.put_stack(sp, &[u64::from(selector)], 8);
            }
            M::Leave => {
                let value = self.rng.u64(..);
                self.put_stack(self.before.gpr[gpr::RBP], &[value], 8);
            }
            _ => {}
        }
    }

    /// Flags as a program may ask for them: any of them, but seldom those that stop it.
    fn flags(&mut self) -> u64 {
        let mut flags = self.rng.u64(..) & 0xffff_ffff_ffff;
        for (flag, percent) in [(rflags::TF, 10), (rflags::AC, 20), (rflags::VM, 5)] {
            if !chance(self.rng, percent) {
                flags &= !flag;
            }
        }
        flags
    }

    fn put_stack(&mut self, sp: u64, values: &[u64], size: u64) {
        for (n, value) in values.iter().enumerate() {
            let at = sp.wrapping_add(n as u64 * size);
            self.memory.put(at, &value.to_le_bytes()[..size as usize]);
        }
    }

    fn match_accumulator(&mut self, address: Option<u64>) {
        let accumulator = self.before.gpr[gpr::RAX];
        match (self.i.op0_kind(), address) {
            (OpKind::Memory, Some(address)) => {
                let bytes = accumulator.to_le_bytes();
                self.memory.put(address, &bytes[..self.size().min(8) as usize]);
            }
            (OpKind::Register, _) => {
                let register = self.i.op0_register().full_register();
                self.before.gpr[register.number()] = accumulator;
            }
            _ => {}
        }
    }
}

/// A bit of `mxcsr` that does not exist. Bit 17 does on some hosts: what it stands for is no part of the models.
fn wrong_bit(rng: &mut Rng) -> u32 {
    pick(rng, &[16, 18, 19, 20, 23, 24, 30, 31])
}

/// The operand size of a return, in bytes.
fn operand_size(i: &Instruction) -> u64 {
    use iced_x86::Code as C;
    match i.code() {
        C::Retfw | C::Retfw_imm16 | C::Iretw => 2,
        C::Retfq | C::Retfq_imm16 | C::Iretq => 8,
        _ => 4,
    }
}
