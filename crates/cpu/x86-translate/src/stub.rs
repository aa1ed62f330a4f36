//! The ways out of blocks that are seldom taken, one *stub* each.
//!
//! What a block does seldom would make it long, and long code is slow code: caches hold less of it. So a stub is only a
//! call of the monitor and its own number, in a part of the code cache of its own; all else is in a table here, in
//! terms of the guest, for [`crate::translator`] to look at.

use std::mem::offset_of;

use serde::{Deserialize, Serialize};

use crate::asm::{Asm, Condition, Hole, Op};
use crate::block::{Access, Mode};
use crate::context::register::{R11, RAX};
use crate::context::{Context, StackPage, offset};
use crate::flags::Flags;
use crate::jumps::{CodePage, Entry, Known, Noted};
use crate::{alarm, jumps, tlb};

/// One way out.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// Where the arithmetic flags are.
    pub(crate) flags: Flags,
    /// The guest's next instruction, as a distance from the running page.
    pub(crate) next: i32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// The instruction is the interpreter's.
    Interpret,
    /// Attention was asked for.
    Attention,
    /// A jump within the page that may be tied to its target: where its distance is.
    Tie { hole: u32 },
    /// An access that the TLB does not know. When it does, the check at `retry` is done again. Or one that is not aligned: if it
    /// need not be, the jump at `unaligned` leads to [`check_unaligned`] from then on.
    Access { access: Access, view: u8, retry: u32, unaligned: Option<u32> },
    /// The same for a group of accesses, the first of which is a store or not. If the check can't be made good, the rest
    /// of the block goes on without groups; if that is because they do not lie in one page, the jump at `hole`
    /// leads there from then on.
    Group { access: Access, stores: bool, mode: Mode, retry: u32, hole: u32 },
    /// A jump to the linear address in `rax`, which the table of jumps does not know. When it does, it is looked up
    /// again, at `retry`.
    Find { mode: Mode, retry: u32 },
    /// A direct jump to another page, at `distance` from the running one: one of the [`Links`](crate::jumps::Links), of another
    /// epoch. When it is made good, that is looked at again, at `retry`. The jump is at `hole`, and the flags have been saved
    /// there or are in the host's.
    Link { mode: Mode, retry: u32, link: u32, hole: u32, distance: i32, saved: bool },
}

impl Kind {
    /// What stubs of this kind call.
    pub(crate) fn callee(&self) -> Callee {
        match self {
            Self::Group { access, mode, .. } if access.address.is_on_stack() => {
                Callee::Stack { view: mode.view, write: access.write }
            }
            Self::Link { mode, link, .. } => Callee::Link { view: mode.view, link: *link },
            Self::Find { mode, .. } if mode.jumps() == jumps::NOTED_TABLE => Callee::Find { mode: *mode },
            _ => Callee::Monitor,
        }
    }
}

/// What a stub calls.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Callee {
    /// The monitor.
    Monitor,
    /// Code that looks for the page of a view's stack in the TLB, and goes on behind the stub's number if it is there: with
    /// a jump, that to the check. Otherwise it calls the monitor.
    Stack { view: u8, write: bool },
    /// The same for a link of a view, whose number is behind the stub's, by a look for its page.
    Link { view: u8, link: u32 },
    /// The same for the address in `rax`, of users, which the table of jumps comes to have.
    Find { mode: Mode },
}

const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
/// Stubs that are at hand.
const RECENT: usize = 2048;
/// Bytes of packed stubs after which there is no room for another block's.
const MOST_PACKED: usize = 1 << 31;
/// A call, and the number.
const LEN: usize = 9;
/// A jump.
const JUMP_LEN: usize = 5;
/// A link's number.
const LINK_LEN: usize = 4;

impl Stub {
    /// The bytes of its code.
    pub(crate) fn len(&self) -> usize {
        match self.kind.callee() {
            Callee::Monitor => LEN,
            Callee::Stack { .. } | Callee::Find { .. } => LEN + JUMP_LEN,
            Callee::Link { .. } => LEN + LINK_LEN + JUMP_LEN,
        }
    }

    /// Adds its code to `code`, which will be at `start`. It has this number, and calls `callee`; the code that it belongs
    /// to begins at `memory`.
    pub(crate) fn write(&self, code: &mut Vec<u8>, start: usize, number: u32, callee: usize, memory: usize) {
        let branch = |code: &mut Vec<u8>, opcode: u8, to: usize| {
            let behind = start + code.len() + JUMP_LEN;
            code.push(opcode);
            code.extend(((to as i64 - behind as i64) as i32).to_le_bytes());
        };
        branch(code, CALL, callee);
        code.extend(number.to_le_bytes());
        if let Callee::Link { link, .. } = self.kind.callee() {
            code.extend(link.to_le_bytes());
        }
        if let (Callee::Stack { .. }, Kind::Group { retry, .. })
        | (Callee::Find { .. }, Kind::Find { retry, .. })
        | (_, Kind::Link { retry, .. }) = (self.kind.callee(), self.kind)
        {
            branch(code, JUMP, memory + retry as usize);
        }
    }
}

/// All stubs of a code cache. There are about as many as guest instructions that were translated, so they are packed: a number
/// is where one begins.
pub(crate) struct Stubs {
    packed: Vec<u8>,
    /// Those that were asked for last, by their numbers' low bits: most are asked for again.
    recent: Box<[Option<(u32, Stub)>]>,
}

impl Stubs {
    pub(crate) fn new() -> Self {
        Self { packed: Vec::new(), recent: vec![None; RECENT].into() }
    }

    /// The number that the next one will have.
    pub(crate) fn next(&self) -> u32 {
        self.packed.len() as u32
    }

    /// Whether there are numbers for many more.
    pub(crate) fn have_room(&self) -> bool {
        self.packed.len() < MOST_PACKED
    }

    pub(crate) fn push(&mut self, stub: &Stub) {
        let packed = postcard::to_extend(stub, std::mem::take(&mut self.packed));
        self.packed = packed.unwrap_or_else(|error| unreachable!("a vector takes all: {error}"));
    }

    pub(crate) fn get(&mut self, number: u32) -> Option<Stub> {
        let recent = &mut self.recent[number as usize % RECENT];
        if let Some((_, stub)) = recent.filter(|(known, _)| *known == number) {
            return Some(stub);
        }
        let stub = postcard::from_bytes(self.packed.get(number as usize..)?).ok()?;
        *recent = Some((number, stub));
        Some(stub)
    }

    pub(crate) fn clear(&mut self) {
        self.packed.clear();
        self.recent.fill(None);
    }
}

/// The code of [`Callee::Monitor`], for one of the context's routines.
pub(crate) fn call_monitor(routine: i32) -> Vec<u8> {
    let mut asm = Asm::new(0);
    asm.jump_context(offset::STUB + 8 * routine);
    asm.finish()
}

/// The code of [`Callee::Stack`]: `rax` is the linear address's difference from the last page's. Changes `rax`, `r11` and
/// the flags.
pub(crate) fn find_stack(view: u8, write: bool, routine: i32, low: bool) -> Vec<u8> {
    const PAGE: i32 = 4096;
    const NUMBER: i32 = 4;
    let (stack, table) = (Context::stack_offset(view), Context::tlb_offset(view));
    let (tag, tags) = if write {
        (stack + StackPage::WRITE, table + tlb::WRITE)
    } else {
        (stack + StackPage::READ, table + tlb::READ)
    };
    let mut asm = Asm::new(0);
    asm.pop_context(offset::STUB_NUMBER);
    asm.with_context(Op::Xor, RAX, tag);
    asm.page_to_r11();
    asm.with_value(Op::And, true, RAX, -PAGE);
    // If it is in the last page, something else is the matter.
    asm.with_context(Op::Cmp, RAX, tag);
    let same = asm.jump_if(Condition::E);
    asm.with_table(Op::Cmp, RAX, tlb::SHIFT, tags);
    let unknown = asm.jump_if(Condition::NE);
    asm.store_context(stack + StackPage::READ, RAX);
    asm.with_table(Op::Cmp, RAX, tlb::SHIFT, table + tlb::WRITE);
    let writable = asm.jump_if(Condition::E);
    asm.with_context(Op::Load, RAX, offset::NO_STACK + StackPage::WRITE);
    asm.fill(writable);
    asm.store_context(stack + StackPage::WRITE, RAX);
    asm.with_table(Op::Load, RAX, tlb::SHIFT, table + tlb::distances(low));
    asm.store_context(stack + StackPage::DELTA, RAX);
    asm.with_context(Op::Load, R11, offset::STUB_NUMBER);
    asm.add_to(R11, R11, NUMBER);
    asm.jump_r11();
    asm.fill(same);
    asm.fill(unknown);
    asm.push_context(offset::STUB_NUMBER);
    asm.jump_context(offset::STUB + 8 * routine);
    asm.finish()
}

/// Code at `start` for an access that is not aligned now and then, whose address's sum with the distance to the host's memory is in a
/// register. Goes on at `back` if the access lies in one page that the TLB knows, or else with a stub. Changes `r11` and the flags.
pub(crate) fn check_unaligned(start: usize, access: &Access, back: usize, stub: usize) -> Vec<u8> {
    const PAGE: i32 = 4096;
    let sum = access.address.sum();
    let mut asm = Asm::new(start);
    asm.test_value(true, sum, tlb::NOT_LOW);
    let unknown = asm.jump_if(Condition::NE);
    if sum != R11 {
        asm.mov(R11, sum);
    }
    asm.with_value(Op::And, false, R11, PAGE - 1);
    asm.with_value(Op::Cmp, false, R11, PAGE - i32::from(access.size));
    let crossing = asm.jump_if(Condition::ABOVE);
    let good = asm.jump();
    asm.lead_to(unknown, stub);
    asm.lead_to(crossing, stub);
    asm.lead_to(good, back);
    asm.finish()
}

/// Looks which page is at the linear address in `rax`, which is kept in the context; its number comes to be in `r11`. Returns
/// the jumps for when that is not known.
fn find_page(asm: &mut Asm, view: u8) -> [Hole; 2] {
    const PAGE: i32 = 4096;
    let pages = Context::code_pages_offset(view);
    asm.store_context(offset::WANTED, RAX);
    asm.page_to_r11();
    asm.with_value(Op::And, false, R11, jumps::PAGE_INDEX);
    asm.shift_r11_left(size_of::<CodePage>().trailing_zeros() as u8);
    asm.with_value(Op::And, true, RAX, -PAGE);
    asm.with_table(Op::Cmp, RAX, 0, pages + offset_of!(CodePage, linear) as i32);
    let other = asm.jump_if(Condition::NE);
    asm.with_context_32(Op::Load, RAX, Context::epoch_offset(view));
    asm.with_table_32(Op::Cmp, RAX, pages + offset_of!(CodePage, epoch) as i32);
    let old = asm.jump_if(Condition::NE);
    asm.with_table_32(Op::Load, R11, pages + offset_of!(CodePage, page) as i32);
    [other, old]
}

/// Goes on behind the stub's number and `more` bytes.
fn go_on(asm: &mut Asm, more: usize) {
    const NUMBER: usize = 4;
    asm.with_context(Op::Load, R11, offset::STUB_NUMBER);
    asm.add_to(R11, R11, (NUMBER + more) as i32);
    asm.jump_r11();
}

/// Calls the monitor, with the address in `rax` that was looked for.
fn give_up(asm: &mut Asm, from: impl IntoIterator<Item = Hole>, routine: i32) {
    from.into_iter().for_each(|hole| asm.fill(hole));
    asm.with_context(Op::Load, RAX, offset::WANTED);
    asm.push_context(offset::STUB_NUMBER);
    asm.jump_context(offset::STUB + 8 * routine);
}

/// The code of [`Callee::Link`]. Changes `rax`, `r11` and the flags.
pub(crate) fn find_link(view: u8, routine: i32) -> Vec<u8> {
    let mut asm = Asm::new(0);
    asm.pop_context(offset::STUB_NUMBER);
    asm.with_context(Op::Load, RAX, offset::STUB_NUMBER);
    asm.load_link_to_rax();
    asm.store_context(offset::LINK, RAX);
    asm.mov(R11, RAX);
    asm.load_extended(RAX, offset::LINK_DISTANCES);
    asm.with_context(Op::Add, RAX, offset::CODE_BASE);
    let [other, old] = find_page(&mut asm, view);
    asm.mov(RAX, R11);
    asm.with_context(Op::Load, R11, offset::LINK);
    asm.with_table_32(Op::Cmp, RAX, offset::LINK_PAGES);
    let elsewhere = asm.jump_if(Condition::NE);
    asm.with_context_32(Op::Load, RAX, Context::epoch_offset(view));
    asm.with_context_32(Op::Cmp, RAX, alarm::epoch_offset(view));
    let rung = asm.jump_if(Condition::NE);
    asm.store_table_32(RAX, offset::LINK_EPOCHS);
    go_on(&mut asm, LINK_LEN);
    give_up(&mut asm, [other, old, elsewhere, rung], routine);
    asm.finish()
}

/// The code of [`Callee::Find`]: the target is in `rax`. Changes `r11` and the flags.
pub(crate) fn find_target(mode: Mode) -> Vec<u8> {
    const IN_PAGE: i32 = 4095;
    let (table, known) = (Context::jumps_offset(mode.jumps()), offset::KNOWN);
    let entries = offset::NOTED + offset_of!(Noted, entries) as i32;
    let count = offset::NOTED + offset_of!(Noted, count) as i32;
    let mut asm = Asm::new(0);
    asm.pop_context(offset::STUB_NUMBER);
    let [other, old] = find_page(&mut asm, mode.view);
    // The key of what is to be known.
    asm.shift_r11_left(jumps::KEY_PAGE);
    asm.with_context(Op::Load, RAX, offset::WANTED);
    asm.with_value(Op::And, false, RAX, IN_PAGE);
    asm.with_register(Op::Or, true, RAX, R11);
    asm.add_to(RAX, RAX, (mode.key() << jumps::KEY_MODE) as i32);
    asm.hash_to_r11(jumps::FACTOR, jumps::BITS);
    asm.with_table(Op::Cmp, RAX, 0, known + offset_of!(Known, key) as i32);
    let unknown = asm.jump_if(Condition::NE);
    asm.with_table(Op::Load, RAX, 0, known + offset_of!(Known, host) as i32);
    asm.store_context(offset::FOUND, RAX);
    // The table of jumps comes to have it, and a note says so.
    asm.with_context(Op::Load, RAX, offset::WANTED);
    asm.masked_to_r11(alarm::mask_offset(mode.jumps()));
    // There nothing may be; or the alarm has rung.
    let nowhere = asm.jump_if(Condition::E);
    asm.with_context_32(Op::Load, RAX, count);
    asm.with_value(Op::Cmp, false, RAX, jumps::MOST_NOTED as i32);
    let full = asm.jump_if(Condition::NOT_BELOW);
    asm.store_r11_in_list(entries);
    asm.add_to(RAX, RAX, 1);
    asm.store_context_32(count, RAX);
    asm.with_context(Op::Load, RAX, offset::FOUND);
    asm.store_table(RAX, jumps::SHIFT, table + offset_of!(Entry, host) as i32);
    asm.with_context(Op::Load, RAX, offset::WANTED);
    asm.store_table(RAX, jumps::SHIFT, table + offset_of!(Entry, linear) as i32);
    go_on(&mut asm, 0);
    give_up(&mut asm, [other, old, unknown, nowhere, full], mode.routine());
    asm.finish()
}
