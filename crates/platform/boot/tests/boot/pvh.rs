//! PVH.

use posada_boot::{Error, Protocol, Source};
use posada_memory::Gpa;
use posada_vcpu::x86::{cr0, gpr};

use crate::images::{Elf, Segment, multiboot_header};
use crate::{Guest, MIB, RSDP, kernel};

const ENTRY: u64 = MIB + 0x10;

fn elf(wide: bool) -> Elf {
    let mut code = Segment::load(0xffff_8000_0010_0000, MIB, vec![0x90; 0x100]);
    code.memory_size = 0x2000;
    if !wide {
        code.vaddr = 0xc010_0000;
    }
    let entry = if wide { ENTRY.to_le_bytes().to_vec() } else { (ENTRY as u32).to_le_bytes().to_vec() };
    Elf::new(wide, code.vaddr, vec![code, Segment::pvh(&entry)])
}

#[test]
fn both_elf_classes_start_in_protected_mode_at_the_notes_entry() {
    for wide in [false, true] {
        let guest = Guest::new(16 * MIB);
        let loaded = guest.boot(&kernel(elf(wide).build()));
        assert_eq!(loaded.protocol, Protocol::Pvh);
        assert_eq!(loaded.state.rip, ENTRY);
        assert_eq!(loaded.state.cr0 & (cr0::PG | cr0::PE), cr0::PE);
        assert!(!loaded.state.segments.cs.long() && loaded.state.segments.cs.db());
        assert_eq!(guest.bytes(MIB, 0x100), [0x90; 0x100]);
    }
}

#[test]
fn the_start_info_leads_to_everything() {
    let guest = Guest::new(16 * MIB);
    let image = kernel(elf(true).build())
        .append("verbose")
        .initrd(Source::bytes(&b"one"[..]))
        .module(Source::bytes(&b"two!"[..]), "second");
    let info = guest.boot(&image).state.gpr[gpr::RBX];
    assert_eq!(guest.word(info), 0x336e_c578);
    assert_eq!(guest.word(info + 4), 1, "version");
    assert_eq!(guest.string(guest.quad(info + 24)), "verbose");
    assert_eq!(guest.quad(info + 32), RSDP.0);
    assert_eq!(guest.word(info + 12), 2, "modules");
    for (entry, (bytes, name)) in (guest.quad(info + 16)..).step_by(32).zip([("one", ""), ("two!", "second")])
    {
        assert_eq!(guest.bytes(guest.quad(entry), guest.quad(entry + 8) as usize), bytes.as_bytes());
        assert_eq!(guest.string(guest.quad(entry + 16)), name);
    }
    let regions = guest.map.regions();
    assert_eq!(guest.word(info + 48), regions.len() as u64);
    for (entry, region) in (guest.quad(info + 40)..).step_by(24).zip(regions) {
        let found = (guest.quad(entry), guest.quad(entry + 8), guest.word(entry + 16));
        assert_eq!(found, (region.start.0, region.size, region.kind as u64));
    }
}

#[test]
fn memory_after_the_files_bytes_is_cleared() {
    let guest = Guest::new(16 * MIB);
    guest.ram.write(Gpa(MIB), &[0xee; 0x3000]).unwrap();
    guest.boot(&kernel(elf(true).build()));
    assert_eq!(guest.bytes(MIB + 0x100, 0x1f00), [0; 0x1f00]);
    assert_eq!(guest.bytes(MIB + 0x2000, 0x1000), [0xee; 0x1000]);
}

#[test]
fn the_note_wins_over_a_multiboot_header() {
    let mut image = elf(true);
    image.segments[0].data = multiboot_header(0, &[]);
    assert_eq!(Guest::new(16 * MIB).boot(&kernel(image.build())).protocol, Protocol::Pvh);
}

#[test]
fn an_entry_outside_all_segments_is_refused() {
    for entry in [0, MIB - 1, MIB + 0x2000, 1 << 32, u64::MAX] {
        let mut image = elf(true);
        image.segments[1] = Segment::pvh(&entry.to_le_bytes());
        let error = Guest::new(16 * MIB).load(&kernel(image.build())).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    let mut image = elf(true);
    image.segments[1] = Segment::pvh(&[1, 2, 3]);
    let error = Guest::new(16 * MIB).load(&kernel(image.build())).unwrap_err();
    assert!(error.to_string().contains("neither 4 nor 8 bytes"), "{error}");
}

#[test]
fn segments_outside_ram_or_on_top_of_each_other_are_refused() {
    let guest = Guest::new(16 * MIB);
    for place in [0xa_0000, 0xe_0000, 16 * MIB, u64::MAX - 0x10] {
        let mut image = elf(true);
        image.segments.push(Segment::load(0, place, vec![1; 16]));
        let error = guest.load(&kernel(image.build())).unwrap_err();
        assert!(matches!(error, Error::OutsideRam { .. }), "{error}");
    }
    for place in [0, MIB + 0x1fff] {
        let mut image = elf(true);
        image.segments.push(Segment::load(0, place, vec![1; 16]));
        let error = guest.load(&kernel(image.build())).unwrap_err();
        assert!(matches!(error, Error::Overlap { .. }), "{error}");
    }
    let mut image = elf(true);
    image.segments[0].memory_size = 1 << 60;
    let error = guest.load(&kernel(image.build())).unwrap_err();
    assert!(matches!(error, Error::OutsideRam { .. }), "{error}");
}

#[test]
fn what_we_place_never_lies_in_the_kernel() {
    let guest = Guest::new(16 * MIB);
    // All of low memory is the kernel's: what it is told moves above 1 MiB.
    let mut image = elf(true);
    image.segments.push(Segment::load(0, 0x1000, vec![0x77; 0x9_ec00]));
    let info = guest.boot(&kernel(image.build()).append("high")).state.gpr[gpr::RBX];
    assert!(info >= MIB + 0x2000, "{info:#x}");
    assert_eq!(guest.bytes(0x1000, 0x9_ec00), vec![0x77; 0x9_ec00]);
    assert_eq!(guest.string(guest.quad(info + 24)), "high");
}

#[test]
fn files_for_other_machines_are_refused() {
    let guest = Guest::new(16 * MIB);
    let mut image = elf(true);
    image.machine = 183;
    let error = guest.load(&kernel(image.build())).unwrap_err();
    assert!(error.to_string().contains("machine 183, not x86"), "{error}");
    let mut big_endian = elf(true).build();
    big_endian[5] = 2;
    assert!(matches!(guest.load(&kernel(big_endian)), Err(Error::Unsupported { .. })));
}

#[test]
fn a_truncated_file_says_where_it_ends() {
    let guest = Guest::new(16 * MIB);
    let mut image = elf(true);
    image.segments.swap(0, 1);
    let image = image.build();
    for len in [80, 200, image.len() - 1] {
        let error = guest.load(&kernel(&image[..len])).unwrap_err();
        assert!(matches!(error, Error::Truncated { has, .. } if has == len as u64), "{len}: {error}");
    }
}

#[test]
fn an_elf_file_that_no_protocol_starts_is_named() {
    let mut image = elf(true);
    image.segments.truncate(1);
    let error = Guest::new(16 * MIB).load(&kernel(image.build())).unwrap_err();
    assert!(error.to_string().contains("neither a PVH note nor a multiboot header"), "{error}");
}
