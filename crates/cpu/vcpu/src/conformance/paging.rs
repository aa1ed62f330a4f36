//! Page tables, rights, and the translation look-aside buffer (AMD APM volume 2, chapter 5).

use iced_x86::code_asm::*;

use super::Engine;
use super::machine::{CODE, DATA, FREE, Machine, USER_CODE, selector};
use super::tables::{Paging, pte};
use crate::x86::{cr0, cr4, efer, gpr, rflags};

/// Bits of a page fault's error code.
mod error {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 2;
    pub(super) const U: u32 = 4;
    pub(super) const RSVD: u32 = 8;
    pub(super) const I: u32 = 16;
}

const VALUE: u32 = 0x1234_5678;

/// Stores [`VALUE`] at `FREE`, reads it back into `ecx`.
fn store_and_load(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(ebx, FREE as u32)?;
    a.mov(dword_ptr(ebx), VALUE)?;
    a.mov(ecx, dword_ptr(ebx))
}

pub(super) fn pages_of_4_kib_are_translated(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).code(store_and_load);
        machine.map(FREE, DATA, pte::P | pte::RW);
        let end = machine.run();
        end.expect_end();
        assert_eq!((end.load::<u32>(DATA), end.reg(gpr::RCX)), (VALUE, u64::from(VALUE)), "{paging:?}");
    }
}

pub(super) fn large_pages_are_translated(engine: &Engine) {
    for paging in Paging::ALL {
        let size = paging.page_size(1);
        let mut machine = Machine::paged(engine, paging).code(|a| {
            a.mov(ebx, (FREE + size - 4) as u32)?;
            a.mov(dword_ptr(ebx), VALUE)
        });
        machine.map_level(FREE, size, 1, pte::P | pte::RW | pte::PS);
        let end = machine.run();
        end.expect_end();
        assert_eq!(end.load::<u32>(2 * size - 4), VALUE, "{paging:?}");
    }
}

pub(super) fn pages_of_1_gib_are_translated(engine: &Engine) {
    let mut machine = Machine::long(engine).code(|a| {
        a.mov(rbx, (FREE * 2 + DATA) | 1)?;
        a.mov(dword_ptr(rbx), VALUE)
    });
    machine.map_level(FREE * 2, 0, 2, pte::P | pte::RW | pte::PS);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.load::<u32>(DATA | 1), VALUE);
}

pub(super) fn page_faults_tell_what_was_tried_and_where(engine: &Engine) {
    for paging in Paging::ALL {
        for user in [false, true] {
            for write in [false, true] {
                for present in [false, true] {
                    let mut machine = Machine::paged(engine, paging).code(|a| {
                        a.mov(ebx, (FREE + 0x123) as u32)?;
                        if write { a.mov(byte_ptr(ebx), 1) } else { a.mov(al, byte_ptr(ebx)) }
                    });
                    if user {
                        machine = machine.user();
                    }
                    // Present, but the kernel's: no fault for it.
                    machine.map(FREE, DATA, if present { pte::P | pte::RW } else { 0 });
                    let end = machine.run();
                    if present && !user {
                        end.expect_end();
                        continue;
                    }
                    let bits = [(present, error::P), (write, error::W), (user, error::U)];
                    let expected = bits.iter().filter(|(is, _)| *is).fold(0, |all, (_, bit)| all | bit);
                    end.expect_page_fault(expected, FREE + 0x123);
                    assert_eq!(end.frame().rip, CODE + 5);
                }
            }
        }
    }
}

pub(super) fn read_only_pages_hold_for_the_kernel_if_write_protect_is_set(engine: &Engine) {
    for paging in Paging::ALL {
        for protect in [false, true] {
            let mut machine = Machine::paged(engine, paging).code(store_and_load).with(|state| {
                if !protect {
                    state.cr0 &= !cr0::WP;
                }
            });
            machine.map(FREE, DATA, pte::P);
            let end = machine.run();
            if protect {
                end.expect_page_fault(error::P | error::W, FREE);
                assert_eq!(end.load::<u32>(DATA), 0);
            } else {
                end.expect_end();
                assert_eq!(end.load::<u32>(DATA), VALUE);
            }
        }
    }
}

pub(super) fn read_only_pages_always_hold_for_programs(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).user().code(store_and_load);
        machine.state.cr0 &= !cr0::WP;
        machine.map(FREE, DATA, pte::P | pte::US);
        machine.run().expect_page_fault(error::P | error::W | error::U, FREE);
    }
}

pub(super) fn rights_are_those_that_every_level_grants(engine: &Engine) {
    for paging in Paging::ALL {
        for (taken, expected) in [(pte::RW, error::P | error::W | error::U), (pte::US, error::P | error::W | error::U)]
        {
            let mut machine = Machine::paged(engine, paging).user().code(store_and_load);
            machine.map(FREE, DATA, pte::ALL);
            let upper = machine.entry(FREE, 1);
            let entry: u32 = machine.ram.load(upper as usize);
            machine.put(upper, entry & !(taken as u32));
            machine.run().expect_page_fault(expected, FREE);
        }
    }
}

pub(super) fn no_execute_pages_fault_when_fetched_from(engine: &Engine) {
    for paging in [Paging::Pae, Paging::Long] {
        for user in [false, true] {
            let mut machine = Machine::paged(engine, paging).code(|a| {
                a.mov(ebx, FREE as u32)?;
                a.mov(eax, dword_ptr(ebx))?;
                if paging == Paging::Long { a.jmp(rbx) } else { a.jmp(ebx) }
            });
            if user {
                machine = machine.user();
            }
            machine.map(FREE, DATA, pte::ALL | pte::NX);
            let end = machine.run();
            end.expect_page_fault(error::P | error::I | if user { error::U } else { 0 }, FREE);
            assert_eq!(end.frame().rip, FREE);
        }
    }
}

pub(super) fn the_no_execute_bit_is_reserved_unless_enabled(engine: &Engine) {
    for paging in [Paging::Pae, Paging::Long] {
        let mut machine = Machine::paged(engine, paging).code(store_and_load);
        machine.state.msrs.efer &= !efer::NXE;
        machine.map(FREE, DATA, pte::ALL | pte::NX);
        machine.run().expect_page_fault(error::P | error::W | error::RSVD, FREE);
    }
}

pub(super) fn reserved_bits_fault(engine: &Engine) {
    // Above the physical address size; the page-size bit of the top level; address bits below a large page's.
    let mut machine = Machine::long(engine).code(store_and_load);
    machine.map(FREE, DATA | 1 << 51, pte::ALL);
    machine.run().expect_page_fault(error::P | error::W | error::RSVD, FREE);

    let mut machine = Machine::long(engine).code(store_and_load);
    machine.map_level(FREE, 0x4000, 1, pte::ALL | pte::PS);
    machine.run().expect_page_fault(error::P | error::W | error::RSVD, FREE);

    let mut machine = Machine::long(engine).code(|a| {
        a.mov(rbx, 1u64 << 40)?;
        a.mov(eax, dword_ptr(rbx))
    });
    machine.map_level(1 << 40, 0, 3, pte::ALL | pte::PS);
    machine.run().expect_page_fault(error::P | error::RSVD, 1 << 40);
}

pub(super) fn smep_keeps_the_kernel_from_running_the_users_pages(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).code(|a| {
            a.mov(ebx, FREE as u32)?;
            if paging == Paging::Long { a.jmp(rbx) } else { a.jmp(ebx) }
        });
        machine.state.cr4 |= cr4::SMEP;
        // The kernel's own code must be the kernel's.
        let own = machine.entry(CODE, 1);
        let entry: u32 = machine.ram.load(own as usize);
        machine.put(own, entry & !(pte::US as u32));
        machine.map(FREE, DATA, pte::ALL);
        let end = machine.run();
        end.expect_page_fault(error::P | error::I, FREE);
    }
}

pub(super) fn smap_keeps_the_kernel_from_the_users_data(engine: &Engine) {
    for paging in Paging::ALL {
        for write in [false, true] {
            for allowed in [false, true] {
                let mut machine = Machine::paged(engine, paging).code(|a| {
                    a.mov(ebx, FREE as u32)?;
                    if write { a.mov(dword_ptr(ebx), VALUE) } else { a.mov(eax, dword_ptr(ebx)) }
                });
                machine.state.cr4 |= cr4::SMAP;
                if allowed {
                    machine = machine.flags(rflags::AC);
                }
                let own = machine.entry(CODE, 1);
                let entry: u32 = machine.ram.load(own as usize);
                machine.put(own, entry & !(pte::US as u32));
                machine.map(FREE, DATA, pte::ALL);
                let end = machine.run();
                if allowed {
                    end.expect_end();
                } else {
                    end.expect_page_fault(error::P | if write { error::W } else { 0 }, FREE);
                }
            }
        }
    }
}

pub(super) fn stac_and_clac_open_and_close_the_users_data(engine: &Engine) {
    let mut machine = Machine::long(engine).code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.stac()?;
        a.mov(eax, dword_ptr(rbx))?;
        a.clac()?;
        a.mov(ecx, dword_ptr(rbx))
    });
    machine.state.cr4 |= cr4::SMAP;
    let own = machine.entry(CODE, 1);
    machine.put(own, 0x83_u8);
    machine.map(FREE, DATA, pte::ALL);
    machine.put(DATA, VALUE);
    let end = machine.run();
    end.expect_page_fault(error::P, FREE);
    assert_eq!(end.reg(gpr::RAX), u64::from(VALUE));
}

pub(super) fn a_read_sets_accessed_bits_on_every_level(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).code(|a| {
            a.mov(ebx, FREE as u32)?;
            a.mov(eax, dword_ptr(ebx))
        });
        machine.map(FREE, DATA, pte::P | pte::RW);
        let mut end = machine.run();
        end.expect_end();
        let levels = if paging == Paging::Long { 4 } else { 2 };
        for level in 0..levels {
            assert_eq!(end.entry(FREE, level) & (pte::A | pte::D), pte::A, "{paging:?}, level {level}");
        }
    }
}

pub(super) fn a_write_sets_the_dirty_bit_of_the_last_level(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).code(|a| {
            a.mov(ebx, FREE as u32)?;
            // The translation is known before the write.
            a.mov(eax, dword_ptr(ebx))?;
            a.mov(dword_ptr(ebx), VALUE)
        });
        machine.map(FREE, DATA, pte::P | pte::RW);
        let mut end = machine.run();
        end.expect_end();
        assert_eq!(end.entry(FREE, 0) & (pte::A | pte::D), pte::A | pte::D, "{paging:?}");
        assert_eq!(end.entry(FREE, 1) & pte::D, 0, "{paging:?}");
    }
}

pub(super) fn a_refused_write_leaves_the_dirty_bit_clear(engine: &Engine) {
    for paging in Paging::ALL {
        let mut machine = Machine::paged(engine, paging).code(store_and_load);
        machine.map(FREE, DATA, pte::P);
        let mut end = machine.run();
        end.expect_page_fault(error::P | error::W, FREE);
        assert_eq!(end.entry(FREE, 0) & pte::D, 0, "{paging:?}");
    }
}

/// Reads through `FREE`, lets `change` follow a change of its entry from one page to the next, reads again.
fn remapping(engine: &Engine, paging: Paging, change: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
    let mut machine = Machine::paged(engine, paging);
    machine.map(FREE, DATA, pte::P | pte::RW | pte::A | pte::D);
    let entry = machine.entry(FREE, 0);
    let machine = machine.code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(esi, dword_ptr(ebx))?;
        a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 0x63)?;
        change(a)?;
        a.mov(edi, dword_ptr(ebx))
    });
    machine.put(DATA, 1_u32);
    machine.put(DATA + 0x1000, 2_u32);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2), "{paging:?}");
}

pub(super) fn a_changed_entry_counts_after_invlpg(engine: &Engine) {
    for paging in Paging::ALL {
        remapping(engine, paging, |a| a.invlpg(byte_ptr(ebx)));
    }
}

pub(super) fn a_changed_entry_counts_after_a_load_of_cr3(engine: &Engine) {
    for paging in Paging::ALL {
        remapping(engine, paging, |a| {
            if paging == Paging::Long {
                a.mov(rax, cr3)?;
                a.mov(cr3, rax)
            } else {
                a.mov(eax, cr3)?;
                a.mov(cr3, eax)
            }
        });
    }
}

pub(super) fn a_changed_global_entry_counts_after_a_change_of_pge(engine: &Engine) {
    let mut machine = Machine::long(engine);
    machine.state.cr4 |= cr4::PGE;
    machine.map(FREE, DATA, pte::P | pte::RW | pte::A | pte::D | pte::G);
    let entry = machine.entry(FREE, 0);
    let machine = machine.code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(esi, dword_ptr(rbx))?;
        a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 0x163)?;
        a.mov(rax, cr4)?;
        a.xor(eax, cr4::PGE as u32)?;
        a.mov(cr4, rax)?;
        a.xor(eax, cr4::PGE as u32)?;
        a.mov(cr4, rax)?;
        a.mov(edi, dword_ptr(rbx))
    });
    machine.put(DATA, 1_u32);
    machine.put(DATA + 0x1000, 2_u32);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn a_changed_global_entry_counts_after_invlpg(engine: &Engine) {
    let mut machine = Machine::long(engine);
    machine.state.cr4 |= cr4::PGE;
    machine.map(FREE, DATA, pte::P | pte::RW | pte::A | pte::D | pte::G);
    let entry = machine.entry(FREE, 0);
    let machine = machine.code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(esi, dword_ptr(rbx))?;
        a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 0x163)?;
        a.invlpg(byte_ptr(rbx))?;
        a.mov(edi, dword_ptr(rbx))
    });
    machine.put(DATA, 1_u32);
    machine.put(DATA + 0x1000, 2_u32);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn invlpg_of_a_large_page_drops_all_of_it(engine: &Engine) {
    let mut machine = Machine::long(engine);
    let size = Paging::Long.page_size(1);
    machine.map_level(FREE, size, 1, pte::P | pte::RW | pte::PS | pte::A | pte::D);
    let entry = machine.entry(FREE, 1);
    let machine = machine.code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(esi, dword_ptr(rbx + 0x5000))?;
        a.mov(dword_ptr(entry), (2 * size) as u32 | 0xe3)?;
        a.invlpg(byte_ptr(rbx + 0x10_0000))?;
        a.mov(edi, dword_ptr(rbx + 0x5000))
    });
    machine.put(size + 0x5000, 1_u32);
    machine.put(2 * size + 0x5000, 2_u32);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn an_entry_made_present_counts_without_a_flush(engine: &Engine) {
    // The handler returns to the instruction that has faulted, having made its page present.
    let mut machine = Machine::long(engine);
    let entry = machine.entry(FREE, 0);
    let machine = machine
        .code(|a| {
            a.mov(ebx, FREE as u32)?;
            a.mov(ecx, dword_ptr(rbx))
        })
        .code_at(USER_CODE, 64, |a| {
            a.mov(dword_ptr(entry), DATA as u32 | 0x63)?;
            a.add(rsp, 8)?;
            a.iretq()
        });
    machine.put(DATA, VALUE);
    machine.gate(14, selector::CODE64, USER_CODE, super::machine::kind::INTERRUPT_GATE, 0, true);
    let end = machine.run();
    end.expect_end();
    assert_eq!(end.reg(gpr::RCX), u64::from(VALUE));
}

pub(super) fn a_store_across_pages_changes_both_or_neither(engine: &Engine) {
    for paging in Paging::ALL {
        for present in [true, false] {
            let mut machine = Machine::paged(engine, paging).code(|a| {
                a.mov(ebx, (FREE + 0xffe) as u32)?;
                a.mov(dword_ptr(ebx), VALUE)
            });
            // Neighbours in linear memory, but not in RAM.
            machine.map(FREE, DATA + 0x4000, pte::P | pte::RW);
            machine.map(FREE + 0x1000, DATA, if present { pte::P | pte::RW } else { 0 });
            let end = machine.run();
            if present {
                end.expect_end();
                let halves = (end.load::<u16>(DATA + 0x4ffe), end.load::<u16>(DATA));
                assert_eq!(halves, (VALUE as u16, (VALUE >> 16) as u16));
            } else {
                end.expect_page_fault(error::W, FREE + 0x1000);
                assert_eq!(end.load::<u16>(DATA + 0x4ffe), 0, "{paging:?}");
            }
        }
    }
}

pub(super) fn an_instruction_across_pages_is_fetched_from_both(engine: &Engine) {
    for present in [true, false] {
        let mut machine = Machine::long(engine).code(|a| {
            a.mov(ebx, (FREE + 0xffd) as u32)?;
            a.jmp(rbx)
        });
        machine.map(FREE, DATA + 0x4000, pte::P | pte::RW);
        machine.map(FREE + 0x1000, DATA, if present { pte::P } else { 0 });
        // `mov eax, 0x12345678`, then `hlt`.
        let machine = machine
            .bytes_at(DATA + 0x4ffd, &[0xb8, 0x78, 0x56])
            .bytes_at(DATA, &[0x34, 0x12, 0xf4]);
        let end = machine.run();
        if present {
            assert_eq!((end.reg(gpr::RAX), end.state.rip), (u64::from(VALUE), FREE + 0x1003));
        } else {
            end.expect_page_fault(error::I, FREE + 0x1000);
            assert_eq!(end.frame().rip, FREE + 0xffd);
        }
    }
}

pub(super) fn process_contexts_keep_their_translations_apart(engine: &Engine) {
    const KEEP: u64 = 1 << 63;
    // Two sets of tables that differ in one page, under two identifiers, neither flushed by the switch.
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW);
    let root = machine.state.cr3;
    let other = 0x1_0000;
    // The other context's top table leads to a copy of the lower ones.
    let copies = [(root, other), (root + 0x1000, other + 0x1000)];
    let mut upper = [0; 0x1000];
    for (from, to) in copies {
        machine.ram.read(posada_memory::Gpa(from), &mut upper).expect("inside RAM");
        machine = machine.bytes_at(to, &upper);
    }
    machine.put(other, (other + 0x1000) | pte::ALL);
    let (directory, table) = (other + 0x2000, other + 0x3000);
    machine.put(other + 0x1000 + (FREE >> 30) * 8, directory | pte::ALL);
    machine.put(directory, table | pte::ALL);
    machine.put(table, (DATA + 0x1000) | pte::P | pte::RW);
    machine.put(DATA, 1_u32);
    machine.put(DATA + 0x1000, 2_u32);
    let machine = machine.code(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, cr4::PCIDE as u32)?;
        a.mov(cr4, rax)?;
        a.mov(ebx, FREE as u32)?;
        for (context, register) in [(root | 1, esi), (other | 2, edi), (root | 1 | KEEP, ecx), (other | 2 | KEEP, edx)]
        {
            a.mov(rax, context)?;
            a.mov(cr3, rax)?;
            a.mov(register, dword_ptr(rbx))?;
        }
        Ok(())
    });
    let end = machine.run();
    end.expect_end();
    let seen = [gpr::RSI, gpr::RDI, gpr::RCX, gpr::RDX].map(|number| end.reg(number));
    assert_eq!(seen, [1, 2, 1, 2]);
}

pub(super) fn invpcid_drops_one_address_of_a_context(engine: &Engine) {
    let mut machine = Machine::long(engine);
    machine.map(FREE, DATA, pte::P | pte::RW | pte::A | pte::D);
    let entry = machine.entry(FREE, 0);
    let machine = machine.code(|a| {
        a.mov(rax, cr4)?;
        a.or(eax, cr4::PCIDE as u32)?;
        a.mov(cr4, rax)?;
        a.mov(ebx, FREE as u32)?;
        a.mov(esi, dword_ptr(rbx))?;
        a.mov(dword_ptr(entry), (DATA + 0x1000) as u32 | 0x63)?;
        // Type 0: an individual address. The descriptor: identifier 0, the address.
        a.push(rbx)?;
        a.push(0)?;
        a.xor(eax, eax)?;
        a.invpcid(rax, xmmword_ptr(rsp))?;
        a.mov(edi, dword_ptr(rbx))
    });
    machine.put(DATA, 1_u32);
    machine.put(DATA + 0x1000, 2_u32);
    let end = machine.run();
    end.expect_end();
    assert_eq!((end.reg(gpr::RSI), end.reg(gpr::RDI)), (1, 2));
}

pub(super) fn addresses_that_are_not_canonical_fault_without_paging_being_asked(engine: &Engine) {
    // Through the stack segment it is a stack fault, otherwise a general-protection fault.
    let hole = 1u64 << 47;
    let machine = Machine::long(engine).reg(gpr::RBX, hole).code(|a| a.mov(eax, dword_ptr(rbx)));
    machine.run().expect_fault(13, Some(0), CODE);
    let machine = Machine::long(engine).reg(gpr::RBP, hole).code(|a| a.mov(eax, dword_ptr(rbp)));
    machine.run().expect_fault(12, Some(0), CODE);
    let machine = Machine::long(engine).reg(gpr::RBX, hole - 2).code(|a| a.mov(eax, dword_ptr(rbx)));
    machine.run().expect_fault(13, Some(0), CODE);
}

pub(super) fn reserved_bits_of_pae_pointers_fault_when_cr3_is_loaded(engine: &Engine) {
    let machine = Machine::paged(engine, Paging::Pae);
    machine.put(0x1_0000, DATA | pte::P | pte::RW);
    let machine = machine.code(|a| {
        a.mov(eax, 0x1_0000)?;
        a.mov(cr3, eax)
    });
    machine.run().expect_fault(13, Some(0), CODE + 5);
}

pub(super) fn a_change_of_write_protect_counts_at_once(engine: &Engine) {
    let mut machine = Machine::long(engine).code(|a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(rax, cr0)?;
        a.and(eax, !(cr0::WP as u32) as i32)?;
        a.mov(cr0, rax)?;
        a.mov(dword_ptr(rbx), 1)?;
        a.or(eax, cr0::WP as u32)?;
        a.mov(cr0, rax)?;
        a.mov(dword_ptr(rbx), 2)
    });
    machine.map(FREE, DATA, pte::P);
    let end = machine.run();
    end.expect_page_fault(error::P | error::W, FREE);
    assert_eq!(end.load::<u32>(DATA), 1);
}
