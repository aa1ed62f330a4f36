//! The host as oracle: one random instruction, carried out natively in a child process and by an engine, must
//! end the same way.
//!
//! A [`Case`] is an instruction with everything it can see: registers, x87 and SSE state, memory. [`native`]
//! runs it on this machine's processor under `ptrace`; [`guest`] runs it at CPL 3 of a small guest whose page
//! tables, descriptor table and exception handlers stand for what Linux gives a process. Both fill the bytes
//! around the instruction with `int3`, so each run ends in an exception: the breakpoint when all went well, the
//! instruction's own fault otherwise. [`compare`] looks for any difference. [`generate`] makes cases from
//! `iced-x86`'s tables, the same ones for the same seed on every machine.

// The test and the example each use a part of it.
#![allow(dead_code)]

pub mod compare;
pub mod coverage;
pub mod generate;
pub mod guest;
pub mod known;
pub mod native;
pub mod operands;
pub mod run;
pub mod values;

use posada_vcpu::x86::X87;

/// Size of a page.
pub const PAGE: u64 = 0x1000;

/// What a range of a case's memory may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Execute,
    ReadWrite,
    Read,
}

/// A range of linear addresses that exists; around each there is nothing.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub start: u64,
    pub size: u64,
    pub rights: Rights,
}

impl Region {
    pub const fn end(&self) -> u64 {
        self.start + self.size
    }

    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.size
    }
}

/// Where instructions lie.
pub const CODE: Region = Region { start: 0x1000_0000, size: 2 * PAGE, rights: Rights::Execute };
/// Memory operands.
pub const DATA: Region = Region { start: 0x2000_0000, size: 2 * PAGE, rights: Rights::ReadWrite };
/// Memory operands that cannot be written; follows [`DATA`] at once.
pub const CONSTANTS: Region = Region { start: DATA.end(), size: PAGE, rights: Rights::Read };
/// The stack.
pub const STACK: Region = Region { start: 0x3000_0000, size: PAGE, rights: Rights::ReadWrite };
/// Everything that holds data.
pub const MEMORY: [Region; 3] = [DATA, CONSTANTS, STACK];

/// Linux's selectors for user programs.
pub mod selector {
    pub const CODE32: u16 = 0x23;
    pub const DATA: u16 = 0x2b;
    pub const CODE64: u16 = 0x33;
}

/// The registers that a program sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// `es`, `cs`, `ss`, `ds`, `fs`, `gs`.
    pub selectors: [u16; 6],
    pub fs_base: u64,
    pub gs_base: u64,
    pub x87: X87,
    pub xmm: [[u64; 2]; 16],
    /// The upper halves of the YMM registers, if the model has them.
    pub upper: [[u64; 2]; 16],
    pub mxcsr: u32,
}

/// The contents of [`MEMORY`], one range after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory(pub Vec<u8>);

impl Memory {
    pub fn new() -> Self {
        Self(vec![0; MEMORY.iter().map(|region| region.size as usize).sum()])
    }

    /// Index of the byte at `address`.
    pub fn index(address: u64) -> Option<usize> {
        let mut before = 0;
        for region in MEMORY {
            if region.contains(address) {
                return Some(before + (address - region.start) as usize);
            }
            before += region.size as usize;
        }
        None
    }

    /// The address of the byte at `index`.
    pub fn address(index: usize) -> u64 {
        let mut index = index as u64;
        for region in MEMORY {
            if index < region.size {
                return region.start + index;
            }
            index -= region.size;
        }
        unreachable!("inside memory")
    }

    /// The bytes of one of [`MEMORY`]'s regions.
    pub fn of(&self, region: &Region) -> &[u8] {
        let start = Self::index(region.start).expect("one of the regions");
        &self.0[start..start + region.size as usize]
    }

    /// Writes whatever of `bytes` lies inside.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            if let Some(index) = Self::index(address.wrapping_add(n as u64)) {
                self.0[index] = *byte;
            }
        }
    }
}

/// One instruction and all that it can see.
#[derive(Clone, Debug)]
pub struct Case {
    /// 32 or 64.
    pub bits: u32,
    /// Instructions that set flags and no more, then the one in question.
    pub code: Vec<u8>,
    /// The one in question, decoded as if at its address.
    pub instruction: iced_x86::Instruction,
    pub before: Registers,
    pub memory: Memory,
}

/// How a run ended, as Linux tells a program: the signal, its code, and the address that a page fault names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `#DE`: SIGFPE, FPE_INTDIV.
    Divide,
    /// `#DB`: SIGTRAP, but not from `int3`.
    Debug,
    /// `#BP`: SIGTRAP from `int3`, which is also how a case ends that has gone well.
    Breakpoint,
    /// `#OF`, `#BR`, `#GP`: SIGSEGV from the kernel, without an address.
    Protection,
    /// `#UD`: SIGILL.
    Invalid,
    /// `#NP`, `#SS`: SIGBUS from the kernel.
    Segment,
    /// `#AC`: SIGBUS, BUS_ADRALN.
    Alignment,
    /// `#PF`: SIGSEGV at this address; whether the page was there (SEGV_ACCERR).
    Page { address: u64, present: bool },
    /// `#MF`, `#XM`: SIGFPE with another code.
    FloatingPoint,
    /// It had to be stopped.
    Endless,
    /// Anything else: a signal and its code, or an engine's own end.
    Other(i32, i32),
}

/// What a run leaves.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    pub after: Registers,
    pub memory: Memory,
}
