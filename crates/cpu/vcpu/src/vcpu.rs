//! The engine's side.

use std::sync::Arc;

use posada_memory::GuestRam;

use crate::{Activity, Attention, Bus, Clock, Interrupts, x86};

/// Why a virtual CPU has stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`Attention::kick`].
    Kicked,
    /// Halted (`hlt`, or waiting for start-up) with nothing to wake it. Sleep in [`Attention::wait`], then run
    /// again.
    Halted,
    /// A triple fault: the processor has shut down. A PC answers by resetting.
    Shutdown,
}

/// An engine cannot go on, or will not take a state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A state or a CPU model asks for something that this engine does not do.
    #[error("this engine cannot do what is asked: {0}")]
    Unsupported(String),
    /// The engine itself failed.
    #[error("the engine failed: {0}")]
    Engine(String),
}

/// What a board gives an engine to make one virtual CPU with.
#[derive(Clone)]
pub struct Connections {
    /// The number of this virtual CPU, which is its APIC ID; 0 is the boot processor.
    pub index: u32,
    /// How many virtual CPUs the guest has.
    pub count: u32,
    /// The guest's memory.
    pub ram: GuestRam,
    /// Everything that is not memory.
    pub bus: Arc<dyn Bus>,
    /// This virtual CPU's interrupts.
    pub interrupts: Arc<dyn Interrupts>,
    /// How others reach it while it runs.
    pub attention: Arc<Attention>,
    /// The guest's time.
    pub clock: Arc<Clock>,
}

/// One virtual CPU.
pub trait Vcpu: Send {
    /// Runs the guest until something must be decided outside. Port and memory-mapped accesses do not return:
    /// they go to the [`Bus`].
    fn run(&mut self) -> Result<Exit, Error>;

    /// The whole architectural state, between two instructions.
    fn state(&self) -> x86::State;

    /// Replaces the whole architectural state.
    fn set_state(&mut self, state: &x86::State) -> Result<(), Error>;

    /// How many instructions have been carried out, where the engine counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// What the engine has to tell of its work, as lines of text for people; none, if it keeps no account.
    fn report(&self) -> Option<String> {
        None
    }

    /// What it is at, for a thread that looks now and then; `None`, if it does not say.
    fn activity(&self) -> Option<Arc<Activity>> {
        None
    }
}
