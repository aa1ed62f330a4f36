use iced_x86::code_asm::*;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{DATA, Guest};

const HIGH: u64 = 0x1111_1111_0000_0000;

#[test]
fn xchg_swaps_registers_and_memory() {
    let o = Guest::long()
        .code(|a| {
            a.xchg(rax, rbx)?;
            a.xchg(byte_ptr(rcx), dl)?;
            a.xchg(ah, al)
        })
        .reg(gpr::RAX, 1)
        .reg(gpr::RBX, 0x0203)
        .reg(gpr::RCX, DATA)
        .reg(gpr::RDX, 0x55)
        .memory(DATA, &[0x66])
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX)), (0x0302, 1));
    assert_eq!((o.reg(gpr::RDX), o.load::<u8>(DATA)), (0x66, 0x55));
}

#[test]
fn xadd_leaves_the_sum_in_the_destination_and_the_old_value_in_the_source() {
    let o = Guest::long()
        .code(|a| {
            a.xadd(al, bl)?;
            a.lock().xadd(qword_ptr(rsi), rdi)?;
            a.xadd(ecx, ecx)
        })
        .reg(gpr::RAX, 0xff)
        .reg(gpr::RBX, 1)
        .reg(gpr::RCX, HIGH | 4)
        .reg(gpr::RSI, DATA)
        .reg(gpr::RDI, 5)
        .memory(DATA, &[7])
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX)), (0, 0xff));
    assert_eq!((o.load::<u64>(DATA), o.reg(gpr::RDI), o.reg(gpr::RCX)), (12, 7, 8));
}

#[test]
fn cmpxchg_stores_when_equal_and_loads_when_not() {
    for lock in [false, true] {
        let guest = |accumulator| {
            Guest::long()
                .code(|a| {
                    if lock { a.lock().cmpxchg(dword_ptr(rsi), ecx) } else { a.cmpxchg(dword_ptr(rsi), ecx) }
                })
                .reg(gpr::RAX, accumulator)
                .reg(gpr::RCX, 9)
                .reg(gpr::RSI, DATA)
                .memory(DATA, &[5])
                .run()
        };
        let o = guest(HIGH | 5);
        assert_eq!((o.load::<u32>(DATA), o.reg(gpr::RAX), o.has(rflags::ZF)), (9, HIGH | 5, true));
        let o = guest(HIGH | 4);
        assert_eq!((o.load::<u32>(DATA), o.reg(gpr::RAX), o.has(rflags::ZF)), (5, 5, false));
        assert!(o.has(rflags::CF | rflags::SF), "flags of cmp");
    }
}

#[test]
fn a_register_that_cmpxchg_does_not_exchange_keeps_its_upper_half() {
    let guest = |accumulator| {
        Guest::long().code(|a| a.cmpxchg(edx, ecx)).reg(gpr::RAX, accumulator).reg(gpr::RDX, HIGH | 5)
    };
    let o = guest(HIGH | 5).reg(gpr::RCX, HIGH | 9).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (HIGH | 5, 9));
    let o = guest(HIGH | 4).reg(gpr::RCX, HIGH | 9).run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RDX)), (5, HIGH | 5));
}

#[test]
fn cmpxchg_with_the_accumulator_as_destination_always_exchanges() {
    let o = Guest::long().code(|a| a.cmpxchg(eax, ecx)).reg(gpr::RAX, HIGH | 5).reg(gpr::RCX, 9).run();
    assert_eq!((o.reg(gpr::RAX), o.has(rflags::ZF)), (9, true));
}

#[test]
fn cmpxchg8b_changes_zf_alone() {
    let guest = |upper| {
        Guest::long()
            .code(|a| a.lock().cmpxchg8b(qword_ptr(rsi)))
            .reg(gpr::RAX, 1)
            .reg(gpr::RDX, upper)
            .reg(gpr::RBX, 3)
            .reg(gpr::RCX, 4)
            .reg(gpr::RSI, DATA)
            .memory(DATA, &[1, 0, 0, 0, 2, 0, 0, 0])
            .flags(rflags::CF | rflags::OF)
            .run()
    };
    let o = guest(2);
    assert_eq!(o.load::<u64>(DATA), 4 << 32 | 3);
    assert!(o.has(rflags::ZF | rflags::CF | rflags::OF));
    let o = guest(7);
    assert_eq!((o.load::<u64>(DATA), o.reg(gpr::RAX), o.reg(gpr::RDX)), (2 << 32 | 1, 1, 2));
    assert!(!o.has(rflags::ZF) && o.has(rflags::CF | rflags::OF));
}

#[test]
fn cmpxchg16b_demands_alignment() {
    let guest = |address, upper| {
        Guest::user()
            .code(|a| a.lock().cmpxchg16b(xmmword_ptr(rsi)))
            .reg(gpr::RAX, 1)
            .reg(gpr::RDX, upper)
            .reg(gpr::RBX, 3)
            .reg(gpr::RCX, 4)
            .reg(gpr::RSI, address)
            .memory(DATA, &1_u64.to_le_bytes())
            .memory(DATA + 8, &2_u64.to_le_bytes())
            .run()
    };
    let o = guest(DATA, 2);
    assert_eq!((o.load::<u64>(DATA), o.load::<u64>(DATA + 8), o.has(rflags::ZF)), (3, 4, true));
    let o = guest(DATA, 9);
    assert_eq!((o.load::<u64>(DATA), o.reg(gpr::RAX), o.reg(gpr::RDX)), (1, 1, 2));
    assert!(!o.has(rflags::ZF));
    assert_eq!(guest(DATA + 8, 2).fault(), Some((13, Some(0))));
    assert_eq!(guest(1 << 40, 2).fault(), Some((14, Some(6))));
}
