//! Writes host code: what the translator adds of its own in bytes, the guest's instructions through `iced-x86`.
//!
//! All memory of the translator's own is reached through `rsp` ([`crate::context`]), or through a scratch register.

use iced_x86::{Encoder, Instruction, Register};

use crate::context::BELOW;
use crate::context::register::{R11, RAX};

/// `mov r/m, reg`.
const STORE: u8 = 0x89;
/// The segment-override prefix for `gs`.
const GS: u8 = 0x65;

/// Operations of the form `op reg, r/m`, by their opcode.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x03,
    Or = 0x0b,
    And = 0x23,
    Sub = 0x2b,
    Xor = 0x33,
    Cmp = 0x3b,
    Load = 0x8b,
    Lea = 0x8d,
}

/// Conditions, as opcodes have them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Condition(pub(crate) u8);

impl Condition {
    pub(crate) const E: Self = Self(4);
    pub(crate) const NE: Self = Self(5);
    pub(crate) const NOT_BELOW: Self = Self(3);
    pub(crate) const ABOVE: Self = Self(7);
}

/// Where a jump's distance is to be filled in.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Hole(usize);

pub(crate) struct Asm {
    encoder: Encoder,
    len: usize,
    /// Distances to fill in when everything is written.
    fixes: Vec<(usize, i32)>,
    /// The address that the first byte will have.
    start: usize,
    /// Stores of guest registers to their places that nobody has looked at since.
    unseen: Vec<Store>,
}

/// A store to the context: where, and its bytes.
#[derive(Clone, Copy)]
struct Store {
    offset: i32,
    at: usize,
    len: usize,
}

impl Asm {
    pub(crate) fn new(start: usize) -> Self {
        Self { encoder: Encoder::new(64), len: 0, fixes: Vec::new(), start, unseen: Vec::new() }
    }

    /// Everything written.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut code = self.encoder.take_buffer();
        for (at, value) in self.fixes {
            code[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        code
    }

    /// Bytes written so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of what is written next.
    pub(crate) fn here(&self) -> usize {
        self.start + self.len
    }

    /// Where a hole will be in memory.
    pub(crate) fn address(&self, hole: Hole) -> usize {
        self.start + hole.0
    }

    fn byte(&mut self, byte: u8) {
        self.encoder.write_u8(byte);
        self.len += 1;
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn int(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// An instruction as the decoder made it, perhaps with other operands; false if there is no such one.
    pub(crate) fn instruction(&mut self, instruction: &Instruction) -> bool {
        if instruction.memory_base() == Register::RSP {
            self.seen(instruction.memory_displacement64() as i32 - BELOW);
        }
        // Nothing that is encoded so depends on where it is.
        match self.encoder.encode(instruction, 0) {
            Ok(len) => {
                self.len += len;
                true
            }
            Err(_) => false,
        }
    }

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = u8::from(wide) << 3 | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | base >> 3 & 1;
        if rex != 0 {
            self.byte(0x40 | rex);
        }
    }

    /// The operand bytes of `[context + offset]`, with what stands for a register or more of the opcode.
    fn context(&mut self, reg: u8, offset: i32) {
        const RSP_ALONE: u8 = 0x24;
        let reg = (reg & 7) << 3 | 4;
        let offset = offset + BELOW;
        match i8::try_from(offset) {
            Ok(0) => self.bytes(&[reg, RSP_ALONE]),
            Ok(short) => self.bytes(&[0x40 | reg, RSP_ALONE, short as u8]),
            Err(_) => {
                self.bytes(&[0x80 | reg, RSP_ALONE]);
                self.int(offset);
            }
        }
    }

    /// Whoever comes now may look at what has been stored.
    pub(crate) fn all_seen(&mut self) {
        self.unseen.clear();
    }

    fn seen(&mut self, offset: i32) {
        self.unseen.retain(|store| store.offset != offset);
    }

    /// [`store_context`](Self::store_context) for all of a guest's register. The last store there is taken out again if nobody can have
    /// looked at it: returns where it was, and how many bytes that were.
    pub(crate) fn store_guest(&mut self, offset: i32, reg: u8) -> Option<(usize, usize)> {
        let before = self.unseen.iter().position(|store| store.offset == offset);
        let gone = before.map(|n| self.unseen.swap_remove(n));
        if let Some(Store { at, len, .. }) = gone {
            debug_assert!(self.fixes.iter().all(|(hole, _)| *hole < at), "jumps are looked at as they are");
            let mut code = self.encoder.take_buffer();
            code.drain(at..at + len);
            self.encoder.set_buffer(code);
            self.len -= len;
            for store in self.unseen.iter_mut().filter(|store| store.at > at) {
                store.at -= len;
            }
        }
        let at = self.len;
        self.store_context(offset, reg);
        self.unseen.push(Store { offset, at, len: self.len - at });
        gone.map(|store| (store.at, store.len))
    }

    /// `op reg, [context + offset]`, 64 bits.
    pub(crate) fn with_context(&mut self, op: Op, reg: u8, offset: i32) {
        self.seen(offset);
        self.rex(true, reg, 0, 0);
        self.byte(op as u8);
        self.context(reg, offset);
    }

    /// `mov [context + offset], reg`, 64 bits.
    pub(crate) fn store_context(&mut self, offset: i32, reg: u8) {
        self.rex(true, reg, 0, 0);
        self.byte(STORE);
        self.context(reg, offset);
    }

    /// `op reg, [context + (r11 << shift) + offset]`, 64 bits.
    pub(crate) fn with_table(&mut self, op: Op, reg: u8, shift: u8, offset: i32) {
        self.at_table(true, op as u8, reg, shift, offset);
    }

    /// `mov [context + (r11 << shift) + offset], reg`, 64 bits.
    pub(crate) fn store_table(&mut self, reg: u8, shift: u8, offset: i32) {
        self.at_table(true, STORE, reg, shift, offset);
    }

    /// `op reg, [context + r11 + offset]`, 32 bits.
    pub(crate) fn with_table_32(&mut self, op: Op, reg: u8, offset: i32) {
        self.at_table(false, op as u8, reg, 0, offset);
    }

    /// `mov [context + r11 + offset], reg`, 32 bits.
    pub(crate) fn store_table_32(&mut self, reg: u8, offset: i32) {
        self.at_table(false, STORE, reg, 0, offset);
    }

    /// `movsxd reg, dword ptr [context + r11 + offset]`.
    pub(crate) fn load_extended(&mut self, reg: u8, offset: i32) {
        const MOVSXD: u8 = 0x63;
        self.at_table(true, MOVSXD, reg, 0, offset);
    }

    fn at_table(&mut self, wide: bool, opcode: u8, reg: u8, shift: u8, offset: i32) {
        self.at_index(wide, opcode, reg, (R11, shift), offset);
    }

    /// `op reg, [context + (index << shift) + offset]`, 64 bits.
    pub(crate) fn with_index(&mut self, op: Op, reg: u8, index: (u8, u8), offset: i32) {
        self.at_index(true, op as u8, reg, index, offset);
    }

    fn at_index(&mut self, wide: bool, opcode: u8, reg: u8, (index, shift): (u8, u8), offset: i32) {
        self.rex(wide, reg, index, 0);
        let sib = shift << 6 | (index & 7) << 3 | 4;
        let offset = offset + BELOW;
        match i8::try_from(offset) {
            Ok(short) => self.bytes(&[opcode, 0x44 | (reg & 7) << 3, sib, short as u8]),
            Err(_) => {
                self.bytes(&[opcode, 0x84 | (reg & 7) << 3, sib]);
                self.int(offset);
            }
        }
    }

    /// `mov [context + rax * 4 + offset], r11d`.
    pub(crate) fn store_r11_in_list(&mut self, offset: i32) {
        self.rex(false, R11, RAX, 0);
        self.bytes(&[STORE, 0x84 | (R11 & 7) << 3, 2 << 6 | (RAX & 7) << 3 | 4]);
        self.int(offset + BELOW);
    }

    /// `shl r11, by`.
    pub(crate) fn shift_r11_left(&mut self, by: u8) {
        self.bytes(&[0x49, 0xc1, 0xe3, by]);
    }

    /// `mov [context + offset], reg`, 32 bits.
    pub(crate) fn store_context_32(&mut self, offset: i32, reg: u8) {
        self.rex(false, reg, 0, 0);
        self.byte(STORE);
        self.context(reg, offset);
    }

    /// `op reg, [context + offset]`, 32 bits.
    pub(crate) fn with_context_32(&mut self, op: Op, reg: u8, offset: i32) {
        self.seen(offset);
        self.rex(false, reg, 0, 0);
        self.byte(op as u8);
        self.context(reg, offset);
    }

    /// `add qword ptr [context + offset], value`, sign-extended.
    pub(crate) fn add_to_context(&mut self, offset: i32, value: i32) {
        self.bytes(&[0x48, 0x81]);
        self.context(0, offset);
        self.int(value);
    }

    /// `mov eax, [rax + 4]; shl eax, 2`: where a link's parts are in their arrays; its number is behind one that `rax` leads to.
    pub(crate) fn load_link_to_rax(&mut self) {
        self.bytes(&[0x8b, 0x40, 4, 0xc1, 0xe0, size_of::<u32>().trailing_zeros() as u8]);
    }

    /// `op reg, [rax + index + displacement]`, 64 bits.
    pub(crate) fn with_place(&mut self, op: Op, reg: u8, place: Place) {
        self.at_place(true, &[op as u8], reg, place);
    }

    /// `mov [rax + index + displacement], reg`, 64 bits.
    pub(crate) fn store_place(&mut self, place: Place, reg: u8) {
        self.at_place(true, &[STORE], reg, place);
    }

    /// `mov reg, [rax + index + displacement]`, `size` bytes, zero-extended.
    pub(crate) fn load_place(&mut self, size: u8, reg: u8, place: Place) {
        let opcode: &[u8] = match size {
            1 => &[0x0f, 0xb6],
            2 => &[0x0f, 0xb7],
            _ => &[Op::Load as u8],
        };
        self.at_place(size == 8, opcode, reg, place);
    }

    /// `mov [rax + index + displacement], reg`, 16 bits.
    pub(crate) fn store_place_16(&mut self, place: Place, reg: u8) {
        self.byte(0x66);
        self.at_place(false, &[STORE], reg, place);
    }

    fn at_place(&mut self, wide: bool, opcode: &[u8], reg: u8, place: Place) {
        let Some(index) = place.index else {
            self.rex(wide, reg, 0, RAX);
            self.bytes(opcode);
            return self.memory(reg, RAX, place.displacement);
        };
        self.rex(wide, reg, index, RAX);
        self.bytes(opcode);
        let sib = (index & 7) << 3 | RAX & 7;
        match i8::try_from(place.displacement) {
            Ok(0) => self.bytes(&[0x04 | (reg & 7) << 3, sib]),
            Ok(short) => self.bytes(&[0x44 | (reg & 7) << 3, sib, short as u8]),
            Err(_) => {
                self.bytes(&[0x84 | (reg & 7) << 3, sib]);
                self.int(place.displacement);
            }
        }
    }

    fn memory(&mut self, reg: u8, base: u8, displacement: i32) {
        match i8::try_from(displacement) {
            Ok(0) if base & 7 != 5 => self.byte((reg & 7) << 3 | base & 7),
            Ok(short) => self.bytes(&[0x40 | (reg & 7) << 3 | base & 7, short as u8]),
            Err(_) => {
                self.byte(0x80 | (reg & 7) << 3 | base & 7);
                self.int(displacement);
            }
        }
    }

    /// `op reg, source`, 32 or 64 bits.
    pub(crate) fn with_register(&mut self, op: Op, wide: bool, reg: u8, source: u8) {
        self.rex(wide, reg, 0, source);
        self.bytes(&[op as u8, 0xc0 | (reg & 7) << 3 | source & 7]);
    }

    /// `mov reg, source`, 64 bits.
    pub(crate) fn mov(&mut self, reg: u8, source: u8) {
        self.with_register(Op::Load, true, reg, source);
    }

    /// `op reg, value`, 32 or 64 bits, the value sign-extended. Of [`Op`] only the arithmetic ones.
    pub(crate) fn with_value(&mut self, op: Op, wide: bool, reg: u8, value: i32) {
        const WITH_ACCUMULATOR: u8 = 0x05;
        self.rex(wide, 0, 0, reg);
        let digit = op as u8 & 0x38;
        match i8::try_from(value) {
            Ok(short) => return self.bytes(&[0x83, 0xc0 | digit | reg & 7, short as u8]),
            Err(_) if reg == RAX => self.byte(WITH_ACCUMULATOR | digit),
            Err(_) => self.bytes(&[0x81, 0xc0 | digit | reg & 7]),
        }
        self.int(value);
    }

    /// `mov reg, value`, sign-extended.
    pub(crate) fn value(&mut self, reg: u8, value: i32) {
        self.rex(true, 0, 0, reg);
        self.bytes(&[0xc7, 0xc0 | reg & 7]);
        self.int(value);
    }

    /// `mov reg, value`, zero-extended.
    pub(crate) fn unsigned(&mut self, reg: u8, value: u32) {
        self.rex(false, 0, 0, reg);
        self.byte(0xb8 | reg & 7);
        self.bytes(&value.to_le_bytes());
    }

    /// `shrx r11d, eax, esp`: bits 31:12 of `rax`, as the low bits of `rsp` are always 12; leaves the flags.
    pub(crate) fn page_to_r11(&mut self) {
        self.page(R11, RAX);
    }

    /// `shrx eax, reg, esp`: the same of another.
    pub(crate) fn page_to_rax(&mut self, reg: u8) {
        self.page(RAX, reg);
    }

    /// `shrx to, from, esp`, 32 bits.
    fn page(&mut self, to: u8, from: u8) {
        let registers = (to & 7) << 3 | from & 7;
        self.bytes(&[0xc4, 0xe2 ^ (to >> 3) << 7 ^ (from >> 3) << 5, 0x5b, 0xf7, 0xc0 | registers]);
    }

    /// `andn r11d, eax, [context + offset]`: the bits there that `rax` has not; ZF tells if there is none.
    pub(crate) fn masked_to_r11(&mut self, offset: i32) {
        self.bytes(&[0xc4, 0x62, 0x78, 0xf2]);
        self.context(R11, offset);
    }

    /// `imul r11d, eax, factor; shr r11d, 28 - bits; and r11d, -1 << 4`: 16 times the product's upper bits.
    pub(crate) fn hash_to_r11(&mut self, factor: u32, bits: u8) {
        self.bytes(&[0x44, 0x69, 0xd8]);
        self.bytes(&factor.to_le_bytes());
        self.bytes(&[0x41, 0xc1, 0xeb, 28 - bits]);
        self.with_value(Op::And, false, R11, -16);
    }

    /// `test reg, [context + offset]`, 64 bits.
    pub(crate) fn test_context(&mut self, reg: u8, offset: i32) {
        const TEST: u8 = 0x85;
        self.rex(true, reg, 0, 0);
        self.byte(TEST);
        self.context(reg, offset);
    }

    /// `test reg, value`, 32 or 64 bits, the value sign-extended.
    pub(crate) fn test_value(&mut self, wide: bool, reg: u8, value: i32) {
        self.rex(wide, 0, 0, reg);
        if reg == RAX {
            self.byte(0xa9);
        } else {
            self.bytes(&[0xf7, 0xc0 | reg & 7]);
        }
        self.int(value);
    }

    /// Saves the flags, all of which are the host's: `lahf` and OF, through `rax`.
    pub(crate) fn save_flags(&mut self, offset: i32) {
        // lahf; seto al; mov [context + offset], eax
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0, 0x89]);
        self.context(0, offset);
    }

    /// Puts CF and OF, which are the host's, to the others that [`save_flags`](Self::save_flags) has saved; changes
    /// `rax`.
    pub(crate) fn save_carry_and_overflow(&mut self, offset: i32) {
        // seto [context + offset]; setc al; and byte [context + offset + 1], 0xfe; or [context + offset + 1], al
        self.bytes(&[0x0f, 0x90]);
        self.context(0, offset);
        self.bytes(&[0x0f, 0x92, 0xc0, 0x80]);
        self.context(4, offset + 1);
        self.bytes(&[0xfe, 0x08]);
        self.context(0, offset + 1);
    }

    /// Takes back CF of what [`save_flags`](Self::save_flags) has saved; changes others.
    pub(crate) fn restore_carry(&mut self, offset: i32) {
        // bt dword [context + offset], 8
        self.bytes(&[0x0f, 0xba]);
        self.context(4, offset);
        self.byte(8);
    }

    /// Takes back what [`save_flags`](Self::save_flags) has saved, through `rax`.
    pub(crate) fn restore_flags(&mut self, offset: i32) {
        // movzx eax, word [context + offset]; add al, 0x7f; sahf
        self.bytes(&[0x0f, 0xb7]);
        self.context(0, offset);
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `xchg rax, reg`; leaves the flags.
    pub(crate) fn swap_with_rax(&mut self, reg: u8) {
        self.rex(true, 0, 0, reg);
        self.byte(0x90 | reg & 7);
    }

    /// `xchg reg8, reg8`, of the two low bytes of `rax`, `rcx`, `rdx` or `rbx`; leaves the flags.
    pub(crate) fn swap_low_bytes(&mut self, reg: u8) {
        self.bytes(&[0x86, 0xe0 | (reg & 3) << 3 | reg & 3]);
    }

    /// `test reg, reg`, 32 or 64 bits.
    pub(crate) fn test(&mut self, wide: bool, reg: u8) {
        self.rex(wide, reg, 0, reg);
        self.bytes(&[0x85, 0xc0 | (reg & 7) << 3 | reg & 7]);
    }

    /// `cmp dword ptr [context + offset], 0`.
    pub(crate) fn compare_context_32_with_zero(&mut self, offset: i32) {
        self.byte(0x83);
        self.context(7, offset);
        self.byte(0);
    }

    /// `mov qword ptr [context + offset], value`, sign-extended; leaves the flags.
    pub(crate) fn store_context_value(&mut self, offset: i32, value: i32) {
        self.bytes(&[0x48, 0xc7]);
        self.context(0, offset);
        self.int(value);
    }

    /// `cmp qword ptr [context + offset], 0`.
    pub(crate) fn compare_context_with_zero(&mut self, offset: i32) {
        self.bytes(&[0x48, 0x83]);
        self.context(7, offset);
        self.byte(0);
    }

    /// `pushfq; pop r11`: on the host's own stack.
    pub(crate) fn push_flags_to_r11(&mut self) {
        self.bytes(&[0x9c, 0x41, 0x5b]);
    }

    /// Puts the arithmetic flags in `rax`, as `rflags` has them, where [`save_flags`](Self::save_flags) would; changes
    /// `rax`, `r11` and the flags.
    pub(crate) fn rax_to_saved_flags(&mut self, offset: i32) {
        self.mov(R11, RAX);
        // shr r11d, 11; and r11d, 1; movzx eax, al; shl eax, 8; or eax, r11d
        self.bytes(&[0x41, 0xc1, 0xeb, 11, 0x41, 0x83, 0xe3, 1, 0x0f, 0xb6, 0xc0, 0xc1, 0xe0, 8]);
        self.with_register(Op::Or, false, RAX, R11);
        self.store_context(offset, RAX);
    }

    /// `jcc`, to be filled in.
    pub(crate) fn jump_if(&mut self, condition: Condition) -> Hole {
        self.all_seen();
        self.bytes(&[0x0f, 0x80 | condition.0]);
        self.int(0);
        Hole(self.len - 4)
    }

    /// `jmp`, to be filled in.
    pub(crate) fn jump(&mut self) -> Hole {
        self.all_seen();
        self.byte(0xe9);
        self.int(0);
        Hole(self.len - 4)
    }

    /// Lets a hole lead to what has been written, `at` bytes from the start.
    pub(crate) fn lead(&mut self, hole: Hole, at: usize) {
        self.all_seen();
        self.fixes.push((hole.0, (at as i64 - hole.0 as i64 - 4) as i32));
    }

    /// Lets a hole lead to an address of other code.
    pub(crate) fn lead_to(&mut self, hole: Hole, address: usize) {
        let from = self.address(hole) + 4;
        self.fixes.push((hole.0, (address as i64 - from as i64) as i32));
    }

    /// Lets a hole lead here.
    pub(crate) fn fill(&mut self, hole: Hole) {
        self.all_seen();
        self.lead(hole, self.len);
    }

    /// `jmp [context + (r11 << shift) + offset]`.
    pub(crate) fn jump_by_table(&mut self, shift: u8, offset: i32) {
        const GROUP: u8 = 0xff;
        self.all_seen();
        self.at_table(false, GROUP, 4, shift, offset);
    }

    /// `jmp r11`.
    pub(crate) fn jump_r11(&mut self) {
        self.all_seen();
        self.bytes(&[0x41, 0xff, 0xe0 | R11 & 7]);
    }

    /// `mov eax, [rax]`.
    pub(crate) fn load_double(&mut self) {
        self.bytes(&[0x8b, 0]);
    }

    /// `movzx eax, word ptr [rax]`.
    pub(crate) fn load_word(&mut self) {
        self.bytes(&[0x0f, 0xb7, 0]);
    }

    /// `ldmxcsr [context + offset]`.
    pub(crate) fn load_mxcsr(&mut self, offset: i32) {
        self.bytes(&[0x0f, 0xae]);
        self.context(2, offset);
    }

    /// `fldcw [context + offset]`.
    pub(crate) fn load_x87_control(&mut self, offset: i32) {
        self.byte(0xd9);
        self.context(5, offset);
    }

    /// `jmp gs:[offset]`: for where `rsp` is another.
    pub(crate) fn jump_context(&mut self, offset: i32) {
        self.all_seen();
        self.bytes(&[GS, 0xff, 0x24, 0x25]);
        self.int(offset);
    }

    /// `call [context + offset]`.
    pub(crate) fn call_context(&mut self, offset: i32) {
        self.all_seen();
        self.byte(0xff);
        self.context(2, offset);
    }

    /// `pop qword ptr [context + offset]`, with `rsp` as it is then.
    pub(crate) fn pop_context(&mut self, offset: i32) {
        self.byte(0x8f);
        self.context(0, offset);
    }

    /// `push qword ptr [context + offset]`.
    pub(crate) fn push_context(&mut self, offset: i32) {
        self.byte(0xff);
        self.context(6, offset);
    }
}

/// Where an access goes in the host's memory: `rax`, perhaps another host register, and a displacement.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Place {
    pub(crate) index: Option<u8>,
    pub(crate) displacement: i32,
}

/// An address to compute: host registers all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum {
    pub(crate) base: Option<u8>,
    /// Register and shift.
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) displacement: i32,
}

impl Asm {
    /// `lea reg, [sum]`, 32 or 64 bits; leaves the flags.
    pub(crate) fn lea(&mut self, wide: bool, reg: u8, sum: Sum) {
        let (base, index) = (sum.base.unwrap_or(0), sum.index.map_or(0, |(index, _)| index));
        self.rex(wide, reg, index, base);
        self.byte(Op::Lea as u8);
        let reg = (reg & 7) << 3;
        let sib = |base: u8| match sum.index {
            Some((index, shift)) => shift << 6 | (index & 7) << 3 | base & 7,
            None => 4 << 3 | base & 7,
        };
        let Some(base) = sum.base else {
            self.bytes(&[reg | 4, sib(5)]);
            return self.int(sum.displacement);
        };
        let needs_sib = sum.index.is_some() || base & 7 == 4;
        let low = if needs_sib { 4 } else { base & 7 };
        let short = i8::try_from(sum.displacement).ok();
        let form = match short {
            Some(0) if base & 7 != 5 => 0x00,
            Some(_) => 0x40,
            None => 0x80,
        };
        self.byte(form | reg | low);
        if needs_sib {
            self.byte(sib(base));
        }
        match (form, short) {
            (0x00, _) => {}
            (0x40, Some(short)) => self.byte(short as u8),
            _ => self.int(sum.displacement),
        }
    }

    /// `lea reg, [base + displacement]`, 64 bits; leaves the flags.
    pub(crate) fn add_to(&mut self, reg: u8, base: u8, displacement: i32) {
        self.lea(true, reg, Sum { base: Some(base), index: None, displacement });
    }
}
