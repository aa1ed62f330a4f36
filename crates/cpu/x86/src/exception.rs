//! Exceptions: what they are. How they are delivered is in [`crate::system`].

use crate::core::Core;
use crate::op::Stop;

/// Exception vectors (AMD APM volume 2, section 8.2).
pub(crate) mod vector {
    pub(crate) const DE: u8 = 0;
    pub(crate) const DB: u8 = 1;
    pub(crate) const NMI: u8 = 2;
    pub(crate) const BP: u8 = 3;
    pub(crate) const OF: u8 = 4;
    pub(crate) const BR: u8 = 5;
    pub(crate) const UD: u8 = 6;
    pub(crate) const NM: u8 = 7;
    pub(crate) const DF: u8 = 8;
    pub(crate) const TS: u8 = 10;
    pub(crate) const NP: u8 = 11;
    pub(crate) const SS: u8 = 12;
    pub(crate) const GP: u8 = 13;
    pub(crate) const PF: u8 = 14;
    pub(crate) const MF: u8 = 16;
    pub(crate) const AC: u8 = 17;
    pub(crate) const XM: u8 = 19;
}

/// An exception on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    /// Error code, for the exceptions that push one.
    pub error: Option<u32>,
    /// For page faults: what `cr2` becomes on delivery.
    pub address: u64,
}

impl Core {
    /// Notes an exception; `Err(core.raise(..))` ends the instruction with it.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Exception { vector, error, address: 0 };
        Stop::Fault
    }

    /// `#UD`: invalid opcode.
    pub(crate) fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// `#GP(error)`: general protection; `error` is 0 or a selector (RPL cleared).
    pub(crate) fn gp(&mut self, error: u16) -> Stop {
        self.raise(vector::GP, Some(u32::from(error)))
    }

    /// `#SS(error)`: stack segment.
    pub(crate) fn ss_fault(&mut self, error: u16) -> Stop {
        self.raise(vector::SS, Some(u32::from(error)))
    }

    /// `#NP(error)`: segment not present.
    pub(crate) fn np(&mut self, error: u16) -> Stop {
        self.raise(vector::NP, Some(u32::from(error)))
    }

    /// `#TS(error)`: invalid TSS.
    pub(crate) fn ts(&mut self, error: u16) -> Stop {
        self.raise(vector::TS, Some(u32::from(error)))
    }

    /// `#DE`: divide error.
    pub(crate) fn de(&mut self) -> Stop {
        self.raise(vector::DE, None)
    }

    /// `#NM`: x87 or SSE not available now.
    pub(crate) fn nm(&mut self) -> Stop {
        self.raise(vector::NM, None)
    }

    /// `#PF(error)` at linear `address`.
    #[cold]
    pub(crate) fn page_fault(&mut self, error: u32, address: u64) -> Stop {
        self.fault = Exception { vector: vector::PF, error: Some(error), address };
        Stop::Fault
    }
}
