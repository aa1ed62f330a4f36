//! The code cache: translated blocks, by where their bytes are in RAM.
//!
//! A block belongs to one page, and is tied only to blocks of its page: so when a page is written, its blocks can be
//! forgotten without a look at who jumps to them, once no table of addresses leads there any more. When the memory
//! is used up, everything is forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use iced_x86::{Instruction, InstructionInfoFactory};
use posada_memory::{GuestRam, PAGE_SIZE};

use crate::block::{Mode, SAVED_ENTRY, Tie, Writer};
use crate::fault::Recoveries;
use crate::memory::CodeMemory;
use crate::stats::Stats;

/// Room that a block may need, in bytes.
const LARGEST_BLOCK: usize = 64 << 10;

/// Spreads numbers whose low bits differ most. A guest that makes its own collide is slow, no more.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Map<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// A page that blocks were made from.
struct Page {
    version: u32,
    blocks: Vec<u64>,
}

/// What decoding depends on: the CPU model's part.
pub(crate) struct Decoding<'a> {
    pub(crate) options: u32,
    pub(crate) features: &'a dyn Fn(&Instruction) -> bool,
}

pub(crate) struct CodeCache {
    memory: CodeMemory,
    blocks: Map<Code>,
    pages: Map<Page>,
    ties: Vec<Tie>,
    recoveries: Recoveries,
    info: InstructionInfoFactory,
    /// The code epoch of RAM up to which pages are known.
    epoch: u64,
}

/// Where a block's code is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    /// For jumps with the flags in memory: see [`SAVED_ENTRY`].
    pub(crate) saved: usize,
    /// For jumps with the flags in the host's.
    pub(crate) body: usize,
}

/// What [`CodeCache::find`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Known,
    /// Translated now; `page`: its page had no other block before, and is watched from now on.
    New { page: bool },
    /// The same, and everything else has been forgotten.
    NewAlone,
}

impl CodeCache {
    pub(crate) fn new(len: usize) -> std::io::Result<Self> {
        Ok(Self {
            memory: CodeMemory::new(len)?,
            blocks: Map::default(),
            pages: Map::default(),
            ties: Vec::new(),
            recoveries: Recoveries::default(),
            info: InstructionInfoFactory::new(),
            epoch: 0,
        })
    }

    fn key(at: usize, mode: Mode) -> u64 {
        (at as u64) << Mode::BITS | mode.key()
    }

    /// Forgets the blocks of pages that have been written; true if there were any.
    pub(crate) fn look_at_writes(&mut self, ram: &GuestRam) -> bool {
        let epoch = ram.code_epoch();
        if epoch == self.epoch {
            return false;
        }
        self.epoch = epoch;
        let blocks = &mut self.blocks;
        let before = self.pages.len();
        self.pages.retain(|number, page| {
            let good = ram.code_version(*number as usize) == page.version;
            if !good {
                for key in &page.blocks {
                    blocks.remove(key);
                }
            }
            good
        });
        self.pages.len() != before
    }

    /// The code for what is at `at` of RAM; translates it if need be.
    pub(crate) fn find(
        &mut self,
        at: usize,
        mode: Mode,
        ram: &GuestRam,
        decoding: &Decoding<'_>,
        stats: &mut Stats,
    ) -> (Code, Found) {
        let key = Self::key(at, mode);
        if let Some(code) = self.blocks.get(&key) {
            return (*code, Found::Known);
        }
        let mut found = Found::New { page: false };
        if !self.has_room() {
            self.clear();
            stats.clears += 1;
            found = Found::NewAlone;
        }
        let number = at / PAGE_SIZE;
        let page = self.pages.entry(number as u64).or_insert_with(|| {
            if found != Found::NewAlone {
                found = Found::New { page: true };
            }
            Page { version: ram.watch_code(number), blocks: Vec::new() }
        });
        page.blocks.push(key);
        let mut bytes = [0; PAGE_SIZE];
        let len = PAGE_SIZE - at % PAGE_SIZE;
        for (n, byte) in bytes[..len].iter_mut().enumerate().take(BLOCK_BYTES) {
            *byte = ram.load(at + n);
        }
        let len = len.min(BLOCK_BYTES);
        let first_tie = self.ties.len() as u32;
        let start = (at % PAGE_SIZE) as u32;
        let place = self.memory.next();
        let writer = Writer::new(mode, start, place, first_tie, &mut self.info, decoding.features);
        let written = writer.write(&bytes[..len], decoding.options);
        let fits = self.memory.push(&written.code);
        assert!(fits, "a block is larger than any can be");
        self.ties.extend(written.ties);
        self.recoveries.extend(written.recoveries);
        let code = Code { saved: place + SAVED_ENTRY, body: place + written.body };
        self.blocks.insert(key, code);
        stats.blocks += 1;
        stats.instructions += written.instructions as u64;
        (code, found)
    }

    /// Whether no page has been written since [`look_at_writes`](Self::look_at_writes) last looked.
    pub(crate) fn is_up_to_date(&self, ram: &GuestRam) -> bool {
        ram.code_epoch() == self.epoch
    }

    /// Whether a block can be added without forgetting others.
    pub(crate) fn has_room(&self) -> bool {
        self.memory.len() - self.memory.used() >= LARGEST_BLOCK
    }

    /// Lets a jump lead to code.
    pub(crate) fn tie(&mut self, number: u32, code: Code) {
        if let Some(tie) = self.ties.get(number as usize) {
            let code = if tie.saved { code.saved } else { code.body };
            self.memory.patch(tie.at, (code as i64 - tie.at as i64 - 4) as i32);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.memory.clear();
        self.blocks.clear();
        self.pages.clear();
        self.ties.clear();
        self.recoveries.clear();
    }

    /// Where code goes on after an exception at `at`.
    pub(crate) fn recover(&self, at: usize) -> Option<usize> {
        self.recoveries.find(at)
    }

    /// Where code may be: its address and length.
    pub(crate) fn range(&self) -> (usize, usize) {
        self.memory.range()
    }

    /// Bytes of code.
    pub(crate) fn used(&self) -> usize {
        self.memory.used()
    }
}

/// Bytes that a block may be made from.
const BLOCK_BYTES: usize = 64 * 15;
