//! The way that the interpreter has come since it was last compared.

use iced_x86::{Decoder, Instruction, Mnemonic, RflagsBits};
use posada_memory::GuestRam;
use posada_vcpu::x86::rflags;
use posada_x86::Model;

use crate::cache::{self, LONGEST};

/// Instructions that are kept from the start and from the end.
const KEPT: usize = 64;

/// An instruction's address, and its place in memory.
type At = (u64, Option<usize>);

/// The first and last instructions.
#[derive(Default)]
pub(super) struct Trail {
    first: Vec<At>,
    /// The last ones behind those, in a ring.
    last: Vec<At>,
    count: usize,
}

impl Trail {
    pub(super) fn clear(&mut self) {
        self.first.clear();
        self.last.clear();
        self.count = 0;
    }

    pub(super) fn push(&mut self, rip: u64, at: Option<usize>) {
        if self.count < KEPT {
            self.first.push((rip, at));
        } else if self.count < 2 * KEPT {
            self.last.push((rip, at));
        } else {
            self.last[self.count % KEPT] = (rip, at);
        }
        self.count += 1;
    }

    /// Whether there were others between the first and the last.
    pub(super) fn has_gap(&self) -> bool {
        self.count > 2 * KEPT
    }

    /// The first, and the last behind them, each in order.
    pub(super) fn parts(&self) -> (&[At], Vec<At>) {
        let mut last = self.last.clone();
        if self.has_gap() {
            last.rotate_left(self.count % KEPT);
        }
        (&self.first, last)
    }

    /// The flags, as `rflags` has them, that are undefined after these instructions of 64-bit mode.
    pub(super) fn undefined_flags(&self, ram: &GuestRam, model: &Model) -> u64 {
        let (first, last) = self.parts();
        let mut undefined = 0;
        for at in first.iter().chain(&last).filter_map(|(_, at)| *at) {
            let mut bytes = [0; LONGEST];
            let len = LONGEST.min(ram.len() - at);
            cache::load(ram, at, &mut bytes[..len]);
            let instruction = Decoder::new(64, &bytes[..len], model.decoder_options()).decode();
            undefined = undefined & !bits(instruction.rflags_modified()) | bits(undefined_by(&instruction));
        }
        undefined
    }
}

fn undefined_by(i: &Instruction) -> u32 {
    // By how much they rotate is not always known.
    let rotates = matches!(i.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    i.rflags_undefined() | if rotates { RflagsBits::OF } else { 0 }
}

/// The decoder's bits, as `rflags` has them.
fn bits(flags: u32) -> u64 {
    let pairs = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    pairs.iter().filter(|(from, _)| flags & from != 0).map(|(_, to)| to).sum()
}
