//! Accesses of a block that one look into the TLB answers.
//!
//! Accesses with the same base register, while that has the same value, are close together more often than not: saved
//! registers, local variables, the fields of a structure. One check then tells that all bytes from the lowest to
//! the highest lie in one page, and where that is; the accesses need no more than the distance between the guest's
//! address and the host's. If the bytes lie in two pages, or somewhere that needs more care, the rest of the block
//! is carried out without such groups.

use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::context::register::RSP;
use crate::registers;

/// Groups in a block, at most: each has a place in the context.
pub(crate) const MOST: usize = 8;
/// How far apart the ends of a group may be, in bytes.
const WIDEST: i32 = 1024;
const RBP: u8 = 5;

/// One instruction of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) instruction: Instruction,
    /// Where it is in its page, and the one behind it.
    pub(crate) at: u32,
    pub(crate) next: u32,
    /// The CPU model has it.
    pub(crate) good: bool,
}

/// What an instruction does to the stack pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackEffect {
    /// It grows by this much.
    Moves(i32),
    /// Nobody knows.
    Unknown,
}

/// See the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) base: u8,
    /// The first and the last item that belong to it.
    first: usize,
    last: usize,
    /// The lowest byte, and the one behind the highest, as distances from what the base register was.
    pub(crate) low: i32,
    pub(crate) high: i32,
    /// There is a store among them.
    pub(crate) write: bool,
    count: usize,
}

impl Group {
    /// Whether an access of item `n`, at `distance` from what the base register was, belongs to it.
    pub(crate) fn has(&self, n: usize, base: u8, distance: i32, size: i32, write: bool) -> bool {
        self.base == base
            && (self.first..=self.last).contains(&n)
            && distance >= self.low
            && distance.checked_add(size).is_some_and(|end| end <= self.high)
            && (!write || self.write)
    }
}

/// An instruction's effect on the stack pointer, `written` being the registers that it writes.
pub(crate) fn stack_effect(i: &Instruction, written: u16) -> StackEffect {
    let constant = || i32::try_from(i.immediate(1) as i64).ok();
    let is_rsp = i.op_count() > 0 && i.op0_kind() == OpKind::Register && i.op0_register() == Register::RSP;
    match i.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq => StackEffect::Moves(i.stack_pointer_increment()),
        Mnemonic::Pop | Mnemonic::Popfq if !is_rsp => StackEffect::Moves(i.stack_pointer_increment()),
        Mnemonic::Add | Mnemonic::Sub
            if is_rsp && !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory) =>
        {
            let by = constant().filter(|by| by.unsigned_abs() < 1 << 20);
            let sign = if i.mnemonic() == Mnemonic::Add { 1 } else { -1 };
            by.map_or(StackEffect::Unknown, |by| StackEffect::Moves(sign * by))
        }
        _ if written & 1 << RSP == 0 => StackEffect::Moves(0),
        _ => StackEffect::Unknown,
    }
}

/// The registers that an instruction may write, a bit each.
pub(crate) fn written(i: &Instruction, info: &mut InstructionInfoFactory) -> u16 {
    let writes = |access| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let used = info.info(i).used_registers();
    used.iter()
        .filter(|used| writes(used.access()))
        .filter_map(|used| registers::number(used.register()))
        .fold(0, |bits, number| bits | 1 << number)
}

/// An access through a base register that has a host register, and nothing else: base, displacement, size, store.
type Plain = (u8, i32, i32, bool);

fn memory_access(i: &Instruction, info: &mut InstructionInfoFactory) -> Option<Plain> {
    let operand = i.op_kinds().position(|kind| kind == OpKind::Memory)? as u32;
    let base = i.memory_base();
    let plain = base.is_gpr64()
        && i.memory_index() == Register::None
        && !matches!(i.memory_segment(), Register::FS | Register::GS);
    let number = registers::number(base)?;
    if !plain || registers::host(number).is_none() {
        return None;
    }
    let displacement = i32::try_from(i.memory_displacement64() as i64).ok()?;
    let size = i32::try_from(i.memory_size().size()).ok().filter(|size| (1..=64).contains(size))?;
    let access = info.info(i).op_access(operand);
    let write = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
    Some((number, displacement, size, write))
}

fn stack_access(i: &Instruction) -> Option<Plain> {
    match i.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq => Some((RSP, -8, 8, true)),
        Mnemonic::Pop | Mnemonic::Popfq => Some((RSP, 0, 8, false)),
        Mnemonic::Leave => Some((RBP, 0, 8, false)),
        _ => match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => Some((RSP, -8, 8, true)),
            FlowControl::Return if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) => {
                Some((RSP, 0, 8, false))
            }
            _ => None,
        },
    }
}

/// Finds the groups of a block.
pub(crate) fn find(items: &[Item], info: &mut InstructionInfoFactory) -> Vec<Group> {
    let mut done = Vec::new();
    let mut open: [Option<Group>; 16] = [None; 16];
    // How far the stack pointer has moved since its value was last unknown.
    let mut moved = 0;
    let mut finish = |slot: &mut Option<Group>| {
        if let Some(group) = slot.take()
            && group.count > 1
            && done.len() < MOST
        {
            done.push(group);
        }
    };
    for (n, item) in items.iter().enumerate().filter(|(_, item)| item.good) {
        let i = &item.instruction;
        if i.is_string_instruction() {
            open.iter_mut().for_each(&mut finish);
            continue;
        }
        let memory = if i.mnemonic() == Mnemonic::Lea { None } else { memory_access(i, info) };
        for (base, displacement, size, write) in [memory, stack_access(i)].into_iter().flatten() {
            let distance = if base == RSP { moved } else { 0 };
            let Some(low) = displacement.checked_add(distance) else { continue };
            let Some(high) = low.checked_add(size) else { continue };
            let slot = &mut open[usize::from(base)];
            let far = |group: &Group| {
                i64::from(group.high.max(high)) - i64::from(group.low.min(low)) > i64::from(WIDEST)
            };
            if slot.as_ref().is_some_and(far) {
                finish(slot);
            }
            let group = slot.get_or_insert(Group { base, first: n, last: n, low, high, write, count: 0 });
            (group.low, group.high) = (group.low.min(low), group.high.max(high));
            group.last = n;
            group.write |= write;
            group.count += 1;
        }
        let written = written(i, info);
        for (number, slot) in open.iter_mut().enumerate() {
            if written & 1 << number != 0 && number != usize::from(RSP) {
                finish(slot);
            }
        }
        match stack_effect(i, written) {
            StackEffect::Moves(by) => moved += by,
            StackEffect::Unknown => {
                finish(&mut open[usize::from(RSP)]);
                moved = 0;
            }
        }
    }
    open.iter_mut().for_each(&mut finish);
    done
}
