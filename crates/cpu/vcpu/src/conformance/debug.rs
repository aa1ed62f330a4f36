//! Single-stepping, breakpoints, and the traps of a debugger (AMD APM volume 2, chapter 13).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, Machine, STACK, USER_CODE, kind, selector};
use crate::x86::{cr4, gpr, rflags};

/// Bits of `dr6`.
mod dr6 {
    pub(super) const B0: u64 = 1 << 0;
    pub(super) const B1: u64 = 1 << 1;
    pub(super) const BD: u64 = 1 << 13;
    pub(super) const BS: u64 = 1 << 14;
    /// Those that tell something.
    pub(super) const ALL: u64 = 0xe00f;
}

/// `dr7` with breakpoint `number` on, for a kind of access and a length in bytes.
fn breakpoint(number: u32, kind: u64, length: u64) -> u64 {
    let length = match length {
        1 => 0,
        2 => 1,
        8 => 2,
        _ => 3,
    };
    0x400 | 2 << (number * 2) | (kind | length << 2) << (16 + number * 4)
}

const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

pub(super) fn single_stepping_traps_after_each_instruction(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let end = machine.flags(rflags::TF).code(|a| a.inc(eax)).run();
        let frame = end.frame();
        assert_eq!((frame.vector, end.reg(gpr::RAX)), (1, 1));
        assert_eq!(frame.rip, CODE + if end.state.msrs.efer == 0 { 1 } else { 2 });
        assert_eq!(end.state.dr6 & dr6::ALL, dr6::BS);
        assert_ne!(frame.rflags & rflags::TF, 0);
        assert!(!end.has(rflags::TF), "handlers are not stepped through");
    }
}

pub(super) fn popf_that_sets_tf_traps_after_the_next_instruction(engine: &Engine) {
    let end = Machine::long(engine)
        .code(|a| {
            a.push((rflags::TF | rflags::FIXED) as i32)?;
            a.popfq()?;
            a.inc(eax)?;
            a.inc(eax)
        })
        .run();
    assert_eq!((end.frame().vector, end.reg(gpr::RAX)), (1, 1));
}

pub(super) fn popf_that_clears_tf_still_traps(engine: &Engine) {
    let end = Machine::long(engine)
        .flags(rflags::TF)
        .reg(gpr::RSP, STACK - 8)
        .code(|a| {
            a.popfq()?;
            a.inc(eax)
        })
        .run();
    end.expect_fault(1, None, CODE + 1);
    assert_eq!(end.frame().rflags & rflags::TF, 0);
}

pub(super) fn a_faulting_instruction_is_not_trapped(engine: &Engine) {
    let end = Machine::long(engine).flags(rflags::TF).code(|a| a.ud2()).run();
    end.expect_fault(6, None, CODE);
    assert_ne!(end.frame().rflags & rflags::TF, 0);
}

pub(super) fn a_software_interrupt_is_stepped_over(engine: &Engine) {
    let machine = Machine::long(engine).flags(rflags::TF);
    let end = machine.code(|a| a.int(0x30)).run();
    // The handler runs unstepped; its frame has TF for when it returns.
    end.expect_fault(0x30, None, CODE + 2);
    assert_ne!(end.frame().rflags & rflags::TF, 0);
}

pub(super) fn a_load_of_ss_holds_the_trap_off(engine: &Engine) {
    let end = Machine::long(engine)
        .flags(rflags::TF)
        .reg(gpr::RCX, selector::DATA.into())
        .code(|a| {
            a.mov(ss, ecx)?;
            a.inc(eax)?;
            a.inc(eax)
        })
        .run();
    assert_eq!((end.frame().vector, end.reg(gpr::RAX)), (1, 1));
}

pub(super) fn repeated_string_instructions_trap_after_each_repetition(engine: &Engine) {
    let end = Machine::long(engine)
        .flags(rflags::TF)
        .reg(gpr::RCX, 3)
        .reg(gpr::RDI, DATA)
        .code(|a| a.rep().stosb())
        .run();
    end.expect_fault(1, None, CODE);
    assert_eq!((end.reg(gpr::RCX), end.reg(gpr::RDI)), (2, DATA + 1));
}

pub(super) fn instruction_breakpoints_fault_before_the_instruction(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let end = machine
            .with(|state| {
                state.breakpoints[0] = CODE + 1;
                state.dr7 = breakpoint(0, EXECUTE, 1);
            })
            .code(|a| {
                a.nop()?;
                a.inc(eax)
            })
            .run();
        end.expect_fault(1, None, CODE + 1);
        assert_eq!((end.reg(gpr::RAX), end.state.dr6 & dr6::ALL), (0, dr6::B0));
        // The one fault that does not: the debugger decides whether the instruction shall pass.
        assert_eq!(end.frame().rflags & rflags::RF, 0);
    }
}

pub(super) fn the_resume_flag_lets_one_instruction_pass_its_breakpoint(engine: &Engine) {
    // The handler sets RF in its frame: no second fault, and RF is clear again behind the instruction.
    let end = Machine::long(engine)
        .with(|state| {
            state.breakpoints[0] = CODE + 1;
            state.breakpoints[1] = CODE + 3;
            state.dr7 = breakpoint(0, EXECUTE, 1) | breakpoint(1, EXECUTE, 1);
        })
        .handler(1, 64, |a| {
            a.bts(dword_ptr(rsp + 16), 16)?;
            a.iretq()
        })
        .code(|a| {
            a.nop()?;
            a.inc(eax)?;
            a.inc(eax)
        })
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.state.dr6 & dr6::ALL), (2, dr6::B0 | dr6::B1));
    assert!(!end.has(rflags::RF));
}

pub(super) fn data_breakpoints_trap_behind_the_access(engine: &Engine) {
    // A write breakpoint is not hit by a read, nor by a write beside it; a read-write one is hit by both.
    let hits = [
        (WRITE, 4, DATA + 0x10, true, true),
        (WRITE, 4, DATA + 0x10, false, false),
        (WRITE, 4, DATA + 0x14, true, false),
        (WRITE, 1, DATA + 0x13, true, true),
        (WRITE, 1, DATA + 0x0f, true, false),
        (ACCESS, 4, DATA + 0x10, true, true),
        (ACCESS, 4, DATA + 0x10, false, true),
        (ACCESS, 2, DATA + 0x12, false, true),
        (WRITE, 8, DATA + 0x10, true, true),
    ];
    for (what, length, at, write, hit) in hits {
        let end = Machine::long(engine)
            .with(|state| {
                state.breakpoints[1] = at;
                state.dr7 = breakpoint(1, what, length);
            })
            .reg(gpr::RBX, DATA + 0x10)
            .reg(gpr::RAX, 7)
            .reg(gpr::RDX, 0)
            .code(|a| {
                if write { a.mov(dword_ptr(rbx), eax)? } else { a.mov(ecx, dword_ptr(rbx))? }
                a.inc(edx)
            })
            .run();
        if hit {
            end.expect_fault(1, None, CODE + 2);
            assert_eq!((end.state.dr6 & dr6::ALL, end.reg(gpr::RDX)), (dr6::B1, 0));
            assert_eq!(end.frame().rflags & rflags::RF, 0, "a trap");
        } else {
            end.expect_end();
        }
        assert_eq!(end.load::<u32>(DATA + 0x10), if write { 7 } else { 0 });
    }
}

pub(super) fn data_breakpoints_see_unaligned_and_implicit_accesses(engine: &Engine) {
    // A push, and a store that only overlaps the watched bytes.
    let end = Machine::long(engine)
        .with(|state| {
            state.breakpoints[0] = STACK - 8;
            state.dr7 = breakpoint(0, WRITE, 8);
        })
        .code(|a| a.push(rax))
        .run();
    end.expect_fault(1, None, CODE + 1);
    let end = Machine::long(engine)
        .with(|state| {
            state.breakpoints[0] = DATA + 4;
            state.dr7 = breakpoint(0, WRITE, 1);
        })
        .reg(gpr::RBX, DATA + 1)
        .code(|a| a.mov(qword_ptr(rbx), rax))
        .run();
    end.expect_fault(1, None, CODE + 3);
}

pub(super) fn port_breakpoints_need_debugging_extensions(engine: &Engine) {
    for extensions in [true, false] {
        let end = Machine::long(engine)
            .with(|state| {
                state.breakpoints[0] = 0x80;
                state.dr7 = breakpoint(0, PORT, 1);
                state.cr4 |= if extensions { cr4::DE } else { 0 };
            })
            .code(|a| {
                a.out(0x80, al)?;
                a.inc(eax)
            })
            .run();
        assert_eq!(end.bus.log().len(), 1);
        if extensions {
            end.expect_fault(1, None, CODE + 2);
            assert_eq!(end.state.dr6 & dr6::ALL, dr6::B0);
        } else {
            end.expect_end();
        }
    }
}

pub(super) fn guarded_debug_registers_fault(engine: &Engine) {
    const GD: u64 = 1 << 13;
    let end = Machine::long(engine).with(|state| state.dr7 = 0x400 | GD).code(|a| a.mov(rax, dr0)).run();
    end.expect_fault(1, None, CODE);
    assert_eq!(end.state.dr6 & dr6::ALL, dr6::BD);
    assert_eq!(end.state.dr7 & GD, 0, "the handler may use them");
}

pub(super) fn debug_registers_4_and_5_are_6_and_7_without_debugging_extensions(engine: &Engine) {
    // `mov rax, dr4`, whose number the assembler does not know.
    let bytes = [0x0f, 0x21, 0xe0, 0xf4];
    let end = Machine::long(engine).with(|s| s.dr6 |= 1).bytes_at(CODE, &bytes).run();
    assert_eq!(end.reg(gpr::RAX), end.state.dr6);
    let end = Machine::long(engine).with(|s| s.cr4 |= cr4::DE).bytes_at(CODE, &bytes).run();
    end.expect_fault(6, None, CODE);
}

pub(super) fn programs_may_not_touch_debug_registers(engine: &Engine) {
    Machine::long(engine).user().code(|a| a.mov(rax, dr7)).run().expect_fault(13, Some(0), CODE);
    Machine::long(engine).user().code(|a| a.mov(dr0, rax)).run().expect_fault(13, Some(0), CODE);
}

pub(super) fn the_upper_halves_of_debug_status_and_control_stay_clear(engine: &Engine) {
    for write in [true, false] {
        let end = Machine::long(engine)
            .reg(gpr::RAX, 1 << 40)
            .code(|a| if write { a.mov(dr7, rax) } else { a.mov(dr6, rax) })
            .run();
        end.expect_fault(13, Some(0), CODE);
    }
}

pub(super) fn writing_debug_registers_arms_them_at_once(engine: &Engine) {
    let end = Machine::long(engine)
        .code(|a| {
            a.mov(rax, DATA)?;
            a.mov(dr0, rax)?;
            a.mov(rbx, breakpoint(0, WRITE, 4))?;
            a.mov(dr7, rbx)?;
            a.mov(dword_ptr(rax), 1)?;
            a.inc(ecx)
        })
        .run();
    assert_eq!((end.frame().vector, end.reg(gpr::RCX)), (1, 0));
}

pub(super) fn the_one_byte_interrupt_of_a_debugger_is_a_trap(engine: &Engine) {
    // `int1` (icebp) ignores the gate's privilege level.
    let end = Machine::long(engine).user().bytes_at(CODE, &[0xf1, 0xf4]).run();
    end.expect_fault(1, None, CODE + 1);
}

pub(super) fn int3_from_a_program_needs_a_gate_for_programs(engine: &Engine) {
    Machine::long(engine).user().code(|a| a.int3()).run().expect_fault(13, Some(3 * 8 + 2), CODE);
    let machine = Machine::long(engine);
    machine.gate(3, selector::CODE64, USER_CODE, kind::TRAP_GATE | kind::DPL3, 0, true);
    let end = machine.user().code(|a| a.int3()).code_at(USER_CODE, 64, |a| a.inc(eax)).run();
    end.expect_end();
}

pub(super) fn iret_restores_tf_and_steps_the_instruction_it_returns_to(engine: &Engine) {
    let end = Machine::long(engine)
        .code(|a| {
            a.mov(rax, rsp)?;
            a.push(i32::from(selector::DATA))?;
            a.push(rax)?;
            a.push((rflags::TF | rflags::FIXED) as i32)?;
            a.push(i32::from(selector::CODE64))?;
            a.push(USER_CODE as i32)?;
            a.iretq()
        })
        .code_at(USER_CODE, 64, |a| {
            a.inc(ecx)?;
            a.inc(ecx)
        })
        .run();
    end.expect_fault(1, None, USER_CODE + 2);
    assert_eq!(end.reg(gpr::RCX), 1);
}
