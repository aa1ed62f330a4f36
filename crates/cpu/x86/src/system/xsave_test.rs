//! `fxsave`, `xsave` and their kin.

use iced_x86::code_asm::*;
use posada_vcpu::x86::gpr::{RAX, RBX, RCX, RDX};
use posada_vcpu::x86::{State, X87, X87Register, cr0, cr4, rflags};

use crate::exception::vector;
use crate::testing::{DATA, Guest, Outcome};

const GP: Option<(u8, Option<u32>)> = Some((vector::GP, Some(0)));
const UD: Option<(u8, Option<u32>)> = Some((vector::UD, None));
const NM: Option<(u8, Option<u32>)> = Some((vector::NM, None));
/// Where areas are: filled with ones before they are written.
const AREA: u64 = DATA + 0x400;
const HEADER: u64 = AREA + 512;
const COMPACT: u64 = 1 << 63;

/// State in which everything is something.
fn busy(state: &mut State) {
    let register = |n: u64| X87Register { significand: n << 63 | n << 8, sign_exponent: 0x4000 + n as u16 };
    state.x87 = X87 {
        registers: std::array::from_fn(|n| register(n as u64 + 1)),
        control: 0x27f,
        status: 5 << 11 | 0x4000,
        occupied: 0b1110_0001,
        opcode: 0x123,
        instruction: 0x1111_2222_3333,
        instruction_selector: 0x33,
        data: 0x4444_5555_6666,
        data_selector: 0x2b,
    };
    state.ymm = std::array::from_fn(|n| [n as u64 + 1, !(n as u64), 0, 0]);
    state.mxcsr = 0x1fbf;
}

fn guest() -> Guest {
    let guest = Guest::long().with(|state| {
        state.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
        state.xcr0 = 3;
    });
    guest.memory(AREA, &[0xff; 640]).reg(RAX, 3).reg(RBX, AREA)
}

fn save(write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Outcome {
    guest().with(busy).code(write).run()
}

/// The state after a save, after which everything is lost, and a restore.
fn round_trip(
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    restore: &[u8],
) -> State {
    let saved = guest().memory(HEADER, &[0; 64]).with(busy).code(write).run();
    assert_eq!(saved.fault(), None);
    let mut area = [0; 576];
    saved.ram.read(posada_memory::Gpa(AREA), &mut area).expect("inside RAM");
    let outcome = guest().memory(AREA, &area).bytes(restore).run();
    assert_eq!(outcome.fault(), None);
    outcome.state
}

#[test]
fn what_is_saved_can_be_restored() {
    let mut expected = Guest::long().state;
    busy(&mut expected);
    for (state, pointers) in [
        (round_trip(|a| a.fxsave64(ptr(rbx)), &[0x48, 0x0f, 0xae, 0x0b]), true),
        (round_trip(|a| a.fxsave(ptr(rbx)), &[0x0f, 0xae, 0x0b]), false),
        (round_trip(|a| a.xsave64(ptr(rbx)), &[0x48, 0x0f, 0xae, 0x2b]), true),
        (round_trip(|a| a.xsaveopt64(ptr(rbx)), &[0x48, 0x0f, 0xae, 0x2b]), true),
        (round_trip(|a| a.xsavec64(ptr(rbx)), &[0x48, 0x0f, 0xae, 0x2b]), true),
        (round_trip(|a| a.xsave(ptr(rbx)), &[0x0f, 0xae, 0x2b]), false),
    ] {
        assert_eq!((state.ymm, state.mxcsr), (expected.ymm, expected.mxcsr));
        let mut x87 = expected.x87.clone();
        // Either whole pointers or selectors and halves of pointers.
        if pointers {
            (x87.instruction_selector, x87.data_selector) = (0, 0);
        } else {
            (x87.instruction, x87.data) = (x87.instruction & 0xffff_ffff, x87.data & 0xffff_ffff);
        }
        assert_eq!(state.x87, x87);
    }
}

#[test]
fn upper_halves_of_vectors_are_a_component_of_their_own() {
    let wide = || {
        let mut guest = guest();
        guest.model = crate::Model::named("x86-64-v3").expect("a listed model");
        guest.reg(RAX, 7).with(|state| state.xcr0 = 7)
    };
    let busy = |state: &mut State| {
        for (n, register) in state.ymm.iter_mut().enumerate() {
            *register = [1, 2, 3 + n as u64, 4];
        }
    };
    // In the standard and in the compacted format they lie behind the header.
    // `xsave64`, `xsaveopt64`, `xsavec64`.
    for (save, format) in [([0xae, 0x23], 0), ([0xae, 0x33], 0), ([0xc7, 0x23], 1 << 63 | 7_u64)] {
        let bytes = [0x48, 0x0f, save[0], save[1]];
        let saved = wide().memory(AREA, &[0; 832]).with(busy).bytes(&bytes).run();
        assert_eq!(saved.fault(), None);
        assert_eq!(saved.load::<u64>(HEADER) & 6, 6);
        assert_eq!(saved.load::<u64>(HEADER + 8), format);
        assert_eq!((saved.load::<u64>(AREA + 576), saved.load::<u64>(AREA + 576 + 15 * 16)), (3, 18));
        let mut area = [0; 832];
        saved.ram.read(posada_memory::Gpa(AREA), &mut area).expect("inside RAM");
        let restored = wide().memory(AREA, &area).bytes(&[0x48, 0x0f, 0xae, 0x2b]).run();
        assert_eq!(restored.fault(), None);
        assert_eq!(restored.state.ymm[15], [1, 2, 18, 4]);
        // What the area does not have is in its initial state.
        area[512] &= !4;
        let restored = wide().with(busy).memory(AREA, &area).bytes(&[0x48, 0x0f, 0xae, 0x2b]).run();
        assert_eq!((restored.fault(), restored.state.ymm[15]), (None, [1, 2, 0, 0]));
    }
}

#[test]
fn the_legacy_area_is_laid_out_as_ever() {
    let outcome = save(|a| a.fxsave(ptr(rbx)));
    assert_eq!(outcome.load::<u16>(AREA), 0x27f);
    assert_eq!(outcome.load::<u16>(AREA + 2), 5 << 11 | 0x4000);
    assert_eq!(outcome.load::<u8>(AREA + 4), 0b1110_0001);
    assert_eq!(outcome.load::<u16>(AREA + 6), 0x123);
    assert_eq!((outcome.load::<u32>(AREA + 8), outcome.load::<u16>(AREA + 12)), (0x2222_3333, 0x33));
    assert_eq!((outcome.load::<u32>(AREA + 16), outcome.load::<u16>(AREA + 20)), (0x5555_6666, 0x2b));
    assert_eq!((outcome.load::<u32>(AREA + 24), outcome.load::<u32>(AREA + 28)), (0x1fbf, 0xffff));
    // The top of the stack comes first: physical register 5.
    assert_eq!(outcome.load::<u64>(AREA + 32), 6 << 8);
    assert_eq!(outcome.load::<u64>(AREA + 40), 0x4006);
    assert_eq!(outcome.load::<u64>(AREA + 160 + 15 * 16), 16);
    assert_eq!(outcome.load::<u64>(AREA + 416), u64::MAX, "what is behind is not touched");
}

#[test]
fn only_64_bit_mode_has_sixteen_registers() {
    let guest = Guest::protected().with(busy).with(|state| state.cr4 |= cr4::OSFXSR);
    let outcome = guest.memory(AREA, &[0xff; 512]).reg(RBX, AREA).bytes(&[0x0f, 0xae, 0x03]).run();
    assert_eq!(outcome.load::<u64>(AREA + 160 + 7 * 16), 8);
    assert_eq!(outcome.load::<u64>(AREA + 160 + 8 * 16), u64::MAX);
}

#[test]
fn areas_must_be_aligned() {
    assert_eq!(guest().reg(RBX, AREA + 8).code(|a| a.fxsave(ptr(rbx))).run().fault(), GP);
    assert_eq!(guest().reg(RBX, AREA + 8).code(|a| a.fxrstor(ptr(rbx))).run().fault(), GP);
    assert_eq!(guest().reg(RBX, AREA + 16).code(|a| a.fxsave(ptr(rbx))).run().fault(), None);
    assert_eq!(guest().reg(RBX, AREA + 16).code(|a| a.xsave(ptr(rbx))).run().fault(), GP);
    assert_eq!(guest().reg(RBX, AREA + 32).code(|a| a.xrstor(ptr(rbx))).run().fault(), GP);
}

#[test]
fn alignment_checks_come_before_the_areas_own() {
    let guest = Guest::user().with(|state| state.cr0 |= cr0::AM).flags(rflags::AC);
    let outcome = guest.reg(RBX, AREA + 8).code(|a| a.fxsave(ptr(rbx))).run();
    assert_eq!(outcome.fault(), Some((vector::AC, Some(0))));
}

#[test]
fn all_of_the_legacy_area_must_be_there() {
    let end = 1_u64 << 30;
    let outcome = guest().reg(RBX, end - 416).code(|a| a.fxsave(ptr(rbx))).run();
    assert_eq!(outcome.fault(), Some((vector::PF, Some(2))));
    assert_eq!(outcome.fault.map(|fault| fault.address), Some(end + 95));
}

#[test]
fn reserved_bits_of_mxcsr_are_refused() {
    let guest = guest().memory(AREA, &[0; 576]).memory(AREA + 24, &0x1_0000_u32.to_le_bytes());
    let outcome = guest.code(|a| a.fxrstor(ptr(rbx))).run();
    assert_eq!(outcome.fault(), GP);
}

#[test]
fn instructions_follow_the_switches_of_the_system() {
    let off = |change: fn(&mut State)| guest().with(change);
    let ts = |state: &mut State| state.cr0 |= cr0::TS;
    let em = |state: &mut State| state.cr0 |= cr0::EM;
    assert_eq!(off(ts).code(|a| a.fxsave(ptr(rbx))).run().fault(), NM);
    assert_eq!(off(em).code(|a| a.fxsave(ptr(rbx))).run().fault(), NM);
    assert_eq!(off(ts).code(|a| a.xsave(ptr(rbx))).run().fault(), NM);
    let without: fn(&mut State) = |state| state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(off(without).code(|a| a.xsave(ptr(rbx))).run().fault(), UD);
    assert_eq!(off(without).code(|a| a.xrstor(ptr(rbx))).run().fault(), UD);
    assert_eq!(off(without).code(|a| a.xgetbv()).run().fault(), UD);
    let mut old = guest();
    old.model = crate::Model::named("x86-64-v1").expect("a listed model");
    assert_eq!(old.code(|a| a.xsave(ptr(rbx))).run().fault(), UD);
}

#[test]
fn xsave_writes_what_is_asked_for_and_leaves_the_rest() {
    let outcome =
        guest().with(busy).memory(HEADER, &[0xf0; 8]).reg(RAX, 2).code(|a| a.xsave64(ptr(rbx))).run();
    assert_eq!(outcome.load::<u64>(AREA), u64::MAX, "no x87");
    assert_eq!(outcome.load::<u32>(AREA + 24), 0x1fbf);
    assert_eq!(outcome.load::<u64>(AREA + 160), 1);
    assert_eq!(outcome.load::<u64>(HEADER), 0xf0f0_f0f0_f0f0_f0f2);
    assert_eq!(outcome.load::<u64>(HEADER + 8), u64::MAX, "the rest of the header is not touched");
}

#[test]
fn components_in_their_initial_state_are_noted_as_such() {
    let outcome = guest().with(|state| state.x87 = X87::default()).code(|a| a.xsave64(ptr(rbx))).run();
    assert_eq!(outcome.load::<u64>(HEADER) & 3, 0);
    assert_eq!(outcome.load::<u16>(AREA), 0x37f, "written all the same");
    let outcome = guest().with(|state| state.x87 = X87::default()).code(|a| a.xsaveopt64(ptr(rbx))).run();
    assert_eq!(outcome.load::<u64>(HEADER) & 3, 0);
    assert_eq!(outcome.load::<u16>(AREA), 0xffff, "not written");
    assert_eq!(outcome.load::<u32>(AREA + 24), 0x1f80, "but mxcsr is");
}

#[test]
fn the_compacted_format_says_so() {
    let outcome = guest().with(busy).reg(RAX, 1).code(|a| a.xsavec64(ptr(rbx))).run();
    assert_eq!((outcome.load::<u64>(HEADER), outcome.load::<u64>(HEADER + 8)), (1, COMPACT | 1));
    assert_eq!(outcome.load::<u32>(AREA + 24), u32::MAX, "no SSE, no mxcsr");
    let only_mxcsr = guest().with(|state| {
        state.x87 = X87::default();
        state.mxcsr = 0x1f81;
    });
    let outcome = only_mxcsr.code(|a| a.xsavec64(ptr(rbx))).run();
    assert_eq!((outcome.load::<u64>(HEADER), outcome.load::<u32>(AREA + 24)), (2, 0x1f81));
}

#[test]
fn what_the_area_lacks_is_initialized() {
    let area = || guest().with(busy).memory(AREA, &[0; 576]).memory(AREA + 24, &0x1f80_u32.to_le_bytes());
    let state = area().code(|a| a.xrstor64(ptr(rbx))).run().state;
    assert_eq!((state.x87, state.ymm, state.mxcsr), (X87::default(), [[0; 4]; 16], 0x1f80));
    let mut expected = Guest::long().state;
    busy(&mut expected);
    let state = area().reg(RAX, 1).code(|a| a.xrstor64(ptr(rbx))).run().state;
    assert_eq!((state.x87, state.ymm, state.mxcsr), (X87::default(), expected.ymm, expected.mxcsr));
}

#[test]
fn xrstor_refuses_bad_headers() {
    let header = |words: [u64; 8]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let guest = guest().memory(AREA, &[0; 512]).memory(HEADER, &bytes);
        guest.code(|a| a.xrstor64(ptr(rbx))).run().fault()
    };
    assert_eq!(header([3, 0, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(header([3, 0, 0, 1, 0, 0, 0, 0]), None, "not looked at in the standard format");
    assert_eq!(header([4, 0, 0, 0, 0, 0, 0, 0]), GP, "a component that is not enabled");
    assert_eq!(header([0, 1, 0, 0, 0, 0, 0, 0]), GP);
    assert_eq!(header([0, 0, 1, 0, 0, 0, 0, 0]), GP);
    assert_eq!(header([3, COMPACT | 3, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(header([3, COMPACT | 1, 0, 0, 0, 0, 0, 0]), GP, "present, but not in the format");
    assert_eq!(header([0, COMPACT | 4, 0, 0, 0, 0, 0, 0]), GP);
    assert_eq!(header([0, COMPACT, 0, 0, 0, 0, 0, 1]), GP);
}

#[test]
fn a_pending_exception_follows_from_flags_and_masks() {
    let area = |control: u16, status: u16| {
        let guest = guest().memory(AREA, &[0; 576]).memory(AREA, &control.to_le_bytes());
        let outcome = guest.memory(AREA + 2, &status.to_le_bytes()).code(|a| a.fxrstor(ptr(rbx))).run();
        outcome.state.x87.status
    };
    assert_eq!(area(0x37f, 0x8081), 1);
    assert_eq!(area(0x37e, 1), 0x8081);
}

#[test]
fn an_area_across_a_page_that_is_missing_is_not_written_at_all() {
    let end = 1_u64 << 30;
    let guest = guest().with(busy).memory(0x3000 + 511 * 8, &0x83_u64.to_le_bytes());
    let outcome = guest.reg(RBX, end - 512).code(|a| a.xsave64(ptr(rbx))).run();
    assert_eq!(outcome.fault(), Some((vector::PF, Some(2))));
    assert_eq!(outcome.load::<u64>((2 << 20) - 512), 0);
}

#[test]
fn xcr0_is_read_by_all_and_written_by_the_kernel() {
    let read = |n: u64| guest().reg(RCX, n).reg(RAX, 9).reg(RDX, 9).code(|a| a.xgetbv()).run();
    assert_eq!((read(0).reg(RAX), read(0).reg(RDX)), (3, 0));
    assert_eq!(read(1).reg(RAX) & !3, 0);
    assert_eq!(read(2).fault(), GP);
    let write =
        |n: u64, value: u64| guest().reg(RCX, n).reg(RAX, value).reg(RDX, 0).code(|a| a.xsetbv()).run();
    let outcome = write(0, 1);
    assert_eq!((outcome.fault(), outcome.state.xcr0), (None, 1));
    for (n, value) in [(0, 2), (0, 0), (0, 7), (0, 1 << 9 | 1), (1, 1)] {
        assert_eq!(write(n, value).fault(), GP, "{value:#x} to {n}");
    }
    let user = Guest::user().with(|state| state.cr4 |= cr4::OSXSAVE).reg(RAX, 1);
    assert_eq!(user.code(|a| a.xsetbv()).run().fault(), GP);
}
