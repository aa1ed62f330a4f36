//! The architectural state of one x86 processor (AMD APM volume 2, chapters 1 to 15).

mod display;
mod segment;

use serde::{Deserialize, Serialize};

pub use segment::{Segment, Segments, Table};

/// `cr0` bits.
pub mod cr0 {
    #![allow(missing_docs)]
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// `cr4` bits.
pub mod cr4 {
    #![allow(missing_docs)]
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// `EFER` bits.
pub mod efer {
    #![allow(missing_docs)]
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const SVME: u64 = 1 << 12;
    pub const FFXSR: u64 = 1 << 14;
}

/// `rflags` bits.
pub mod rflags {
    #![allow(missing_docs)]
    pub const CF: u64 = 1 << 0;
    /// Always set.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic sets.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// Numbers of the general-purpose registers in [`State::gpr`], as instructions encode them.
pub mod gpr {
    #![allow(missing_docs)]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R8: usize = 8;
}

/// Family, model and stepping of the virtual processor, as CPUID leaf 1 answers in `eax` and reset leaves in `edx`
/// (AMD APM volume 3, appendix E): family 0x19, of which guests expect no faults to work around.
pub const PROCESSOR_SIGNATURE: u32 = 0x00a0_0f11;

/// Everything that makes one processor what it is between two instructions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `rax` to `r15` in encoding order; see [`gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer: an offset into `cs`.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Segment registers with their hidden parts.
    pub segments: Segments,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// `dr0` to `dr3`: breakpoint linear addresses.
    pub breakpoints: [u64; 4],
    /// Debug status.
    pub dr6: u64,
    /// Debug control.
    pub dr7: u64,
    /// Which parts of the extended state are in use.
    pub xcr0: u64,
    /// Model-specific registers that are processor state.
    pub msrs: Msrs,
    /// The x87 unit.
    pub x87: X87,
    /// `ymm0` to `ymm15`, lowest 64 bits first; `xmm` registers are the low halves.
    pub ymm: [[u64; 4]; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// What holds interrupts off, and whether the processor is at rest.
    pub activity: Activity,
}

/// Model-specific registers that are processor state (the local APIC's are the board's).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// Extended features; see [`efer`].
    pub efer: u64,
    /// `syscall` and `sysret` selectors.
    pub star: u64,
    /// 64-bit `syscall` target.
    pub lstar: u64,
    /// Compatibility-mode `syscall` target.
    pub cstar: u64,
    /// Flags that `syscall` clears.
    pub sfmask: u64,
    /// What `swapgs` swaps with the base of `gs`.
    pub kernel_gs_base: u64,
    /// `sysenter` code selector.
    pub sysenter_cs: u64,
    /// `sysenter` stack pointer.
    pub sysenter_esp: u64,
    /// `sysenter` target.
    pub sysenter_eip: u64,
    /// What `rdtscp` and `rdpid` return.
    pub tsc_aux: u64,
    /// Added to the clock's counter to make the time-stamp counter.
    pub tsc_offset: u64,
    /// `IA32_TSC_ADJUST`.
    pub tsc_adjust: u64,
    /// Page attribute table.
    pub pat: u64,
    /// `IA32_MISC_ENABLE`.
    pub misc_enable: u64,
    /// `IA32_DEBUGCTL`.
    pub debugctl: u64,
    /// Memory type ranges: default type.
    pub mtrr_def_type: u64,
    /// Fixed ranges: 64K, two of 16K, eight of 4K.
    pub mtrr_fixed: [u64; 11],
    /// Variable ranges: base and mask of each of eight.
    pub mtrr_variable: [[u64; 2]; 8],
    /// `IA32_MCG_STATUS`.
    pub mcg_status: u64,
    /// Extended supervisor state in use.
    pub xss: u64,
}

/// The x87 unit (AMD APM volume 1, chapter 6), MMX registers included: `mm0` to `mm7` are the significands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87 {
    /// The *physical* registers, not relative to the top of stack: significand, then sign and exponent.
    pub registers: [X87Register; 8],
    /// Control word.
    pub control: u16,
    /// Status word, with the top of stack in bits 13:11.
    pub status: u16,
    /// One bit a physical register: set when it holds something. (The full tag word follows from the contents.)
    pub occupied: u8,
    /// Last opcode, 11 bits.
    pub opcode: u16,
    /// Last instruction pointer.
    pub instruction: u64,
    /// Its code selector.
    pub instruction_selector: u16,
    /// Last data pointer.
    pub data: u64,
    /// Its data selector.
    pub data_selector: u16,
}

/// An 80-bit register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87Register {
    /// Significand with its explicit integer bit.
    pub significand: u64,
    /// Sign in bit 15, biased exponent below.
    pub sign_exponent: u16,
}

/// What holds interrupts off, and whether the processor is at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Whether instructions are being carried out.
    pub running: Running,
    /// Maskable interrupts wait for one more instruction, because of `sti`.
    pub sti_shadow: bool,
    /// Interrupts and debug exceptions wait for one more instruction, because of a load of `ss`.
    pub mov_ss_shadow: bool,
    /// Non-maskable interrupts wait for `iret`.
    pub nmi_blocked: bool,
    /// A non-maskable interrupt waits.
    pub nmi_pending: bool,
}

/// Whether instructions are being carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Running {
    /// Yes.
    #[default]
    Running,
    /// `hlt`: until an interrupt.
    Halted,
    /// After INIT on an application processor: until a start-up message.
    WaitForStartUp,
    /// After a triple fault: until a reset.
    Shutdown,
}

impl Default for X87 {
    /// The state after `fninit`.
    fn default() -> Self {
        Self {
            registers: [X87Register::default(); 8],
            control: 0x37f,
            status: 0,
            occupied: 0,
            opcode: 0,
            instruction: 0,
            instruction_selector: 0,
            data: 0,
            data_selector: 0,
        }
    }
}

impl State {
    /// The state after power-on: real mode at `0xffff_fff0` (AMD APM volume 2, table 14-1).
    pub fn reset() -> Self {
        let mut gpr = [0; 16];
        gpr[gpr::RDX] = u64::from(PROCESSOR_SIGNATURE);
        let mut segments = Segments::default();
        for segment in segments.data_mut() {
            *segment = Segment::real_mode(0);
        }
        segments.cs =
            Segment { base: 0xffff_0000, selector: 0xf000, attributes: 0x9b, ..Segment::real_mode(0) };
        segments.ldtr = Segment { limit: 0xffff, attributes: 0x82, ..Segment::default() };
        segments.tr = Segment { limit: 0xffff, attributes: 0x8b, ..Segment::default() };
        Self {
            gpr,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            segments,
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            breakpoints: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            xcr0: 1,
            msrs: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            x87: X87 { control: 0x40, ..X87::default() },
            ymm: [[0; 4]; 16],
            mxcsr: 0x1f80,
            activity: Activity::default(),
        }
    }

    /// Flat 32-bit protected mode without paging, interrupts off, at `entry`: what multiboot and PVH hand over.
    pub fn protected_mode(entry: u32) -> Self {
        let mut state = Self::reset();
        state.cr0 = cr0::ET | cr0::PE | cr0::NE;
        state.segments.set_flat(Segment::flat_code32(0x10), Segment::flat_data(0x18));
        state.segments.tr = Segment { limit: 0x67, attributes: 0x8b, selector: 0, base: 0 };
        state.rip = u64::from(entry);
        state
    }

    /// 64-bit mode with paging through the 4-level tables at `page_tables` (a physical address), interrupts off,
    /// at `entry`: what the 64-bit Linux boot protocol hands over.
    pub fn long_mode(entry: u64, page_tables: u64) -> Self {
        let mut state = Self::protected_mode(0);
        state.cr0 |= cr0::PG | cr0::WP;
        state.cr3 = page_tables;
        state.cr4 = cr4::PAE;
        state.msrs.efer = efer::LME | efer::LMA | efer::NXE;
        state.segments.set_flat(Segment::flat_code64(0x10), Segment::flat_data(0x18));
        state.rip = entry;
        state
    }

    /// The current privilege level: 0 in real mode, whatever the stack segment's attributes say.
    pub fn cpl(&self) -> u8 {
        if self.cr0 & cr0::PE == 0 { 0 } else { self.segments.ss.dpl() }
    }
}
