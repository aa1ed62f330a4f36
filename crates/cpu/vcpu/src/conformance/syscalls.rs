//! Fast system calls, and the bases that go with them (AMD APM volume 2, section 6.1; volume 3).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, Machine, STACK, USER_CODE, selector};
use crate::x86::{Segment, State, cr4, efer, gpr, rflags};

const TARGET: u64 = USER_CODE;

fn with_syscall(state: &mut State) {
    state.msrs.efer |= efer::SCE;
    // `syscall` loads CODE64 and DATA; `sysret` USER_CODE32 or, 16 further on, USER_CODE64, and USER_DATA.
    state.msrs.star =
        u64::from(selector::CODE64) << 32 | u64::from(selector::USER_CODE32) << 48 | 0x1234_5678;
    state.msrs.lstar = TARGET;
    state.msrs.cstar = TARGET + 0x100;
    state.msrs.sfmask = rflags::IF | rflags::DF | rflags::TF;
}

pub(super) fn syscall_enters_64_bit_code(engine: &Engine) {
    let flags = rflags::IF | rflags::DF | rflags::CF | rflags::FIXED;
    let end = Machine::long(engine)
        .user()
        .with(with_syscall)
        .flags(flags)
        .code(|a| a.syscall())
        .code_at(TARGET, 64, |a| a.mov(eax, 7))
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RCX), end.reg(11)), (7, CODE + 2, flags));
    assert_eq!(end.state.rflags, rflags::CF | rflags::FIXED, "those of the mask are clear");
    let s = end.state.segments;
    assert_eq!((s.cs.selector, s.ss.selector, end.state.cpl()), (selector::CODE64, selector::DATA, 0));
    assert!(s.cs.long());
    assert_eq!(end.reg(gpr::RSP), STACK, "the stack pointer is the program's");
}

pub(super) fn syscall_from_compatibility_mode_has_its_own_target(engine: &Engine) {
    let mut machine = Machine::compatibility(engine).user().with(with_syscall);
    machine.bits = 32;
    let end = machine
        .code(|a| a.syscall())
        .code_at(TARGET + 0x100, 64, |a| a.mov(eax, 7))
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RCX)), (7, CODE + 2));
}

pub(super) fn sysret_returns_to_64_bit_and_32_bit_programs(engine: &Engine) {
    for (wide, code, bits) in [(true, selector::USER_CODE64, 64), (false, selector::USER_CODE32, 32)] {
        let end = Machine::long(engine)
            .with(with_syscall)
            .reg(gpr::RCX, TARGET)
            .reg(11, rflags::CF | rflags::IF | rflags::RF | rflags::VM)
            .bytes_at(CODE, if wide { &[0x48, 0x0f, 0x07] } else { &[0x0f, 0x07] })
            .code_at(TARGET, bits, |a| a.mov(eax, cs))
            .run();
        end.expect_end();
        let frame = end.frame();
        assert_eq!((frame.cs, frame.ss, end.reg(gpr::RAX)), (code, selector::USER_DATA, code.into()));
        if wide {
            let kept = rflags::CF | rflags::IF | rflags::VM;
            assert_eq!(frame.rflags & kept, rflags::CF | rflags::IF);
        }
    }
}

pub(super) fn syscall_outside_64_bit_mode_is_the_legacy_one(engine: &Engine) {
    // An AMD processor's: the target is in STAR, and CR4, IF and RF are all that changes.
    let end = Machine::protected(engine)
        .user()
        .with(|state| {
            state.msrs.efer |= efer::SCE;
            state.msrs.star = u64::from(selector::CODE32) << 32 | TARGET;
        })
        .flags(rflags::IF)
        .code(|a| a.syscall())
        .code_at(TARGET, 32, |a| a.mov(eax, 7))
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RCX), end.state.cpl()), (7, CODE + 2, 0));
    assert_eq!(end.state.segments.ss.selector, selector::CODE32 + 8);
    assert!(!end.has(rflags::IF));
}

pub(super) fn syscall_and_sysret_are_invalid_until_enabled(engine: &Engine) {
    Machine::long(engine).user().code(|a| a.syscall()).run().expect_fault(6, None, CODE);
    Machine::long(engine).bytes_at(CODE, &[0x48, 0x0f, 0x07]).run().expect_fault(6, None, CODE);
}

pub(super) fn sysret_is_for_the_kernel(engine: &Engine) {
    let end = Machine::long(engine).user().with(with_syscall).bytes_at(CODE, &[0x48, 0x0f, 0x07]).run();
    end.expect_fault(13, Some(0), CODE);
}

fn with_sysenter(state: &mut State) {
    state.msrs.sysenter_cs = selector::CODE32.into();
    state.msrs.sysenter_eip = TARGET;
    state.msrs.sysenter_esp = STACK - 0x100;
}

pub(super) fn sysenter_enters_the_kernel_of_protected_mode(engine: &Engine) {
    let end = Machine::protected(engine)
        .user()
        .with(with_sysenter)
        .flags(rflags::IF)
        .code(|a| a.sysenter())
        .code_at(TARGET, 32, |a| a.mov(eax, 7))
        .run();
    end.expect_end();
    let s = end.state.segments;
    assert_eq!((s.cs.selector, s.ss.selector, end.state.cpl()), (selector::CODE32, selector::CODE32 + 8, 0));
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RSP)), (7, STACK - 0x100));
    assert!(!end.has(rflags::IF));
}

pub(super) fn sysexit_returns_to_a_program(engine: &Engine) {
    let end = Machine::protected(engine)
        .with(with_sysenter)
        .reg(gpr::RDX, TARGET)
        .reg(gpr::RCX, DATA)
        .code(|a| a.sysexit())
        .code_at(TARGET, 32, |a| a.mov(eax, cs))
        .run();
    end.expect_end();
    let frame = end.frame();
    assert_eq!((frame.cs, frame.ss), ((selector::CODE32 + 16) | 3, (selector::CODE32 + 24) | 3));
    assert_eq!((frame.rsp, end.reg(gpr::RAX)), (DATA, u64::from((selector::CODE32 + 16) | 3)));
}

pub(super) fn sysenter_needs_a_code_selector(engine: &Engine) {
    Machine::protected(engine).user().code(|a| a.sysenter()).run().expect_fault(13, Some(0), CODE);
}

pub(super) fn sysenter_and_sysexit_are_invalid_in_long_mode(engine: &Engine) {
    // As on every AMD processor.
    Machine::long(engine).user().with(with_sysenter).code(|a| a.sysenter()).run().expect_fault(6, None, CODE);
    Machine::long(engine).with(with_sysenter).code(|a| a.sysexit()).run().expect_fault(6, None, CODE);
    let end = Machine::compatibility(engine).with(with_sysenter).code(|a| a.sysenter()).run();
    end.expect_fault(6, None, CODE);
}

pub(super) fn swapgs_exchanges_the_bases_of_gs(engine: &Engine) {
    let machine = Machine::long(engine).with(|state| {
        state.segments.gs.base = 0x1111;
        state.msrs.kernel_gs_base = DATA;
    });
    machine.put(DATA, 0x77_u32);
    let end = machine
        .code(|a| {
            a.swapgs()?;
            a.xor(ebx, ebx)?;
            a.mov(eax, dword_ptr(rbx).gs())
        })
        .run();
    end.expect_end();
    assert_eq!((end.state.segments.gs.base, end.state.msrs.kernel_gs_base), (DATA, 0x1111));
    assert_eq!(end.reg(gpr::RAX), 0x77);
    Machine::long(engine).user().code(|a| a.swapgs()).run().expect_fault(13, Some(0), CODE);
    Machine::compatibility(engine).bytes_at(CODE, &[0x0f, 0x01, 0xf8]).run().expect_fault(6, None, CODE);
}

pub(super) fn programs_reach_fs_and_gs_bases_if_allowed(engine: &Engine) {
    for allowed in [true, false] {
        let machine = Machine::long(engine).user();
        let end = machine
            .with(|state| state.cr4 |= if allowed { cr4::FSGSBASE } else { 0 })
            .reg(gpr::RAX, 0x1234_5678_9abc)
            .code(|a| {
                a.wrfsbase(rax)?;
                a.rdfsbase(rcx)?;
                a.wrgsbase(eax)?;
                a.rdgsbase(rdx)
            })
            .run();
        if allowed {
            end.expect_end();
            assert_eq!((end.reg(gpr::RCX), end.reg(gpr::RDX)), (0x1234_5678_9abc, 0x5678_9abc));
        } else {
            end.expect_fault(6, None, CODE);
        }
    }
    let machine = Machine::long(engine).with(|state| state.cr4 |= cr4::FSGSBASE);
    machine.reg(gpr::RAX, 1 << 47).code(|a| a.wrfsbase(rax)).run().expect_fault(13, Some(0), CODE);
}

pub(super) fn base_registers_must_be_canonical(engine: &Engine) {
    for msr in [0xc000_0100_u32, 0xc000_0101, 0xc000_0102, 0xc000_0082] {
        let end = Machine::long(engine)
            .reg(gpr::RCX, msr.into())
            .reg(gpr::RDX, 0x8000)
            .reg(gpr::RAX, 0)
            .code(|a| a.wrmsr())
            .run();
        end.expect_fault(13, Some(0), CODE);
    }
}

pub(super) fn a_load_of_fs_in_64_bit_mode_takes_the_base_from_the_table(engine: &Engine) {
    let machine = Machine::long(engine).with(|state| state.segments.fs.base = 0x1234_5678_9abc);
    machine.put(
        super::machine::GDT + u64::from(selector::FREE),
        super::machine::descriptor::segment(0x4321, 0xf_ffff, 0xc093),
    );
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.mov(fs, eax)
        })
        .run();
    end.expect_end();
    let expected = Segment { selector: selector::FREE, base: 0x4321, limit: u32::MAX, attributes: 0xc093 };
    assert_eq!(end.state.segments.fs, expected);
}
