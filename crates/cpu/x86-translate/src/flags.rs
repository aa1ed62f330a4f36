//! Where the guest's arithmetic flags are while a block is written.
//!
//! They live in the host's. The translator's own checks destroy those, so each time it either knows how to have
//! the host compute them anew, from what they were computed from, or saves them. They are made good only when somebody looks:
//! an instruction that reads them, the end of the block, or a fault. Most often nobody does before they are set again, so a
//! copy of a register that is about to change is cheaper than to save them.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};
use serde::{Deserialize, Serialize};

use crate::asm::{Asm, Op};
use crate::context::register::{RAX, RSP};
use crate::context::{BELOW, COPIES, Context, offset};
use crate::registers;

/// An operand that flags were computed from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Operand {
    /// A guest's register, or one of [`COPIES`].
    Register(u8),
    Constant(i32),
}

/// How to compute the flags anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Recipe {
    /// They have been saved.
    Saved,
    /// By the same comparison, of `size` bytes: `test` or `cmp`.
    Again { test: bool, first: u8, by: Operand, size: u8 },
    /// By the test of a result.
    Test { result: u8, wide: bool },
    /// By going back from the result to what it was, and doing the same again: an addition or a subtraction. The
    /// register has grown by `grown` since.
    Redo { subtract: bool, result: u8, by: Operand, wide: bool, grown: i32 },
}

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Flags {
    /// In the host's; perhaps they can be computed anew.
    Host(Option<Recipe>),
    /// Nowhere: the host's are something else.
    Lost(Recipe),
    /// CF and OF are in the host's, as a rotation has left them; the others have been saved, and the host's are something else.
    Rotated,
}

/// What is going to happen to the flags next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The host's will be something else, while these are good still.
    Lost,
    Unknown,
}

/// In the form in which [`Asm::save_flags`] saves them.
const CARRY_AND_OVERFLOW: u64 = 1 << 8 | 1;

/// Nothing changes a copy.
fn bit(register: u8) -> u16 {
    if COPIES.contains(&register) { 0 } else { 1 << register }
}

/// Loads a guest's register into the host's `rax`, if it has no host register: where it is then.
fn load(asm: &mut Asm, register: u8) -> u8 {
    registers::host(register).unwrap_or_else(|| {
        asm.with_context(Op::Load, RAX, Context::slot_offset(register));
        RAX
    })
}

impl Recipe {
    /// How the flags that `instruction`, which sets all of them, has set can be computed anew.
    pub(crate) fn of(instruction: &Instruction) -> Option<Self> {
        let i = instruction;
        let size = match i.op0_kind() {
            OpKind::Register => i.op0_register().size(),
            _ => return None,
        };
        let register = |n: u32| -> Option<u8> {
            let register = i.op_register(n);
            (i.op_kind(n) == OpKind::Register && !registers::is_high_byte(register))
                .then(|| registers::number(register))?
        };
        let result = register(0)?;
        let constant = || match i.op1_kind() {
            OpKind::Register | OpKind::Memory => None,
            // The decoder extends what is as wide as the operand by zeros.
            _ if size == 4 => Some(i.immediate(1) as i32),
            _ => i32::try_from(i.immediate(1) as i64).ok(),
        };
        let by = match register(1) {
            Some(number) => Operand::Register(number),
            None => Operand::Constant(constant()?),
        };
        let wide = size == 8;
        let full = size >= 4;
        match i.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => {
                let test = i.mnemonic() == Mnemonic::Test;
                Some(Self::Again { test, first: result, by, size: size as u8 })
            }
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor if full => Some(Self::Test { result, wide }),
            Mnemonic::Add | Mnemonic::Sub if full => match by {
                Operand::Register(number) if number == result => None,
                _ => {
                    let subtract = i.mnemonic() == Mnemonic::Sub;
                    Some(Self::Redo { subtract, result, by, wide, grown: 0 })
                }
            },
            _ => None,
        }
    }

    /// The registers or copies that it needs: the first operand, or the result, and the second.
    fn operands(&mut self) -> [Option<&mut u8>; 2] {
        match self {
            Self::Saved => [None, None],
            Self::Again { first, by: Operand::Register(by), .. } => [Some(first), Some(by)],
            Self::Redo { result, by: Operand::Register(by), .. } => [Some(result), Some(by)],
            Self::Again { first: one, .. }
            | Self::Test { result: one, .. }
            | Self::Redo { result: one, .. } => [Some(one), None],
        }
    }

    /// The registers among them, a bit each.
    fn needs(mut self) -> u16 {
        self.operands().into_iter().flatten().fold(0, |bits, operand| bits | bit(*operand))
    }

    /// Copies those operands that are about to change; changes `rax`, and no flags.
    fn copy(&mut self, asm: &mut Asm, changed: u16) {
        for (operand, copy) in self.operands().into_iter().zip(COPIES) {
            if let Some(operand) = operand.filter(|operand| bit(**operand) & changed != 0) {
                let from = load(asm, *operand);
                asm.store_context(Context::slot_offset(copy), from);
                *operand = copy;
            }
        }
    }

    /// What they are, where [`Asm::save_flags`] saves them; `saved` is what it has saved there last. `value` tells what is in
    /// registers and copies.
    fn value(&self, value: &dyn Fn(u8) -> u64, saved: u64) -> u64 {
        let second = |by: Operand| match by {
            Operand::Register(number) => value(number),
            Operand::Constant(value) => i64::from(value) as u64,
        };
        let width = |wide: bool| if wide { 8 } else { 4 };
        match *self {
            Self::Saved => saved,
            Self::Again { test: true, first, by, size } => of_logic(value(first) & second(by), size),
            Self::Again { first, by, size, .. } => of_subtraction(value(first), second(by), size),
            Self::Test { result, wide } => of_logic(value(result), width(wide)),
            Self::Redo { subtract, result, by, wide, grown } => {
                let (result, by) = (value(result).wrapping_sub(i64::from(grown) as u64), second(by));
                if subtract {
                    of_subtraction(result.wrapping_add(by), by, width(wide))
                } else {
                    of_addition(result.wrapping_sub(by), by, width(wide))
                }
            }
        }
    }

    fn write(&self, asm: &mut Asm) {
        match *self {
            Self::Saved => asm.restore_flags(offset::FLAGS),
            Self::Again { test, first, by, size } => {
                let first = registers::sized(size, load(asm, first));
                let again = match by {
                    Operand::Register(number) => match registers::host(number) {
                        Some(by) => {
                            let [code, ..] = codes(test, size);
                            Instruction::with2(code, first, registers::sized(size, by))
                        }
                        None => with_slot(test, first, size, number),
                    },
                    Operand::Constant(value) => {
                        let [_, short, code] = codes(test, size);
                        let code = if i8::try_from(value).is_ok() { short } else { code };
                        Instruction::with2(code, first, value)
                    }
                };
                let known = again.is_ok_and(|again| asm.instruction(&again));
                debug_assert!(known, "a comparison of registers can be encoded");
            }
            Self::Test { result, wide } => {
                let result = load(asm, result);
                asm.test(wide, result);
            }
            Self::Redo { subtract, result, by, wide, grown } => {
                let result = load(asm, result);
                if grown != 0 || result != RAX {
                    asm.add_to(RAX, result, -grown);
                }
                let ops = if subtract { [Op::Add, Op::Sub] } else { [Op::Sub, Op::Add] };
                for op in ops {
                    match by {
                        Operand::Constant(value) => asm.with_value(op, wide, RAX, value),
                        Operand::Register(number) => match registers::host(number) {
                            Some(by) => asm.with_register(op, wide, RAX, by),
                            None if wide => asm.with_context(op, RAX, Context::slot_offset(number)),
                            None => asm.with_context_32(op, RAX, Context::slot_offset(number)),
                        },
                    }
                }
            }
        }
    }
}

/// A comparison of `size` bytes of a host's register with a guest's that is in memory, or with a copy.
fn with_slot(test: bool, first: Register, size: u8, slot: u8) -> Result<Instruction, iced_x86::IcedError> {
    let displacement = i64::from(Context::slot_offset(slot) + BELOW);
    let second = MemoryOperand::with_base_displ(Register::RSP, displacement);
    match codes(test, size) {
        [code, ..] if test => Instruction::with2(code, second, first),
        [code, ..] => Instruction::with2(code, first, second),
    }
}

/// `test` or `cmp` of `size` bytes: of two registers, or of one and memory; of one and a byte; and of one and a constant.
fn codes(test: bool, size: u8) -> [Code; 3] {
    use Code as C;
    match (test, size) {
        (true, 8) => [C::Test_rm64_r64, C::Test_rm64_imm32, C::Test_rm64_imm32],
        (true, 4) => [C::Test_rm32_r32, C::Test_rm32_imm32, C::Test_rm32_imm32],
        (true, 2) => [C::Test_rm16_r16, C::Test_rm16_imm16, C::Test_rm16_imm16],
        (true, _) => [C::Test_rm8_r8, C::Test_rm8_imm8, C::Test_rm8_imm8],
        (false, 8) => [C::Cmp_r64_rm64, C::Cmp_rm64_imm8, C::Cmp_rm64_imm32],
        (false, 4) => [C::Cmp_r32_rm32, C::Cmp_rm32_imm8, C::Cmp_rm32_imm32],
        (false, 2) => [C::Cmp_r16_rm16, C::Cmp_rm16_imm8, C::Cmp_rm16_imm16],
        (false, _) => [C::Cmp_r8_rm8, C::Cmp_rm8_imm8, C::Cmp_rm8_imm8],
    }
}

impl Flags {
    /// Whatever they are, they are in the host's.
    pub(crate) const UNKNOWN: Self = Self::Host(None);
    /// Whatever they are, they have been saved, and the host's are something else.
    pub(crate) const SAVED: Self = Self::Lost(Recipe::Saved);

    /// Lets the host's flags be destroyed.
    pub(crate) fn lose(&mut self, asm: &mut Asm) {
        let recipe = match *self {
            Self::Host(Some(recipe)) | Self::Lost(recipe) => recipe,
            Self::Host(None) => {
                asm.save_flags(offset::FLAGS);
                Recipe::Saved
            }
            Self::Rotated => {
                asm.save_carry_and_overflow(offset::FLAGS);
                Recipe::Saved
            }
        };
        *self = Self::Lost(recipe);
    }

    /// Writes code that puts them into the host's, whatever the state; changes `rax`.
    fn write_back(&self, asm: &mut Asm) {
        if let Self::Lost(recipe) = self {
            recipe.write(asm);
        }
    }

    /// What they are, in the form in which [`Asm::save_flags`] saves them: with what is in registers and copies, what was saved
    /// last, and the host's flags in that form.
    pub(crate) fn value(&self, register: &dyn Fn(u8) -> u64, saved: u64, host: u64) -> u64 {
        match self {
            Self::Host(_) => host,
            Self::Lost(recipe) => recipe.value(register, saved),
            Self::Rotated => saved & !CARRY_AND_OVERFLOW | host & CARRY_AND_OVERFLOW,
        }
    }

    /// Makes the host's good.
    pub(crate) fn want(&mut self, asm: &mut Asm) {
        if *self == Self::Rotated {
            self.lose(asm);
        }
        self.write_back(asm);
        if let Self::Lost(recipe) = *self {
            *self = Self::Host(Some(recipe));
        }
    }

    /// Whether they are where [`Recipe::Saved`] saves them, perhaps among other places.
    pub(crate) fn are_saved(&self) -> bool {
        matches!(self, Self::Lost(Recipe::Saved) | Self::Host(Some(Recipe::Saved)))
    }

    /// Whether they are in the host's, and can be computed anew without having been saved.
    pub(crate) fn are_computable(&self) -> bool {
        matches!(self, Self::Host(Some(recipe)) if *recipe != Recipe::Saved)
    }

    /// Whether the host's are good, all of them.
    pub(crate) fn are_in_host(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    pub(crate) fn are_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// Whether they can be computed anew only from what is in one of these registers, a bit each.
    pub(crate) fn need(&self, registers: u16) -> bool {
        matches!(self, Self::Host(Some(recipe)) | Self::Lost(recipe) if recipe.needs() & registers != 0)
    }

    /// The registers of `written`, a bit each, are about to change; `fate` is what is going to happen to the flags. Changes `rax`.
    pub(crate) fn before_writing(&mut self, asm: &mut Asm, written: u16, fate: Fate) {
        match self {
            _ if !self.need(written) => {}
            Self::Host(Some(recipe)) | Self::Lost(recipe) if fate == Fate::Lost => recipe.copy(asm, written),
            _ => {
                self.write_back(asm);
                *self = Self::Host(None);
            }
        }
    }

    /// The stack pointer is going to grow by a constant: later, when no scratch register may be changed.
    pub(crate) fn prepare_moving_stack(&mut self, asm: &mut Asm) {
        if !self.follow_stack(0) {
            self.before_writing(asm, bit(RSP), Fate::Unknown);
        }
    }

    /// The stack pointer is about to grow by `by`, or shrink, and no flag changes.
    pub(crate) fn before_moving_stack(&mut self, asm: &mut Asm, by: i32) {
        if !self.follow_stack(by) {
            self.before_writing(asm, bit(RSP), Fate::Unknown);
        }
    }

    /// Takes a move of the stack pointer into account, if the recipe can.
    fn follow_stack(&mut self, by: i32) -> bool {
        let (Self::Host(Some(recipe)) | Self::Lost(recipe)) = self else { return false };
        let Recipe::Redo { result: RSP, by: Operand::Constant(_), wide: true, grown, .. } = recipe else {
            return false;
        };
        *grown += by;
        true
    }

    /// An instruction has set all of them.
    pub(crate) fn set_by(&mut self, instruction: &Instruction) {
        *self = Self::Host(Recipe::of(instruction));
    }

    /// A comparison has set them whose operand `n` is `size` bytes in memory, of which there is a copy: the one of this number.
    pub(crate) fn set_by_comparison(&mut self, instruction: &Instruction, n: u32, size: u8) {
        // A register stands for the copy, whichever: it is replaced.
        let mut named = *instruction;
        registers::set_operand(&mut named, n, registers::sized(size, RAX));
        let mut recipe = Recipe::of(&named);
        let operands = recipe.as_mut().map(Recipe::operands);
        if let Some(operand) = operands.and_then(|operands| operands.into_iter().nth(n as usize)?) {
            *operand = COPIES[n as usize];
        }
        *self = Self::Host(recipe);
    }

    /// A rotation has set CF and OF, while the others are where they were saved.
    pub(crate) fn rotate(&mut self) {
        debug_assert!(self.are_put_by());
        *self = Self::Rotated;
    }

    /// Whether they have been saved, perhaps but for CF and OF, and the host's are something else.
    pub(crate) fn are_put_by(&self) -> bool {
        matches!(self, Self::Lost(Recipe::Saved) | Self::Rotated)
    }

    /// Lets the host's CF be good, for an instruction that needs no other, if they [are put by](Self::are_put_by).
    pub(crate) fn want_carry(&self, asm: &mut Asm) {
        if *self != Self::Rotated {
            asm.restore_carry(offset::FLAGS);
        }
    }

    /// An instruction has set some of them, or something has that cannot be done again.
    pub(crate) fn set(&mut self) {
        *self = Self::Host(None);
    }
}

/// The sign bit of `size` bytes.
fn sign(size: u8) -> u64 {
    1 << (8 * size - 1)
}

/// The flags that a result of `size` bytes has alone: ZF, SF and PF; and those given.
fn of_result(result: u64, size: u8, carry: bool, half_carry: bool, overflow: bool) -> u64 {
    let mask = sign(size) | (sign(size) - 1);
    let even = (result as u8).count_ones().is_multiple_of(2);
    let bits =
        [(0, carry), (2, even), (4, half_carry), (6, result & mask == 0), (7, result & sign(size) != 0)];
    let low: u64 = bits.into_iter().map(|(n, set)| u64::from(set) << n).sum();
    // What `lahf` gives has bit 1 set always.
    (low | 2) << 8 | u64::from(overflow)
}

/// Of `and`, `or`, `xor` and `test`. AF is undefined: here as the host's processors have it.
fn of_logic(result: u64, size: u8) -> u64 {
    of_result(result, size, false, false, false)
}

fn of_addition(a: u64, b: u64, size: u8) -> u64 {
    let mask = sign(size) | (sign(size) - 1);
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_add(b) & mask;
    let overflow = (a ^ result) & (b ^ result) & sign(size) != 0;
    of_result(result, size, result < a, (a ^ b ^ result) & 0x10 != 0, overflow)
}

fn of_subtraction(a: u64, b: u64, size: u8) -> u64 {
    let mask = sign(size) | (sign(size) - 1);
    let (a, b) = (a & mask, b & mask);
    let result = a.wrapping_sub(b) & mask;
    let overflow = (a ^ b) & (a ^ result) & sign(size) != 0;
    of_result(result, size, a < b, (a ^ b ^ result) & 0x10 != 0, overflow)
}
