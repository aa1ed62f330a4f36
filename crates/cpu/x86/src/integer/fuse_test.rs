use iced_x86::IcedError;
use iced_x86::code_asm::*;
use posada_vcpu::Vcpu;
use posada_vcpu::x86::{State, gpr};

use crate::testing::{CODE, DATA, Guest};

/// State and instruction count at the `hlt` that ends the code, one instruction at a time or in blocks.
fn both_ways(guest: impl Fn() -> Guest) -> [(State, Option<u64>); 2] {
    let stepped = guest().run();
    assert_eq!(stepped.fault, None);
    let whole = guest().run_delivering();
    [stepped, whole].map(|mut outcome| {
        outcome.state.activity = posada_vcpu::x86::Activity::default();
        (outcome.state, outcome.interpreter.instructions())
    })
}

const VALUES: [u64; 6] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_ffff_ff80, 1 << 63];

/// `code` on `rax`, `rcx` and the quadword at `rbx`, with all values there, before each of the conditional branches;
/// what comes of it is gathered in `r9` and `r10`.
fn program(code: &[u8]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for first in VALUES {
        for second in VALUES {
            for condition in 0..16_u8 {
                a.mov(rax, first)?;
                a.mov(rcx, second)?;
                a.mov(qword_ptr(rbx), rax)?;
                a.db(code)?;
                // The branch over `inc r9`.
                a.db(&[0x70 | condition, 3])?;
                a.inc(r9)?;
                a.pushfq()?;
                a.pop(rdx)?;
                a.add(r10, rdx)?;
                a.rol(r10, 1)?;
                a.add(r10, rax)?;
                a.rol(r9, 1)?;
            }
        }
    }
    a.hlt()?;
    a.assemble(CODE)
}

#[test]
fn a_pair_does_what_its_instructions_do_one_by_one() {
    let codes: [&[u8]; 25] = [
        &[0x38, 0xc8],
        &[0x39, 0xc8],
        &[0x48, 0x39, 0xc8],
        &[0x3c, 0x80],
        &[0x3d, 0, 0, 0, 0x80],
        &[0x48, 0x83, 0xf8, 0xff],
        &[0x80, 0xfc, 1],
        &[0x84, 0xc8],
        &[0x85, 0xc0],
        &[0x48, 0x85, 0xc8],
        &[0xa9, 0, 0, 0, 0x80],
        &[0x48, 0x29, 0xc8],
        &[0x83, 0xe8, 1],
        &[0x48, 0x83, 0xc0, 0x80],
        &[0x01, 0xc8],
        &[0x83, 0xe0, 0xf0],
        &[0xff, 0xc8],
        &[0x48, 0xff, 0xc0],
        // In memory: the byte, doubleword and quadword at rbx, and relative to the instruction pointer.
        &[0x80, 0x3b, 0x80],
        &[0x83, 0x3b, 0xff],
        &[0x48, 0x83, 0x3b, 0],
        &[0x48, 0x39, 0x0b],
        &[0x84, 0x0b],
        &[0xf7, 0x03, 0, 0, 0, 0x80],
        &[0x81, 0x3d, 0, 0x20, 0, 0, 1, 0, 0, 0],
    ];
    for code in codes {
        let program = program(code).expect("the instructions can be encoded");
        let [stepped, whole] = both_ways(|| Guest::long().bytes(&program).reg(gpr::RBX, 0x10_0000));
        assert_eq!(stepped, whole, "{code:x?}");
    }
}

#[test]
fn a_pair_relative_to_the_instruction_pointer_finds_its_operand() {
    // cmp dword [rip + disp], 7; je over mov al, 1; the operand is at DATA.
    let displacement = (DATA - CODE - 10) as u32;
    let mut code = vec![0x81, 0x3d];
    code.extend(displacement.to_le_bytes());
    code.extend([7, 0, 0, 0, 0x74, 2, 0xb0, 1, 0xf4]);
    let o = Guest::long().bytes(&code).memory(DATA, &[7]).run_delivering();
    assert_eq!(o.reg(gpr::RAX), 0);
}

#[test]
fn a_comparison_in_a_pair_faults_at_itself() {
    let guest = Guest::long()
        .code(|a| {
            let mut over = a.create_label();
            a.nop()?;
            a.cmp(byte_ptr(rbx), 1)?;
            a.je(over)?;
            a.nop()?;
            a.set_label(&mut over)?;
            a.hlt()
        })
        .reg(gpr::RBX, 1 << 40);
    let mut interpreter = guest.interpreter();
    assert_eq!(interpreter.whole_block(), Err(crate::op::Stop::Fault));
    assert_eq!(interpreter.core().rip(), CODE + 1);
    assert_eq!((interpreter.core().fault.address, interpreter.instructions()), (1 << 40, Some(1)));
}

#[test]
fn loops_within_a_block_count_every_instruction() {
    let [stepped, whole] = both_ways(|| {
        Guest::long()
            .code(|a| {
                let (mut again, mut skip) = (a.create_label(), a.create_label());
                a.set_label(&mut again)?;
                a.add(rax, rcx)?;
                a.test(al, 1)?;
                a.je(skip)?;
                a.inc(rbx)?;
                a.set_label(&mut skip)?;
                a.dec(rcx)?;
                a.jne(again)?;
                a.hlt()
            })
            .reg(gpr::RCX, 1000)
            .reg(gpr::RBX, 0)
    });
    assert_eq!(stepped, whole);
    assert_eq!(whole.0.gpr[gpr::RAX], 500_500);
}
