//! What programs may not do, and what is not there until it is enabled (AMD APM volume 2, chapters 3, 4 and 8).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, FREE, MMIO, Machine, STACK, TSS, selector};
use super::tables::pte;
use crate::x86::{cr0, cr4, gpr, rflags};

pub(super) fn privileged_instructions_fault_in_programs(engine: &Engine) {
    let instructions: [(&str, &[u8]); 17] = [
        ("hlt", &[0xf4]),
        ("clts", &[0x0f, 0x06]),
        ("invd", &[0x0f, 0x08]),
        ("wbinvd", &[0x0f, 0x09]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
        ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0]),
        ("mov rax, dr0", &[0x0f, 0x21, 0xc0]),
        ("lgdt [rbx]", &[0x0f, 0x01, 0x13]),
        ("lidt [rbx]", &[0x0f, 0x01, 0x1b]),
        ("lldt ax", &[0x0f, 0x00, 0xd0]),
        ("ltr ax", &[0x0f, 0x00, 0xd8]),
        ("lmsw ax", &[0x0f, 0x01, 0xf0]),
        ("invlpg [rbx]", &[0x0f, 0x01, 0x3b]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
    ];
    for (name, bytes) in instructions {
        let end = Machine::long(engine).user().reg(gpr::RBX, DATA).bytes_at(CODE, bytes).run();
        let frame = end.frame();
        assert_eq!((frame.vector, frame.error, frame.rip), (13, Some(0), CODE), "{name}");
    }
}

pub(super) fn interrupt_flag_instructions_obey_iopl(engine: &Engine) {
    for bytes in [[0xfa], [0xfb]] {
        Machine::long(engine).user().bytes_at(CODE, &bytes).run().expect_fault(13, Some(0), CODE);
        let end = Machine::long(engine).user().flags(rflags::IOPL).bytes_at(CODE, &bytes).run();
        assert_eq!(end.frame().rflags & rflags::IF != 0, bytes == [0xfb]);
    }
}

pub(super) fn popf_in_a_program_changes_neither_if_nor_iopl(engine: &Engine) {
    let end = Machine::long(engine)
        .user()
        .flags(rflags::IF)
        .code(|a| {
            a.push((rflags::IOPL | rflags::CF) as i32)?;
            a.popfq()
        })
        .run();
    end.expect_end();
    assert_eq!(end.frame().rflags & (rflags::IF | rflags::IOPL | rflags::CF), rflags::IF | rflags::CF);
}

pub(super) fn alignment_is_checked_in_programs_that_ask_for_it(engine: &Engine) {
    for (mask, flag, user) in [(true, true, true), (false, true, true), (true, false, true), (true, true, false)] {
        let machine = Machine::long(engine).with(|state| {
            state.cr0 |= if mask { cr0::AM } else { 0 };
            state.rflags |= if flag { rflags::AC } else { 0 };
        });
        let machine = if user { machine.user() } else { machine };
        let end = machine.reg(gpr::RBX, DATA + 2).code(|a| a.mov(eax, dword_ptr(rbx))).run();
        if mask && flag && user {
            end.expect_fault(17, Some(0), CODE);
        } else {
            end.expect_end();
        }
    }
    // Aligned to its size, and bytes, are always well.
    let machine = Machine::long(engine).user().flags(rflags::AC).with(|state| state.cr0 |= cr0::AM);
    let end = machine
        .reg(gpr::RBX, DATA)
        .code(|a| {
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(al, byte_ptr(rbx + 3))?;
            a.mov(cx, word_ptr(rbx + 2))?;
            a.lock().add(dword_ptr(rbx + 5), eax)
        })
        .run();
    assert_eq!((end.frame().vector, end.load::<u32>(DATA + 5)), (17, 0), "locked accesses are checked, too");
}

pub(super) fn umip_hides_the_tables_from_programs(engine: &Engine) {
    let instructions: [&[u8]; 5] =
        [&[0x0f, 0x01, 0x03], &[0x0f, 0x01, 0x0b], &[0x0f, 0x01, 0xe0], &[0x0f, 0x00, 0xc0], &[0x0f, 0x00, 0xc8]];
    for bytes in instructions {
        for enabled in [true, false] {
            let machine = Machine::long(engine).user().reg(gpr::RBX, DATA).bytes_at(CODE, bytes);
            let machine = machine.with(|state| state.cr4 |= if enabled { cr4::UMIP } else { 0 });
            let end = machine.bytes_at(CODE + bytes.len() as u64, &[0xf4]).run();
            let at = if enabled { CODE } else { CODE + bytes.len() as u64 };
            end.expect_fault(13, Some(0), at);
        }
        let machine = Machine::long(engine).reg(gpr::RBX, DATA).bytes_at(CODE, bytes);
        let end = machine
            .with(|state| state.cr4 |= cr4::UMIP)
            .bytes_at(CODE + bytes.len() as u64, &[0xf4])
            .run();
        assert_eq!(end.state.rip, CODE + bytes.len() as u64 + 1, "the kernel sees them");
    }
}

pub(super) fn the_time_stamp_counter_can_be_withheld(engine: &Engine) {
    for bytes in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9]] {
        let end = Machine::long(engine).user().with(|state| state.cr4 |= cr4::TSD).bytes_at(CODE, bytes).run();
        end.expect_fault(13, Some(0), CODE);
    }
    let end = Machine::long(engine)
        .with(|state| state.cr4 |= cr4::TSD)
        .code(|a| {
            a.rdtsc()?;
            a.mov(ebx, eax)?;
            a.mov(ecx, edx)?;
            a.rdtsc()
        })
        .run();
    end.expect_end();
    let time = |low, high| end.reg(low) | end.reg(high) << 32;
    assert!(time(gpr::RAX, gpr::RDX) >= time(gpr::RBX, gpr::RCX), "it never goes back");
}

pub(super) fn model_specific_registers_that_do_not_exist_fault(engine: &Engine) {
    for bytes in [[0x0f, 0x32], [0x0f, 0x30]] {
        let end = Machine::long(engine).reg(gpr::RCX, 0x4321_0000).bytes_at(CODE, &bytes).run();
        end.expect_fault(13, Some(0), CODE);
    }
}

pub(super) fn model_specific_registers_keep_what_is_written(engine: &Engine) {
    for msr in [0x174_u32, 0x175, 0x176, 0xc000_0082, 0xc000_0102, 0xc000_0103] {
        let end = Machine::long(engine)
            .reg(gpr::RCX, msr.into())
            .reg(gpr::RAX, 0x1234_5678)
            .reg(gpr::RDX, 0)
            .code(|a| {
                a.wrmsr()?;
                a.xor(eax, eax)?;
                a.rdmsr()
            })
            .run();
        end.expect_end();
        assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RDX)), (0x1234_5678, 0), "{msr:#x}");
    }
}

pub(super) fn cpuid_answers_leaf_0_and_the_brand(engine: &Engine) {
    let end = Machine::long(engine)
        .reg(gpr::RAX, 0)
        .code(|a| {
            a.cpuid()?;
            a.mov(esi, eax)?;
            a.mov(r8d, ebx)?;
            a.mov(eax, 0x8000_0000u32)?;
            a.cpuid()
        })
        .run();
    end.expect_end();
    assert!(end.reg(gpr::RSI) >= 1 && end.reg(gpr::RAX) >= 0x8000_0008);
    assert_ne!(end.reg(8), 0, "a vendor");
    // Available to programs, and it changes nothing but its four registers.
    let end = Machine::long(engine).user().flags(rflags::CF).code(|a| a.cpuid()).run();
    end.expect_end();
    assert_ne!(end.frame().rflags & rflags::CF, 0);
}

pub(super) fn the_x87_unit_is_unavailable_while_a_task_switch_is_pending(engine: &Engine) {
    for bit in [cr0::TS, cr0::EM] {
        let end = Machine::long(engine).with(|state| state.cr0 |= bit).code(|a| a.fld1()).run();
        end.expect_fault(7, None, CODE);
    }
    // `wait` asks for both TS and MP.
    for (bits, faults) in [(cr0::TS, false), (cr0::TS | cr0::MP, true), (cr0::MP, false)] {
        let end = Machine::long(engine).with(|state| state.cr0 |= bits).code(|a| a.wait()).run();
        if faults { end.expect_fault(7, None, CODE) } else { end.expect_end() }
    }
}

pub(super) fn sse_is_invalid_until_enabled(engine: &Engine) {
    let run = |cr0_bits: u64, cr4_bits: u64| {
        Machine::long(engine)
            .with(|state| {
                state.cr0 |= cr0_bits;
                state.cr4 |= cr4_bits;
            })
            .code(|a| a.addps(xmm0, xmm1))
            .run()
    };
    run(0, 0).expect_fault(6, None, CODE);
    run(cr0::EM, cr4::OSFXSR).expect_fault(6, None, CODE);
    run(cr0::TS, cr4::OSFXSR).expect_fault(7, None, CODE);
    run(0, cr4::OSFXSR).expect_end();
}

pub(super) fn unmasked_sse_exceptions_are_invalid_opcodes_without_operating_system_support(engine: &Engine) {
    for supported in [true, false] {
        let end = Machine::long(engine)
            .with(|state| {
                state.cr4 |= cr4::OSFXSR | if supported { cr4::OSXMMEXCPT } else { 0 };
                // All but division by zero masked.
                state.mxcsr = 0x1f80 & !(1 << 9);
                state.ymm[0][0] = 0x3f80_0000;
            })
            .code(|a| a.divss(xmm0, xmm1))
            .run();
        end.expect_fault(if supported { 19 } else { 6 }, None, CODE);
        assert_eq!(end.state.mxcsr & 0x3f, 1 << 2);
    }
}

pub(super) fn unmasked_x87_exceptions_come_with_the_next_instruction(engine: &Engine) {
    let end = Machine::long(engine)
        .with(|state| {
            state.cr0 |= cr0::NE;
            state.x87.control = 0x37f & !4;
        })
        .code(|a| {
            a.fld1()?;
            a.fldz()?;
            a.fdivp(st1, st0)?;
            a.nop()?;
            a.fld1()
        })
        .run();
    end.expect_fault(16, None, CODE + 7);
}

pub(super) fn xsetbv_and_xgetbv_need_cr4(engine: &Engine) {
    Machine::long(engine).reg(gpr::RCX, 0).code(|a| a.xgetbv()).run().expect_fault(6, None, CODE);
    let machine = Machine::long(engine).with(|state| state.cr4 |= cr4::OSXSAVE);
    let end = machine.reg(gpr::RCX, 0).code(|a| a.xgetbv()).run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), 1);
    // x87 state cannot be given up; SSE state can be added.
    for (value, valid) in [(0, false), (2, false), (1, true), (3, true), (1 << 20 | 3, false)] {
        let machine = Machine::long(engine).with(|state| state.cr4 |= cr4::OSXSAVE);
        let end = machine
            .reg(gpr::RCX, 0)
            .reg(gpr::RDX, 0)
            .reg(gpr::RAX, value)
            .code(|a| a.xsetbv())
            .run();
        if valid { end.expect_end() } else { end.expect_fault(13, Some(0), CODE) }
    }
}

pub(super) fn ports_need_iopl_or_the_bitmap(engine: &Engine) {
    let run = |iopl: u64, limit: u32, bits: u16, size: u32| {
        let machine = Machine::long(engine).user().flags(iopl).with(|state| state.segments.tr.limit = limit);
        // Ports 0x60 to 0x6f.
        machine.put(TSS + 0x68 + 0x60 / 8, bits);
        machine
            .code(|a| match size {
                1 => a.in_(al, 0x67),
                2 => a.in_(ax, 0x67),
                _ => a.in_(eax, 0x67),
            })
            .run()
    };
    run(rflags::IOPL, 0x67, 0, 1).expect_end();
    run(0, 0x67, 0, 1).expect_fault(13, Some(0), CODE);
    run(0, 0xff, 0, 1).expect_end();
    run(0, 0xff, 1 << 7, 1).expect_fault(13, Some(0), CODE);
    // Every port that a wider access touches counts.
    run(0, 0xff, 1 << 8, 1).expect_end();
    run(0, 0xff, 1 << 8, 2).expect_fault(13, Some(0), CODE);
    run(0, 0xff, 1 << 10, 4).expect_fault(13, Some(0), CODE);
    run(0, 0xff, 1 << 11, 4).expect_end();
    // The byte behind the last must be inside the task-state segment, too.
    run(0, 0x68 + 0x60 / 8, 0, 1).expect_fault(13, Some(0), CODE);
    run(0, 0x69 + 0x60 / 8, 0, 1).expect_end();
}

pub(super) fn repeated_string_instructions_fault_in_the_middle(engine: &Engine) {
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    let end = machine
        .reg(gpr::RDI, FREE + 0xff0)
        .reg(gpr::RCX, 100)
        .reg(gpr::RAX, 0x55)
        .code(|a| a.rep().stosb())
        .run();
    end.expect_page_fault(2, FREE + 0x1000);
    assert_eq!(end.frame().rip, CODE);
    assert_eq!((end.reg(gpr::RDI), end.reg(gpr::RCX)), (FREE + 0x1000, 84));
    assert_eq!((end.load::<u8>(DATA + 0xfef), end.load::<u8>(DATA + 0xfff)), (0, 0x55));
}

pub(super) fn repeated_string_instructions_go_on_after_a_fault(engine: &Engine) {
    // The handler maps the page and returns.
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    let entry = machine.entry(FREE + 0x1000, 0);
    machine.gate(14, selector::CODE64, super::machine::USER_CODE, super::machine::kind::INTERRUPT_GATE, 0, true);
    let end = machine
        .reg(gpr::RDI, FREE + 0xff0)
        .reg(gpr::RSI, STACK)
        .reg(gpr::RCX, 0x20)
        .code(|a| a.rep().movsb())
        .code_at(super::machine::USER_CODE, 64, |a| {
            a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 3)?;
            a.add(rsp, 8)?;
            a.iretq()
        });
    for n in 0..0x20 {
        end.put(STACK + n, n as u8 + 1);
    }
    let end = end.run();
    end.expect_end();
    let copied: Vec<u8> = (0..0x20).map(|n| end.load(DATA + 0xff0 + n)).collect();
    assert_eq!(copied, (1..=0x20).collect::<Vec<u8>>());
    assert_eq!(end.reg(gpr::RCX), 0);
}

pub(super) fn a_compare_and_exchange_of_16_bytes_wants_alignment(engine: &Engine) {
    let end = Machine::long(engine)
        .reg(gpr::RBX, DATA + 8)
        .code(|a| a.lock().cmpxchg16b(xmmword_ptr(rbx)))
        .run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn aligned_sse_operands_want_alignment(engine: &Engine) {
    let machine = Machine::long(engine).with(|state| state.cr4 |= cr4::OSFXSR);
    let end = machine.reg(gpr::RBX, DATA + 8).code(|a| a.movaps(xmm0, xmmword_ptr(rbx))).run();
    end.expect_fault(13, Some(0), CODE);
    let machine = Machine::long(engine).with(|state| state.cr4 |= cr4::OSFXSR);
    let end = machine.reg(gpr::RBX, DATA + 8).code(|a| a.movups(xmm0, xmmword_ptr(rbx))).run();
    end.expect_end();
}

pub(super) fn locked_instructions_work_on_devices(engine: &Engine) {
    let machine = Machine::long(engine).reg(gpr::RBX, MMIO).code(|a| a.lock().add(dword_ptr(rbx), 5));
    machine.bus.answer(&[7]);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.bus.log().last(), Some(&super::board::Access::MmioWrite(MMIO, 4, 12)));
}
