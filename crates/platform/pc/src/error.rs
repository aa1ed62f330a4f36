//! Why a machine cannot be built or cannot go on.

use crate::layout::{MAX_MEMORY, MIN_MEMORY};
use crate::{Engine, Pc};

/// Why a machine cannot be built or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest cannot have this much memory.
    #[error(
        "a guest cannot have {bytes} bytes of memory: give it from {} MiB to {} GiB, in whole pages of 4 KiB",
        MIN_MEMORY >> 20,
        MAX_MEMORY >> 30
    )]
    Memory {
        /// What was asked for.
        bytes: u64,
    },
    /// The host has less memory than the guest is to have.
    #[error(
        "a guest cannot have {bytes} bytes of memory: this host has {host} bytes, swap space included; give it \
         less"
    )]
    HostMemory {
        /// What was asked for.
        bytes: u64,
        /// What the host has.
        host: u64,
    },
    /// The guest cannot have this many processors.
    #[error("a guest cannot have {cpus} processors: give it from 1 to {}", Pc::MAX_CPUS)]
    Cpus {
        /// What was asked for.
        cpus: u32,
    },
    /// The engine has no name like this.
    #[error("unknown engine {name:?}; the engines are {}", Engine::NAMES.join(", "))]
    UnknownEngine {
        /// What was asked for.
        name: String,
    },
    /// The processor model cannot be had.
    #[error(transparent)]
    Model(#[from] posada_x86::ModelError),
    /// Guest memory could not be had.
    #[error(transparent)]
    Ram(#[from] posada_memory::Error),
    /// The kernel could not be started.
    #[error(transparent)]
    Boot(#[from] posada_boot::Error),
    /// An engine gave up.
    #[error("processor {cpu}: {cause}")]
    Engine {
        /// Which processor, counted from 0.
        cpu: u32,
        /// What the engine says.
        cause: posada_vcpu::Error,
    },
    /// The host would not make a thread.
    #[error("could not start a thread for the guest: {0}")]
    Thread(std::io::Error),
}
