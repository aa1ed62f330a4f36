//! The answers of the `cpuid` instruction (AMD APM volume 3, appendix E; leaves that AMD leaves out, Intel SDM
//! volume 2, CPUID).

use posada_vcpu::{Clock, x86::PROCESSOR_SIGNATURE};

use crate::model::{Feature, Model};
use crate::paging::PHYSICAL_BITS;

/// The last leaf of each range.
const LAST_STANDARD: u32 = 0x16;
const LAST_HYPERVISOR: u32 = 0x4000_0010;
const LAST_EXTENDED: u32 = 0x8000_0021;

const VENDOR: &[u8; 12] = b"AuthenticAMD";
/// Tells guests whose hypervisor it is.
const HYPERVISOR: &[u8; 12] = b"PosadaPosada";

/// Linear addresses have this many bits.
const LINEAR_BITS: u32 = 48;
/// The processor's frequency, as far as it has any.
const MHZ: u32 = (Clock::TSC_HZ / 1_000_000) as u32;
/// `clflush` works on lines of this many bytes.
const LINE: u32 = 64;

/// Bits of leaf 1 `edx` that AMD repeats in leaf 0x8000_0001.
const REPEATED: u32 = 0x0183_f3ff;
/// Leaf 1 `edx`: one package holds several logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 1 `edx`: the local APIC is there and enabled.
const APIC: u32 = 1 << 9;
/// Leaf 1 `ecx`: `cr4.OSXSAVE`, for programs to see.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 0x8000_0001 `ecx`: those logical processors are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// What the answers depend on besides the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Circumstances {
    /// APIC ID.
    pub index: u32,
    /// How many virtual CPUs there are: cores of one package.
    pub count: u32,
    pub apic_enabled: bool,
    pub osxsave: bool,
    /// Bytes that `xsave` writes with what is enabled in XCR0.
    pub xsave_size: u32,
}

/// The component of the upper halves of the YMM registers, and their size.
const AVX_STATE: u64 = 1 << 2;
const AVX_AREA: u32 = 256;

/// Bytes that `xsave` writes when all of `components` (as XCR0 names them) is in use.
pub(crate) fn xsave_size(components: u64) -> u32 {
    // The legacy area and the header are always there; x87 and SSE lie in the former.
    if components & AVX_STATE == 0 { 512 + 64 } else { 512 + 64 + AVX_AREA }
}

/// What the model lets XCR0 enable.
pub(crate) fn xsave_components(model: &Model) -> u64 {
    let avx = if model.has(Feature::Avx) { AVX_STATE } else { 0 };
    if model.has(Feature::Xsave) { 3 | avx } else { 0 }
}

/// `eax`, `ebx`, `ecx` and `edx` after `cpuid`. Leaves that do not exist answer zeros, as AMD's do.
pub(crate) fn answer(model: &Model, now: &Circumstances, leaf: u32, subleaf: u32) -> [u32; 4] {
    // Most leaves take no notice of `ecx`.
    let indexed = matches!(leaf, 4 | 7 | 0xb | 0xd);
    let [eax, ebx, ecx, edx] = model.announced(leaf, if indexed { subleaf } else { 0 });
    match leaf {
        0 => text(LAST_STANDARD, VENDOR),
        1 => {
            let logical = if now.count > 1 { now.count.min(255) } else { 1 };
            let identity = now.index << 24 | logical << 16 | (LINE / 8) << 8;
            let mut edx = edx | if now.count > 1 { HTT } else { 0 };
            if !now.apic_enabled {
                edx &= !APIC;
            }
            [PROCESSOR_SIGNATURE, identity, ecx | if now.osxsave { OSXSAVE } else { 0 }, edx]
        }
        7 if subleaf == 0 => [1, ebx, ecx, edx],
        0xb => topology(now, subleaf),
        0xd => extended_state(model, now, subleaf, eax),
        0x15 => [1, 1, Clock::TSC_HZ as u32, 0],
        // Base, maximum and bus frequency in MHz.
        0x16 => [MHZ, MHZ, MHZ, 0],
        0x4000_0000 => {
            let [last, first, third, second] = text(LAST_HYPERVISOR, HYPERVISOR);
            [last, first, second, third]
        }
        // Frequencies of the time-stamp counter and of the local APIC's timer in kHz, where other hypervisors
        // tell them, too.
        0x4000_0010 => [(Clock::TSC_HZ / 1000) as u32, 0, 0, 0],
        0x8000_0000 => text(LAST_EXTENDED, VENDOR),
        0x8000_0001 => {
            let repeated = model.announced(1, 0)[3] & REPEATED;
            let apic = if now.apic_enabled { APIC } else { 0 };
            let legacy = if now.count > 1 { CMP_LEGACY } else { 0 };
            [PROCESSOR_SIGNATURE, 0, ecx | legacy, edx | repeated & !APIC | apic]
        }
        0x8000_0002..=0x8000_0004 => brand(model, leaf - 0x8000_0002),
        // First-level TLBs and caches: 64 entries, fully associative; 32 KiB, 8 ways.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        // Second level: 1024 entries, 8 ways; 512 KiB, 8 ways. Third level: 8 MiB, 16 ways.
        0x8000_0006 => [0x6400_6400, 0x6400_6400, 0x0200_6140, 0x0040_8140],
        0x8000_0008 => {
            let cores = now.count.clamp(1, 256);
            [PHYSICAL_BITS | LINEAR_BITS << 8, ebx, id_bits(now.count) << 12 | (cores - 1), edx]
        }
        // TLBs for 1 GiB pages.
        0x8000_0019 => [0xf040_f040, 0xf040_f040, 0, 0],
        _ => [eax, ebx, ecx, edx],
    }
}

/// Bits of the APIC ID that number the cores of a package.
fn id_bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// The x2APIC topology: cores of one thread, all in one package.
fn topology(now: &Circumstances, subleaf: u32) -> [u32; 4] {
    const THREAD: u32 = 1 << 8;
    const CORE: u32 = 2 << 8;
    match subleaf {
        0 => [0, 1, THREAD, now.index],
        1 => [id_bits(now.count), now.count, 1 | CORE, now.index],
        _ => [0, 0, subleaf & 0xff, now.index],
    }
}

fn extended_state(model: &Model, now: &Circumstances, subleaf: u32, features: u32) -> [u32; 4] {
    let components = xsave_components(model);
    match subleaf {
        _ if components == 0 => [0; 4],
        0 => [components as u32, now.xsave_size, xsave_size(components), (components >> 32) as u32],
        1 => [features, now.xsave_size, 0, 0],
        // Size and place of the upper halves of the YMM registers.
        2 if components & AVX_STATE != 0 => [AVX_AREA, 512 + 64, 0, 0],
        _ => [0; 4],
    }
}

/// A leaf that begins a range: its last leaf and a name.
fn text(last: u32, name: &[u8; 12]) -> [u32; 4] {
    let word = |n: usize| u32::from_le_bytes([name[n], name[n + 1], name[n + 2], name[n + 3]]);
    [last, word(0), word(8), word(4)]
}

/// Sixteen of the 48 bytes of the processor's name.
fn brand(model: &Model, part: u32) -> [u32; 4] {
    let mut name = [0; 48];
    let text = format!("Posada {}", model.name());
    let len = text.len().min(name.len() - 1);
    name[..len].copy_from_slice(&text.as_bytes()[..len]);
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(name[part as usize * 16..].chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Circumstances =
        Circumstances { index: 0, count: 1, apic_enabled: true, osxsave: false, xsave_size: 576 };

    fn v2() -> Model {
        Model::named("x86-64-v2").expect("a listed model")
    }

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn vendor_and_hypervisor_are_named_in_their_own_orders_of_registers() {
        let [last, b, c, d] = answer(&v2(), &ALONE, 0, 0);
        assert_eq!((last, bytes(&[b, d, c]).as_slice()), (0x16, &VENDOR[..]));
        let [last, b, c, d] = answer(&v2(), &ALONE, 0x4000_0000, 0);
        assert_eq!((last, bytes(&[b, c, d]).as_slice()), (0x4000_0010, &HYPERVISOR[..]));
    }

    #[test]
    fn the_brand_string_names_the_model() {
        let name: Vec<u8> =
            (0x8000_0002..=0x8000_0004).flat_map(|leaf| bytes(&answer(&v2(), &ALONE, leaf, 0))).collect();
        assert_eq!(name.len(), 48);
        assert!(name.starts_with(b"Posada x86-64-v2\0"));
    }

    #[test]
    fn cores_of_one_package_are_told_in_every_way_that_guests_ask() {
        let third = Circumstances { index: 2, count: 3, ..ALONE };
        let [_, b, _, d] = answer(&v2(), &third, 1, 0);
        assert_eq!((b >> 24, b >> 16 & 0xff, d & HTT), (2, 3, HTT));
        assert_eq!(answer(&v2(), &third, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(answer(&v2(), &third, 0x8000_0008, 0)[2], 2 << 12 | 2);
        assert_eq!(answer(&v2(), &third, 0x8000_0001, 0)[2] & CMP_LEGACY, CMP_LEGACY);
        let [_, b, _, d] = answer(&v2(), &ALONE, 1, 0);
        assert_eq!((b >> 16 & 0xff, d & HTT), (1, 0));
        assert_eq!(answer(&v2(), &ALONE, 0xb, 1), [0, 1, 0x201, 0]);
    }

    #[test]
    fn what_the_system_has_enabled_shows() {
        let off = Circumstances { apic_enabled: false, ..ALONE };
        assert_eq!(answer(&v2(), &off, 1, 0)[3] & APIC, 0);
        assert_eq!(answer(&v2(), &off, 0x8000_0001, 0)[3] & APIC, 0);
        assert_eq!(answer(&v2(), &ALONE, 1, 0)[2] & OSXSAVE, 0);
        let on = Circumstances { osxsave: true, ..ALONE };
        assert_eq!(answer(&v2(), &on, 1, 0)[2] & OSXSAVE, OSXSAVE);
    }

    #[test]
    fn a_model_without_xsave_has_no_extended_state_to_tell_of() {
        let v1 = Model::named("x86-64-v1").expect("a listed model");
        assert_eq!(answer(&v1, &ALONE, 0xd, 0), [0; 4]);
        assert_eq!(answer(&v2(), &ALONE, 0xd, 0), [3, 576, 576, 0]);
    }

    #[test]
    fn upper_halves_of_vectors_are_a_component_of_the_extended_state() {
        let v3 = Model::named("x86-64-v3").expect("a listed model");
        assert_eq!(answer(&v3, &ALONE, 0xd, 0), [7, 576, 832, 0]);
        assert_eq!(answer(&v3, &ALONE, 0xd, 2), [256, 576, 0, 0]);
        assert_eq!(answer(&v2(), &ALONE, 0xd, 2), [0; 4]);
    }

    #[test]
    fn leaves_beyond_the_last_answer_zeros() {
        for leaf in [0x17, 0x1000, 0x4000_0011, 0x8000_0022, 0xffff_ffff] {
            assert_eq!(answer(&v2(), &ALONE, leaf, 0), [0; 4], "{leaf:#x}");
        }
    }
}
