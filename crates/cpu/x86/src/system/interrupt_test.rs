//! Delivery, mode by mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RSP};
use posada_vcpu::x86::{Running, Segment, cr0, rflags};
use posada_vcpu::{Event, Exit, Interrupts};

use crate::exception::vector;
use crate::system::descriptor::kind;
use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as FREE_RAM, Guest, STACK};

const IF: u64 = rflags::IF;
const RF: u64 = rflags::RF;
const FIXED: u64 = rflags::FIXED;

/// Interrupts that a test has prepared: one maskable, one event.
#[derive(Default)]
struct Prepared {
    vector: AtomicU32,
    nmi: AtomicBool,
}

impl Prepared {
    fn external(vector: u8) -> Arc<Self> {
        Arc::new(Self { vector: AtomicU32::new(0x100 | u32::from(vector)), nmi: AtomicBool::new(false) })
    }

    fn nmi() -> Arc<Self> {
        Arc::new(Self { vector: AtomicU32::new(0), nmi: AtomicBool::new(true) })
    }
}

impl Interrupts for Prepared {
    fn pending(&self) -> bool {
        self.vector.load(Ordering::Relaxed) != 0
    }

    fn acknowledge(&self) -> Option<u8> {
        let vector = self.vector.swap(0, Ordering::Relaxed);
        (vector != 0).then_some(vector as u8)
    }

    fn take_event(&self) -> Option<Event> {
        self.nmi.swap(false, Ordering::Relaxed).then_some(Event::Nmi)
    }
}

fn long() -> Guest {
    Guest::long().with_system()
}

fn user() -> Guest {
    Guest::user().with_system().at_user_level()
}

fn protected() -> Guest {
    Guest::protected().with_system()
}

fn protected_user() -> Guest {
    protected().at_user_level()
}

fn v8086() -> Guest {
    Guest::v8086().with_system()
}

// Long mode.

#[test]
fn a_fault_in_64_bit_mode_pushes_five_values_on_an_aligned_stack() {
    let outcome = long().reg(RSP, STACK - 5).code(|a| a.ud2()).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::UD));
    let bottom = (STACK - 5) & !15;
    assert_eq!(outcome.reg(RSP), bottom - 40);
    assert_eq!(outcome.stack::<u64, 5>(), [START, CODE.into(), FIXED | RF, STACK - 5, DATA.into()]);
    assert_eq!(
        outcome.state.segments.ss.selector, DATA,
        "no change of privilege, no change of stack segment"
    );
}

#[test]
fn a_fault_with_an_error_code_pushes_it_last() {
    let outcome = long().reg(RAX, 1 << 63).code(|a| a.mov(rax, ptr(rax))).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(outcome.stack::<u64, 3>(), [0, START, CODE.into()]);
    assert_eq!(outcome.reg(RSP), STACK - 48);
}

#[test]
fn a_fault_at_the_users_level_switches_to_the_stack_of_level_0() {
    let outcome = user().code(|a| a.ud2()).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::UD));
    assert_eq!(outcome.stack::<u64, 5>(), [START, USER_CODE64.into(), FIXED | RF, STACK, USER_DATA.into()]);
    assert_eq!(outcome.reg(RSP), STACK0 - 40);
    let stack = outcome.state.segments.ss;
    assert_eq!((stack.selector, stack.present(), outcome.state.cpl()), (0, false, 0));
    assert_eq!(outcome.state.segments.cs.selector, CODE);
}

#[test]
fn an_interrupt_stack_is_used_at_every_level() {
    for guest in [long(), user()] {
        let old = guest.state.segments.ss.selector;
        let outcome = guest.gate_on(vector::UD, 2).code(|a| a.ud2()).run_delivering();
        assert_eq!((outcome.delivered(), outcome.reg(RSP)), (Some(vector::UD), IST2 - 40));
        assert_eq!(outcome.stack::<u64, 5>()[3..], [STACK, old.into()]);
    }
}

#[test]
fn a_page_fault_sets_cr2() {
    let outcome = long().reg(RAX, 0x1234_5678_9abc).code(|a| a.inc(byte_ptr(rax))).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.cr2), (Some(vector::PF), 0x1234_5678_9abc));
    assert_eq!(outcome.stack::<u64, 2>(), [2, START]);
}

#[test]
fn interrupt_gates_mask_interrupts_and_trap_gates_do_not() {
    for (gate, left) in [(kind::INTERRUPT_GATE, 0), (kind::TRAP_GATE, IF)] {
        for guest in [long(), protected()] {
            let outcome = guest
                .gate(0x80, gate, 0, CODE)
                .flags(IF | rflags::NT | rflags::DF | rflags::AC)
                .code(|a| a.int(0x80))
                .with(|state| state.rflags |= rflags::CF)
                .run_delivering();
            assert_eq!(outcome.delivered(), Some(0x80));
            assert_eq!(outcome.state.rflags, FIXED | rflags::DF | rflags::AC | rflags::CF | left);
        }
    }
}

#[test]
fn a_software_interrupt_returns_after_itself_and_needs_the_gates_privilege() {
    let outcome = user().gate(0x80, kind::INTERRUPT_GATE, 3, CODE).code(|a| a.int(0x80)).run_delivering();
    assert_eq!(outcome.delivered(), Some(0x80));
    assert_eq!(outcome.stack::<u64, 3>(), [START + 2, USER_CODE64.into(), FIXED]);
    for code in [[0xcd, 3].as_slice(), &[0xcc]] {
        let outcome = user().bytes(code).run_delivering();
        assert_eq!(outcome.delivered(), Some(vector::GP), "{code:x?}");
        assert_eq!(outcome.stack::<u64, 2>(), [3 << 3 | 2, START]);
    }
    // The processor's own exceptions and `int1` may use any gate.
    let outcome = user().bytes(&[0xf1]).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u64, 1>()), (Some(vector::DB), [START + 1]));
}

#[test]
fn a_gate_that_leads_nowhere_good_is_a_fault_of_its_own() {
    let target = handler(0x80);
    let cases = [
        // An empty gate; a 16-bit one; a task gate; one that is not present.
        (0, vector::GP, 0x80 << 3 | 2),
        (gate(kind::INTERRUPT_GATE16, 0, CODE, target), vector::GP, 0x80 << 3 | 2),
        (gate(kind::TASK_GATE, 0, OTHER_TASK, 0), vector::GP, 0x80 << 3 | 2),
        (gate(kind::INTERRUPT_GATE, 0, CODE, target) & !(1 << 47), vector::NP, 0x80 << 3 | 2),
        // Null, beyond the table, data, 32-bit code.
        (gate(kind::INTERRUPT_GATE, 0, 3, target), vector::GP, 0),
        (gate(kind::INTERRUPT_GATE, 0, 0x103, target), vector::GP, 0x100),
        (gate(kind::INTERRUPT_GATE, 0, DATA, target), vector::GP, u64::from(DATA)),
        (gate(kind::INTERRUPT_GATE, 0, CODE32, target), vector::GP, u64::from(CODE32)),
        // Less privileged code.
        (gate(kind::INTERRUPT_GATE, 0, USER_CODE64, target), vector::GP, u64::from(USER_CODE64 & !3)),
    ];
    for (raw, expected, error) in cases {
        let outcome = long().raw_gate(0x80, raw).code(|a| a.int(0x80)).run_delivering();
        assert_eq!(outcome.delivered(), Some(expected), "{raw:#x}");
        assert_eq!(outcome.stack::<u64, 2>(), [error, START], "{raw:#x}");
        // Where the processor wanted the gate, not the program, the error code says so.
        let outcome = long().raw_gate(vector::UD, raw).code(|a| a.ud2()).run_delivering();
        assert_eq!(outcome.delivered(), Some(expected), "{raw:#x}");
        let error = if error == 0x80 << 3 | 2 { u64::from(vector::UD) << 3 | 2 } else { error };
        assert_eq!(outcome.stack::<u64, 2>(), [error | 1, START], "{raw:#x}");
    }
}

#[test]
fn a_vector_beyond_the_tables_limit_is_a_general_protection_fault() {
    let outcome =
        long().with(|state| state.idtr.limit = 0x80 * 16 + 14).code(|a| a.int(0x80)).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(outcome.stack::<u64, 2>(), [0x80 << 3 | 2, START]);
}

#[test]
fn a_gate_to_a_non_canonical_address_is_a_general_protection_fault() {
    let outcome = long().store(IDT + 0x80 * 16 + 8, 0x8000_u64).code(|a| a.int(0x80)).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u64, 2>()), (Some(vector::GP), [0, START]));
}

#[test]
fn a_task_without_room_for_the_stack_pointer_is_an_invalid_one() {
    let guest = user().gate_on(vector::TS, 0).with(|state| state.segments.tr.limit = 10);
    let outcome = guest.gate_on(vector::DF, 0).code(|a| a.ud2()).run_delivering();
    assert_eq!(outcome.exit, Some(Exit::Shutdown), "neither #TS nor #DF has a stack either");
    // With the limit just after `rsp0`, the interrupt stacks are out of reach.
    let guest = user().gate_on(vector::UD, 1).with(|state| state.segments.tr.limit = 11);
    let outcome = guest.code(|a| a.ud2()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u64, 1>()), (Some(vector::TS), [u64::from(TASK | 1)]));
}

#[test]
fn a_non_canonical_stack_pointer_is_a_stack_fault() {
    let guest = user().store(TSS + 4, (1_u64 << 47) + 16).gate_on(vector::SS, 1);
    let outcome = guest.code(|a| a.ud2()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u64, 2>()), (Some(vector::SS), [1, START]));
}

// Faults during delivery.

#[test]
fn a_contributory_fault_during_another_is_a_double_fault() {
    let outcome = long().raw_gate(vector::GP, 0).code(|a| a.int(0x80)).raw_gate(0x80, 0).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::DF));
    assert_eq!(outcome.stack::<u64, 2>(), [0, START]);
}

#[test]
fn a_page_fault_during_a_contributory_fault_is_delivered_itself() {
    let guest = long().reg(RAX, 1 << 63).gate_on(vector::GP, 1).store(TSS + 0x24, 1_u64 << 40);
    let outcome = guest.code(|a| a.mov(rax, ptr(rax))).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.cr2), (Some(vector::PF), (1 << 40) - 8));
    assert_eq!(outcome.stack::<u64, 2>(), [2, START]);
}

#[test]
fn a_page_fault_during_a_page_fault_is_a_double_fault() {
    let guest = user().reg(RAX, 1 << 45).gate_on(vector::DF, 1).store(TSS + 4, 1_u64 << 40);
    let outcome = guest.code(|a| a.mov(rax, ptr(rax))).run_delivering();
    assert_eq!((outcome.delivered(), outcome.state.cr2), (Some(vector::DF), (1 << 40) - 8));
    assert_eq!(outcome.stack::<u64, 5>(), [0, START, USER_CODE64.into(), FIXED | RF, STACK]);
    assert_eq!(outcome.reg(RSP), IST1 - 48);
}

#[test]
fn a_fault_during_a_double_fault_shuts_down() {
    let outcome = long().with(|state| state.idtr.limit = 0).code(|a| a.ud2()).run_delivering();
    assert_eq!((outcome.exit, outcome.state.activity.running), (Some(Exit::Shutdown), Running::Shutdown));
    assert_eq!((outcome.state.rip, outcome.reg(RSP)), (START, STACK), "as the fault found them");
}

// From outside.

#[test]
fn an_interrupt_ends_a_halt_and_returns_after_it() {
    let outcome = long()
        .flags(IF)
        .interrupts(Prepared::external(0x31))
        .code(|a| {
            a.nop()?;
            a.hlt()
        })
        .with(|state| state.activity.running = Running::Halted)
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(0x31));
    assert_eq!(outcome.stack::<u64, 3>(), [START, CODE.into(), FIXED | IF]);
}

#[test]
fn an_interrupt_waits_for_the_flag_and_for_one_more_instruction() {
    let interrupts = Prepared::external(0x31);
    let guest = long().interrupts(interrupts);
    let outcome = guest
        .code(|a| {
            a.mov(eax, 1)?;
            a.sti()?;
            a.mov(eax, 2)?;
            a.mov(eax, 3)
        })
        .run_delivering();
    assert_eq!((outcome.delivered(), outcome.reg(RAX)), (Some(0x31), 2));
}

#[test]
fn an_interrupt_through_a_bad_gate_says_that_it_came_from_outside() {
    let outcome = long()
        .flags(IF)
        .interrupts(Prepared::external(0x31))
        .raw_gate(0x31, 0)
        .bytes(&[0x90])
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(outcome.stack::<u64, 2>(), [0x31 << 3 | 3, START]);
}

#[test]
fn a_non_maskable_interrupt_blocks_others_until_iret() {
    let nmi = Prepared::nmi();
    let outcome = long().interrupts(nmi).bytes(&[0x90]).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::NMI));
    assert!(outcome.state.activity.nmi_blocked);
    let guest = long().interrupts(Prepared::nmi()).with(|state| state.activity.nmi_blocked = true);
    let outcome = guest
        .store(STACK - 40, START + 3)
        .store(STACK - 32, u64::from(CODE))
        .store(STACK - 24, FIXED)
        .store(STACK - 16, STACK)
        .store(STACK - 8, u64::from(DATA))
        .reg(RSP, STACK - 40)
        .code(|a| {
            a.nop()?;
            a.iretq()?;
            a.hlt()
        })
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::NMI));
    assert_eq!(outcome.stack::<u64, 1>(), [START + 3], "right after iret");
}

// Protected mode.

#[test]
fn a_fault_in_protected_mode_pushes_three_doublewords() {
    let outcome = protected().code(|a| a.ud2()).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::UD));
    assert_eq!(outcome.stack::<u32, 3>(), [START, CODE.into(), FIXED | RF]);
    assert_eq!(outcome.reg(RSP), STACK - 12);
}

#[test]
fn a_fault_at_an_outer_level_pushes_the_outer_stack_too() {
    let outcome = protected_user().code(|a| a.hlt()).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(
        outcome.stack::<u32, 6>(),
        [0, START, USER_CODE32.into(), FIXED | RF, STACK, USER_DATA.into()]
    );
    assert_eq!((outcome.reg(RSP), outcome.state.segments.ss.selector), (STACK0 - 24, DATA));
}

#[test]
fn a_16_bit_gate_pushes_words() {
    let outcome = protected()
        .gate(vector::GP, kind::INTERRUPT_GATE16, 0, CODE)
        .memory(handler(vector::GP) & 0xffff, &[0xf4])
        .code(|a| a.mov(dword_ptr(0x1000).cs(), eax))
        .run_delivering();
    assert_eq!((outcome.exit, outcome.state.rip), (Some(Exit::Halted), (handler(vector::GP) & 0xffff) + 1));
    assert_eq!(outcome.stack::<u16, 4>(), [0, START, CODE.into(), FIXED]);
    assert_eq!(outcome.reg(RSP), STACK - 8);
}

#[test]
fn a_conforming_handler_runs_at_the_programs_level() {
    let guest = protected_user().gate(0x80, kind::TRAP_GATE, 3, CONFORMING32).memory(handler(0x80), &[0xf4]);
    // Its `hlt` is a user's, and faults.
    let outcome = guest.code(|a| a.int(0x80)).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    let frame = outcome.stack::<u32, 6>();
    assert_eq!(frame[1..3], [handler(0x80), u64::from(CONFORMING32 | 3)]);
    assert_eq!(frame[4], STACK - 12, "on the user's own stack");
}

#[test]
fn an_inner_level_that_is_not_0_has_its_own_stack() {
    let guest = protected_user().gate(0x80, kind::TRAP_GATE, 3, CODE32_1);
    let outcome = guest.code(|a| a.int(0x80)).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP), "hlt at level 1");
    let frame = outcome.stack::<u32, 6>();
    assert_eq!(frame[1..3], [handler(0x80), CODE32_1.into()]);
    assert_eq!(frame[4..], [STACK1 - 20, DATA_1.into()]);
}

#[test]
fn a_bad_inner_stack_is_an_invalid_task() {
    let cases = [
        (0, vector::TS, 0),
        (0x100, vector::TS, 0x100),
        (USER_DATA, vector::TS, USER_DATA & !3),
        (DATA | 1, vector::TS, DATA),
        (CODE, vector::TS, CODE),
        (ABSENT, vector::SS, ABSENT),
    ];
    for (selector, expected, error) in cases {
        let guest = protected_user()
            .store(TSS + 8, selector)
            // The fault of the delivery goes to another level, which has a stack.
            .gate(expected, kind::INTERRUPT_GATE, 0, CODE32_1);
        let outcome = guest.code(|a| a.ud2()).run_delivering();
        // And `hlt` there faults, which again has no stack.
        assert_eq!(outcome.exit, Some(Exit::Shutdown));
        let frame: [u32; 4] = std::array::from_fn(|n| outcome.load(STACK1 - 24 + n as u64 * 4));
        assert_eq!(frame, [u32::from(error | 1), START as u32, USER_CODE32.into(), (FIXED | RF) as u32]);
    }
}

#[test]
fn a_stack_that_is_too_small_for_the_frame_is_a_stack_fault() {
    let outcome = protected()
        .gate(vector::UD, kind::INTERRUPT_GATE, 0, CODE)
        .raw_gate(vector::SS, gate(kind::TASK_GATE, 0, OTHER_TASK, 0))
        .store(OTHER_TSS + 0x20, handler(vector::SS) as u32)
        .store(OTHER_TSS + 0x24, 2_u32)
        .store(OTHER_TSS + 0x38, STACK0 as u32)
        .store(OTHER_TSS + 0x4c, CODE)
        .store(OTHER_TSS + 0x50, DATA)
        .with(|state| state.segments.ss.limit = 0xfff)
        .reg(RSP, 0x1004)
        .code(|a| a.ud2())
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::SS));
    // The old task's state is the one before the delivery.
    assert_eq!(outcome.load::<u32>(TSS + 0x38), 0x1004);
    assert_eq!(outcome.stack::<u32, 1>(), [1]);
}

#[test]
fn int_three_and_into_and_bound_go_to_their_vectors() {
    let outcome = protected().code(|a| a.int3()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u32, 1>()), (Some(vector::BP), [START + 1]));
    let outcome = protected().flags(rflags::OF).code(|a| a.into()).run_delivering();
    assert_eq!((outcome.delivered(), outcome.stack::<u32, 1>()), (Some(vector::OF), [START + 1]));
    let outcome = protected().code(|a| a.into()).run();
    assert_eq!((outcome.fault(), outcome.state.rip), (None, START + 1));
    for (index, inside) in [(-5_i32, true), (7, true), (-6, false), (8, false)] {
        let outcome = protected()
            .store(FREE_RAM, -5_i32 as u32)
            .store(FREE_RAM + 4, 7_u32)
            .reg(RAX, u64::from(index as u32))
            .code(|a| a.bound(eax, dword_ptr(FREE_RAM)))
            .run();
        assert_eq!(outcome.fault(), (!inside).then_some((vector::BR, None)), "{index}");
    }
}

// Virtual-8086 mode.

#[test]
fn an_interrupt_in_virtual_8086_mode_pushes_all_segments_and_clears_them() {
    let outcome = v8086()
        .with(|state| {
            let s = &mut state.segments;
            for (segment, selector) in [(&mut s.es, 1), (&mut s.ds, 2), (&mut s.fs, 3), (&mut s.gs, 4)] {
                *segment = Segment { attributes: 0xf3, ..Segment::real_mode(selector) };
            }
        })
        .gate(0x80, kind::INTERRUPT_GATE, 3, CODE)
        .flags(IF)
        .code(|a| a.int(0x80))
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(0x80));
    let flags = FIXED | IF | rflags::IOPL | rflags::VM;
    assert_eq!(outcome.stack::<u32, 9>(), [START + 2, 0, flags, STACK, 0, 1, 2, 3, 4]);
    assert_eq!(outcome.reg(RSP), STACK0 - 36);
    assert_eq!(outcome.state.rflags, FIXED | rflags::IOPL);
    let s = outcome.state.segments;
    assert_eq!([s.es, s.ds, s.fs, s.gs].map(|s| (s.selector, s.present())), [(0, false); 4]);
    assert_eq!((s.cs.selector, s.ss.selector, outcome.state.cpl()), (CODE, DATA, 0));
}

#[test]
fn int_in_virtual_8086_mode_with_iopl_below_3_faults() {
    let guest = || v8086().gate(0x80, kind::INTERRUPT_GATE, 3, CODE).with(|s| s.rflags &= !rflags::IOPL);
    assert_eq!(guest().code(|a| a.int(0x80)).run().fault(), Some((vector::GP, Some(0))));
    for instruction in [0xfa, 0xfb] {
        assert_eq!(guest().bytes(&[instruction]).run().fault(), Some((vector::GP, Some(0))));
    }
    // `int3` asks the gate alone.
    let outcome = guest().gate(3, kind::INTERRUPT_GATE, 3, CODE).bytes(&[0xcc]).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::BP));
}

#[test]
fn a_handler_for_virtual_8086_mode_must_be_at_level_0() {
    for selector in [CODE32_1, USER_CODE32, CONFORMING32] {
        let guest = v8086().gate(0x80, kind::INTERRUPT_GATE, 3, selector);
        let outcome = guest.code(|a| a.int(0x80)).run_delivering();
        assert_eq!(outcome.delivered(), Some(vector::GP));
        assert_eq!(outcome.stack::<u32, 1>(), [u64::from(selector & !3)]);
    }
}

// Real mode.

#[test]
fn real_mode_takes_vectors_from_its_table() {
    let outcome = Guest::real().with_system().flags(IF | rflags::CF).code(|a| a.int(0x21)).run_delivering();
    assert_eq!(outcome.delivered(), Some(0x21));
    assert_eq!(outcome.stack::<u16, 3>(), [START + 2, 0, FIXED | IF | rflags::CF]);
    assert_eq!((outcome.reg(RSP), outcome.state.segments.cs.selector), (STACK - 6, 0x2000));
    assert_eq!(outcome.state.rflags, FIXED | rflags::CF);
}

#[test]
fn faults_in_real_mode_push_no_error_code() {
    let outcome = Guest::real().with_system().reg(3, 0xffff).code(|a| a.mov(ax, ptr(bx))).run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::GP));
    assert_eq!(outcome.stack::<u16, 3>(), [START, 0, FIXED]);
}

#[test]
fn a_table_too_short_shuts_real_mode_down() {
    let guest = Guest::real().with_system().with(|state| state.idtr.limit = 8 * 4);
    let outcome = guest.code(|a| a.int(0x21)).run_delivering();
    assert_eq!(outcome.exit, Some(Exit::Shutdown));
}

#[test]
fn no_alignment_counts_in_real_mode_even_in_a_state_that_no_guest_reaches() {
    let outcome = Guest::real()
        .with_system()
        .flags(rflags::AC)
        .with(|state| {
            state.cr0 |= cr0::AM;
            state.segments.ss.attributes |= 3 << 5;
            state.gpr[RSP] = STACK - 1;
        })
        .code(|a| a.ud2())
        .run_delivering();
    assert_eq!(outcome.delivered(), Some(vector::UD));
}

// The flag.

#[test]
fn the_interrupt_flag_needs_io_privilege() {
    for (iopl, faults) in [(0, true), (2, true), (3, false)] {
        let guest = || user().flags(iopl << 12);
        let outcome = guest().code(|a| a.sti()).run();
        assert_eq!(outcome.fault().is_some(), faults);
        assert_eq!(outcome.has(IF), !faults);
        let outcome = guest().flags(IF).code(|a| a.cli()).run();
        assert_eq!(outcome.fault().is_some(), faults);
        assert_eq!(outcome.has(IF), faults);
    }
    assert_eq!(user().flags(rflags::IOPL).code(|a| a.hlt()).run().fault(), Some((vector::GP, Some(0))));
}
