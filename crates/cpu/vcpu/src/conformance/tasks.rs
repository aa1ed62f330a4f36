//! Task switches by hardware, outside long mode (AMD APM volume 2, chapter 12).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{
    CODE, DATA, GDT, KERNEL_STACK, Machine, STACK, TSS, USER_CODE, descriptor, handler, kind, selector,
};
use crate::x86::{cr0, gpr, rflags};

const FREE: u64 = GDT + selector::FREE as u64;
/// The other task's state segment.
const OTHER: u64 = DATA;
const TARGET: u64 = USER_CODE;

/// Offsets in a 32-bit task-state segment.
mod at {
    pub(super) const LINK: u64 = 0;
    pub(super) const CR3: u64 = 0x1c;
    pub(super) const EIP: u64 = 0x20;
    pub(super) const EFLAGS: u64 = 0x24;
    pub(super) const EAX: u64 = 0x28;
    pub(super) const ECX: u64 = 0x2c;
    pub(super) const ESP: u64 = 0x38;
    pub(super) const ES: u64 = 0x48;
    pub(super) const CS: u64 = 0x4c;
    pub(super) const SS: u64 = 0x50;
    pub(super) const TRAP: u64 = 0x64;
}

/// A guest with a second task under [`selector::FREE`], which begins at [`TARGET`] with `mov ebx, eax`.
fn two_tasks(engine: &Engine) -> Machine<'_> {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::segment(OTHER as u32, 0x67, kind::TSS.into()));
    let words = [
        (at::EIP, TARGET as u32),
        (at::EFLAGS, 2),
        (at::EAX, 0x1234),
        (at::ESP, KERNEL_STACK as u32 - 0x100),
        (at::CS, selector::CODE32.into()),
        (at::ES + 0x10, selector::DATA.into()),
        (at::SS, selector::DATA.into()),
        (at::ES + 0xc, selector::DATA.into()),
    ];
    for (offset, value) in words {
        machine.put(OTHER + offset, value);
    }
    machine.code_at(TARGET, 32, |a| a.mov(ebx, eax))
}

fn far(operation: u8, selector: u16) -> [u8; 8] {
    let [low, high] = selector.to_le_bytes();
    [operation, 0, 0, 0, 0, low, high, 0xf4]
}

const CALL: u8 = 0x9a;
const JMP: u8 = 0xea;

pub(super) fn a_jump_switches_tasks(engine: &Engine) {
    let machine = two_tasks(engine).reg(gpr::RCX, 0x77).flags(rflags::CF);
    let end = machine.bytes_at(CODE, &far(JMP, selector::FREE)).run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RBX), end.reg(gpr::RCX)), (0x1234, 0));
    assert_eq!(end.reg(gpr::RSP), KERNEL_STACK - 0x100);
    assert_eq!(end.state.rflags, rflags::FIXED);
    assert_ne!(end.state.cr0 & cr0::TS, 0, "the x87 unit still has the old task's state");
    // The old task is saved and free, the new one busy.
    let saved = (end.load::<u32>(TSS + at::EIP), end.load::<u32>(TSS + at::ECX), end.load::<u32>(TSS + at::ESP));
    assert_eq!(saved, (CODE as u32 + 7, 0x77, STACK as u32));
    assert_eq!(end.load::<u32>(TSS + at::EFLAGS), (rflags::CF | rflags::FIXED) as u32);
    let busy = (end.load::<u8>(GDT + u64::from(selector::TSS) + 5), end.load::<u8>(FREE + 5));
    assert_eq!(busy, (kind::TSS, kind::TSS_BUSY));
    assert_eq!((end.state.segments.tr.selector, end.state.segments.tr.base), (selector::FREE, OTHER));
}

pub(super) fn a_call_nests_a_task_and_iret_returns_from_it(engine: &Engine) {
    let machine = two_tasks(engine).reg(gpr::RCX, 0x77).bytes_at(CODE, &far(CALL, selector::FREE));
    let end = machine
        .code_at(TARGET, 32, |a| {
            a.pushfd()?;
            a.pop(dword_ptr(0x1_0000))?;
            a.inc(eax)?;
            a.iretd()
        })
        .run();
    assert_eq!((end.exit, end.state.rip), (crate::Exit::Halted, CODE + 8), "back behind the call");
    assert_eq!((end.reg(gpr::RCX), end.reg(gpr::RSP)), (0x77, STACK));
    assert_ne!(end.load::<u32>(0x1_0000) & rflags::NT as u32, 0, "the nested task knows");
    assert_eq!(end.load::<u16>(OTHER + at::LINK), selector::TSS);
    assert_eq!(end.load::<u32>(OTHER + at::EAX), 0x1235, "and was saved when it returned");
    let busy = (end.load::<u8>(GDT + u64::from(selector::TSS) + 5), end.load::<u8>(FREE + 5));
    assert_eq!(busy, (kind::TSS_BUSY, kind::TSS));
    assert!(!end.has(rflags::NT));
}

pub(super) fn a_busy_task_cannot_be_switched_to(engine: &Engine) {
    for operation in [CALL, JMP] {
        let machine = two_tasks(engine).bytes_at(CODE, &far(operation, selector::TSS));
        machine.run().expect_fault(13, Some(selector::TSS.into()), CODE);
    }
}

pub(super) fn a_task_segment_must_be_present_and_large_enough(engine: &Engine) {
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, selector::FREE));
    machine.put(FREE, descriptor::segment(OTHER as u32, 0x67, u16::from(kind::TSS & 0x7f)));
    machine.run().expect_fault(11, Some(selector::FREE.into()), CODE);
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, selector::FREE));
    machine.put(FREE, descriptor::segment(OTHER as u32, 0x66, kind::TSS.into()));
    machine.run().expect_fault(10, Some(selector::FREE.into()), CODE);
}

pub(super) fn a_task_gate_leads_to_a_task(engine: &Engine) {
    let slot = selector::FREE + 8;
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, slot));
    machine.put(GDT + u64::from(slot), descriptor::gate(selector::FREE, 0, kind::TASK_GATE, 0));
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RBX), end.state.segments.tr.selector), (0x1234, selector::FREE));
}

pub(super) fn an_exception_may_be_a_tasks(engine: &Engine) {
    // With its error code on the new task's stack; `iret` leads back to the instruction.
    let machine = two_tasks(engine).code(|a| {
        a.mov(eax, u32::from(selector::FREE + 8))?;
        a.mov(ds, eax)
    });
    machine.gate(13, selector::FREE, 0, kind::TASK_GATE, 0, false);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RBX), 0x1234);
    assert_eq!(end.reg(gpr::RSP), KERNEL_STACK - 0x104);
    assert_eq!(end.load::<u32>(KERNEL_STACK - 0x104), u32::from(selector::FREE + 8));
    assert_eq!(end.load::<u32>(TSS + at::EIP), CODE as u32 + 5);
    assert!(end.has(rflags::NT));
}

pub(super) fn a_double_fault_on_a_broken_stack_is_saved_by_its_task(engine: &Engine) {
    let machine = two_tasks(engine).with(|state| state.segments.ss.limit = 0xff).code(|a| a.push(eax));
    machine.gate(8, selector::FREE, 0, kind::TASK_GATE, 0, false);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RBX), end.load::<u32>(TSS + at::EIP)), (0x1234, CODE as u32));
}

pub(super) fn the_new_tasks_segments_are_checked_in_the_new_task(engine: &Engine) {
    // A data segment that its table has not: an invalid-TSS fault, and by then the new task is the current one.
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, selector::FREE));
    machine.put(OTHER + at::ES, 0x2000_u32);
    let end = machine.run();
    end.expect_fault(10, Some(0x2000), TARGET);
    assert_eq!(end.state.segments.tr.selector, selector::FREE);
}

pub(super) fn a_tasks_debug_trap_stops_it_at_its_first_instruction(engine: &Engine) {
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, selector::FREE));
    machine.put(OTHER + at::TRAP, 1_u16);
    machine.gate(1, selector::CODE32, handler(1), kind::INTERRUPT_GATE, 0, false);
    let end = machine.run();
    end.expect_fault(1, None, TARGET);
    assert_ne!(end.state.dr6 & 1 << 15, 0, "dr6.BT");
}

pub(super) fn a_task_brings_its_page_tables(engine: &Engine) {
    let machine = two_tasks(engine).bytes_at(CODE, &far(JMP, selector::FREE));
    machine.put(OTHER + at::CR3, 0x8_0000_u32);
    let end = machine.with(|state| state.cr3 = 0x9_0000).run();
    end.expect_end();
    // Without paging it does not count: it is loaded only while paging is on.
    assert_eq!(end.state.cr3, 0x9_0000);
}

pub(super) fn long_mode_has_no_task_switches(engine: &Engine) {
    let machine = Machine::compatibility(engine);
    machine.put(FREE, descriptor::segment(OTHER as u32, 0x67, kind::TSS.into()));
    let end = machine.bytes_at(CODE, &far(JMP, selector::FREE)).run();
    end.expect_fault(13, Some(selector::FREE.into()), CODE);
    let machine = Machine::long(engine);
    machine.gate(6, selector::FREE, 0, kind::TASK_GATE, 0, true);
    machine.code(|a| a.ud2()).run().expect_fault(13, Some(6 * 8 + 3), CODE);
}
