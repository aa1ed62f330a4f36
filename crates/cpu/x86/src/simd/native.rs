//! Instructions that the interpreter does not know, but the host's processor does: AVX and its successors.
//!
//! A translator, whose host has them anyway, lends the interpreter a [`Native`] unit. All that is about the guest is
//! done here as for any other instruction: whether the instruction may be carried out, where its memory operand is,
//! with which rights, and what faults. The unit gets the instruction alone, with its operands in fixed places: the
//! memory operand in a buffer, the general-purpose register in `rax`.
//!
//! What accesses its memory operand in parts, each only if a mask says so, is not for the unit: `vmaskmov` and
//! gathers are carried out here, element by element.

use iced_x86::{CpuidFeature, Encoder, EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};
use posada_vcpu::x86::{cr0, cr4, gpr};

use crate::core::Core;
use crate::int::{Int, ZERO};
use crate::op::{Op, Run, Step, register_number};

/// What carries out single instructions on the host's processor.
pub trait Native: Send {
    /// Carries out an instruction, given as [`Code`]. False: it has raised an exception for which `mxcsr`
    /// tells the reason, and has changed nothing else.
    fn carry_out(&mut self, code: Code, operands: &mut Operands<'_>) -> bool;
}

/// An instruction, encoded: its bytes from the lowest on, their number in the highest. Its memory operand is at
/// `[rdi]`, its general-purpose register is `rax`, or implied ones are `rax`, `rcx` and `rdx`; it touches no other
/// memory, and no other such register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u64);

impl Code {
    /// The bytes.
    pub fn bytes(self) -> ([u8; 8], usize) {
        (self.0.to_le_bytes(), usize::from((self.0 >> 56) as u8))
    }
}

/// What an instruction works on.
#[derive(Debug)]
pub struct Operands<'a> {
    /// The vector registers.
    pub ymm: &'a mut [[u64; 4]; 16],
    /// `rax`, `rcx` and `rdx`.
    pub gpr: [u64; 3],
    /// The arithmetic flags, where `rflags` has them.
    pub flags: u64,
    /// The SSE unit's control and status register.
    pub mxcsr: u32,
    /// The memory operand.
    pub memory: Memory,
}

/// Room for a memory operand, aligned as any may have to be.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Memory(pub [u8; 64]);

/// What [`Op::aux`] says.
const READ: u8 = 1 << 0;
const WRITE: u8 = 1 << 1;
/// The memory operand lies at a multiple of its size.
const ALIGNED: u8 = 1 << 2;
/// Encoded as SSE instructions are, and available when they are.
const LEGACY: u8 = 1 << 3;
/// Compares strings: `rax` and `rdx` may be lengths, `rcx` an index to be found.
const STRING: u8 = 1 << 6;
/// Of masked moves and gathers: on YMM registers.
const WIDE: u8 = 1 << 4;
/// Of gathers: indices of 8 bytes.
const WIDE_INDEX: u8 = 1 << 5;

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    use CpuidFeature as F;
    let known = i.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            F::AVX
                | F::AVX2
                | F::FMA
                | F::F16C
                | F::AES
                | F::PCLMULQDQ
                | F::VAES
                | F::VPCLMULQDQ
                | F::GFNI
                | F::SHA
        )
    });
    let vex = i.encoding() == EncodingKind::VEX;
    let legacy = i.cpuid_features().iter().any(|feature| matches!(feature, F::GFNI | F::SHA));
    if !known || !vex && !legacy {
        return None;
    }
    if i.is_vsib() {
        return lower_gather(i);
    }
    match i.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq => {
            return Some(lower_masked(i));
        }
        Mnemonic::Vmaskmovdqu => {
            let mut op = Op::new(store_bytes, i);
            (op.dst, op.src) = (register_number(i.op1_register()), register_number(i.op2_register()));
            return Some(op);
        }
        Mnemonic::Vzeroupper => return Some(Op::new(zero::<2>, i)),
        Mnemonic::Vzeroall => return Some(Op::new(zero::<0>, i)),
        Mnemonic::Vldmxcsr => return Some(Op::new(load_mxcsr, i)),
        Mnemonic::Vstmxcsr => return Some(Op::new(store_mxcsr, i)),
        _ => {}
    }
    lower_native(i, !vex)
}

fn lower_native(i: &Instruction, legacy: bool) -> Option<Op> {
    let mut host = *i;
    let (mut register, mut size, mut aux) = (ZERO, 0, if legacy { LEGACY } else { 0 });
    let mut factory = iced_x86::InstructionInfoFactory::new();
    let info = factory.info(i);
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Register if i.op_register(n).is_gpr() => {
                if register != ZERO {
                    return None;
                }
                register = register_number(i.op_register(n));
                let wide = i.op_register(n).size() == 8;
                set_register(&mut host, n, if wide { Register::RAX } else { Register::EAX });
            }
            OpKind::Memory => {
                size = i.memory_size().size();
                aux |= match info.op_access(n) {
                    OpAccess::Read | OpAccess::CondRead => READ,
                    OpAccess::Write | OpAccess::CondWrite => WRITE,
                    _ => return None,
                };
                host.set_memory_base(Register::RDI);
                host.set_memory_index(Register::None);
                host.set_memory_index_scale(1);
                host.set_memory_displacement64(0);
                host.set_memory_displ_size(0);
                host.set_segment_prefix(Register::None);
            }
            OpKind::Register | OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    if !matches!(size, 0 | 1 | 2 | 4 | 8 | 16 | 32) {
        return None;
    }
    if size >= 16 && (legacy || must_be_aligned(i.mnemonic())) {
        aux |= ALIGNED;
    }
    let string = matches!(
        i.mnemonic(),
        Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestri64
            | Mnemonic::Vpcmpestrm
            | Mnemonic::Vpcmpestrm64
            | Mnemonic::Vpcmpistri
            | Mnemonic::Vpcmpistrm
    );
    if string {
        aux |= STRING;
    }
    let mut encoder = Encoder::new(64);
    let len = encoder.encode(&host, 0).ok().filter(|len| *len < 8)?;
    let bytes = encoder.take_buffer();
    let mut op = Op::new(native, i);
    op.imm = bytes.iter().rev().fold(0, |code, byte| code << 8 | u64::from(*byte)) | (len as u64) << 56;
    (op.dst, op.src, op.aux) = (register, size as u8, aux);
    Some(op)
}

fn set_register(i: &mut Instruction, operand: u32, register: Register) {
    match operand {
        0 => i.set_op0_register(register),
        1 => i.set_op1_register(register),
        2 => i.set_op2_register(register),
        _ => i.set_op3_register(register),
    }
}

/// Of instructions with VEX prefixes only these insist.
fn must_be_aligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntdq | M::Vmovntdqa | M::Vmovntps | M::Vmovntpd
    )
}

impl Core {
    /// Whether AVX instructions can be carried out now.
    pub(crate) fn avx_enabled(&self) -> bool {
        const SSE_AND_AVX: u64 = 6;
        let enabled = self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & SSE_AND_AVX == SSE_AND_AVX;
        enabled && self.uses_descriptors()
    }

    /// What every AVX instruction begins with (AMD APM volume 4, section 1.3; volume 2, section 11.3).
    fn avx_ready(&mut self) -> Step {
        if !self.avx_enabled() {
            return Err(self.ud());
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(self.nm());
        }
        Ok(())
    }

    /// Reads an element that a mask has chosen: these need no alignment even where that is checked.
    fn read_element<T: Int>(&mut self, op: &Op, offset: u64) -> Step<u64> {
        let mut bytes = [0; 8];
        self.read_bytes(op.segment, offset, 1, &mut bytes[..T::BYTES as usize])?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads `data.len()` bytes at an offset: as one access, if there can be one of that size. Where alignment is
    /// checked, 16 bytes do for 32.
    fn read_operand(&mut self, op: &Op, offset: u64, data: &mut [u8]) -> Step {
        let segment = op.segment;
        let small = match data.len() {
            1 => self.read::<u8>(segment, offset)?.zext(),
            2 => self.read::<u16>(segment, offset)?.zext(),
            4 => self.read::<u32>(segment, offset)?.zext(),
            8 => self.read::<u64>(segment, offset)?,
            _ => return self.read_bytes(segment, offset, 16, data),
        };
        data.copy_from_slice(&small.to_le_bytes()[..data.len()]);
        Ok(())
    }

    fn write_operand(&mut self, op: &Op, offset: u64, data: &[u8]) -> Step {
        let segment = op.segment;
        let mut small = [0; 8];
        if data.len() <= 8 {
            small[..data.len()].copy_from_slice(data);
        }
        let value = u64::from_le_bytes(small);
        match data.len() {
            1 => self.write(segment, offset, value as u8),
            2 => self.write(segment, offset, value as u16),
            4 => self.write(segment, offset, value as u32),
            8 => self.write(segment, offset, value),
            _ => self.write_bytes(segment, offset, 16, data),
        }
    }
}

fn native(core: &mut Core, op: &Op) -> Step {
    if op.aux & LEGACY != 0 {
        core.sse_ready()?;
    } else {
        core.avx_ready()?;
    }
    let size = usize::from(op.src);
    let mut memory = Memory([0; 64]);
    let offset = op.address(core);
    if op.aux & ALIGNED != 0 {
        let write = op.aux & WRITE != 0;
        let linear = core.linear(op.segment, offset, size as u64, write)?;
        if linear & (size as u64 - 1) != 0 {
            return Err(core.gp(0));
        }
    }
    if op.aux & WRITE != 0 {
        // A conversion may raise an exception, but not before the store may.
        let linear = core.linear(op.segment, offset, size as u64, true)?;
        core.check_store(op.segment, linear, size as u64, size.min(16) as u64)?;
    }
    if size == 32 {
        let linear = core.linear(op.segment, offset, 32, op.aux & WRITE != 0)?;
        core.check_span(op.segment, linear, 32)?;
    }
    if op.aux & READ != 0 {
        core.read_operand(op, offset, &mut memory.0[..size])?;
    }
    let Some(mut unit) = core.native.take() else { return Err(core.ud()) };
    let before = core.mxcsr;
    let first = if op.aux & STRING != 0 { gpr::RAX as u8 } else { op.dst };
    let mut operands = Operands {
        gpr: [core.registers[usize::from(first)], core.registers[gpr::RCX], core.registers[gpr::RDX]],
        flags: core.flags.bits(),
        mxcsr: before,
        memory,
        ymm: &mut core.ymm,
    };
    let done = unit.carry_out(Code(op.imm), &mut operands);
    let Operands { gpr: [result, index, _], flags, mxcsr, memory, .. } = operands;
    core.native = Some(unit);
    core.mxcsr = mxcsr;
    if !done {
        return Err(core.float_exception());
    }
    if op.aux & WRITE != 0 {
        // What stores changes nothing else, but for the exceptions that a conversion notes.
        let stored = core.write_operand(op, offset, &memory.0[..size]);
        if stored.is_err() {
            core.mxcsr = before;
        }
        return stored;
    }
    core.flags.set(flags);
    if op.dst != ZERO {
        core.registers[usize::from(op.dst)] = result;
    }
    if op.aux & STRING != 0 {
        core.registers[gpr::RCX] = index;
    }
    Ok(())
}

/// `vzeroupper` and `vzeroall`: outside 64-bit mode only of the registers that there are.
fn zero<const FIRST: usize>(core: &mut Core, _: &Op) -> Step {
    core.avx_ready()?;
    let count = if core.long64 { 16 } else { 8 };
    for register in &mut core.ymm[..count] {
        register[FIRST..].fill(0);
    }
    Ok(())
}

fn load_mxcsr(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    let value = core.read_op::<u32>(op)?;
    if value & !super::MXCSR_MASK != 0 {
        return Err(core.gp(0));
    }
    core.mxcsr = value;
    Ok(())
}

fn store_mxcsr(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    core.write_op(op, core.mxcsr)
}

/// `vmaskmovdqu`, as `maskmovdqu`: `dst` is stored, `src` the mask.
fn store_bytes(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    let offset = op.address(core);
    let [data, mask] = [op.dst, op.src].map(|n| core.ymm[usize::from(n & 15)]);
    let linear = core.linear(op.segment, offset, 16, true)?;
    core.check_store(op.segment, linear, 16, 8)?;
    for n in (0..16).filter(|n| is_chosen::<u8>(&mask, *n)) {
        core.write(op.segment, offset.wrapping_add(n as u64), element::<u8>(&data, n) as u8)?;
    }
    Ok(())
}

/// `vmaskmov` and `vpmaskmov`: `dst` is the other register, `src` the mask.
fn lower_masked(i: &Instruction) -> Op {
    let store = i.op0_kind() == OpKind::Memory;
    let quad = matches!(i.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
    let run: Run = match (store, quad) {
        (false, false) => load_masked::<u32>,
        (false, true) => load_masked::<u64>,
        (true, false) => store_masked::<u32>,
        (true, true) => store_masked::<u64>,
    };
    let mut op = Op::new(run, i);
    op.dst = register_number(if store { i.op2_register() } else { i.op0_register() });
    op.src = register_number(i.op1_register());
    op.aux = if i.op1_register().is_ymm() { WIDE } else { 0 };
    op
}

fn elements<T: Int>(op: &Op) -> usize {
    let bytes = if op.aux & WIDE != 0 { 32 } else { 16 };
    bytes / T::BYTES as usize
}

/// The offset of element `n` of the memory operand, cut to the address size.
fn element_offset<T: Int>(op: &Op, offset: u64, n: usize) -> u64 {
    let shift = u32::from(op.address_shift & 63);
    offset.wrapping_add(n as u64 * T::BYTES) << shift >> shift
}

/// Element `n` of a register.
fn element<T: Int>(v: &[u64; 4], n: usize) -> u64 {
    let bit = n * T::BITS as usize;
    v[bit / 64 % 4] >> (bit % 64) & T::MASK
}

fn set_element<T: Int>(v: &mut [u64; 4], n: usize, value: u64) {
    let bit = n * T::BITS as usize;
    let word = &mut v[bit / 64 % 4];
    *word = *word & !(T::MASK << (bit % 64)) | value << (bit % 64);
}

fn is_chosen<T: Int>(mask: &[u64; 4], n: usize) -> bool {
    element::<T>(mask, n) >> (T::BITS - 1) != 0
}

fn load_masked<T: Int>(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    let offset = op.address(core);
    let mask = core.ymm[usize::from(op.src & 15)];
    let mut result = [0; 4];
    for n in (0..elements::<T>(op)).filter(|n| is_chosen::<T>(&mask, *n)) {
        let value = core.read_element::<T>(op, element_offset::<T>(op, offset, n))?;
        set_element::<T>(&mut result, n, value);
    }
    core.ymm[usize::from(op.dst & 15)] = result;
    Ok(())
}

fn store_masked<T: Int>(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    let offset = op.address(core);
    let [data, mask] = [op.dst, op.src].map(|n| core.ymm[usize::from(n & 15)]);
    let chosen = |n: &usize| is_chosen::<T>(&mask, *n);
    for n in (0..elements::<T>(op)).filter(chosen) {
        let linear = core.linear(op.segment, element_offset::<T>(op, offset, n), T::BYTES, true)?;
        core.check_store(op.segment, linear, T::BYTES, 1)?;
    }
    for n in (0..elements::<T>(op)).filter(chosen) {
        let value = element::<T>(&data, n).to_le_bytes();
        let offset = element_offset::<T>(op, offset, n);
        core.write_bytes(op.segment, offset, 1, &value[..T::BYTES as usize])?;
    }
    Ok(())
}

/// Gathers: `dst` is the destination, `src` the mask, `index` the vector of indices.
fn lower_gather(i: &Instruction) -> Option<Op> {
    use Mnemonic as M;
    let (run, wide_index): (Run, bool) = match i.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (gather::<u32>, false),
        M::Vgatherdpd | M::Vpgatherdq => (gather::<u64>, false),
        M::Vgatherqps | M::Vpgatherqd => (gather::<u32>, true),
        M::Vgatherqpd | M::Vpgatherqq => (gather::<u64>, true),
        _ => return None,
    };
    let mut op = Op::new(run, i);
    (op.dst, op.src) = (register_number(i.op0_register()), register_number(i.op2_register()));
    let wide = i.op0_register().is_ymm() || i.memory_index().is_ymm();
    op.aux = if wide { WIDE } else { 0 } | if wide_index { WIDE_INDEX } else { 0 };
    Some(op)
}

fn gather<T: Int>(core: &mut Core, op: &Op) -> Step {
    core.avx_ready()?;
    let [dst, mask, index] = [op.dst, op.src, op.index].map(|n| usize::from(n & 15));
    if dst == mask || mask == index || dst == index {
        return Err(core.ud());
    }
    let wide_index = op.aux & WIDE_INDEX != 0;
    // As many as there are of the wider ones.
    let bytes = if op.aux & WIDE != 0 { 32 } else { 16 };
    let count = bytes / if wide_index { 8 } else { T::BYTES as usize };
    let indices = core.ymm[index];
    let base = core.registers[usize::from(op.base)].wrapping_add(op.disp as i64 as u64);
    for n in 0..count {
        if !is_chosen::<T>(&core.ymm[mask], n) {
            set_element::<T>(&mut core.ymm[mask], n, 0);
            continue;
        }
        let index = if wide_index {
            element::<u64>(&indices, n)
        } else {
            element::<u32>(&indices, n) as u32 as i32 as i64 as u64
        };
        let sum = base.wrapping_add(index << op.scale);
        let shift = u32::from(op.address_shift & 63);
        // If this faults, what has been gathered stays, and its part of the mask is done with.
        let value = core.read_element::<T>(op, sum << shift >> shift)?;
        set_element::<T>(&mut core.ymm[dst], n, value);
        set_element::<T>(&mut core.ymm[mask], n, 0);
    }
    // Nothing is left behind the last element.
    for n in count..32 / T::BYTES as usize {
        set_element::<T>(&mut core.ymm[dst], n, 0);
    }
    core.ymm[mask] = [0; 4];
    Ok(())
}
