//! One block: from the guest's bytes to the host's.

use iced_x86::{
    Decoder, DecoderError, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits,
};

use crate::asm::{Asm, Condition, Hole, Op, Place, Sum};
use crate::context::register::{R10, R11, RSP};
use crate::context::{Context, offset};
use crate::entry::reason;
use crate::flags::{Flags, Recipe};
use crate::groups::{self, Group, Item, StackEffect};
use crate::helpers::help;
use crate::registers::{self, with_number};
use crate::{classify, tlb};

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
    /// Guest instructions in it.
    pub(crate) instructions: usize,
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

    fn finish(mut self) -> Written {
        self.groups = groups::find(&self.items, self.info);
        self.entries();
        self.items_from(0);
        self.write_stubs();
        let instructions = self.items.len();
        let wants_vectors = !self.mode.vectors
            && self.items.first().is_some_and(|item| item.good && classify::wants_vectors(&item.instruction));
        Written {
            code: self.asm.finish(),
            ties: self.ties,
            body: self.body,
            recoveries: self.recoveries,
            wants_vectors,
            instructions,
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

    // Flow.

    /// Looks whether attention is asked for, if that is still to be done and the host's flags are free.
    fn poll_if_free(&mut self) {
        if !self.polled && self.flags.are_lost() {
            self.poll();
        }
    }

    /// Looks whether attention is asked for; must come before anything of the current instruction.
    fn poll(&mut self) {
        if self.polled {
            return;
        }
        self.polled = true;
        self.flags.lose(&mut self.asm);
        self.asm.with_context(Op::Load, R10, offset::ATTENTION);
        self.asm.compare_r10_memory_with_zero();
        let hole = self.asm.jump_if(Condition::NE);
        self.stub(hole, StubKind::Leave(reason::ATTENTION, self.at as i32));
    }

    /// Where a direct branch goes: its distance from the page's start.
    fn target(&self, i: &Instruction) -> Result<i32, ForInterpreter> {
        if i.op0_kind() != OpKind::NearBranch64 {
            return Err(ForInterpreter);
        }
        // The decoder believes that the block begins at 0.
        let target = i.near_branch64() as i64 + i64::from(self.start);
        i32::try_from(target).map_err(|_| ForInterpreter)
    }

    /// Goes on at `distance` from the page's start. The current instruction has changed nothing yet.
    fn go_to(&mut self, distance: i32) {
        if !(0..PAGE).contains(&distance) {
            return self.go_through_table(distance);
        }
        if distance <= self.at as i32 {
            self.poll();
        }
        if distance == self.start as i32 {
            return self.go_to_start();
        }
        self.flags_in_one_place();
        let hole = self.asm.jump();
        self.tie(hole, distance);
    }

    /// [`go_to`](Self::go_to) for what no jump can be tied to.
    fn go_through_table(&mut self, distance: i32) {
        self.poll();
        self.flags.lose(&mut self.asm);
        self.asm.with_context(Op::Load, R10, offset::CODE_BASE);
        self.asm.add_to(R10, R10, distance);
        self.find_jump();
        self.jump_found();
    }

    /// Jumps to the block's start.
    fn go_to_start(&mut self) {
        self.flags_in_one_place();
        let hole = self.asm.jump();
        self.lead_to_start(hole);
    }

    /// Lets a jump lead to the block's start. The flags are in the host's, or saved.
    fn lead_to_start(&mut self, hole: Hole) {
        match self.round {
            _ if self.flags.are_saved() => self.asm.lead(hole, SAVED_ENTRY),
            Some((flags, start)) if flags == self.flags => self.asm.lead(hole, start),
            None if self.loses_flags && self.flags.are_computable() => self.stub(hole, StubKind::Round),
            _ => self.asm.lead(hole, self.body),
        }
    }

    /// Makes sure that the flags are in the host's, unless they are saved.
    fn flags_in_one_place(&mut self) {
        if !self.flags.are_saved() {
            self.flags.want(&mut self.asm);
        }
    }

    /// A jump that may be tied to its target in the page later on. The flags are in the host's, or saved.
    fn tie(&mut self, hole: Hole, distance: i32) {
        let number = self.first_tie + self.ties.len() as u32;
        self.ties.push(Tie { at: self.asm.address(hole), saved: self.flags.are_saved() });
        self.stub(hole, StubKind::Leave(reason::TIE | number << 2, distance));
    }

    /// Looks for the code at the linear address in `r10`; the flags are lost. If it is not known, the current
    /// instruction is the interpreter's. `r11` is the code, and the page's address in the context.
    fn find_jump(&mut self) {
        let table = Context::jumps_offset(self.mode.jumps());
        self.asm.low_word_times_16();
        self.asm.with_table(Op::Cmp, R10, R11, table);
        let hole = self.asm.jump_if(Condition::NE);
        self.asm.with_table(Op::Load, R11, R11, table + 8);
        let resume = self.asm.len();
        self.stub(hole, StubKind::Find(self.at, resume));
        self.asm.with_value(Op::And, true, R10, -PAGE);
    }

    /// Jumps to what [`find_jump`](Self::find_jump) has found.
    fn jump_found(&mut self) {
        self.asm.store_context(offset::CODE_BASE, R10);
        self.jump_to_r11();
    }

    /// Jumps to a block whose entry for saved flags is in `r11`.
    fn jump_to_r11(&mut self) {
        if !self.flags.are_saved() {
            self.flags.want(&mut self.asm);
            self.asm.add_to(R11, R11, -(SAVED_ENTRY as i32));
        }
        self.asm.jump_r11();
    }

    fn conditional(&mut self, i: &Instruction) -> Outcome {
        if !i.is_jcc_short_or_near() {
            return Err(ForInterpreter);
        }
        let target = self.target(i)?;
        let in_page = (0..PAGE).contains(&target);
        if in_page && target <= self.at as i32 {
            self.poll();
        }
        self.flags.want(&mut self.asm);
        // The decoder counts them in the opcodes' order, from 1.
        let condition = Condition(i.condition_code() as u8 - 1);
        let hole = self.asm.jump_if(condition);
        if target == self.start as i32 {
            self.lead_to_start(hole);
        } else if in_page {
            self.tie(hole, target);
        } else {
            self.stub(hole, StubKind::Jump(target, self.at));
        }
        Ok(())
    }

    fn jump(&mut self, i: &Instruction) -> Outcome {
        let target = self.target(i)?;
        self.go_to(target);
        Ok(())
    }

    fn jump_indirect(&mut self, i: &Instruction) -> Outcome {
        self.near_operand(i)?;
        self.poll();
        self.target_operand(i)?;
        self.find_jump();
        self.jump_found();
        Ok(())
    }

    /// A near branch's operand must be 64 bits, and a register or a memory operand that can be computed.
    fn near_operand(&mut self, i: &Instruction) -> Outcome {
        let good = match i.op0_kind() {
            OpKind::Register => i.op0_register().size() == 8,
            OpKind::Memory => i.memory_size().size() == 8 && self.memory_operand(i).is_ok(),
            _ => false,
        };
        if good
            && matches!(i.mnemonic(), Mnemonic::Jmp | Mnemonic::Call)
            && !i.is_jmp_far_indirect()
            && !i.is_call_far_indirect()
        {
            Ok(())
        } else {
            Err(ForInterpreter)
        }
    }

    /// Loads an indirect branch's target into `r10`; the flags are lost.
    fn target_operand(&mut self, i: &Instruction) -> Outcome {
        // Through `r10`, so before that is in use.
        self.flags.lose(&mut self.asm);
        if i.op0_kind() == OpKind::Register {
            let number = registers::number(i.op0_register()).ok_or(ForInterpreter)?;
            self.load_guest(R10, number);
        } else {
            let address = self.memory_operand(i)?;
            let place = self.access(Access { address, size: 8, write: false, aligned: false });
            self.asm.with_place(Op::Load, R10, place);
        }
        Ok(())
    }

    /// Stores the address of the next instruction where the stack's top will be.
    fn push_next(&mut self) {
        let place =
            self.access(Access { address: Address::on_stack(-8), size: 8, write: true, aligned: false });
        self.asm.with_context(Op::Load, R11, offset::CODE_BASE);
        self.asm.add_to(R11, R11, self.next as i32);
        self.asm.store_place(place, R11);
    }

    fn call(&mut self, i: &Instruction) -> Outcome {
        let target = self.target(i)?;
        self.poll();
        self.flags.prepare_moving_stack(&mut self.asm);
        self.push_next();
        if (0..PAGE).contains(&target) {
            self.move_stack(-8);
            self.flags_in_one_place();
            let hole = self.asm.jump();
            self.tie(hole, target);
            return Ok(());
        }
        self.flags.lose(&mut self.asm);
        self.asm.with_context(Op::Load, R10, offset::CODE_BASE);
        self.asm.add_to(R10, R10, target);
        self.find_jump();
        self.move_stack(-8);
        self.jump_found();
        Ok(())
    }

    fn call_indirect(&mut self, i: &Instruction) -> Outcome {
        self.near_operand(i)?;
        self.poll();
        self.target_operand(i)?;
        // The target is found before anything is stored: the store may hit the operand.
        self.find_jump();
        // That may have had a page watched.
        self.forget_groups();
        self.asm.store_context(offset::TARGET, R11);
        self.asm.store_context(offset::TARGET + 8, R10);
        self.push_next();
        self.move_stack(-8);
        self.asm.with_context(Op::Load, R10, offset::TARGET + 8);
        self.asm.store_context(offset::CODE_BASE, R10);
        self.asm.with_context(Op::Load, R11, offset::TARGET);
        self.jump_to_r11();
        Ok(())
    }

    fn ret(&mut self, i: &Instruction) -> Outcome {
        if !matches!(i.code(), iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16) {
            return Err(ForInterpreter);
        }
        let released = if i.op_count() == 1 { i32::from(i.immediate16()) } else { 0 };
        self.poll();
        self.flags.prepare_moving_stack(&mut self.asm);
        self.flags.lose(&mut self.asm);
        let place =
            self.access(Access { address: Address::on_stack(0), size: 8, write: false, aligned: false });
        self.asm.with_place(Op::Load, R10, place);
        self.find_jump();
        self.move_stack(8 + released);
        self.jump_found();
        Ok(())
    }

    // Memory.

    /// The guest's memory operand.
    pub(crate) fn memory_operand(&self, i: &Instruction) -> Result<Address, ForInterpreter> {
        let segment = match i.memory_segment() {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        let displacement = i.memory_displacement64();
        if i.is_ip_rel_memory_operand() {
            if i.memory_base() != Register::RIP {
                return Err(ForInterpreter);
            }
            let displacement =
                i32::try_from(displacement as i64 + i64::from(self.start)).map_err(|_| ForInterpreter)?;
            let address =
                Address { base: None, index: None, displacement, in_code: true, segment, wide: true };
            return Ok(address);
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let number = |register: Register| match register {
            Register::None => Ok(None),
            _ if register.is_gpr64() || register.is_gpr32() => Ok(registers::number(register)),
            _ => Err(ForInterpreter),
        };
        let sizes =
            [base, index].map(|register| if register == Register::None { 8 } else { register.size() });
        // An absolute 32-bit address, which is not sign-extended, is rare.
        let absolute = base == Register::None && index == Register::None;
        if absolute && i.memory_displ_size() != 8 {
            return Err(ForInterpreter);
        }
        let wide = sizes == [8, 8];
        let displacement = if wide {
            i32::try_from(displacement as i64).map_err(|_| ForInterpreter)?
        } else {
            displacement as i32
        };
        let shift = i.memory_index_scale().trailing_zeros() as u8;
        let index = number(index)?.map(|index| (index, shift));
        Ok(Address { base: number(base)?, index, displacement, in_code: false, segment, wide })
    }

    /// Computes an address into `r10`; changes `r11`, and no flags.
    fn address(&mut self, address: &Address) {
        if address.in_code {
            self.asm.with_context(Op::Load, R10, offset::CODE_BASE);
            self.asm.add_to(R10, R10, address.displacement);
        } else {
            let mut place = |guest: u8, scratch: u8| {
                registers::host(guest).unwrap_or_else(|| {
                    self.asm.with_context(Op::Load, scratch, Context::gpr_offset(guest));
                    scratch
                })
            };
            let base = address.base.map(|base| place(base, R10));
            let index = address.index.map(|(index, shift)| (place(index, R11), shift));
            let sum = Sum { base, index, displacement: address.displacement };
            match (base, index) {
                (Some(base), None) if sum.displacement == 0 && address.wide => {
                    if base != R10 {
                        self.asm.mov(R10, base);
                    }
                }
                _ => self.asm.lea(address.wide, R10, sum),
            }
        }
        if let Some(segment) = address.segment {
            self.asm.with_context(Op::Load, R11, offset::BASES + 8 * segment as i32);
            self.asm.lea(true, R10, Sum { base: Some(R10), index: Some((R11, 0)), displacement: 0 });
        }
    }

    /// Finds where an access goes in the host's memory; changes `r10` and `r11`. The flags may be lost.
    pub(crate) fn access(&mut self, access: Access) -> Place {
        if let Some(place) = self.access_in_group(&access) {
            return place;
        }
        self.flags.lose(&mut self.asm);
        let before = self.flags;
        self.address(&access.address);
        let table = Context::tlb_offset(usize::from(self.mode.view), access.write);
        let mut holes = vec![self.look_up(table, access.size as i32)];
        if access.aligned {
            self.asm.test_r10(access.size as i32 - 1);
            holes.push(self.asm.jump_if(Condition::NE));
        }
        self.asm.with_table(Op::Add, R10, R11, table + 8);
        let resume = self.asm.len();
        let kind = StubKind::Access(access, self.at, resume);
        self.stubs.push(Stub { holes, flags: before, polled: self.polled, kind });
        Place { index: None, displacement: 0 }
    }

    /// Looks for the page of the linear address in `r10` in a TLB; `r10` becomes the offset in the page, and `r11`
    /// the entry's in the table. The hole is for when it is not there, or `size` bytes go beyond the page.
    fn look_up(&mut self, table: i32, size: i32) -> Hole {
        self.asm.rotate_to_r11(tlb::INDEX_SHIFT);
        self.asm.with_value(Op::And, false, R11, tlb::INDEX_MASK);
        self.asm.with_table(Op::Xor, R10, R11, table);
        self.asm.with_value(Op::Cmp, true, R10, PAGE - size);
        self.asm.jump_if(Condition::ABOVE)
    }

    /// [`access`](Self::access), if it belongs to a group.
    fn access_in_group(&mut self, access: &Access) -> Option<Place> {
        let Address {
            base: Some(base),
            index: None,
            displacement,
            in_code: false,
            segment: None,
            wide: true,
        } = access.address
        else {
            return None;
        };
        if access.aligned {
            return None;
        }
        let moved = if base == RSP { self.moved } else { 0 };
        let distance = displacement.checked_add(moved)?;
        let size = access.size as i32;
        let n = self.groups.iter().position(|g| g.has(self.item, base, distance, size, access.write))?;
        let group = self.groups[n];
        let host = registers::host(base)?;
        let slot = offset::DISTANCES + 8 * n as i32;
        if self.known & 1 << n == 0 {
            self.flags.lose(&mut self.asm);
            let before = self.flags;
            self.asm.add_to(R10, host, group.low.checked_sub(moved)?);
            let table = Context::tlb_offset(usize::from(self.mode.view), group.write);
            let hole = self.look_up(table, group.high - group.low);
            self.stubs.push(Stub {
                holes: vec![hole],
                flags: before,
                polled: self.polled,
                kind: StubKind::Rest(self.item),
            });
            self.asm.with_table(Op::Load, R10, R11, table + 8);
            self.asm.with_table(Op::Sub, R10, R11, table);
            self.asm.store_context(slot, R10);
            self.known |= 1 << n;
        } else if self.in_r10 != (n, self.asm.len()) {
            self.asm.with_context(Op::Load, R10, slot);
        }
        Some(Place { index: Some(host), displacement })
    }

    /// `r10` is still what an access with `place` has left there.
    fn keep_r10(&mut self, access: &Access, place: Place) {
        if place.index.is_some()
            && let Some(base) = access.address.base
        {
            let moved = if base == RSP { self.moved } else { 0 };
            let distance = access.address.displacement + moved;
            let has = |g: &Group| g.has(self.item, base, distance, access.size as i32, access.write);
            if let Some(n) = self.groups.iter().position(has) {
                self.in_r10 = (n, self.asm.len());
            }
        }
    }

    /// What has been found out about pages may hold no longer.
    pub(crate) fn forget_groups(&mut self) {
        self.known = 0;
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

    // Instructions that go on with the next.

    fn straight(&mut self, i: &Instruction) -> Outcome {
        match i.mnemonic() {
            Mnemonic::Push => self.push(i),
            Mnemonic::Pop => self.pop(i),
            Mnemonic::Leave => self.leave_frame(i),
            Mnemonic::Ldmxcsr => self.load_mxcsr(i),
            Mnemonic::Fldcw => self.load_x87_control(i),
            _ => match classify::classify(i, self.mode) {
                classify::Class::Copy => self.copy(i),
                classify::Class::Nothing => Ok(()),
                classify::Class::Lea => self.lea(i),
                classify::Class::Interpret => Err(ForInterpreter),
            },
        }
    }

    fn push(&mut self, i: &Instruction) -> Outcome {
        let to = Access { address: Address::on_stack(-8), size: 8, write: true, aligned: false };
        if i.stack_pointer_increment() != -8 {
            return Err(ForInterpreter);
        }
        let (place, from) = match i.op0_kind() {
            OpKind::Register => {
                let number = registers::number(i.op0_register()).ok_or(ForInterpreter)?;
                let place = self.access(to);
                let from = registers::host(number).unwrap_or(R11);
                if from == R11 {
                    self.load_guest(R11, number);
                }
                (place, from)
            }
            OpKind::Memory => {
                let address = self.memory_operand(i)?;
                let place = self.access(Access { address, size: 8, write: false, aligned: false });
                self.asm.with_place(Op::Load, R10, place);
                self.asm.store_context(offset::TEMPORARY, R10);
                let place = self.access(to);
                self.asm.with_context(Op::Load, R11, offset::TEMPORARY);
                (place, R11)
            }
            _ => {
                let value = i32::try_from(i.immediate(0) as i64).map_err(|_| ForInterpreter)?;
                let place = self.access(to);
                self.asm.value(R11, value);
                (place, R11)
            }
        };
        self.asm.store_place(place, from);
        let before = self.asm.len();
        self.flags.before_moving_stack(&mut self.asm, -8);
        let kept = before == self.asm.len();
        self.add_to_stack(-8);
        if kept {
            self.keep_r10(&to, place);
        }
        Ok(())
    }

    fn pop(&mut self, i: &Instruction) -> Outcome {
        if i.stack_pointer_increment() != 8 || i.op0_kind() != OpKind::Register {
            return Err(ForInterpreter);
        }
        let number = registers::number(i.op0_register()).ok_or(ForInterpreter)?;
        self.flags.before_writing(&mut self.asm, 1 << number);
        let from = Access { address: Address::on_stack(0), size: 8, write: false, aligned: false };
        let place = self.access(from);
        let to = registers::host(number).unwrap_or(R11);
        self.asm.with_place(Op::Load, to, place);
        if to == R11 {
            self.store_guest(number, R11);
        }
        if number != RSP {
            let before = self.asm.len();
            self.flags.before_moving_stack(&mut self.asm, 8);
            let kept = before == self.asm.len();
            self.add_to_stack(8);
            if kept {
                self.keep_r10(&from, place);
            }
        }
        Ok(())
    }

    fn leave_frame(&mut self, i: &Instruction) -> Outcome {
        const RBP: u8 = 5;
        if i.code() != iced_x86::Code::Leaveq {
            return Err(ForInterpreter);
        }
        self.flags.before_writing(&mut self.asm, 1 << RBP | 1 << RSP);
        let address = Address { base: Some(RBP), ..Address::on_stack(0) };
        let place = self.access(Access { address, size: 8, write: false, aligned: false });
        self.asm.with_place(Op::Load, R10, place);
        self.asm.add_to(registers::host(RSP).unwrap_or(R11), RBP, 8);
        self.asm.mov(RBP, R10);
        Ok(())
    }

    fn lea(&mut self, i: &Instruction) -> Outcome {
        let to = i.op0_register();
        let number = registers::number(to).ok_or(ForInterpreter)?;
        let address = Address { segment: None, ..self.memory_operand(i)? };
        if to.size() == 2 {
            return Err(ForInterpreter);
        }
        self.flags.before_writing(&mut self.asm, 1 << number);
        self.address(&address);
        if to.size() == 4 {
            self.asm.with_register(Op::Load, false, R10, R10);
        }
        self.store_guest(number, R10);
        Ok(())
    }

    /// An instruction that does on the host just what it does in the guest, once its operands are in place.
    fn copy(&mut self, i: &Instruction) -> Outcome {
        let memory = i.op_kinds().position(|kind| kind == OpKind::Memory).map(|n| n as u32);
        let mut plan = self.plan(i, memory)?;
        if classify::uses_x87(i) {
            self.ensure_x87();
        }
        let modified = classify::modified_flags(i);
        let reads = i.rflags_read() & ARITHMETIC != 0 || classify::may_keep_flags(i);
        let sets_all = modified == ARITHMETIC && !reads;
        if !sets_all {
            self.flags.before_writing(&mut self.asm, plan.written);
        }
        let mut placed = None;
        if let Some(access) = plan.access {
            let place = self.access(access);
            plan.put(place);
            placed = Some((access, place));
        }
        if reads || modified != 0 && !sets_all {
            if plan.access.is_some() && self.flags.are_lost() {
                // The recipe needs a scratch register, and the address is in `r10`.
                self.asm.store_context(offset::TEMPORARY, R10);
                self.flags.want(&mut self.asm);
                self.asm.with_context(Op::Load, R10, offset::TEMPORARY);
            } else {
                self.flags.want(&mut self.asm);
            }
        }
        for (guest, scratch) in plan.loads() {
            self.asm.with_context(Op::Load, scratch, Context::gpr_offset(guest));
        }
        if classify::may_raise(i, self.mode) {
            let kind = StubKind::Recover(self.asm.here(), self.at);
            self.stubs.push(Stub { holes: Vec::new(), flags: self.flags, polled: self.polled, kind });
        }
        let known = self.asm.instruction(&plan.instruction);
        debug_assert!(known, "{i:?} was tried before");
        for (guest, scratch) in plan.loads() {
            if plan.written & 1 << guest != 0 {
                self.asm.store_context(Context::gpr_offset(guest), scratch);
            }
        }
        if let Some((access, place)) = placed {
            self.keep_r10(&access, place);
        }
        if sets_all {
            self.flags.set_by(i);
        } else if modified != 0 {
            self.flags.set();
        }
        Ok(())
    }

    /// How an instruction is copied: with which operands, and what must be done before and after.
    fn plan(&mut self, i: &Instruction, memory: Option<u32>) -> Result<Plan, ForInterpreter> {
        let mut plan = Plan { instruction: *i, access: None, spilled: [None; 2], written: 0 };
        let mut write = false;
        let info = self.info.info(i);
        for used in info.used_registers() {
            if let Some(number) = registers::number(used.register())
                && matches!(
                    used.access(),
                    OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
                )
            {
                plan.written |= 1 << number;
            }
        }
        let mut scratch = if memory.is_some() { &[R11][..] } else { &[R10, R11][..] }.iter().copied();
        for n in 0..i.op_count() {
            let access = info.op_access(n);
            match i.op_kind(n) {
                OpKind::Register => {
                    let register = i.op_register(n);
                    let Some(number) = registers::number(register) else { continue };
                    if registers::is_high_byte(register) {
                        if memory.is_some() {
                            // There is no way to name both.
                            return Err(ForInterpreter);
                        }
                        continue;
                    }
                    if !registers::moves(number) {
                        continue;
                    }
                    let host = match registers::host(number) {
                        Some(host) => host,
                        None => plan.scratch_for(number, &mut scratch)?,
                    };
                    set_register(&mut plan.instruction, n, with_number(register, host));
                }
                OpKind::Memory => {
                    write |= !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
                }
                _ => {}
            }
        }
        // What is implied cannot be renamed.
        for used in info.used_registers() {
            if let Some(number) = registers::number(used.register())
                && registers::moves(number)
                && !explicit(i, number)
            {
                return Err(ForInterpreter);
            }
        }
        if memory.is_some() {
            let size = i.memory_size().size() as u32;
            if size == 0 || size > 64 || info.used_memory().len() != 1 {
                return Err(ForInterpreter);
            }
            let aligned = classify::needs_alignment(i, size);
            let address = self.memory_operand(i)?;
            plan.access = Some(Access { address, size, write, aligned });
            let host = &mut plan.instruction;
            host.set_memory_base(Register::R10);
            host.set_memory_index(Register::None);
            host.set_memory_index_scale(1);
            host.set_memory_displacement64(0);
            host.set_memory_displ_size(0);
            host.set_segment_prefix(Register::None);
        }
        // What means nothing to the guest's processor may name another instruction to the host's: `rep bsf` is
        // `tzcnt`.
        plan.instruction.set_has_rep_prefix(false);
        plan.instruction.set_has_repne_prefix(false);
        // Better now than half-way.
        if iced_x86::Encoder::new(64).encode(&plan.instruction, 0).is_err() {
            return Err(ForInterpreter);
        }
        Ok(plan)
    }
}

/// See [`Writer::plan`].
struct Plan {
    instruction: Instruction,
    access: Option<Access>,
    /// Guest registers that are in memory, and the scratch registers that stand for them.
    spilled: [Option<(u8, u8)>; 2],
    /// Guest registers that it writes, a bit each.
    written: u16,
}

impl Plan {
    fn scratch_for(&mut self, guest: u8, free: &mut impl Iterator<Item = u8>) -> Result<u8, ForInterpreter> {
        if let Some((_, scratch)) = self.spilled.iter().flatten().find(|(known, _)| *known == guest) {
            return Ok(*scratch);
        }
        let scratch = free.next().ok_or(ForInterpreter)?;
        let slot = self.spilled.iter_mut().find(|slot| slot.is_none()).ok_or(ForInterpreter)?;
        *slot = Some((guest, scratch));
        Ok(scratch)
    }

    /// Lets the memory operand be at `place`.
    fn put(&mut self, place: Place) {
        if let Some(index) = place.index {
            self.instruction.set_memory_index(with_number(Register::RAX, index));
        }
        let displacement = place.displacement;
        self.instruction.set_memory_displacement64(i64::from(displacement) as u64);
        self.instruction.set_memory_displ_size(match i8::try_from(displacement) {
            Ok(0) => 0,
            Ok(_) => 1,
            Err(_) => 8,
        });
    }

    fn loads(&self) -> impl Iterator<Item = (u8, u8)> + use<> {
        self.spilled.into_iter().flatten()
    }
}

fn set_register(instruction: &mut Instruction, operand: u32, register: Register) {
    match operand {
        0 => instruction.set_op0_register(register),
        1 => instruction.set_op1_register(register),
        2 => instruction.set_op2_register(register),
        3 => instruction.set_op3_register(register),
        _ => {}
    }
}

/// Whether a register is named by the instruction, as an operand or in an address.
fn explicit(i: &Instruction, number: u8) -> bool {
    let is = |register: Register| registers::number(register) == Some(number);
    is(i.memory_base())
        || is(i.memory_index())
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && is(i.op_register(n)))
}
