//! Which host register holds which guest register.
//!
//! Most are in the register of the same name. The host's `rsp` leads to the context, so the guest's is in `r8`; `rax` and
//! `r11` are the translator's scratch, `rax` because flags are saved through it, and the guest's `rax` is in `r10`. The guest's
//! `r8`, `r10` and `r11` are in memory: compilers use these least, and hardly ever for what is used for long.

use iced_x86::{Instruction, OpKind, Register};

use crate::context::register::{R8, R10, R11, RAX, RSP};

/// The host's register of the guest's `rax`.
pub(crate) const GUEST_RAX: u8 = R10;

/// The host's register of a guest's, or `None` if it is in memory, as copies are.
pub(crate) fn host(guest: u8) -> Option<u8> {
    match guest {
        RAX => Some(GUEST_RAX),
        RSP => Some(R8),
        R8 | R10 | R11 | 16.. => None,
        _ => Some(guest),
    }
}

/// Whether a guest register is another on the host.
pub(crate) fn moves(guest: u8) -> bool {
    host(guest) != Some(guest)
}

/// The number of a general-purpose register of any size.
pub(crate) fn number(register: Register) -> Option<u8> {
    register.is_gpr().then(|| register.full_register().number() as u8)
}

/// `ah`, `bh`, `ch` or `dh`.
pub(crate) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// Lets operand `n`, one of the first four, be a register.
pub(crate) fn set_operand(instruction: &mut Instruction, n: u32, register: Register) {
    instruction.set_op_kind(n, OpKind::Register);
    match n {
        0 => instruction.set_op0_register(register),
        1 => instruction.set_op1_register(register),
        2 => instruction.set_op2_register(register),
        3 => instruction.set_op3_register(register),
        _ => {}
    }
}

/// The register of the same size as `like` with another number.
pub(crate) fn with_number(like: Register, number: u8) -> Register {
    sized(like.size() as u8, number)
}

/// The register of `size` bytes with this number.
pub(crate) fn sized(size: u8, number: u8) -> Register {
    use Register as R;
    let (table, n): ([R; 16], usize) = (
        match size {
            8 => [
                R::RAX,
                R::RCX,
                R::RDX,
                R::RBX,
                R::RSP,
                R::RBP,
                R::RSI,
                R::RDI,
                R::R8,
                R::R9,
                R::R10,
                R::R11,
                R::R12,
                R::R13,
                R::R14,
                R::R15,
            ],
            4 => [
                R::EAX,
                R::ECX,
                R::EDX,
                R::EBX,
                R::ESP,
                R::EBP,
                R::ESI,
                R::EDI,
                R::R8D,
                R::R9D,
                R::R10D,
                R::R11D,
                R::R12D,
                R::R13D,
                R::R14D,
                R::R15D,
            ],
            2 => [
                R::AX,
                R::CX,
                R::DX,
                R::BX,
                R::SP,
                R::BP,
                R::SI,
                R::DI,
                R::R8W,
                R::R9W,
                R::R10W,
                R::R11W,
                R::R12W,
                R::R13W,
                R::R14W,
                R::R15W,
            ],
            _ => [
                R::AL,
                R::CL,
                R::DL,
                R::BL,
                R::SPL,
                R::BPL,
                R::SIL,
                R::DIL,
                R::R8L,
                R::R9L,
                R::R10L,
                R::R11L,
                R::R12L,
                R::R13L,
                R::R14L,
                R::R15L,
            ],
        },
        usize::from(number % 16),
    );
    table[n]
}
