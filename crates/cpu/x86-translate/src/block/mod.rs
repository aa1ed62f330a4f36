//! One block: from the guest's bytes to the host's.

mod copy;
mod flow;
mod memory;

use iced_x86::{
    Decoder, DecoderError, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, RflagsBits,
};
use serde::{Deserialize, Serialize};

use crate::asm::{Asm, Hole, Op};
use crate::classify;
use crate::context::register::{R11, RAX, RSP};
use crate::context::{Context, offset};
use crate::flags::{Fate, Flags, Recipe};
use crate::groups::{self, Group, Item, StackEffect};
use crate::registers;
use crate::stub::{Kind, Stub};
use posada_x86::View;

/// Instructions in a block, at most.
const LONGEST: usize = 64;
const PAGE: i32 = 4096;

/// What a block depends on, besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

    /// The mode that has this key, if there is one.
    pub(crate) fn of_key(key: u64) -> Option<Self> {
        let bit = |n: u32| key >> n & 1 != 0;
        let view = (key & 3) as u8;
        let mode = Self { view, vectors: bit(2), unmasked: bit(3), x87: bit(4), avx: bit(5) };
        (view <= View::User as u8).then_some(mode)
    }

    /// Which of the context's routines are for it.
    pub(crate) fn routine(self) -> i32 {
        i32::from(self.vectors) + i32::from(self.avx)
    }

    /// Where jumps to other pages find their targets: which of the context's tables.
    pub(crate) const fn jumps(self) -> usize {
        self.view as usize + 3 * self.vectors as usize
    }
}

/// From a block's entry with the flags in the host's to the one with the flags in memory, in bytes.
///
/// Each block has both. Most blocks begin with something that destroys the host's flags: the first entry saves them,
/// the second is behind that. Other blocks begin with the flags in the host's: there the second restores them.
pub(crate) const SAVED_ENTRY: usize = 8;

/// Where a block's code will be: addresses of all code, of the block's, and of its stubs; the number of its first link; and
/// where RAM is.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    pub(crate) memory: usize,
    pub(crate) host: usize,
    pub(crate) first_stub: usize,
    pub(crate) first_link: u32,
    /// All of RAM has addresses below 2^31: see [`crate::tlb`].
    pub(crate) low: bool,
}

/// What has been written.
pub(crate) struct Written {
    pub(crate) code: Vec<u8>,
    pub(crate) stubs: Vec<Stub>,
    /// How many links there are.
    pub(crate) links: usize,
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Address {
    /// Guest registers.
    base: Option<u8>,
    /// Register and shift.
    index: Option<(u8, u8)>,
    displacement: i32,
    /// Counted from the running page.
    in_code: bool,
    /// 0 for `fs`, 1 for `gs`.
    segment: Option<u8>,
    /// 64-bit, not 32-bit.
    wide: bool,
}

impl Address {
    pub(crate) fn on_stack(displacement: i32) -> Self {
        Self::based(RSP, displacement)
    }

    pub(crate) fn based(base: u8, displacement: i32) -> Self {
        Self { base: Some(base), index: None, displacement, in_code: false, segment: None, wide: true }
    }

    /// The host's register of its base, if there is nothing else but a displacement.
    fn only_base(&self) -> Option<u8> {
        let plain = self.index.is_none() && !self.in_code && self.segment.is_none() && self.wide;
        self.base.filter(|_| plain).and_then(registers::host)
    }

    /// Whether it is computed without `r11`.
    fn leaves_r11(&self) -> bool {
        self.segment.is_none() && self.index.is_none_or(|(index, _)| registers::host(index).is_some())
    }

    /// Whether it is computed without `rax`.
    fn leaves_rax(&self) -> bool {
        let in_host =
            |register: Option<u8>| register.is_none_or(|register| registers::host(register).is_some());
        !self.in_code && in_host(self.base) && in_host(self.index.map(|(index, _)| index))
    }

    /// The register that has its sum with the distance to the host's memory: see [`Writer::access_aligned`].
    pub(crate) fn sum(&self) -> u8 {
        if self.only_base().is_some() { R11 } else { RAX }
    }

    /// Whether it is on the stack.
    pub(crate) fn is_on_stack(&self) -> bool {
        self.base == Some(RSP)
    }

    /// What it is, with what the context has.
    pub(crate) fn linear(&self, context: &Context) -> u64 {
        let register = |number: u8| context.register(number);
        let displacement = i64::from(self.displacement) as u64;
        let index = self.index.map_or(0, |(index, shift)| register(index) << shift);
        let base = if self.in_code { context.code_base } else { self.base.map_or(0, register) };
        let sum = base.wrapping_add(index).wrapping_add(displacement);
        let sum = if self.wide { sum } else { sum & 0xffff_ffff };
        sum.wrapping_add(self.segment.map_or(0, |segment| context.bases[usize::from(segment)]))
    }
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Access {
    pub(crate) address: Address,
    /// In bytes.
    pub(crate) size: u16,
    pub(crate) write: bool,
    /// Must lie at a multiple of this.
    pub(crate) alignment: u16,
}

impl Access {
    /// Whether it lies in one page, aligned as it must be, if it is at `linear`.
    pub(crate) fn fits_at(&self, linear: u64) -> bool {
        let in_page = linear & (PAGE as u64 - 1);
        in_page + u64::from(self.size) <= PAGE as u64 && linear & (u64::from(self.alignment) - 1) == 0
    }

    /// What its address is likely to be a multiple of, if that is enough for it to lie in one page.
    fn grain(&self) -> Option<u16> {
        (matches!(self.size, 1 | 2 | 4 | 8) || self.alignment == self.size).then_some(self.size)
    }

    /// One that need not be aligned.
    pub(crate) fn new(address: Address, size: u16, write: bool) -> Self {
        Self { address, size, write, alignment: 1 }
    }
}

/// Code that is run now and then, behind the rest.
struct Later {
    hole: Hole,
    flags: Flags,
    /// Attention has been looked for on the way here.
    polled: bool,
    kind: LaterKind,
}

enum LaterKind {
    /// A jump to another page, at this distance, of the instruction there.
    Jump(i32, u32),
    /// A jump back to the block's start, with flags that can be computed anew: the block once more, so that they need
    /// not be saved.
    Round,
}

/// An instruction that is not for translation.
pub(crate) struct ForInterpreter;

pub(crate) type Outcome = Result<(), ForInterpreter>;

pub(crate) struct Writer<'a> {
    pub(crate) asm: Asm,
    pub(crate) mode: Mode,
    flags: Flags,
    memory: usize,
    low: bool,
    later: Vec<Later>,
    stubs: Vec<Stub>,
    /// Where the next stub will be.
    next_stub: usize,
    /// The number of the first link, and how many there are.
    first_link: u32,
    links: u32,
    recoveries: Vec<(usize, usize)>,
    /// The x87 unit's state has been loaded.
    pub(crate) x87_loaded: bool,
    polled: bool,
    /// The last item before which attention must have been looked for.
    last_back: Option<usize>,
    /// Nothing may come between the current instruction and the one before.
    in_shadow: bool,
    /// Where the block begins for jumps with the flags in the host's, in bytes from the start.
    body: usize,
    /// It is a block's rest: nothing leads to its start but that block.
    is_rest: bool,
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
    /// How far the guest's stack pointer is beyond the host's register for it: pushes and pops put off what they do to it, until
    /// [`settle_stack`](Self::settle_stack). No stub is made before.
    put_off: i32,
    /// The group whose distance is in `rax` if nothing has been written since there were so many bytes.
    in_rax: (usize, usize),
    held: Option<Held>,
    /// Where the block, the current instruction and the next are in the page.
    start: u32,
    at: u32,
    next: u32,
    info: &'a mut InstructionInfoFactory,
    features: &'a dyn Fn(&Instruction) -> bool,
}

/// A guest register that is in memory, and a scratch register that has the same value if nothing has been written since there were
/// `len` bytes.
#[derive(Clone, Copy)]
struct Held {
    guest: u8,
    scratch: u8,
    len: usize,
}

/// All six arithmetic flags.
pub(crate) const ARITHMETIC: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

impl<'a> Writer<'a> {
    /// For the block at `start` of its page; `features` says whether the CPU model has an instruction.
    pub(crate) fn new(
        mode: Mode,
        start: u32,
        places: Places,
        info: &'a mut InstructionInfoFactory,
        features: &'a dyn Fn(&Instruction) -> bool,
    ) -> Self {
        Self {
            asm: Asm::new(places.host),
            mode,
            flags: Flags::UNKNOWN,
            memory: places.memory,
            low: places.low,
            later: Vec::new(),
            stubs: Vec::new(),
            next_stub: places.first_stub,
            first_link: places.first_link,
            links: 0,
            recoveries: Vec::new(),
            x87_loaded: false,
            polled: false,
            last_back: None,
            in_shadow: false,
            body: 0,
            is_rest: false,
            loses_flags: false,
            round: None,
            items: Vec::new(),
            ends_in_next_page: false,
            groups: Vec::new(),
            known: 0,
            item: 0,
            moved: 0,
            put_off: 0,
            in_rax: (0, usize::MAX),
            held: None,
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
        self.groups = groups::find(&self.items, self.info);
        self.entries();
        self.finish()
    }

    /// Writes the rest of a block, without groups, to be entered at its start alone, with these flags.
    pub(crate) fn write_rest(mut self, bytes: &[u8], options: u32, flags: Flags) -> Written {
        self.decode(bytes, options, LONGEST);
        self.flags = flags;
        self.is_rest = true;
        self.finish()
    }

    /// Writes a block of one instruction, the first of `bytes`, which may go on in the next page.
    pub(crate) fn write_one(mut self, bytes: &[u8], options: u32) -> Written {
        self.decode(bytes, options, 1);
        self.entries();
        self.finish()
    }

    /// Writes a block that leaves at its start.
    pub(crate) fn write_way_out(mut self) -> Written {
        self.asm.save_flags(offset::FLAGS);
        debug_assert_eq!(self.asm.len(), SAVED_ENTRY);
        self.flags = Flags::SAVED;
        let hole = self.asm.jump();
        self.stub(hole, self.start as i32, Kind::Attention);
        self.written()
    }

    fn finish(mut self) -> Written {
        self.last_back = self.find_last_back();
        self.write_items();
        self.write_later();
        self.written()
    }

    fn written(self) -> Written {
        let instructions = self.items.len();
        let guest_bytes = self.items.last().map_or(0, |last| last.next - self.start) as usize;
        let wants_vectors = !self.mode.vectors
            && self.items.first().is_some_and(|item| item.good && classify::wants_vectors(&item.instruction));
        Written {
            code: self.asm.finish(),
            stubs: self.stubs,
            links: self.links as usize,
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
        if !self.sets_flags() {
            self.asm.restore_flags(offset::FLAGS);
        }
        self.asm.fill(hole);
        self.body = self.asm.len();
    }

    /// Whether an instruction sets all flags before anything can come between: then it does not matter what they are at
    /// the start.
    fn sets_flags(&mut self) -> bool {
        for n in 0..self.items.len() {
            let Item { instruction, good, .. } = self.items[n];
            let i = &instruction;
            let plain = good
                && i.flow_control() == FlowControl::Next
                && i.op_kinds().all(|kind| kind != OpKind::Memory)
                && !classify::may_raise(i, self.mode)
                && !classify::uses_x87(i);
            match classify::classify(i, self.mode) {
                classify::Class::Nothing => {}
                classify::Class::Copy if plain && self.plan(i, None).is_ok() => {
                    if classify::sets_all_flags(i) {
                        return true;
                    }
                    if classify::reads_flags(i) || classify::modified_flags(i) != 0 {
                        return false;
                    }
                }
                _ => return false,
            }
        }
        false
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
            // What a processor without CET does nothing at.
            let nothing = matches!(instruction.mnemonic(), Mnemonic::Endbr64 | Mnemonic::Endbr32);
            let good = !instruction.is_invalid() && (nothing || (self.features)(&instruction));
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

    /// Writes the items, and where they go.
    fn write_items(&mut self) {
        self.x87_loaded = false;
        for n in 0..self.items.len() {
            let Item { instruction, at, next, good } = self.items[n];
            (self.item, self.at, self.next) = (n, at, next);
            let shadow = self.is_in_shadow(n);
            self.in_shadow = shadow;
            if !self.leaves_stack_pointer(&instruction) {
                self.settle_stack();
            }
            // Branches look at the attention before they are done, and the interpreter after it.
            if !good || shadow && instruction.flow_control() != FlowControl::Next {
                return self.interpret();
            }
            self.poll_if_free();
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
        self.settle_stack();
        self.at = self.next;
        if self.is_in_shadow(self.items.len()) {
            self.interpret();
        } else if self.ends_in_next_page {
            // That instruction holds only for as long as the next page is where it is.
            self.go_by_link(self.next as i32);
        } else {
            self.go_to(self.next as i32);
        }
    }

    /// Leaves the current instruction to the interpreter.
    fn interpret(&mut self) {
        self.settle_stack();
        let hole = self.asm.jump();
        self.interpret_if(hole);
    }

    /// Leaves the current instruction to the interpreter if the jump is taken.
    pub(crate) fn interpret_if(&mut self, hole: Hole) {
        self.stub(hole, self.at as i32, Kind::Interpret);
    }

    /// Lets a jump lead to a stub of its own, in front of the guest's instruction at the distance `next`.
    pub(crate) fn stub(&mut self, hole: Hole, next: i32, kind: Kind) {
        let at = self.new_stub(next, kind);
        self.asm.lead_to(hole, at);
    }

    /// A new stub; its address.
    pub(super) fn new_stub(&mut self, next: i32, kind: Kind) -> usize {
        debug_assert_eq!(self.put_off, 0, "a stub's stack pointer is right");
        self.asm.all_seen();
        let stub = Stub { flags: self.flags, next, kind };
        self.stubs.push(stub);
        let at = self.next_stub;
        self.next_stub += stub.len();
        at
    }

    /// If the next instruction to be written raises an exception, the guest's is the interpreter's.
    fn recover(&mut self) {
        let at = self.new_stub(self.at as i32, Kind::Interpret);
        self.recoveries.push((self.asm.here(), at));
    }

    fn later(&mut self, hole: Hole, kind: LaterKind) {
        self.later.push(Later { hole, flags: self.flags, polled: self.polled, kind });
    }

    fn write_later(&mut self) {
        // One may need others.
        while !self.later.is_empty() {
            for later in std::mem::take(&mut self.later) {
                self.asm.fill(later.hole);
                (self.flags, self.polled) = (later.flags, later.polled);
                match later.kind {
                    LaterKind::Round if self.round.is_none() => {
                        self.round = Some((later.flags, self.asm.len()));
                        self.polled = false;
                        (self.known, self.moved) = (0, 0);
                        self.write_items();
                    }
                    LaterKind::Round => self.go_to_start(),
                    LaterKind::Jump(distance, at) => {
                        self.at = at;
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
        if self.flags.need(written) {
            let fate = self.fate(self.item);
            self.flags.before_writing(&mut self.asm, written, fate);
        }
    }

    /// What is going to happen to the flags that are good before item `n` is carried out. A guess: code is right either way.
    fn fate(&self, n: usize) -> Fate {
        use FlowControl as F;
        for (n, Item { instruction: i, good, .. }) in self.items.iter().enumerate().skip(n) {
            let in_page = || self.target(i).is_ok_and(|target| (0..PAGE).contains(&target));
            match i.flow_control() {
                _ if !good => return Fate::Unknown,
                F::Next if self.looks_up(n, i) => return Fate::Lost,
                F::Next if classify::modified_flags(i) != 0 => return Fate::Unknown,
                F::Next | F::ConditionalBranch => {}
                F::UnconditionalBranch if in_page() => return Fate::Unknown,
                _ => return Fate::Lost,
            }
        }
        Fate::Unknown
    }

    /// Whether item `n` looks into the TLB, as far as is known by now.
    fn looks_up(&self, n: usize, i: &Instruction) -> bool {
        let knows = |base: Option<u8>, index: Option<u8>| {
            self.groups.iter().enumerate().any(|(bit, group)| {
                self.known & 1 << bit != 0
                    && group.spans(n)
                    && (Some(group.base), group.index.map(|(index, _)| index)) == (base, index)
            })
        };
        let memory = i.op_kinds().any(|kind| kind == OpKind::Memory)
            && !matches!(classify::classify(i, self.mode), classify::Class::Lea | classify::Class::Nothing);
        memory && !knows(registers::number(i.memory_base()), registers::number(i.memory_index()))
            || i.is_stack_instruction() && !knows(Some(RSP), None)
    }

    /// Goes on with the next instruction, whose view is another: by a tie, as this is where the view is known from.
    /// The flags are in the host's.
    pub(crate) fn go_to_another_view(&mut self) {
        let next = self.next as i32;
        let hole = self.asm.jump();
        if next == PAGE {
            // Nothing is tied to another page.
            return self.stub(hole, next, Kind::Attention);
        }
        self.tie(hole, next);
    }

    // Registers.

    /// Loads a guest's register into a scratch register, for code to which nothing jumps.
    fn load_guest(&mut self, to: u8, guest: u8) {
        match registers::host(guest) {
            Some(host) => self.asm.mov(to, host),
            None => match self.held {
                Some(held) if held.guest == guest && held.len == self.asm.len() => {
                    if held.scratch != to {
                        self.asm.mov(to, held.scratch);
                    }
                }
                _ => self.asm.with_context(Op::Load, to, Context::slot_offset(guest)),
            },
        }
    }

    pub(crate) fn store_guest(&mut self, guest: u8, from: u8) {
        match registers::host(guest) {
            Some(host) => self.asm.mov(host, from),
            None => {
                if let Some((at, len)) = self.asm.store_guest(Context::slot_offset(guest), from)
                    && self.in_rax.1 > at
                {
                    self.in_rax.1 -= len;
                }
                self.held = Some(Held { guest, scratch: from, len: self.asm.len() });
            }
        }
    }

    /// Whether an instruction uses the stack pointer in ways alone that take into account what is put off.
    fn leaves_stack_pointer(&self, i: &Instruction) -> bool {
        let is_rsp = |register| registers::number(register) == Some(RSP);
        let names_it =
            (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && is_rsp(i.op_register(n)));
        if names_it || i.flow_control() != FlowControl::Next {
            return false;
        }
        if matches!(i.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
            return true;
        }
        match classify::classify(i, self.mode) {
            classify::Class::Copy => {
                !i.is_stack_instruction() && !classify::may_raise(i, self.mode) && !classify::uses_x87(i)
            }
            classify::Class::Lea => !is_rsp(i.memory_base()),
            _ => false,
        }
    }

    /// Lets the host's register for the guest's stack pointer be good.
    pub(super) fn settle_stack(&mut self) {
        match std::mem::take(&mut self.put_off) {
            0 => {}
            by => self.move_stack(by),
        }
    }

    pub(crate) fn move_stack(&mut self, by: i32) {
        let (start, rax_was_known) = (self.asm.len(), self.rax_is_known());
        self.flags.before_moving_stack(&mut self.asm, by);
        let leaves_rax = self.asm.len() == start;
        self.add_to_stack(by);
        if leaves_rax {
            self.has_left_rax(rax_was_known);
        }
    }

    fn add_to_stack(&mut self, by: i32) {
        let stack = registers::host(RSP).unwrap_or(RAX);
        self.asm.add_to(stack, stack, by);
    }
}
