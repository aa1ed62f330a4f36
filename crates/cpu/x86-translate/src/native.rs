//! Single instructions on the host's processor, for the interpreter: what it lacks of its own, the host has.

use std::arch::naked_asm;
use std::collections::HashMap;
use std::mem::offset_of;

use posada_x86::{Native, NativeCode, NativeMemory, NativeOperands};

use crate::fault::{Guard, Guarded};
use crate::memory::{CodeMemory, Warmth};

/// Room for some thousand instructions.
const ROOM: usize = 64 << 10;

/// Carries out single instructions.
pub(crate) struct Unit {
    memory: CodeMemory,
    known: HashMap<NativeCode, usize>,
}

/// What [`carry_out`] works on.
#[repr(C)]
struct Registers {
    memory: NativeMemory,
    ymm: *mut [[u64; 4]; 16],
    /// `rax`, `rcx`, `rdx`.
    gpr: [u64; 3],
    /// As in [`crate::context::Context::flags`].
    flags: u64,
    mxcsr: u32,
    host_mxcsr: u32,
}

impl Unit {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { memory: CodeMemory::new(ROOM, 0)?, known: HashMap::new() })
    }

    /// Where the instruction is, with a `ret` behind it.
    fn find(&mut self, code: NativeCode) -> usize {
        const RET: u8 = 0xc3;
        if let Some(at) = self.known.get(&code) {
            return *at;
        }
        let (mut bytes, len) = code.bytes();
        // There are at most seven.
        let len = len.min(bytes.len() - 1);
        bytes[len] = RET;
        if self.memory.left(Warmth::Hot) < 2 * bytes.len() {
            self.memory.clear();
            self.known.clear();
        }
        let at = self.memory.next(Warmth::Hot);
        let fits = self.memory.push(Warmth::Hot, &bytes[..=len]);
        assert!(fits, "there was room");
        self.known.insert(code, at);
        at
    }
}

/// CF, PF, AF, ZF and SF: what `lahf` gives.
const LAHF: u64 = 0xd5;

impl Native for Unit {
    fn carry_out(&mut self, code: NativeCode, operands: &mut NativeOperands<'_>) -> bool {
        let code = self.find(code);
        let mut registers = Registers {
            memory: operands.memory,
            ymm: operands.ymm,
            gpr: operands.gpr,
            flags: (operands.flags & LAHF) << 8 | operands.flags >> 11 & 1,
            mxcsr: operands.mxcsr,
            host_mxcsr: 0,
        };
        let (start, len) = self.memory.range();
        // SAFETY: `recover` is good to call at any time.
        let guard = unsafe { Guard::new(Guarded { start, len, recover, whose: std::ptr::null() }) };
        // SAFETY: `code` is an instruction that the interpreter has made: it reads and writes `[rdi]`, vector
        // registers, `rax`, `rcx` and `rdx`, and no more, and the model announces it, so that the host has it.
        let raised = unsafe { carry_out(code, &raw mut registers) };
        drop(guard);
        operands.memory = registers.memory;
        operands.gpr = registers.gpr;
        operands.flags = registers.flags >> 8 & LAHF | (registers.flags & 1) << 11;
        operands.mxcsr = registers.mxcsr;
        raised == 0
    }
}

/// Where an instruction goes on that has raised an exception.
///
/// # Safety
/// None is needed.
#[allow(clippy::unnecessary_wraps)] // It has the type of all such functions.
unsafe fn recover(_: *const (), _: usize) -> Option<usize> {
    Some(raised as *const () as usize)
}

/// Takes the place of an instruction that has raised an exception: says so, and returns to [`carry_out`].
#[unsafe(naked)]
unsafe extern "C" fn raised() {
    naked_asm!("mov r9d, 1", "ret")
}

/// Calls one instruction at `code`; returns whether it has raised an exception.
///
/// # Safety
/// `registers` must be valid, and the code keep to them.
#[unsafe(naked)]
unsafe extern "C" fn carry_out(code: usize, registers: *mut Registers) -> u32 {
    naked_asm!(
        "push rbx",
        "mov rbx, rsi",
        "mov r10, rdi",
        "mov r8, [rbx + {ymm}]",
        "stmxcsr [rbx + {host_mxcsr}]",
        "ldmxcsr [rbx + {mxcsr}]",
        "vmovdqu ymm0, [r8]",
        "vmovdqu ymm1, [r8 + 0x20]",
        "vmovdqu ymm2, [r8 + 0x40]",
        "vmovdqu ymm3, [r8 + 0x60]",
        "vmovdqu ymm4, [r8 + 0x80]",
        "vmovdqu ymm5, [r8 + 0xa0]",
        "vmovdqu ymm6, [r8 + 0xc0]",
        "vmovdqu ymm7, [r8 + 0xe0]",
        "vmovdqu ymm8, [r8 + 0x100]",
        "vmovdqu ymm9, [r8 + 0x120]",
        "vmovdqu ymm10, [r8 + 0x140]",
        "vmovdqu ymm11, [r8 + 0x160]",
        "vmovdqu ymm12, [r8 + 0x180]",
        "vmovdqu ymm13, [r8 + 0x1a0]",
        "vmovdqu ymm14, [r8 + 0x1c0]",
        "vmovdqu ymm15, [r8 + 0x1e0]",
        "mov rdi, rbx",
        "mov r9d, 0",
        "movzx eax, word ptr [rbx + {flags}]",
        "add al, 0x7f",
        "sahf",
        "mov rax, [rbx + {gpr}]",
        "mov rcx, [rbx + {gpr} + 8]",
        "mov rdx, [rbx + {gpr} + 16]",
        "call r10",
        "mov [rbx + {gpr}], rax",
        "mov [rbx + {gpr} + 8], rcx",
        "mov [rbx + {gpr} + 16], rdx",
        "lahf",
        "seto al",
        "mov [rbx + {flags}], ax",
        "vmovdqu [r8], ymm0",
        "vmovdqu [r8 + 0x20], ymm1",
        "vmovdqu [r8 + 0x40], ymm2",
        "vmovdqu [r8 + 0x60], ymm3",
        "vmovdqu [r8 + 0x80], ymm4",
        "vmovdqu [r8 + 0xa0], ymm5",
        "vmovdqu [r8 + 0xc0], ymm6",
        "vmovdqu [r8 + 0xe0], ymm7",
        "vmovdqu [r8 + 0x100], ymm8",
        "vmovdqu [r8 + 0x120], ymm9",
        "vmovdqu [r8 + 0x140], ymm10",
        "vmovdqu [r8 + 0x160], ymm11",
        "vmovdqu [r8 + 0x180], ymm12",
        "vmovdqu [r8 + 0x1a0], ymm13",
        "vmovdqu [r8 + 0x1c0], ymm14",
        "vmovdqu [r8 + 0x1e0], ymm15",
        "stmxcsr [rbx + {mxcsr}]",
        "ldmxcsr [rbx + {host_mxcsr}]",
        "vzeroupper",
        "mov eax, r9d",
        "pop rbx",
        "ret",
        ymm = const offset_of!(Registers, ymm),
        gpr = const offset_of!(Registers, gpr),
        flags = const offset_of!(Registers, flags),
        mxcsr = const offset_of!(Registers, mxcsr),
        host_mxcsr = const offset_of!(Registers, host_mxcsr),
    )
}
