//! Control registers and changes of mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use iced_x86::code_asm::*;
use posada_vcpu::Interrupts;
use posada_vcpu::x86::gpr::{RAX, RBX, RCX};
use posada_vcpu::x86::{Segment, cr0, cr4, efer};

use crate::Model;
use crate::exception::vector;
use crate::testing::{DATA, Guest, Outcome};

/// `mov cr0, eax` in code of any size.
const MOV_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
const MOV_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const MOV_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
const GP: Option<(u8, Option<u32>)> = Some((vector::GP, Some(0)));
/// Page tables of a test's own.
const TABLES: u64 = 0x10_0000;

fn write(guest: Guest, instruction: &[u8], value: u64) -> Outcome {
    guest.reg(RAX, value).bytes(instruction).run()
}

/// Compatibility mode at CPL 0.
fn compatible() -> Guest {
    Guest::long().with(|state| state.segments.cs = Segment::flat_code32(0x10))
}

fn kernel_cr0() -> u64 {
    Guest::long().state.cr0
}

#[test]
fn cr0_refuses_what_makes_no_sense() {
    assert_eq!(write(Guest::real(), MOV_CR0, cr0::PG).fault(), GP, "paging without protection");
    assert_eq!(write(Guest::real(), MOV_CR0, cr0::NW).fault(), GP, "not write-through, but cached");
    assert_eq!(write(Guest::long(), MOV_CR0, kernel_cr0() | 1 << 32).fault(), GP, "the upper half");
    assert_eq!(write(Guest::long(), MOV_CR0, kernel_cr0() | 1 << 28).fault(), None, "other bits are ignored");
}

#[test]
fn cr0_always_says_that_there_is_an_x87() {
    let outcome = write(Guest::protected(), MOV_CR0, cr0::PE);
    assert_eq!(outcome.state.cr0, cr0::PE | cr0::ET);
}

#[test]
fn setting_pe_alone_keeps_the_code_segment_as_it_was() {
    let outcome = Guest::real().reg(RAX, cr0::PE).code(|a| {
        a.mov(cr0, eax)?;
        a.mov(bx, 0x1234)
    });
    let outcome = outcome.run();
    assert_eq!((outcome.fault(), outcome.reg(RBX)), (None, 0x1234));
}

#[test]
fn long_mode_begins_with_paging() {
    let guest = Guest::protected()
        .memory(TABLES, &((TABLES + 0x1000) | 3_u64).to_le_bytes())
        .memory(TABLES + 0x1000, &0x83_u64.to_le_bytes())
        .with(|state| {
            state.cr3 = TABLES;
            state.cr4 = cr4::PAE;
            state.msrs.efer = efer::LME;
        });
    let outcome = write(guest, MOV_CR0, cr0::PG | cr0::PE);
    assert_eq!(outcome.fault(), None);
    assert_eq!(outcome.state.msrs.efer, efer::LME | efer::LMA);
}

#[test]
fn long_mode_needs_pae_and_a_segment_that_is_no_64_bit_one() {
    let enable = |pae: u64, code: Segment| {
        let guest = Guest::protected().with(|state| {
            (state.cr4, state.msrs.efer) = (pae, efer::LME);
            state.segments.cs = code;
        });
        write(guest, MOV_CR0, cr0::PG | cr0::PE).fault()
    };
    assert_eq!(enable(0, Segment::flat_code32(0x10)), GP);
    let mut long = Segment::flat_code32(0x10);
    long.attributes |= Segment::L;
    assert_eq!(enable(cr4::PAE, long), GP);
}

#[test]
fn long_mode_ends_in_compatibility_mode_only() {
    let without = kernel_cr0() & !cr0::PG;
    assert_eq!(write(Guest::long(), MOV_CR0, without).fault(), GP);
    let outcome = write(compatible(), MOV_CR0, without);
    assert_eq!(outcome.fault(), None);
    assert_eq!(outcome.state.msrs.efer & (efer::LME | efer::LMA), efer::LME);
}

#[test]
fn cr4_takes_the_bits_that_the_model_announces() {
    let (all, own) = (Guest::long(), Guest::long().state.cr4);
    assert_eq!(write(all, MOV_CR4, own | cr4::OSXSAVE | cr4::SMAP | cr4::UMIP).fault(), None);
    for bit in [cr4::VME, cr4::PVI, cr4::LA57, cr4::PKE, 1 << 13, 1 << 14, 1 << 23, 1 << 32] {
        assert_eq!(write(Guest::long(), MOV_CR4, own | bit).fault(), GP, "{bit:#x}");
    }
    let mut old = Guest::long();
    old.model = Model::named("x86-64-v1").expect("a listed model");
    assert_eq!(write(old, MOV_CR4, own | cr4::OSXSAVE).fault(), GP);
}

#[test]
fn long_mode_keeps_pae() {
    assert_eq!(write(compatible(), MOV_CR4, 0).fault(), GP);
}

#[test]
fn process_contexts_need_long_mode_and_begin_with_number_0() {
    let own = Guest::long().state.cr4;
    assert_eq!(write(Guest::long(), MOV_CR4, own | cr4::PCIDE).fault(), None);
    assert_eq!(write(Guest::protected(), MOV_CR4, cr4::PCIDE).fault(), GP);
    let other = Guest::long().with(|state| state.cr3 |= 8);
    assert_eq!(write(other, MOV_CR4, own | cr4::PCIDE).fault(), GP);
}

#[test]
fn paging_cannot_end_while_there_are_process_contexts() {
    let guest = compatible().with(|state| state.cr4 |= cr4::PCIDE);
    assert_eq!(write(guest, MOV_CR0, kernel_cr0() & !cr0::PG).fault(), GP);
}

#[test]
fn cr3_refuses_addresses_that_memory_does_not_have() {
    let own = Guest::long().state.cr3;
    assert_eq!(write(Guest::long(), MOV_CR3, own | 1 << 40).fault(), GP);
    assert_eq!(write(Guest::long(), MOV_CR3, own | 1 << 63).fault(), GP);
    let outcome = write(Guest::long().with(|state| state.cr4 |= cr4::PCIDE), MOV_CR3, own | 1 << 63 | 5);
    assert_eq!((outcome.fault(), outcome.state.cr3), (None, own | 5));
}

#[test]
fn the_pointers_of_pae_paging_are_checked_when_they_are_loaded() {
    let load = |entry: u64| {
        let guest = Guest::protected()
            .memory(TABLES, &((TABLES + 0x1000) | 1).to_le_bytes())
            .memory(TABLES + 0x1000, &0x83_u64.to_le_bytes())
            .memory(TABLES + 0x2000, &((TABLES + 0x1000) | 1).to_le_bytes())
            .memory(TABLES + 0x2018, &entry.to_le_bytes())
            .with(|state| {
                (state.cr0, state.cr3, state.cr4) = (state.cr0 | cr0::PG, TABLES, cr4::PAE);
            });
        write(guest, MOV_CR3, TABLES + 0x2000).fault()
    };
    assert_eq!(load(0), None);
    assert_eq!(load(1), None);
    assert_eq!(load(0x1e6), None, "not present");
    for bit in [1 << 1, 1 << 2, 1 << 5, 1 << 8, 1 << 40, 1 << 52, 1 << 63_u64] {
        assert_eq!(load(1 | bit), GP, "{bit:#x}");
    }
}

#[test]
fn control_registers_are_the_kernels() {
    for guest in [Guest::user(), Guest::user32(), Guest::v8086()] {
        assert_eq!(guest.bytes(&[0x0f, 0x20, 0xc0]).run().fault(), GP);
    }
    assert_eq!(Guest::user().code(|a| a.clts()).run().fault(), GP);
}

#[test]
fn other_control_registers_do_not_exist() {
    for number in [1, 5, 6, 7] {
        let outcome = Guest::long().bytes(&[0x0f, 0x20, 0xc0 | number << 3]).run();
        assert_eq!(outcome.fault(), Some((vector::UD, None)), "cr{number}");
    }
}

#[test]
fn reads_of_control_registers_are_as_wide_as_the_mode() {
    let address = 0x1234_5678_9abc_def0;
    let outcome = Guest::long().with(|state| state.cr2 = address).code(|a| a.mov(rbx, cr2)).run();
    assert_eq!(outcome.reg(RBX), address);
    let outcome = compatible().with(|state| state.cr2 = address).bytes(&[0x0f, 0x20, 0xd3]).run();
    assert_eq!(outcome.reg(RBX), 0x9abc_def0);
}

#[test]
fn clts_lets_sse_be_used_again() {
    let guest = Guest::long().with(|state| {
        state.cr0 |= cr0::TS;
        state.cr4 |= cr4::OSFXSR;
    });
    let outcome = guest.code(|a| {
        a.clts()?;
        a.pxor(xmm0, xmm0)
    });
    let outcome = outcome.run();
    assert_eq!((outcome.fault(), outcome.state.cr0 & cr0::TS), (None, 0));
}

#[derive(Default)]
struct Priority(AtomicU8);

impl Interrupts for Priority {
    fn pending(&self) -> bool {
        false
    }

    fn acknowledge(&self) -> Option<u8> {
        None
    }

    fn cr8(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    fn set_cr8(&self, priority: u8) {
        self.0.store(priority, Ordering::Relaxed);
    }
}

#[test]
fn cr8_is_the_local_apics() {
    let priority = Arc::new(Priority::default());
    let guest = Guest::long().interrupts(priority.clone()).reg(RAX, 9).code(|a| {
        a.mov(cr8, rax)?;
        a.mov(rcx, cr8)
    });
    let outcome = guest.run();
    assert_eq!((outcome.fault(), outcome.reg(RCX), priority.cr8()), (None, 9, 9));
    assert_eq!(Guest::long().reg(RAX, 16).code(|a| a.mov(cr8, rax)).run().fault(), GP);
}

#[test]
fn cr8_can_be_reached_by_a_lock_prefix_outside_64_bit_mode() {
    let priority = Arc::new(Priority::default());
    let guest = Guest::protected().interrupts(priority.clone()).reg(RAX, 3);
    assert_eq!(guest.bytes(&[0xf0, 0x0f, 0x22, 0xc0]).run().fault(), None);
    assert_eq!(priority.cr8(), 3);
}

#[test]
fn write_protection_counts_from_the_next_instruction_on() {
    let guest = Guest::long()
        .memory(0x3000, &0x81_u64.to_le_bytes())
        .with(|state| state.cr0 &= !cr0::WP)
        .reg(RAX, kernel_cr0())
        .reg(RBX, DATA)
        .code(|a| {
            a.mov(dword_ptr(rbx), 1)?;
            a.mov(cr0, rax)?;
            a.mov(dword_ptr(rbx), 2)
        });
    let outcome = guest.run();
    assert_eq!(outcome.fault(), Some((vector::PF, Some(3))));
    assert_eq!(outcome.load::<u32>(DATA), 1);
}
