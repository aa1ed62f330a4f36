use iced_x86::code_asm::*;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{DATA, Guest};

const ALL: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

#[test]
fn a_bit_of_a_register_goes_to_cf_alone() {
    for others in [0, ALL & !rflags::CF] {
        let o = Guest::long()
            .code(|a| {
                a.bts(rax, rbx)?;
                a.btr(ecx, 3)?;
                a.btc(dx, bx)
            })
            .reg(gpr::RBX, 0x83)
            .reg(gpr::RCX, u64::MAX)
            .reg(gpr::RDX, 8)
            .flags(others)
            .run();
        assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX), o.reg(gpr::RDX)), (8, 0xffff_fff7, 0));
        assert_eq!(o.state.rflags & ALL, others | rflags::CF);
    }
}

#[test]
fn bt_writes_nothing() {
    let o = Guest::long().code(|a| a.bt(eax, 33)).reg(gpr::RAX, u64::MAX - 2).run();
    assert_eq!((o.reg(gpr::RAX), o.has(rflags::CF)), (u64::MAX - 2, false));
}

#[test]
fn a_register_indexes_bits_of_memory_far_and_backwards() {
    let o = Guest::long()
        .code(|a| {
            a.bts(dword_ptr(rbx), eax)?;
            a.lock().bts(qword_ptr(rbx), rcx)?;
            a.bts(word_ptr(rbx), dx)?;
            a.btc(dword_ptr(rbx + 32), 33)
        })
        .reg(gpr::RAX, 100)
        .reg(gpr::RBX, DATA + 0x100)
        .reg(gpr::RCX, -1_i64 as u64)
        .reg(gpr::RDX, 0x1_fff0)
        .run();
    assert_eq!(o.load::<u32>(DATA + 0x100 + 12), 1 << 4);
    assert_eq!(o.load::<u64>(DATA + 0x100 - 8), 1 << 63 | 1 << 48, "the last bit, and bit -16");
    assert_eq!(o.load::<u32>(DATA + 0x120), 2);
}

#[test]
fn a_bit_address_wraps_at_the_address_size() {
    let o = Guest::real().code(|a| a.bts(word_ptr(bx), ax)).reg(gpr::RBX, 0xfffe).reg(gpr::RAX, 17).run();
    assert_eq!(o.load::<u16>(0), 2);
}

#[test]
fn scans_find_the_first_bit_or_leave_the_destination() {
    let scan = |code: &[u8], value: u64| {
        let o = Guest::long().bytes(code).reg(gpr::RAX, u64::MAX).reg(gpr::RDX, value).flags(ALL).run();
        (o.reg(gpr::RAX), o.state.rflags & ALL)
    };
    let (bsf_eax, bsr_eax, bsr_rax) = ([0x0f, 0xbc, 0xc2], [0x0f, 0xbd, 0xc2], [0x48, 0x0f, 0xbd, 0xc2]);
    assert_eq!(scan(&bsf_eax, 0x18), (3, rflags::PF));
    assert_eq!(scan(&bsr_eax, 0x18), (4, 0));
    assert_eq!(scan(&bsr_rax, 1 << 63), (63, rflags::PF));
    for code in [&bsf_eax[..], &bsr_eax, &bsr_rax, &[0x66, 0x0f, 0xbc, 0xc2]] {
        assert_eq!(scan(code, 0), (u64::MAX, rflags::ZF | rflags::PF), "the upper half stays, too");
    }
}

#[test]
fn popcnt_sets_zf_alone() {
    let o = Guest::long().code(|a| a.popcnt(rax, rdx)).reg(gpr::RDX, u64::MAX).flags(ALL).run();
    assert_eq!((o.reg(gpr::RAX), o.state.rflags & ALL), (64, 0));
    let o = Guest::long().code(|a| a.popcnt(ax, dx)).reg(gpr::RDX, 0xff_0000).flags(ALL).run();
    assert_eq!((o.reg(gpr::RAX), o.state.rflags & ALL), (0, rflags::ZF));
}

#[test]
fn zero_counts_follow_the_operand_size() {
    let count = super::super::bmi::tests::carry_out_unannounced;
    // tzcnt eax, edx; lzcnt eax, edx; lzcnt ax, dx
    let (tzcnt, lzcnt, lzcnt16) =
        ([0xf3, 0x0f, 0xbc, 0xc2], [0xf3, 0x0f, 0xbd, 0xc2], [0x66, 0xf3, 0x0f, 0xbd, 0xc2]);
    let run = |code: &[u8], value: u64| {
        let core = count(&Guest::long().reg(gpr::RDX, value).flags(ALL), code);
        (core.registers[0], core.flags.bits())
    };
    assert_eq!(run(&tzcnt, 8), (3, rflags::OF));
    assert_eq!(run(&tzcnt, 1 << 40 | 1), (0, rflags::OF | rflags::ZF));
    assert_eq!(run(&tzcnt, 1 << 40), (32, rflags::OF | rflags::CF));
    assert_eq!(run(&lzcnt, 0x1fff_ffff), (3, rflags::OF));
    assert_eq!(run(&lzcnt, 0), (32, rflags::OF | rflags::CF));
    assert_eq!(run(&lzcnt16, 0x8000), (0, rflags::OF | rflags::ZF));
}

#[test]
fn crc32_is_the_castagnoli_checksum() {
    // The check value of CRC-32C: of "123456789", complemented before and after, it is 0xe3069283.
    let o = Guest::long()
        .code(|a| {
            a.crc32(rax, qword_ptr(rsi))?;
            a.crc32(eax, byte_ptr(rsi + 8))?;
            a.not(eax)
        })
        .reg(gpr::RAX, 0xffff_ffff)
        .reg(gpr::RSI, DATA)
        .memory(DATA, b"123456789")
        .run();
    assert_eq!(o.reg(gpr::RAX), 0xe306_9283);
}
