//! From one mode to another, and the control registers that decide it (AMD APM volume 2, chapters 3 and 14).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, GDT, Machine, USER_CODE, selector};
use super::tables::{Paging, pte};
use crate::x86::{Segment, Table, cr0, cr4, efer, gpr, rflags};

const EFER: u32 = 0xc000_0080;

pub(super) fn real_mode_enters_protected_mode_and_returns(engine: &Engine) {
    let machine = Machine::protected(engine);
    let mut real = Machine::real(engine);
    real.state.gdtr = machine.state.gdtr;
    let mut table = [0; 0x80];
    machine.ram.read(posada_memory::Gpa(GDT), &mut table).expect("inside RAM");
    let end = real
        .bytes_at(GDT, &table)
        .code(|a| {
            a.mov(eax, cr0)?;
            a.or(al, cr0::PE as i32)?;
            a.mov(cr0, eax)?;
            // `jmp CODE32:USER_CODE`, a 32-bit offset.
            a.db(&[0x66, 0xea, 0x00, 0xa0, 0x00, 0x00, selector::CODE32 as u8, 0x00])
        })
        .code_at(USER_CODE, 32, |a| {
            a.mov(ecx, u32::from(selector::DATA))?;
            a.mov(ds, ecx)?;
            a.mov(ebx, 0x10_0000)?;
            a.mov(dword_ptr(ebx), 0x1234_5678)?;
            // Back through 16-bit segments, which real mode needs.
            a.mov(ecx, u32::from(selector::DATA16))?;
            a.mov(ds, ecx)?;
            a.db(&[0xea, 0x00, 0xb0, 0x00, 0x00, selector::CODE16 as u8, 0x00])
        })
        .code_at(USER_CODE + 0x1000, 16, |a| {
            a.mov(eax, cr0)?;
            a.and(al, !1)?;
            a.mov(cr0, eax)?;
            a.db(&[0xea, 0x00, 0xc0, 0x00, 0x00])
        })
        .code_at(USER_CODE + 0x2000, 16, |a| {
            a.mov(ax, 0x100)?;
            a.mov(ds, ax)?;
            a.mov(word_ptr(0x5000), ax)
        })
        .run();
    end.expect_end();
    assert_eq!(end.load::<u32>(0x10_0000), 0x1234_5678);
    assert_eq!(end.load::<u16>(0x6000), 0x100, "segments are numbers again");
    assert_eq!((end.state.cr0 & 1, end.state.segments.cs.selector), (0, 0));
}

pub(super) fn limits_outlive_protected_mode(engine: &Engine) {
    // "Unreal mode": a flat data segment, loaded in protected mode, stays flat until loaded again.
    let machine = Machine::protected(engine);
    let mut real = Machine::real(engine);
    real.state.gdtr = machine.state.gdtr;
    let mut table = [0; 0x80];
    machine.ram.read(posada_memory::Gpa(GDT), &mut table).expect("inside RAM");
    let end = real
        .bytes_at(GDT, &table)
        .code(|a| {
            a.mov(eax, cr0)?;
            a.or(al, 1)?;
            a.mov(cr0, eax)?;
            a.mov(bx, u32::from(selector::DATA))?;
            a.mov(es, bx)?;
            a.and(al, !1)?;
            a.mov(cr0, eax)?;
            a.mov(ebx, 0x10_0000)?;
            a.mov(dword_ptr(ebx).es(), eax)?;
            a.mov(cx, 0x10)?;
            a.mov(es, cx)?;
            a.mov(dword_ptr(ebx + 4).es(), eax)
        })
        .run();
    end.expect_end();
    assert_ne!(end.load::<u32>(0x10_0000), 0);
    assert_eq!(end.state.segments.es.limit, u32::MAX);
}

pub(super) fn protected_mode_enters_long_mode(engine: &Engine) {
    // The textbook way: PAE, page tables, EFER.LME, CR0.PG, a far jump to 64-bit code.
    let mut machine = Machine::long(engine);
    machine.bits = 32;
    let state = &mut machine.state;
    state.cr0 &= !(cr0::PG | cr0::WP);
    state.cr4 = 0;
    state.msrs.efer = 0;
    let root = state.cr3;
    state.cr3 = 0;
    state.segments.cs = Segment::flat_code32(selector::CODE32);
    let end = machine
        .code(|a| {
            a.mov(eax, cr4)?;
            a.or(eax, cr4::PAE as i32)?;
            a.mov(cr4, eax)?;
            a.mov(eax, root as u32)?;
            a.mov(cr3, eax)?;
            a.mov(ecx, EFER)?;
            a.rdmsr()?;
            a.or(eax, efer::LME as i32)?;
            a.wrmsr()?;
            a.mov(eax, cr0)?;
            a.or(eax, cr0::PG as u32 as i32)?;
            a.mov(cr0, eax)?;
            // Still 32-bit code, but long mode is active.
            a.mov(ecx, EFER)?;
            a.rdmsr()?;
            a.mov(ebx, eax)?;
            a.db(&[0xea, 0x00, 0xa0, 0x00, 0x00, selector::CODE64 as u8, 0x00])
        })
        .code_at(USER_CODE, 64, |a| {
            a.mov(rax, 0x1234_5678_9abc_def0u64)?;
            a.mov(r15, rax)
        })
        .run();
    end.expect_end();
    assert_eq!(end.reg(15), 0x1234_5678_9abc_def0);
    assert_eq!(end.reg(gpr::RBX) & (efer::LME | efer::LMA), efer::LME | efer::LMA);
}

pub(super) fn long_mode_is_left_through_compatibility_mode(engine: &Engine) {
    let end = Machine::compatibility(engine)
        .code(|a| {
            a.mov(eax, cr0)?;
            a.and(eax, !(cr0::PG as u32) as i32)?;
            a.mov(cr0, eax)?;
            a.mov(ecx, EFER)?;
            a.rdmsr()?;
            a.and(eax, !(efer::LME as i32))?;
            a.wrmsr()?;
            a.mov(eax, cr4)?;
            a.and(eax, !(cr4::PAE as i32))?;
            a.mov(cr4, eax)
        })
        .run();
    end.expect_end();
    assert_eq!(end.state.msrs.efer & (efer::LMA | efer::LME), 0);
    assert_eq!(end.state.cr4 & cr4::PAE, 0);
}

pub(super) fn compatibility_mode_and_64_bit_mode_change_by_far_transfers(engine: &Engine) {
    let end = Machine::long(engine)
        .reg(8, 0x1234_5678_9abc_def0)
        .reg(gpr::RAX, u64::MAX)
        .code(|a| {
            a.push(i32::from(selector::CODE32))?;
            a.push(USER_CODE as i32)?;
            a.db(&[0x48, 0xcb])
        })
        .code_at(USER_CODE, 32, |a| {
            // `inc eax` here, a REX prefix in 64-bit mode.
            a.db(&[0x40])?;
            a.mov(ebx, eax)?;
            a.db(&[0xea, 0x00, 0xb0, 0x00, 0x00, selector::CODE64 as u8, 0x00])
        })
        .code_at(USER_CODE + 0x1000, 64, |a| a.mov(r9, r8))
        .run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RBX), 0);
    assert_eq!(end.reg(9), 0x1234_5678_9abc_def0, "registers that 32-bit code cannot name are kept");
}

pub(super) fn compatibility_mode_cuts_addresses_to_32_bits(engine: &Engine) {
    let machine = Machine::compatibility(engine).with(|state| state.segments.ds.base = 0xffff_f000);
    let machine = machine.reg(gpr::RBX, 0x1000 + DATA).code(|a| a.mov(dword_ptr(ebx), 7));
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.load::<u32>(DATA), 7);
}

pub(super) fn impossible_values_of_cr0_fault(engine: &Engine) {
    // Paging without protection; not-write-through without cache-disable.
    for (set, clear) in [(cr0::PG, cr0::PE), (cr0::NW, cr0::CD)] {
        let end = Machine::protected(engine)
            .code(|a| {
                a.mov(eax, cr0)?;
                a.or(eax, set as u32 as i32)?;
                a.and(eax, !(clear as u32) as i32)?;
                a.mov(cr0, eax)
            })
            .run();
        assert_eq!((end.frame().vector, end.frame().error), (13, Some(0)));
    }
    let end = Machine::long(engine).reg(gpr::RAX, 1 << 32 | 0x8000_0031).code(|a| a.mov(cr0, rax)).run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn long_mode_needs_pae(engine: &Engine) {
    let machine = Machine::paged(engine, Paging::Pae).with(|state| {
        state.cr0 &= !cr0::PG;
        state.cr4 &= !cr4::PAE;
        state.msrs.efer = efer::LME;
    });
    let end = machine
        .code(|a| {
            a.mov(eax, cr0)?;
            a.or(eax, cr0::PG as u32 as i32)?;
            a.mov(cr0, eax)
        })
        .run();
    assert_eq!((end.frame().vector, end.frame().error), (13, Some(0)));
}

pub(super) fn paging_cannot_be_left_from_64_bit_mode(engine: &Engine) {
    let end = Machine::long(engine).reg(gpr::RAX, cr0::PE | cr0::ET).code(|a| a.mov(cr0, rax)).run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn impossible_values_of_cr4_fault(engine: &Engine) {
    // A bit that does not exist; PAE cleared in long mode; process contexts outside it.
    for value in [1 << 31, 1 << 40 | cr4::PAE, 0] {
        Machine::long(engine).reg(gpr::RAX, value).code(|a| a.mov(cr4, rax)).run().expect_fault(13, Some(0), CODE);
    }
    let end = Machine::paged(engine, Paging::Pae)
        .reg(gpr::RAX, cr4::PAE | cr4::PCIDE)
        .code(|a| a.mov(cr4, eax))
        .run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn reserved_bits_of_cr3_fault_in_long_mode(engine: &Engine) {
    Machine::long(engine).reg(gpr::RAX, 1 << 52).code(|a| a.mov(cr3, rax)).run().expect_fault(13, Some(0), CODE);
}

pub(super) fn efer_keeps_long_mode_while_paging(engine: &Engine) {
    let end = Machine::long(engine)
        .reg(gpr::RCX, EFER.into())
        .reg(gpr::RDX, 0)
        .reg(gpr::RAX, efer::NXE)
        .code(|a| a.wrmsr())
        .run();
    end.expect_fault(13, Some(0), CODE);
    // A bit that does not exist.
    let end = Machine::long(engine)
        .reg(gpr::RCX, EFER.into())
        .reg(gpr::RDX, 1)
        .reg(gpr::RAX, efer::NXE | efer::LME)
        .code(|a| a.wrmsr())
        .run();
    end.expect_fault(13, Some(0), CODE);
}

pub(super) fn control_registers_that_do_not_exist_are_invalid(engine: &Engine) {
    for number in [1, 5, 6, 7] {
        let bytes = [0x0f, 0x20, 0xc0 | number << 3, 0xf4];
        Machine::protected(engine).bytes_at(CODE, &bytes).run().expect_fault(6, None, CODE);
    }
}

pub(super) fn operand_and_address_sizes_follow_the_code_segment(engine: &Engine) {
    // The same bytes: `mov ax, imm16` or `mov eax, imm32`.
    let bytes = [0xb8, 0x34, 0x12, 0x90, 0x90, 0xf4];
    let end = Machine::real(engine).reg(gpr::RAX, 0xffff_ffff).bytes_at(CODE, &bytes).run();
    assert_eq!(end.reg(gpr::RAX), 0xffff_1234);
    let end = Machine::protected(engine).reg(gpr::RAX, 0xffff_ffff).bytes_at(CODE, &bytes).run();
    assert_eq!(end.reg(gpr::RAX), 0x9090_1234);
    let machine = Machine::protected(engine).with(|s| s.segments.cs.attributes &= !Segment::DB);
    let end = machine.reg(gpr::RAX, 0xffff_ffff).bytes_at(CODE, &bytes).run();
    assert_eq!(end.reg(gpr::RAX), 0xffff_1234);
    let end = Machine::compatibility(engine).reg(gpr::RAX, u64::MAX).bytes_at(CODE, &bytes).run();
    assert_eq!(end.reg(gpr::RAX), 0x9090_1234);
}

pub(super) fn enabling_paging_counts_for_the_next_instruction(engine: &Engine) {
    // The page of the code is mapped where it is; the data page is not.
    let mut machine = Machine::paged(engine, Paging::Bits32);
    machine.map(0x4000_0000, DATA, pte::P | pte::RW);
    machine.state.cr0 &= !cr0::PG;
    machine.put(DATA, 0x77_u32);
    let end = machine
        .code(|a| {
            a.mov(ebx, 0x4000_0000)?;
            a.mov(eax, cr0)?;
            a.or(eax, cr0::PG as u32 as i32)?;
            a.mov(cr0, eax)?;
            a.mov(ecx, dword_ptr(ebx))
        })
        .run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RCX), 0x77);
}

pub(super) fn smsw_and_lmsw_reach_the_low_bits_of_cr0(engine: &Engine) {
    let end = Machine::protected(engine)
        .code(|a| {
            a.mov(eax, (cr0::TS | cr0::MP) as u32)?;
            a.lmsw(ax)?;
            a.smsw(ecx)?;
            a.clts()
        })
        .run();
    end.expect_end();
    // Protection cannot be left so.
    let low = cr0::PE | cr0::MP | cr0::TS;
    assert_eq!((end.reg(gpr::RCX) & 0xf, end.state.cr0 & 0xf), (low, low & !cr0::TS));
}

pub(super) fn the_whole_state_survives_a_round_trip(engine: &Engine) {
    // What one run leaves, another engine of the same kind goes on from.
    let mut first = Machine::long(engine).flags(rflags::CF).code(|a| {
        a.mov(eax, 5)?;
        a.hlt()?;
        a.adc(eax, 1)
    });
    first.state.idtr = Table { base: first.state.idtr.base, limit: 0xfff };
    let end = first.run();
    let mut second = Machine::long(engine).code(|a| {
        a.mov(eax, 5)?;
        a.hlt()?;
        a.adc(eax, 1)
    });
    second.state = end.state.clone();
    second.state.activity.running = crate::x86::Running::Running;
    let end = second.run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RAX), 7);
}
