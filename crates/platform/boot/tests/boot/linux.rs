//! The Linux boot protocol.

use posada_boot::{Error, Protocol, Source};
use posada_vcpu::x86::{cr0, efer, gpr};

use crate::images::BzImage;
use crate::{Guest, MIB, RSDP, kernel};

#[test]
fn a_64_bit_kernel_starts_at_its_preferred_place_with_paging() {
    let guest = Guest::new(64 * MIB);
    let loaded = guest.boot(&kernel(BzImage::default().build()).append("console=ttyS0"));
    assert_eq!(loaded.protocol, Protocol::Linux);
    let state = loaded.state;
    assert_eq!(state.rip, 16 * MIB + 0x200);
    assert!(state.cr0 & cr0::PG != 0 && state.msrs.efer & efer::LMA != 0 && state.segments.cs.long());
    assert_eq!(guest.bytes(16 * MIB, 0x1000), BzImage::default().code);
    // The descriptors behind the selectors that are loaded.
    assert_eq!((state.segments.cs.selector, state.segments.ds.selector), (0x10, 0x18));
    assert_eq!(guest.quad(state.gdtr.base + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(guest.quad(state.gdtr.base + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn the_page_tables_map_the_first_4_gib_onto_themselves() {
    let guest = Guest::new(64 * MIB);
    let state = guest.boot(&kernel(BzImage::default().build())).state;
    let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    for address in [0, 0x20_1234, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff_u64] {
        let pml4e = guest.quad(state.cr3);
        let pdpte = guest.quad(frame(pml4e) + (address >> 30) * 8);
        let pde = guest.quad(frame(pdpte) + (address >> 21 & 511) * 8);
        assert!([pml4e, pdpte, pde].iter().all(|entry| entry & 3 == 3) && pde & 1 << 7 != 0, "{address:#x}");
        assert_eq!(frame(pde) | address & 0x1f_ffff, address);
    }
}

#[test]
fn the_zero_page_has_all_that_the_kernel_asks_for() {
    let guest = Guest::new(64 * MIB);
    let image = kernel(BzImage::default().build()).append("a=b c").initrd(Source::bytes(&b"initrd"[..]));
    let zero_page = guest.boot(&image).state.gpr[gpr::RSI];
    assert_eq!(guest.string(guest.word(zero_page + 0x228)), "a=b c");
    let (initrd, size) = (guest.word(zero_page + 0x218), guest.word(zero_page + 0x21c));
    assert_eq!(guest.bytes(initrd, size as usize), b"initrd\0\0");
    assert_eq!(initrd % 4096, 0);
    assert_eq!(guest.quad(zero_page + 0x70), RSDP.0, "the ACPI tables");
    assert_eq!(guest.bytes(zero_page + 0x210, 1), [0xff], "the loader");
    assert_eq!(guest.word(zero_page + 0x214), 16 * MIB, "where it was loaded");
    assert_eq!(guest.quad(zero_page + 0x250), 0, "no setup data");
    // `screen_info` knows of no display; its extended memory in KiB is what fits into 16 bits.
    let mut screen = [0; 0x40];
    screen[2..4].copy_from_slice(&[0x00, 0xfc]);
    assert_eq!(guest.bytes(zero_page, 0x40), screen);
    assert_eq!(guest.word(zero_page + 0x1e0), 63 * 1024, "extended memory in KiB");
    let regions = guest.map.regions();
    assert_eq!(guest.bytes(zero_page + 0x1e8, 1), [regions.len() as u8]);
    for (entry, region) in (zero_page + 0x2d0..).step_by(20).zip(regions) {
        let found = (guest.quad(entry), guest.quad(entry + 8), guest.word(entry + 16));
        assert_eq!(found, (region.start.0, region.size, region.kind as u64));
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_in_protected_mode() {
    let guest = Guest::new(64 * MIB);
    for image in
        [BzImage { xloadflags: 0, ..BzImage::default() }, BzImage { version: 0x020b, ..BzImage::default() }]
    {
        let state = guest.boot(&kernel(image.build())).state;
        assert_eq!(state.rip, 16 * MIB);
        assert_eq!(state.cr0 & (cr0::PG | cr0::PE), cr0::PE);
        assert_eq!(guest.quad(state.gdtr.base + 0x10), 0x00cf_9b00_0000_ffff);
        assert_eq!(guest.word(state.gpr[gpr::RSI] + 0x202), u64::from(u32::from_le_bytes(*b"HdrS")));
        assert_eq!([gpr::RBP, gpr::RDI, gpr::RBX].map(|register| state.gpr[register]), [0; 3]);
    }
}

#[test]
fn an_old_kernel_is_loaded_to_1_mib() {
    let guest = Guest::new(8 * MIB);
    let image = BzImage { version: 0x0202, ..BzImage::default() };
    assert_eq!(guest.boot(&kernel(image.build())).state.rip, MIB);
}

#[test]
fn a_relocatable_kernel_moves_to_where_there_is_room() {
    let guest = Guest::new(8 * MIB);
    let state = guest.boot(&kernel(BzImage::default().build())).state;
    assert_eq!(state.rip, 2 * MIB + 0x200);
}

#[test]
fn a_kernel_that_cannot_move_or_shrink_says_what_it_needs() {
    let guest = Guest::new(8 * MIB);
    let fixed = BzImage { relocatable: 0, ..BzImage::default() };
    let error = guest.load(&kernel(fixed.build())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel must lie at 0x1000000 + 0x200000, where the guest has no RAM; give it more memory"
    );
    let large = BzImage { init_size: 0x80_0000, ..BzImage::default() };
    let error = guest.load(&kernel(large.build())).unwrap_err();
    assert!(matches!(error, Error::NoRoom { size: 0x80_0000, .. }), "{error}");
    let far = BzImage { relocatable: 0, pref_address: 1 << 40, ..BzImage::default() };
    let error = guest.load(&kernel(far.build())).unwrap_err();
    assert!(error.to_string().contains("above 4 GiB"), "{error}");
}

#[test]
fn the_initrd_lies_high_and_below_the_kernels_limit() {
    let guest = Guest::new(64 * MIB);
    let initrd = |limit| {
        let image = BzImage { initrd_addr_max: limit, ..BzImage::default() };
        let kernel = kernel(image.build()).initrd(Source::bytes(vec![7; 5000]));
        guest.word(guest.boot(&kernel).state.gpr[gpr::RSI] + 0x218)
    };
    assert_eq!(initrd(u32::MAX), 64 * MIB - 8192);
    assert_eq!(initrd(0x1ff_ffff), 32 * MIB - 8192);
}

#[test]
fn several_archives_follow_each_other_at_multiples_of_4() {
    let guest = Guest::new(64 * MIB);
    let mut image = kernel(BzImage::default().build());
    for part in ["first", "2nd", "third..."] {
        image = image.initrd(Source::bytes(part.as_bytes()));
    }
    // What the guest left there must not show between them.
    guest.ram.write(posada_memory::Gpa(63 * MIB), &vec![0xee; MIB as usize]).unwrap();
    let zero_page = guest.boot(&image).state.gpr[gpr::RSI];
    let (initrd, size) = (guest.word(zero_page + 0x218), guest.word(zero_page + 0x21c));
    assert_eq!(guest.bytes(initrd, size as usize), b"first\0\0\x002nd\0third...");
}

#[test]
fn an_initrd_larger_than_memory_is_refused() {
    let guest = Guest::new(32 * MIB);
    let kernel = kernel(BzImage::default().build()).initrd(Source::bytes(vec![0; 40 << 20]));
    let error = guest.load(&kernel).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the initrd needs 41943040 bytes, and no free range of guest RAM below 0x80000000 is as large; give it \
         more memory"
    );
}

#[test]
fn the_command_line_has_a_limit_and_no_zero_byte() {
    let guest = Guest::new(64 * MIB);
    let load = |image: BzImage, line: &str| guest.load(&kernel(image.build()).append(line));
    assert!(load(BzImage::default(), &"x".repeat(2047)).is_ok());
    let error = load(BzImage::default(), &"x".repeat(2048)).unwrap_err();
    assert!(matches!(error, Error::CommandLineTooLong { length: 2048, limit: 2047 }), "{error}");
    let old = || BzImage { version: 0x0205, ..BzImage::default() };
    assert!(load(old(), &"x".repeat(255)).is_ok());
    assert!(matches!(load(old(), &"x".repeat(256)), Err(Error::CommandLineTooLong { limit: 255, .. })));
    assert!(matches!(load(BzImage::default(), "a\0b"), Err(Error::CommandLineZero { position: 1 })));
}

#[test]
fn kernels_that_need_a_bios_are_refused() {
    let guest = Guest::new(64 * MIB);
    for image in [
        BzImage { loadflags: 0, ..BzImage::default() },
        BzImage { version: 0x0201, ..BzImage::default() },
        BzImage { code32_start: 0x1000, ..BzImage::default() },
    ] {
        let error = guest.load(&kernel(image.build())).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("BIOS"), "{error}");
    }
}

#[test]
fn a_truncated_kernel_says_where_it_ends() {
    let guest = Guest::new(64 * MIB);
    let image = BzImage::default().build();
    for len in [0x210, 0x300, 1024, image.len() - 16] {
        let error = guest.load(&kernel(&image[..len])).unwrap_err();
        assert!(matches!(error, Error::Truncated { has, .. } if has == len as u64), "{len}: {error}");
    }
}

#[test]
fn the_last_paragraph_of_the_code_need_not_be_full() {
    let guest = Guest::new(64 * MIB);
    let image = BzImage::default().build();
    assert!(guest.load(&kernel(&image[..image.len() - 15])).is_ok());
}

#[test]
fn a_header_that_contradicts_itself_is_corrupt() {
    let guest = Guest::new(64 * MIB);
    let odd = BzImage { kernel_alignment: 3, ..BzImage::default() };
    let error = guest.load(&kernel(odd.build())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let mut payload = BzImage::default().build();
    payload[0x248..0x250].copy_from_slice(&[0, 0x10, 0, 0, 1, 0, 0, 0]);
    let error = guest.load(&kernel(payload)).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}
