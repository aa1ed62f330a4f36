//! Segments: loads, limits, rights, descriptor tables (AMD APM volume 2, chapter 4).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, End, GDT, Machine, STACK, descriptor, kind, selector};
use crate::x86::{Segment, Table, gpr, rflags};

const FREE: u64 = GDT + selector::FREE as u64;

/// A 32-bit guest whose first free descriptor is this one, and which loads it into `es`.
fn loading(engine: &Engine, descriptor: u64) -> End {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor);
    machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.mov(es, eax)
        })
        .run()
}

pub(super) fn a_load_takes_base_limit_and_rights_from_the_table(engine: &Engine) {
    let end = loading(engine, descriptor::segment(0x12_3456, 0x789a, 0x4092));
    end.expect_end();
    let register = end.state.segments.es;
    // The processor sets the accessed bit, in the table and in the register.
    let expected = Segment { selector: selector::FREE, base: 0x12_3456, limit: 0x789a, attributes: 0x4093 };
    assert_eq!(register, expected);
    assert_eq!(end.load::<u8>(FREE + 5), 0x93);
}

pub(super) fn page_granularity_multiplies_the_limit(engine: &Engine) {
    let end = loading(engine, descriptor::segment(0, 0x12, 0xc093));
    assert_eq!(end.state.segments.es.limit, 0x12fff);
}

pub(super) fn loads_that_the_descriptor_does_not_allow_fault(engine: &Engine) {
    let error = u32::from(selector::FREE);
    // Not present; a system segment; code that cannot be read.
    loading(engine, descriptor::segment(0, 0xffff, 0x0013)).expect_fault(11, Some(error), CODE + 5);
    loading(engine, descriptor::segment(0, 0xffff, 0x0082)).expect_fault(13, Some(error), CODE + 5);
    loading(engine, descriptor::segment(0, 0xffff, 0x0099)).expect_fault(13, Some(error), CODE + 5);
    // Readable code is data enough.
    loading(engine, descriptor::segment(0, 0xffff, 0x009b)).expect_end();
}

pub(super) fn selectors_beyond_the_table_fault(engine: &Engine) {
    let machine = Machine::protected(engine).with(|state| state.gdtr.limit = selector::FREE + 6);
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE | 3))?;
            a.mov(ds, eax)
        })
        .run();
    end.expect_fault(13, Some(selector::FREE.into()), CODE + 5);
    // There is no local table: its selectors are beyond it. Error codes keep the table bit.
    let end = Machine::protected(engine)
        .code(|a| {
            a.mov(eax, 0xc)?;
            a.mov(ds, eax)
        })
        .run();
    end.expect_fault(13, Some(0xc), CODE + 5);
}

pub(super) fn programs_may_not_load_the_kernels_data(engine: &Engine) {
    let load = |target: u16| {
        Machine::protected(engine)
            .user()
            .code(move |a| {
                a.mov(eax, u32::from(target))?;
                a.mov(ds, eax)
            })
            .run()
    };
    load(selector::DATA).expect_fault(13, Some(selector::DATA.into()), CODE + 5);
    load(selector::DATA | 3).expect_fault(13, Some(selector::DATA.into()), CODE + 5);
    load(selector::USER_DATA).expect_end();
    load(selector::USER_DATA & !3).expect_end();
}

pub(super) fn the_stack_segment_must_match_the_privilege_level(engine: &Engine) {
    let load = |target: u16| {
        Machine::protected(engine)
            .code(move |a| {
                a.mov(eax, u32::from(target))?;
                a.mov(ss, eax)
            })
            .run()
    };
    load(selector::USER_DATA).expect_fault(13, Some(u32::from(selector::USER_DATA & !3)), CODE + 5);
    load(selector::DATA | 1).expect_fault(13, Some(selector::DATA.into()), CODE + 5);
    load(selector::CODE32).expect_fault(13, Some(selector::CODE32.into()), CODE + 5);
    load(0).expect_fault(13, Some(0), CODE + 5);
    load(selector::DATA16).expect_end();
    // Not present: a stack fault.
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::segment(0, 0xffff, 0x0013));
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.mov(ss, eax)
        })
        .run();
    end.expect_fault(12, Some(selector::FREE.into()), CODE + 5);
}

pub(super) fn a_null_selector_may_be_loaded_but_not_used(engine: &Engine) {
    let end = Machine::protected(engine)
        .code(|a| {
            a.xor(eax, eax)?;
            a.mov(es, eax)?;
            a.mov(ebx, DATA as u32)?;
            a.mov(ecx, dword_ptr(ebx).es())
        })
        .run();
    end.expect_fault(13, Some(0), CODE + 9);
}

pub(super) fn in_64_bit_mode_a_null_selector_is_as_good_as_any(engine: &Engine) {
    let end = Machine::long(engine)
        .reg(gpr::RBX, DATA)
        .code(|a| {
            a.xor(eax, eax)?;
            a.mov(es, eax)?;
            a.mov(ds, eax)?;
            a.mov(ecx, dword_ptr(rbx).es())?;
            // Even the stack segment, below CPL 3.
            a.mov(ss, eax)?;
            a.push(rax)
        })
        .run();
    end.expect_end();
}

/// Accesses `[ebx]` through `es` with this descriptor.
fn accessing(engine: &Engine, descriptor: u64, offset: u32, write: bool) -> End {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor);
    machine
        .reg(gpr::RBX, offset.into())
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.mov(es, eax)?;
            if write { a.mov(dword_ptr(ebx).es(), eax) } else { a.mov(eax, dword_ptr(ebx).es()) }
        })
        .run()
}

pub(super) fn accesses_are_held_to_the_limit(engine: &Engine) {
    let segment = descriptor::segment(DATA as u32, 0xff, 0x4093);
    for write in [false, true] {
        accessing(engine, segment, 0xfc, write).expect_end();
        accessing(engine, segment, 0xfd, write).expect_fault(13, Some(0), CODE + 7);
        accessing(engine, segment, 0xffff_fffe, write).expect_fault(13, Some(0), CODE + 7);
    }
    assert_eq!(accessing(engine, segment, 0xfc, true).load::<u32>(DATA + 0xfc), u32::from(selector::FREE));
}

pub(super) fn flat_segments_do_not_wrap_around(engine: &Engine) {
    let flat = descriptor::segment(0, 0xf_ffff, 0xc093);
    accessing(engine, flat, 0xffff_fffe, false).expect_fault(13, Some(0), CODE + 7);
}

pub(super) fn expand_down_segments_are_valid_above_their_limit(engine: &Engine) {
    // Limit 0xfff: from 0x1000 up to 64 KiB, or to 4 GiB with the big bit.
    for (attributes, offset, inside) in [
        (0x0097, 0x1000, true),
        (0x0097, 0xfff, false),
        (0x0097, 0xfffc, true),
        (0x0097, 0xfffd, false),
        (0x4097, 0xfffd, true),
    ] {
        let end = accessing(engine, descriptor::segment(0, 0xfff, attributes), offset, false);
        if inside { end.expect_end() } else { end.expect_fault(13, Some(0), CODE + 7) }
    }
}

pub(super) fn segments_that_cannot_be_written_are_not(engine: &Engine) {
    for attributes in [0x4091, 0x409b] {
        let segment = descriptor::segment(0, 0xf_ffff, attributes | 0x8000);
        accessing(engine, segment, DATA as u32, false).expect_end();
        accessing(engine, segment, DATA as u32, true).expect_fault(13, Some(0), CODE + 7);
    }
}

pub(super) fn the_stack_segments_limit_raises_stack_faults(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::segment(0, 0xff, 0x4093));
    let machine = machine.with(|state| {
        state.segments.ss = Segment { selector: selector::FREE, base: 0, limit: 0xff, attributes: 0x4093 };
    });
    // The handler's frame needs a stack, too: through a task it would have one. Here: a double fault, then none.
    let end = machine.code(|a| a.push(eax)).run();
    assert_eq!(end.exit, crate::Exit::Shutdown);
    // A program's stack fault is handled on the kernel's stack.
    let machine = Machine::protected(engine).user().with(|state| state.segments.ss.limit = 0xff);
    machine.code(|a| a.push(eax)).run().expect_fault(12, Some(0), CODE);
    let machine = Machine::protected(engine).user().with(|state| state.segments.ss.limit = 0xff);
    let end = machine.code(|a| a.mov(eax, dword_ptr(esp))).run();
    end.expect_fault(12, Some(0), CODE);
}

pub(super) fn code_ends_at_its_segments_limit(engine: &Engine) {
    // The instruction's last byte is beyond the limit.
    let end = Machine::protected(engine)
        .with(|state| state.segments.cs.limit = CODE as u32 + 3)
        .code(|a| a.mov(eax, 7))
        .run();
    end.expect_fault(13, Some(0), CODE);
    // It is just inside, and the next instruction is not.
    let end = Machine::protected(engine)
        .with(|state| state.segments.cs.limit = CODE as u32 + 4)
        .code(|a| a.mov(eax, 7))
        .run();
    end.expect_fault(13, Some(0), CODE + 5);
    assert_eq!(end.reg(gpr::RAX), 7);
}

pub(super) fn sixteen_bit_stacks_wrap_and_keep_the_upper_half(engine: &Engine) {
    let machine = Machine::protected(engine).with(|state| {
        state.segments.ss =
            Segment { selector: selector::DATA16, base: 0x1_0000, limit: 0xffff, attributes: 0x93 };
    });
    let end = machine.reg(gpr::RSP, 0x1234_0000).reg(gpr::RAX, 0x55).code(|a| a.push(eax)).run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSP), end.load::<u32>(0x1_fffc)), (0x1234_fffc, 0x55));
}

pub(super) fn the_base_is_added_to_offsets(engine: &Engine) {
    let end = accessing(engine, descriptor::segment(DATA as u32, 0xffff, 0x4093), 0x20, true);
    assert_eq!(end.load::<u32>(DATA + 0x20), u32::from(selector::FREE));
    // Sums wrap around at 4 GiB.
    let end = accessing(engine, descriptor::segment(0xffff_f000, 0xf_ffff, 0xc093), 0x1000 + DATA as u32, true);
    assert_eq!(end.load::<u32>(DATA), u32::from(selector::FREE));
}

pub(super) fn only_fs_and_gs_have_bases_in_64_bit_mode(engine: &Engine) {
    let machine = Machine::long(engine).with(|state| {
        state.segments.ds.base = 0x1000;
        state.segments.fs.base = 0x100;
        state.segments.gs.base = 0x200;
    });
    for offset in [0, 0x100, 0x200] {
        machine.put(DATA + offset, offset as u32 + 1);
    }
    let end = machine
        .reg(gpr::RBX, DATA)
        .code(|a| {
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(ecx, dword_ptr(rbx).fs())?;
            a.mov(edx, dword_ptr(rbx).gs())
        })
        .run();
    end.expect_end();
    assert_eq!([gpr::RAX, gpr::RCX, gpr::RDX].map(|n| end.reg(n)), [1, 0x101, 0x201]);
}

pub(super) fn lgdt_and_sgdt_move_the_tables_register(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        let long = machine.bits == 64;
        let machine = machine.reg(gpr::RBX, DATA).code(|a| {
            if long {
                a.lgdt(qword_ptr(rbx))?;
                a.sgdt(qword_ptr(rbx + 0x10))
            } else {
                a.lgdt(dword_ptr(ebx))?;
                a.sgdt(dword_ptr(ebx + 0x10))
            }
        });
        machine.put(DATA, 0x1ff_u16);
        machine.put(DATA + 2, GDT);
        let end = machine.run();
        end.expect_end();
        assert_eq!(end.state.gdtr, Table { base: GDT, limit: 0x1ff });
        assert_eq!((end.load::<u16>(DATA + 0x10), end.load::<u32>(DATA + 0x12)), (0x1ff, GDT as u32));
    }
}

pub(super) fn lldt_loads_a_local_table(engine: &Engine) {
    let machine = Machine::protected(engine);
    machine.put(FREE, descriptor::segment(DATA as u32, 0xff, kind::LDT.into()));
    machine.put(DATA + 8, descriptor::segment(0x4_0000, 0xff, 0x4093));
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.lldt(ax)?;
            a.mov(eax, 0xc)?;
            a.mov(es, eax)?;
            a.sldt(ecx)
        })
        .run();
    end.expect_end();
    assert_eq!(end.state.segments.es.base, 0x4_0000);
    assert_eq!(end.reg(gpr::RCX), u64::from(selector::FREE));
}

pub(super) fn ltr_takes_an_available_task_and_marks_it_busy(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        machine.put(FREE, descriptor::segment(DATA as u32, 0x67, kind::TSS.into()));
        let end = machine
            .code(|a| {
                a.mov(eax, u32::from(selector::FREE))?;
                a.ltr(ax)?;
                a.str(ecx)
            })
            .run();
        end.expect_end();
        assert_eq!(end.load::<u8>(FREE + 5), kind::TSS_BUSY);
        let task = end.state.segments.tr;
        assert_eq!((task.selector, task.base, task.kind()), (selector::FREE, DATA, kind::TSS_BUSY & 0xf));
        assert_eq!(end.reg(gpr::RCX), u64::from(selector::FREE));
    }
    // A busy one is refused.
    let machine = Machine::protected(engine);
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::TSS))?;
            a.ltr(ax)
        })
        .run();
    end.expect_fault(13, Some(selector::TSS.into()), CODE + 5);
}

pub(super) fn system_descriptors_of_long_mode_have_64_bit_bases(engine: &Engine) {
    let machine = Machine::long(engine);
    machine.put(FREE, descriptor::segment(0x1234_5678, 0x67, kind::TSS.into()));
    machine.put(FREE + 8, 0xffff_8000_u64);
    let end = machine
        .code(|a| {
            a.mov(eax, u32::from(selector::FREE))?;
            a.ltr(ax)
        })
        .run();
    end.expect_end();
    assert_eq!(end.state.segments.tr.base, 0xffff_8000_1234_5678);
}

pub(super) fn lar_lsl_verr_and_verw_look_without_faulting(engine: &Engine) {
    let machine = Machine::protected(engine).user();
    machine.put(FREE, descriptor::segment(0, 0x12, 0xc0f1));
    let end = machine
        .code(|a| {
            a.mov(ebx, u32::from(selector::FREE))?;
            a.lar(eax, ebx)?;
            a.lsl(ecx, ebx)?;
            a.verw(bx)?;
            a.setz(dl)?;
            a.verr(bx)?;
            a.setz(dh)?;
            // The kernel's: out of sight.
            a.mov(ebx, u32::from(selector::DATA))?;
            a.mov(esi, 77)?;
            a.lar(esi, ebx)
        })
        .run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RAX), end.reg(gpr::RCX)), (0xc0_f100, 0x12fff));
    assert_eq!(end.reg(gpr::RDX) & 0xffff, 0x100, "it can be read, not written");
    assert_eq!((end.reg(gpr::RSI), end.frame().rflags & rflags::ZF), (77, 0));
}

pub(super) fn real_mode_loads_give_the_selector_times_16(engine: &Engine) {
    let end = Machine::real(engine)
        .code(|a| {
            a.mov(ax, 0x1234)?;
            a.mov(es, ax)?;
            a.mov(byte_ptr(0x10).es(), 0x77)
        })
        .run();
    end.expect_end();
    assert_eq!((end.state.segments.es.base, end.load::<u8>(0x12350)), (0x12340, 0x77));
    // The address goes on past 1 MiB: the A20 line is open.
    let end = Machine::real(engine)
        .code(|a| {
            a.mov(ax, 0xffff)?;
            a.mov(es, ax)?;
            a.mov(byte_ptr(0x20).es(), 0x77)
        })
        .run();
    assert_eq!(end.load::<u8>(0x10_0010), 0x77);
}

pub(super) fn real_mode_keeps_a_limit_of_64_kib(engine: &Engine) {
    // Through the stack segment a stack fault, else a general-protection fault; with vectors of their own.
    let end = Machine::real(engine).reg(gpr::RBX, 0x1_0000).code(|a| a.mov(al, byte_ptr(ebx))).run();
    assert_eq!(end.vector(), Some(13));
    let end = Machine::real(engine).reg(gpr::RBP, 0x1_0000).code(|a| a.mov(al, byte_ptr(ebp))).run();
    assert_eq!(end.vector(), Some(12));
    let end = Machine::real(engine).reg(gpr::RSP, 1).code(|a| a.push(ax)).run();
    assert_eq!(end.exit, crate::Exit::Shutdown, "no stack for the stack fault's frame");
    let end = Machine::real(engine).reg(gpr::RSP, STACK).reg(gpr::RBX, 0xffff).code(|a| a.mov(word_ptr(bx), ax)).run();
    assert_eq!(end.vector(), Some(13));
}
