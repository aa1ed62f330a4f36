//! Any file as a kernel, on machines of several sizes.
//!
//! Beside "no panic" it checks what the board relies on: whatever a file asks for, nothing is written where the
//! memory map has no RAM, or over the firmware's own first page; and a kernel that loads starts inside RAM.

use posada_boot::{Kernel, MemoryMap, Region, RegionKind, Source, load};
use posada_memory::{Gpa, GuestRam};

const MIB: u64 = 1 << 20;
/// What belongs to firmware: start and length in bytes.
const RESERVED: [(u64, usize); 3] = [(0, 0x1000), (0x9_fc00, 0x400), (0xc_0000, 0x4_0000)];
const CANARY: u8 = 0xa5;

/// Loads what `data` has after its first byte, which chooses the size of memory and of the initrd.
///
/// # Panics
/// If the loader misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let Some((&shape, image)) = data.split_first() else { return };
    let memory = (2 + u64::from(shape & 15)) * MIB;
    let guest = Guest::new(memory);
    let initrd = vec![1; usize::from(shape >> 4) << 16];
    let kernel = Kernel::new(Source::bytes(image)).append("console=ttyS0").initrd(Source::bytes(initrd));
    match load(&guest.ram, &kernel, &guest.map, Some(Gpa(0xe_0000))) {
        Ok(loaded) => {
            let state = loaded.state;
            assert!(guest.ram.offset(Gpa(state.rip)).is_some(), "starts outside RAM:\n{state}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    guest.check();
}

struct Guest {
    ram: GuestRam,
    map: MemoryMap,
}

impl Guest {
    fn new(memory: u64) -> Self {
        let ram = GuestRam::new(&[(Gpa(0), 0xa_0000), (Gpa(0xc_0000), memory - 0xc_0000)]);
        let ram = ram.expect("a few MiB can be had");
        for (start, len) in RESERVED {
            ram.write(Gpa(start), &vec![CANARY; len]).expect("it is inside");
        }
        let map = MemoryMap::new(vec![
            Region::between(0, 0x9_fc00, RegionKind::Ram),
            Region::between(0x9_fc00, 0xa_0000, RegionKind::Reserved),
            Region::between(0xe_0000, MIB, RegionKind::Reserved),
            Region::between(MIB, memory, RegionKind::Ram),
        ]);
        Self { ram, map: map.expect("it is in order") }
    }

    fn check(&self) {
        for (start, len) in RESERVED {
            let mut bytes = vec![0; len];
            self.ram.read(Gpa(start), &mut bytes).expect("it is inside");
            let changed = bytes.iter().position(|&byte| byte != CANARY);
            assert_eq!(changed, None, "something was written at an offset from {start:#x}");
        }
    }
}
