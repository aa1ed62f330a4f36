//! `rdrand` and `rdseed` (AMD APM volume 3, chapter 3).

use iced_x86::{Code, Instruction};

use crate::core::Core;
use crate::int::Int;
use crate::op::{Op, Run, Step, register_number};

pub(super) fn lower(i: &Instruction) -> Option<Op> {
    let run: Run = match i.code() {
        Code::Rdrand_r16 | Code::Rdseed_r16 => random::<u16>,
        Code::Rdrand_r32 | Code::Rdseed_r32 => random::<u32>,
        Code::Rdrand_r64 | Code::Rdseed_r64 => random::<u64>,
        _ => return None,
    };
    let mut op = Op::new(run, i);
    op.dst = register_number(i.op0_register());
    Some(op)
}

/// Where random numbers come from; `None`: there is none now.
pub type Random = Box<dyn FnMut() -> Option<u64> + Send>;

/// The host's own generator.
pub(crate) fn of_host() -> Random {
    Box::new(|| getrandom::u64().ok())
}

/// Both come from the host's own generator, which has no lesser source for the one than for the other.
fn random<T: Int>(core: &mut Core, op: &Op) -> Step {
    // Hosts fail only in their first moments; the guest is told that there is nothing now, and tries again.
    let value = (core.random)();
    core.set_reg(op.dst, T::new(value.unwrap_or(0)));
    // CF says whether there was a value; the other flags are clear.
    core.flags.set(u64::from(value.is_some()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use posada_vcpu::x86::gpr::{RAX, RBX};
    use posada_vcpu::x86::rflags;

    use crate::testing::Guest;

    #[test]
    fn random_numbers_come_in_three_sizes_with_the_carry_set() {
        let guest = Guest::user().reg(RAX, u64::MAX).reg(RBX, u64::MAX).flags(rflags::ZF | rflags::OF);
        let outcome = guest.code(|a| {
            a.rdrand(ax)?;
            a.rdseed(ebx)
        });
        let outcome = outcome.run();
        assert_eq!((outcome.reg(RAX) >> 16, outcome.reg(RBX) >> 32), (u64::MAX >> 16, 0));
        assert_eq!(outcome.state.rflags & rflags::ARITHMETIC, rflags::CF);
    }

    #[test]
    fn random_numbers_differ() {
        let one = || Guest::user().code(|a| a.rdrand(rax)).run().reg(RAX);
        assert_ne!(one(), one());
    }
}
