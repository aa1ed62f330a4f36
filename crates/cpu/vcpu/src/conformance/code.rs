//! Code that changes while it runs: whoever changes it, an engine must not go on with what it decoded before
//! (AMD APM volume 2, section 7.6.1).

use iced_x86::code_asm::*;
use posada_memory::vm_memory::{Bytes, GuestAddress};

use super::Engine;
use super::board::Access;
use super::machine::{CODE, DATA, FREE, Machine, USER_CODE};
use super::tables::pte;
use crate::x86::gpr;

/// `mov eax, imm32`: the immediate is what changes.
const MOV_EAX: u8 = 0xb8;
/// `ret`.
const RET: u8 = 0xc3;

pub(super) fn a_store_into_the_next_instruction_counts(engine: &Engine) {
    for machine in [Machine::protected(engine), Machine::long(engine)] {
        // `mov dword [rbx], 7` changes the immediate of `mov eax, 1` right behind it.
        let code = [0xc7, 0x03, 7, 0, 0, 0, MOV_EAX, 1, 0, 0, 0, 0xf4];
        let end = machine.reg(gpr::RBX, CODE + 7).bytes_at(CODE, &code).run();
        assert_eq!((end.reg(gpr::RAX), end.state.rip), (7, CODE + 12));
    }
}

pub(super) fn a_store_into_an_instruction_that_has_run_counts(engine: &Engine) {
    // A loop whose first instruction is changed by its second.
    let end = Machine::long(engine)
        .reg(gpr::RCX, 5)
        .reg(gpr::RBX, CODE + 1)
        .reg(gpr::RDX, 0)
        .code(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            a.mov(eax, 1)?;
            a.add(edx, eax)?;
            a.inc(dword_ptr(rbx))?;
            a.dec(ecx)?;
            a.jnz(top)
        })
        .run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RDX), 1 + 2 + 3 + 4 + 5);
}

/// Calls the function at `at` twice; `between` changes it. What it returned is in `esi` and `edi`.
fn called_twice(
    machine: Machine<'_>,
    at: u64,
    between: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> super::machine::End {
    let end = machine
        .code(|a| {
            a.mov(rbp, at)?;
            a.call(rbp)?;
            a.mov(esi, eax)?;
            between(a)?;
            a.call(rbp)?;
            a.mov(edi, eax)
        })
        .run();
    end.expect_end();
    end
}

/// `mov eax, 1; ret`.
const FUNCTION: [u8; 6] = [MOV_EAX, 1, 0, 0, 0, RET];

pub(super) fn a_store_into_another_page_of_code_counts(engine: &Engine) {
    let machine = Machine::long(engine).bytes_at(USER_CODE, &FUNCTION);
    let end = called_twice(machine, USER_CODE, |a| a.mov(dword_ptr(USER_CODE + 1), 2));
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn a_store_through_another_mapping_of_the_page_counts(engine: &Engine) {
    let mut machine = Machine::long(engine).bytes_at(USER_CODE, &FUNCTION);
    machine.map(FREE, USER_CODE, pte::P | pte::RW);
    let end = called_twice(machine, USER_CODE, |a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(dword_ptr(rbx + 1), 2)
    });
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn every_kind_of_store_counts(engine: &Engine) {
    type Store = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let stores: [(&str, Store); 8] = [
        ("a byte", |a| a.inc(byte_ptr(rbx))),
        ("locked", |a| a.lock().inc(dword_ptr(rbx))),
        ("xchg", |a| a.xchg(dword_ptr(rbx), ecx)),
        ("cmpxchg", |a| {
            a.mov(eax, 1)?;
            a.lock().cmpxchg(dword_ptr(rbx), ecx)
        }),
        ("stosd", |a| {
            a.mov(rdi, rbx)?;
            a.mov(eax, ecx)?;
            a.stosd()
        }),
        ("push", |a| {
            a.mov(r8, rsp)?;
            a.lea(rsp, qword_ptr(rbx + 8))?;
            // The byte behind the immediate is `ret`.
            a.mov(rax, 0x9090_90c3_0000_0002_u64)?;
            a.push(rax)?;
            a.mov(rsp, r8)
        }),
        ("movd", |a| {
            a.movd(xmm0, ecx)?;
            a.movss(dword_ptr(rbx), xmm0)
        }),
        ("fist", |a| {
            a.push(rcx)?;
            a.fninit()?;
            a.fild(dword_ptr(rsp))?;
            a.pop(rcx)?;
            a.fistp(dword_ptr(rbx))
        }),
    ];
    for (name, store) in stores {
        let machine = Machine::long(engine).bytes_at(USER_CODE, &FUNCTION);
        let machine = machine.with(|state| state.cr4 |= crate::x86::cr4::OSFXSR);
        let machine = machine.reg(gpr::RBX, USER_CODE + 1).reg(gpr::RCX, 2);
        let end = called_twice(machine, USER_CODE, store);
        assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2), "{name}");
    }
}

pub(super) fn a_store_by_a_device_counts(engine: &Engine) {
    let machine = Machine::long(engine).bytes_at(USER_CODE, &FUNCTION);
    let ram = machine.ram.clone();
    machine.bus.react(move |access| {
        if matches!(access, Access::PortWrite(..)) {
            ram.view().write_obj(2_u32, GuestAddress(USER_CODE + 1)).expect("inside RAM");
        }
    });
    let end = called_twice(machine, USER_CODE, |a| a.out(0x80, al));
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn code_across_two_pages_may_change_on_either(engine: &Engine) {
    for changed in [0xffe, 0x1001] {
        // The immediate's bytes are two on the first page, two on the second.
        let at = USER_CODE + 0xffd;
        let machine = Machine::long(engine).bytes_at(at, &FUNCTION);
        let end = called_twice(machine, at, |a| a.inc(byte_ptr(USER_CODE + changed)));
        let expected = 1 + (1 << ((changed - 0xffe) * 8));
        assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, expected));
    }
}

pub(super) fn code_across_two_pages_follows_the_mapping_of_the_second(engine: &Engine) {
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    machine.map(FREE + 0x1000, DATA + 0x1000, pte::P | pte::RW);
    let entry = machine.entry(FREE + 0x1000, 0);
    let machine = machine
        .bytes_at(DATA + 0xffd, &FUNCTION)
        // Another second page: the upper half of the immediate is 5.
        .bytes_at(DATA + 0x3000, &[5, 0, RET]);
    let end = called_twice(machine, FREE + 0xffd, |a| {
        a.mov(dword_ptr(entry), (DATA + 0x3000) as u32 | 3)?;
        a.mov(ebx, (FREE + 0x1000) as u32)?;
        a.invlpg(byte_ptr(rbx))
    });
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 1 | 5 << 16));
}

pub(super) fn a_page_mapped_elsewhere_brings_other_code(engine: &Engine) {
    let mut machine = Machine::long(engine).bytes_at(DATA, &FUNCTION);
    let machine_two = [MOV_EAX, 2, 0, 0, 0, RET];
    machine = machine.bytes_at(DATA + 0x1000, &machine_two);
    machine.map(FREE, DATA, pte::P | pte::RW);
    let entry = machine.entry(FREE, 0);
    let end = called_twice(machine, FREE, |a| {
        a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 3)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    });
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn the_same_bytes_are_other_code_in_another_mode(engine: &Engine) {
    // `0x48 0xff 0xc0`: `inc rax` in 64-bit mode; `dec eax; inc eax` in 32-bit code. Then back by `retf`.
    let bytes = [0x48, 0xff, 0xc0, 0xcb];
    let machine = Machine::long(engine).bytes_at(USER_CODE, &bytes);
    let code32 = super::machine::selector::CODE32;
    let code64 = super::machine::selector::CODE64;
    machine.put(DATA, USER_CODE as u32);
    machine.put(DATA + 4, code64);
    machine.put(DATA + 8, USER_CODE as u32);
    machine.put(DATA + 12, code32);
    let end = machine
        .reg(gpr::RBX, DATA)
        .reg(gpr::RAX, 5)
        // `call far [rbx]`, `call far [rbx + 8]`, and again.
        .bytes_at(CODE, &[0xff, 0x1b, 0xff, 0x5b, 8, 0xff, 0x1b, 0xff, 0x5b, 8, 0xf4])
        .run();
    assert_eq!((end.state.rip, end.reg(gpr::RAX)), (CODE + 11, 7));
}
