//! Page tables, rights, and the translation look-aside buffer.

use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use posada_vcpu::Bus;
use posada_vcpu::x86::gpr::{RAX, RBX, RCX, RDX};
use posada_vcpu::x86::{Segment, Table, cr0, cr4, efer, rflags};

use crate::exception::vector;
use crate::testing::{CODE, DATA, Guest, Outcome};

/// What the tests map, by tables of their own: the second GiB, in long mode.
const WINDOW: u64 = 1 << 30;
/// The guest's own table that leads there.
const POINTER: u64 = 0x2008;
const DIRECTORY: u64 = 0x10_0000;
const TABLE: u64 = 0x10_1000;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const ALL: u64 = P | RW | US;

// In code of either size: `mov eax, [rbx]`, `mov [rbx], eax`, `jmp rbx`.
const LOAD: &[u8] = &[0x8b, 0x03];
const STORE: &[u8] = &[0x89, 0x03];
const JUMP: &[u8] = &[0xff, 0xe3];

fn entry(guest: Guest, at: u64, value: u64) -> Guest {
    guest.memory(at, &value.to_le_bytes())
}

/// Maps the window's first two pages: the rights of each level, and the pages' entries.
fn mapped(guest: Guest, pointer: u64, directory: u64, pages: [u64; 2]) -> Guest {
    let guest = entry(guest, POINTER, DIRECTORY | pointer);
    let guest = entry(guest, DIRECTORY, TABLE | directory);
    entry(entry(guest, TABLE, pages[0]), TABLE + 8, pages[1])
}

fn one_page(guest: Guest, page: u64) -> Guest {
    mapped(guest, ALL, ALL, [page, 0])
}

/// The error code of the page fault that the guest ends with, if it does, and where that was.
fn fault(outcome: &Outcome) -> Option<(u32, u64)> {
    let fault = outcome.fault?;
    assert_eq!(fault.vector, vector::PF, "{fault:?}");
    Some((fault.error?, fault.address))
}

fn read(guest: Guest, address: u64) -> Option<(u32, u64)> {
    fault(&guest.reg(RBX, address).bytes(LOAD).run())
}

fn write(guest: Guest, address: u64) -> Option<(u32, u64)> {
    fault(&guest.reg(RBX, address).bytes(STORE).run())
}

fn execute(guest: Guest, address: u64) -> Option<(u32, u64)> {
    let guest = guest.reg(RBX, address).memory(DATA, &[0xf4]).bytes(JUMP);
    let mut interpreter = guest.interpreter();
    let _ = interpreter.single_step();
    assert_eq!(interpreter.core().rip(), address);
    let result = interpreter.single_step();
    (result == Err(crate::op::Stop::Fault) && interpreter.core().fault.vector == vector::PF).then(|| {
        (interpreter.core().fault.error.expect("page faults have one"), interpreter.core().fault.address)
    })
}

#[test]
fn a_fault_tells_who_wanted_what() {
    let at = WINDOW + 0x123;
    assert_eq!(read(Guest::long(), at), Some((0, at)));
    assert_eq!(write(Guest::long(), at), Some((2, at)));
    assert_eq!(execute(Guest::long(), at), Some((0x10, at)));
    assert_eq!(read(Guest::user(), at), Some((4, at)));
    assert_eq!(write(Guest::user(), at), Some((6, at)));
    assert_eq!(execute(Guest::user(), at), Some((0x14, at)));
}

#[test]
fn fetches_are_not_told_where_nothing_forbids_them() {
    let guest = Guest::long().with(|state| state.msrs.efer &= !efer::NXE);
    assert_eq!(execute(guest, WINDOW), Some((0, WINDOW)));
    let guest = Guest::long().with(|state| {
        state.msrs.efer &= !efer::NXE;
        state.cr4 |= cr4::SMEP;
    });
    assert_eq!(execute(guest, WINDOW), Some((0x10, WINDOW)));
}

#[test]
fn every_level_must_grant_a_right() {
    for n in 0..3 {
        let rights =
            |missing: u64| std::array::from_fn(|level| if level == n { ALL & !missing } else { ALL });
        let map = |guest: Guest, [pointer, directory, page]: [u64; 3]| {
            mapped(guest, pointer, directory, [DATA | page, 0])
        };
        assert_eq!(read(map(Guest::user(), rights(0)), WINDOW), None);
        assert_eq!(read(map(Guest::user(), rights(US)), WINDOW), Some((5, WINDOW)));
        assert_eq!(write(map(Guest::user(), rights(RW)), WINDOW), Some((7, WINDOW)));
        assert_eq!(read(map(Guest::user(), rights(RW)), WINDOW), None);
        let forbidden: [u64; 3] = std::array::from_fn(|level| if level == n { ALL | NX } else { ALL });
        assert_eq!(execute(map(Guest::long(), forbidden), WINDOW), Some((0x11, WINDOW)));
        assert_eq!(execute(map(Guest::user(), forbidden), WINDOW), Some((0x15, WINDOW)));
        assert_eq!(read(map(Guest::user(), forbidden), WINDOW), None);
    }
}

#[test]
fn the_kernel_may_write_everything_unless_wp_is_set() {
    let page = DATA | P | US;
    assert_eq!(write(one_page(Guest::long(), page), WINDOW), Some((3, WINDOW)));
    let guest = Guest::long().with(|state| state.cr0 &= !cr0::WP);
    assert_eq!(write(one_page(guest, page), WINDOW), None);
    let guest = Guest::user().with(|state| state.cr0 &= !cr0::WP);
    assert_eq!(write(one_page(guest, page), WINDOW), Some((7, WINDOW)));
}

#[test]
fn reserved_bits_are_told() {
    for bit in [1 << 40, 1 << 51] {
        assert_eq!(read(one_page(Guest::long(), DATA | ALL | bit), WINDOW), Some((9, WINDOW)), "{bit:#x}");
        assert_eq!(write(mapped(Guest::user(), ALL | bit, ALL, [DATA | ALL, 0]), WINDOW), Some((15, WINDOW)));
    }
    assert_eq!(read(one_page(Guest::long(), DATA | ALL | 0x7ff << 52), WINDOW), None, "software's own bits");
    let guest = Guest::long().with(|state| state.msrs.efer &= !efer::NXE);
    assert_eq!(read(one_page(guest, DATA | ALL | NX), WINDOW), Some((9, WINDOW)));
    let top = entry(Guest::long(), 0x1008, DIRECTORY | ALL | PS);
    assert_eq!(read(top, 1 << 39), Some((9, 1 << 39)));
    let large = |bits: u64| entry(entry(Guest::long(), POINTER, DIRECTORY | ALL), DIRECTORY, ALL | PS | bits);
    assert_eq!(read(large(1 << 12), WINDOW), None, "the PAT bit");
    assert_eq!(read(large(1 << 13), WINDOW), Some((9, WINDOW)));
    assert_eq!(read(large(1 << 20), WINDOW), Some((9, WINDOW)));
    assert_eq!(read(entry(Guest::long(), POINTER, ALL | PS | 1 << 29), WINDOW), Some((9, WINDOW)));
}

#[test]
fn pages_come_in_three_sizes() {
    let value = |guest: Guest, address: u64| {
        let guest = guest.memory(DATA, &0x1234_5678_u32.to_le_bytes()).reg(RBX, address);
        guest.code(|a| a.mov(eax, dword_ptr(rbx))).run().reg(RAX)
    };
    assert_eq!(value(one_page(Guest::long(), DATA | ALL), WINDOW), 0x1234_5678);
    let guest = entry(entry(Guest::long(), POINTER, DIRECTORY | ALL), DIRECTORY + 8, ALL | PS);
    assert_eq!(value(guest, WINDOW + (2 << 20) + DATA), 0x1234_5678);
    assert_eq!(value(entry(Guest::long(), POINTER, ALL | PS), WINDOW + DATA), 0x1234_5678);
}

#[test]
fn accessed_and_dirty_bits_are_set_as_needed() {
    let guest = one_page(Guest::long(), DATA | ALL).reg(RBX, WINDOW).code(|a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(rcx, qword_ptr(TABLE))?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(rdx, qword_ptr(TABLE))
    });
    let outcome = guest.run();
    assert_eq!((outcome.reg(RCX), outcome.reg(RDX)), (DATA | ALL | A, DATA | ALL | A | D));
    assert_eq!(outcome.load::<u64>(POINTER), DIRECTORY | ALL | A);
    assert_eq!(outcome.load::<u64>(DIRECTORY), TABLE | ALL | A);
}

#[test]
fn an_access_that_faults_leaves_no_dirty_bit() {
    let outcome =
        one_page(Guest::user(), DATA | P | US).reg(RBX, WINDOW).code(|a| a.inc(dword_ptr(rbx))).run();
    assert!(outcome.fault.is_some());
    assert_eq!(outcome.load::<u64>(TABLE) & D, 0);
}

#[test]
fn an_access_across_pages_needs_both() {
    let across = WINDOW + 0xffd;
    let both = || mapped(Guest::long(), ALL, ALL, [DATA | ALL, (DATA + 0x3000) | ALL]);
    assert_eq!(write(both(), across), None);
    let outcome = both().reg(RAX, 0x4433_2211).reg(RBX, across).code(|a| a.mov(dword_ptr(rbx), eax)).run();
    assert_eq!(outcome.load::<u32>(DATA + 0xffc) >> 8, 0x33_2211);
    assert_eq!(outcome.load::<u8>(DATA + 0x3000), 0x44);
    // The fault is at the second page, and the first is not written.
    let first = || mapped(Guest::long(), ALL, ALL, [DATA | ALL, 0]);
    assert_eq!(read(first(), across), Some((0, WINDOW + 0x1000)));
    let outcome = first().reg(RAX, u64::MAX).reg(RBX, across).code(|a| a.mov(dword_ptr(rbx), eax)).run();
    assert_eq!(fault(&outcome), Some((2, WINDOW + 0x1000)));
    assert_eq!(outcome.load::<u32>(DATA + 0xffc), 0);
    let outcome = first().reg(RAX, u64::MAX).reg(RBX, across).code(|a| a.add(dword_ptr(rbx), eax)).run();
    assert_eq!(fault(&outcome), Some((2, WINDOW + 0x1000)));
    assert_eq!(outcome.load::<u32>(DATA + 0xffc), 0);
}

#[test]
fn smap_keeps_the_kernel_from_user_pages_unless_ac_is_set() {
    // The guest's own pages are the kernel's.
    let guest = || one_page(Guest::long(), DATA | ALL).with(|state| state.cr4 |= cr4::SMAP);
    assert_eq!(read(guest(), WINDOW), Some((1, WINDOW)));
    assert_eq!(write(guest(), WINDOW), Some((3, WINDOW)));
    assert_eq!(read(guest().flags(rflags::AC), WINDOW), None);
    let outcome = guest().reg(RBX, WINDOW).code(|a| {
        a.stac()?;
        a.mov(eax, dword_ptr(rbx))?;
        a.clac()?;
        a.mov(eax, dword_ptr(rbx))?;
        a.nop()
    });
    let outcome = outcome.run();
    assert_eq!(fault(&outcome), Some((1, WINDOW)));
    assert_eq!(outcome.state.rip, CODE + 8);
}

#[test]
fn smap_counts_for_the_processors_own_accesses_whatever_ac_says() {
    let guest = one_page(Guest::long(), DATA | ALL)
        .with(|state| {
            state.cr4 |= cr4::SMAP;
            state.gdtr = Table { base: WINDOW, limit: 0xff };
        })
        .flags(rflags::AC)
        .memory(DATA + 8, &0x00cf_9300_0000_ffff_u64.to_le_bytes())
        .reg(RAX, 8);
    assert_eq!(fault(&guest.code(|a| a.mov(es, ax)).run()), Some((1, WINDOW + 8)));
}

#[test]
fn smep_keeps_the_kernel_from_executing_user_pages() {
    let guest = || one_page(Guest::long(), DATA | ALL);
    assert_eq!(execute(guest(), WINDOW), None);
    assert_eq!(execute(guest().with(|state| state.cr4 |= cr4::SMEP), WINDOW), Some((0x11, WINDOW)));
    let user = one_page(Guest::user(), DATA | ALL).with(|state| state.cr4 |= cr4::SMEP);
    assert_eq!(execute(user, WINDOW), None);
}

#[test]
fn addresses_that_are_not_canonical_are_general_protection_faults() {
    let touch = |address: u64| {
        let outcome = Guest::long().reg(RBX, address).code(|a| a.mov(rax, qword_ptr(rbx))).run();
        outcome.fault()
    };
    assert_eq!(touch(0x8000_0000_0000), Some((vector::GP, Some(0))));
    assert_eq!(touch(0xffff_7fff_ffff_ffff), Some((vector::GP, Some(0))));
    let stack = Guest::long().reg(4, 0x8000_0000_0000).code(|a| a.pop(rax)).run();
    assert_eq!(stack.fault(), Some((vector::SS, Some(0))));
}

#[test]
fn an_access_may_not_straddle_the_end_of_canonical_addresses() {
    // The last page of the lower half is there.
    let guest = entry(Guest::long(), 0x1000 + 0xff * 8, DIRECTORY | ALL);
    let guest = entry(guest, DIRECTORY + 0xff8, (DIRECTORY + 0x1000) | ALL);
    let guest = entry(guest, DIRECTORY + 0x1ff8, (DIRECTORY + 0x2000) | ALL);
    let guest = entry(guest, DIRECTORY + 0x2ff8, DATA | ALL);
    let last = 0x7fff_ffff_fff8;
    let outcome = guest.reg(RBX, last).code(|a| {
        a.mov(rax, qword_ptr(rbx))?;
        a.mov(rax, qword_ptr(rbx + 1))
    });
    let outcome = outcome.run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
    assert_eq!(outcome.state.rip, CODE + 3);
}

#[test]
fn unaligned_accesses_of_programs_fault_where_that_is_asked_for() {
    let check = |guest: Guest| {
        let guest = guest.with(|state| state.cr0 |= cr0::AM).flags(rflags::AC).reg(RBX, DATA + 1);
        guest.bytes(LOAD).run().fault()
    };
    assert_eq!(check(Guest::user()), Some((vector::AC, Some(0))));
    assert_eq!(check(Guest::user32()), Some((vector::AC, Some(0))));
    assert_eq!(check(Guest::long()), None);
    let without = Guest::user().flags(rflags::AC).reg(RBX, DATA + 1);
    assert_eq!(without.code(|a| a.mov(eax, dword_ptr(rbx))).run().fault(), None);
    let bytes = Guest::user().with(|state| state.cr0 |= cr0::AM).flags(rflags::AC).reg(RBX, DATA + 1);
    assert_eq!(bytes.code(|a| a.mov(al, byte_ptr(rbx))).run().fault(), None);
}

// Paging outside long mode.

fn legacy(with: u64) -> Guest {
    Guest::protected().with(|state| {
        state.cr0 |= cr0::PG | cr0::WP;
        (state.cr3, state.cr4) = (DIRECTORY, with);
        state.msrs.efer = efer::NXE;
    })
}

fn entry32(guest: Guest, at: u64, value: u32) -> Guest {
    guest.memory(at, &value.to_le_bytes())
}

/// 32-bit paging with the first 4 MiB mapped as they are.
fn two_level(with: u64) -> Guest {
    let mut guest = entry32(legacy(with), DIRECTORY, TABLE as u32 | 7);
    for n in 0..1024_u32 {
        guest = entry32(guest, TABLE + u64::from(n) * 4, n << 12 | 7);
    }
    guest
}

/// PAE paging with the first 2 MiB mapped as they are.
fn three_level(with: u64) -> Guest {
    let guest = entry(legacy(cr4::PAE | with), DIRECTORY, TABLE | P);
    entry(guest, TABLE, ALL | PS)
}

#[test]
fn two_levels_map_4_kib_and_with_pse_4_mib() {
    let to = |guest: Guest| {
        let guest = guest.memory(DATA, &77_u32.to_le_bytes()).reg(RBX, 0x40_0000 + DATA);
        guest.bytes(LOAD).run()
    };
    let small = entry32(two_level(0), DIRECTORY + 4, TABLE as u32 | 7);
    assert_eq!(to(small).reg(RAX), 77);
    assert_eq!(to(entry32(two_level(cr4::PSE), DIRECTORY + 4, 0x87)).reg(RAX), 77);
    // Without PSE the bit means nothing, and the entry leads to a table at 0.
    let outcome = to(entry32(two_level(0), DIRECTORY + 4, 0x87));
    assert_eq!(fault(&outcome).map(|(error, _)| error), Some(0));
    assert_eq!(read(entry32(two_level(cr4::PSE), DIRECTORY + 4, 0x20_0087), 0x40_0000), Some((9, 0x40_0000)));
}

#[derive(Default)]
struct Seen(Mutex<Vec<u64>>);

impl Bus for Seen {
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.0.lock().expect("nobody panicked").push(address);
        data.fill(0);
    }
}

#[test]
fn large_pages_of_two_levels_reach_beyond_4_gib() {
    let board = Arc::new(Seen::default());
    let guest = entry32(two_level(cr4::PSE), DIRECTORY + 4, 0xc015_6087).bus(board.clone());
    assert_eq!(read(guest, 0x41_2344), None);
    assert_eq!(*board.0.lock().expect("nobody panicked"), [0xab_c001_2344]);
}

#[test]
fn three_levels_have_no_rights_at_the_top_and_nx_below() {
    assert_eq!(read(three_level(0), DATA), None);
    assert_eq!(write(three_level(0), DATA), None);
    let window = |entry_: u64| entry(three_level(0), TABLE + 8, entry_);
    assert_eq!(read(window(0), 0x20_0000), Some((0, 0x20_0000)));
    assert_eq!(write(window(P | PS), 0x20_0000), Some((3, 0x20_0000)));
    assert_eq!(read(window(ALL | PS | NX), 0x20_0000), None);
    let guest = window(ALL | PS | NX);
    assert_eq!(execute(guest, 0x20_0000 + DATA), Some((0x11, 0x20_0000 + DATA)));
    // The bits that software has in long mode are reserved.
    assert_eq!(read(window(ALL | PS | 1 << 52), 0x20_0000), Some((9, 0x20_0000)));
    assert_eq!(read(window(ALL | PS | 1 << 62), 0x20_0000), Some((9, 0x20_0000)));
}

#[test]
fn two_levels_know_no_nx() {
    let guest = entry32(two_level(0), DIRECTORY + 4, TABLE as u32 | 7);
    assert_eq!(execute(guest, 0x40_0000 + DATA), None);
    assert_eq!(execute(two_level(0), 0x80_0000), Some((0, 0x80_0000)));
}

#[test]
fn addresses_wrap_at_4_gib_outside_64_bit_mode() {
    let guest = Guest::protected().memory(DATA, &5_u32.to_le_bytes()).with(|state| {
        state.segments.ds = Segment { base: 0xffff_f000, ..Segment::flat_data(0x18) };
    });
    assert_eq!(guest.code(|a| a.mov(eax, dword_ptr(DATA + 0x1000))).run().reg(RAX), 5);
}

// The look-aside buffer.

const ONE: u64 = DATA;
const OTHER: u64 = DATA + 0x1000;

/// Two pages to choose from, the first mapped; `rbx` is the window, `rcx` the table's entry, `rdx` the other page.
fn switching(bits: u64) -> Guest {
    one_page(Guest::long(), ONE | ALL | bits)
        .memory(ONE, &1_u32.to_le_bytes())
        .memory(OTHER, &2_u32.to_le_bytes())
        .reg(RBX, WINDOW)
        .reg(RCX, TABLE)
        .reg(RDX, OTHER | ALL | bits)
}

/// Reads the window, maps the other page there, does `flush`, and reads again.
fn seen_after(
    guest: Guest,
    flush: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> (Option<(u8, Option<u32>)>, u64) {
    let outcome = guest.code(|a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(qword_ptr(rcx), rdx)?;
        flush(a)?;
        a.mov(eax, dword_ptr(rbx))
    });
    let outcome = outcome.run();
    (outcome.fault(), outcome.reg(RAX))
}

#[test]
fn a_translation_is_kept_until_it_is_flushed() {
    assert_eq!(seen_after(switching(0), CodeAssembler::nop), (None, 1));
    assert_eq!(seen_after(switching(0), |a| a.invlpg(ptr(rbx))), (None, 2));
    assert_eq!(seen_after(switching(G).with(|s| s.cr4 |= cr4::PGE), |a| a.invlpg(ptr(rbx))), (None, 2));
}

fn reload_cr3(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(rsi, cr3)?;
    a.mov(cr3, rsi)
}

#[test]
fn a_load_of_cr3_flushes_all_but_global_pages() {
    assert_eq!(seen_after(switching(0), reload_cr3), (None, 2));
    assert_eq!(seen_after(switching(G).with(|state| state.cr4 |= cr4::PGE), reload_cr3), (None, 1));
    assert_eq!(seen_after(switching(G), reload_cr3), (None, 2), "there are no global pages without PGE");
}

#[test]
fn a_change_of_pge_flushes_global_pages() {
    let outcome = seen_after(switching(G).with(|state| state.cr4 |= cr4::PGE), |a| {
        a.mov(rsi, cr4)?;
        a.mov(rdi, rsi)?;
        a.btr(rdi, 7)?;
        a.mov(cr4, rdi)?;
        a.mov(cr4, rsi)
    });
    assert_eq!(outcome, (None, 2));
}

#[test]
fn invlpg_flushes_all_of_a_large_page() {
    for (at, size) in [(DIRECTORY, 2 << 20), (POINTER, 1 << 30)] {
        // The large page covers both; then it is taken away, by its other end.
        let guest = entry(entry(Guest::long(), POINTER, DIRECTORY | ALL), at, ALL | PS);
        let guest = guest.reg(RBX, WINDOW + DATA).reg(RCX, at).reg(RDX, WINDOW + size - 1);
        let outcome = guest.code(|a| {
            a.mov(eax, dword_ptr(rbx))?;
            a.mov(qword_ptr(rcx), 0)?;
            a.invlpg(ptr(rdx))?;
            a.mov(eax, dword_ptr(rbx))
        });
        assert_eq!(fault(&outcome.run()), Some((0, WINDOW + DATA)), "{size:#x}");
    }
}

#[test]
fn invlpg_of_an_address_that_cannot_be_does_nothing() {
    let outcome = Guest::long().reg(RBX, 1 << 47).code(|a| a.invlpg(ptr(rbx))).run();
    assert_eq!(outcome.fault(), None);
    let outcome = Guest::user().reg(RBX, DATA).code(|a| a.invlpg(ptr(rbx))).run();
    assert_eq!(outcome.fault(), Some((vector::GP, Some(0))));
}

/// With process contexts: now in context 1.
fn in_context_1(guest: Guest) -> Guest {
    guest.with(|state| {
        state.cr4 |= cr4::PCIDE | cr4::PGE;
        state.cr3 |= 1;
    })
}

#[test]
fn a_process_context_can_be_gone_back_to() {
    let guest = in_context_1(switching(0)).code(|a| {
        reload_cr3(a)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(qword_ptr(rcx), rdx)?;
        // To context 2 and back, keeping what is known of context 1; then forgetting it.
        a.mov(rdi, rsi)?;
        a.xor(rdi, 3)?;
        a.mov(cr3, rdi)?;
        a.bts(rsi, 63)?;
        a.mov(cr3, rsi)?;
        a.mov(r8d, dword_ptr(rbx))?;
        a.btr(rsi, 63)?;
        a.mov(cr3, rsi)?;
        a.mov(r9d, dword_ptr(rbx))
    });
    let outcome = guest.run();
    assert_eq!((outcome.fault(), outcome.reg(8), outcome.reg(9)), (None, 1, 2));
}

#[test]
fn a_process_context_has_translations_of_its_own() {
    let outcome = seen_after(in_context_1(switching(0)), |a| {
        a.mov(rsi, cr3)?;
        a.xor(rsi, 3)?;
        a.mov(cr3, rsi)
    });
    assert_eq!(outcome, (None, 2));
}

/// `invpcid` of a kind, with a context and an address.
fn invpcid(a: &mut CodeAssembler, kind: u64, pcid: u64, address: u64) -> Result<(), iced_x86::IcedError> {
    for (offset, value) in [(0, pcid), (8, address)] {
        a.mov(rsi, value)?;
        a.mov(qword_ptr(DATA + 0x2000 + offset), rsi)?;
    }
    a.mov(esi, kind as u32)?;
    a.invpcid(rsi, xmmword_ptr(DATA + 0x2000))
}

#[test]
fn invpcid_flushes_what_it_is_told_to() {
    let after = |bits: u64, kind: u64, pcid: u64| {
        seen_after(in_context_1(switching(bits)), |a| invpcid(a, kind, pcid, WINDOW))
    };
    assert_eq!(after(0, 0, 1), (None, 2), "one address");
    assert_eq!(after(0, 1, 1), (None, 2), "one context");
    assert_eq!(after(G, 1, 1), (None, 1), "but not its global pages");
    assert_eq!(after(0, 1, 7), (None, 1), "another context");
    assert_eq!(after(G, 2, 0), (None, 2), "everything");
    assert_eq!(after(0, 3, 0), (None, 2), "every context");
    assert_eq!(after(G, 3, 0), (None, 1), "but not their global pages");
}

#[test]
fn invpcid_refuses_what_it_does_not_know() {
    let run = |kind: u64, pcid: u64, address: u64, contexts: bool| {
        let guest = if contexts { in_context_1(Guest::long()) } else { Guest::long() };
        guest.code(|a| invpcid(a, kind, pcid, address)).run().fault()
    };
    let gp = Some((vector::GP, Some(0)));
    assert_eq!(run(4, 0, 0, true), gp);
    assert_eq!(run(1, 0x1000, 0, true), gp);
    assert_eq!(run(0, 0, 1 << 47, true), gp);
    assert_eq!(run(1, 1, 0, false), gp, "there is only context 0");
    assert_eq!(run(1, 0, 0, false), None);
    assert_eq!(run(2, 0x1000, 1 << 47, true), None, "the rest is not looked at");
}

#[test]
fn generations_may_run_out() {
    let outcome = switching(0).reg(RAX, 10_000).code(|a| {
        let mut again = a.create_label();
        a.mov(rsi, cr3)?;
        a.set_label(&mut again)?;
        a.mov(edi, dword_ptr(rbx))?;
        a.xchg(qword_ptr(rcx), rdx)?;
        a.mov(cr3, rsi)?;
        a.mov(r8d, dword_ptr(rbx))?;
        a.add(r8d, edi)?;
        a.cmp(r8d, 3)?;
        let mut wrong = a.create_label();
        a.jne(wrong)?;
        a.dec(eax)?;
        a.jnz(again)?;
        a.set_label(&mut wrong)?;
        a.nop()
    });
    let outcome = outcome.run();
    assert_eq!((outcome.fault(), outcome.reg(RAX)), (None, 0));
}
