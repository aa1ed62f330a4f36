//! Debug registers, breakpoints and single-stepping.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RBX, RCX, RDX, RSI};
use posada_vcpu::x86::{Segment, cr4, rflags};

use crate::exception::vector;
use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as MEMORY, Guest, Outcome};

const UD: Option<(u8, Option<u32>)> = Some((vector::UD, None));
const GP: Option<(u8, Option<u32>)> = Some((vector::GP, Some(0)));
const BD: u64 = 1 << 13;
const BS: u64 = 1 << 14;
const GD: u64 = 1 << 13;
/// `dr6` without any condition, and `dr7` without any breakpoint.
const NOTHING: u64 = 0xffff_0ff0;
const OFF: u64 = 0x400;

/// Kinds of breakpoints, and lengths, as `dr7` has them.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

/// `dr7` with breakpoint `n` on.
fn on(n: u64, kind: u64, len: u64) -> u64 {
    let len = match len {
        1 => 0,
        2 => 1,
        8 => 2,
        _ => 3,
    };
    OFF | 1 << (2 * n) | kind << (16 + 4 * n) | len << (18 + 4 * n)
}

fn guest() -> Guest {
    Guest::long().with_system()
}

fn armed(n: usize, address: u64, kind: u64, len: u64) -> Guest {
    guest().with(|state| {
        state.breakpoints[n] = address;
        state.dr7 = on(n as u64, kind, len);
    })
}

/// Where the exception was reported from: the instruction pointer on the handler's stack, relative to the code.
fn reported(outcome: &Outcome) -> u64 {
    let [rip] = outcome.stack::<u64, 1>();
    rip.wrapping_sub(START)
}

/// That a debug exception was delivered, with what in `dr6`, and from where.
fn debugged(outcome: &Outcome) -> (Option<u8>, u64, u64) {
    (outcome.delivered(), outcome.state.dr6 ^ NOTHING, reported(outcome))
}

#[test]
fn debug_registers_keep_what_they_can_hold() {
    let outcome = Guest::long().reg(RAX, 0x1234_5678_9abc_def0).reg(RBX, 0xffff_ffff).code(|a| {
        a.mov(dr3, rax)?;
        a.mov(rcx, dr3)?;
        a.mov(dr6, rbx)?;
        a.mov(rdx, dr6)?;
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        a.mov(rsi, dr6)?;
        a.mov(dr7, rax)?;
        a.mov(rdi, dr7)
    });
    let outcome = outcome.run();
    assert_eq!(outcome.fault(), None);
    assert_eq!(outcome.reg(RCX), 0x1234_5678_9abc_def0);
    assert_eq!((outcome.reg(RDX), outcome.reg(RSI)), (0xffff_efff, NOTHING));
    assert_eq!(outcome.reg(7), OFF);
}

#[test]
fn the_upper_halves_of_status_and_control_stay_clear() {
    for number in [6, 7] {
        let code = [0x0f, 0x23, 0xc0 | number << 3];
        assert_eq!(Guest::long().reg(RAX, 1 << 32).bytes(&code).run().fault(), GP);
    }
}

#[test]
fn dr4_and_dr5_are_other_names_until_debugging_extensions_are_on() {
    let read = |number: u8| Guest::long().reg(RAX, 1).bytes(&[0x0f, 0x21, 0xc0 | number << 3]);
    assert_eq!(read(4).run().reg(RAX), NOTHING);
    assert_eq!(read(5).run().reg(RAX), OFF);
    for number in [4, 5] {
        assert_eq!(read(number).with(|state| state.cr4 |= cr4::DE).run().fault(), UD);
    }
    assert_eq!(Guest::long().bytes(&[0x44, 0x0f, 0x21, 0xc0]).run().fault(), UD, "dr8");
}

#[test]
fn debug_registers_are_the_kernels() {
    assert_eq!(Guest::user().code(|a| a.mov(rax, dr0)).run().fault(), GP);
    assert_eq!(Guest::user().code(|a| a.mov(dr7, rax)).run().fault(), GP);
}

#[test]
fn an_access_to_a_guarded_register_is_a_fault_that_lets_its_handler_in() {
    let outcome = guest().with(|state| state.dr7 |= GD).code(|a| a.mov(rax, dr0)).run_delivering();
    assert_eq!(debugged(&outcome), (Some(vector::DB), BD, 0));
    assert_eq!(outcome.state.dr7 & GD, 0);
    let user = Guest::user().with(|state| state.dr7 |= GD).code(|a| a.mov(rax, dr0)).run();
    assert_eq!(user.fault(), GP, "privilege comes first");
}

#[test]
fn single_steps_trap_after_each_instruction() {
    let outcome = guest().flags(rflags::TF).code(|a| {
        a.nop()?;
        a.nop()
    });
    let outcome = outcome.run_delivering();
    assert_eq!(debugged(&outcome), (Some(vector::DB), BS, 1));
    assert!(!outcome.has(rflags::TF), "the handler is not stepped");
    let [_, _, flags] = outcome.stack::<u64, 3>();
    assert_eq!(flags & rflags::TF, rflags::TF);
}

#[test]
fn setting_tf_lets_one_more_instruction_run() {
    let outcome = guest().reg(RAX, rflags::TF | rflags::FIXED).code(|a| {
        a.push(rax)?;
        a.popfq()?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(debugged(&outcome.run_delivering()), (Some(vector::DB), BS, 3));
}

#[test]
fn the_instruction_that_clears_tf_is_still_stepped() {
    let outcome = guest().flags(rflags::TF).reg(4, STACK0).memory(STACK0, &2_u64.to_le_bytes());
    let outcome = outcome.code(|a| {
        a.popfq()?;
        a.nop()
    });
    assert_eq!(debugged(&outcome.run_delivering()), (Some(vector::DB), BS, 1));
}

#[test]
fn software_interrupts_are_stepped_over() {
    let outcome = guest().flags(rflags::TF).code(|a| a.int(0x40)).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.dr6), (Some(0x40), NOTHING));
}

#[test]
fn a_repeated_instruction_is_stepped_round_by_round() {
    let outcome = guest().flags(rflags::TF).reg(RCX, 5).reg(RSI, MEMORY).code(|a| a.rep().lodsb());
    let outcome = outcome.run_delivering();
    assert_eq!((debugged(&outcome), outcome.reg(RCX)), ((Some(vector::DB), BS, 0), 4));
}

#[test]
fn a_faulting_instruction_is_not_stepped() {
    let outcome = guest().flags(rflags::TF).code(|a| a.ud2()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.dr6), (Some(vector::UD), NOTHING));
}

#[test]
fn there_is_no_step_between_a_load_of_ss_and_the_next_instruction() {
    let outcome = guest().flags(rflags::TF).reg(RAX, DATA.into()).code(|a| {
        a.mov(ss, eax)?;
        a.nop()?;
        a.nop()
    });
    assert_eq!(debugged(&outcome.run_delivering()), (Some(vector::DB), BS, 3));
}

#[test]
fn an_instruction_breakpoint_is_a_fault_before_the_instruction() {
    let outcome = armed(1, START + 1, EXECUTE, 1).code(|a| {
        a.nop()?;
        a.mov(ebx, 1)
    });
    let outcome = outcome.run_delivering();
    assert_eq!((debugged(&outcome), outcome.reg(RBX)), ((Some(vector::DB), 2, 1), 0));
    let [_, _, flags] = outcome.stack::<u64, 3>();
    assert_eq!(flags & rflags::RF, 0, "a debugger sets RF itself");
}

#[test]
fn rf_holds_an_instruction_breakpoint_off_once() {
    let code = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.jmp(again)
    };
    let outcome = armed(0, START, EXECUTE, 1).flags(rflags::RF).code(code).run_delivering();
    assert_eq!((debugged(&outcome), outcome.reg(RBX)), ((Some(vector::DB), 1, 0), 1));
}

#[test]
fn rf_is_set_in_the_flags_that_other_faults_push() {
    let outcome = armed(0, 0, EXECUTE, 1).code(|a| a.ud2()).run_delivering();
    let [_, _, flags] = outcome.stack::<u64, 3>();
    assert_eq!(flags & rflags::RF, rflags::RF);
}

#[test]
fn an_instruction_breakpoint_waits_behind_a_load_of_ss() {
    let outcome = armed(0, START + 2, EXECUTE, 1).reg(RAX, DATA.into()).code(|a| {
        a.mov(ss, eax)?;
        a.nop()?;
        a.hlt()
    });
    let outcome = outcome.run_delivering();
    assert_eq!((outcome.state.dr6, outcome.state.rip), (NOTHING, START + 4));
}

#[test]
fn data_breakpoints_are_traps_after_the_access() {
    let outcome = armed(2, MEMORY, WRITE, 4).reg(RBX, MEMORY).code(|a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(byte_ptr(rbx + 3), al)?;
        a.nop()
    });
    let outcome = outcome.run_delivering();
    assert_eq!(debugged(&outcome), (Some(vector::DB), 4, 5));
    let outcome = armed(2, MEMORY, ACCESS, 4).reg(RBX, MEMORY).code(|a| a.mov(eax, dword_ptr(rbx)));
    assert_eq!(debugged(&outcome.run_delivering()), (Some(vector::DB), 4, 2));
}

#[test]
fn data_breakpoints_cover_their_length_at_aligned_addresses() {
    let hit = |address: u64, len: u64, at: u64| {
        let guest = armed(0, address, WRITE, len).reg(RBX, at).code(|a| {
            a.mov(word_ptr(rbx), ax)?;
            a.hlt()
        });
        guest.run_delivering().delivered().is_some()
    };
    assert!(hit(MEMORY + 1, 1, MEMORY) && hit(MEMORY + 1, 1, MEMORY + 1) && !hit(MEMORY + 1, 1, MEMORY + 2));
    assert!(
        hit(MEMORY + 8, 8, MEMORY + 15) && hit(MEMORY + 8, 8, MEMORY + 7) && !hit(MEMORY + 8, 8, MEMORY + 16)
    );
    assert!(hit(MEMORY + 3, 4, MEMORY), "the low address bits do not count");
}

#[test]
fn a_breakpoint_that_is_off_does_nothing() {
    let guest = guest().with(|state| {
        state.breakpoints = [START, MEMORY, MEMORY, MEMORY];
        state.dr7 = on(0, EXECUTE, 1) & !3 | WRITE << 20;
    });
    let outcome = guest.reg(RBX, MEMORY).code(|a| {
        a.mov(dword_ptr(rbx), eax)?;
        a.hlt()
    });
    assert_eq!(outcome.run_delivering().state.dr6, NOTHING);
}

#[test]
fn a_data_breakpoint_hit_by_a_load_of_ss_waits_for_one_more_instruction() {
    let outcome =
        armed(0, MEMORY, ACCESS, 2).reg(RBX, MEMORY).memory(MEMORY, &DATA.to_le_bytes()).code(|a| {
            a.mov(ss, word_ptr(rbx))?;
            a.nop()?;
            a.nop()
        });
    assert_eq!(debugged(&outcome.run_delivering()), (Some(vector::DB), 1, 3));
}

#[test]
fn port_breakpoints_need_debugging_extensions() {
    let outcome = |extensions: u64| {
        let guest = armed(3, 0x80, PORT, 2).with(|state| state.cr4 |= extensions);
        guest.code(|a| {
            a.out(0x81_u32, al)?;
            a.hlt()
        })
    };
    assert_eq!(debugged(&outcome(cr4::DE).run_delivering()), (Some(vector::DB), 8, 2));
    assert_eq!(outcome(0).run_delivering().state.dr6, NOTHING);
}

#[test]
fn a_breakpoint_counts_from_the_next_instruction_on() {
    let guest = guest().reg(RAX, on(0, WRITE, 4)).reg(RBX, MEMORY).reg(RDX, MEMORY).code(|a| {
        a.mov(dr0, rdx)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(dr7, rax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.nop()
    });
    assert_eq!(debugged(&guest.run_delivering()), (Some(vector::DB), 1, 10));
}

#[test]
fn a_return_from_a_system_call_that_sets_tf_traps_before_the_program_goes_on() {
    let guest = guest()
        .with(|state| {
            state.msrs.efer |= posada_vcpu::x86::efer::SCE;
            state.msrs.star = 0x3b_u64 << 48;
            state.segments.ss = Segment::flat_data(DATA);
        })
        .reg(RCX, 0x1_2345)
        .reg(11, rflags::TF | rflags::FIXED);
    let outcome = guest.code(|a| a.sysretq()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.dr6 ^ NOTHING), (Some(vector::DB), BS));
    assert_eq!(outcome.stack::<u64, 1>(), [0x1_2345]);
}
