//! Virtual-8086 mode (AMD APM volume 2, section 10.4 and 12.4).

use iced_x86::code_asm::*;

use super::Engine;
use super::board::Access;
use super::machine::{CODE, KERNEL_STACK, Machine, STACK, TSS, USER_CODE, selector};
use crate::x86::{gpr, rflags};

pub(super) fn iret_with_vm_set_enters_virtual_8086_mode(engine: &Engine) {
    let machine = Machine::protected(engine);
    // eip, cs, eflags, esp, ss, es, ds, fs, gs.
    let frame = [0x10, 0xa00, rflags::VM | 2, 0x20, 0x500, 0x111, 0xc00, 0x333, 0x444_u64];
    for (n, value) in frame.into_iter().enumerate() {
        machine.put(STACK - 36 + n as u64 * 4, value as u32);
    }
    let end = machine
        .reg(gpr::RSP, STACK - 36)
        .code(|a| a.iretd())
        .code_at(0xa010, 16, |a| {
            a.mov(ax, 0x77)?;
            a.push(ax)?;
            a.mov(word_ptr(8), ax)?;
            a.mov(bx, es)
        })
        .run();
    // `hlt` is not for it: it is back in the kernel, with a frame of nine.
    assert_eq!(end.frame().vector, 13);
    assert_eq!((end.load::<u16>(0x501e), end.load::<u16>(0xc008)), (0x77, 0x77));
    assert_eq!(end.reg(gpr::RBX) & 0xffff, 0x111);
}

pub(super) fn interrupts_leave_it_with_all_segments_on_the_stack(engine: &Engine) {
    let machine = Machine::v8086(engine).with(|state| {
        state.segments.es.selector = 0x111;
        state.segments.fs.selector = 0x333;
        state.segments.gs.selector = 0x444;
        state.segments.ds.selector = 0x222;
    });
    let end = machine.code(|a| a.ud2()).run();
    end.expect_fault(6, None, CODE);
    let words: Vec<u32> = (0..9).map(|n| end.load(KERNEL_STACK - 36 + n * 4)).collect();
    assert_eq!(words[..2], [CODE as u32, 0]);
    assert_ne!(words[2] & rflags::VM as u32, 0);
    assert_eq!(words[3..], [STACK as u32, 0, 0x111, 0x222, 0x333, 0x444]);
    let s = end.state.segments;
    assert_eq!([s.ds, s.es, s.fs, s.gs].map(|segment| segment.selector), [0; 4]);
    assert!(!end.has(rflags::VM));
    assert_eq!(end.state.cpl(), 0);
}

pub(super) fn segments_are_numbers(engine: &Engine) {
    let end = Machine::v8086(engine)
        .code(|a| {
            a.mov(ax, 0xc00)?;
            a.mov(ds, ax)?;
            a.mov(word_ptr(0x10), ax)
        })
        .run();
    end.expect_end();
    assert_eq!(end.load::<u16>(0xc010), 0xc00);
    // Up to 64 KiB.
    Machine::v8086(engine).code(|a| a.mov(ax, word_ptr(0xffff))).run().expect_fault(13, Some(0), CODE);
}

pub(super) fn pushf_in_vm86_with_iopl_below_3_faults(engine: &Engine) {
    sensitive(engine, &[0x9c]);
}

pub(super) fn popf_in_vm86_with_iopl_below_3_faults(engine: &Engine) {
    sensitive(engine, &[0x9d]);
}

pub(super) fn cli_and_sti_in_vm86_with_iopl_below_3_fault(engine: &Engine) {
    sensitive(engine, &[0xfa]);
    sensitive(engine, &[0xfb]);
}

pub(super) fn software_interrupts_in_vm86_with_iopl_below_3_fault(engine: &Engine) {
    sensitive(engine, &[0xcd, 0x21]);
}

pub(super) fn iret_in_vm86_with_iopl_below_3_faults(engine: &Engine) {
    sensitive(engine, &[0xcf]);
}

fn sensitive(engine: &Engine, bytes: &[u8]) {
    let end = Machine::v8086(engine).bytes_at(CODE, bytes).run();
    end.expect_fault(13, Some(0), CODE);
    let iopl_2 = Machine::v8086(engine).flags(2 << 12).bytes_at(CODE, bytes).run();
    iopl_2.expect_fault(13, Some(0), CODE);
}

pub(super) fn sensitive_instructions_work_at_iopl_3(engine: &Engine) {
    let end = Machine::v8086(engine)
        .flags(rflags::IOPL)
        .code(|a| {
            a.sti()?;
            a.pushf()?;
            a.pop(ax)?;
            a.cli()?;
            a.push(ax)?;
            a.popf()
        })
        .run();
    end.expect_end();
    assert_ne!(end.frame().rflags & rflags::IF, 0);
    assert_eq!(end.frame().rflags & (rflags::IOPL | rflags::VM), rflags::IOPL | rflags::VM);
}

pub(super) fn breakpoints_need_no_iopl(engine: &Engine) {
    let machine = Machine::v8086(engine);
    machine.gate(3, selector::CODE32, super::machine::handler(3), 0xee, 0, false);
    machine.code(|a| a.int3()).run().expect_fault(3, None, CODE + 1);
}

pub(super) fn ports_are_the_bitmaps_whatever_the_iopl(engine: &Engine) {
    for (allowed, iopl) in [(true, 0), (false, rflags::IOPL), (true, rflags::IOPL)] {
        let machine = Machine::v8086(engine).flags(iopl).code(|a| a.out(0x60, al));
        let machine = machine.with(|state| state.segments.tr.limit = 0xff);
        machine.put(TSS + 0x68 + 0x60 / 8, u8::from(!allowed));
        let end = machine.reg(gpr::RAX, 5).run();
        if allowed {
            end.expect_end();
            assert_eq!(end.bus.log(), [Access::PortWrite(0x60, 1, 5)]);
        } else {
            end.expect_fault(13, Some(0), CODE);
        }
    }
}

pub(super) fn instructions_that_need_descriptors_are_invalid(engine: &Engine) {
    // `lar`, `lsl`, `verr`, `sldt`, `str`, `arpl`.
    let instructions: [&[u8]; 6] =
        [&[0x0f, 0x02, 0xc0], &[0x0f, 0x03, 0xc0], &[0x0f, 0, 0xe0], &[0x0f, 0, 0xc0], &[0x0f, 0, 0xc8], &[0x63, 0xc0]];
    for bytes in instructions {
        Machine::v8086(engine).bytes_at(CODE, bytes).run().expect_fault(6, None, CODE);
        let end = Machine::real(engine).bytes_at(CODE, bytes).run();
        assert_eq!(end.vector(), Some(6), "in real mode, too");
    }
}

pub(super) fn privileged_instructions_fault(engine: &Engine) {
    let instructions: [&[u8]; 4] = [&[0xf4], &[0x0f, 0x20, 0xc0], &[0x0f, 0x01, 0x17], &[0x0f, 0x30]];
    for bytes in instructions {
        let end = Machine::v8086(engine).flags(rflags::IOPL).bytes_at(CODE, bytes).run();
        end.expect_fault(13, Some(0), CODE);
    }
}

pub(super) fn programs_cannot_set_vm(engine: &Engine) {
    // `iret` at CPL 3 leaves VM as it is, and so does `popf` at CPL 0.
    let machine = Machine::protected(engine).user();
    for (n, value) in [USER_CODE, selector::USER_CODE32.into(), rflags::VM | 2].into_iter().enumerate() {
        machine.put(STACK - 12 + n as u64 * 4, value as u32);
    }
    let end = machine
        .reg(gpr::RSP, STACK - 12)
        .code(|a| a.iretd())
        .code_at(USER_CODE, 32, |a| a.mov(eax, 7))
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.frame().rflags & rflags::VM), (7, 0));
    let end = Machine::protected(engine)
        .code(|a| {
            a.push((rflags::VM | 2) as u32)?;
            a.popfd()
        })
        .run();
    end.expect_end();
    assert!(!end.has(rflags::VM));
}
