//! The ways into translated code and out of it, and the one call that it makes on the way.
//!
//! While translated code runs, the host's `gs` base is the [`Context`]'s address; guest registers are in the host's
//! as [`crate::registers`] says; the arithmetic flags are the guest's; `rsp` is the host's stack, to which
//! translated code has nothing to add. In a user's view the vector registers and `mxcsr` are the guest's, too; in
//! a supervisor's, who hardly ever uses them, they stay in memory.

use std::arch::naked_asm;
use std::mem::offset_of;

use crate::context::{Context, Routines};

/// Why translated code was left: the low two bits of what [`enter`] returns.
pub(crate) mod reason {
    /// The instruction at `rip` is for the interpreter.
    pub(crate) const INTERPRET: u32 = 0;
    /// The jump that the other bits number leads to `rip`, and may be tied to what is there.
    pub(crate) const TIE: u32 = 1;
    /// Attention was asked for.
    pub(crate) const ATTENTION: u32 = 2;
    /// Go on at `rip`.
    pub(crate) const CONTINUE: u32 = 3;
}

/// The routines, for translated code to find.
pub(crate) fn routines(access: unsafe extern "C" fn(*mut Context, u64, u32) -> u64) -> Routines {
    Routines {
        leave: [leave as *const () as usize, leave_with_vectors as *const () as usize],
        slow_access: [slow_access as *const () as usize, slow_access_with_vectors as *const () as usize],
        access: access as *const () as usize,
    }
}

/// Runs translated code at `code` until it leaves; returns why, and `Context::rip` says where.
///
/// # Safety
/// `gs` must be based at a valid context, which nothing else uses meanwhile, and `code` be translated code of a view
/// whose vector registers are not in the host's.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn enter(code: usize) -> u32 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov gs:[{host_rsp}], rsp",
        "mov r11, rdi",
        "movzx eax, word ptr gs:[{flags}]",
        "add al, 0x7f",
        "sahf",
        "mov rax, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rbx, gs:[{gpr} + 0x18]",
        "mov r15, gs:[{gpr} + 0x20]",
        "mov rbp, gs:[{gpr} + 0x28]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r8, gs:[{gpr} + 0x40]",
        "mov r9, gs:[{gpr} + 0x48]",
        "mov r12, gs:[{gpr} + 0x60]",
        "mov r13, gs:[{gpr} + 0x68]",
        "mov r14, gs:[{gpr} + 0x70]",
        "jmp r11",
        host_rsp = const offset_of!(Context, host_rsp),
        flags = const offset_of!(Context, flags),
        gpr = const offset_of!(Context, gpr),
    )
}

/// [`enter`] for code of a view whose vector registers are in the host's.
///
/// # Safety
/// As for [`enter`], but for the view; the host has AVX.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn enter_with_vectors(code: usize) -> u32 {
    naked_asm!(
        "stmxcsr gs:[{host_mxcsr}]",
        "ldmxcsr gs:[{mxcsr}]",
        "mov rax, gs:[{ymm}]",
        "vmovdqu ymm0, [rax]",
        "vmovdqu ymm1, [rax + 0x20]",
        "vmovdqu ymm2, [rax + 0x40]",
        "vmovdqu ymm3, [rax + 0x60]",
        "vmovdqu ymm4, [rax + 0x80]",
        "vmovdqu ymm5, [rax + 0xa0]",
        "vmovdqu ymm6, [rax + 0xc0]",
        "vmovdqu ymm7, [rax + 0xe0]",
        "vmovdqu ymm8, [rax + 0x100]",
        "vmovdqu ymm9, [rax + 0x120]",
        "vmovdqu ymm10, [rax + 0x140]",
        "vmovdqu ymm11, [rax + 0x160]",
        "vmovdqu ymm12, [rax + 0x180]",
        "vmovdqu ymm13, [rax + 0x1a0]",
        "vmovdqu ymm14, [rax + 0x1c0]",
        "vmovdqu ymm15, [rax + 0x1e0]",
        "jmp {enter}",
        ymm = const offset_of!(Context, ymm),
        mxcsr = const offset_of!(Context, mxcsr),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        enter = sym enter,
    )
}

/// Puts all guest registers where the context has them. Changes `rax`.
macro_rules! save_registers {
    () => {
        "mov gs:[{gpr} + 0x00], rax
         lahf
         seto al
         mov gs:[{flags}], ax
         mov gs:[{gpr} + 0x08], rcx
         mov gs:[{gpr} + 0x10], rdx
         mov gs:[{gpr} + 0x18], rbx
         mov gs:[{gpr} + 0x20], r15
         mov gs:[{gpr} + 0x28], rbp
         mov gs:[{gpr} + 0x30], rsi
         mov gs:[{gpr} + 0x38], rdi
         mov gs:[{gpr} + 0x40], r8
         mov gs:[{gpr} + 0x48], r9
         mov gs:[{gpr} + 0x60], r12
         mov gs:[{gpr} + 0x68], r13
         mov gs:[{gpr} + 0x70], r14"
    };
}

/// Puts the vector registers where the context has them, and the host's control register back. Changes `rax`.
macro_rules! save_vectors {
    () => {
        "mov rax, gs:[{ymm}]
         vmovdqu [rax], ymm0
         vmovdqu [rax + 0x20], ymm1
         vmovdqu [rax + 0x40], ymm2
         vmovdqu [rax + 0x60], ymm3
         vmovdqu [rax + 0x80], ymm4
         vmovdqu [rax + 0xa0], ymm5
         vmovdqu [rax + 0xc0], ymm6
         vmovdqu [rax + 0xe0], ymm7
         vmovdqu [rax + 0x100], ymm8
         vmovdqu [rax + 0x120], ymm9
         vmovdqu [rax + 0x140], ymm10
         vmovdqu [rax + 0x160], ymm11
         vmovdqu [rax + 0x180], ymm12
         vmovdqu [rax + 0x1a0], ymm13
         vmovdqu [rax + 0x1c0], ymm14
         vmovdqu [rax + 0x1e0], ymm15
         vzeroupper
         stmxcsr gs:[{mxcsr}]
         ldmxcsr gs:[{host_mxcsr}]"
    };
}

/// Ends [`enter`]: `r11d` is what it returns, `r10` the next instruction's distance from the running page.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!(
        save_registers!(),
        "add r10, gs:[{base}]",
        "mov gs:[{rip}], r10",
        "mov eax, r11d",
        "mov rsp, gs:[{host_rsp}]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        gpr = const offset_of!(Context, gpr),
        flags = const offset_of!(Context, flags),
        base = const offset_of!(Context, code_base),
        rip = const offset_of!(Context, rip),
        host_rsp = const offset_of!(Context, host_rsp),
    )
}

/// [`leave`], from code of a view whose vector registers are in the host's.
#[unsafe(naked)]
unsafe extern "C" fn leave_with_vectors() {
    naked_asm!(
        "mov gs:[{gpr} + 0x00], rax",
        save_vectors!(),
        "mov rax, gs:[{gpr} + 0x00]",
        "jmp {leave}",
        gpr = const offset_of!(Context, gpr),
        ymm = const offset_of!(Context, ymm),
        mxcsr = const offset_of!(Context, mxcsr),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        leave = sym leave,
    )
}

/// Called by translated code whose look into the TLB was in vain, with the linear address in `r10` and
/// [`crate::translator::Access`] in `r11d`. Returns the host's address in `r10`, or leaves translated code in front
/// of the instruction, which then is for the interpreter. Changes `r11` and the flags.
#[unsafe(naked)]
unsafe extern "C" fn slow_access() {
    naked_asm!(
        save_registers!(),
        "mov rdi, gs:[{context}]",
        "mov rsi, r10",
        "mov edx, r11d",
        "mov ebx, r11d",
        "sub rsp, 8",
        "call gs:[{access}]",
        "add rsp, 8",
        "test rax, rax",
        "jz 2f",
        "mov r10, rax",
        "mov rax, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rbx, gs:[{gpr} + 0x18]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r8, gs:[{gpr} + 0x40]",
        "mov r9, gs:[{gpr} + 0x48]",
        "ret",
        "2:",
        "shr ebx, 16",
        "add rbx, gs:[{base}]",
        "mov gs:[{rip}], rbx",
        "xor eax, eax",
        "mov rsp, gs:[{host_rsp}]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        gpr = const offset_of!(Context, gpr),
        flags = const offset_of!(Context, flags),
        base = const offset_of!(Context, code_base),
        rip = const offset_of!(Context, rip),
        host_rsp = const offset_of!(Context, host_rsp),
        context = const offset_of!(Context, myself),
        access = const offset_of!(Context, routines.access),
    )
}

/// [`slow_access`], from code of a view whose vector registers are in the host's.
#[unsafe(naked)]
unsafe extern "C" fn slow_access_with_vectors() {
    naked_asm!(
        "mov gs:[{gpr} + 0x00], rax",
        save_vectors!(),
        "mov rax, gs:[{gpr} + 0x00]",
        // Without a change of the flags.
        "lea rsp, [rsp - 8]",
        "call {slow_access}",
        "lea rsp, [rsp + 8]",
        // The flags are lost anyway, and `r11` is free.
        "mov r11, gs:[{ymm}]",
        "vmovdqu ymm0, [r11]",
        "vmovdqu ymm1, [r11 + 0x20]",
        "vmovdqu ymm2, [r11 + 0x40]",
        "vmovdqu ymm3, [r11 + 0x60]",
        "vmovdqu ymm4, [r11 + 0x80]",
        "vmovdqu ymm5, [r11 + 0xa0]",
        "vmovdqu ymm6, [r11 + 0xc0]",
        "vmovdqu ymm7, [r11 + 0xe0]",
        "vmovdqu ymm8, [r11 + 0x100]",
        "vmovdqu ymm9, [r11 + 0x120]",
        "vmovdqu ymm10, [r11 + 0x140]",
        "vmovdqu ymm11, [r11 + 0x160]",
        "vmovdqu ymm12, [r11 + 0x180]",
        "vmovdqu ymm13, [r11 + 0x1a0]",
        "vmovdqu ymm14, [r11 + 0x1c0]",
        "vmovdqu ymm15, [r11 + 0x1e0]",
        "ldmxcsr gs:[{mxcsr}]",
        "ret",
        gpr = const offset_of!(Context, gpr),
        ymm = const offset_of!(Context, ymm),
        mxcsr = const offset_of!(Context, mxcsr),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        slow_access = sym slow_access,
    )
}
