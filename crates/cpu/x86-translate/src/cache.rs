//! The code cache: translated blocks, by where their bytes are in RAM.
//!
//! A block belongs to one page, and is tied only to blocks of its page: so when a page is written, its blocks can be
//! forgotten without a look at who jumps to them, once no table of addresses leads there any more. When the memory
//! is used up, everything is forgotten.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use iced_x86::{Decoder, DecoderError, Instruction, InstructionInfoFactory};
use posada_memory::{GuestRam, PAGE_SIZE};
use posada_x86::Spread;

use crate::block::{Access, Mode, Places, SAVED_ENTRY, Writer, Written};
use crate::fault::Recoveries;
use crate::jumps;
use crate::memory::{CodeMemory, Warmth};
use crate::stats::Stats;
use crate::stub::{self, Callee, Stub, Stubs};

/// Room that a block may need, in bytes.
const LARGEST_BLOCK: usize = 256 << 10;
/// Links that it may need.
const MOST_LINKS: usize = 1024;

type Map<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// A page that blocks were made from.
struct Page {
    version: u32,
    /// Its number, which is no other's.
    id: u32,
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
    /// Single instructions that lie in two pages, with where in RAM the second begins.
    crossings: Map<(usize, Code)>,
    pages: Map<Page>,
    /// The number of the next page; not zero.
    next_page: u32,
    /// Where [`way_out`](CodeCache::way_out) leads, by place in the page and mode.
    ways_out: Map<usize>,
    stubs: Stubs,
    /// Links of blocks.
    links: usize,
    /// As many as there ever were.
    most_links: usize,
    /// Where the calls of stubs lead, for each of the context's routines: to the monitor, and for each view to the code
    /// that looks for the stack's page.
    monitors: [usize; 3],
    stacks: [[[usize; 2]; 3]; 3],
    /// The same for links of each view, and for the targets of jumps in each mode.
    link_finders: [[usize; 3]; 3],
    finders: [usize; MODES],
    recoveries: Recoveries,
    info: InstructionInfoFactory,
    /// The code epoch of RAM up to which pages are known.
    epoch: u64,
    /// All of RAM has low addresses: see [`crate::tlb`].
    low: bool,
}

/// Where a block's code is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Code {
    /// From the first byte of all code.
    place: u32,
    /// From there, where jumps lead that have the flags in the host's.
    body: u8,
    /// See [`crate::block::Written`].
    pub(crate) wants_vectors: bool,
    /// The page that it is made from, or zero if it depends on more.
    pub(crate) page: u32,
    /// Guest instructions, and bytes of code.
    pub(crate) instructions: u8,
    pub(crate) len: u32,
}

/// What [`CodeCache::find`] had to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Known,
    /// Translated now.
    New,
    /// The same, and everything else has been forgotten.
    NewAlone,
}

impl CodeCache {
    /// Room for `len` bytes of code; `low` is whether all of RAM has low addresses.
    pub(crate) fn new(len: usize, low: bool) -> std::io::Result<Self> {
        let len = len.max(8 * LARGEST_BLOCK);
        let memory = CodeMemory::new(len, len / COLD)?;
        let mut cache = Self {
            memory,
            blocks: Map::default(),
            crossings: Map::default(),
            pages: Map::default(),
            next_page: 1,
            ways_out: Map::default(),
            stubs: Stubs::new(),
            links: 0,
            most_links: 0,
            monitors: [0; 3],
            stacks: [[[0; 2]; 3]; 3],
            link_finders: [[0; 3]; 3],
            finders: [0; MODES],
            recoveries: Recoveries::default(),
            info: InstructionInfoFactory::new(),
            epoch: 0,
            low,
        };
        cache.write_monitors();
        Ok(cache)
    }

    /// Writes what calls of stubs lead to, as the first code.
    fn write_monitors(&mut self) {
        let low = self.low;
        let mut put = |code: &[u8]| {
            let at = self.memory.next(Warmth::Hot);
            let fits = self.memory.push(Warmth::Hot, code);
            assert!(fits, "there is room for much more");
            at
        };
        for routine in 0..self.monitors.len() {
            self.monitors[routine] = put(&stub::call_monitor(routine as i32));
            for view in 0..self.stacks.len() {
                self.stacks[routine][view] =
                    [false, true].map(|write| put(&stub::find_stack(view as u8, write, routine as i32, low)));
            }
            self.link_finders[routine] =
                std::array::from_fn(|view| put(&stub::find_link(view as u8, routine as i32)));
        }
        for (key, finder) in self.finders.iter_mut().enumerate() {
            if let Some(mode) = Mode::of_key(key as u64).filter(|mode| mode.jumps() == jumps::NOTED_TABLE) {
                *finder = put(&stub::find_target(mode));
            }
        }
    }

    /// A stub by its number.
    pub(crate) fn stub(&mut self, number: u32) -> Option<Stub> {
        self.stubs.get(number)
    }

    /// An address of code, from what stubs say of it.
    pub(crate) fn address(&self, place: u32) -> usize {
        self.memory.start() + place as usize
    }

    /// Where jumps to code lead with the flags in memory: see [`SAVED_ENTRY`].
    pub(crate) fn saved(&self, code: Code) -> usize {
        self.address(code.place) + SAVED_ENTRY
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
        let (blocks, crossings) = (&mut self.blocks, &mut self.crossings);
        let before = self.pages.len();
        self.pages.retain(|number, page| {
            let good = ram.code_version(*number as usize) == page.version;
            if !good {
                for key in &page.blocks {
                    if key & CROSSING == 0 {
                        blocks.remove(key);
                    } else {
                        crossings.remove(key);
                    }
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
        let mut bytes = [0; BLOCK_BYTES];
        let found = self.prepare(&[at], key, ram, stats);
        let bytes = load_block(ram, at, &mut bytes);
        let writer = self.writer(mode, at, decoding);
        let written = writer.write(bytes, decoding.options);
        let code = self.keep(key, mode, written, stats);
        let page = self.pages.get(&((at / PAGE_SIZE) as u64)).map_or(0, |page| page.id);
        let code = Code { page, ..code };
        self.blocks.insert(key, code);
        (code, found)
    }

    /// The rest of the block at `at` of RAM, from a group's stub on: without groups, and only for that stub, whose flags
    /// it knows. There is room, and the page's blocks are those of what it holds.
    #[allow(clippy::too_many_arguments)] // As for any code, and whose rest it is.
    pub(crate) fn find_rest(
        &mut self,
        number: u32,
        stub: &Stub,
        at: usize,
        mode: Mode,
        ram: &GuestRam,
        decoding: &Decoding<'_>,
        stats: &mut Stats,
    ) -> usize {
        let key = u64::from(number) | REST;
        if let Some(code) = self.blocks.get(&key) {
            return self.address(code.place);
        }
        let mut bytes = [0; BLOCK_BYTES];
        self.prepare(&[at], key, ram, stats);
        let bytes = load_block(ram, at, &mut bytes);
        let written = self.writer(mode, at, decoding).write_rest(bytes, decoding.options, stub.flags);
        let code = self.keep(key, mode, written, stats);
        self.blocks.insert(key, code);
        self.address(code.place)
    }

    /// Whether the instruction at `at` of RAM goes on in the next page.
    pub(crate) fn crosses(at: usize, ram: &GuestRam, decoding: &Decoding<'_>) -> bool {
        let len = PAGE_SIZE - at % PAGE_SIZE;
        if len >= LONGEST {
            return false;
        }
        let mut bytes = [0; LONGEST];
        load(ram, at, &mut bytes[..len]);
        let mut decoder = Decoder::with_ip(64, &bytes[..len], 0, decoding.options);
        decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// [`find`](Self::find) for one instruction that begins at `at` and goes on at `second`, in the next page. No jump
    /// may be tied to it, as it holds only for as long as both pages are where they are.
    pub(crate) fn find_crossing(
        &mut self,
        (at, second): (usize, usize),
        mode: Mode,
        ram: &GuestRam,
        decoding: &Decoding<'_>,
        stats: &mut Stats,
    ) -> (Code, Found) {
        let key = Self::key(at, mode) | CROSSING;
        if let Some((known, code)) = self.crossings.get(&key)
            && *known == second
        {
            return (*code, Found::Known);
        }
        let len = PAGE_SIZE - at % PAGE_SIZE;
        let mut bytes = [0; LONGEST];
        let found = self.prepare(&[at, second], key, ram, stats);
        load(ram, at, &mut bytes[..len]);
        load(ram, second, &mut bytes[len..]);
        let writer = self.writer(mode, at, decoding);
        let written = writer.write_one(&bytes, decoding.options);
        let code = self.keep(key, mode, written, stats);
        self.crossings.insert(key, (second, code));
        (code, found)
    }

    /// For a block at `at` of RAM.
    fn writer<'a>(&'a mut self, mode: Mode, at: usize, decoding: &Decoding<'a>) -> Writer<'a> {
        let (hot, cold) = (self.memory.next(Warmth::Hot), self.memory.next(Warmth::Cold));
        let start = (at % PAGE_SIZE) as u32;
        let places = Places {
            memory: self.memory.start(),
            host: hot,
            first_stub: cold,
            first_link: self.links as u32,
            low: self.low,
        };
        Writer::new(mode, start, places, &mut self.info, decoding.features)
    }

    /// Makes room for a block that is made from pages of RAM, which are watched from now on.
    fn prepare(&mut self, pages: &[usize], key: u64, ram: &GuestRam, stats: &mut Stats) -> Found {
        let mut found = Found::New;
        if !self.has_room() {
            self.clear();
            stats.clears += 1;
            found = Found::NewAlone;
        }
        for at in pages {
            let number = at / PAGE_SIZE;
            let page = self.pages.entry(number as u64);
            let next = &mut self.next_page;
            let page = page.or_insert_with(|| {
                let id = *next;
                *next += 1;
                Page { version: ram.watch_code(number), id, blocks: Vec::new() }
            });
            page.blocks.push(key);
        }
        found
    }

    /// Keeps what has been written for the block of this key.
    fn keep(&mut self, key: u64, mode: Mode, written: Written, stats: &mut Stats) -> Code {
        stats.translated(key, written.instructions, [written.guest_bytes, written.code.len()]);
        self.put(mode, written)
    }

    /// Puts what has been written where it was written for.
    fn put(&mut self, mode: Mode, written: Written) -> Code {
        let (place, cold_place) = (self.memory.next(Warmth::Hot), self.memory.next(Warmth::Cold));
        let routine = mode.routine() as usize;
        let mut cold = Vec::new();
        for stub in &written.stubs {
            let callee = match stub.kind.callee() {
                Callee::Monitor => self.monitors[routine],
                Callee::Link { view, .. } => self.link_finders[routine][usize::from(view)],
                Callee::Find { mode } => self.finders[mode.key() as usize],
                Callee::Stack { view, write } => self.stacks[routine][usize::from(view)][usize::from(write)],
            };
            stub.write(&mut cold, cold_place, self.stubs.next(), callee, self.memory.start());
            self.stubs.push(stub);
        }
        let fits = self.memory.push(Warmth::Hot, &written.code) && self.memory.push(Warmth::Cold, &cold);
        assert!(fits, "a block is larger than any can be");
        self.links += written.links;
        self.most_links = self.most_links.max(self.links);
        self.recoveries.extend(written.recoveries);
        Code {
            place: (place - self.memory.start()) as u32,
            body: written.body as u8,
            wants_vectors: written.wants_vectors,
            page: 0,
            instructions: written.instructions as u8,
            len: written.code.len() as u32,
        }
    }

    /// Code that leaves as soon as a jump has led to it, for `linear`: its entry for saved flags.
    pub(crate) fn way_out(&mut self, linear: u64, mode: Mode) -> usize {
        let start = linear as u32 % PAGE_SIZE as u32;
        let key = Self::key(start as usize, mode);
        if let Some(place) = self.ways_out.get(&key) {
            return *place;
        }
        let decoding = Decoding { options: 0, features: &|_| false };
        let written = self.writer(mode, start as usize, &decoding).write_way_out();
        let code = self.put(mode, written);
        let place = self.saved(code);
        self.ways_out.insert(key, place);
        place
    }

    /// Whether no page has been written since [`look_at_writes`](Self::look_at_writes) last looked.
    pub(crate) fn is_up_to_date(&self, ram: &GuestRam) -> bool {
        ram.code_epoch() == self.epoch
    }

    /// Whether a block can be added without forgetting others.
    pub(crate) fn has_room(&self) -> bool {
        self.memory.left(Warmth::Hot) >= LARGEST_BLOCK
            && self.memory.left(Warmth::Cold) >= LARGEST_BLOCK
            && self.links + MOST_LINKS <= jumps::LINKS
            && self.stubs.have_room()
            && self.next_page < u32::MAX - 1
    }

    /// Lets the jump of a stub lead to code.
    pub(crate) fn tie(&mut self, number: u32, code: Code) {
        if let Some(Stub { flags, kind: stub::Kind::Tie { hole }, .. }) = self.stub(number) {
            let code = if flags.are_saved() {
                self.saved(code)
            } else {
                self.address(code.place) + usize::from(code.body)
            };
            self.lead(hole, code);
        }
    }

    /// Lets the jump whose distance is at `hole` lead to `code`.
    pub(crate) fn lead(&mut self, hole: u32, code: usize) {
        let at = self.address(hole);
        self.memory.patch(at, (code as i64 - at as i64 - 4) as i32);
    }

    /// Lets an access be unaligned from now on, whose check's jump is at `hole`; false if there is no room.
    pub(crate) fn let_be_unaligned(&mut self, hole: u32, access: &Access) -> bool {
        if !self.has_room() {
            return false;
        }
        let at = self.address(hole);
        let Ok(distance) = self.memory.copy(at, size_of::<i32>()).try_into() else { return false };
        let back = at + size_of::<i32>();
        let stub = back.wrapping_add_signed(i32::from_le_bytes(distance) as isize);
        let place = self.memory.next(Warmth::Cold);
        let fits = self.memory.push(Warmth::Cold, &stub::check_unaligned(place, access, back, stub));
        assert!(fits, "there is room for much more");
        self.lead(hole, place);
        true
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.memory.clear();
        self.blocks.clear();
        self.crossings.clear();
        self.pages.clear();
        self.ways_out.clear();
        self.stubs.clear();
        self.links = 0;
        self.next_page = 1;
        self.recoveries.clear();
        self.write_monitors();
    }

    /// Where code goes on after an exception at `at`.
    pub(crate) fn recover(&self, at: usize) -> Option<usize> {
        self.recoveries.find(at)
    }

    /// A block's place and bytes.
    pub(crate) fn bytes(&self, code: Code) -> (usize, Vec<u8>) {
        let place = self.address(code.place);
        (place, self.memory.copy(place, code.len as usize))
    }

    /// Where code may be: its address and length.
    pub(crate) fn range(&self) -> (usize, usize) {
        self.memory.range()
    }

    /// As many links as there ever were.
    pub(crate) fn most_links(&self) -> usize {
        self.most_links
    }

    /// Bytes of code.
    pub(crate) fn used(&self) -> usize {
        self.memory.used()
    }
}

/// Keys of modes.
const MODES: usize = 1 << Mode::BITS;
/// The longest instruction, in bytes.
pub(crate) const LONGEST: usize = 15;
/// Bytes that a block may be made from.
const BLOCK_BYTES: usize = 64 * LONGEST;
/// In the key of an instruction that lies in two pages.
const CROSSING: u64 = 1 << 63;
/// In the key of the rest of a block; the other bits are its stub's number.
const REST: u64 = 1 << 62;
/// One part of the memory in so many is for stubs.
const COLD: usize = 4;

/// What a block at `at` of RAM may be made from.
fn load_block<'a>(ram: &GuestRam, at: usize, bytes: &'a mut [u8; BLOCK_BYTES]) -> &'a [u8] {
    let bytes = &mut bytes[..(PAGE_SIZE - at % PAGE_SIZE).min(BLOCK_BYTES)];
    load(ram, at, bytes);
    bytes
}

pub(crate) fn load(ram: &GuestRam, at: usize, bytes: &mut [u8]) {
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for (n, word) in words.iter_mut().enumerate() {
        *word = ram.load::<u64>(at + 8 * n).to_le_bytes();
    }
    let loaded = 8 * words.len();
    for (n, byte) in rest.iter_mut().enumerate() {
        *byte = ram.load(at + loaded + n);
    }
}
