//! Fast system calls.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RCX, RDX, RSP};
use posada_vcpu::x86::{Segment, cr4, efer, rflags};

use crate::exception::vector;
use crate::system::fixture::*;
use crate::testing::{CODE as START, Guest, STACK};

const R11: usize = 11;
const ENTRY: u64 = 0x9000;
const ENTRY32: u64 = 0x9800;
const FIXED: u64 = rflags::FIXED;

/// `syscall` goes to [`CODE64`], `sysret` to [`USER_CODE32`] and its neighbours.
fn prepared(guest: Guest) -> Guest {
    guest.with_system().with(|state| {
        state.msrs.efer |= efer::SCE;
        state.msrs.star = u64::from(USER_CODE32) << 48 | u64::from(CODE64) << 32;
        state.msrs.lstar = ENTRY;
        state.msrs.cstar = ENTRY32;
        state.msrs.sfmask = rflags::IF | rflags::TF | rflags::DF | rflags::CF;
    })
}

fn user() -> Guest {
    prepared(Guest::user()).at_user_level()
}

#[test]
fn a_system_call_saves_where_it_came_from_and_masks_flags() {
    let flags = rflags::IF | rflags::DF | rflags::CF | rflags::AF | rflags::ID;
    let outcome = user().flags(flags).code(|a| a.syscall()).steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.state.cpl()), (None, ENTRY, 0));
    assert_eq!((outcome.reg(RCX), outcome.reg(R11), outcome.reg(RSP)), (START + 2, FIXED | flags, STACK));
    assert_eq!(outcome.state.rflags, FIXED | rflags::AF | rflags::ID);
    let s = outcome.state.segments;
    assert_eq!((s.cs, s.ss), (Segment::flat_code64(CODE64), Segment::flat_data(CODE64 + 8)));
}

#[test]
fn a_32_bit_system_call_has_an_entry_of_its_own() {
    let guest = prepared(Guest::user32()).with(|s| s.segments.cs.selector = USER_CODE32);
    let outcome = guest.code(|a| a.syscall()).steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RCX)), (None, ENTRY32, START + 2));
    assert_eq!(outcome.state.segments.cs, Segment::flat_code64(CODE64));
}

#[test]
fn a_system_call_and_its_return_bring_a_program_back() {
    let outcome = user()
        .flags(rflags::IF)
        .memory(ENTRY, &[0x48, 0xff, 0xc0, 0x48, 0x0f, 0x07])
        .code(|a| {
            a.syscall()?;
            a.syscall()?;
            a.nop()
        })
        .steps(6);
    assert_eq!((outcome.fault(), outcome.reg(RAX), outcome.state.rip), (None, 2, START + 4));
    let s = outcome.state.segments;
    assert_eq!(
        (s.cs.selector, s.cs.long(), s.ss.selector, outcome.state.cpl()),
        (USER_CODE64, true, USER_DATA, 3)
    );
    assert_eq!(outcome.state.rflags, FIXED | rflags::IF);
}

#[test]
fn sysret_goes_to_a_32_bit_program_too() {
    let outcome = prepared(Guest::long())
        .reg(RCX, 0xdead_0000_1234)
        .reg(R11, rflags::IF | rflags::RF | rflags::VM | rflags::ZF)
        .bytes(&[0x0f, 0x07])
        .steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.state.cpl()), (None, 0x1234, 3));
    let s = outcome.state.segments;
    assert_eq!((s.cs.selector, s.cs.long(), s.cs.db()), (USER_CODE32, false, true));
    assert_eq!(outcome.state.rflags, FIXED | rflags::IF | rflags::ZF);
}

#[test]
fn sysret_leaves_all_of_the_stack_segment_but_its_selector() {
    let guest = prepared(Guest::long()).with(|s| s.segments.ss = Segment::default());
    let outcome = guest.code(|a| a.sysretq()).steps(1);
    let stack = outcome.state.segments.ss;
    assert_eq!((stack.selector, stack.present(), stack.dpl()), (USER_DATA, false, 3));
}

#[test]
fn sysret_to_a_non_canonical_address_faults_in_the_program() {
    let outcome =
        prepared(Guest::long()).reg(RCX, 1 << 47).reg(R11, 2).code(|a| a.sysretq()).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(outcome.stack::<u64, 3>(), [0, 1 << 47, USER_CODE64.into()]);
}

#[test]
fn system_calls_must_be_enabled_and_sysret_is_the_kernels() {
    let off = |guest: Guest| guest.with(|state| state.msrs.efer &= !efer::SCE);
    assert_eq!(off(user()).code(|a| a.syscall()).run().fault(), Some((vector::UD, None)));
    assert_eq!(off(prepared(Guest::long())).code(|a| a.sysretq()).run().fault(), Some((vector::UD, None)));
    assert_eq!(user().code(|a| a.sysretq()).run().fault(), Some((vector::GP, Some(0))));
}

#[test]
fn legacy_mode_has_system_calls_too() {
    let guest = prepared(Guest::protected()).with(|state| {
        state.msrs.star = u64::from(USER_CODE32) << 48 | u64::from(CODE32) << 32 | ENTRY;
    });
    let outcome = guest.at_user_level().flags(rflags::IF).code(|a| a.syscall()).memory(ENTRY, &[0x0f, 0x07]);
    let outcome = outcome.steps(2);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.state.cpl()), (None, START + 2, 3));
    assert!(outcome.has(rflags::IF));
    assert_eq!(outcome.state.segments.cs.selector, USER_CODE32);
}

fn sysenter(guest: Guest) -> Guest {
    guest.with_system().with(|state| {
        // CODE32, DATA16, USER_CODE32 and USER_DATA would have to be neighbours; the selectors are not looked at.
        state.msrs.sysenter_cs = u64::from(CODE32);
        state.msrs.sysenter_eip = ENTRY;
        state.msrs.sysenter_esp = STACK0;
    })
}

#[test]
fn sysenter_and_sysexit_work_outside_long_mode() {
    let guest = sysenter(Guest::protected()).at_user_level().flags(rflags::IF);
    let outcome = guest.code(|a| a.sysenter()).steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.reg(RSP)), (None, ENTRY, STACK0));
    let s = outcome.state.segments;
    assert_eq!((s.cs, s.ss), (Segment::flat_code32(CODE32), Segment::flat_data(CODE32 + 8)));
    assert_eq!(outcome.state.rflags, FIXED);
    let guest = sysenter(Guest::protected()).reg(RCX, 0x5678).reg(RDX, 0x1234);
    let outcome = guest.code(|a| a.sysexit()).steps(1);
    assert_eq!((outcome.state.rip, outcome.reg(RSP), outcome.state.cpl()), (0x1234, 0x5678, 3));
    assert_eq!(outcome.state.segments.cs.selector, (CODE32 + 16) | 3);
    assert_eq!(outcome.state.segments.ss.selector, (CODE32 + 24) | 3);
}

#[test]
fn sysenter_is_invalid_in_long_mode() {
    for guest in [Guest::user(), Guest::user32(), Guest::long()] {
        assert_eq!(sysenter(guest).bytes(&[0x0f, 0x34]).run().fault(), Some((vector::UD, None)));
    }
    assert_eq!(sysenter(Guest::long()).bytes(&[0x0f, 0x35]).run().fault(), Some((vector::UD, None)));
    assert_eq!(sysenter(Guest::user()).bytes(&[0x0f, 0x35]).run().fault(), Some((vector::GP, Some(0))));
}

#[test]
fn sysenter_needs_a_code_segment_and_protected_mode() {
    let null = sysenter(Guest::protected()).with(|state| state.msrs.sysenter_cs = 3);
    assert_eq!(null.code(|a| a.sysenter()).run().fault(), Some((vector::GP, Some(0))));
    let real = Guest::real().with(|state| state.msrs.sysenter_cs = 8);
    assert_eq!(real.bytes(&[0x0f, 0x34]).run().fault(), Some((vector::GP, Some(0))));
}

#[test]
fn swapgs_exchanges_bases_for_the_kernel_alone() {
    let swap = |guest: Guest| {
        let guest = guest.with(|state| {
            state.segments.gs.base = 0x1111;
            state.msrs.kernel_gs_base = 0xa000;
        });
        guest.store(0xa010, 0x1234_u64).code(|a| {
            a.swapgs()?;
            a.mov(rax, qword_ptr(0x10).gs())
        })
    };
    let outcome = swap(Guest::long()).run();
    assert_eq!((outcome.state.segments.gs.base, outcome.state.msrs.kernel_gs_base), (0xa000, 0x1111));
    assert_eq!(outcome.reg(RAX), 0x1234);
    assert_eq!(swap(Guest::user()).run().fault(), Some((vector::GP, Some(0))));
    assert_eq!(Guest::protected().bytes(&[0x0f, 0x01, 0xf8]).run().fault(), Some((vector::UD, None)));
}

#[test]
fn bases_can_be_read_and_written_where_that_is_enabled() {
    let on = |guest: Guest| guest.with(|state| state.cr4 |= cr4::FSGSBASE);
    let outcome = on(Guest::user())
        .reg(RAX, 0x1234_5678_9abc)
        .code(|a| {
            a.wrfsbase(rax)?;
            a.wrgsbase(eax)?;
            a.rdfsbase(ecx)?;
            a.rdgsbase(rdx)
        })
        .run();
    assert_eq!(outcome.fault(), None);
    assert_eq!((outcome.reg(RCX), outcome.reg(RDX)), (0x5678_9abc, 0x5678_9abc));
    assert_eq!(outcome.state.segments.fs.base, 0x1234_5678_9abc);
    let outcome = on(Guest::user()).reg(RAX, 1 << 47).code(|a| a.wrfsbase(rax)).run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
    assert_eq!(Guest::user().code(|a| a.rdfsbase(rax)).run().fault(), Some((vector::UD, None)));
}
