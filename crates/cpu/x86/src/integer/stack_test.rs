use iced_x86::code_asm::*;
use posada_vcpu::x86::{Segment, State, gpr, rflags};

use crate::testing::{CODE, DATA, Guest, Outcome, STACK};

#[test]
fn push_and_pop_move_by_their_operand_size() {
    let o = Guest::long()
        .code(|a| {
            a.push(rax)?;
            a.push(bx)?;
            a.push(-2)?;
            a.push(qword_ptr(rsi))?;
            a.pop(rcx)?;
            a.pop(rdx)?;
            a.pop(di)?;
            a.pop(qword_ptr(rsi + 8))
        })
        .reg(gpr::RAX, 0x1111)
        .reg(gpr::RBX, 0x2222)
        .reg(gpr::RSI, DATA)
        .reg(gpr::RDI, 0)
        .memory(DATA, &[0x33])
        .run();
    assert_eq!((o.fault(), o.reg(gpr::RSP)), (None, STACK));
    assert_eq!((o.reg(gpr::RCX), o.reg(gpr::RDX), o.reg(gpr::RDI)), (0x33, -2_i64 as u64, 0x2222));
    assert_eq!((o.load::<u64>(DATA + 8), o.load::<u16>(STACK - 10)), (0x1111, 0x2222));
}

#[test]
fn the_stack_pointer_itself_is_pushed_as_it_was_and_popped_as_it_is_found() {
    let o = Guest::long().code(|a| a.push(rsp)).run();
    assert_eq!((o.load::<u64>(STACK - 8), o.reg(gpr::RSP)), (STACK, STACK - 8));
    let o = Guest::long().code(|a| a.pop(rsp)).memory(STACK, &DATA.to_le_bytes()).run();
    assert_eq!(o.reg(gpr::RSP), DATA);
    // An operand in the stack: read before the push moves it, written after the pop has.
    let o = Guest::long().code(|a| a.push(qword_ptr(rsp))).memory(STACK, &[7]).run();
    assert_eq!(o.load::<u64>(STACK - 8), 7);
    let o = Guest::long().code(|a| a.pop(qword_ptr(rsp))).memory(STACK, &[7]).run();
    assert_eq!((o.load::<u64>(STACK + 8), o.reg(gpr::RSP)), (7, STACK + 8));
}

#[test]
fn a_pop_to_memory_that_faults_leaves_the_stack_pointer() {
    let o = Guest::user().code(|a| a.pop(qword_ptr(rax))).reg(gpr::RAX, 1 << 40).run();
    assert_eq!((o.fault(), o.reg(gpr::RSP)), (Some((14, Some(6))), STACK));
}

#[test]
fn a_16_bit_stack_wraps_within_64_kib_and_keeps_the_upper_bits() {
    let guest = || Guest::protected16().reg(gpr::RSP, 0x7777_0000).reg(gpr::RAX, 0x1234_5678);
    let o = guest().code(|a| a.push(eax)).run();
    assert_eq!((o.reg(gpr::RSP), o.load::<u32>(0xfffc)), (0x7777_fffc, 0x1234_5678));
    let o = guest().reg(gpr::RSP, 0x7777_fffe).memory(0xfffe, &[7, 8]).code(|a| a.pop(ax)).run();
    assert_eq!((o.reg(gpr::RSP), o.reg(gpr::RAX)), (0x7777_0000, 0x1234_0807));
}

#[test]
fn selectors_are_pushed_zero_extended() {
    let o = Guest::long()
        .code(|a| a.push(fs))
        .with(|state| state.segments.fs.selector = 0x2b)
        .memory(STACK - 8, &[0xff; 8])
        .run();
    assert_eq!((o.load::<u64>(STACK - 8), o.reg(gpr::RSP)), (0x2b, STACK - 8));
}

#[test]
fn pusha_pushes_the_old_stack_pointer_and_popa_skips_it() {
    let mut guest = Guest::protected().code(CodeAssembler::pushad);
    for n in [0, 1, 2, 3, 5, 6, 7] {
        guest = guest.reg(n, 0x100 + n as u64);
    }
    let o = guest.run();
    for n in 0..8 {
        let expected = if n == 4 { STACK as u32 } else { 0x100 + n };
        assert_eq!(o.load::<u32>(STACK - 4 - 4 * u64::from(n)), expected);
    }
    assert_eq!(o.reg(gpr::RSP), STACK - 32);
    let bytes: Vec<u8> = (0..16).collect();
    let o = Guest::protected().code(CodeAssembler::popa).memory(STACK, &bytes).run();
    let words = [0x0f0e, 0x0d0c, 0x0b0a, 0x0908, STACK + 16, 0x0504, 0x0302, 0x0100];
    assert_eq!(o.state.gpr[..8], words);
}

const EVERY_FLAG: u64 = 0x3f_7fd5;

/// `popf` of all flags that there are, at a privilege level and IOPL.
fn pop_all(mut guest: Guest, bits: u32, cpl: u8, iopl: u64) -> Outcome {
    let bytes: &[u8] = if bits == 16 { &[0x66, 0x9d] } else { &[0x9d] };
    let segment = Segment { attributes: 0xc093 | u16::from(cpl) << 5, ..Segment::flat_data(0x18) };
    guest.state.segments.ss = segment;
    guest.bytes(bytes).memory(STACK, &EVERY_FLAG.to_le_bytes()).flags(iopl << 12).run()
}

#[test]
fn popf_changes_what_the_privilege_level_may_change() {
    let changed = |cpl, iopl| pop_all(Guest::protected(), 32, cpl, iopl).state.rflags;
    // Never VM, VIF, VIP; RF is cleared.
    let all = 0x24_7fd7;
    assert_eq!(changed(0, 0), all);
    assert_eq!(changed(3, 0), all & !(rflags::IOPL | rflags::IF));
    assert_eq!(changed(3, 3), all);
    assert_eq!(changed(2, 1), all & !(rflags::IOPL | rflags::IF) | 1 << 12);
    assert_eq!(changed(1, 1), all & !rflags::IOPL | 1 << 12);
    let short = pop_all(Guest::protected(), 16, 0, 0);
    assert_eq!((short.state.rflags, short.reg(gpr::RSP)), (0x7fd7, STACK + 2));
}

#[test]
fn pushf_shows_neither_rf_nor_vm() {
    let o = Guest::long().code(CodeAssembler::pushfq).flags(rflags::RF | rflags::AC | rflags::CF).run();
    assert_eq!(o.load::<u64>(STACK - 8), rflags::AC | rflags::CF | rflags::FIXED);
}

#[test]
fn pushf_and_popf_in_vm86_with_iopl_below_3_fault() {
    for code in [0x9c, 0x9d] {
        let o = Guest::v8086().bytes(&[code]).with(|state| state.rflags &= !rflags::IOPL).run();
        assert_eq!((o.fault(), o.state.rip, o.reg(gpr::RSP)), (Some((13, Some(0))), CODE, STACK));
    }
    let o = Guest::v8086().bytes(&[0x9c]).run();
    assert_eq!(o.load::<u16>(STACK - 2), 0x3002);
    let o = Guest::v8086().bytes(&[0x9d]).memory(STACK, &[0xff, 0x0f]).run();
    assert_eq!(o.state.rflags, 0x0fd7 | rflags::IOPL | rflags::VM, "IOPL stays 3");
}

#[test]
fn enter_makes_a_frame_and_leave_takes_it_away() {
    let o = Guest::long().code(|a| a.enter(0x20, 0)).reg(gpr::RBP, 0x1234).run();
    assert_eq!((o.reg(gpr::RBP), o.reg(gpr::RSP)), (STACK - 8, STACK - 0x28));
    assert_eq!(o.load::<u64>(STACK - 8), 0x1234);
    let o = Guest::long().code(CodeAssembler::leave).reg(gpr::RBP, STACK - 8).memory(STACK - 8, &[7]).run();
    assert_eq!((o.reg(gpr::RBP), o.reg(gpr::RSP)), (7, STACK));
    // In 16-bit code with a 32-bit operand.
    let o = Guest::real().bytes(&[0x66, 0xc9]).reg(gpr::RBP, DATA).memory(DATA, &[1, 2, 3, 4]).run();
    assert_eq!((o.reg(gpr::RBP), o.reg(gpr::RSP)), (0x0403_0201, DATA + 4));
}

#[test]
fn enter_faults_when_the_new_top_of_the_stack_cannot_be_written() {
    let o =
        Guest::user().code(|a| a.enter(0x1000, 0)).reg(gpr::RSP, (1 << 40) + 0x100).reg(gpr::RBP, 7).run();
    assert_eq!((o.fault(), o.reg(gpr::RBP)), (Some((14, Some(6))), 7));
    let limited = |state: &mut State| {
        state.segments.ss = Segment { limit: 0x5fff, attributes: 0x4097, ..Segment::flat_data(0x18) };
    };
    let o = Guest::protected().code(|a| a.enter(0x1000, 0)).with(limited).reg(gpr::RSP, 0x6fff).run();
    assert_eq!((o.fault(), o.reg(gpr::RSP)), (Some((12, Some(0))), 0x6fff), "an expand-down segment");
}

#[test]
fn popa_keeps_what_it_popped_before_a_fault() {
    let end = (1 << 30) - 8;
    let guest = Guest::user32().code(CodeAssembler::popad).reg(gpr::RSP, end);
    let o = guest.reg(gpr::RDI, 0x77).reg(gpr::RSI, 0x77).reg(gpr::RBP, 0x77).run();
    assert_eq!((o.fault(), o.reg(gpr::RSP)), (Some((14, Some(4))), end));
    // No RAM is there: what was popped floats high.
    assert_eq!((o.reg(gpr::RDI), o.reg(gpr::RSI), o.reg(gpr::RBP)), (0xffff_ffff, 0xffff_ffff, 0x77));
}

#[test]
fn enter_copies_the_frames_around_it() {
    let display: Vec<u8> = [0x33_u32, 0x22, 0x11].iter().flat_map(|v| v.to_le_bytes()).collect();
    let o = Guest::protected()
        .code(|a| a.enter(8, 3))
        .reg(gpr::RBP, DATA + 0x100)
        .memory(DATA + 0x100 - 12, &display)
        .run();
    let pushed: Vec<u32> = (1..=4).map(|n| o.load(STACK - 4 * n)).collect();
    assert_eq!(pushed, [DATA as u32 + 0x100, 0x11, 0x22, STACK as u32 - 4]);
    assert_eq!((o.reg(gpr::RBP), o.reg(gpr::RSP)), (STACK - 4, STACK - 24));
}
