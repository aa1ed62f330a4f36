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

use crate::classify;
use crate::context::register::RSP;
use crate::registers;

/// Groups in a block, at most: each has a place in the context.
pub(crate) const MOST: usize = 8;
/// How far apart the ends of a group may be, in bytes.
const WIDEST: i32 = 1024;
/// What vector accesses that must be aligned are aligned to, if groups take them: the size of their operands.
pub(crate) const ALIGNMENT: i32 = 16;
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
    /// Register and shift; then nothing in the group changes the stack pointer's part.
    pub(crate) index: Option<(u8, u8)>,
    /// The first and the last item that belong to it.
    first: usize,
    last: usize,
    /// The lowest byte, and the one behind the highest, as distances from what the base register was.
    pub(crate) low: i32,
    pub(crate) high: i32,
    /// There is a store among them.
    pub(crate) write: bool,
    /// The distance of an access that must lie at a multiple of [`ALIGNMENT`].
    pub(crate) aligned: Option<i32>,
    count: usize,
}

/// One access, of `size` bytes at `distance` from what its registers were.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) base: u8,
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) distance: i32,
    pub(crate) size: i32,
    pub(crate) write: bool,
    /// Must lie at a multiple of [`ALIGNMENT`].
    pub(crate) aligned: bool,
}

impl Group {
    /// Whether item `n` is not before its first access, nor behind its last.
    pub(crate) fn spans(&self, n: usize) -> bool {
        (self.first..=self.last).contains(&n)
    }

    /// Whether an access of item `n` belongs to it.
    pub(crate) fn has(&self, n: usize, m: &Member) -> bool {
        (self.base, self.index) == (m.base, m.index)
            && self.spans(n)
            && m.distance >= self.low
            && m.distance.checked_add(m.size).is_some_and(|end| end <= self.high)
            && (!m.write || self.write)
            && (!m.aligned || self.is_aligned_with(m.distance))
    }

    /// Whether an access at `distance` lies at a multiple of [`ALIGNMENT`] if those that must do.
    fn is_aligned_with(&self, distance: i32) -> bool {
        self.aligned.is_some_and(|other| distance.wrapping_sub(other) % ALIGNMENT == 0)
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

/// The access of a memory operand, if it is through registers of 64 bits and nothing else; its distance is the
/// displacement.
fn memory_access(i: &Instruction, info: &mut InstructionInfoFactory) -> Option<Member> {
    let operand = i.op_kinds().position(|kind| kind == OpKind::Memory)? as u32;
    let full = |register: Register| registers::number(register).filter(|_| register.is_gpr64());
    let base = full(i.memory_base())?;
    let index = match i.memory_index() {
        Register::None => None,
        register => Some((full(register)?, i.memory_index_scale().trailing_zeros() as u8)),
    };
    if matches!(i.memory_segment(), Register::FS | Register::GS) || index.is_some() && base == RSP {
        return None;
    }
    let distance = i32::try_from(i.memory_displacement64() as i64).ok()?;
    let size = i32::try_from(i.memory_size().size()).ok().filter(|size| (1..=64).contains(size))?;
    let aligned = classify::needs_alignment(i, size as u32);
    if aligned && size != ALIGNMENT {
        return None;
    }
    let access = info.info(i).op_access(operand);
    let write = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
    Some(Member { base, index, distance, size, write, aligned })
}

fn stack_access(i: &Instruction) -> Option<Member> {
    let member =
        |base, distance, write| Some(Member { base, index: None, distance, size: 8, write, aligned: false });
    match i.mnemonic() {
        Mnemonic::Push | Mnemonic::Pushfq => member(RSP, -8, true),
        Mnemonic::Pop | Mnemonic::Popfq => member(RSP, 0, false),
        Mnemonic::Leave => member(RBP, 0, false),
        _ => match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => member(RSP, -8, true),
            FlowControl::Return if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) => {
                member(RSP, 0, false)
            }
            _ => None,
        },
    }
}

/// Groups that may still grow, and those that may not.
#[derive(Default)]
struct Groups {
    open: Vec<Group>,
    done: Vec<Group>,
}

impl Groups {
    /// Lets those that `which` names grow no more.
    fn finish(&mut self, which: impl Fn(&Group) -> bool) {
        for mut group in self.open.extract_if(.., |group| which(group)) {
            // One access through the stack pointer pays, too: most of them are where the last one was.
            let least = if group.base == RSP { 1 } else { 2 };
            if group.count < least || self.done.len() == MOST {
                continue;
            }
            if let Some(aligned) = group.aligned {
                // So that the lowest byte tells of the alignment.
                let beyond = group.low.wrapping_sub(aligned).rem_euclid(ALIGNMENT);
                let Some(low) = group.low.checked_sub(beyond) else { continue };
                group.low = low;
            }
            self.done.push(group);
        }
    }

    /// Adds an access of item `n`.
    fn add(&mut self, n: usize, m: &Member) {
        let Some(high) = m.distance.checked_add(m.size) else { return };
        let low = m.distance;
        let same = |group: &Group| (group.base, group.index) == (m.base, m.index);
        self.finish(|group| {
            let width = i64::from(group.high.max(high)) - i64::from(group.low.min(low));
            same(group) && width > i64::from(WIDEST)
        });
        let Some(group) = self.open.iter_mut().find(|group| same(group)) else {
            let aligned = m.aligned.then_some(low);
            let (base, index, write) = (m.base, m.index, m.write);
            let group = Group { base, index, first: n, last: n, low, high, write, aligned, count: 1 };
            return self.open.push(group);
        };
        if m.aligned && group.aligned.is_some() && !group.is_aligned_with(low) {
            return;
        }
        if m.aligned {
            group.aligned = Some(low);
        }
        (group.low, group.high) = (group.low.min(low), group.high.max(high));
        group.last = n;
        group.write |= m.write;
        group.count += 1;
    }
}

/// Finds the groups of a block.
pub(crate) fn find(items: &[Item], info: &mut InstructionInfoFactory) -> Vec<Group> {
    let mut groups = Groups::default();
    // How far the stack pointer has moved since its value was last unknown.
    let mut moved = 0;
    for (n, item) in items.iter().enumerate().filter(|(_, item)| item.good) {
        let i = &item.instruction;
        if i.is_string_instruction() {
            groups.finish(|_| true);
            continue;
        }
        let memory = if i.mnemonic() == Mnemonic::Lea { None } else { memory_access(i, info) };
        for mut member in [memory, stack_access(i)].into_iter().flatten() {
            let offset = if member.base == RSP { moved } else { 0 };
            let Some(distance) = member.distance.checked_add(offset) else { continue };
            member.distance = distance;
            groups.add(n, &member);
        }
        let written = written(i, info);
        let changed = |number: u8| written & 1 << number != 0;
        groups.finish(|group| {
            group.base != RSP && changed(group.base) || group.index.is_some_and(|(index, _)| changed(index))
        });
        match stack_effect(i, written) {
            StackEffect::Moves(by) => moved += by,
            StackEffect::Unknown => {
                groups.finish(|group| group.base == RSP);
                moved = 0;
            }
        }
    }
    groups.finish(|_| true);
    groups.done
}
