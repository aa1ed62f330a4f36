//! Instructions that go on with the next.

use iced_x86::{Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind, Register, UsedRegister};

use super::{ARITHMETIC, Access, Address, ForInterpreter, Held, Outcome, Writer};
use crate::asm::{Op, Place, Sum};
use crate::classify;
use crate::context::register::{R11, RAX, RSP};
use crate::context::{BELOW, COPIES, Context, offset};
use crate::flags::Fate;
use crate::registers::{self, GUEST_RAX, with_number};

impl Writer<'_> {
    pub(super) fn straight(&mut self, i: &Instruction) -> Outcome {
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

    pub(super) fn push(&mut self, i: &Instruction) -> Outcome {
        let to = Access::new(Address::on_stack(-8), 8, true);
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
                let place = self.access(Access::new(address, 8, false));
                self.asm.with_place(Op::Load, RAX, place);
                self.asm.store_context(offset::TEMPORARY, RAX);
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
        self.keep_rax(&to);
        self.put_off -= 8;
        Ok(())
    }

    pub(super) fn pop(&mut self, i: &Instruction) -> Outcome {
        if i.stack_pointer_increment() != 8 || i.op0_kind() != OpKind::Register {
            return Err(ForInterpreter);
        }
        let number = registers::number(i.op0_register()).ok_or(ForInterpreter)?;
        self.before_writing(1 << number);
        let from = Access::new(Address::on_stack(0), 8, false);
        let place = self.access(from);
        let to = registers::host(number).unwrap_or(R11);
        self.asm.with_place(Op::Load, to, place);
        if to == R11 {
            self.store_guest(number, R11);
        }
        if number != RSP {
            self.keep_rax(&from);
            self.put_off += 8;
        }
        Ok(())
    }

    pub(super) fn leave_frame(&mut self, i: &Instruction) -> Outcome {
        const RBP: u8 = 5;
        if i.code() != iced_x86::Code::Leaveq {
            return Err(ForInterpreter);
        }
        self.before_writing(1 << RBP | 1 << RSP);
        let address = Address { base: Some(RBP), ..Address::on_stack(0) };
        let place = self.access(Access::new(address, 8, false));
        self.asm.with_place(Op::Load, RAX, place);
        self.asm.add_to(registers::host(RSP).unwrap_or(R11), RBP, 8);
        self.asm.mov(RBP, RAX);
        Ok(())
    }

    pub(super) fn lea(&mut self, i: &Instruction) -> Outcome {
        let to = i.op0_register();
        let number = registers::number(to).ok_or(ForInterpreter)?;
        let address = Address { segment: None, ..self.memory_operand(i)? };
        if to.size() == 2 {
            return Err(ForInterpreter);
        }
        let (start, rax_was_known) = (self.asm.len(), self.rax_is_known());
        self.before_writing(1 << number);
        let wide = address.wide && to.size() == 8;
        let leaves_rax = self.asm.len() == start && address.leaves_rax();
        let scratch = if leaves_rax && rax_was_known { R11 } else { RAX };
        let host = registers::host(number).unwrap_or(scratch);
        self.address_to(host, wide, &address);
        if host == scratch {
            self.store_guest(number, scratch);
        }
        if leaves_rax && host != RAX {
            self.has_left_rax(rax_was_known);
        }
        Ok(())
    }

    /// An instruction that does on the host just what it does in the guest, once its operands are in place.
    pub(super) fn copy(&mut self, i: &Instruction) -> Outcome {
        let (start, rax_was_known) = (self.asm.len(), self.rax_is_known());
        let memory = i.op_kinds().position(|kind| kind == OpKind::Memory).map(|n| n as u32);
        let mut plan = self.plan(i, memory)?;
        if classify::uses_x87(i) {
            self.ensure_x87();
        }
        let modified = classify::modified_flags(i);
        let reads = classify::reads_flags(i);
        let sets_all = modified == ARITHMETIC && !reads;
        if !sets_all {
            self.before_writing(plan.written);
        }
        let rotates = classify::rotates_by_constant(i) && plan.access.is_none() && self.flags.are_put_by();
        let mut placed = None;
        let mut operand = None;
        if let Some(access) = plan.access {
            let r11_is_free = plan.spilled().next().is_none();
            let mut place = if r11_is_free { self.access_by_both(access) } else { self.access(access) };
            if plan.swapped.is_some() && place.index == plan.swapped.and_then(registers::host) {
                self.asm.lea(
                    true,
                    RAX,
                    Sum { base: Some(RAX), index: place.index.map(|n| (n, 0)), displacement: 0 },
                );
                place.index = None;
            }
            plan.put(place);
            operand = memory.map(|n| (n, place, access.size as u8));
            placed = (plan.swapped.is_none() && plan.rax.is_none()).then_some(access);
        }
        if classify::needs_carry_alone(i) && self.flags.are_put_by() {
            self.flags.want_carry(&mut self.asm);
        } else if (reads || modified != 0 && !sets_all) && !rotates {
            if plan.access.is_some() && !self.flags.are_in_host() {
                // That takes a scratch register, and the address is in `rax`.
                self.asm.store_context(offset::TEMPORARY, RAX);
                self.flags.want(&mut self.asm);
                self.asm.with_context(Op::Load, RAX, offset::TEMPORARY);
            } else {
                self.flags.want(&mut self.asm);
            }
        }
        let leaves_rax = self.asm.len() == start
            && plan.rax.is_none()
            && plan.spilled().all(|spilled| spilled.scratch != RAX);
        for Spilled { guest, scratch, .. } in plan.spilled().filter(|spilled| spilled.read) {
            self.load_guest(scratch, guest);
        }
        self.bring_rax(&mut plan, operand.map(|(_, place, _)| place));
        if classify::may_raise(i, self.mode) {
            self.recover();
        }
        if let Some(number) = plan.swapped {
            self.asm.swap_low_bytes(number);
        }
        // A comparison works on a copy of what is in memory, if its flags are to be computed anew.
        let copied = operand.filter(|_| plan.compares() && self.fate(self.item + 1) == Fate::Lost);
        if let Some((n, place, size)) = copied {
            self.asm.load_place(size, R11, place);
            self.asm.store_context(Context::slot_offset(COPIES[n as usize]), R11);
            registers::set_operand(&mut plan.instruction, n, registers::sized(size, R11));
        }
        let before = self.asm.len();
        let known = self.asm.instruction(&plan.instruction);
        debug_assert!(known, "{i:?} was tried before");
        if let Some(number) = plan.swapped {
            self.asm.swap_low_bytes(number);
        }
        self.take_rax_back(&plan);
        self.keep_held(&plan, before);
        for Spilled { guest, scratch, .. } in plan.spilled() {
            if plan.written & 1 << guest != 0 {
                self.store_guest(guest, scratch);
            }
        }
        if let Some(access) = placed {
            self.keep_rax(&access);
        } else if leaves_rax {
            self.has_left_rax(rax_was_known);
        }
        if rotates {
            self.flags.rotate();
        } else if let Some((n, _, size)) = copied {
            self.flags.set_by_comparison(i, n, size);
        } else if sets_all {
            self.flags.set_by(i);
        } else if modified != 0 {
            self.flags.set();
        }
        Ok(())
    }

    /// A scratch register still holds what it did `before` the instruction that was just written, or what that was given.
    fn keep_held(&mut self, plan: &Plan, before: usize) {
        let len = self.asm.len();
        let read = plan.spilled().last().map(|Spilled { guest, scratch, .. }| Held { guest, scratch, len });
        let held = self.held.filter(|held| held.len == before && plan.access.is_none());
        let kept = read.or(held.map(|held| Held { len, ..held }));
        self.held = kept.filter(|held| plan.written & 1 << held.guest == 0);
    }

    /// Lets the guest's `rax` be in the host's, for an instruction that works on no other; its memory operand is at `place`.
    fn bring_rax(&mut self, plan: &mut Plan, place: Option<Place>) {
        match (plan.rax, place) {
            (None, _) => {}
            (Some(Rax::Copied), None) => self.asm.mov(RAX, GUEST_RAX),
            (Some(Rax::Copied), Some(Place { index, displacement })) => {
                let sum = Sum { base: Some(RAX), index: index.map(|index| (index, 0)), displacement };
                self.asm.lea(true, R11, sum);
                self.asm.mov(RAX, GUEST_RAX);
                plan.put_at(R11, Place { index: None, displacement: 0 });
            }
            (Some(Rax::Swapped), place) => {
                self.asm.swap_with_rax(GUEST_RAX);
                if let Some(place) = place {
                    let index = place.index.map(|index| if index == GUEST_RAX { RAX } else { index });
                    plan.put_at(GUEST_RAX, Place { index, ..place });
                }
            }
        }
    }

    /// Ends what [`bring_rax`](Self::bring_rax) has begun.
    fn take_rax_back(&mut self, plan: &Plan) {
        match plan.rax {
            Some(Rax::Copied) if plan.written & 1 << RAX != 0 => self.asm.mov(GUEST_RAX, RAX),
            Some(Rax::Swapped) => self.asm.swap_with_rax(GUEST_RAX),
            _ => {}
        }
    }

    /// How an instruction is copied: with which operands, and what must be done before and after.
    pub(super) fn plan(&mut self, i: &Instruction, memory: Option<u32>) -> Result<Plan, ForInterpreter> {
        let i = &classify::without_accumulator(i);
        if classify::needs_rax(i) {
            return self.plan_with(i, memory, true);
        }
        // An operand that must be `rax`, or can't be another beside one of the others.
        self.plan_with(i, memory, false).or_else(|ForInterpreter| self.plan_with(i, memory, true))
    }

    /// [`plan`](Self::plan), with the guest's `rax` in the host's or not.
    fn plan_with(
        &mut self,
        i: &Instruction,
        memory: Option<u32>,
        brings_rax: bool,
    ) -> Result<Plan, ForInterpreter> {
        let copies = memory.is_none() || classify::may_raise(i, self.mode);
        let rax = brings_rax.then_some(if copies { Rax::Copied } else { Rax::Swapped });
        let mut plan =
            Plan { instruction: *i, access: None, spilled: [None; 2], written: 0, swapped: None, rax };
        let mut write = false;
        let rax_is_known = self.rax_is_known();
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
        let scratch: &[u8] = match (memory, rax) {
            (Some(_), Some(Rax::Copied)) => &[],
            (Some(_), _) | (None, Some(_)) => &[R11],
            (None, None) if rax_is_known => &[R11, RAX],
            (None, None) => &[RAX, R11],
        };
        let mut scratch = scratch.iter().copied();
        for n in 0..i.op_count() {
            let access = info.op_access(n);
            match i.op_kind(n) {
                OpKind::Register => {
                    let register = i.op_register(n);
                    let Some(number) = registers::number(register) else { continue };
                    if registers::is_high_byte(register) {
                        if memory.is_some() {
                            plan.swap(i, n)?;
                        }
                        continue;
                    }
                    if !registers::moves(number) || brings_rax && number == RAX {
                        continue;
                    }
                    let host = match registers::host(number) {
                        Some(host) => host,
                        None => {
                            let reads = |used: &UsedRegister| {
                                registers::number(used.register()) == Some(number)
                                    && used.access() != OpAccess::Write
                            };
                            // A part of the register is written, and the rest stays.
                            let read = register.size() < 4 || info.used_registers().iter().any(reads);
                            plan.scratch_for(number, read, &mut scratch)?
                        }
                    };
                    registers::set_operand(&mut plan.instruction, n, with_number(register, host));
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
                && !(brings_rax && number == RAX)
            {
                return Err(ForInterpreter);
            }
        }
        if memory.is_none() {
            let holds = |spilled: &Spilled| {
                self.held.is_some_and(|held| held.guest == spilled.guest && held.len == self.asm.len())
            };
            if !plan.spilled().any(|spilled| holds(&spilled)) {
                plan.leave_in_memory(i, info);
            }
        } else {
            let size = i.memory_size().size() as u32;
            if size == 0 || size > 64 || info.used_memory().len() != 1 {
                return Err(ForInterpreter);
            }
            let size = size as u16;
            let alignment = if classify::needs_alignment(i, size.into()) { size } else { 1 };
            let address = self.memory_operand(i)?;
            plan.access = Some(Access { address, size, write, alignment });
            let host = &mut plan.instruction;
            host.set_memory_base(Register::RAX);
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
pub(super) struct Plan {
    instruction: Instruction,
    access: Option<Access>,
    /// Guest registers that are in memory.
    spilled: [Option<Spilled>; 2],
    /// Guest registers that it writes, a bit each.
    written: u16,
    /// A register whose two low bytes change places around it: there is no way to name the higher one and `rax`.
    swapped: Option<u8>,
    /// It works on the host's `rax` as the guest's.
    rax: Option<Rax>,
}

/// How the guest's `rax` comes to be in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rax {
    /// It is where it always is, too: if an exception is raised, that is right.
    Copied,
    /// It has changed places with the address of the operand in memory.
    Swapped,
}

/// A guest register that is in memory, and the scratch register that stands for it.
#[derive(Clone, Copy)]
struct Spilled {
    guest: u8,
    scratch: u8,
    /// The instruction depends on what it is.
    read: bool,
}

impl Plan {
    fn scratch_for(
        &mut self,
        guest: u8,
        read: bool,
        free: &mut impl Iterator<Item = u8>,
    ) -> Result<u8, ForInterpreter> {
        if let Some(known) = self.spilled.iter_mut().flatten().find(|known| known.guest == guest) {
            known.read |= read;
            return Ok(known.scratch);
        }
        let scratch = free.next().ok_or(ForInterpreter)?;
        let slot = self.spilled.iter_mut().find(|slot| slot.is_none()).ok_or(ForInterpreter)?;
        *slot = Some(Spilled { guest, scratch, read });
        Ok(scratch)
    }

    /// Lets the instruction work on a guest register where it is in memory, if it can.
    fn leave_in_memory(&mut self, i: &Instruction, info: &InstructionInfo) {
        let [Some(Spilled { guest, .. }), None] = self.spilled else { return };
        let is = |n: &u32| {
            i.op_kind(*n) == OpKind::Register && registers::number(i.op_register(*n)) == Some(guest)
        };
        let mut operands = (0..i.op_count()).filter(is);
        let (Some(n), None) = (operands.next(), operands.next()) else { return };
        let whole = i.op_register(n).size() == 8;
        let can = match info.op_access(n) {
            OpAccess::Read => classify::may_read_from_memory(i),
            // What is written to the lower half changes the upper one.
            OpAccess::Write | OpAccess::ReadWrite => whole && classify::may_write_to_memory(i),
            _ => false,
        };
        if !can {
            return;
        }
        let mut host = self.instruction;
        host.set_op_kind(n, OpKind::Memory);
        host.set_memory_base(Register::RSP);
        host.set_memory_index(Register::None);
        host.set_memory_index_scale(1);
        // Before a register it means nothing.
        host.set_segment_prefix(Register::None);
        let offset = Context::slot_offset(guest) + BELOW;
        host.set_memory_displacement64(i64::from(offset) as u64);
        host.set_memory_displ_size(if i8::try_from(offset).is_ok() { 1 } else { 8 });
        let codes = [Some(i.code()), classify::with_second_in_memory(i.code())];
        for code in codes.into_iter().flatten() {
            host.set_code(code);
            if iced_x86::Encoder::new(64).encode(&host, 0).is_ok() {
                self.instruction = host;
                self.spilled = [None; 2];
                return;
            }
        }
    }

    /// Names the low byte of a register in place of the one above it.
    fn swap(&mut self, i: &Instruction, operand: u32) -> Result<(), ForInterpreter> {
        let register = i.op_register(operand);
        let number = registers::number(register).ok_or(ForInterpreter)?;
        let others = (0..i.op_count()).filter(|n| *n != operand && i.op_kind(*n) == OpKind::Register).count();
        let alone = matches!(
            i.mnemonic(),
            Mnemonic::Mov
                | Mnemonic::Cmp
                | Mnemonic::Test
                | Mnemonic::Add
                | Mnemonic::Adc
                | Mnemonic::Sub
                | Mnemonic::Sbb
                | Mnemonic::And
                | Mnemonic::Or
                | Mnemonic::Xor
        );
        if others > 0 || !alone {
            return Err(ForInterpreter);
        }
        registers::set_operand(&mut self.instruction, operand, registers::sized(1, number));
        self.swapped = Some(number);
        Ok(())
    }

    /// Lets the memory operand be at `place`.
    fn put(&mut self, place: Place) {
        self.put_at(RAX, place);
    }

    /// [`put`](Self::put), with another register in place of `rax`.
    fn put_at(&mut self, base: u8, place: Place) {
        self.instruction.set_memory_base(registers::sized(8, base));
        let index = place.index.map_or(Register::None, |index| registers::sized(8, index));
        self.instruction.set_memory_index(index);
        let displacement = place.displacement;
        self.instruction.set_memory_displacement64(i64::from(displacement) as u64);
        self.instruction.set_memory_displ_size(match i8::try_from(displacement) {
            Ok(0) => 0,
            Ok(_) => 1,
            Err(_) => 8,
        });
    }

    /// Whether it is a comparison, and a scratch register is free.
    fn compares(&self) -> bool {
        matches!(self.instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test)
            && self.spilled().next().is_none()
            && self.swapped.is_none()
            && self.rax.is_none()
    }

    fn spilled(&self) -> impl Iterator<Item = Spilled> + use<> {
        self.spilled.into_iter().flatten()
    }
}

/// Whether a register is named by the instruction, as an operand or in an address.
fn explicit(i: &Instruction, number: u8) -> bool {
    let is = |register: Register| registers::number(register) == Some(number);
    is(i.memory_base())
        || is(i.memory_index())
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && is(i.op_register(n)))
}
