//! Boot protocols seen from outside: files made here, loaded into guest RAM, and what a kernel finds there.

mod acpi;
mod hostile;
mod images;
mod linux;
mod multiboot;
mod pvh;

use posada_boot::{Error, Kernel, Loaded, MemoryMap, Region, RegionKind, Source, load};
use posada_memory::{Gpa, GuestRam};

const MIB: u64 = 1 << 20;
const RSDP: Gpa = Gpa(0xe_0000);

/// A guest's memory and what it is told of it.
struct Guest {
    ram: GuestRam,
    map: MemoryMap,
}

impl Guest {
    fn new(memory: u64) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), 0xa_0000), (Gpa(0xc_0000), memory - 0xc_0000)]).unwrap();
        let map = MemoryMap::new(vec![
            Region::between(0, 0x9_fc00, RegionKind::Ram),
            Region::between(0x9_fc00, 0xa_0000, RegionKind::Reserved),
            Region::between(0xe_0000, MIB, RegionKind::Reserved),
            Region::between(MIB, memory, RegionKind::Ram),
        ]);
        Self { ram, map: map.unwrap() }
    }

    fn load(&self, kernel: &Kernel) -> Result<Loaded, Error> {
        load(&self.ram, kernel, &self.map, Some(RSDP))
    }

    /// A kernel that has to load.
    fn boot(&self, kernel: &Kernel) -> Loaded {
        self.load(kernel).unwrap()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    fn word(&self, at: u64) -> u64 {
        u64::from(u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap()))
    }

    fn quad(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }

    /// The zero-terminated string at `at`.
    fn string(&self, at: u64) -> String {
        let bytes =
            (at..at + 0x1_0000).map(|at| self.bytes(at, 1)[0]).take_while(|&byte| byte != 0).collect();
        String::from_utf8(bytes).unwrap()
    }
}

fn kernel(image: impl AsRef<[u8]>) -> Kernel {
    Kernel::new(Source::bytes(image.as_ref()))
}

#[test]
fn files_that_are_no_kernels_are_named() {
    let guest = Guest::new(16 * MIB);
    let mut boot_sector = vec![0; 512];
    boot_sector[510..].copy_from_slice(&[0x55, 0xaa]);
    for (bytes, named) in [
        (&b""[..], "it is empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"MZ\x90\0", "EFI program"),
        (b"070701000000", "initrd"),
        (&boot_sector, "boot sector"),
        (b"hello, world", "68 65 6c 6c 6f 2c 20 77"),
    ] {
        let error = guest.load(&kernel(bytes)).unwrap_err();
        assert!(matches!(error, Error::NotAKernel { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error} / {named}");
    }
}

#[test]
fn a_kernel_loads_from_a_file_and_again_for_a_reboot() {
    use std::io::Write;

    let image = images::BzImage::default().build();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    let mut initrd = tempfile::tempfile().unwrap();
    initrd.write_all(b"0707").unwrap();
    let kernel =
        Kernel::new(Source::file(file).unwrap()).initrd(Source::file(initrd).unwrap()).append("quiet");
    let (first, second) = (Guest::new(64 * MIB), Guest::new(64 * MIB));
    assert_eq!(first.boot(&kernel).state, second.boot(&kernel).state);
    assert_eq!(first.boot(&kernel).state, second.boot(&kernel).state);
    let code = images::BzImage::default().code;
    assert_eq!(first.bytes(16 * MIB, code.len()), code);
}

#[test]
fn the_bios_data_area_names_serial_ports_and_memory() {
    let guest = Guest::new(16 * MIB);
    let area = posada_boot::bios::DataArea { serial: [0x3f8, 0x2f8, 0, 0], extended: 0x9_fc00 };
    posada_boot::bios::write(&guest.ram, &area).unwrap();
    assert_eq!(guest.word(0x400), 0x02f8_03f8);
    assert_eq!(guest.bytes(0x40e, 2), [0xc0, 0x9f], "the extended area's segment");
    assert_eq!(guest.bytes(0x410, 2), [0x02, 0x04], "two serial ports");
    assert_eq!(guest.bytes(0x413, 2), 639u16.to_le_bytes());
    assert_eq!(guest.word(0x15 * 4), 0xf000_ff5d, "a vector");
}
