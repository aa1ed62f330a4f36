//! Where a block goes: jumps, calls, returns, and the look at the attention flag.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Access, Address, ForInterpreter, LaterKind, Outcome, PAGE, SAVED_ENTRY, Writer};
use crate::alarm;
use crate::asm::{Condition, Hole, Op};
use crate::context::register::{R11, RAX};
use crate::context::{Context, offset};
use crate::flags::Flags;
use crate::groups::Item;
use crate::jumps;
use crate::registers;
use crate::stub::Kind;

/// See [`Writer::check_link`].
#[derive(Clone, Copy)]
struct CheckedLink {
    /// The index of its stub, and the address.
    stub: usize,
    at: usize,
    /// The flags have been saved.
    saved: bool,
    distance: i32,
}

/// Whether something at `distance` from the page's start is in the page, but not behind the instruction at `at`.
fn is_back(at: u32, distance: i32) -> bool {
    (0..=at as i32).contains(&distance)
}

impl Writer<'_> {
    /// Looks whether attention is asked for, if that is still to be done before some jump, and the host's flags are free. Must come
    /// before anything that cannot be done again of the current instruction.
    pub(super) fn poll_if_free(&mut self) {
        let is_due = self.last_back.is_some_and(|last| self.item <= last);
        if is_due && !self.polled && !self.in_shadow && self.flags.are_lost() {
            self.poll();
        }
    }

    /// Looks whether attention is asked for; must come before anything of the current instruction.
    pub(super) fn poll(&mut self) {
        if self.polled {
            return;
        }
        self.settle_stack();
        self.polled = true;
        self.flags.lose(&mut self.asm);
        self.asm.compare_context_32_with_zero(alarm::ATTENTION);
        let hole = self.asm.jump_if(Condition::NE);
        self.stub(hole, self.at as i32, Kind::Attention);
    }

    /// Where a direct branch goes: its distance from the page's start.
    pub(super) fn target(&self, i: &Instruction) -> Result<i32, ForInterpreter> {
        if i.op0_kind() != OpKind::NearBranch64 {
            return Err(ForInterpreter);
        }
        // The decoder believes that the block begins at 0.
        let target = i.near_branch64() as i64 + i64::from(self.start);
        i32::try_from(target).map_err(|_| ForInterpreter)
    }

    /// [`poll`](Self::poll), if something at `distance` from the page's start is where jumps go back to.
    fn poll_if_back(&mut self, distance: i32) {
        if is_back(self.at, distance) {
            self.poll();
        }
    }

    /// The last item that may go back within the page.
    pub(super) fn find_last_back(&self) -> Option<usize> {
        let goes_back =
            |item: &Item| self.target(&item.instruction).is_ok_and(|target| is_back(item.at, target));
        self.items.iter().rposition(goes_back)
    }

    /// Goes on at `distance` from the page's start. The current instruction has changed nothing yet.
    pub(super) fn go_to(&mut self, distance: i32) {
        if !(0..PAGE).contains(&distance) {
            return self.go_by_link(distance);
        }
        self.poll_if_back(distance);
        if self.is_start(distance) {
            return self.go_to_start();
        }
        self.flags_in_one_place();
        let hole = self.asm.jump();
        self.tie(hole, distance);
    }

    /// [`go_to`](Self::go_to) for what no jump can be tied to.
    pub(super) fn go_by_link(&mut self, distance: i32) {
        let link = self.check_link(distance);
        self.follow_link(link);
    }

    /// Makes sure that the code at `distance` from the page's start is where a link leads; the flags are lost. If it cannot be
    /// found, the current instruction is the interpreter's.
    fn check_link(&mut self, distance: i32) -> CheckedLink {
        self.flags.lose(&mut self.asm);
        let view = self.mode.view;
        let link = self.first_link + self.links;
        self.links += 1;
        let retry = self.place_of(self.asm.here());
        self.asm.with_context_32(Op::Load, RAX, alarm::epoch_offset(view));
        self.asm.with_context_32(Op::Cmp, RAX, Context::link_offset(link));
        let stub = self.stubs.len();
        let hole = self.asm.jump_if(Condition::NE);
        let saved = self.flags.are_saved();
        let kind = Kind::Link { mode: self.mode, retry, link, hole: 0, distance, saved };
        let at = self.new_stub(self.at as i32, kind);
        self.asm.lead_to(hole, at);
        CheckedLink { stub, at, saved, distance }
    }

    /// Goes where a link leads that has just been checked; what was written since leaves the flags.
    fn follow_link(&mut self, link: CheckedLink) {
        self.asm.add_to_context(offset::CODE_BASE, link.distance & -PAGE);
        debug_assert!(self.flags.are_lost() && self.flags.are_saved() == link.saved);
        if !link.saved {
            self.flags.want(&mut self.asm);
        }
        let hole = self.asm.jump();
        let place = self.place_of(self.asm.address(hole));
        // Nobody comes here before the link is made good.
        self.asm.lead_to(hole, link.at);
        if let Kind::Link { hole, .. } = &mut self.stubs[link.stub].kind {
            *hole = place;
        }
    }

    fn is_start(&self, distance: i32) -> bool {
        distance == self.start as i32 && !self.is_rest
    }

    /// Jumps to the block's start.
    pub(super) fn go_to_start(&mut self) {
        self.flags_in_one_place();
        let hole = self.asm.jump();
        self.lead_to_start(hole);
    }

    /// Lets a jump lead to the block's start. The flags are in the host's, or saved.
    pub(super) fn lead_to_start(&mut self, hole: Hole) {
        match self.round {
            _ if self.flags.are_saved() => self.asm.lead(hole, SAVED_ENTRY),
            Some((flags, start)) if flags == self.flags => self.asm.lead(hole, start),
            None if self.loses_flags && self.flags.are_computable() => self.later(hole, LaterKind::Round),
            _ => self.asm.lead(hole, self.body),
        }
    }

    /// Makes sure that the flags are in the host's, unless they are saved.
    pub(super) fn flags_in_one_place(&mut self) {
        if self.flags == Flags::Rotated {
            self.flags.lose(&mut self.asm);
        }
        if !self.flags.are_saved() {
            self.flags.want(&mut self.asm);
        }
    }

    /// A jump that may be tied to its target in the page later on. The flags are in the host's, or saved.
    pub(super) fn tie(&mut self, hole: Hole, distance: i32) {
        let kind = Kind::Tie { hole: self.place_of(self.asm.address(hole)) };
        self.stub(hole, distance, kind);
    }

    /// Looks for the code at the linear address in `rax`, which becomes the page's; the flags are lost. If it is not known, the
    /// current instruction is the interpreter's. `r11` is where the table has it.
    pub(super) fn find_jump(&mut self) {
        let table = Context::jumps_offset(self.mode.jumps());
        let retry = self.place_of(self.asm.here());
        self.asm.masked_to_r11(alarm::mask_offset(self.mode.jumps()));
        self.asm.with_table(Op::Cmp, RAX, jumps::SHIFT, table);
        let hole = self.asm.jump_if(Condition::NE);
        self.stub(hole, self.at as i32, Kind::Find { mode: self.mode, retry });
        match Context::constant_offset(-PAGE) {
            Some(offset) => self.asm.with_context(Op::And, RAX, offset),
            None => self.asm.with_value(Op::And, true, RAX, -PAGE),
        }
    }

    /// Jumps to what [`find_jump`](Self::find_jump) has found.
    pub(super) fn jump_found(&mut self) {
        self.asm.store_context(offset::CODE_BASE, RAX);
        if self.flags.are_saved() {
            self.asm.jump_by_table(jumps::SHIFT, self.found());
        } else {
            self.asm.with_table(Op::Load, R11, jumps::SHIFT, self.found());
            self.jump_to_r11();
        }
    }

    /// Where the table of jumps has the entries of code, from the context.
    fn found(&self) -> i32 {
        Context::jumps_offset(self.mode.jumps()) + offset_of!(jumps::Entry, host) as i32
    }

    /// Jumps to a block whose entry for saved flags is in `r11`.
    pub(super) fn jump_to_r11(&mut self) {
        if !self.flags.are_saved() {
            self.flags.want(&mut self.asm);
            self.asm.add_to(R11, R11, -(SAVED_ENTRY as i32));
        }
        self.asm.jump_r11();
    }

    pub(super) fn conditional(&mut self, i: &Instruction) -> Outcome {
        if !i.is_jcc_short_or_near() {
            return Err(ForInterpreter);
        }
        let target = self.target(i)?;
        let in_page = (0..PAGE).contains(&target);
        self.poll_if_back(target);
        let (start, rax_was_known) = (self.asm.len(), self.rax_is_known());
        self.flags.want(&mut self.asm);
        let leaves_rax = self.asm.len() == start;
        // The decoder counts them in the opcodes' order, from 1.
        let condition = Condition(i.condition_code() as u8 - 1);
        let hole = self.asm.jump_if(condition);
        if leaves_rax {
            self.has_left_rax(rax_was_known);
        }
        if self.is_start(target) {
            self.lead_to_start(hole);
        } else if in_page {
            self.tie(hole, target);
        } else {
            self.later(hole, LaterKind::Jump(target, self.at));
        }
        Ok(())
    }

    pub(super) fn jump(&mut self, i: &Instruction) -> Outcome {
        let target = self.target(i)?;
        self.go_to(target);
        Ok(())
    }

    pub(super) fn jump_indirect(&mut self, i: &Instruction) -> Outcome {
        self.near_operand(i)?;
        self.target_operand(i)?;
        self.find_jump();
        self.jump_found();
        Ok(())
    }

    /// A near branch's operand must be 64 bits, and a register or a memory operand that can be computed.
    pub(super) fn near_operand(&mut self, i: &Instruction) -> Outcome {
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

    /// Loads an indirect branch's target into `rax`; the flags are lost.
    pub(super) fn target_operand(&mut self, i: &Instruction) -> Outcome {
        // Through `rax`, so before that is in use.
        self.flags.lose(&mut self.asm);
        if i.op0_kind() == OpKind::Register {
            let number = registers::number(i.op0_register()).ok_or(ForInterpreter)?;
            self.load_guest(RAX, number);
        } else {
            let address = self.memory_operand(i)?;
            let place = self.access(Access::new(address, 8, false));
            self.asm.with_place(Op::Load, RAX, place);
        }
        Ok(())
    }

    /// Stores the address of the next instruction where the stack's top will be.
    pub(super) fn push_next(&mut self) {
        let place = self.access(Access::new(Address::on_stack(-8), 8, true));
        self.asm.with_context(Op::Load, R11, offset::CODE_BASE);
        self.asm.add_to(R11, R11, self.next as i32);
        self.asm.store_place(place, R11);
    }

    pub(super) fn call(&mut self, i: &Instruction) -> Outcome {
        let target = self.target(i)?;
        self.poll_if_back(target);
        self.flags.prepare_moving_stack(&mut self.asm);
        self.push_next();
        if (0..PAGE).contains(&target) {
            self.move_stack(-8);
            self.flags_in_one_place();
            let hole = self.asm.jump();
            self.tie(hole, target);
            return Ok(());
        }
        let link = self.check_link(target);
        self.move_stack(-8);
        self.follow_link(link);
        Ok(())
    }

    pub(super) fn call_indirect(&mut self, i: &Instruction) -> Outcome {
        self.near_operand(i)?;
        self.target_operand(i)?;
        // The target is found before anything is stored: the store may hit the operand.
        self.find_jump();
        // That may have had a page watched.
        self.forget_groups();
        self.asm.with_table(Op::Load, R11, jumps::SHIFT, self.found());
        self.asm.store_context(offset::TARGET, R11);
        self.asm.store_context(offset::TARGET + 8, RAX);
        self.push_next();
        self.move_stack(-8);
        self.asm.with_context(Op::Load, RAX, offset::TARGET + 8);
        self.asm.store_context(offset::CODE_BASE, RAX);
        self.asm.with_context(Op::Load, R11, offset::TARGET);
        self.jump_to_r11();
        Ok(())
    }

    pub(super) fn ret(&mut self, i: &Instruction) -> Outcome {
        if !matches!(i.code(), iced_x86::Code::Retnq | iced_x86::Code::Retnq_imm16) {
            return Err(ForInterpreter);
        }
        let released = if i.op_count() == 1 { i32::from(i.immediate16()) } else { 0 };
        self.flags.prepare_moving_stack(&mut self.asm);
        self.flags.lose(&mut self.asm);
        let place = self.access(Access::new(Address::on_stack(0), 8, false));
        self.asm.with_place(Op::Load, RAX, place);
        self.find_jump();
        self.move_stack(8 + released);
        self.jump_found();
        Ok(())
    }
}
