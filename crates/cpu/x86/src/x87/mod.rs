//! The x87 unit (AMD APM volume 1, chapter 6; volume 5, chapter 2).

mod arithmetic;
mod control;
mod float;
mod moves;
mod stack;
mod transcendental;
mod wide;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::op::{Op, Run, is_memory, register_number};

/// The operation that carries out `instruction`, whose bytes begin `bytes`, if it is an x87 one. `imm` is what
/// the last-opcode register will say of it.
pub(crate) fn lower(instruction: &Instruction, bytes: &[u8]) -> Option<Op> {
    let i = instruction;
    let memory = i.op_count() > 0 && is_memory(i.op0_kind());
    let (run, aux) = if memory { lower_memory(i)? } else { lower_register(i)? };
    let mut op = Op::new(run, i);
    op.aux = aux;
    op.imm = u64::from(last_opcode(bytes));
    if memory {
        let size = i.memory_size().size() as u8;
        op.src = if is_integer_operand(i.mnemonic()) { size + 16 } else { size };
        if matches!(i.mnemonic(), Mnemonic::Fist | Mnemonic::Fistp | Mnemonic::Fisttp) {
            op.src = size;
        }
    } else if i.op_count() == 2 && i.op0_kind() == OpKind::Register {
        op.dst = register_number(i.op0_register());
        op.src = register_number(i.op1_register());
    } else if i.op_count() == 1 && i.op0_kind() == OpKind::Register {
        op.dst = register_number(i.op0_register());
        op.src = op.dst;
    } else {
        // Forms without operands work on the top two.
        (op.dst, op.src) = (0, 1);
    }
    Some(op)
}

/// The low three bits of the escape opcode and the byte behind it (AMD APM volume 1, section 6.2.7).
fn last_opcode(bytes: &[u8]) -> u16 {
    // In front there are only prefixes.
    let escape = bytes.iter().position(|byte| (0xd8..=0xdf).contains(byte));
    let pair = escape.and_then(|at| bytes.get(at..at + 2));
    pair.map_or(0, |pair| u16::from(pair[0] & 7) << 8 | u16::from(pair[1]))
}

fn is_integer_operand(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fiadd | M::Fimul | M::Ficom | M::Ficomp | M::Fisub | M::Fisubr | M::Fidiv | M::Fidivr | M::Fild
    )
}

fn lower_memory(i: &Instruction) -> Option<(Run, u8)> {
    use Mnemonic as M;
    let extended = i.memory_size().size() == 10;
    // Environments and states come in a 16- and a 32-bit form.
    let wide = u8::from(matches!(i.memory_size().size(), 28 | 108));
    Some(match i.mnemonic() {
        M::Fadd | M::Fiadd => (arithmetic::memory, 0),
        M::Fmul | M::Fimul => (arithmetic::memory, 1),
        M::Fcom | M::Ficom => (arithmetic::memory, 2),
        M::Fcomp | M::Ficomp => (arithmetic::memory, 3),
        M::Fsub | M::Fisub => (arithmetic::memory, 4),
        M::Fsubr | M::Fisubr => (arithmetic::memory, 5),
        M::Fdiv | M::Fidiv => (arithmetic::memory, 6),
        M::Fdivr | M::Fidivr => (arithmetic::memory, 7),
        M::Fld if extended => (moves::load_extended, 0),
        M::Fld | M::Fild => (moves::load, 0),
        M::Fst => (moves::store, 0),
        M::Fstp if extended => (moves::store_extended, 0),
        M::Fstp => (moves::store, 1),
        M::Fist => (moves::store_integer, 0),
        M::Fistp => (moves::store_integer, 1),
        M::Fisttp => (moves::store_integer, 3),
        M::Fbld => (moves::load_decimal, 0),
        M::Fbstp => (moves::store_decimal, 0),
        M::Fldcw => (control::load_control, 0),
        M::Fnstcw | M::Fstcw => (control::store_control, 0),
        M::Fnstsw | M::Fstsw => (control::store_status, 0),
        M::Fnstenv | M::Fstenv => (control::store_environment, wide),
        M::Fldenv => (control::load_environment, wide),
        M::Fnsave | M::Fsave => (control::save, wide),
        M::Frstor => (control::restore, wide),
        _ => return None,
    })
}

fn lower_register(i: &Instruction) -> Option<(Run, u8)> {
    use Mnemonic as M;
    const POP: u8 = 0x80;
    Some(match i.mnemonic() {
        M::Fadd => (arithmetic::registers, 0),
        M::Fmul => (arithmetic::registers, 1),
        M::Fsub => (arithmetic::registers, 4),
        M::Fsubr => (arithmetic::registers, 5),
        M::Fdiv => (arithmetic::registers, 6),
        M::Fdivr => (arithmetic::registers, 7),
        M::Faddp => (arithmetic::registers, POP),
        M::Fmulp => (arithmetic::registers, 1 | POP),
        M::Fsubp => (arithmetic::registers, 4 | POP),
        M::Fsubrp => (arithmetic::registers, 5 | POP),
        M::Fdivp => (arithmetic::registers, 6 | POP),
        M::Fdivrp => (arithmetic::registers, 7 | POP),
        M::Fcom => (arithmetic::compare, 0),
        M::Fcomp => (arithmetic::compare, 1),
        M::Fcompp => (arithmetic::compare, 2),
        M::Fucom => (arithmetic::compare, 4),
        M::Fucomp => (arithmetic::compare, 5),
        M::Fucompp => (arithmetic::compare, 6),
        M::Fcomi => (arithmetic::compare, 8),
        M::Fcomip => (arithmetic::compare, 9),
        M::Fucomi => (arithmetic::compare, 12),
        M::Fucomip => (arithmetic::compare, 13),
        M::Ftst => (arithmetic::test, 0),
        M::Fxam => (arithmetic::examine, 0),
        M::Fsqrt => (arithmetic::square_root, 0),
        M::Frndint => (arithmetic::round_to_integer, 0),
        M::Fabs => (arithmetic::absolute, 0),
        M::Fchs => (arithmetic::change_sign, 0),
        M::Fscale => (arithmetic::scale, 0),
        M::Fxtract => (arithmetic::extract, 0),
        M::Fprem => (arithmetic::remainder, 0),
        M::Fprem1 => (arithmetic::remainder, 1),
        M::Fld => (moves::load_register, 0),
        M::Fld1 => (moves::load_constant, 0),
        M::Fldl2t => (moves::load_constant, 1),
        M::Fldl2e => (moves::load_constant, 2),
        M::Fldpi => (moves::load_constant, 3),
        M::Fldlg2 => (moves::load_constant, 4),
        M::Fldln2 => (moves::load_constant, 5),
        M::Fldz => (moves::load_constant, 6),
        M::Fst => (moves::store_register, 0),
        M::Fstp => (moves::store_register, 1),
        M::Fstpnce => (moves::store_register, moves::NO_CHECK),
        M::Fxch => (moves::exchange, 0),
        M::Fcmovb => (moves::conditional, 2),
        M::Fcmovnb => (moves::conditional, 3),
        M::Fcmove => (moves::conditional, 4),
        M::Fcmovne => (moves::conditional, 5),
        M::Fcmovbe => (moves::conditional, 6),
        M::Fcmovnbe => (moves::conditional, 7),
        M::Fcmovu => (moves::conditional, 10),
        M::Fcmovnu => (moves::conditional, 11),
        M::Fsin => (transcendental::trigonometric, 0),
        M::Fcos => (transcendental::trigonometric, 1),
        M::Fsincos => (transcendental::trigonometric, 2),
        M::Fptan => (transcendental::trigonometric, 3),
        M::F2xm1 => (transcendental::power, 0),
        M::Fyl2x => (transcendental::binary, 0),
        M::Fyl2xp1 => (transcendental::binary, 1),
        M::Fpatan => (transcendental::binary, 2),
        M::Fninit | M::Finit => (control::initialise, 0),
        M::Fnclex | M::Fclex => (control::clear_exceptions, 0),
        M::Wait => (control::wait, 0),
        M::Fnop => (control::nothing, 0),
        M::Feni | M::Fneni | M::Fdisi | M::Fndisi | M::Fsetpm | M::Fnsetpm => (control::obsolete, 0),
        M::Fincstp => (control::rotate, 1),
        M::Fdecstp => (control::rotate, 7),
        M::Ffree => (control::free, 0),
        M::Ffreep => (control::free, 1),
        M::Fnstsw | M::Fstsw if i.code() == Code::Fnstsw_AX || i.code() == Code::Fstsw_AX => {
            (control::store_status_ax, 0)
        }
        _ => return None,
    })
}
