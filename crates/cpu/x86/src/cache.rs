//! The code cache: predecoded blocks, found by where their bytes are in RAM.
//!
//! A block is a run of instructions within one page, up to the first that surely goes elsewhere; conditional
//! branches leave it when they are taken. It stays good until its page is written, which moves the page's version
//! on; nobody has to find the blocks of a page. When the cache is full everything is dropped and decoding begins
//! anew.
//!
//! The blocks in use lie in a table with one place for each: found at once, but two that share a place push each
//! other out. All are in a map besides, so that going back to one costs a look there, and no decoding.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;

use posada_memory::{GuestRam, PAGE_SIZE};

use crate::decode::{Decoded, LONGEST, decode};
use crate::integer::fuse;
use crate::model::Model;
use crate::op::{Mode, Op};
use crate::spread::Spread;

/// Blocks in the table; a power of two.
const BLOCKS: usize = 1 << 15;
/// Operations kept, about 12 MiB.
pub(crate) const OPS: usize = 300_000;
/// The same for one who carries out only what somebody else leaves, about 2 MiB.
pub(crate) const FEW_OPS: usize = 50_000;
/// Operations in a block at most, each of one instruction or two, so that interrupts are looked at often enough.
const BLOCK_OPS: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    /// Offset of the first byte in RAM, and the mode's key.
    key: u64,
    /// The page's version when it was decoded.
    version: u32,
    start: u32,
    count: u32,
}

impl Block {
    /// Its operations.
    #[inline(always)]
    fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.count) as usize
    }
}

/// In the key of a block that was made as one instruction: no mode's has this bit.
const SINGLE: u64 = 1 << 63;
/// No mode has its key.
const NO_BLOCK: Block = Block { key: 0, version: 0, start: 0, count: 0 };

pub(crate) struct CodeCache {
    blocks: Box<[Block; BLOCKS]>,
    /// All blocks, by their keys.
    known: HashMap<u64, Block, BuildHasherDefault<Spread>>,
    pub ops: Vec<Op>,
    /// Operations kept, at most.
    most: usize,
}

impl CodeCache {
    /// For so many operations.
    pub(crate) fn new(most: usize) -> Self {
        let blocks = vec![NO_BLOCK; BLOCKS].into_boxed_slice();
        Self {
            blocks: blocks.try_into().unwrap_or_else(|_| unreachable!("the length is the array's")),
            known: HashMap::default(),
            ops: Vec::with_capacity(most),
            most,
        }
    }

    fn slot(at: usize) -> usize {
        (at ^ at >> 13) % BLOCKS
    }

    fn key(at: usize, mode: Mode, single: bool) -> u64 {
        at as u64 | mode.key() | if single { SINGLE } else { 0 }
    }

    /// The operations of the block whose bytes begin at offset `at` of RAM, if they are known and still good.
    /// With `single` the block is one instruction.
    #[inline(always)]
    pub(crate) fn find(&self, at: usize, mode: Mode, single: bool, ram: &GuestRam) -> Option<Range<usize>> {
        let block = &self.blocks[Self::slot(at)];
        let key = Self::key(at, mode, single);
        let good = block.key == key && block.version == ram.code_version(at / PAGE_SIZE);
        good.then(|| block.range())
    }

    /// Brings a block to its place in the table: from the map, or decoded, at most `room` bytes long (what the
    /// code segment's limit leaves). `None`: not even its first instruction lies within the page and the limit.
    pub(crate) fn fill(
        &mut self,
        at: usize,
        mode: Mode,
        single: bool,
        ram: &GuestRam,
        model: &Model,
        room: u64,
    ) -> Option<Range<usize>> {
        let key = Self::key(at, mode, single);
        if let Some(block) = self.known.get(&key)
            && block.version == ram.code_version(at / PAGE_SIZE)
        {
            self.blocks[Self::slot(at)] = *block;
            return Some(block.range());
        }
        if self.ops.len() + BLOCK_OPS > self.most {
            self.ops.clear();
            self.known.clear();
            self.blocks.fill(NO_BLOCK);
        }
        let version = ram.watch_code(at / PAGE_SIZE);
        let start = self.ops.len();
        let in_page = PAGE_SIZE - at % PAGE_SIZE;
        let end = at + in_page.min(usize::try_from(room).unwrap_or(usize::MAX));
        let most = if single { 1 } else { BLOCK_OPS };
        let mut next = at;
        let mut count = 0;
        let mut previous = None;
        while next < end && self.ops.len() - start < most {
            let mut bytes = [0; LONGEST];
            let len = LONGEST.min(end - next);
            for (n, byte) in bytes[..len].iter_mut().enumerate() {
                *byte = ram.load(next + n);
            }
            let Decoded::Op(instruction, mut op, last) = decode(&bytes[..len], mode, model) else { break };
            next += usize::from(op.len);
            count += 1;
            if let Some(fused) = previous.as_ref().and_then(|previous| fuse(previous, &instruction, mode)) {
                self.ops.pop();
                op = fused;
            }
            op.next = (next - at) as u16;
            op.done = count;
            self.ops.push(op);
            previous = Some(instruction);
            if last {
                break;
            }
        }
        let range = start..self.ops.len();
        if range.is_empty() {
            return None;
        }
        // A room that the limit cut short would hold only for this code segment: such a block is not kept.
        if end == at + in_page {
            let block = Block { key, version, start: start as u32, count: range.len() as u32 };
            self.blocks[Self::slot(at)] = block;
            self.known.insert(key, block);
        }
        Some(range)
    }
}
