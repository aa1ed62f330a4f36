//! Task switches.

use posada_vcpu::Exit;
use posada_vcpu::x86::gpr::{RAX, RBX, RDI, RSP};
use posada_vcpu::x86::{cr0, rflags};

use crate::exception::vector;
use crate::system::descriptor::kind;
use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as FREE_RAM, Guest, Outcome, STACK};

const FIXED: u64 = rflags::FIXED;
/// Where the other task begins.
const ENTRY: u64 = 0x9000;
const OTHER_STACK: u64 = 0x4_0000;

/// A guest with another 32-bit task, ready to run at [`ENTRY`]: at level 0, `eax` to `edi` from 0x100 on.
fn tasks() -> Guest {
    let mut guest = Guest::protected().with_system();
    for n in 0..8_u64 {
        guest = guest.store(OTHER_TSS + 0x28 + n * 4, 0x100 + n as u32);
    }
    for (n, selector) in [DATA, CODE, DATA, DATA, USER_DATA, 0].into_iter().enumerate() {
        guest = guest.store(OTHER_TSS + 0x48 + n as u64 * 4, selector);
    }
    guest
        .store(OTHER_TSS + 0x20, ENTRY as u32)
        .store(OTHER_TSS + 0x24, (FIXED | rflags::CF) as u32)
        .store(OTHER_TSS + 0x38, OTHER_STACK as u32)
        .store(OTHER_TSS + 0x60, LOCAL_TABLE)
}

/// A far jump (`/5`) or call (`/3`) to a selector.
fn to(guest: Guest, extension: u8, selector: u16) -> Guest {
    guest.store(FREE_RAM + 4, selector).reg(RBX, FREE_RAM).bytes(&[0xff, 0x03 | extension << 3])
}

const JMP: u8 = 5;
const CALL: u8 = 3;

fn rights(outcome: &Outcome, selector: u16) -> u8 {
    outcome.load(GDT + u64::from(selector) + 5)
}

#[test]
fn a_jump_to_a_task_saves_one_and_loads_the_other() {
    let outcome = to(tasks(), JMP, OTHER_TASK).reg(RDI, 0x7777).flags(rflags::DF).steps(1);
    assert_eq!(outcome.fault(), None);
    // The new task's registers.
    assert_eq!((outcome.state.rip, outcome.state.rflags), (ENTRY, FIXED | rflags::CF));
    assert_eq!((outcome.reg(RAX), outcome.reg(RDI), outcome.reg(RSP)), (0x100, 0x107, OTHER_STACK));
    let s = outcome.state.segments;
    assert_eq!([s.es, s.cs, s.ss, s.fs, s.gs].map(|s| s.selector), [DATA, CODE, DATA, USER_DATA, 0]);
    assert_eq!((s.ldtr.selector, s.ldtr.base), (LOCAL_TABLE, LDT));
    assert_eq!((s.tr.selector, s.tr.base, s.tr.attributes), (OTHER_TASK, OTHER_TSS, 0x8b));
    assert!(outcome.state.cr0 & cr0::TS != 0);
    // The old task's TSS.
    let saved = |at: u64| outcome.load::<u32>(TSS + at);
    assert_eq!((saved(0x20), saved(0x24)), (START as u32 + 2, (FIXED | rflags::DF) as u32));
    assert_eq!((saved(0x38), saved(0x44)), (STACK as u32, 0x7777));
    assert_eq!((saved(0x48), saved(0x4c), saved(0x50)), (DATA.into(), CODE.into(), DATA.into()));
    assert_eq!((rights(&outcome, TASK), rights(&outcome, OTHER_TASK)), (0x89, 0x8b));
}

#[test]
fn a_call_nests_the_task_and_iret_returns_from_it() {
    let outcome = to(tasks(), CALL, OTHER_TASK).memory(ENTRY, &[0xcf]).steps(1);
    assert!(outcome.has(rflags::NT));
    assert_eq!(outcome.load::<u16>(OTHER_TSS), TASK);
    assert_eq!((rights(&outcome, TASK), rights(&outcome, OTHER_TASK)), (0x8b, 0x8b));
    let outcome = to(tasks(), CALL, OTHER_TASK).memory(ENTRY, &[0xcf]).steps(2);
    assert_eq!((outcome.fault(), outcome.state.rip), (None, START + 2));
    assert_eq!((outcome.reg(RSP), outcome.reg(RBX), outcome.has(rflags::NT)), (STACK, FREE_RAM, false));
    assert_eq!((rights(&outcome, TASK), rights(&outcome, OTHER_TASK)), (0x8b, 0x89));
    assert_eq!(outcome.load::<u32>(OTHER_TSS + 0x20), ENTRY as u32 + 1);
    assert_eq!(outcome.load::<u32>(OTHER_TSS + 0x24), (FIXED | rflags::CF) as u32, "NT is not saved");
}

#[test]
fn a_task_gate_leads_to_its_task() {
    let guest = tasks().descriptor(FREE, gate(kind::TASK_GATE, 3, OTHER_TASK, 0)).at_user_level();
    let outcome = to(guest, JMP, FREE | 3).steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip, outcome.state.cpl()), (None, ENTRY, 0));
}

#[test]
fn tasks_out_of_reach_fault_in_the_old_task() {
    let cases = [
        // Busy; of a higher level; too short; absent; through gates.
        (descriptor(OTHER_TSS, 0x67, 0xeb), vector::GP, FREE),
        (descriptor(OTHER_TSS, 0x67, 0x89), vector::GP, FREE),
        (descriptor(OTHER_TSS, 0x66, 0xe9), vector::TS, FREE),
        (descriptor(OTHER_TSS, 0x67, 0x69), vector::NP, FREE),
        (gate(kind::TASK_GATE, 3, DATA, 0), vector::GP, DATA),
        (gate(kind::TASK_GATE, 3, OTHER_TASK | 4, 0), vector::GP, OTHER_TASK | 4),
        (gate(kind::TASK_GATE, 3, 0, 0), vector::GP, 0),
        (gate(kind::TASK_GATE, 3, OTHER_TASK, 0) & !(1 << 47), vector::NP, FREE),
    ];
    for (raw, expected, error) in cases {
        let outcome = to(tasks().descriptor(FREE, raw).at_user_level(), JMP, FREE | 3).steps(1);
        assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{raw:#x}");
        assert_eq!((outcome.state.rip, outcome.state.segments.tr.selector), (START, TASK));
    }
}

#[test]
fn bad_segments_fault_in_the_new_task() {
    let cases = [
        (0x60, DATA, vector::TS, DATA),
        (0x4c, 0, vector::TS, 0),
        (0x4c, DATA, vector::TS, DATA),
        (0x4c, 0x100, vector::TS, 0x100),
        (0x50, 0, vector::TS, 0),
        (0x50, USER_DATA, vector::TS, USER_DATA & !3),
        (0x50, ABSENT, vector::SS, ABSENT),
        (0x48, 0x100, vector::TS, 0x100),
        (0x58, TASK, vector::TS, TASK),
        (0x54, ABSENT, vector::NP, ABSENT),
    ];
    for (at, selector, expected, error) in cases {
        let guest = to(tasks().store(OTHER_TSS + at, selector), JMP, OTHER_TASK);
        let outcome = guest
            .raw_gate(expected, gate(kind::TASK_GATE, 0, FREE, 0))
            // A third task handles the fault.
            .descriptor(FREE, descriptor(0x1_5000, 0x67, 0x89))
            .store(0x1_5020, handler(expected) as u32)
            .store(0x1_5024, 2_u32)
            .store(0x1_5038, STACK0 as u32)
            .store(0x1_504c, CODE)
            .store(0x1_5050, DATA)
            .run_delivering();
        assert_eq!(outcome.delivered(), Some(expected), "{at:#x}");
        assert_eq!(outcome.stack::<u32, 1>(), [u64::from(error)], "{at:#x}");
        assert_eq!(outcome.load::<u16>(0x1_5000), OTHER_TASK, "the new task was interrupted");
        assert_eq!(outcome.load::<u32>(OTHER_TSS + 0x20), ENTRY as u32, "at its first instruction");
    }
}

#[test]
fn an_error_code_goes_to_the_new_tasks_stack() {
    let guest = tasks().raw_gate(vector::GP, gate(kind::TASK_GATE, 0, OTHER_TASK, 0));
    let outcome = guest.memory(ENTRY, &[0xf4]).code(|a| a.int(0x81)).raw_gate(0x81, 0).run_delivering();
    assert_eq!((outcome.exit, outcome.state.rip), (Some(Exit::Halted), ENTRY + 1));
    assert_eq!((outcome.reg(RSP), outcome.stack::<u32, 1>()), (OTHER_STACK - 4, [0x81 << 3 | 2]));
    assert!(outcome.has(rflags::NT));
    assert_eq!(outcome.load::<u32>(TSS + 0x20), START as u32);
    assert_eq!(outcome.load::<u32>(TSS + 0x24), (FIXED | rflags::RF) as u32, "a fault sets RF");
}

#[test]
fn a_double_fault_through_a_task_gate_has_a_stack_of_its_own() {
    let outcome = tasks()
        .raw_gate(vector::DF, gate(kind::TASK_GATE, 0, OTHER_TASK, 0))
        .raw_gate(vector::GP, 0)
        .memory(ENTRY, &[0xf4])
        .code(|a| a.int(0x81))
        .raw_gate(0x81, 0)
        .run_delivering();
    assert_eq!((outcome.exit, outcome.state.rip), (Some(Exit::Halted), ENTRY + 1));
    assert_eq!(outcome.stack::<u32, 1>(), [0]);
}

#[test]
fn a_16_bit_task_has_16_bit_registers() {
    let mut guest = to(Guest::protected().with_system(), JMP, FREE)
        .descriptor(FREE, descriptor(OTHER_TSS, 0x2b, 0x81))
        .store(OTHER_TSS + 0xe, ENTRY as u16)
        .store(OTHER_TSS + 0x10, (FIXED | rflags::CF) as u16)
        .reg(RAX, 0xaaaa_bbbb);
    for n in 0..8_u64 {
        guest = guest.store(OTHER_TSS + 0x12 + n * 2, 0x100 + n as u16);
    }
    for (n, selector) in [DATA, CODE, DATA, DATA].into_iter().enumerate() {
        guest = guest.store(OTHER_TSS + 0x22 + n as u64 * 2, selector);
    }
    let outcome = guest.steps(1);
    assert_eq!((outcome.fault(), outcome.state.rip), (None, ENTRY));
    assert_eq!((outcome.reg(RAX) & 0xffff, outcome.reg(RDI) & 0xffff), (0x100, 0x107));
    assert_eq!(outcome.state.segments.fs.selector, 0);
    assert_eq!(outcome.load::<u32>(TSS + 0x28), 0xaaaa_bbbb, "the old one is a 32-bit task");
}

#[test]
fn a_task_can_begin_in_virtual_8086_mode() {
    let outcome = to(tasks(), JMP, OTHER_TASK)
        .store(OTHER_TSS + 0x24, (FIXED | rflags::VM | rflags::IOPL) as u32)
        .store(OTHER_TSS + 0x4c, 0x1234_u16)
        .steps(1);
    let s = outcome.state.segments;
    assert_eq!((outcome.fault(), s.cs.base, s.cs.attributes, outcome.state.cpl()), (None, 0x12340, 0xf3, 3));
}

#[test]
fn a_task_may_ask_for_a_debug_trap_when_it_begins() {
    let outcome = to(tasks(), JMP, OTHER_TASK).store(OTHER_TSS + 0x64, 1_u16).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::DB));
    assert_eq!((outcome.stack::<u32, 1>(), outcome.state.dr6 & 0x8000), ([ENTRY], 0x8000));
}

#[test]
fn a_task_brings_its_page_tables() {
    // One 4 MiB page each; only the other task's maps 4 MiB to 12 MiB.
    let outcome = to(tasks(), JMP, OTHER_TASK)
        .store(0x1000, 0x83_u32)
        .store(0x2000, 0x83_u32)
        .store(0x2004, 0xc0_0083_u32)
        .store(0xc0_0000, 0x1234_5678_u32)
        .store(OTHER_TSS + 0x1c, 0x2000_u32)
        .with(|state| {
            state.cr3 = 0x1000;
            state.cr4 = 0x10;
            state.cr0 |= cr0::PG;
        })
        .memory(ENTRY, &[0xa1, 0, 0, 0x40, 0])
        .steps(2);
    assert_eq!((outcome.fault(), outcome.state.cr3, outcome.reg(RAX)), (None, 0x2000, 0x1234_5678));
}

#[test]
fn returning_needs_a_busy_task() {
    for (link, raw, expected, error) in [
        (0, 0, vector::TS, 0),
        (OTHER_TASK | 4, 0, vector::TS, OTHER_TASK | 4),
        (0x100, 0, vector::TS, 0x100),
        (OTHER_TASK, 0, vector::TS, OTHER_TASK),
        (FREE, descriptor(OTHER_TSS, 0x67, 0x0b), vector::NP, FREE),
        (FREE, descriptor(OTHER_TSS, 0x66, 0x8b), vector::TS, FREE),
    ] {
        let guest = tasks().store(TSS, link).flags(rflags::NT).descriptor(FREE, raw);
        let outcome = guest.bytes(&[0xcf]).steps(1);
        assert_eq!(outcome.fault(), Some((expected, Some(error.into()))), "{link:#x}");
    }
}
