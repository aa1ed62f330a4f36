use iced_x86::code_asm::*;
use posada_vcpu::x86::{Segment, gpr, rflags};

use crate::testing::{CODE, DATA, Guest, STACK};

#[test]
fn call_pushes_where_ret_goes_back_to() {
    let o = Guest::long()
        .code(|a| {
            let mut function = a.create_label();
            let mut end = a.create_label();
            a.call(function)?;
            a.add(rax, 1)?;
            a.jmp(end)?;
            a.set_label(&mut function)?;
            a.mov(rbx, qword_ptr(rsp))?;
            a.ret_1(8)?;
            a.set_label(&mut end)?;
            a.nop()
        })
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RBX)), (1, CODE + 5));
    assert_eq!(o.reg(gpr::RSP), STACK + 8);
}

#[test]
fn indirect_branches_take_registers_and_memory() {
    for (bytes, place) in [(&[0xff, 0xe0, 0x90][..], CODE + 3), (&[0xff, 0x20, 0x90], DATA)] {
        // jmp rax; jmp [rax]
        let o = Guest::long().bytes(bytes).reg(gpr::RAX, place).memory(DATA, &(CODE + 3).to_le_bytes()).run();
        assert_eq!((o.state.rip, o.fault()), (CODE + 3, None));
    }
    // call [rsp]: the address is worked out before the push.
    let o = Guest::long().bytes(&[0xff, 0x14, 0x24, 0x90]).memory(STACK, &(CODE + 4).to_le_bytes()).run();
    assert_eq!((o.state.rip, o.load::<u64>(STACK - 8)), (CODE + 4, CODE + 3));
}

#[test]
fn a_branch_to_a_non_canonical_address_faults_before_it_changes_anything() {
    for code in [&[0xff, 0xe0][..], &[0xff, 0xd0], &[0xc3]] {
        // jmp rax; call rax; ret
        let o = Guest::long()
            .bytes(code)
            .reg(gpr::RAX, 1 << 47)
            .memory(STACK, &(1_u64 << 47).to_le_bytes())
            .run();
        assert_eq!((o.fault(), o.state.rip, o.reg(gpr::RSP)), (Some((13, Some(0))), CODE, STACK));
    }
}

#[test]
fn a_branch_beyond_the_code_segment_faults_before_it_changes_anything() {
    let limited = |code: &[u8]| {
        Guest::protected()
            .bytes(code)
            .reg(gpr::RAX, 0x2_0000)
            .reg(gpr::RCX, 2)
            .memory(STACK, &0x2_0000_u32.to_le_bytes())
            .with(|state| {
                state.segments.cs =
                    Segment { limit: 0xffff, attributes: 0x409b, ..Segment::flat_code32(0x10) };
            })
            .run()
    };
    // jmp, call and ret indirect; jmp, je and call relative.
    for code in [
        &[0xff, 0xe0][..],
        &[0xff, 0xd0],
        &[0xc3],
        &[0xe9, 0, 0, 2, 0],
        &[0xe8, 0, 0, 2, 0],
        &[0x0f, 0x85, 0, 0, 2, 0],
    ] {
        let o = limited(code);
        assert_eq!((o.fault(), o.state.rip, o.reg(gpr::RSP)), (Some((13, Some(0))), CODE, STACK));
    }
}

#[test]
fn sixteen_bit_branches_wrap_within_64_kib() {
    // In real mode: jmp $ - 0x7ff0 from 0x8000 goes through zero.
    let o = Guest::real().bytes(&[0xe9, 0x00, 0x80]).memory(3, &[0x90]);
    let mut interpreter = o.interpreter();
    interpreter.single_step().expect("the jump is good");
    assert_eq!(interpreter.core().rip(), 3);
    // In 32-bit code an operand-size prefix cuts the target to 16 bits: jmp 0x1_8000 lands at 0x8004 + 4.
    let guest = Guest::protected().bytes(&[0x66, 0xe9, 4, 0]);
    let mut interpreter = guest.interpreter();
    interpreter.single_step().expect("the jump is good");
    assert_eq!(interpreter.core().rip(), CODE + 8);
}

#[test]
fn sixteen_bit_calls_push_sixteen_bits_in_wider_code() {
    // call rel16 in 32-bit code and, as AMD has it, in 64-bit code.
    for guest in [Guest::protected(), Guest::long()] {
        let o = guest.bytes(&[0x66, 0xe8, 0, 0]).run();
        assert_eq!((o.reg(gpr::RSP), o.load::<u16>(STACK - 2)), (STACK - 2, CODE as u16 + 4));
    }
    let o = Guest::long().bytes(&[0x66, 0xc3, 0x90]).memory(STACK, &[3, 0x80, 0xff, 0xff]).run();
    assert_eq!((o.reg(gpr::RSP), o.state.rip), (STACK + 2, CODE + 3));
}

#[test]
fn loops_count_in_the_address_size_and_heed_zf() {
    let o = Guest::long()
        .code(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(rax)?;
            a.loop_(again)
        })
        .reg(gpr::RCX, 5)
        .run();
    assert_eq!((o.reg(gpr::RAX), o.reg(gpr::RCX)), (5, 0));
    // addr32 loop $+2, addr16 loop in 32-bit code.
    let o = Guest::long().bytes(&[0x67, 0xe2, 0]).reg(gpr::RCX, 0x5_0000_0000).run();
    assert_eq!(o.reg(gpr::RCX), 0xffff_ffff);
    let o = Guest::protected().bytes(&[0x67, 0xe2, 0]).reg(gpr::RCX, 0x5_0000).run();
    assert_eq!(o.reg(gpr::RCX), 0x5_ffff);
    // loope and loopne over one byte (inc would set ZF).
    for (opcode, zf, taken) in
        [(0xe1, true, true), (0xe1, false, false), (0xe0, true, false), (0xe0, false, true)]
    {
        let o = Guest::long()
            .bytes(&[opcode, 2, 0xb0, 1])
            .reg(gpr::RCX, 2)
            .flags(if zf { rflags::ZF } else { 0 })
            .run();
        assert_eq!((o.reg(gpr::RAX) == 0, o.reg(gpr::RCX)), (taken, 1), "{opcode:#x} {zf}");
    }
}

#[test]
fn a_repeat_prefix_decides_what_a_loop_heeds() {
    for (code, taken) in [([0xf3, 0xe0, 2, 0xb0, 1], true), ([0xf2, 0xe1, 2, 0xb0, 1], false)] {
        // rep loopne, repne loope, with ZF set.
        let o = Guest::long().bytes(&code).reg(gpr::RCX, 2).flags(rflags::ZF).run();
        assert_eq!(o.reg(gpr::RAX) == 0, taken);
    }
}

#[test]
fn jcxz_looks_at_the_count_of_its_address_size() {
    for (code, count, taken) in [
        (&[0xe3, 2, 0xb0, 1][..], 0, true),
        (&[0xe3, 2, 0xb0, 1], 1 << 32, false),
        (&[0x67, 0xe3, 2, 0xb0, 1], 1 << 32, true),
    ] {
        let o = Guest::long().bytes(code).reg(gpr::RCX, count).run();
        assert_eq!(o.reg(gpr::RAX) == 0, taken);
    }
    let o = Guest::real().bytes(&[0xe3, 2, 0xb0, 1]).reg(gpr::RCX, 0x1_0000).run();
    assert_eq!(o.reg(gpr::RAX), 0);
}

#[test]
fn a_call_whose_push_faults_goes_nowhere() {
    let o = Guest::user().code(|a| a.call(rax)).reg(gpr::RAX, CODE).reg(gpr::RSP, 1 << 40).run();
    assert_eq!((o.fault(), o.state.rip, o.reg(gpr::RSP)), (Some((14, Some(6))), CODE, 1 << 40));
}
