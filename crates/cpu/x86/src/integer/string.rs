//! String instructions: `movs`, `stos`, `lods`, `scas`, `cmps`, once or repeated (AMD APM volume 3, section 1.2.6).
//!
//! A repeated instruction is worked off in pieces. Between two pieces, as after a fault in the middle, the
//! registers tell how far it has come and the instruction pointer is still at it; so interrupts need not wait.

use iced_x86::{Code, Instruction};
use posada_vcpu::x86::rflags;

use crate::access::LEAVE;
use crate::core::{Core, segment};
use crate::int::Int;
use crate::mmu::PAGE_MASK;
use crate::op::{Op, Run, Step};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// Elements that are worked off before interrupts are looked at.
pub(crate) const PIECE: u64 = 4096;

/// What ends a repetition, besides the count.
const NOTHING: u8 = 0;
/// ZF clear: `repe`.
const DIFFERENCE: u8 = 1;
/// ZF set: `repne`.
const EQUALITY: u8 = 2;

/// One of the instructions, with addresses of size `A` and elements of size `T`.
trait StringOperation {
    /// Carries out one element, and moves the pointers on.
    fn element<A: Int, T: Int>(core: &mut Core, op: &Op) -> Step;

    /// Carries out several elements at once where that is quickly done, `limit` at most, and up to the one that
    /// ends the repetition; moves the pointers on. Returns how many.
    fn several<A: Int, T: Int, const UNTIL: u8>(core: &mut Core, op: &Op, limit: u64) -> u64 {
        let _ = (core, op, limit);
        0
    }
}

fn backwards(core: &Core) -> bool {
    core.system_flags & rflags::DF != 0
}

/// Moves a pointer on by one element.
#[inline(always)]
fn advance<A: Int, T: Int>(core: &mut Core, pointer: u8) {
    let by = if backwards(core) { T::BYTES.wrapping_neg() } else { T::BYTES };
    let value = core.reg::<A>(pointer).zext().wrapping_add(by);
    core.set_reg(pointer, A::new(value));
}

/// Moves a pointer on by several elements, upwards.
#[inline(always)]
fn skip<A: Int, T: Int>(core: &mut Core, pointer: u8, elements: u64) {
    let value = core.reg::<A>(pointer).zext().wrapping_add(elements * T::BYTES);
    core.set_reg(pointer, A::new(value));
}

/// A run of elements, upwards from a pointer, that lies in one page: at most how many, and the linear address.
fn run<A: Int, T: Int>(core: &mut Core, number: u8, pointer: u8, write: bool, limit: u64) -> (u64, u64) {
    let offset = core.reg::<A>(pointer).zext();
    let linear = core.views[usize::from(number & 7)].base.wrapping_add(offset) & core.linear_mask;
    let in_page = (PAGE_MASK + 1 - (linear & PAGE_MASK)) / T::BYTES;
    // Pointers wrap at their size; what leads there goes element by element.
    let before_wrap = (A::MASK - offset) / T::BYTES;
    let elements = limit.min(in_page).min(before_wrap);
    // So does what runs into the segment's limit.
    let inside = elements > 0 && core.linear(number, offset, elements * T::BYTES, write).is_ok();
    (if inside { elements } else { 0 }, linear)
}

struct Movs;
struct Stos;
struct Lods;
struct Scas;
struct Cmps;

impl StringOperation for Movs {
    #[inline(always)]
    fn element<A: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
        let (from, to) = (core.reg::<A>(RSI).zext(), core.reg::<A>(RDI).zext());
        let value = core.read::<T>(op.segment, from)?;
        core.write(segment::ES, to, value)?;
        advance::<A, T>(core, RSI);
        advance::<A, T>(core, RDI);
        Ok(())
    }

    fn several<A: Int, T: Int, const UNTIL: u8>(core: &mut Core, op: &Op, limit: u64) -> u64 {
        let (elements, from) = run::<A, T>(core, op.segment, RSI, false, limit);
        let (elements, to) = run::<A, T>(core, segment::ES, RDI, true, elements);
        let len = elements * T::BYTES;
        if elements == 0 {
            return 0;
        }
        let (Some(from), Some(to)) = (core.mmu.find_read(from, len), core.mmu.find_write(to, len)) else {
            return 0;
        };
        if to > from && ((to - from) as u64) < T::BYTES {
            // Elements that overlap their own copies.
            return 0;
        }
        core.code_changed |= core.connections.ram.copy_upwards(from, to, len as usize);
        skip::<A, T>(core, RSI, elements);
        skip::<A, T>(core, RDI, elements);
        elements
    }
}

impl StringOperation for Stos {
    #[inline(always)]
    fn element<A: Int, T: Int>(core: &mut Core, _: &Op) -> Step {
        let (to, value) = (core.reg::<A>(RDI).zext(), core.reg::<T>(RAX));
        core.write(segment::ES, to, value)?;
        advance::<A, T>(core, RDI);
        Ok(())
    }

    fn several<A: Int, T: Int, const UNTIL: u8>(core: &mut Core, _: &Op, limit: u64) -> u64 {
        let (elements, to) = run::<A, T>(core, segment::ES, RDI, true, limit);
        if elements == 0 {
            return 0;
        }
        let Some(to) = core.mmu.find_write(to, elements * T::BYTES) else { return 0 };
        let value = core.reg::<T>(RAX);
        core.code_changed |= core.connections.ram.fill(to, value, elements as usize);
        skip::<A, T>(core, RDI, elements);
        elements
    }
}

impl StringOperation for Lods {
    #[inline(always)]
    fn element<A: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
        let from = core.reg::<A>(RSI).zext();
        let value = core.read::<T>(op.segment, from)?;
        core.set_reg(RAX, value);
        advance::<A, T>(core, RSI);
        Ok(())
    }
}

/// Sets the flags as `cmp` does.
#[inline(always)]
fn compare<T: Int>(core: &mut Core, a: T, b: T) {
    core.flags.sub(a, b, T::new(a.zext().wrapping_sub(b.zext())));
}

impl StringOperation for Scas {
    #[inline(always)]
    fn element<A: Int, T: Int>(core: &mut Core, _: &Op) -> Step {
        let from = core.reg::<A>(RDI).zext();
        let value = core.read::<T>(segment::ES, from)?;
        let accumulator = core.reg::<T>(RAX);
        compare(core, accumulator, value);
        advance::<A, T>(core, RDI);
        Ok(())
    }

    fn several<A: Int, T: Int, const UNTIL: u8>(core: &mut Core, _: &Op, limit: u64) -> u64 {
        let (elements, from) = run::<A, T>(core, segment::ES, RDI, false, limit);
        if elements == 0 {
            return 0;
        }
        let Some(from) = core.mmu.find_read(from, elements * T::BYTES) else { return 0 };
        let accumulator = core.reg::<T>(RAX);
        let mut done = 0;
        let mut value = accumulator;
        while done < elements {
            value = core.connections.ram.load::<T>(from + (done * T::BYTES) as usize);
            done += 1;
            if (value == accumulator) == (UNTIL == EQUALITY) {
                break;
            }
        }
        compare(core, accumulator, value);
        skip::<A, T>(core, RDI, done);
        done
    }
}

impl StringOperation for Cmps {
    #[inline(always)]
    fn element<A: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
        let (first, second) = (core.reg::<A>(RSI).zext(), core.reg::<A>(RDI).zext());
        // In this order: it shows when both fault.
        let b = core.read::<T>(segment::ES, second)?;
        let a = core.read::<T>(op.segment, first)?;
        compare(core, a, b);
        advance::<A, T>(core, RSI);
        advance::<A, T>(core, RDI);
        Ok(())
    }

    fn several<A: Int, T: Int, const UNTIL: u8>(core: &mut Core, op: &Op, limit: u64) -> u64 {
        let (elements, first) = run::<A, T>(core, op.segment, RSI, false, limit);
        let (elements, second) = run::<A, T>(core, segment::ES, RDI, false, elements);
        let len = elements * T::BYTES;
        if elements == 0 {
            return 0;
        }
        let (Some(first), Some(second)) = (core.mmu.find_read(first, len), core.mmu.find_read(second, len))
        else {
            return 0;
        };
        let ram = &core.connections.ram;
        let mut done = 0;
        let (mut a, mut b) = (T::default(), T::default());
        while done < elements {
            let at = (done * T::BYTES) as usize;
            (a, b) = (ram.load::<T>(first + at), ram.load::<T>(second + at));
            done += 1;
            if (a == b) == (UNTIL == EQUALITY) {
                break;
            }
        }
        compare(core, a, b);
        skip::<A, T>(core, RSI, done);
        skip::<A, T>(core, RDI, done);
        done
    }
}

fn once<S: StringOperation, A: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    S::element::<A, T>(core, op)
}

fn repeated<const UNTIL: u8, S: StringOperation, A: Int, T: Int>(core: &mut Core, op: &Op) -> Step {
    let alone = core.system_flags & rflags::TF != 0 || core.debugging;
    let mut piece = if alone { 1 } else { core.piece };
    let mut count = core.reg::<A>(RCX).zext();
    while count > 0 {
        if piece == 0 || core.code_changed {
            // Still at this instruction.
            core.set_rip(core.rip().wrapping_sub(u64::from(op.len)));
            return LEAVE;
        }
        let limit = count.min(piece);
        let mut done = if backwards(core) { 0 } else { S::several::<A, T, UNTIL>(core, op, limit) };
        if done == 0 {
            S::element::<A, T>(core, op)?;
            done = 1;
        }
        count -= done;
        piece -= done;
        core.set_reg(RCX, A::new(count));
        if UNTIL != NOTHING && core.flags.zf() == (UNTIL == EQUALITY) {
            break;
        }
    }
    Ok(())
}

/// The version for an element size and an address size.
macro_rules! string_sized {
    ($element_bits:expr, $op:expr, $function:ident, $($arg:tt),+) => {
        match ($element_bits, $op.address_shift) {
            (8, 48) => $function::<$($arg,)+ u16, u8>,
            (8, 32) => $function::<$($arg,)+ u32, u8>,
            (8, _) => $function::<$($arg,)+ u64, u8>,
            (16, 48) => $function::<$($arg,)+ u16, u16>,
            (16, 32) => $function::<$($arg,)+ u32, u16>,
            (16, _) => $function::<$($arg,)+ u64, u16>,
            (32, 48) => $function::<$($arg,)+ u16, u32>,
            (32, 32) => $function::<$($arg,)+ u32, u32>,
            (32, _) => $function::<$($arg,)+ u64, u32>,
            (_, 48) => $function::<$($arg,)+ u16, u64>,
            (_, 32) => $function::<$($arg,)+ u32, u64>,
            (_, _) => $function::<$($arg,)+ u64, u64>,
        }
    };
}

/// For instructions that compare nothing, both prefixes mean `rep`.
fn plain<S: StringOperation>(i: &Instruction, bits: u32) -> Op {
    let mut op = Op::new(once::<S, u64, u64>, i);
    op.run = if i.has_rep_prefix() || i.has_repne_prefix() {
        string_sized!(bits, op, repeated, NOTHING, S)
    } else {
        string_sized!(bits, op, once, S)
    };
    op
}

fn comparing<S: StringOperation>(i: &Instruction, bits: u32) -> Op {
    let mut op = Op::new(once::<S, u64, u64>, i);
    let run: Run = if i.has_repe_prefix() {
        string_sized!(bits, op, repeated, DIFFERENCE, S)
    } else if i.has_repne_prefix() {
        string_sized!(bits, op, repeated, EQUALITY, S)
    } else {
        string_sized!(bits, op, once, S)
    };
    op.run = run;
    op
}

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    Some(match i.code() {
        Code::Movsb_m8_m8 => plain::<Movs>(i, 8),
        Code::Movsw_m16_m16 => plain::<Movs>(i, 16),
        Code::Movsd_m32_m32 => plain::<Movs>(i, 32),
        Code::Movsq_m64_m64 => plain::<Movs>(i, 64),
        Code::Stosb_m8_AL => plain::<Stos>(i, 8),
        Code::Stosw_m16_AX => plain::<Stos>(i, 16),
        Code::Stosd_m32_EAX => plain::<Stos>(i, 32),
        Code::Stosq_m64_RAX => plain::<Stos>(i, 64),
        Code::Lodsb_AL_m8 => plain::<Lods>(i, 8),
        Code::Lodsw_AX_m16 => plain::<Lods>(i, 16),
        Code::Lodsd_EAX_m32 => plain::<Lods>(i, 32),
        Code::Lodsq_RAX_m64 => plain::<Lods>(i, 64),
        Code::Scasb_AL_m8 => comparing::<Scas>(i, 8),
        Code::Scasw_AX_m16 => comparing::<Scas>(i, 16),
        Code::Scasd_EAX_m32 => comparing::<Scas>(i, 32),
        Code::Scasq_RAX_m64 => comparing::<Scas>(i, 64),
        Code::Cmpsb_m8_m8 => comparing::<Cmps>(i, 8),
        Code::Cmpsw_m16_m16 => comparing::<Cmps>(i, 16),
        Code::Cmpsd_m32_m32 => comparing::<Cmps>(i, 32),
        Code::Cmpsq_m64_m64 => comparing::<Cmps>(i, 64),
        _ => return None,
    })
}

#[cfg(test)]
#[path = "string_test.rs"]
mod tests;
