use iced_x86::code_asm::*;
use iced_x86::{Decoder, IcedError};
use posada_vcpu::x86::{gpr, rflags};

use crate::core::Core;
use crate::op::Stop;
use crate::testing::{DATA, Guest};

const ALL: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// Carries out one instruction that no CPU model need announce.
pub(in crate::integer) fn carry_out_unannounced(guest: &Guest, code: &[u8]) -> Core {
    let (core, result) = try_unannounced(guest, 64, code);
    result.expect("the instruction does not fault");
    core
}

fn try_unannounced(guest: &Guest, bits: u32, code: &[u8]) -> (Core, Result<(), Stop>) {
    let mut core = Core::new(guest.connections.clone(), guest.model.clone());
    core.load_state(&guest.state);
    let instruction = Decoder::with_ip(bits, code, 0, iced_x86::DecoderOptions::AMD).decode();
    let op = crate::integer::lower(&instruction, core.mode, &guest.model).expect("it is one of ours");
    let result = (op.run)(&mut core, &op);
    (core, result)
}

fn assembled(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).expect("64 bits exist");
    write(&mut assembler).expect("the instruction exists");
    assembler.assemble(0).expect("the instruction can be encoded")
}

/// `rax` and the flags after an instruction on `rdx`, the first, and `rcx`, the second.
fn run(
    first: u64,
    second: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (u64, u64) {
    let guest =
        Guest::long().reg(gpr::RDX, first).reg(gpr::RCX, second).reg(gpr::RAX, u64::MAX).flags(rflags::OF);
    let core = carry_out_unannounced(&guest, &assembled(write));
    (core.registers[0], core.flags.bits())
}

#[test]
fn results_and_flags_are_those_of_the_processor_defined_or_not() {
    let (c, p, a, z, s) = (rflags::CF, rflags::PF, rflags::AF, rflags::ZF, rflags::SF);
    assert_eq!(run(1, 0x8000_0001, |x| x.andn(eax, edx, ecx)), (0x8000_0000, s | p));
    assert_eq!(run(0xff0, 0x804, |x| x.bextr(eax, edx, ecx)), (0xff, a | p));
    assert_eq!(run(0, 0x804, |x| x.bextr(eax, edx, ecx)), (0, z | a | p));
    assert_eq!(run(0x8000_0000, 0x2000, |x| x.bextr(eax, edx, ecx)), (0x8000_0000, a | p));
    assert_eq!(run(u64::MAX, 0xff40, |x| x.bextr(rax, rdx, rcx)), (0, z | a | p), "all shifted out");
    assert_eq!(run(0xffff_ffff, 4, |x| x.bzhi(eax, edx, ecx)), (0xf, p));
    assert_eq!(run(0xffff_ffff, 0x80, |x| x.bzhi(eax, edx, ecx)), (0xffff_ffff, s | p | c));
    assert_eq!(run(0, 0, |x| x.blsr(eax, edx)), (0, z | p | c));
    assert_eq!(run(3, 0, |x| x.blsr(eax, edx)), (2, 0));
    assert_eq!(run(0, 0, |x| x.blsi(eax, edx)), (0, z | p));
    assert_eq!(run(0x8000_0000, 0, |x| x.blsi(eax, edx)), (0x8000_0000, s | p | c));
    assert_eq!(run(0, 0, |x| x.blsmsk(eax, edx)), (0xffff_ffff, s | p | c));
    assert_eq!(run(3, 0, |x| x.blsmsk(eax, edx)), (1, 0));
}

#[test]
fn the_shifts_that_leave_the_flags_leave_them() {
    let o = rflags::OF;
    assert_eq!(run(1 << 63, 63 | 1 << 6, |a| a.sarx(rax, rdx, rcx)), (u64::MAX, o));
    assert_eq!(run(0x8000_0000, 33, |a| a.sarx(eax, edx, ecx)), (0xc000_0000, o));
    assert_eq!(run(0x8000_0001, 33, |a| a.shlx(eax, edx, ecx)), (2, o));
    assert_eq!(run(0x8000_0001, 33, |a| a.shrx(eax, edx, ecx)), (0x4000_0000, o));
    assert_eq!(run(0x1234, 0, |a| a.rorx(eax, edx, 4)), (0x4000_0123, o));
    assert_eq!(run(0x1234, 0, |a| a.rorx(rax, rdx, 64)), (0x1234, o));
}

#[test]
fn deposit_and_extract_are_inverse() {
    let (mask, source) = (0xf0f0_0000_0000_ff01, 0xa_bcd5);
    let (spread, _) = run(source, mask, |a| a.pdep(rax, rdx, rcx));
    assert_eq!(spread & !mask, 0);
    let (back, flags) = run(spread, mask, |a| a.pext(rax, rdx, rcx));
    assert_eq!((back, flags), (source & 0x1_ffff, rflags::OF));
}

#[test]
fn mulx_leaves_the_flags_and_lets_the_upper_half_win() {
    let multiply = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let guest = Guest::long().reg(gpr::RDX, u64::MAX).reg(gpr::RCX, 16).flags(ALL);
        let core = carry_out_unannounced(&guest, &assembled(write));
        assert_eq!(core.flags.bits(), ALL);
        (core.registers[gpr::RAX], core.registers[gpr::RBX])
    };
    assert_eq!(multiply(|a| a.mulx(rax, rbx, rcx)), (15, 16_u64.wrapping_neg()));
    assert_eq!(multiply(|a| a.mulx(rax, rax, rcx)).0, 15);
}

#[test]
fn two_carry_chains_do_not_meet() {
    let add = |write: fn(&mut CodeAssembler) -> Result<(), IcedError>, flags| {
        let guest = Guest::long().reg(gpr::RAX, 0xffff_ffff).reg(gpr::RDX, 0).flags(flags);
        let core = carry_out_unannounced(&guest, &assembled(write));
        (core.registers[gpr::RAX], core.flags.bits())
    };
    let (cf, of) = (rflags::CF, rflags::OF);
    assert_eq!(add(|a| a.adcx(eax, edx), cf), (0, cf));
    assert_eq!(add(|a| a.adcx(eax, edx), of), (0xffff_ffff, of));
    assert_eq!(add(|a| a.adox(eax, edx), of), (0, of));
    assert_eq!(add(|a| a.adox(eax, edx), cf), (0xffff_ffff, cf));
    assert_eq!(add(|a| a.adox(rax, rdx), of | ALL), (1 << 32, ALL & !of));
}

#[test]
fn operands_come_from_memory_too() {
    let guest = || Guest::long().reg(gpr::RBX, DATA).reg(gpr::RCX, 4).memory(DATA, &[0xf0]);
    let core = carry_out_unannounced(&guest(), &assembled(|a| a.shrx(eax, dword_ptr(rbx), ecx)));
    assert_eq!(core.registers[gpr::RAX], 0xf);
    let core = carry_out_unannounced(&guest(), &assembled(|a| a.rorx(eax, dword_ptr(rbx), 4)));
    assert_eq!(core.registers[gpr::RAX], 0xf);
}

#[test]
fn big_endian_moves_reverse_bytes() {
    let guest = Guest::long().reg(gpr::RBX, DATA).memory(DATA, &[1, 2, 3, 4]);
    let core = carry_out_unannounced(&guest, &assembled(|a| a.movbe(ax, word_ptr(rbx))));
    assert_eq!(core.registers[gpr::RAX], 0x0102);
    let guest = Guest::long().reg(gpr::RBX, DATA).reg(gpr::RAX, 0x0102_0304);
    let core = carry_out_unannounced(&guest, &assembled(|a| a.movbe(dword_ptr(rbx), eax)));
    assert_eq!(core.connections.ram.load::<u32>(DATA as usize), 0x0403_0201);
}

#[test]
fn real_and_virtual_8086_mode_have_no_vex_encodings() {
    let code = assembled(|a| a.andn(eax, edx, ecx));
    for guest in [Guest::real(), Guest::v8086()] {
        let (core, result) = try_unannounced(&guest, 32, &code);
        assert_eq!((result, core.fault.vector), (Err(Stop::Fault), 6));
    }
}

#[test]
fn what_the_model_does_not_announce_is_undefined() {
    let o = Guest::long().code(|a| a.andn(eax, edx, ecx)).run();
    assert_eq!(o.fault(), Some((6, None)));
}
