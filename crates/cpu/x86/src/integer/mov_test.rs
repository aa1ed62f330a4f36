use iced_x86::code_asm::*;
use posada_vcpu::x86::{cr0, gpr, rflags};

use crate::testing::{DATA, Guest};

#[test]
fn every_size_goes_to_memory_and_back() {
    let o = Guest::long()
        .code(|a| {
            a.mov(byte_ptr(rbx), ah)?;
            a.mov(word_ptr(rbx + 2), ax)?;
            a.mov(dword_ptr(rbx + 4), eax)?;
            a.mov(qword_ptr(rbx + 8), rax)?;
            a.mov(qword_ptr(rbx + 16), -2)?;
            a.mov(cl, byte_ptr(rbx))?;
            a.mov(edx, dword_ptr(rbx + 4))?;
            a.mov(r8, qword_ptr(rbx + 16))?;
            a.mov(r9, 0x0123_4567_89ab_cdef_u64)?;
            a.mov(r10d, r9d)
        })
        .reg(gpr::RAX, 0x1122_3344_5566_7788)
        .reg(gpr::RBX, DATA)
        .reg(gpr::RCX, 0xff00)
        .reg(gpr::RDX, u64::MAX)
        .run();
    assert_eq!(o.load::<u64>(DATA), 0x5566_7788_7788_0077);
    assert_eq!(o.load::<u64>(DATA + 8), 0x1122_3344_5566_7788);
    assert_eq!((o.reg(gpr::RCX), o.reg(gpr::RDX)), (0xff77, 0x5566_7788));
    assert_eq!((o.reg(8), o.reg(9), o.reg(10)), (-2_i64 as u64, 0x0123_4567_89ab_cdef, 0x89ab_cdef));
}

#[test]
fn a_full_address_reaches_all_of_the_address_space() {
    // mov rax, [0x0000_4000_0000_a000]; only the accumulator has such addresses.
    let o = Guest::long().bytes(&[0x48, 0xa1, 0, 0xa0, 0, 0, 0, 0x40, 0, 0]).run();
    assert_eq!(o.fault.map(|fault| (fault.vector, fault.address)), Some((14, 0x4000_0000_a000)));
    let o = Guest::long()
        .bytes(&[0x48, 0xa1, 0, 0xa0, 0, 0, 0, 0, 0, 0, 0xa2, 0x10, 0xa0, 0, 0, 0, 0, 0, 0])
        .memory(DATA, &0x1234_5678_9abc_def0_u64.to_le_bytes())
        .run();
    assert_eq!((o.reg(gpr::RAX), o.load::<u16>(DATA + 16)), (0x1234_5678_9abc_def0, 0xf0));
    // With an address-size prefix the address has 32 bits; in 32-bit code always.
    let o = Guest::long().bytes(&[0x67, 0xa0, 0, 0xa0, 0, 0]).memory(DATA, &[7]).run();
    assert_eq!(o.reg(gpr::RAX), 7);
    let o = Guest::protected().bytes(&[0xa1, 0, 0xa0, 0, 0]).memory(DATA, &[7, 8]).run();
    assert_eq!(o.reg(gpr::RAX), 0x807);
    let o = Guest::real().bytes(&[0xa1, 0, 0xa0]).memory(DATA, &[7, 8, 9]).run();
    assert_eq!(o.reg(gpr::RAX), 0x807);
}

#[test]
fn extensions_fill_with_zeros_or_the_sign() {
    let o = Guest::long()
        .code(|a| {
            a.movzx(rax, bl)?;
            a.movsx(rcx, bl)?;
            a.movsx(edx, bx)?;
            a.movsxd(rsi, ebx)?;
            a.movsx(di, bh)?;
            a.movzx(r8d, word_ptr(rbp))
        })
        .reg(gpr::RBX, 0x8765_4321_8000_8180)
        .reg(gpr::RBP, DATA)
        .reg(gpr::RDI, 0)
        .memory(DATA, &[0xfe, 0xff, 0xff])
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX)), (0x80, 0x80_u8 as i8 as u64));
    assert_eq!((o.reg(gpr::RDX), o.reg(gpr::RSI)), (0xffff_8180, 0xffff_ffff_8000_8180));
    assert_eq!((o.reg(gpr::RDI), o.reg(8)), (0xff81, 0xfffe));
}

#[test]
fn lea_cuts_to_the_address_size_then_to_the_operand_size() {
    let o = Guest::long()
        .code(|a| {
            a.lea(rax, qword_ptr(rbx + rcx * 8 - 1))?;
            a.lea(rdx, qword_ptr(ebx + ecx * 8 - 1))?;
            a.lea(si, qword_ptr(rbx + rcx * 8 - 1))?;
            a.lea(edi, qword_ptr(rbx + rcx))
        })
        .reg(gpr::RBX, 0xffff_ffff_ffff_fff0)
        .reg(gpr::RCX, 4)
        .reg(gpr::RSI, 0)
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (0xf, 0xf));
    assert_eq!((o.reg(gpr::RSI), o.reg(gpr::RDI)), (0xf, 0xffff_fff4));
    let o =
        Guest::real().code(|a| a.lea(eax, word_ptr(bx + si))).reg(gpr::RBX, 0xffff).reg(gpr::RSI, 2).run();
    assert_eq!(o.reg(gpr::RAX), 1);
}

#[test]
fn instruction_pointer_relative_addresses_count_from_the_next_instruction() {
    // lea rax, [rip + 0x10]; lea ecx, [eip - 0x10]
    let o = Guest::long()
        .bytes(&[0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0x67, 0x8d, 0x0d, 0xf0, 0xff, 0xff, 0xff])
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX)), (0x8017, 0x7ffe));
}

#[test]
fn cmov_reads_its_source_and_clears_the_upper_half_even_when_it_does_not_move() {
    let guest = |address| {
        Guest::long()
            .code(|a| a.cmove(eax, dword_ptr(rbx)))
            .reg(gpr::RAX, 0x1111_1111_2222_2222)
            .reg(gpr::RBX, address)
    };
    assert_eq!(guest(DATA).run().reg(gpr::RAX), 0x2222_2222);
    assert_eq!(guest(DATA).flags(rflags::ZF).run().reg(gpr::RAX), 0);
    assert_eq!(guest(1 << 40).run().fault(), Some((14, Some(0))));
}

#[test]
fn every_condition_is_what_its_name_says() {
    let flag_sets = (0..32_u64).map(|n| {
        let pick = |bit: u32, flag| if n >> bit & 1 != 0 { flag } else { 0 };
        pick(0, rflags::CF)
            | pick(1, rflags::PF)
            | pick(2, rflags::ZF)
            | pick(3, rflags::SF)
            | pick(4, rflags::OF)
    });
    for flags in flag_sets {
        let has = |flag| flags & flag != 0;
        let (cf, zf, less) = (has(rflags::CF), has(rflags::ZF), has(rflags::SF) != has(rflags::OF));
        let base = [has(rflags::OF), cf, zf, cf || zf, has(rflags::SF), has(rflags::PF), less, zf || less];
        for code in 0..16_u8 {
            let expected = base[usize::from(code / 2)] != (code % 2 == 1);
            // setcc bl; cmovcc ecx, edx; jcc over the next; mov al, 1
            let bytes = [0x0f, 0x90 | code, 0xc3, 0x0f, 0x40 | code, 0xca, 0x70 | code, 2, 0xb0, 1];
            let o = Guest::long().bytes(&bytes).reg(gpr::RBX, 0).reg(gpr::RDX, 1).flags(flags).run();
            let seen = (o.reg(gpr::RBX) != 0, o.reg(gpr::RCX) != 0, o.reg(gpr::RAX) == 0);
            assert_eq!(seen, (expected, expected, expected), "condition {code} of {flags:#x}");
        }
    }
}

#[test]
fn the_accumulator_extends_its_sign() {
    let o = Guest::long()
        .code(|a| {
            a.cbw()?;
            a.mov(bx, ax)?;
            a.cwde()?;
            a.mov(ecx, eax)?;
            a.cdqe()?;
            a.cqo()
        })
        .reg(gpr::RAX, 0x80)
        .reg(gpr::RBX, 0)
        .run();
    assert_eq!((o.reg(gpr::RBX), o.reg(gpr::RCX)), (0xff80, 0xffff_ff80));
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (-128_i64 as u64, u64::MAX));
    let o = Guest::long().code(CodeAssembler::cdq).reg(gpr::RAX, 0x7fff_ffff).reg(gpr::RDX, u64::MAX).run();
    assert_eq!(o.reg(gpr::RDX), 0);
    let o = Guest::long().code(CodeAssembler::cwd).reg(gpr::RAX, 0x8000).run();
    assert_eq!(o.reg(gpr::RDX), 0xffff);
}

#[test]
fn bswap_reverses_bytes() {
    let o = Guest::long()
        .code(|a| {
            a.bswap(rax)?;
            a.bswap(ebx)
        })
        .reg(gpr::RAX, 0x0102_0304_0506_0708)
        .reg(gpr::RBX, 0x0102_0304_0506_0708)
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX)), (0x0807_0605_0403_0201, 0x0807_0605));
}

#[test]
fn xlat_looks_up_in_a_table_of_bytes() {
    let o = Guest::long()
        .code(CodeAssembler::xlatb)
        .reg(gpr::RAX, 0xff10)
        .reg(gpr::RBX, DATA)
        .memory(DATA + 0x10, &[0x77])
        .run();
    assert_eq!(o.reg(gpr::RAX), 0xff77);
    let o = Guest::real()
        .code(CodeAssembler::xlatb)
        .reg(gpr::RAX, 0xff)
        .reg(gpr::RBX, 0xffff)
        .memory(0xfe, &[0x66])
        .run();
    assert_eq!(o.reg(gpr::RAX), 0x66, "the offset wraps at 64 KiB");
}

#[test]
fn an_operand_with_an_end_that_is_not_canonical_faults_before_its_pages() {
    for (address, fault) in [((1 << 47) - 2, (13, Some(0))), ((1 << 47) - 4, (14, Some(0)))] {
        let o = Guest::long().code(|a| a.mov(eax, dword_ptr(rbx))).reg(gpr::RBX, address).run();
        assert_eq!(o.fault(), Some(fault));
        let o = Guest::long().code(|a| a.lock().add(dword_ptr(rbx), eax)).reg(gpr::RBX, address).run();
        assert_eq!(o.fault().map(|(vector, _)| vector), Some(fault.0));
    }
    let o = Guest::long().code(|a| a.mov(eax, dword_ptr(rbp))).reg(gpr::RBP, (1 << 47) - 2).run();
    assert_eq!(o.fault(), Some((12, Some(0))), "through ss");
}

#[test]
fn an_operand_runs_past_the_end_of_no_segment_not_even_of_4_gib() {
    let o = Guest::protected().code(|a| a.mov(eax, dword_ptr(ebx))).reg(gpr::RBX, 0xffff_fffe).run();
    assert_eq!(o.fault(), Some((13, Some(0))));
    let o = Guest::protected().code(|a| a.mov(dword_ptr(ebp), eax)).reg(gpr::RBP, 0xffff_fffe).run();
    assert_eq!(o.fault(), Some((12, Some(0))));
}

#[test]
fn alignment_is_checked_before_the_page_tables() {
    let guest = |address| Guest::user().reg(gpr::RBX, address).flags(rflags::AC).with(|s| s.cr0 |= cr0::AM);
    for address in [DATA + 2, (1 << 40) + 2] {
        let plain = guest(address).code(|a| a.mov(eax, dword_ptr(rbx))).run();
        let locked = guest(address).code(|a| a.lock().xadd(dword_ptr(rbx), eax)).run();
        let changed = guest(address).code(|a| a.not(dword_ptr(rbx))).run();
        #[allow(clippy::large_stack_arrays)]
        for o in [plain, locked, changed] {
            assert_eq!(o.fault(), Some((17, Some(0))));
        }
    }
    assert_eq!(guest(DATA + 2).code(|a| a.mov(ax, word_ptr(rbx))).run().fault(), None);
}
