//! What translated code has done outside, and goes on after.

use posada_memory::PAGE_SIZE;
use posada_x86::Assist;

use crate::context::Context;
use crate::stats::work;
use crate::translator::Machine;

/// What a helper is to do, in bits 2:0 of its last argument.
pub(crate) mod help {
    /// Read the time-stamp counter into `rax` and `rdx`.
    pub(crate) const TSC: u32 = 1;
    /// Move or store a string; bits 7:4 are the size of its elements, bit 3 says that it is repeated. Answers 0 if
    /// something is left to do.
    pub(crate) const MOVE: u32 = 2;
    pub(crate) const STORE: u32 = 3;
    pub(crate) const REPEATED: u32 = 1 << 3;
}

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

/// Does what [`help`] says.
pub(crate) unsafe extern "C" fn helper(context: *mut Context, what: u32) -> u64 {
    // SAFETY: translated code passes the context that it runs with; nobody uses a reference to it meanwhile.
    let context = unsafe { &mut *context };
    // SAFETY: as above; the machine is the one that the context was made with.
    let machine = unsafe { &mut *context.machine.cast::<Machine>() };
    machine.agree_on_rights(context);
    match what & 7 {
        help::TSC => match machine.interpreter.tsc() {
            Some(tsc) => {
                context.gpr[RAX] = tsc & 0xffff_ffff;
                context.gpr[RDX] = tsc >> 32;
                1
            }
            None => 0,
        },
        _ => {
            machine.activity.set(work::HELPING);
            let done = string(machine, context, what);
            machine.activity.set(work::TRANSLATED);
            u64::from(done)
        }
    }
}

/// How many elements of `size` bytes from `linear` on lie in its page, at most `count`.
fn in_page(linear: u64, size: u64, count: u64) -> u64 {
    let room = PAGE_SIZE as u64 - (linear & (PAGE_SIZE as u64 - 1));
    (room / size).min(count)
}

/// `movs` and `stos`, upwards; false if something is left to do, by an interpreter, who starts over with what the
/// registers say then.
fn string(machine: &mut Machine, context: &mut Context, what: u32) -> bool {
    const DF: u64 = 1 << 10;
    if context.system_flags & DF != 0 {
        return false;
    }
    let size = u64::from(what >> 4 & 15);
    let repeated = what & help::REPEATED != 0;
    let mut left = if repeated { context.gpr[RCX] } else { 1 };
    while left > 0 {
        let to = context.gpr[RDI];
        let mut count = in_page(to, size, left);
        // The source comes first: if it faults, nothing is written, and no page made dirty.
        let mut source = None;
        let from = context.gpr[RSI];
        if what & 7 == help::MOVE {
            count = in_page(from, size, count);
            source = machine.interpreter.place(from, false);
            if source.is_none() {
                return false;
            }
        }
        if count == 0 {
            return false;
        }
        let Some(at) = machine.interpreter.place(to, true) else { return false };
        if machine.interpreter.connections().ram.is_watched(at / PAGE_SIZE) {
            return false;
        }
        if let Some(source) = source {
            if source < at && ((at - source) as u64) < size {
                // Elements that overlap their own copies.
                return false;
            }
            let ram = &machine.interpreter.connections().ram;
            ram.copy_upwards(source, at, (count * size) as usize);
            context.gpr[RSI] = from.wrapping_add(count * size);
        } else {
            let ram = &machine.interpreter.connections().ram;
            let (value, n) = (context.gpr[RAX], count as usize);
            match size {
                1 => ram.fill(at, value as u8, n),
                2 => ram.fill(at, value as u16, n),
                4 => ram.fill(at, value as u32, n),
                _ => ram.fill(at, value, n),
            };
        }
        context.gpr[RDI] = to.wrapping_add(count * size);
        left -= count;
        if repeated {
            context.gpr[RCX] = left;
        }
        if left > 0 && machine.interpreter.connections().attention.is_raised() {
            return false;
        }
    }
    true
}
