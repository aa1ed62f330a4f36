//! Why a machine cannot be built or cannot go on.

use posada_peripherals::ahci::MAX_DRIVES;

use crate::layout::{MAX_MEMORY, MIN_MEMORY};
use crate::{Engine, MAX_CODE_CACHE, MIN_CODE_CACHE, Pc};

/// Why a machine cannot be built or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest cannot have this much memory.
    #[error(
        "a guest cannot have {} of memory: give it from {} to {}, in whole pages of 4 KiB",
        size(*bytes),
        size(MIN_MEMORY),
        size(MAX_MEMORY)
    )]
    Memory {
        /// What was asked for.
        bytes: u64,
    },
    /// The host has less memory than the guest is to have.
    #[error(
        "a guest cannot have {} of memory: this host has {}, swap space included; give it less",
        size(*bytes),
        size(*host >> 20 << 20)
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
    /// The guest cannot do without so much.
    #[error("a balloon cannot take {} of a guest's memory, which is {}", size(*bytes), size(*memory))]
    Balloon {
        /// What was asked for.
        bytes: u64,
        /// What the guest has.
        memory: u64,
    },
    /// There is no balloon.
    #[error("the guest has no balloon")]
    NoBalloon,
    /// The code cache cannot be of this size.
    #[error("a code cache cannot have {}: give it from {} to {}", size(*bytes), size(MIN_CODE_CACHE), size(MAX_CODE_CACHE))]
    CodeCache {
        /// What was asked for.
        bytes: u64,
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
    /// There are more devices than places for them.
    #[error("a guest cannot have {devices} devices: its PCI bus has room for 31")]
    Devices {
        /// How many were asked for.
        devices: usize,
    },
    /// There are more drives than ports for them.
    #[error("a guest cannot have {drives} drives on its SATA controller, which has room for {MAX_DRIVES}")]
    Drives {
        /// How many were asked for.
        drives: usize,
    },
    /// A device could not be made.
    #[error("could not start the guest's {name}: {cause}")]
    Device {
        /// Which.
        name: &'static str,
        /// What the host said.
        cause: std::io::Error,
    },
    /// The host would not make a thread.
    #[error("could not start a thread for the guest: {0}")]
    Thread(std::io::Error),
}

/// Bytes in the largest unit of which they are a whole number.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.into_iter().find(|(shift, _)| bytes >> shift << shift == bytes && bytes != 0);
    unit.map_or_else(|| format!("{bytes} bytes"), |(shift, unit)| format!("{} {unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_in_units_that_people_use() {
        let refused = Error::Memory { bytes: 1000 << 30 }.to_string();
        let expected =
            "a guest cannot have 1000 GiB of memory: give it from 4 MiB to 512 GiB, in whole pages of 4 KiB";
        assert_eq!(refused, expected);
        assert_eq!([0, 4097, 1536 << 20].map(size), ["0 bytes", "4097 bytes", "1536 MiB"]);
    }
}
