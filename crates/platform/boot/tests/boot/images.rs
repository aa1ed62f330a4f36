//! Small images of every kind, to be changed by each test as it likes.

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A Linux bzImage with a current header.
pub(crate) struct BzImage {
    pub(crate) version: u16,
    pub(crate) loadflags: u8,
    pub(crate) xloadflags: u16,
    pub(crate) code32_start: u32,
    pub(crate) pref_address: u64,
    pub(crate) init_size: u32,
    pub(crate) kernel_alignment: u32,
    pub(crate) relocatable: u8,
    pub(crate) initrd_addr_max: u32,
    pub(crate) cmdline_size: u32,
    pub(crate) code: Vec<u8>,
}

impl Default for BzImage {
    fn default() -> Self {
        Self {
            version: 0x020f,
            loadflags: 1,
            xloadflags: 1,
            code32_start: 0x10_0000,
            pref_address: 0x100_0000,
            init_size: 0x20_0000,
            kernel_alignment: 0x20_0000,
            relocatable: 1,
            initrd_addr_max: 0x7fff_ffff,
            cmdline_size: 2047,
            code: (0..0x1000u32).map(|at| (at % 251) as u8).collect(),
        }
    }
}

impl BzImage {
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1; // setup_sects
        put(&mut image, 0x1f4, &(self.code.len() as u32 / 16).to_le_bytes());
        put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut image, 0x202, b"HdrS");
        put(&mut image, 0x206, &self.version.to_le_bytes());
        image[0x211] = self.loadflags;
        put(&mut image, 0x214, &self.code32_start.to_le_bytes());
        put(&mut image, 0x22c, &self.initrd_addr_max.to_le_bytes());
        put(&mut image, 0x230, &self.kernel_alignment.to_le_bytes());
        image[0x234] = self.relocatable;
        put(&mut image, 0x236, &self.xloadflags.to_le_bytes());
        put(&mut image, 0x238, &self.cmdline_size.to_le_bytes());
        put(&mut image, 0x250, &[0xff; 8]); // setup_data, which a file has no business to set
        put(&mut image, 0x258, &self.pref_address.to_le_bytes());
        put(&mut image, 0x260, &self.init_size.to_le_bytes());
        image.extend(&self.code);
        image
    }
}

/// A part of an ELF file.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) vaddr: u64,
    pub(crate) paddr: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
}

impl Segment {
    pub(crate) fn load(vaddr: u64, paddr: u64, data: Vec<u8>) -> Self {
        Self { kind: 1, vaddr, paddr, memory_size: data.len() as u64, data }
    }

    /// A note that gives the PVH entry, 4 or 8 bytes of it.
    pub(crate) fn pvh(entry: &[u8]) -> Self {
        // An unrelated one first, of an odd length.
        let mut data = note(b"GNU\0", 3, b"abc");
        data.extend(note(b"Xen\0", 18, entry));
        Self { kind: 4, vaddr: 0, paddr: 0, memory_size: data.len() as u64, data }
    }
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note: Vec<u8> =
        [name.len() as u32, desc.len() as u32, kind].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend(name);
    note.extend(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// An ELF executable.
#[derive(Clone)]
pub(crate) struct Elf {
    pub(crate) wide: bool,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
}

impl Elf {
    pub(crate) fn new(wide: bool, entry: u64, segments: Vec<Segment>) -> Self {
        Self { wide, machine: if wide { 62 } else { 3 }, entry, segments }
    }

    fn word(&self, value: u64) -> Vec<u8> {
        value.to_le_bytes()[..if self.wide { 8 } else { 4 }].to_vec()
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let (header, entry) = if self.wide { (64, 56) } else { (52, 32) };
        let mut image = b"\x7fELF".to_vec();
        image.extend([if self.wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        image.extend(2u16.to_le_bytes());
        image.extend(self.machine.to_le_bytes());
        image.extend(1u32.to_le_bytes());
        image.extend(self.word(self.entry));
        image.extend(self.word(header));
        image.extend(self.word(0));
        image.extend(0u32.to_le_bytes());
        for half in [header as u16, entry as u16, self.segments.len() as u16, 0, 0, 0] {
            image.extend(half.to_le_bytes());
        }
        let mut offset = header + entry * self.segments.len() as u64;
        offset = offset.next_multiple_of(16);
        for segment in &self.segments {
            let sizes = [segment.data.len() as u64, segment.memory_size];
            image.extend(segment.kind.to_le_bytes());
            if self.wide {
                image.extend(7u32.to_le_bytes());
            }
            for field in [offset, segment.vaddr, segment.paddr].into_iter().chain(sizes) {
                image.extend(self.word(field));
            }
            if !self.wide {
                image.extend(7u32.to_le_bytes());
            }
            image.extend(self.word(4));
            offset += sizes[0].next_multiple_of(16);
        }
        for segment in &self.segments {
            image.resize(image.len().next_multiple_of(16), 0);
            image.extend(&segment.data);
        }
        image
    }
}

/// A multiboot header with a right checksum.
pub(crate) fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let head = [magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags))];
    head.iter().chain(addresses).flat_map(|word| word.to_le_bytes()).collect()
}

/// An image without ELF headers, loaded to 1 MiB: header, then `code`, then cleared memory up to `bss_end`.
pub(crate) fn flat_multiboot(code: &[u8], bss_end: u32) -> Vec<u8> {
    let base = 0x10_0000;
    let mut image =
        multiboot_header(1 << 16, &[base, base, base + 32 + code.len() as u32, bss_end, base + 32]);
    image.extend(code);
    image
}
