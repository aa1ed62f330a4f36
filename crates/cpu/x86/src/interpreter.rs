//! The interpreter: fetches blocks and carries them out, and sees to what comes between instructions.

use posada_vcpu::x86::{Running, State, rflags};
use posada_vcpu::{Connections, Error, Event, Exit, Vcpu};

use crate::cache::{self, CodeCache};
use crate::core::{Core, segment};
use crate::decode::{Decoded, LONGEST, decode};
use crate::mmu::{Access, PAGE_MASK, Place};
use crate::model::Model;
use crate::op::{Op, Step, Stop};
use crate::simd::Native;
use crate::system::random::Random;

/// The reference interpreter: one virtual CPU, carried out instruction by instruction.
pub struct Interpreter {
    pub(crate) core: Core,
    cache: CodeCache,
}

impl Interpreter {
    /// A virtual CPU in its reset state.
    pub fn new(connections: Connections, model: Model) -> Result<Self, Error> {
        if let Some(missing) = model.needs_native() {
            return Err(Error::Unsupported(format!(
                "the interpreter cannot carry out CPU model {:?}: it has no {missing}; take the engine \"translate\", \
                 or the model \"x86-64-v2\"",
                model.name()
            )));
        }
        Ok(Self { core: Core::new(connections, model), cache: CodeCache::new(cache::OPS) })
    }

    /// The same, for any model: the instructions that only a host's processor can carry out are given to `native`.
    pub fn with_native(connections: Connections, model: Model, native: Box<dyn Native>) -> Self {
        let mut core = Core::new(connections, model);
        core.native = Some(native);
        Self { core, cache: CodeCache::new(cache::FEW_OPS) }
    }

    /// Takes random numbers (`rdrand`, `rdseed`) from here, instead of the host's own generator.
    pub fn set_random(&mut self, random: Random) {
        self.core.random = random;
    }

    #[cfg(test)]
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// A block, whose fault is not delivered.
    #[cfg(test)]
    pub(crate) fn whole_block(&mut self) -> Step {
        self.block(false)
    }

    /// One instruction, or the delivery of its fault.
    #[cfg(test)]
    pub(crate) fn single_step_delivering(&mut self) {
        if self.block(true) == Err(Stop::Fault) {
            self.core.deliver_fault();
        }
    }

    /// One instruction, whose fault is not delivered.
    #[cfg(test)]
    pub(crate) fn single_step(&mut self) -> Step {
        self.block(true)
    }

    /// Carries out blocks until something comes between.
    fn blocks(&mut self) -> Step {
        loop {
            if self.block(false) == Err(Stop::Fault) {
                return Err(Stop::Fault);
            }
            if self.core.slow || self.core.connections.attention.is_raised() {
                return Ok(());
            }
        }
    }

    /// Carries out one block, as often as it leads to itself, or one instruction where `single`.
    #[inline(always)]
    pub(crate) fn block(&mut self, single: bool) -> Step {
        let core = &mut self.core;
        let rip = core.rip();
        let cs = &core.segments[usize::from(segment::CS)];
        let (linear, room) = if core.long64 {
            (rip, u64::MAX)
        } else {
            // The instruction pointer has not passed the limit when it is zero bytes away from it.
            let limit = u64::from(cs.limit);
            if rip > limit {
                return Err(core.gp(0));
            }
            (cs.base.wrapping_add(rip) & 0xffff_ffff, limit - rip + 1)
        };
        let at = match core.mmu.find_code(linear) {
            Some(at) => at,
            None => match core.place(segment::CS, linear, Access::Execute)? {
                Place::Ram(at) => at,
                Place::Device(_) => return self.uncached(linear, room),
            },
        };
        let mode = core.mode;
        let range = match self.cache.find(at, mode, single, &core.connections.ram) {
            Some(range) => range,
            None => match self.cache.fill(at, mode, single, &core.connections.ram, &core.model, room) {
                Some(range) => range,
                None => return self.uncached(linear, room),
            },
        };
        let ops = &self.cache.ops[range];
        if !core.long64 && ops.last().is_some_and(|last| u64::from(last.next) > room) {
            // It was made with a higher limit.
            return self.uncached(linear, room);
        }
        core.code_changed = false;
        loop {
            let result = carry_out(core, ops, rip);
            let again = matches!(result, Ok(()) | Err(Stop::Branch)) && core.rip() == rip && !single;
            if !again || core.slow || core.code_changed || core.connections.attention.is_raised() {
                return result;
            }
        }
    }

    /// Carries out one instruction that no block can hold: it crosses a page, runs into the limit, or lies in a
    /// device's memory.
    #[cold]
    fn uncached(&mut self, linear: u64, room: u64) -> Step {
        let core = &mut self.core;
        let mut bytes = [0; LONGEST];
        let available = room.min(LONGEST as u64) as usize;
        let mut len = 0;
        while len < available {
            // A page is only asked for when the instruction reaches it.
            let from = linear.wrapping_add(len as u64) & core.linear_mask;
            core.place(segment::CS, from, Access::Execute)?;
            let in_page = (PAGE_MASK + 1 - (from & PAGE_MASK)) as usize;
            for n in 0..in_page.min(available - len) {
                let place = core.place(segment::CS, from + n as u64, Access::Execute)?;
                bytes[len] = core.load_place(place);
                len += 1;
            }
            if let Decoded::Op(_, op, _) = decode(&bytes[..len], core.mode, &core.model) {
                core.set_rip(core.rip().wrapping_add(u64::from(op.len)));
                let result = (op.run)(core, &op);
                return interrupted(core, &op, result);
            }
        }
        // The instruction does not end within the code segment, or is longer than any may be.
        Err(core.gp(0))
    }

    /// Sees to everything that comes between instructions; true when the run is over.
    #[cold]
    #[inline(never)]
    pub(crate) fn between(&mut self) -> Option<Exit> {
        let core = &mut self.core;
        if let Some(exit) = core.exit.take() {
            return Some(exit);
        }
        if core.activity.running == Running::Shutdown {
            return Some(Exit::Shutdown);
        }
        if core.connections.attention.is_raised() {
            if core.connections.attention.take_kick() {
                core.slow = true;
                return Some(Exit::Kicked);
            }
            core.interrupts_wait |= core.connections.attention.take_interrupt();
            // Blocks that are stale are found out by their pages' versions.
            core.connections.attention.take_look();
        }
        core.slow = false;
        while core.interrupts_wait
            && let Some(event) = core.connections.interrupts.take_event()
        {
            match event {
                Event::Nmi => core.activity.nmi_pending = true,
                Event::Init => core.init(),
                Event::StartUp(page) => core.start_up(page),
            }
        }
        if core.activity.running == Running::WaitForStartUp {
            core.slow = true;
            return Some(Exit::Halted);
        }
        let shadow = core.activity.sti_shadow || core.activity.mov_ss_shadow;
        if shadow {
            // One instruction is carried out before anything is let in.
            core.slow = true;
            return None;
        }
        if core.activity.nmi_pending && !core.activity.nmi_blocked {
            core.deliver_nmi();
            return None;
        }
        if core.interrupts_wait && core.system_flags & rflags::IF != 0 {
            if let Some(vector) = core.connections.interrupts.acknowledge() {
                core.deliver_external(vector);
                core.interrupts_wait = core.connections.interrupts.pending();
                core.slow |= core.interrupts_wait;
                return None;
            }
            core.interrupts_wait = false;
        }
        if core.activity.running == Running::Halted {
            core.slow = true;
            return Some(Exit::Halted);
        }
        None
    }

    /// Carries out one instruction, with all that goes with single-stepping, breakpoints and shadows.
    #[cold]
    #[inline(never)]
    pub(crate) fn step(&mut self) {
        let core = &mut self.core;
        let shadows = (core.activity.sti_shadow, core.activity.mov_ss_shadow);
        let stepping = core.system_flags & rflags::TF != 0;
        // After a load of `ss` instruction breakpoints wait, too.
        if core.begin_instruction(shadows.1) {
            return;
        }
        (core.activity.sti_shadow, core.activity.mov_ss_shadow) = (false, false);
        core.slow = true;
        let result = self.block(true);
        let core = &mut self.core;
        if result == Err(Stop::Fault) {
            // Still in the shadow if the instruction is to be tried again? No: delivery ends it.
            core.deliver_fault();
            return;
        }
        core.end_of_instruction(stepping);
    }
}

/// Carries out the operations of a block that begins at `rip`.
#[inline(always)]
fn carry_out(core: &mut Core, ops: &[Op], rip: u64) -> Step {
    let mut done = 0;
    for op in ops {
        core.set_rip(rip.wrapping_add(u64::from(op.next)));
        let result = (op.run)(core, op);
        if result.is_err() || core.code_changed {
            if result == Err(Stop::Branch) {
                core.instructions += u64::from(op.done);
                return result;
            }
            return interrupted(core, op, result);
        }
        done = op.done;
    }
    core.instructions += u64::from(done);
    Ok(())
}

/// Ends a block early, after `op`: the instruction pointer, past an instruction while it runs, is back at it after
/// a fault.
#[cold]
fn interrupted(core: &mut Core, op: &Op, result: Step) -> Step {
    let mut done = u64::from(op.done);
    if result == Err(Stop::Fault) {
        core.set_rip(core.rip().wrapping_sub(u64::from(op.len)));
        done -= 1;
    }
    core.instructions = core.instructions.wrapping_add(done);
    result
}

impl Vcpu for Interpreter {
    fn run(&mut self) -> Result<Exit, Error> {
        loop {
            if self.core.slow || self.core.connections.attention.is_raised() {
                if let Some(exit) = self.between() {
                    return Ok(exit);
                }
                if self.core.needs_stepping() {
                    self.step();
                    continue;
                }
            }
            if self.blocks() == Err(Stop::Fault) {
                self.core.deliver_fault();
            }
        }
    }

    fn state(&self) -> State {
        self.core.save_state()
    }

    fn set_state(&mut self, state: &State) -> Result<(), Error> {
        self.core.load_state(state);
        Ok(())
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.core.instructions)
    }
}
