//! Multiboot 1.

use posada_boot::{Error, Protocol, Source};
use posada_memory::Gpa;
use posada_vcpu::x86::{cr0, gpr};

use crate::images::{Elf, Segment, flat_multiboot, multiboot_header};
use crate::{Guest, MIB, kernel};

fn elf(wide: bool, flags: u32) -> Elf {
    let mut data = multiboot_header(flags, &[]);
    data.resize(0x40, 0x90);
    let base = if wide { 0xffff_ffff_8010_0000 } else { 0xc010_0000 };
    Elf::new(wide, base + 0x20, vec![Segment::load(base, MIB, data)])
}

#[test]
fn both_elf_classes_start_at_the_physical_address_of_their_entry() {
    for wide in [false, true] {
        let guest = Guest::new(16 * MIB);
        let loaded = guest.boot(&kernel(elf(wide, 0).build()));
        assert_eq!(loaded.protocol, Protocol::Multiboot);
        assert_eq!(loaded.state.rip, MIB + 0x20);
        assert_eq!(loaded.state.gpr[gpr::RAX], 0x2bad_b002);
        assert_eq!(loaded.state.cr0 & (cr0::PG | cr0::PE), cr0::PE);
        assert!(!loaded.state.segments.cs.long());
        assert_eq!(guest.bytes(MIB + 0x20, 0x20), [0x90; 0x20]);
    }
}

#[test]
fn an_entry_may_be_a_physical_address() {
    let mut image = elf(true, 0);
    image.entry = MIB + 0x30;
    assert_eq!(Guest::new(16 * MIB).boot(&kernel(image.build())).state.rip, MIB + 0x30);
    image.entry = 3 * MIB;
    let error = Guest::new(16 * MIB).load(&kernel(image.build())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn an_entry_beyond_all_addresses_is_corrupt() {
    let mut image = elf(true, 0);
    let segment = &mut image.segments[0];
    (segment.paddr, segment.memory_size) = (u64::MAX - 0x10, 1 << 40);
    let error = Guest::new(16 * MIB).load(&kernel(image.build())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn the_information_structure_leads_to_everything() {
    let guest = Guest::new(16 * MIB);
    let image = kernel(elf(false, 3).build())
        .append("root=/dev/x")
        .initrd(Source::bytes(vec![7; 5000]))
        .module(Source::bytes(&b"two"[..]), "second.mod arg");
    let info = guest.boot(&image).state.gpr[gpr::RBX];
    let flags = guest.word(info);
    assert_eq!(flags, 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((guest.word(info + 4), guest.word(info + 8)), (639, 15 * 1024), "lower and upper memory");
    assert_eq!(guest.string(guest.word(info + 16)), "root=/dev/x");
    assert_eq!(guest.string(guest.word(info + 64)), "Posada");

    assert_eq!(guest.word(info + 20), 2, "modules");
    let list = guest.word(info + 24);
    let (start, end) = (guest.word(list), guest.word(list + 4));
    assert_eq!(guest.bytes(start, (end - start) as usize), vec![7; 5000]);
    assert!(start >= MIB + 0x40 && start % 4096 == 0, "behind the kernel, at a page: {start:#x}");
    let (start, end) = (guest.word(list + 16), guest.word(list + 20));
    assert_eq!(guest.bytes(start, (end - start) as usize), b"two");
    assert_eq!(guest.string(guest.word(list + 24)), "second.mod arg");

    let (length, mut entry) = (guest.word(info + 44), guest.word(info + 48));
    let end = entry + length;
    for region in guest.map.regions() {
        assert_eq!(guest.word(entry), 20, "size of an entry, itself not counted");
        let found = (guest.quad(entry + 4), guest.quad(entry + 12), guest.word(entry + 20));
        assert_eq!(found, (region.start.0, region.size, region.kind as u64));
        entry += 24;
    }
    assert_eq!(entry, end);
}

#[test]
fn a_header_with_addresses_needs_no_elf_file() {
    let guest = Guest::new(16 * MIB);
    guest.ram.write(Gpa(MIB), &[0xee; 0x3000]).unwrap();
    let mut image = vec![0; 64];
    image.extend(flat_multiboot(&[0xf4; 100], 0x10_2000));
    let state = guest.boot(&kernel(&image)).state;
    assert_eq!(state.rip, MIB + 32);
    assert_eq!(guest.bytes(MIB + 32, 100), [0xf4; 100]);
    assert_eq!(guest.bytes(MIB + 132, 0x2000 - 132), vec![0; 0x2000 - 132], "bss");
    assert_eq!(guest.bytes(MIB + 0x2000, 16), [0xee; 16]);
}

#[test]
fn a_load_end_of_zero_means_the_whole_file() {
    let guest = Guest::new(16 * MIB);
    let base = MIB as u32;
    let mut image = multiboot_header(1 << 16, &[base, base, 0, 0, base + 32]);
    image.extend([0xf4; 300]);
    guest.boot(&kernel(&image));
    assert_eq!(guest.bytes(MIB, image.len()), image);
}

#[test]
fn addresses_win_over_the_elf_header() {
    let mut image = elf(true, 0).build();
    let at = image.len().next_multiple_of(4);
    image.resize(at, 0);
    let base = 2 * MIB as u32;
    image.extend(multiboot_header(1 << 16, &[base, base, 0, 0, base + 32]));
    image.extend([0xf4; 64]);
    // The header within the ELF file's segment comes first otherwise.
    let first = image.windows(4).position(|word| word == 0x1bad_b002u32.to_le_bytes()).unwrap();
    image[first] = 0;
    assert_eq!(Guest::new(16 * MIB).boot(&kernel(image)).state.rip, 2 * MIB + 32);
}

#[test]
fn unknown_mandatory_features_are_refused_and_optional_ones_ignored() {
    let guest = Guest::new(16 * MIB);
    let error = guest.load(&kernel(elf(false, 1 << 5).build())).unwrap_err();
    assert!(error.to_string().contains("0x0020"), "{error}");
    assert!(guest.load(&kernel(elf(false, 1 << 20 | 7).build())).is_ok());
}

#[test]
fn contradicting_addresses_are_corrupt() {
    let guest = Guest::new(16 * MIB);
    let base = MIB as u32;
    for (addresses, truncated) in [
        ([base - 4, base, 0, 0, base], false),
        ([base + 4, base, 0, 0, base], false),
        ([base, base, base - 1, 0, base], false),
        ([base, base, base + 0x1000, 0, base], true),
        ([base, base, 0, base + 1, base], false),
        ([base, base, 0, 0, base - 1], false),
        ([base, base, 0, 0, 0x7fff_ffff], false),
    ] {
        let mut image = multiboot_header(1 << 16, &addresses);
        image.extend([0xf4; 64]);
        let error = guest.load(&kernel(image)).unwrap_err();
        match error {
            Error::Truncated { .. } => assert!(truncated, "{addresses:x?}"),
            Error::Corrupt { .. } => assert!(!truncated, "{addresses:x?}"),
            error => panic!("{addresses:x?}: {error}"),
        }
    }
}

#[test]
fn a_module_larger_than_memory_is_refused() {
    let guest = Guest::new(4 * MIB);
    let image = kernel(elf(false, 0).build()).initrd(Source::bytes(vec![0; 4 << 20]));
    assert!(matches!(guest.load(&image), Err(Error::NoRoom { .. })));
}

#[test]
fn a_header_beyond_8_kib_or_with_a_wrong_checksum_is_none() {
    let guest = Guest::new(16 * MIB);
    let mut image = vec![0; 8192];
    image.extend(flat_multiboot(&[0xf4], 0));
    assert!(matches!(guest.load(&kernel(&image)), Err(Error::NotAKernel { .. })));
    let mut image = flat_multiboot(&[0xf4], 0);
    image[8] ^= 1;
    assert!(matches!(guest.load(&kernel(&image)), Err(Error::NotAKernel { .. })));
}
