//! The ways into translated code and out of it, and the one call that it makes on the way.
//!
//! While translated code runs, the host's `gs` base is the [`Context`]'s address, and so is `rsp`; guest registers are in
//! the host's as [`crate::registers`] says; the arithmetic flags are the guest's. In a user's view the vector registers and `mxcsr` are the guest's, too; in
//! a supervisor's, who hardly ever uses them, they stay in memory until they are asked for. Their upper halves are the
//! guest's only if it may use AVX; without that, they are zeros, and the guest's stay in memory.

use std::arch::naked_asm;
use std::mem::offset_of;

use crate::context::{Context, Routines};

/// Why translated code was left: what [`enter`] returns.
pub(crate) mod reason {
    /// The instruction at `rip` is for the interpreter.
    pub(crate) const INTERPRET: u32 = 0;
    /// The jump of the stub in [`Context::stub`] leads to `rip`, and may be tied to what is there.
    ///
    /// [`Context::stub`]: crate::context::Context::stub
    pub(crate) const TIE: u32 = 1;
    /// Attention was asked for.
    pub(crate) const ATTENTION: u32 = 2;
}

/// The routines, for translated code to find; `monitor` is what stubs call.
pub(crate) fn routines(monitor: Monitor, helper: Helper) -> Routines {
    Routines {
        stub: [
            stub as *const () as usize,
            stub_with_vectors as *const () as usize,
            stub_with_wide_vectors as *const () as usize,
        ],
        help: [
            help as *const () as usize,
            help_with_vectors as *const () as usize,
            help_with_wide_vectors as *const () as usize,
        ],
        x87: load_x87 as *const () as usize,
        monitor: monitor as *const () as usize,
        helper: helper as *const () as usize,
    }
}

/// What stubs call, with their number: it returns where translated code goes on, or 0 to leave it, having said in
/// the context why, and with which flags and `rip`.
pub(crate) type Monitor = unsafe extern "C" fn(*mut Context, u32) -> u64;

/// What translated code has done outside: what to do, and an answer.
pub(crate) type Helper = unsafe extern "C" fn(*mut Context, u32) -> u64;

/// One line of assembly for each of the sixteen vector registers, whose number is `\\n` in it, and where it is kept
/// `\\n * 32`.
macro_rules! for_each_vector {
    ($($line:expr),*) => {
        concat!(".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n", $($line,)* "\n.endr\n")
    };
}

/// Takes the vector registers from where the address in a register says; `$kind` is "x" for their lower halves, "y"
/// for all.
macro_rules! load_vectors {
    ($kind:literal, $at:literal) => {
        for_each_vector!("vmovdqu ", $kind, "mm\\n, [", $at, " + \\n * 32]")
    };
}

/// [`load_vectors`] for their lower halves.
macro_rules! load_lower_vectors {
    ($at:literal) => {
        load_vectors!("x", $at)
    };
}

/// [`load_vectors`] for all of them: if the upper halves are zeros, which they are for most programs, without them. The
/// host's processor then knows that they are, and instructions that leave them alone need not wait for them. Changes
/// the flags.
macro_rules! load_wide_vectors {
    ($at:literal) => {
        concat!(
            "vpxor xmm0, xmm0, xmm0\n",
            for_each_vector!("vorps xmm0, xmm0, [", $at, " + \\n * 32 + 16]"),
            "vptest xmm0, xmm0\n",
            "jnz 22f\n",
            load_vectors!("x", $at),
            "jmp 23f\n",
            "22:\n",
            load_vectors!("y", $at),
            "23:\n",
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
        "mov r10, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rbx, gs:[{gpr} + 0x18]",
        "mov r8, gs:[{gpr} + 0x20]",
        "mov rbp, gs:[{gpr} + 0x28]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r9, gs:[{gpr} + 0x48]",
        "mov r12, gs:[{gpr} + 0x60]",
        "mov r13, gs:[{gpr} + 0x68]",
        "mov r14, gs:[{gpr} + 0x70]",
        "mov r15, gs:[{gpr} + 0x78]",
        "mov rsp, gs:[{rsp}]",
        "jmp r11",
        rsp = const offset_of!(Context, rsp),
        host_rsp = const offset_of!(Context, host_rsp),
        gpr = const offset_of!(Context, gpr),
    )
}

/// Puts all guest registers where the context has them. Changes `rax`.
macro_rules! save_registers {
    () => {
        "mov gs:[{gpr} + 0x00], r10
         lahf
         seto al
         mov gs:[{flags}], ax
         mov gs:[{gpr} + 0x08], rcx
         mov gs:[{gpr} + 0x10], rdx
         mov gs:[{gpr} + 0x18], rbx
         mov gs:[{gpr} + 0x20], r8
         mov gs:[{gpr} + 0x28], rbp
         mov gs:[{gpr} + 0x30], rsi
         mov gs:[{gpr} + 0x38], rdi
         mov gs:[{gpr} + 0x48], r9
         mov gs:[{gpr} + 0x60], r12
         mov gs:[{gpr} + 0x68], r13
         mov gs:[{gpr} + 0x70], r14
         mov gs:[{gpr} + 0x78], r15"
    };
}

/// Puts the vector registers where the context has them, and the host's control register back. Changes `rax`.
macro_rules! save_vectors {
    ($kind:literal) => {
        concat!(
            "mov rax, gs:[{ymm}]\n",
            for_each_vector!("vmovdqu [rax + \\n * 32], ", $kind, "mm\\n"),
            "stmxcsr gs:[{mxcsr}]\n",
            "ldmxcsr gs:[{host_mxcsr}]\n",
        )
    };
}

/// Has [`Routines::monitor`] see to the stub that called, and leaves translated code if that says so; else `rax` is where
/// to go on.
macro_rules! call_monitor {
    () => {
        concat!(
            "pop r11
             mov r11d, [r11]
             mov rsp, gs:[{host_rsp}]
             mov gs:[{rax}], rax\n",
            save_registers!(),
            "\nmov rdi, gs:[{context}]
             mov esi, r11d
             call gs:[{monitor}]
             test rax, rax
             jz {leave}"
        )
    };
}

/// Goes on with translated code at `rax`, as a stub does.
#[unsafe(naked)]
unsafe extern "C" fn go_on() {
    naked_asm!(
        "mov r11, rax",
        "mov rax, gs:[{rax}]",
        "mov r10, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r8, gs:[{gpr} + 0x20]",
        "mov r9, gs:[{gpr} + 0x48]",
        "mov rsp, gs:[{rsp}]",
        "jmp r11",
        rsp = const offset_of!(Context, rsp),
        rax = const offset_of!(Context, rax),
        gpr = const offset_of!(Context, gpr),
    )
}

/// Ends [`enter`], with everything where the context has it.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!(
        "mov eax, gs:[{why}]",
        "mov rsp, gs:[{host_rsp}]",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        why = const offset_of!(Context, why),
        host_rsp = const offset_of!(Context, host_rsp),
    )
}

/// Called by a stub, whose number is behind the call. Has [`Routines::monitor`] see to it, and goes on where that says,
/// with other flags and another `r11`, or leaves translated code.
#[unsafe(naked)]
unsafe extern "C" fn stub() {
    naked_asm!(
        call_monitor!(),
        "jmp {go_on}",
        rax = const offset_of!(Context, rax),
        gpr = const offset_of!(Context, gpr),
        flags = const offset_of!(Context, host_flags),
        context = const offset_of!(Context, myself),
        monitor = const offset_of!(Context, routines.monitor),
        host_rsp = const offset_of!(Context, host_rsp),
        go_on = sym go_on,
        leave = sym leave,
    )
}

/// Called by translated code for [`crate::helpers`], with what to do in `r11d`. Returns the answer in `r11`; changes
/// `rax` and the flags. The helper finds `rax`, `rcx`, `rdx`, `rsp`, `rsi`, `rdi` and `r9` in the context,
/// and may change them there.
#[unsafe(naked)]
unsafe extern "C" fn help() {
    naked_asm!(
        "mov gs:[{gpr} + 0x00], r10",
        "mov gs:[{gpr} + 0x08], rcx",
        "mov gs:[{gpr} + 0x10], rdx",
        "mov gs:[{gpr} + 0x30], rsi",
        "mov gs:[{gpr} + 0x38], rdi",
        "mov gs:[{gpr} + 0x20], r8",
        "mov gs:[{gpr} + 0x48], r9",
        "pop rax",
        "mov gs:[{back}], rax",
        "mov gs:[{back} + 8], rsp",
        "mov rsp, gs:[{host_rsp}]",
        "mov rdi, gs:[{context}]",
        "mov esi, r11d",
        "call gs:[{helper}]",
        "mov r11, rax",
        "mov rsp, gs:[{back} + 8]",
        "mov r10, gs:[{gpr} + 0x00]",
        "mov rcx, gs:[{gpr} + 0x08]",
        "mov rdx, gs:[{gpr} + 0x10]",
        "mov rsi, gs:[{gpr} + 0x30]",
        "mov rdi, gs:[{gpr} + 0x38]",
        "mov r8, gs:[{gpr} + 0x20]",
        "mov r9, gs:[{gpr} + 0x48]",
        "jmp gs:[{back}]",
        gpr = const offset_of!(Context, gpr),
        back = const offset_of!(Context, back),
        host_rsp = const offset_of!(Context, host_rsp),
        context = const offset_of!(Context, myself),
        helper = const offset_of!(Context, routines.helper),
    )
}

/// The routines for code that has the vector registers in the host's: all of them, or their lower halves.
macro_rules! vector_routines {
    ($kind:literal, $load:ident, $after:literal, $enter:ident, $stub:ident, $help:ident) => {
        /// [`enter`] for code of a view whose vector registers are in the host's.
        ///
        /// # Safety
        /// As for [`enter`], but for the view; the host has AVX.
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $enter(code: usize) -> u32 {
            naked_asm!(
                "stmxcsr gs:[{host_mxcsr}]",
                "ldmxcsr gs:[{mxcsr}]",
                "mov rax, gs:[{ymm}]",
                $load!("rax"),
                "jmp {enter}",
                ymm = const offset_of!(Context, ymm),
                mxcsr = const offset_of!(Context, mxcsr),
                host_mxcsr = const offset_of!(Context, host_mxcsr),
                enter = sym enter,
            )
        }

        /// [`stub`], from code of a view whose vector registers are in the host's.
        #[unsafe(naked)]
        unsafe extern "C" fn $stub() {
            naked_asm!(
                "mov gs:[{rax}], rax",
                save_vectors!($kind),
                $after,
                "mov rax, gs:[{rax}]",
                call_monitor!(),
                "mov r11, gs:[{ymm}]",
                $load!("r11"),
                "ldmxcsr gs:[{mxcsr}]",
                "jmp {go_on}",
                rax = const offset_of!(Context, rax),
                gpr = const offset_of!(Context, gpr),
                flags = const offset_of!(Context, host_flags),
                ymm = const offset_of!(Context, ymm),
                mxcsr = const offset_of!(Context, mxcsr),
                host_mxcsr = const offset_of!(Context, host_mxcsr),
                context = const offset_of!(Context, myself),
                monitor = const offset_of!(Context, routines.monitor),
                host_rsp = const offset_of!(Context, host_rsp),
                go_on = sym go_on,
                leave = sym leave,
            )
        }

        /// [`help`], from code of a view whose vector registers are in the host's.
        #[unsafe(naked)]
        unsafe extern "C" fn $help() {
            naked_asm!(
                save_vectors!($kind),
                $after,
                "call {help}",
                "mov rax, gs:[{ymm}]",
                $load!("rax"),
                "ldmxcsr gs:[{mxcsr}]",
                "ret",
                ymm = const offset_of!(Context, ymm),
                mxcsr = const offset_of!(Context, mxcsr),
                host_mxcsr = const offset_of!(Context, host_mxcsr),
                help = sym help,
            )
        }
    };
}

vector_routines!("x", load_lower_vectors, "", enter_with_vectors, stub_with_vectors, help_with_vectors);
vector_routines!(
    "y",
    load_wide_vectors,
    "vzeroupper",
    enter_with_wide_vectors,
    stub_with_wide_vectors,
    help_with_wide_vectors
);
