//! The translated code's own memory: what it finds through the host's `rsp`, and the routines that it calls through `gs`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ptr::NonNull;

use crate::alarm::Alarm;
use crate::memory::Mapping;
use crate::tlb::low_mask;
use crate::{jumps, tlb, x87};

/// Room below a context, where `rsp` leads while translated code runs: for return addresses of its calls, and frames of
/// the host's signals.
const SCRATCH: usize = (64 << 10) - HOT;
/// Bytes of a context in front of its TLB, which is made of whole pages.
const HOT: usize = 64;

/// How far below a context `rsp` leads while translated code runs: so far that its low five bits are 12, always. A shift by
/// `rsp` then makes a page's number of an address, in one instruction that leaves the flags.
pub(crate) const BELOW: i32 = 52;

/// What is near `rsp`, too, but not of the context: places of numbers of 8 bytes, from there. Just below `rsp` there are return
/// addresses; the frames of the host's signals are more than 128 bytes below.
mod near {
    use super::{BELOW, COPIES};
    use crate::alarm::Alarm;
    use crate::groups;

    const RETURN_ADDRESSES: i32 = 3 * 8;

    pub(super) const DISTANCES: i32 = -BELOW - 124;
    pub(super) const MASKS: i32 = DISTANCES + 8 * groups::MOST as i32;
    /// Between the alarm, which is at `rsp`, and the context.
    pub(super) const COPIES_PLACE: i32 = size_of::<Alarm>() as i32 - BELOW;
    pub(super) const PAGE_MASK: i32 = COPIES_PLACE + 8 * COPIES.len() as i32;

    const _: () = {
        assert!(BELOW % align_of::<Alarm>() as i32 == 0 && DISTANCES % 8 == 0 && COPIES_PLACE % 8 == 0);
        assert!(MASKS + 8 * 4 + RETURN_ADDRESSES <= -BELOW && PAGE_MASK + 8 <= 0);
    };
}

/// Where, from the context, the distance from the guest's addresses to the host's is for each group of accesses
/// ([`crate::groups`]).
pub(crate) const DISTANCES: i32 = near::DISTANCES;

/// Numbers that translated code needs often, sign-extended to 64 bits, and where they are, from the context: as operands in
/// memory they are shorter than as immediate ones.
const CONSTANTS: [(i32, i32); 5] = [
    (low_mask(1), near::MASKS),
    (low_mask(2), near::MASKS + 8),
    (low_mask(4), near::MASKS + 16),
    (low_mask(8), near::MASKS + 24),
    (-4096, near::PAGE_MASK),
];

/// Numbers of registers, as instructions encode them.
pub(crate) mod register {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RSP: u8 = 4;
    pub(crate) const R8: u8 = 8;
    pub(crate) const R10: u8 = 10;
    pub(crate) const R11: u8 = 11;
}

/// One virtual CPU's part that translated code reaches. Fields are found by their offsets ([`offset`]).
#[repr(C, align(64))]
pub(crate) struct Context {
    // What is used most comes first: displacements from -128 to 127 take one byte.
    /// The arithmetic flags, while the host's hold something else: OF in bit 0, and in bits 15:8 what `lahf` gives. The other bits
    /// mean nothing.
    pub(crate) flags: u64,
    /// Linear address of the page that the running code is in.
    pub(crate) code_base: u64,
    /// The guest's registers that have no host register, in the order of [`SPILLED`].
    pub(crate) spilled: [u64; 3],
    /// The pages that the stacks of each view are in, the user's first: see [`StackPage`].
    stack_of_users: StackPage,
    /// The user's first; for that, one table is just behind what is used most.
    pub(crate) tlb: [tlb::Tables; 3],
    stacks_of_supervisors: [StackPage; 2],
    /// The guest's general-purpose registers that have host registers, while translated code does not run.
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    /// The host's flags, in the form of `flags`, when a stub was called.
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
    pub(crate) myself: *mut Context,
    /// The host's `rsp` while translated code runs.
    pub(crate) rsp: u64,
    /// The machine that this context belongs to; see [`crate::translator`].
    pub(crate) machine: *mut (),
    /// Others ring it while this structure is in use, so it is not in it, but where `rsp` leads.
    alarm: *const Alarm,
    /// What registers held that flags were computed from: see [`COPIES`]. In front of that, for its place's sake.
    copies: *const [u64; COPIES.len()],
    /// The stack pointer of those who ran it.
    pub(crate) host_rsp: u64,
    pub(crate) temporary: u64,
    /// In which epochs the tables of jumps are, the user's first: see [`jumps::Links`].
    pub(crate) epochs: [u32; 2],
    /// Where the number of the stub is that looks for the stack's page, or for a link; and where that link is.
    stub_number: u64,
    link: u64,
    /// Of code that looks for the target of a jump: the target, and the code there.
    wanted: u64,
    found: u64,
    /// Where a helper's call goes on, and `rsp` there.
    pub(crate) back: [u64; 2],
    /// The host's `rax` when a stub was called.
    pub(crate) rax: u64,
    /// Why translated code is left: see [`crate::entry::reason`]; and by which stub.
    pub(crate) why: u32,
    pub(crate) stub: u32,
    /// Of an indirect call: code, and the page that it is in.
    pub(crate) target: [u64; 2],
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
    /// See [`StackPage::none`].
    no_stack: StackPage,
    pub(crate) scratch: [u64; 2],
    pub(crate) jumps: [jumps::Table; jumps::TABLES],
    pub(crate) links: jumps::Links,
    /// By epochs.
    pub(crate) code_pages: [jumps::CodePages; 2],
    pub(crate) known: jumps::KnownCode,
    pub(crate) noted: jumps::Noted,
}

/// The guest's registers that have no host register.
pub(crate) const SPILLED: [u8; 3] = [register::R8, register::R10, register::R11];

/// Numbers of copies of registers, where others have numbers of registers: [`Context`] has them.
pub(crate) const COPIES: [u8; 2] = [16, 17];

/// The page that the stack of a view was in last. For accesses through the stack pointer this takes the place of the TLB,
/// as long as they stay there.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StackPage {
    /// The page's linear address, if it may be read.
    pub(crate) read: u64,
    /// The same, if it may be stored to.
    pub(crate) write: u64,
    /// From linear addresses to the host's.
    pub(crate) delta: u64,
}

impl StackPage {
    /// Where its parts are.
    pub(crate) const READ: i32 = std::mem::offset_of!(Self, read) as i32;
    pub(crate) const WRITE: i32 = std::mem::offset_of!(Self, write) as i32;
    pub(crate) const DELTA: i32 = std::mem::offset_of!(Self, delta) as i32;

    /// None: an [`unknown_page`]. If a guest guessed it, it would find a page that is nobody's, at `nowhere`.
    fn none(nowhere: NonNull<u8>) -> Self {
        let tag = unknown_page();
        Self { read: tag, write: tag, delta: (nowhere.as_ptr() as u64).wrapping_sub(tag) }
    }
}

/// The address of a page that no processor would accept, nor does a guest know it.
pub(crate) fn unknown_page() -> u64 {
    const NOT_CANONICAL: u64 = 0b101 << 61;
    let random = RandomState::new().build_hasher().finish();
    random >> 4 & !0xfff | NOT_CANONICAL
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
    NO_STACK = no_stack;
    STUB_NUMBER = stub_number;
    SPILLED = spilled;
    STACK_OF_USERS = stack_of_users;
    STACKS_OF_SUPERVISORS = stacks_of_supervisors;
    CODE_BASE = code_base;
    FLAGS = flags;
    BASES = bases;
    TEMPORARY = temporary;
    TARGET = target;
    STUB = routines.stub;
    HELP = routines.help;
    SELECTORS = selectors;
    SYSTEM_FLAGS = system_flags;
    INTERRUPT_FLAG = interrupt_flag;
    ACCESS_FLAG = access_flag;
    INTERRUPTS_WAIT = interrupts_wait;
    LOAD_X87 = routines.x87;
    JUMPS = jumps;
    LINK = link;
    LINK_EPOCHS = links.epochs;
    LINK_PAGES = links.pages;
    LINK_DISTANCES = links.distances;
    WANTED = wanted;
    FOUND = found;
    KNOWN = known;
    NOTED = noted;
    TLB = tlb;
}

impl Context {
    /// What makes translated code look up.
    pub(crate) fn alarm(&self) -> &Alarm {
        // SAFETY: `allocate` has let it lead into the mapping that the context is in, in front of it, where nothing else is.
        unsafe { &*self.alarm }
    }

    /// Where a register is that has no host register, or a copy.
    ///
    /// # Panics
    /// For another.
    pub(crate) fn slot_offset(number: u8) -> i32 {
        if let Some(n) = COPIES.iter().position(|copy| *copy == number) {
            return near::COPIES_PLACE + 8 * n as i32;
        }
        let n = SPILLED.iter().position(|spilled| *spilled == number);
        let Some(n) = n else { unreachable!("register {number} has a host register") };
        offset::SPILLED + 8 * n as i32
    }

    /// A guest's register, or a copy, while translated code does not run.
    pub(crate) fn register(&self, number: u8) -> u64 {
        let in_list = |list: &[u8]| list.iter().position(|other| *other == number);
        match (in_list(&SPILLED), in_list(&COPIES)) {
            (Some(n), _) => self.spilled[n],
            // SAFETY: `allocate` has let it lead into the mapping that the context is in; translated code, which alone writes there,
            // does not run.
            (_, Some(n)) => unsafe { (*self.copies)[n] },
            _ => self.gpr[usize::from(number)],
        }
    }

    /// Where a number is, if it is one of those that are at hand.
    pub(crate) fn constant_offset(value: i32) -> Option<i32> {
        CONSTANTS.iter().find(|(constant, _)| *constant == value).map(|(_, offset)| *offset)
    }

    /// Where a view's [`StackPage`] is.
    pub(crate) const fn stack_offset(view: u8) -> i32 {
        if view == posada_x86::View::User as u8 {
            offset::STACK_OF_USERS
        } else {
            offset::STACKS_OF_SUPERVISORS + view as i32 * size_of::<StackPage>() as i32
        }
    }

    pub(crate) fn stack(&mut self, view: u8) -> &mut StackPage {
        match self.stacks_of_supervisors.get_mut(usize::from(view)) {
            Some(stack) => stack,
            None => &mut self.stack_of_users,
        }
    }

    /// Remembers the page of a view's stack.
    pub(crate) fn set_stack(&mut self, view: u8, page: u64, write: bool, delta: u64) {
        let write = if write { page } else { self.no_stack.write };
        *self.stack(view) = StackPage { read: page, write, delta };
    }

    /// Forgets all [`StackPage`]s.
    pub(crate) fn forget_stacks(&mut self) {
        self.stack_of_users = self.no_stack;
        self.stacks_of_supervisors = [self.no_stack; 2];
    }

    /// Where the epoch of a view's table of jumps is.
    pub(crate) fn epoch_offset(view: u8) -> i32 {
        std::mem::offset_of!(Self, epochs) as i32 + 4 * jumps::epoch(view) as i32
    }

    /// Where a link's epoch is.
    pub(crate) const fn link_offset(link: u32) -> i32 {
        offset::LINK_EPOCHS + link as i32 * size_of::<u32>() as i32
    }

    /// Where the code pages of a view are.
    pub(crate) fn code_pages_offset(view: u8) -> i32 {
        let n = jumps::epoch(view);
        (std::mem::offset_of!(Self, code_pages) + n * size_of::<jumps::CodePages>()) as i32
    }

    /// Where the TLB of a view is.
    pub(crate) const fn tlb_offset(view: u8) -> i32 {
        offset::TLB + (tlb::place(view) * size_of::<tlb::Tables>()) as i32
    }

    /// Where one table of jumps is.
    pub(crate) const fn jumps_offset(table: usize) -> i32 {
        offset::JUMPS + (table * size_of::<jumps::Table>()) as i32
    }

    /// A context whose memory is zeros where it may be, and the mapping that it is in.
    pub(crate) fn allocate() -> std::io::Result<(Mapping, NonNull<Self>)> {
        const {
            assert!(SCRATCH.is_multiple_of(align_of::<Context>()));
            assert!((align_of::<Self>() as i32 - BELOW) % 32 == 12);
            assert!(offset::TLB as usize == HOT && size_of::<tlb::Tables>().is_multiple_of(4096));
        };
        let mut mapping = Mapping::zeroed(SCRATCH + size_of::<Self>())?;
        let filled = (0..3).flat_map(|view| {
            let tables = SCRATCH + Self::tlb_offset(view) as usize;
            tlb::Tables::FILLED.map(|(offset, len)| (tables + offset, len))
        });
        mapping.fill(filled, tlb::Tables::FILLING)?;
        // SAFETY: that far the mapping reaches.
        let mut context: NonNull<Self> = unsafe { mapping.start().byte_add(SCRATCH) }.cast();
        // SAFETY: the mapping is aligned to pages, and all zeros, which every field may be, but for what the tables want.
        let c = unsafe { context.as_mut() };
        c.no_stack = StackPage::none(mapping.start());
        c.myself = context.as_ptr();
        // SAFETY: so far in front of the context, which that far is inside.
        let below = unsafe { mapping.start().byte_add(SCRATCH - BELOW as usize) };
        c.rsp = below.as_ptr() as u64;
        c.alarm = below.as_ptr().cast_const().cast();
        // SAFETY: all of these places are in the mapping, and nobody's but translated code's.
        let near = |offset: i32| unsafe { context.as_ptr().cast::<u8>().offset(offset as isize) };
        c.copies = near(near::COPIES_PLACE).cast_const().cast();
        for (value, offset) in CONSTANTS {
            // SAFETY: as above; nobody reads them yet.
            unsafe { near(offset).cast::<[u8; 8]>().write(i64::from(value).to_ne_bytes()) };
        }
        Ok((mapping, context))
    }
}
