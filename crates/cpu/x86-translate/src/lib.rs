//! The binary translator: x86-64 guests at near native speed on x86-64 hosts, as an ordinary process.
//!
//! A Type II hypervisor examines the basic blocks of its guest, replaces the sensitive instructions by calls to
//! itself, and keeps the translated code in a cache. Here guest and host have the same instruction set, so most
//! instructions are copied as they are (*identity translation*): guest registers are in host registers, guest flags
//! in the host's, guest vectors in the host's. What is added are checks: each memory access goes through a software
//! TLB (`tlb`), each jump to another page through a table of known addresses (`jumps`). Whatever is not
//! copied is carried out by the interpreter of [`posada_x86`], one instruction at a time.
//!
//! # Why a guest stays in
//!
//! A guest's kernel is hostile, and its instructions run in the monitor's own address space. Nothing that it does
//! reaches the monitor's memory, registers or control flow, for these reasons together; each names the place that
//! would have to be wrong.
//!
//! 1. **Only listed instructions are copied** (`classify`). The list is of names and of operand kinds: general,
//!    vector, x87 and MMX registers, immediates, and at most one memory operand, whose address and size the operand
//!    says all of. Not on it, or taken off: whatever has an implied memory operand (strings, `maskmov`, `xlat`), or
//!    reaches beyond the operand's size (`bt` with an offset in a register, gathers, state saves); whatever reads or
//!    writes a segment, control, debug or model-specific register; system calls, ports, `cpuid`, far branches.
//!    Instructions that the CPU model does not announce are not decoded, so the host having more makes no difference.
//! 2. **What is copied is encoded anew** (`block`, `Writer::plan`), from what the decoder understood and nothing
//!    else: a prefix that means nothing to the guest's processor is not there for the host's to understand otherwise.
//!    Lock prefixes stay, on memory operands alone.
//! 3. **Every memory operand becomes `[rax + ...]` behind a check** (`Writer::access`, `access_in_group`): `rax` has the
//!    place in the host's memory, or what leads from the guest's address, in its own base register, to the host's (it is moved to
//!    another register for instructions that need `rax` itself, `Writer::bring_rax`). The guest's
//!    linear address, of 64 bits, with address size and segment base as the guest's processor has them, is compared
//!    with the tag of a TLB entry. The comparison fails unless all bytes lie in the tagged page: an access at the page's
//!    end, a non-canonical address and an address of the monitor's own are all just different from the tag. Where RAM is
//!    below 2^31 the comparison may be a test of the sum of the address and the entry: two addresses with the same entry
//!    differ in their upper halves alone, so the sum is below 2^31 for one of them only, the page's; and an aligned access
//!    does not leave its page. In an entry of no page, bit 31 is what makes that of each sum one. The
//!    members of a group use one register that keeps its value (or whose moves are counted), and lie between the
//!    ends that were checked. The host's instruction has no segment, so what is checked is what is accessed. The only
//!    other memory operands are a guest register's own place in the context, in the stead of that register
//!    (`Plan::leave_in_memory`): of its size, and not for instructions that reach beyond it.
//! 4. **The TLB holds pages of RAM alone** (`Machine::know_page`, [`posada_memory::GuestRam::host_address`]). Each entry
//!    comes from the interpreter's walk of the page tables, for the view in force, and a page of RAM is whole or not
//!    there. An entry for writes is not made for a page that holds translated code, and is dropped when it comes to
//!    hold some: so stores to code are the interpreter's, and seen.
//! 5. **Jumps lead to code of this cache alone.** Within a page by ties, which the dispatcher patches; elsewhere by a
//!    table of linear addresses that the dispatcher fills, of the very mode (view, vectors, x87) that runs; a guest's
//!    return address or function pointer is only ever compared with it. What translated code adds to that table by
//!    itself comes from tables that the dispatcher fills, too (`jumps`). A link is followed only in an epoch in which its
//!    page was seen to be where it leads. Once the alarm has rung, tables are looked into where no guest's address is, not even one
//!    that no processor would accept, unless it guessed 48 bits. When code is forgotten, so is every way to it, while no translated code runs.
//! 6. **The stack pointer of the host is never the guest's** (`registers`): that is in `r8`. While translated code runs
//!    `rsp` is one address below the context and nothing else, with room below that for calls of the translator's own and
//!    for signals; the routines of `entry` go back to the host's stack. Pushes, pops, calls and returns are memory operands like
//!    any other; the page that the stack was in last (`context::StackPage`) is known by a tag as those of the TLB are,
//!    and forgotten whenever anything of the TLB is.
//! 7. **The context is reached through `rsp`**, with constant offsets, or with an index that was cut to the table's
//!    size; by the routines, through `gs`. No copied instruction has a segment prefix, and `fs` and `gs` bases are never
//!    the guest's.
//! 8. **No address is both writable and executable** (`memory`): code is written through a second mapping.
//! 9. **What may raise an exception on the host is recovered from or kept out.** Accesses are checked, alignment
//!    included where the form demands it; divisions and unmasked SSE exceptions have a recovery at their very
//!    address (`fault`); x87 instructions run only with all exceptions masked; `mxcsr` is loaded only without
//!    reserved bits.
//! 10. **A guest can be stopped.** Each block that jumps back within its page looks at the attention flag on every way there;
//!     all other ways back are links and looks into tables, which find nothing once the alarm has rung (`alarm`). A
//!     block is bounded, and the code cache is emptied when it is full.
//!
//! The tests hold each of these against the interpreter or the host's processor: single instructions natively
//! (`tests/host_oracle.rs`), random programs (`tests/sequences.rs`), and hostile guests (`tests/hostile.rs`).
#![allow(unsafe_code)]

mod alarm;
mod asm;
mod block;
mod cache;
mod classify;
mod context;
mod control;
mod entry;
mod fault;
mod filled;
mod flags;
mod groups;
mod helpers;
mod jumps;
mod lockstep;
mod memory;
mod native;
mod registers;
mod sensitive;
mod stats;
mod stub;
mod tlb;
mod translator;
mod x87;

pub use lockstep::Lockstep;
pub use stats::Stats;
pub use translator::{DEFAULT_CODE_CACHE, Translator};
