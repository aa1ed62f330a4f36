//! Where the guest's arithmetic flags are while a block is written.
//!
//! They live in the host's. The translator's own checks destroy those, so each time it either knows how to have
//! the host compute them anew, from registers that still hold what they were computed from, or saves them. They are
//! made good only when somebody looks: an instruction that reads them, the end of the block, or a fault.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::asm::{Asm, Op};
use crate::context::offset;
use crate::context::register::{R10, RSP};
use crate::registers;

/// An operand that flags were computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A guest's register, which has a host register.
    Register(u8),
    Constant(i32),
}

/// How to compute the flags anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Recipe {
    /// They have been saved.
    Saved,
    /// By the same comparison, of host registers.
    Again { instruction: Instruction, from: u16 },
    /// By the test of a result.
    Test { result: u8, wide: bool },
    /// By going back from the result to what it was, and doing the same again: an addition or a subtraction. The
    /// register has grown by `grown` since.
    Redo { subtract: bool, result: u8, by: Operand, wide: bool, grown: i32 },
}

/// Where the flags are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Flags {
    /// In the host's; perhaps they can be computed anew.
    Host(Option<Recipe>),
    /// Nowhere: the host's are something else.
    Lost(Recipe),
}

fn bit(register: u8) -> u16 {
    1 << register
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
                .filter(|number| registers::host(*number).is_some())
        };
        let result = register(0)?;
        let constant = || match i.op1_kind() {
            OpKind::Register | OpKind::Memory => None,
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
                let mut again = *i;
                let mut from = bit(result);
                let host = |number: u8| registers::host(number).unwrap_or(number);
                again.set_op0_register(registers::with_number(i.op0_register(), host(result)));
                if let Operand::Register(number) = by {
                    from |= bit(number);
                    again.set_op1_register(registers::with_number(i.op1_register(), host(number)));
                }
                Some(Self::Again { instruction: again, from })
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

    /// The registers that it needs, a bit each.
    fn needs(&self) -> u16 {
        match self {
            Self::Saved => 0,
            Self::Again { from, .. } => *from,
            Self::Redo { result, by: Operand::Register(number), .. } => bit(*result) | bit(*number),
            Self::Test { result, .. } | Self::Redo { result, .. } => bit(*result),
        }
    }

    fn write(&self, asm: &mut Asm) {
        let host = |guest: u8| registers::host(guest).unwrap_or(guest);
        match *self {
            Self::Saved => asm.restore_flags(offset::FLAGS),
            Self::Again { instruction, .. } => {
                let known = asm.instruction(&instruction);
                debug_assert!(known, "a comparison of registers can be encoded");
            }
            Self::Test { result, wide } => asm.test(wide, host(result)),
            Self::Redo { subtract, result, by, wide, grown } => {
                asm.add_to(R10, host(result), -grown);
                let ops = if subtract { [Op::Add, Op::Sub] } else { [Op::Sub, Op::Add] };
                for op in ops {
                    match by {
                        Operand::Register(number) => asm.with_register(op, wide, R10, host(number)),
                        Operand::Constant(value) => asm.with_value(op, wide, R10, value),
                    }
                }
            }
        }
    }
}

impl Flags {
    /// Whatever they are, they are in the host's.
    pub(crate) const UNKNOWN: Self = Self::Host(None);
    /// Whatever they are, they have been saved, and the host's are something else.
    pub(crate) const SAVED: Self = Self::Lost(Recipe::Saved);

    /// Lets the host's flags be destroyed.
    pub(crate) fn lose(&mut self, asm: &mut Asm) {
        if let Self::Host(recipe) = *self {
            let recipe = recipe.unwrap_or_else(|| {
                asm.save_flags(offset::FLAGS);
                Recipe::Saved
            });
            *self = Self::Lost(recipe);
        }
    }

    /// Writes code that puts them into the host's, whatever the state; changes `r10`.
    pub(crate) fn write_back(&self, asm: &mut Asm) {
        if let Self::Lost(recipe) = self {
            recipe.write(asm);
        }
    }

    /// Makes the host's good.
    pub(crate) fn want(&mut self, asm: &mut Asm) {
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

    pub(crate) fn are_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// The registers of `written`, a bit each, are about to change.
    pub(crate) fn before_writing(&mut self, asm: &mut Asm, written: u16) {
        match *self {
            Self::Lost(recipe) if recipe.needs() & written != 0 => {
                self.write_back(asm);
                *self = Self::Host(None);
            }
            Self::Host(Some(recipe)) if recipe.needs() & written != 0 => *self = Self::Host(None),
            _ => {}
        }
    }

    /// The stack pointer is going to grow by a constant: later, when no scratch register may be changed.
    pub(crate) fn prepare_moving_stack(&mut self, asm: &mut Asm) {
        if !self.follow_stack(0) {
            self.before_writing(asm, bit(RSP));
        }
    }

    /// The stack pointer is about to grow by `by`, or shrink, and no flag changes.
    pub(crate) fn before_moving_stack(&mut self, asm: &mut Asm, by: i32) {
        if !self.follow_stack(by) {
            self.before_writing(asm, bit(RSP));
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

    /// An instruction has set some of them, or something has that cannot be done again.
    pub(crate) fn set(&mut self) {
        *self = Self::Host(None);
    }
}
