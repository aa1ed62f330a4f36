//! A predecoded instruction.

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use crate::core::Core;
use crate::int::{HIGH_BYTE, RIP, ZERO};

/// Why an instruction did not simply end and go on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// An exception is to be delivered: what, is in [`Core::fault`]. The instruction has changed nothing.
    Fault,
    /// The instruction is done, and was a near branch that is taken: nothing else has changed, but the block does
    /// not go on.
    Branch,
    /// The instruction is done, but what follows may have changed: leave the block and look again at where the
    /// instruction pointer says, at interrupts and at modes.
    Leave,
}

pub(crate) type Step<T = ()> = Result<T, Stop>;

/// Carries out one instruction.
pub(crate) type Run = fn(&mut Core, &Op) -> Step;

/// One instruction, decoded so far that carrying it out needs no further look at its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub run: Run,
    /// Immediate operand, sign-extended; branch distance from the next instruction; full 64-bit address.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Register numbers of the memory operand, [`ZERO`] where there is none; [`RIP`] is the next instruction.
    pub base: u8,
    pub index: u8,
    /// The index is shifted left by this.
    pub scale: u8,
    /// 64 less the address size in bits.
    pub address_shift: u8,
    /// Segment of the memory operand: 0 to 5 for `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    pub segment: u8,
    /// First and second register operand, whatever they mean to `run`.
    pub dst: u8,
    pub src: u8,
    /// A third operand, a condition, a size: whatever it means to `run`.
    pub aux: u8,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// How many instructions of its block are done when it is, itself included.
    pub done: u8,
    /// Where the next instruction is, in bytes from the start of the block.
    pub next: u16,
}

/// What decoding depends on besides the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    /// 16, 32 or 64: the size of code.
    pub code_bits: u8,
    /// 16, 32 or 64: the size of the stack pointer.
    pub stack_bits: u8,
}

impl Mode {
    /// All of it, in the top 16 bits.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        u64::from(u16::from_le_bytes([self.code_bits, self.stack_bits])) << 48
    }
}

impl Op {
    /// `instruction`'s length and memory operand, to be carried out by `run`. The instruction must have been
    /// decoded as if at address 0.
    pub(crate) fn new(run: Run, instruction: &Instruction) -> Self {
        let mut op = Self {
            run,
            imm: 0,
            disp: 0,
            base: ZERO,
            index: ZERO,
            scale: 0,
            address_shift: 0,
            segment: 3,
            dst: ZERO,
            src: ZERO,
            aux: 0,
            len: instruction.len() as u8,
            done: 1,
            next: instruction.len() as u16,
        };
        op.set_memory(instruction);
        op
    }

    fn set_memory(&mut self, i: &Instruction) {
        let memory = i.op_kinds().find(|kind| is_memory(*kind));
        let Some(kind) = memory else { return };
        self.segment = match i.memory_segment() {
            // 64-bit code overrides with `fs` and `gs` alone. Which fault a bad address is depends on the rest.
            Register::ES | Register::CS | Register::SS | Register::DS
                if i.code_size() == CodeSize::Code64 =>
            {
                match i.memory_base().full_register() {
                    Register::RSP | Register::RBP => 2,
                    _ => 3,
                }
            }
            segment => segment_number(segment),
        };
        if kind == OpKind::Memory {
            let (base, index) = (i.memory_base(), i.memory_index());
            let displacement = i.memory_displacement64();
            let wide = |r: Register| if r == Register::None { 0 } else { r.size() as u32 * 8 };
            let bits = match wide(base).max(if index.is_vector_register() { 0 } else { wide(index) }) {
                0 => i.memory_displ_size() * 8,
                bits => bits,
            };
            // With neither base nor index the displacement's size is the address size, except that a 64-bit
            // address may have a sign-extended 32-bit one, for which the decoder answers 8 bytes as well.
            self.address_shift = match bits {
                16 => 48,
                32 => 32,
                _ => 0,
            };
            self.scale = i.memory_index_scale().trailing_zeros() as u8;
            self.index = if index == Register::None { ZERO } else { register_number(index) };
            if i.is_ip_rel_memory_operand() {
                self.base = RIP;
                self.disp = displacement.wrapping_sub(i.next_ip()) as i32;
            } else {
                self.base = if base == Register::None { ZERO } else { register_number(base) };
                self.disp = displacement as i32;
                // A full 64-bit address: only `mov` to and from the accumulator has it, and takes it from here.
                self.imm = displacement;
            }
        } else {
            // String operands: the register alone.
            let (base, shift) = match kind {
                OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI => (kind, 48),
                OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => (kind, 32),
                _ => (kind, 0),
            };
            self.address_shift = shift;
            self.base = match base {
                OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => 6,
                _ => 7,
            };
        }
    }

    /// The memory operand's effective address: an offset into its segment.
    #[inline(always)]
    pub(crate) fn address(&self, core: &Core) -> u64 {
        let base = core.registers[usize::from(self.base)];
        let index = core.registers[usize::from(self.index)].wrapping_shl(u32::from(self.scale));
        let sum = base.wrapping_add(index).wrapping_add(self.disp as i64 as u64);
        sum << (self.address_shift & 63) >> (self.address_shift & 63)
    }
}

/// Any kind of memory operand.
pub(crate) fn is_memory(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// The number by which handlers know a register of any kind: general-purpose (with [`HIGH_BYTE`] where it
/// applies), segment, control, debug, x87, MMX, XMM or YMM, each counted from 0.
pub(crate) fn register_number(register: Register) -> u8 {
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (register as u8 - Register::AH as u8) + HIGH_BYTE
        }
        Register::None => ZERO,
        Register::RIP | Register::EIP => RIP,
        Register::ES | Register::CS | Register::SS | Register::DS | Register::FS | Register::GS => {
            segment_number(register)
        }
        // Byte registers alone are counted with `ah` to `bh` among them.
        _ if register.is_gpr() => register.full_register().number() as u8,
        _ => register.number() as u8,
    }
}

/// 0 to 5 for `es`, `cs`, `ss`, `ds`, `fs`, `gs`, as instructions encode them.
pub(crate) fn segment_number(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}
