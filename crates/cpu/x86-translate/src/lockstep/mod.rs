//! Interpreter and translator side by side on the same guest, compared after each block.
//!
//! The translator leads: it runs on the guest's memory and devices, one block at a time, and what it learns from
//! outside (values of ports, registers and counters, interrupts) goes into a journal. The interpreter follows on a
//! copy of the memory, with its answers from the journal, one instruction at a time, until it is where the translator
//! is: the same registers, the same bytes in every page that either has written, and the journal read to its end. If
//! it never gets there, the run ends with a report.
//!
//! Flags that the manual leaves undefined are the translator's from the end of each block on.
//!
//! So what is shown is that each state in which the translator leaves a block is one that the interpreter goes
//! through, in the same order. Not seen: jumps that lead from block to block without leaving, because each block is
//! left ([`Machine::linked`](crate::translator::Machine)); and writes by devices to memory, of which there may
//! be none: nobody knows between which instructions they come. Pages are compared when they are known to have been written; now and then, all of memory is.
#![forbid(unsafe_code)]

mod journal;
mod report;
mod trail;

use std::fmt::Write as _;
use std::sync::Arc;

use posada_memory::{Gpa, GuestRam, PAGE_SIZE};
use posada_vcpu::x86::{State, gpr, rflags};
use posada_vcpu::{Attention, Clock, Connections, Error, Exit, Vcpu};
use posada_x86::{Assist, Between, Interpreter, Model};

use crate::native::Unit;
use crate::translator::Translator;
use journal::{Journal, Recorder, Replayer};
use report::Report;
use trail::Trail;

/// Instructions after which the interpreter is believed never to get where the translator is. Blocks that lead to
/// themselves go round until an interrupt calls.
const PATIENCE: u64 = 1 << 27;
/// Exceptions of SSE instructions that have been met.
const MXCSR_STATUS: u32 = 0x3f;
/// Blocks between two comparisons of all memory.
const WHOLE: u64 = 1 << 24;

/// An engine that runs every block on the translator and on the interpreter, and fails where they differ.
///
/// It takes twice the guest's memory, and one virtual CPU.
pub struct Lockstep {
    leader: Translator,
    follower: Follower,
}

impl Lockstep {
    /// A virtual CPU in its reset state. Fails if there are others: what they write nobody could repeat.
    pub fn new(connections: Connections, model: Model, code_cache: usize) -> Result<Self, Error> {
        if connections.count > 1 {
            return Err(Error::Unsupported(format!(
                "the engine \"lockstep\" runs one processor, not {}: what several write to memory at once cannot be \
                 repeated; take one processor, or the engine \"translate\"",
                connections.count
            )));
        }
        let ranges: Vec<(Gpa, u64)> = connections.ram.ranges().collect();
        let copy = GuestRam::new(&ranges)
            .map_err(|error| Error::Engine(format!("no memory for a second guest: {error}")))?;
        let unit = Unit::new().map_err(|error| Error::Engine(format!("no memory for code: {error}")))?;
        let journal = Arc::<Journal>::default();
        let attention = Arc::<Attention>::default();
        let replayer = Arc::new(Replayer::new(Arc::clone(&journal)));
        let (clock, random) = {
            let (a, b) = (Arc::clone(&replayer), Arc::clone(&replayer));
            (Clock::asking(move || a.time()), Box::new(move || b.random()))
        };
        let following = Connections {
            ram: copy.clone(),
            bus: replayer.clone(),
            interrupts: replayer,
            attention: Arc::clone(&attention),
            clock: Arc::new(clock),
            ..connections.clone()
        };
        let ram = connections.ram.clone();
        let recorder = Arc::new(Recorder::new(&connections, Arc::clone(&journal)));
        let (clock, leaders_random) = {
            let (a, b) = (Arc::clone(&recorder), Arc::clone(&recorder));
            (Clock::asking(move || a.time()), Box::new(move || b.random()))
        };
        let leading = Connections {
            bus: recorder.clone(),
            interrupts: recorder,
            clock: Arc::new(clock),
            ..connections
        };
        let mut leader = Translator::new(leading, model.clone(), code_cache)?;
        leader.unlink(leaders_random);
        let mut interpreter = Interpreter::with_native(following, model, Box::new(unit));
        interpreter.set_random(random);
        Ok(Self {
            leader,
            follower: Follower {
                interpreter,
                attention,
                journal,
                ram,
                copy,
                stale: true,
                pages: Vec::new(),
                trail: Trail::default(),
                blocks: 0,
                undefined: 0,
                marks: 0,
                within: false,
                failed: None,
                #[cfg(test)]
                plant: None,
            },
        })
    }
}

impl Vcpu for Lockstep {
    fn run(&mut self) -> Result<Exit, Error> {
        let Self { leader, follower } = self;
        leader.on_guard(|leader| follower.follow(leader))
    }

    fn state(&self) -> State {
        self.leader.state()
    }

    fn set_state(&mut self, state: &State) -> Result<(), Error> {
        self.follower.stale = true;
        self.follower.interpreter.set_state(state)?;
        self.leader.set_state(state)
    }

    fn instructions(&self) -> Option<u64> {
        self.follower.interpreter.instructions()
    }

    fn report(&self) -> Option<String> {
        let follower = &self.follower;
        let rows = [
            ("blocks compared", follower.blocks),
            ("marks of access that differed", follower.marks),
            ("undefined flags that differed", follower.undefined),
        ];
        let mut lines = String::new();
        for (name, value) in rows {
            let _ = writeln!(lines, "    {name:32}{value:>14}");
        }
        Some(lines + &self.leader.report().unwrap_or_default())
    }
}

/// The interpreter, and what it takes to follow.
struct Follower {
    interpreter: Interpreter,
    attention: Arc<Attention>,
    journal: Arc<Journal>,
    ram: GuestRam,
    copy: GuestRam,
    /// The copy is not one: the machine has been set up anew.
    stale: bool,
    /// Pages that either has written since both were last the same.
    pages: Vec<usize>,
    /// The instructions carried out since then.
    trail: Trail,
    blocks: u64,
    /// Blocks after which undefined flags differed.
    undefined: u64,
    /// Page-table entries whose mark of access differed.
    marks: u64,
    /// The translator is about to have an instruction interpreted that it may have begun, or one in a shadow: what a
    /// call stores may be there already, and the status of an SSE exception; the shadow is not told.
    within: bool,
    failed: Option<String>,
    /// Something that spoils the leader's state after a block.
    #[cfg(test)]
    plant: Option<Plant>,
}

#[cfg(test)]
type Plant = Box<dyn FnMut(&mut Translator, u64) + Send>;

/// How far the interpreter got.
enum Place {
    Same,
    /// It is at the translator's instruction.
    RegistersDiffer,
    MemoryDiffers,
    Elsewhere,
}

/// Where the interpreter was when it should have been where the translator is: the first time that it was at its
/// instruction, or else, after as many instructions as the block has.
enum Difference {
    State(Box<State>),
    Told(String),
}

impl Follower {
    /// Lets the translator run, and follows.
    fn follow(&mut self, leader: &mut Translator) -> Result<Exit, Error> {
        if let Some(report) = &self.failed {
            return Err(Error::Engine(report.clone()));
        }
        if std::mem::take(&mut self.stale) {
            self.copy_memory();
        }
        loop {
            let exit = leader.one_block();
            #[cfg(test)]
            if let Some(plant) = &mut self.plant {
                plant(leader, self.blocks);
            }
            if let Err(report) = self.catch_up(leader) {
                self.failed = Some(report.clone());
                return Err(Error::Engine(report));
            }
            self.blocks += 1;
            if let Some(exit) = exit {
                return Ok(exit);
            }
        }
    }

    fn copy_memory(&mut self) {
        for page in 0..self.ram.len() / PAGE_SIZE {
            if !self.ram.same_page(&self.copy, page) {
                for at in (page * PAGE_SIZE..(page + 1) * PAGE_SIZE).step_by(8) {
                    self.copy.store(at, self.ram.load::<u64>(at));
                }
            }
        }
        for ram in [&self.ram, &self.copy] {
            ram.log_writes();
            ram.take_written(&mut self.pages);
        }
        self.pages.clear();
    }

    /// Carries out instructions until the interpreter is where the translator is.
    fn catch_up(&mut self, leader: &mut Translator) -> Result<(), String> {
        if self.journal.begins_with_interrupt() {
            self.attention.interrupt();
        }
        self.trail.clear();
        let goal = comparable(leader.state());
        self.within = leader.is_interrupted();
        self.ram.take_written(&mut self.pages);
        let length = leader.last_block().map_or(0, |block| u64::from(block.instructions));
        let mut first = None;
        let mut complaint = None;
        for steps in 0..PATIENCE {
            match self.compare(&goal) {
                Place::Same if self.within => return Ok(()),
                Place::Same => {
                    self.pages.clear();
                    return if self.blocks % WHOLE == WHOLE - 1 {
                        self.compare_all(leader, &goal)
                    } else {
                        Ok(())
                    };
                }
                // It has passed on when that is known for sure, and so will have its memory.
                Place::MemoryDiffers if !matches!(first, Some(Difference::Told(_))) => {
                    let state = self.interpreter.state();
                    first = Some(Difference::Told(self.report(leader, &goal, "memory differs", &state)));
                }
                Place::RegistersDiffer if first.is_none() => {
                    first = Some(Difference::State(Box::new(self.interpreter.state())));
                }
                Place::Elsewhere if first.is_none() && steps == length && steps > 0 => {
                    first = Some(Difference::State(Box::new(self.interpreter.state())));
                }
                _ => {}
            }
            complaint = self.journal.take_complaint();
            if complaint.is_some() || !self.step(&goal) {
                break;
            }
        }
        let what = complaint.as_deref().unwrap_or("registers differ");
        Err(match first {
            Some(Difference::Told(report)) => report,
            Some(Difference::State(state)) => self.report(leader, &goal, what, &state),
            None => self.report(leader, &goal, what, &self.interpreter.state()),
        })
    }

    /// Carries out one instruction, or what comes before it; false if there is none.
    fn step(&mut self, goal: &State) -> bool {
        let rip = self.interpreter.rip();
        // The translator may be in the middle of a repetition.
        let ahead = self.interpreter.gpr()[gpr::RCX].wrapping_sub(goal.gpr[gpr::RCX]);
        self.interpreter.set_piece((rip == goal.rip && ahead > 0).then_some(ahead));
        let at = self.interpreter.place_code(rip);
        self.trail.push(rip, at);
        let waits = self.journal.begins_with_interrupt();
        match self.interpreter.between_instructions() {
            Between::Exit(_) => return waits,
            Between::Stepped => {}
            // Perhaps that was all that the translator did.
            Between::Done if waits || self.interpreter.rip() != rip => {}
            Between::Done => self.interpreter.interpret_one(),
        }
        true
    }

    fn compare(&mut self, goal: &State) -> Place {
        if self.interpreter.rip() != goal.rip || !self.journal.is_at_end() {
            return Place::Elsewhere;
        }
        let same_registers = *self.interpreter.gpr() == goal.gpr;
        let flags = (self.interpreter.rflags() ^ goal.rflags, self.interpreter.rflags());
        if !same_registers || flags.0 & !rflags::ARITHMETIC != 0 {
            return Place::RegistersDiffer;
        }
        if flags.0 != 0 {
            let long64 = goal.segments.cs.long();
            if !long64 || flags.0 & !self.trail.undefined_flags(&self.copy, self.interpreter.model()) != 0 {
                return Place::RegistersDiffer;
            }
            self.interpreter.set_arithmetic_flags(goal.rflags);
        }
        let mut state = comparable(self.interpreter.state());
        if self.within {
            state.activity.sti_shadow = false;
            state.mxcsr |= goal.mxcsr & MXCSR_STATUS;
        }
        if state != *goal {
            self.interpreter.set_arithmetic_flags(flags.1);
            return Place::RegistersDiffer;
        }
        self.undefined += u64::from(flags.0 != 0);
        if self.within {
            return Place::Same;
        }
        self.copy.take_written(&mut self.pages);
        self.pages.sort_unstable();
        self.pages.dedup();
        let differing = self.pages.iter().filter(|page| !self.ram.same_page(&self.copy, **page));
        let differing: Vec<usize> = differing.copied().collect();
        for page in differing {
            self.marks += self.adopt_access_marks(page);
            if !self.ram.same_page(&self.copy, page) {
                return Place::MemoryDiffers;
            }
        }
        Place::Same
    }

    /// Takes over the marks of access in page-table entries, which each engine may set when it looks at a page before it
    /// must, or not again while it knows the page. How many entries there were.
    fn adopt_access_marks(&self, page: usize) -> u64 {
        const PRESENT: u64 = 1 << 0;
        const ACCESSED: u64 = 1 << 5;
        let mut count = 0;
        for at in (page * PAGE_SIZE..(page + 1) * PAGE_SIZE).step_by(8) {
            let (leads, follows) = (self.ram.load::<u64>(at), self.copy.load::<u64>(at));
            if leads ^ follows == ACCESSED && leads & PRESENT != 0 {
                self.copy.store(at, leads);
                count += 1;
            }
        }
        count
    }

    fn compare_all(&mut self, leader: &mut Translator, goal: &State) -> Result<(), String> {
        for page in 0..self.ram.len() / PAGE_SIZE {
            if !self.ram.same_page(&self.copy, page) {
                self.marks += self.adopt_access_marks(page);
            }
            if !self.ram.same_page(&self.copy, page) {
                self.pages.push(page);
            }
        }
        if self.pages.is_empty() {
            return Ok(());
        }
        let what = "memory differs that neither is known to have written: some block before has";
        Err(self.report(leader, goal, what, &self.interpreter.state()))
    }

    fn report(&self, leader: &Translator, goal: &State, what: &str, state: &State) -> String {
        let report = Report {
            what,
            instructions: self.interpreter.instructions().unwrap_or(0),
            blocks: self.blocks,
            states: [&comparable(state.clone()), goal],
            rams: [&self.copy, &self.ram],
            pages: &self.pages,
            trail: &self.trail,
            block: leader.last_block(),
            options: self.interpreter.model().decoder_options(),
            journal: &self.journal.rest(),
        };
        report.to_string()
    }
}

/// A state without what the translator keeps only for exceptions: the x87 unit's pointers.
fn comparable(mut state: State) -> State {
    let x87 = &mut state.x87;
    (x87.instruction, x87.data, x87.opcode) = (0, 0, 0);
    (x87.instruction_selector, x87.data_selector) = (0, 0);
    state
}

#[cfg(test)]
#[path = "../lockstep_test.rs"]
mod tests;
