//! One block: from the guest's bytes to the host's.

mod copy;
mod flow;
mod memory;

use iced_x86::{
    Decoder, DecoderError, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, RflagsBits,
};

use crate::asm::{Asm, Condition, Hole, Op};
use crate::classify;
use crate::context::register::{R10, R11, RSP};
use crate::context::{Context, offset};
use crate::entry::reason;
use crate::flags::{Flags, Recipe};
use crate::groups::{self, Group, Item, StackEffect};
use crate::helpers::help;
use crate::registers;

/// Instructions in a block, at most.
const LONGEST: usize = 64;
const PAGE: i32 = 4096;

/// What a block depends on, besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    /// Whose rights accesses have: an index into the context's tables.
    pub(crate) view: u8,
    /// Vector registers are in the host's, and may be used.
    pub(crate) vectors: bool,
    /// SSE exceptions may be unmasked.
    pub(crate) unmasked: bool,
    /// x87 and MMX instructions may run on the host, with `vectors`.
    pub(crate) x87: bool,
    /// So may those with VEX prefixes that are about vectors; only with `vectors`.
    pub(crate) avx: bool,
}

impl Mode {
    /// In which the most runs on the host.
    pub(crate) const ALL: Self = Self { view: 2, vectors: true, unmasked: true, x87: true, avx: true };

    /// Bits of [`key`](Self::key).
    pub(crate) const BITS: u32 = 6;

    /// All of it.
    pub(crate) fn key(self) -> u64 {
        let bit = |set: bool, n: u32| u64::from(set) << n;
        u64::from(self.view)
            | bit(self.vectors, 2)
            | bit(self.unmasked, 3)
            | bit(self.x87, 4)
            | bit(self.avx, 5)
    }

    /// What has this [`key`](Self::key).
    pub(crate) fn from_key(key: u64) -> Self {
        let bit = |n: u32| key >> n & 1 != 0;
        Self { view: (key & 3) as u8, vectors: bit(2), unmasked: bit(3), x87: bit(4), avx: bit(5) }
    }

    /// Which of the context's routines are for it.
    pub(crate) fn routine(self) -> i32 {
        i32::from(self.vectors) + i32::from(self.avx)
    }

    /// Where jumps to other pages find their targets: which of the context's tables.
    pub(crate) fn jumps(self) -> usize {
        usize::from(self.view) + 3 * usize::from(self.vectors)
    }
}

/// A jump within the page, to be tied to its target when that is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tie {
    /// Address of the jump's distance.
    pub(crate) at: usize,
    /// The flags are in memory, not in the host's.
    pub(crate) saved: bool,
}

/// From a block's entry with the flags in the host's to the one with the flags in memory, in bytes.
///
/// Each block has both. Most blocks begin with something that destroys the host's flags: the first entry saves them,
/// the second is behind that. Other blocks begin with the flags in the host's: there the second restores them.
pub(crate) const SAVED_ENTRY: usize = 19;

/// What has been written.
pub(crate) struct Written {
    pub(crate) code: Vec<u8>,
    pub(crate) ties: Vec<Tie>,
    /// Where jumps lead that have the flags in the host's, in bytes from the start.
    pub(crate) body: usize,
    /// Where an exception may be raised, and where to go on then.
    pub(crate) recoveries: Vec<(usize, usize)>,
    /// It begins with an instruction that could run on the host if the vector registers were in the host's.
    pub(crate) wants_vectors: bool,
    /// Guest instructions in it, and bytes of these.
    pub(crate) instructions: usize,
    pub(crate) guest_bytes: usize,
}

/// A linear address that an instruction accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// Guest registers.
    base: Option<u8>,
    /// Register and shift.
    index: Option<(u8, u8)>,
    displacement: i32,
    /// Counted from the running page.
    in_code: bool,
    /// 0 for `fs`, 1 for `gs`.
    segment: Option<usize>,
    /// 64-bit, not 32-bit.
    wide: bool,
}

impl Address {
    pub(crate) fn on_stack(displacement: i32) -> Self {
        Self { base: Some(RSP), index: None, displacement, in_code: false, segment: None, wide: true }
    }
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) address: Address,
    /// In bytes.
    pub(crate) size: u32,
    pub(crate) write: bool,
    /// Must lie at a multiple of its size.
    pub(crate) aligned: bool,
}

/// Code that is hardly ever run, behind the rest.
struct Stub {
    holes: Vec<Hole>,
    flags: Flags,
    /// Attention has been looked for on the way here.
    polled: bool,
    kind: StubKind,
}

pub(crate) enum StubKind {
    /// An access that the TLB does not know; goes on at a place in the code.
    Access(Access, u32, usize),
    /// Leaves, with a reason, and a distance from the running page.
    Leave(u32, i32),
    /// A jump to another page, at this distance, of the instruction there.
    Jump(i32, u32),
    /// A group that does not lie in one page: goes on from an item, without groups.
    Rest(usize),
    /// A jump back to the block's start, with flags that can be computed anew: the block once more, so that they need
    /// not be saved.
    Round,
    /// A jump to a linear address that is not in the table, of the instruction there; goes on at a place in the code.
    Find(u32, usize),
    /// Leaves in front of an instruction that the host has refused: that at this address of code, for the guest's
    /// at this distance.
    Recover(usize, u32),
}

/// An instruction that is not for translation.
pub(crate) struct ForInterpreter;

pub(crate) type Outcome = Result<(), ForInterpreter>;

pub(crate) struct Writer<'a> {
    pub(crate) asm: Asm,
    pub(crate) mode: Mode,
    flags: Flags,
    stubs: Vec<Stub>,
    recoveries: Vec<(usize, usize)>,
    /// The x87 unit's state has been loaded.
    pub(crate) x87_loaded: bool,
    ties: Vec<Tie>,
    first_tie: u32,
    polled: bool,
    /// Where the block begins for jumps with the flags in the host's, in bytes from the start.
    body: usize,
    /// The host's flags are destroyed before they are used.
    loses_flags: bool,
    /// The flags at the start of a further round, and where that is.
    round: Option<(Flags, usize)>,
    items: Vec<Item>,
    /// Behind the items is an instruction that goes on in the next page.
    ends_in_next_page: bool,
    groups: Vec<Group>,
    /// Which groups' distances are known here, a bit each.
    known: u8,
    /// The current item, and how far the stack pointer has moved since its value was last unknown.
    item: usize,
    moved: i32,
    /// The group whose distance is in `r10` if nothing has been written since there were so many bytes.
    in_r10: (usize, usize),
    /// Where the block, the current instruction and the next are in the page.
    start: u32,
    at: u32,
    next: u32,
    info: &'a mut InstructionInfoFactory,
    features: &'a dyn Fn(&Instruction) -> bool,
}

/// All six arithmetic flags.
pub(crate) const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

impl<'a> Writer<'a> {
    /// For the block at `start` of its page, whose code will be at `host`. `first_tie` is the number of its first
    /// tie; `features` says whether the CPU model has an instruction.
    pub(crate) fn new(
        mode: Mode,
        start: u32,
        host: usize,
        first_tie: u32,
        info: &'a mut InstructionInfoFactory,
        features: &'a dyn Fn(&Instruction) -> bool,
    ) -> Self {
        Self {
            asm: Asm::new(host),
            mode,
            flags: Flags::UNKNOWN,
            stubs: Vec::new(),
            recoveries: Vec::new(),
            x87_loaded: false,
            ties: Vec::new(),
            first_tie,
            polled: false,
            body: 0,
            loses_flags: false,
            round: None,
            items: Vec::new(),
            ends_in_next_page: false,
            groups: Vec::new(),
            known: 0,
            item: 0,
            moved: 0,
            in_r10: (0, usize::MAX),
            start,
            at: start,
            next: start,
            info,
            features,
        }
    }

    /// Writes the block that begins `bytes`, which end with the page.
    pub(crate) fn write(mut self, bytes: &[u8], options: u32) -> Written {
        self.decode(bytes, options, LONGEST);
        self.finish()
    }

    /// Writes a block of one instruction, the first of `bytes`, which may go on in the next page.
    pub(crate) fn write_one(mut self, bytes: &[u8], options: u32) -> Written {
        self.decode(bytes, options, 1);
        self.finish()
    }

    /// Writes a block that leaves at its start.
    pub(crate) fn write_way_out(mut self) -> Vec<u8> {
        self.asm.save_flags(offset::FLAGS);
        debug_assert_eq!(self.asm.len(), SAVED_ENTRY);
        self.leave(Flags::SAVED, reason::ATTENTION, self.start as i32);
        self.asm.finish()
    }

    fn finish(mut self) -> Written {
        self.groups = groups::find(&self.items, self.info);
        self.entries();
        self.items_from(0);
        self.write_stubs();
        let instructions = self.items.len();
        let guest_bytes = self.items.last().map_or(0, |last| last.next - self.start) as usize;
        let wants_vectors = !self.mode.vectors
            && self.items.first().is_some_and(|item| item.good && classify::wants_vectors(&item.instruction));
        Written {
            code: self.asm.finish(),
            ties: self.ties,
            body: self.body,
            recoveries: self.recoveries,
            wants_vectors,
            instructions,
            guest_bytes,
        }
    }

    /// Writes the block's two entries: see [`SAVED_ENTRY`].
    fn entries(&mut self) {
        self.loses_flags =
            self.items.iter().find_map(|item| classify::first_use(&item.instruction)) == Some(false);
        if self.loses_flags {
            self.asm.save_flags(offset::FLAGS);
            debug_assert_eq!(self.asm.len(), SAVED_ENTRY);
            self.flags = Flags::SAVED;
            return;
        }
        let hole = self.asm.jump();
        while self.asm.len() < SAVED_ENTRY {
            const NOP: u8 = 0x90;
            self.asm.bytes(&[NOP]);
        }
        self.asm.restore_flags(offset::FLAGS);
        self.asm.fill(hole);
        self.body = self.asm.len();
    }

    /// Decodes up to the first instruction that surely goes elsewhere.
    fn decode(&mut self, bytes: &[u8], options: u32, most: usize) {
        let mut decoder = Decoder::with_ip(64, bytes, 0, options);
        while (self.items.len() < most || self.is_in_shadow(self.items.len())) && decoder.can_decode() {
            let at = self.start + decoder.position() as u32;
            let instruction = decoder.decode();
            let next = self.start + decoder.position() as u32;
            let no_more = instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes;
            if no_more && !self.items.is_empty() {
                self.ends_in_next_page = true;
                break;
            }
            let good = !instruction.is_invalid() && (self.features)(&instruction);
            self.items.push(Item { instruction, at, next, good });
            let goes_on =
                matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            if !good || !goes_on || classify::ends_block(&instruction) {
                break;
            }
        }
    }

    /// Whether item `n` follows `sti`: nothing may come between the two.
    fn is_in_shadow(&self, n: usize) -> bool {
        n > 0 && self.items[n - 1].instruction.mnemonic() == Mnemonic::Sti
    }

    /// Writes the items from `first` on, and where they go.
    fn items_from(&mut self, first: usize) {
        self.x87_loaded = false;
        for n in first..self.items.len() {
            let Item { instruction, at, next, good } = self.items[n];
            (self.item, self.at, self.next) = (n, at, next);
            let shadow = self.is_in_shadow(n);
            // Branches look at the attention before they are done, and the interpreter after it.
            if !good || shadow && instruction.flow_control() != FlowControl::Next {
                return self.interpret();
            }
            if !shadow {
                self.poll_if_free();
            }
            let before = self.asm.len();
            let result = match instruction.flow_control() {
                FlowControl::Next => match self.sensitive(&instruction) {
                    Some(result) => result,
                    None => self.straight(&instruction).map(|()| false),
                },
                FlowControl::ConditionalBranch => self.conditional(&instruction).map(|()| false),
                FlowControl::UnconditionalBranch => self.jump(&instruction).map(|()| true),
                FlowControl::IndirectBranch => self.jump_indirect(&instruction).map(|()| true),
                FlowControl::Call => self.call(&instruction).map(|()| true),
                FlowControl::IndirectCall => self.call_indirect(&instruction).map(|()| true),
                FlowControl::Return => self.ret(&instruction).map(|()| true),
                _ => Err(ForInterpreter),
            };
            match result {
                Ok(false) => {}
                Ok(true) => return,
                Err(ForInterpreter) => {
                    debug_assert_eq!(before, self.asm.len(), "{instruction:?} is refused half-way");
                    return self.interpret();
                }
            }
            if !self.groups.is_empty() {
                let written = groups::written(&instruction, self.info);
                match groups::stack_effect(&instruction, written) {
                    StackEffect::Moves(by) => self.moved += by,
                    StackEffect::Unknown => self.moved = 0,
                }
            }
        }
        self.at = self.next;
        if self.is_in_shadow(self.items.len()) {
            self.interpret();
        } else if self.ends_in_next_page {
            // That instruction holds only for as long as the next page is where it is.
            self.go_through_table(self.next as i32);
        } else {
            self.go_to(self.next as i32);
        }
    }

    /// Leaves the current instruction to the interpreter.
    fn interpret(&mut self) {
        let flags = self.flags;
        self.leave(flags, reason::INTERPRET, self.at as i32);
    }

    fn leave(&mut self, flags: Flags, reason: u32, distance: i32) {
        flags.write_back(&mut self.asm);
        self.asm.value(R10, distance);
        self.asm.unsigned(R11, reason);
        self.asm.jump_context(offset::LEAVE + 8 * self.mode.routine());
    }

    /// Leaves the current instruction to the interpreter if the jump is taken.
    pub(crate) fn interpret_if(&mut self, hole: Hole) {
        self.stub(hole, StubKind::Leave(reason::INTERPRET, self.at as i32));
    }

    pub(crate) fn stub(&mut self, hole: Hole, kind: StubKind) {
        self.stubs.push(Stub { holes: vec![hole], flags: self.flags, polled: self.polled, kind });
    }

    fn write_stubs(&mut self) {
        // A stub may need others.
        while !self.stubs.is_empty() {
            for stub in std::mem::take(&mut self.stubs) {
                for hole in stub.holes {
                    self.asm.fill(hole);
                }
                match stub.kind {
                    StubKind::Leave(reason, distance) => self.leave(stub.flags, reason, distance),
                    StubKind::Recover(from, at) => {
                        self.recoveries.push((from, self.asm.here()));
                        self.leave(stub.flags, reason::INTERPRET, at as i32);
                    }
                    StubKind::Access(access, at, resume) => {
                        stub.flags.write_back(&mut self.asm);
                        self.address(&access.address);
                        let view = u32::from(self.mode.view);
                        let what = access.size
                            | u32::from(access.write) << 7
                            | view << 8
                            | u32::from(access.aligned) << 10
                            | at << 16;
                        self.asm.unsigned(R11, what);
                        self.asm.call_context(offset::SLOW_ACCESS + 8 * self.mode.routine());
                        self.asm.jump_back(resume);
                    }
                    StubKind::Find(at, resume) => {
                        self.asm.unsigned(R11, help::FIND_JUMP | (self.mode.key() as u32) << 8);
                        self.call_help();
                        self.asm.test(true, R11);
                        let hole = self.asm.jump_if(Condition::NE);
                        self.leave(stub.flags, reason::INTERPRET, at as i32);
                        self.asm.lead(hole, resume);
                    }
                    StubKind::Rest(item) => {
                        (self.flags, self.polled) = (stub.flags, stub.polled);
                        self.groups.clear();
                        self.items_from(item);
                    }
                    StubKind::Round => {
                        if self.round.is_none() {
                            self.round = Some((stub.flags, self.asm.len()));
                            (self.flags, self.polled) = (stub.flags, false);
                            (self.known, self.moved) = (0, 0);
                            self.items_from(0);
                        } else {
                            (self.flags, self.polled) = (stub.flags, stub.polled);
                            self.go_to_start();
                        }
                    }
                    StubKind::Jump(distance, at) => {
                        (self.flags, self.polled, self.at) = (stub.flags, stub.polled, at);
                        self.go_to(distance);
                    }
                }
            }
        }
    }

    // For instructions that are elsewhere.

    /// Whether the page ends with the current instruction.
    pub(crate) fn ends_page(&self) -> bool {
        self.next == PAGE as u32
    }

    /// CPL is 0.
    pub(crate) fn is_supervisor(&self) -> bool {
        self.mode.view != posada_x86::View::User as u8
    }

    /// Where the current instruction is in its page.
    pub(crate) fn at(&self) -> i32 {
        self.at as i32
    }

    pub(crate) fn call_help(&mut self) {
        self.asm.call_context(offset::HELP + 8 * self.mode.routine());
    }

    pub(crate) fn flags_lost(&mut self) {
        self.flags.lose(&mut self.asm);
    }

    pub(crate) fn flags_wanted(&mut self) {
        self.flags.want(&mut self.asm);
    }

    /// They have been put where they are saved to.
    pub(crate) fn flags_saved(&mut self) {
        self.flags = Flags::Lost(Recipe::Saved);
    }

    /// Registers, a bit each, are about to change.
    pub(crate) fn before_writing(&mut self, written: u16) {
        self.flags.before_writing(&mut self.asm, written);
    }

    /// Goes on with the next instruction, whose view is another: by a tie, as this is where the view is known from.
    /// The flags are in the host's.
    pub(crate) fn go_to_another_view(&mut self) {
        let next = self.next as i32;
        if next == PAGE {
            // Nothing is tied to another page.
            return self.leave(self.flags, reason::ATTENTION, next);
        }
        let hole = self.asm.jump();
        self.tie(hole, next);
    }

    // Registers.

    fn load_guest(&mut self, to: u8, guest: u8) {
        match registers::host(guest) {
            Some(host) => self.asm.mov(to, host),
            None => self.asm.with_context(Op::Load, to, Context::gpr_offset(guest)),
        }
    }

    pub(crate) fn store_guest(&mut self, guest: u8, from: u8) {
        match registers::host(guest) {
            Some(host) => self.asm.mov(host, from),
            None => self.asm.store_context(Context::gpr_offset(guest), from),
        }
    }

    pub(crate) fn move_stack(&mut self, by: i32) {
        self.flags.before_moving_stack(&mut self.asm, by);
        self.add_to_stack(by);
    }

    fn add_to_stack(&mut self, by: i32) {
        let stack = registers::host(RSP).unwrap_or(R10);
        self.asm.add_to(stack, stack, by);
    }
}
