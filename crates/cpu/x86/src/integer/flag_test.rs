use iced_x86::code_asm::CodeAssembler;
use posada_vcpu::x86::{gpr, rflags};

use crate::testing::{CODE, Guest};

const ALL: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

#[test]
fn single_flags_change_alone() {
    for before in [0, ALL, ALL & !rflags::OF, rflags::OF, rflags::ZF | rflags::SF] {
        let after =
            |code: u8| Guest::long().bytes(&[code]).flags(before).run().state.rflags & (ALL | rflags::DF);
        assert_eq!(after(0xf8), before & !rflags::CF);
        assert_eq!(after(0xf9), before | rflags::CF);
        assert_eq!(after(0xf5), before ^ rflags::CF);
        assert_eq!(after(0xfd), before | rflags::DF);
        assert_eq!(after(0xfc), before);
    }
    let o = Guest::long().code(CodeAssembler::cld).flags(rflags::DF).run();
    assert!(!o.has(rflags::DF));
}

#[test]
fn ah_holds_the_low_flags() {
    let o = Guest::long().code(CodeAssembler::lahf).reg(gpr::RAX, u64::MAX).flags(ALL).run();
    assert_eq!(o.reg(gpr::RAX), 0xffff_ffff_ffff_d7ff);
    let o = Guest::long().code(CodeAssembler::sahf).reg(gpr::RAX, 0x2a00).flags(ALL).run();
    assert_eq!(o.state.rflags & ALL, rflags::OF, "OF stays");
    let o = Guest::long().code(CodeAssembler::sahf).reg(gpr::RAX, 0xff00).run();
    assert_eq!(o.state.rflags, ALL & !rflags::OF | rflags::FIXED);
}

#[test]
fn salc_spreads_the_carry() {
    let o = Guest::protected().bytes(&[0xd6]).reg(gpr::RAX, 0x1234).flags(rflags::CF).run();
    assert_eq!(o.reg(gpr::RAX), 0x12ff);
    assert_eq!(Guest::long().bytes(&[0xd6]).run().fault(), Some((6, None)));
}

#[test]
fn a_prefetch_of_a_register_is_undefined() {
    assert_eq!(Guest::long().bytes(&[0x0f, 0x0d, 0xc0]).run().fault(), Some((6, None)));
}

#[test]
fn hints_do_nothing_whatever_the_model_announces() {
    let hints: [&[u8]; 12] = [
        &[0x90],
        &[0xf3, 0x90],
        &[0x66, 0x90],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x0f, 0x1f, 0xc0],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x0f, 0x1e, 0xfb],
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        &[0x0f, 0x18, 0x08],
        &[0x0f, 0x0d, 0x08],
        &[0x0f, 0x1c, 0x00],
        &[0x0f, 0x19, 0xc0],
    ];
    for hint in hints {
        let guest = Guest::user().bytes(hint).reg(gpr::RAX, 1 << 40).flags(ALL);
        let before = guest.state.clone();
        let o = guest.run();
        assert_eq!((o.fault(), o.state.rip), (None, CODE + hint.len() as u64), "{hint:x?}");
        assert_eq!((o.state.gpr, o.state.rflags), (before.gpr, before.rflags), "{hint:x?}");
    }
}
