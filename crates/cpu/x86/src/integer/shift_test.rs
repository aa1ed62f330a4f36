use iced_x86::code_asm::*;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{DATA, Guest};

const ALL: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// Flags by their letters.
fn flags(letters: &str) -> u64 {
    letters.chars().fold(0, |flags, letter| {
        flags
            | match letter {
                'O' => rflags::OF,
                'S' => rflags::SF,
                'Z' => rflags::ZF,
                'A' => rflags::AF,
                'P' => rflags::PF,
                'C' => rflags::CF,
                other => panic!("no flag {other}"),
            }
    })
}

/// What a Zen 4 processor makes of an operation of group 2 on `rax` with the count in `cl`.
struct Known {
    /// The operation's number in the group, as the opcode has it.
    operation: u8,
    bits: u32,
    value: u64,
    count: u64,
    carry: bool,
    result: u64,
    flags: &'static str,
}

const ROL: u8 = 0;
const ROR: u8 = 1;
const RCL: u8 = 2;
const RCR: u8 = 3;
const SHL: u8 = 4;
const SHR: u8 = 5;
const SAR: u8 = 7;

macro_rules! known {
    ($($operation:ident $bits:literal $value:literal by $count:literal, $carry:literal => $result:literal $flags:literal;)*) => {
        &[$(Known {
            operation: $operation, bits: $bits, value: $value, count: $count, carry: $carry == 1,
            result: $result, flags: $flags,
        }),*]
    };
}

/// Starts with CF as given and all other flags clear.
const KNOWN: &[Known] = known! {
    SHL 32 0x0000_0088 by 1, 0 => 0x110 "A";
    SHL 32 0xc000_0008 by 1, 0 => 0x8000_0010 "SAC";
    SHL 32 0xc000_0008 by 2, 0 => 0x20 "OAC";
    SHL 32 0x2000_0008 by 2, 0 => 0x8000_0020 "OSA";
    SHL 8 0x81 by 8, 0 => 0 "OZAPC";
    SHL 8 0x81 by 9, 0 => 0 "ZAP";
    SHL 16 0x8001 by 16, 0 => 0 "OZAPC";
    SHL 16 0x8001 by 17, 0 => 0 "ZAP";
    SHR 32 0x8800_0000 by 1, 0 => 0x4400_0000 "OAP";
    SHR 32 0xc000_0003 by 2, 0 => 0x3000_0000 "APC";
    SHR 8 0x80 by 8, 0 => 0 "ZAPC";
    SHR 8 0x80 by 9, 0 => 0 "ZAP";
    SHR 8 0x80 by 7, 0 => 1 "A";
    SAR 32 0x8800_0000 by 1, 0 => 0xc400_0000 "SAP";
    SAR 32 0xc000_0003 by 2, 0 => 0xf000_0000 "SAPC";
    SAR 8 0x80 by 31, 0 => 0xff "SAPC";
    SAR 8 0x40 by 7, 0 => 0 "ZAPC";
    ROL 32 0x4000_0000 by 1, 0 => 0x8000_0000 "O";
    ROL 32 0x4000_0000 by 2, 0 => 1 "OC";
    ROL 8 0x81 by 8, 0 => 0x81 "C";
    ROL 8 0x80 by 16, 1 => 0x80 "O";
    ROR 32 0x4000_0000 by 1, 0 => 0x2000_0000 "";
    ROR 32 0x4000_0002 by 2, 0 => 0x9000_0000 "OC";
    ROR 8 0x81 by 8, 0 => 0x81 "OC";
    ROR 8 0x40 by 8, 1 => 0x40 "O";
    RCL 32 0x4000_0000 by 2, 0 => 0 "OC";
    RCL 8 0x80 by 9, 0 => 0x80 "O";
    RCL 8 0x80 by 9, 1 => 0x80 "C";
    RCL 8 0x40 by 27, 1 => 0x40 "OC";
    RCL 8 0x40 by 8, 0 => 0x20 "";
    RCL 16 0x4000 by 17, 1 => 0x4000 "OC";
    RCR 32 0x4000_0000 by 1, 1 => 0xa000_0000 "O";
    RCR 32 0x8000_0003 by 2, 0 => 0xa000_0000 "OC";
    RCR 8 0x40 by 9, 0 => 0x40 "O";
    RCR 8 0xc0 by 18, 1 => 0xc0 "C";
    RCR 8 0x85 by 8, 0 => 0x0a "C";
};

#[test]
fn results_and_flags_are_those_of_the_processor_defined_or_not() {
    for k in KNOWN {
        let modrm = 0xc0 | k.operation << 3;
        let by_cl: &[u8] = match k.bits {
            8 => &[0xd2, modrm],
            16 => &[0x66, 0xd3, modrm],
            _ => &[0xd3, modrm],
        };
        let count = k.count as u8;
        let by_immediate: &[u8] = match k.bits {
            8 => &[0xc0, modrm, count],
            16 => &[0x66, 0xc1, modrm, count],
            _ => &[0xc1, modrm, count],
        };
        for code in [by_cl, by_immediate] {
            let o = Guest::long()
                .bytes(code)
                .reg(gpr::RAX, k.value)
                .reg(gpr::RCX, k.count)
                .flags(if k.carry { rflags::CF } else { 0 })
                .run();
            let context = format!("/{} of {:#x} by {}", k.operation, k.value, k.count);
            assert_eq!(o.reg(gpr::RAX), k.result, "{context}");
            assert_eq!(o.state.rflags & ALL, flags(k.flags), "flags of {context}");
        }
    }
}

#[test]
fn rotations_leave_the_flags_that_follow_results() {
    for kept in [0, rflags::SF | rflags::ZF | rflags::AF | rflags::PF] {
        let o = Guest::long().code(|a| a.rol(rax, 4)).reg(gpr::RAX, 0xf << 60).flags(kept).run();
        assert_eq!((o.reg(gpr::RAX), o.state.rflags & ALL), (0xf, kept | rflags::CF | rflags::OF));
    }
}

#[test]
fn a_count_of_zero_leaves_the_flags_but_clears_the_upper_half() {
    // shl eax, cl; rcl eax, cl; rol eax, 0x20; shld eax, edx, cl
    for code in [&[0xd3, 0xe0][..], &[0xd3, 0xd0], &[0xc1, 0xc0, 0x20], &[0x0f, 0xa5, 0xd0]] {
        let o = Guest::long()
            .bytes(code)
            .reg(gpr::RAX, 0xffff_ffff_8000_0008)
            .reg(gpr::RCX, 0x20)
            .flags(ALL)
            .run();
        assert_eq!((o.reg(gpr::RAX), o.state.rflags & ALL), (0x8000_0008, ALL));
    }
}

#[test]
fn sixty_four_bits_take_six_bits_of_count() {
    let o = Guest::long()
        .code(|a| {
            a.shl(rax, cl)?;
            a.sar(rbx, cl)?;
            a.shr(edx, cl)
        })
        .reg(gpr::RAX, 3)
        .reg(gpr::RBX, 1 << 63)
        .reg(gpr::RCX, 0xbf)
        .reg(gpr::RDX, 0xffff_ffff)
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX), o.reg(gpr::RDX)), (1 << 63, u64::MAX, 1));
}

#[test]
fn operands_in_memory_shift_in_place() {
    let o = Guest::long()
        .code(|a| {
            a.shl(dword_ptr(rbx), 4)?;
            a.ror(byte_ptr(rbx + 4), 1)?;
            a.shr(qword_ptr(rbx + 8), cl)?;
            a.shld(word_ptr(rbx + 16), ax, 4)
        })
        .reg(gpr::RAX, 0xa000)
        .reg(gpr::RBX, DATA)
        .reg(gpr::RCX, 8)
        .memory(DATA, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x34, 0x12])
        .run();
    assert_eq!((o.load::<u32>(DATA), o.load::<u8>(DATA + 4)), (0x10, 0x80));
    assert_eq!((o.load::<u64>(DATA + 8), o.load::<u16>(DATA + 16)), (1, 0x234a));
}

#[test]
fn double_shifts_are_those_of_the_processor_defined_or_not() {
    let run = |right: bool, bits: u32, a: u64, d: u64, count: u64| {
        let opcode = if right { 0xad } else { 0xa5 };
        let code: &[u8] = if bits == 16 { &[0x66, 0x0f, opcode, 0xd0] } else { &[0x0f, opcode, 0xd0] };
        let o = Guest::long().bytes(code).reg(gpr::RAX, a).reg(gpr::RDX, d).reg(gpr::RCX, count).run();
        (o.reg(gpr::RAX), o.state.rflags & ALL)
    };
    let (left, right) = (false, true);
    assert_eq!(run(left, 32, 0x4000_0008, 0x8000_0000, 1), (0x8000_0011, flags("OSAP")));
    assert_eq!(run(left, 32, 0x4000_0008, 0x8000_0000, 2), (0x22, flags("OAPC")));
    assert_eq!(run(left, 32, 0x8000_0008, 0x8000_0000, 2), (0x22, flags("AP")));
    assert_eq!(run(left, 16, 0x8001, 0xc003, 16), (0xc003, flags("OSAPC")));
    assert_eq!(run(left, 16, 0x8001, 0xc003, 17), (0x8007, flags("SA")));
    assert_eq!(run(left, 16, 0x1234, 0x5678, 31), (0x2b3c, flags("AP")));
    assert_eq!(run(right, 32, 0x4000_0008, 0x8000_0001, 1), (0xa000_0004, flags("OSA")));
    assert_eq!(run(right, 32, 0x8000_000a, 0x8000_0001, 2), (0x6000_0002, flags("OAC")));
    assert_eq!(run(right, 16, 0x8001, 0xc003, 16), (0xc003, flags("SAPC")));
    assert_eq!(run(right, 16, 0x8001, 0xc003, 20), (0x3c00, flags("AP")));
    assert_eq!(run(right, 16, 0x1234, 0x5678, 31), (0xacf0, flags("OSAP")));
}
