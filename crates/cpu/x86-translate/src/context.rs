//! The translated code's own memory: what it finds through the host's `gs` segment.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

use crate::memory::Mapping;
use crate::{jumps, tlb, x87};

/// Numbers of registers, as instructions encode them.
pub(crate) mod register {
    pub(crate) const RSP: u8 = 4;
    pub(crate) const R10: u8 = 10;
    pub(crate) const R11: u8 = 11;
    pub(crate) const R15: u8 = 15;
}

/// One virtual CPU's part that translated code reaches. Fields are found by their offsets ([`offset`]).
#[repr(C, align(64))]
pub(crate) struct Context {
    /// The guest's general-purpose registers, while translated code does not run. Those that have no host
    /// register ([`crate::registers`]) are always here.
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    /// Linear address of the page that the running code is in.
    pub(crate) code_base: u64,
    /// The arithmetic flags, while the host's hold something else: OF in bit 0, and in bits 15:8 what `lahf` gives.
    pub(crate) flags: u64,
    /// The host's, in that form, when a stub was called.
    pub(crate) host_flags: u64,
    /// Bases of `fs` and `gs`, and what `swapgs` exchanges the latter with.
    pub(crate) bases: [u64; 3],
    /// The selectors in `es`, `cs`, `ss`, `ds`, `fs` and `gs`.
    pub(crate) selectors: [u64; 6],
    /// The flags that are neither arithmetic nor the two below.
    pub(crate) system_flags: u64,
    /// `rflags.IF`, where `rflags` has it.
    pub(crate) interrupt_flag: u64,
    /// `rflags.AC`, where `rflags` has it.
    pub(crate) access_flag: u64,
    /// Not zero: an interrupt may wait for `rflags.IF`.
    pub(crate) interrupts_wait: u64,
    /// Not zero: somebody wants the dispatcher to look up.
    pub(crate) attention: *const AtomicU32,
    pub(crate) myself: *mut Context,
    /// The machine that this context belongs to; see [`crate::translator`].
    pub(crate) machine: *mut (),
    /// The stack pointer while translated code runs.
    pub(crate) host_rsp: u64,
    pub(crate) temporary: u64,
    /// The host's `r10` when a stub was called.
    pub(crate) r10: u64,
    /// Why translated code is left: see [`crate::entry::reason`]; and by which stub.
    pub(crate) why: u32,
    pub(crate) stub: u32,
    /// Of an indirect call: code, and the page that it is in.
    pub(crate) target: [u64; 2],
    /// Of each group of accesses: the distance from the guest's address to the host's ([`crate::groups`]).
    pub(crate) distances: [u64; crate::groups::MOST],
    /// The guest's vector registers, while translated code does not run, or runs in a supervisor's view.
    pub(crate) ymm: *mut [[u64; 4]; 16],
    /// The guest's, as `ymm`.
    pub(crate) mxcsr: u32,
    pub(crate) host_mxcsr: u32,
    /// Routines that translated code calls; see [`crate::entry`].
    pub(crate) routines: Routines,
    /// The x87 unit's state is the guest's: 1, or 0.
    pub(crate) x87_loaded: u64,
    /// The guest's x87 state, before it is loaded.
    pub(crate) x87: x87::Area,
    pub(crate) scratch: [u64; 2],
    pub(crate) jumps: [jumps::Table; jumps::TABLES],
    pub(crate) tlb: [[tlb::Table; 2]; 3],
}

/// Addresses of [`crate::entry`]'s routines: with the vector registers in the host's (1), and without (0).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Routines {
    pub(crate) stub: [usize; 3],
    pub(crate) help: [usize; 3],
    /// Called before x87 instructions: makes sure that the guest's state is loaded.
    pub(crate) x87: usize,
    /// Called by `stub`.
    pub(crate) monitor: usize,
    /// Called by `help`.
    pub(crate) helper: usize,
}

macro_rules! offsets {
    ($($name:ident = $($field:tt).+;)*) => {
        /// Where fields are, in bytes.
        pub(crate) mod offset {
            $(pub(crate) const $name: i32 = std::mem::offset_of!(super::Context, $($field).+) as i32;)*
        }
    };
}

offsets! {
    GPR = gpr;
    CODE_BASE = code_base;
    FLAGS = flags;
    BASES = bases;
    ATTENTION = attention;
    TEMPORARY = temporary;
    TARGET = target;
    DISTANCES = distances;
    STUB = routines.stub;
    HELP = routines.help;
    SELECTORS = selectors;
    SYSTEM_FLAGS = system_flags;
    INTERRUPT_FLAG = interrupt_flag;
    ACCESS_FLAG = access_flag;
    INTERRUPTS_WAIT = interrupts_wait;
    LOAD_X87 = routines.x87;
    JUMPS = jumps;
    TLB = tlb;
}

impl Context {
    /// Where one register is.
    pub(crate) const fn gpr_offset(number: u8) -> i32 {
        offset::GPR + number as i32 * 8
    }

    /// Where the translations for one kind of access are.
    pub(crate) const fn tlb_offset(view: usize, write: bool) -> i32 {
        offset::TLB + ((view * 2 + write as usize) * size_of::<tlb::Table>()) as i32
    }

    /// Where one table of jumps is.
    pub(crate) const fn jumps_offset(table: usize) -> i32 {
        offset::JUMPS + (table * size_of::<jumps::Table>()) as i32
    }

    /// A context all of whose memory is zeros but what must not be.
    pub(crate) fn allocate() -> std::io::Result<Mapping> {
        const { assert!(offset_of!(Context, gpr) == 0) };
        Mapping::zeroed(size_of::<Self>())
    }
}
