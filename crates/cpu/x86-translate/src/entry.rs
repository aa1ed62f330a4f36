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
}

/// The routines, for translated code to find.
pub(crate) fn routines(access: Helper, helper: Helper) -> Routines {
    Routines {
        leave: [leave as *const () as usize, leave_with_vectors as *const () as usize],
        slow_access: [slow_access as *const () as usize, slow_access_with_vectors as *const () as usize],
        help: [help as *const () as usize, help_with_vectors as *const () as usize],
        x87: load_x87 as *const () as usize,
        access: access as *const () as usize,
        helper: helper as *const () as usize,
    }
}

/// What translated code has done outside: with an address or another number, and what to do.
pub(crate) type Helper = unsafe extern "C" fn(*mut Context, u64, u32) -> u64;

/// Takes the vector registers from where the address in a register says.
macro_rules! load_vectors {
    ($at:literal) => {
        concat!(
            "vmovdqu xmm0, [",
            $at,
            " + 0x0]\n",
            "vmovdqu xmm1, [",
            $at,
            " + 0x20]\n",
            "vmovdqu xmm2, [",
            $at,
            " + 0x40]\n",
            "vmovdqu xmm3, [",
            $at,
            " + 0x60]\n",
            "vmovdqu xmm4, [",
            $at,
            " + 0x80]\n",
            "vmovdqu xmm5, [",
            $at,
            " + 0xa0]\n",
            "vmovdqu xmm6, [",
            $at,
            " + 0xc0]\n",
            "vmovdqu xmm7, [",
            $at,
            " + 0xe0]\n",
            "vmovdqu xmm8, [",
            $at,
            " + 0x100]\n",
            "vmovdqu xmm9, [",
            $at,
            " + 0x120]\n",
            "vmovdqu xmm10, [",
            $at,
            " + 0x140]\n",
            "vmovdqu xmm11, [",
            $at,
            " + 0x160]\n",
            "vmovdqu xmm12, [",
            $at,
            " + 0x180]\n",
            "vmovdqu xmm13, [",
            $at,
            " + 0x1a0]\n",
            "vmovdqu xmm14, [",
            $at,
            " + 0x1c0]\n",
            "vmovdqu xmm15, [",
            $at,
            " + 0x1e0]\n",
        )
    };
}

/// What [`Routines::x87`] is while the guest's state is not loaded.
pub(crate) fn load_x87_routine() -> usize {
    load_x87 as *const () as usize
}

/// Loads the guest's x87 state; then there is nothing to do until it is taken away. Changes no register.
#[unsafe(naked)]
unsafe extern "C" fn load_x87() {
    naked_asm!(
        "mov gs:[{scratch}], rax",
        "mov gs:[{scratch} + 8], rdx",
        "mov eax, 1",
        "mov edx, 0",
        "xrstor64 gs:[{area}]",
        "lea rax, [rip + 2f]",
        "mov gs:[{x87}], rax",
        "mov qword ptr gs:[{loaded}], 1",
        "mov rax, gs:[{scratch}]",
        "mov rdx, gs:[{scratch} + 8]",
        "2:",
        "ret",
        scratch = const offset_of!(Context, scratch),
        area = const offset_of!(Context, x87),
        x87 = const offset_of!(Context, routines.x87),
        loaded = const offset_of!(Context, x87_loaded),
    )
}

/// Runs translated code at `code`, an entry for saved flags, until it leaves; returns why, and `Context::rip` says where.
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
        load_vectors!("rax"),
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
         vmovdqu [rax], xmm0
         vmovdqu [rax + 0x20], xmm1
         vmovdqu [rax + 0x40], xmm2
         vmovdqu [rax + 0x60], xmm3
         vmovdqu [rax + 0x80], xmm4
         vmovdqu [rax + 0xa0], xmm5
         vmovdqu [rax + 0xc0], xmm6
         vmovdqu [rax + 0xe0], xmm7
         vmovdqu [rax + 0x100], xmm8
         vmovdqu [rax + 0x120], xmm9
         vmovdqu [rax + 0x140], xmm10
         vmovdqu [rax + 0x160], xmm11
         vmovdqu [rax + 0x180], xmm12
         vmovdqu [rax + 0x1a0], xmm13
         vmovdqu [rax + 0x1c0], xmm14
         vmovdqu [rax + 0x1e0], xmm15
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
        load_vectors!("r11"),
        "ldmxcsr gs:[{mxcsr}]",
        "ret",
        gpr = const offset_of!(Context, gpr),
        ymm = const offset_of!(Context, ymm),
        mxcsr = const offset_of!(Context, mxcsr),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        slow_access = sym slow_access,
    )
}

/// Called by translated code for [`crate::helpers`], with a number in `r10` and what to do in `r11d`. Returns the
/// answer in `r11`; changes the flags. The helper finds `rax`, `rcx`, `rdx`, `rsi`, `rdi`, `r8` and `r9` in the context,
/// and may change them there.
#[unsafe(naked)]
unsafe extern "C" fn help() {
    naked_asm!(
        "mov gs:[{gpr} + 0x00], rax",
        "mov gs:[{gpr} + 0x08], rcx",
        "mov gs:[{gpr} + 0x10], rdx",
        "mov gs:[{gpr} + 0x30], rsi",
        "mov gs:[{gpr} + 0x38], rdi",
        "mov gs:[{gpr} + 0x40], r8",
        "mov gs:[{gpr} + 0x48], r9",
        "push r10",
        "mov rdi, gs:[{context}]",
        "mov rsi, r10",
        "mov edx, r11d",
        "call gs:[{helper}]",
        "mov r11, rax",
        "pop r10",
        "mov rax, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r8, gs:[{gpr} + 0x40]",
        "mov r9, gs:[{gpr} + 0x48]",
        "ret",
        gpr = const offset_of!(Context, gpr),
        context = const offset_of!(Context, myself),
        helper = const offset_of!(Context, routines.helper),
    )
}

/// [`help`], from code of a view whose vector registers are in the host's.
#[unsafe(naked)]
unsafe extern "C" fn help_with_vectors() {
    naked_asm!(
        "mov gs:[{gpr} + 0x00], rax",
        save_vectors!(),
        "mov rax, gs:[{gpr} + 0x00]",
        "sub rsp, 8",
        "call {help}",
        "add rsp, 8",
        "push r11",
        "mov r11, gs:[{ymm}]",
        load_vectors!("r11"),
        "ldmxcsr gs:[{mxcsr}]",
        "pop r11",
        "ret",
        gpr = const offset_of!(Context, gpr),
        ymm = const offset_of!(Context, ymm),
        mxcsr = const offset_of!(Context, mxcsr),
        host_mxcsr = const offset_of!(Context, host_mxcsr),
        help = sym help,
    )
}
