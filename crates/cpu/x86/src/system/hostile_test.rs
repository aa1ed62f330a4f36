//! A guest may put anything into its tables: nothing in them brings the interpreter down.

use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{Running, Segment, Table, rflags};

use crate::system::fixture::*;
use crate::testing::{CODE as START, DATA as FREE_RAM, Guest, STACK};

/// Xorshift: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }

    /// An address that may be good, or at one of the edges.
    fn address(&mut self) -> u64 {
        let edge = self.of(&[0, 0xffff, 0xffff_ffff, 1 << 47, 0xffff_8000_0000_0000, u64::MAX]);
        let near = self.next() % 64;
        match self.next() % 4 {
            0 => edge.wrapping_sub(32).wrapping_add(near),
            1 => self.next(),
            _ => self.of(&[GDT, IDT, TSS, STACK, FREE_RAM, START]) + near,
        }
    }

    fn selector(&mut self) -> u16 {
        (self.next() % 0x110) as u16
    }

    /// A descriptor or gate of any type, most of them present.
    fn descriptor(&mut self) -> u64 {
        let raw = if self.one_in(2) {
            let target = self.address();
            gate(self.next() as u8 & 0xf, self.next() as u8 & 3, self.selector(), target)
        } else {
            let rights = self.of(&[0, 0x4000, 0x2000, 0xc000, 0xa000, 0xe000]) | self.next() as u16 & 0x7f;
            descriptor(self.address(), self.next() as u32 & 0xf_ffff, rights)
        };
        if self.one_in(8) { raw } else { raw | 1 << 47 }
    }

    fn segment(&mut self) -> Segment {
        let mut segment = Segment::from_descriptor(self.selector(), self.descriptor());
        if self.one_in(4) {
            segment.base = self.address();
        }
        segment
    }
}

const INSTRUCTIONS: &[&[u8]] = &[
    &[0xcf],
    &[0x66, 0xcf],
    &[0x48, 0xcf],
    &[0xcb],
    &[0x66, 0xcb],
    &[0x48, 0xcb],
    &[0xca, 0xff, 0xff],
    &[0xff, 0x2b],
    &[0xff, 0x1b],
    &[0x66, 0xff, 0x1b],
    &[0x48, 0xff, 0x1b],
    &[0xcd, 0x80],
    &[0xcc],
    &[0xf1],
    &[0x0f, 0x0b],
    &[0x8e, 0xd8],
    &[0x8e, 0xd0],
    &[0x8e, 0xe8],
    &[0x07],
    &[0x17],
    &[0x0f, 0xa1],
    &[0x0f, 0xb2, 0x0b],
    &[0x0f, 0x00, 0xd0],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x02, 0xc8],
    &[0x0f, 0x03, 0xc8],
    &[0x0f, 0x00, 0xe8],
    &[0x0f, 0x01, 0x13],
    &[0x0f, 0x01, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0x01, 0xf0],
    &[0x9d],
    &[0xee],
    &[0x6e],
];

fn scramble(ram: &GuestRam, numbers: &mut Numbers) {
    for at in (GDT..GDT + 0x110).chain(IDT..IDT + 0x1000).step_by(8) {
        let value = numbers.descriptor();
        ram.write(Gpa(at), &value.to_le_bytes()).expect("inside RAM");
    }
    for at in (TSS..TSS + 0x80).chain(STACK - 0x80..STACK + 0x80).chain(FREE_RAM..FREE_RAM + 0x40).step_by(4)
    {
        let value = if numbers.one_in(2) { numbers.selector().into() } else { numbers.address() };
        ram.write(Gpa(at), &value.to_le_bytes()).expect("inside RAM");
    }
}

#[test]
fn no_table_brings_the_interpreter_down() {
    let numbers = &mut Numbers(0x9e37_79b9_7f4a_7c15);
    let kinds: [fn() -> Guest; 7] = [
        Guest::real,
        Guest::v8086,
        Guest::protected16,
        Guest::protected,
        Guest::long,
        Guest::user,
        Guest::user32,
    ];
    for _ in 0..4000 {
        let guest = numbers.of(&kinds)().with_system();
        scramble(&guest.connections.ram, numbers);
        let code: Vec<u8> = (0..6).flat_map(|_| numbers.of(INSTRUCTIONS)).copied().collect();
        let guest = guest.memory(START, &code).with(|state| {
            for register in &mut state.gpr {
                *register = numbers.address();
            }
            state.gpr[3] = FREE_RAM;
            state.gpr[4] = if numbers.one_in(4) { numbers.address() } else { STACK };
            let flags = rflags::NT | rflags::IOPL | rflags::AC | rflags::TF | rflags::OF;
            state.rflags |= numbers.next() & flags;
            for register in [&mut state.segments.ldtr, &mut state.segments.tr] {
                if numbers.one_in(3) {
                    *register = numbers.segment();
                }
            }
            for table in [&mut state.gdtr, &mut state.idtr] {
                if numbers.one_in(4) {
                    *table = Table { base: numbers.address(), limit: numbers.next() as u16 };
                }
            }
            if numbers.one_in(8) {
                state.segments.ss = numbers.segment();
                state.segments.ss.attributes |= u16::from(state.segments.cs.dpl()) << 5;
            }
            state.msrs.star = numbers.next();
            (state.msrs.lstar, state.msrs.cstar) = (numbers.address(), numbers.address());
            state.msrs.efer |= 1;
        });
        let mut interpreter = guest.interpreter();
        for _ in 0..12 {
            interpreter.single_step_delivering();
            if interpreter.core().activity.running != Running::Running {
                break;
            }
        }
    }
}
