//! The code cache: predecoded blocks, found by where their bytes are in RAM.
//!
//! A block is a run of instructions within one page, up to the first that surely goes elsewhere; conditional
//! branches leave it when they are taken. It stays good until
//! its page is written, which moves the page's version on; nobody has to find the blocks of a page. When the
//! cache is full everything is dropped and decoding begins anew.

use std::ops::Range;

use posada_memory::{GuestRam, PAGE_SIZE};

use crate::decode::{Decoded, LONGEST, decode};
use crate::model::Model;
use crate::op::{Mode, Op};

/// Blocks in the table; a power of two.
const BLOCKS: usize = 1 << 15;
/// Operations kept, about 12 MiB.
const OPS: usize = 300_000;
/// Operations in a block at most, so that interrupts are looked at often enough.
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

/// No mode has its key.
const NO_BLOCK: Block = Block { key: 0, version: 0, start: 0, count: 0 };

pub(crate) struct CodeCache {
    blocks: Box<[Block; BLOCKS]>,
    pub ops: Vec<Op>,
}

impl CodeCache {
    pub(crate) fn new() -> Self {
        let blocks = vec![NO_BLOCK; BLOCKS].into_boxed_slice();
        Self {
            blocks: blocks.try_into().unwrap_or_else(|_| unreachable!("the length is the array's")),
            ops: Vec::with_capacity(OPS),
        }
    }

    fn slot(at: usize) -> usize {
        (at ^ at >> 13) % BLOCKS
    }

    /// The operations of the block whose bytes begin at offset `at` of RAM, if they are known and still good.
    #[inline(always)]
    pub(crate) fn find(&self, at: usize, mode: Mode, ram: &GuestRam) -> Option<Range<usize>> {
        let block = &self.blocks[Self::slot(at)];
        let key = at as u64 | mode.key();
        let good = block.key == key && block.version == ram.code_version(at / PAGE_SIZE);
        good.then(|| block.start as usize..(block.start + block.count) as usize)
    }

    /// Decodes a block, at most `room` bytes long (what the code segment's limit leaves). `None`: not even its
    /// first instruction lies within the page and the limit.
    pub(crate) fn fill(
        &mut self,
        at: usize,
        mode: Mode,
        ram: &GuestRam,
        model: &Model,
        room: u64,
    ) -> Option<Range<usize>> {
        if self.ops.len() + BLOCK_OPS > OPS {
            self.ops.clear();
            self.blocks.fill(NO_BLOCK);
        }
        let version = ram.watch_code(at / PAGE_SIZE);
        let start = self.ops.len();
        let in_page = PAGE_SIZE - at % PAGE_SIZE;
        let end = at + in_page.min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut next = at;
        while next < end && self.ops.len() - start < BLOCK_OPS {
            let mut bytes = [0; LONGEST];
            let len = LONGEST.min(end - next);
            for (n, byte) in bytes[..len].iter_mut().enumerate() {
                *byte = ram.load(next + n);
            }
            let Decoded::Op(mut op, last) = decode(&bytes[..len], mode, model) else { break };
            next += usize::from(op.len);
            op.next = (next - at) as u16;
            op.done = (self.ops.len() - start) as u8 + 1;
            self.ops.push(op);
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
            self.blocks[Self::slot(at)] =
                Block { key: at as u64 | mode.key(), version, start: start as u32, count: range.len() as u32 };
        }
        Some(range)
    }
}
