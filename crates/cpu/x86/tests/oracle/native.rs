//! Carries a case out on the host's processor.
//!
//! The child is any program at all, stopped in its tracks: everything it had mapped is unmapped, the case's
//! memory mapped instead, and from then on it only ever runs cases. Linux resumes it with whatever registers it
//! is given, a 32-bit code segment included.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::libc::{PTRACE_GETREGSET, PTRACE_SETREGSET};
use nix::libc::{user_fpregs_struct, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::ptrace::regset::NT_PRFPREG;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use posada_vcpu::x86::{X87, X87Register};

use super::generate::is_wide;
use super::{CODE, Case, End, MEMORY, Memory, Outcome, Region, Registers, Rights, STACK, selector};

/// `int3`.
const BREAKPOINT: u8 = 0xcc;
/// Where the child keeps the instructions that make its system calls, and clear its flags: out of cases' reach.
const TRAMPOLINE: u64 = 0x5a5a_0000_0000;
const CLEAR_FLAGS: u64 = TRAMPOLINE + 8;

/// Waits until the child stops, through whatever signals this process gets.
fn wait(pid: Pid) -> nix::Result<WaitStatus> {
    loop {
        match waitpid(pid, None) {
            Err(Errno::EINTR) => {}
            stopped => return stopped,
        }
    }
}

/// A child process that runs cases. All calls must come from the thread that made it.
pub struct Native {
    child: Child,
    pid: Pid,
    memory: File,
    /// What lies in the memory that only `ptrace` can write, a word at a time.
    words: BTreeMap<u64, i64>,
    registers: user_regs_struct,
    floating: user_fpregs_struct,
}

impl Drop for Native {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Native {
    /// Starts the child.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new("cat")
            // The kernel would go on writing to an area of the C library that is about to be unmapped.
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // Once it answers, it has started up and waits for more.
        let (Some(input), Some(output)) = (&mut child.stdin, &mut child.stdout) else {
            return Err(io::Error::other("the child has no pipes"));
        };
        input.write_all(b"?")?;
        output.read_exact(&mut [0])?;
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process number"));
        ptrace::attach(pid)?;
        wait(pid)?;
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_EXITKILL)?;
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let registers = ptrace::getregs(pid)?;
        let floating = ptrace::getregset::<NT_PRFPREG>(pid)?;
        let mut native = Self { child, pid, memory, words: BTreeMap::new(), registers, floating };
        native.settle()?;
        Ok(native)
    }

    /// Replaces everything that the child has mapped by what cases need.
    fn settle(&mut self) -> io::Result<()> {
        const SYSCALL: [u8; 8] =
            [0x0f, 0x05, BREAKPOINT, BREAKPOINT, BREAKPOINT, BREAKPOINT, BREAKPOINT, BREAKPOINT];
        // Somewhere in a code page: it is not needed any more.
        self.write_word(self.registers.rip, i64::from_le_bytes(SYSCALL))?;
        let trampoline = Region { start: TRAMPOLINE, size: 0x1000, rights: Rights::Execute };
        self.map(trampoline)?;
        self.write_word(TRAMPOLINE, i64::from_le_bytes(SYSCALL))?;
        // `push 2`, `popfq`.
        let clear = [0x6a, 2, 0x9d, BREAKPOINT, BREAKPOINT, BREAKPOINT, BREAKPOINT, BREAKPOINT];
        self.write_word(CLEAR_FLAGS, i64::from_le_bytes(clear))?;
        self.registers.rip = TRAMPOLINE;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid))?;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let Some((start, end)) = range else { continue };
            let parse = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
            let (start, end) = (parse(start)?, parse(end)?);
            if start != TRAMPOLINE && start < 1 << 47 {
                const MUNMAP: u64 = 11;
                // The kernel may insist on keeping its own pages there.
                let _ = self.system_call(MUNMAP, [start, end - start, 0, 0, 0, 0]);
            }
        }
        self.map(CODE)?;
        for region in MEMORY {
            self.map(region)?;
        }
        self.write_protected(CODE.start, &vec![BREAKPOINT; CODE.size as usize])?;
        self.clear_flags()
    }

    fn write_word(&mut self, address: u64, word: i64) -> io::Result<()> {
        Ok(ptrace::write(self.pid, address as ptrace::AddressType, word)?)
    }

    /// Writes memory that the child itself may not write. Few words differ from one case to the next.
    fn write_protected(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let first = address & !7;
        let end = address + bytes.len() as u64;
        for at in (first..end).step_by(8) {
            let old = self.words.get(&at).copied().unwrap_or_default();
            let mut new = old.to_le_bytes();
            for (n, byte) in new.iter_mut().enumerate() {
                let index = (at + n as u64).wrapping_sub(address);
                if let Some(value) = bytes.get(index as usize) {
                    *byte = *value;
                }
            }
            let new = i64::from_le_bytes(new);
            if new != old {
                self.write_word(at, new)?;
                self.words.insert(at, new);
            }
        }
        Ok(())
    }

    fn map(&mut self, region: Region) -> io::Result<()> {
        const MMAP: u64 = 9;
        const PRIVATE_ANONYMOUS_FIXED: u64 = 0x32;
        let protection = match region.rights {
            Rights::Execute => 5,
            Rights::ReadWrite => 3,
            Rights::Read => 1,
        };
        let none = u64::MAX;
        self.system_call(MMAP, [region.start, region.size, protection, PRIVATE_ANONYMOUS_FIXED, none, 0])
            .map(drop)
    }

    fn system_call(&mut self, number: u64, arguments: [u64; 6]) -> io::Result<u64> {
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let orig_rax = u64::MAX;
        let call = user_regs_struct { rax: number, rdi, rsi, rdx, r10, r8, r9, orig_rax, ..self.registers };
        ptrace::setregs(self.pid, call)?;
        self.resume()?;
        let result = ptrace::getregs(self.pid)?.rax;
        if (result as i64) < 0 {
            return Err(io::Error::from_raw_os_error(-(result as i64) as i32));
        }
        Ok(result)
    }

    /// Clears the flags that `ptrace` does not set: a program may have set `rflags.ID`.
    fn clear_flags(&mut self) -> io::Result<()> {
        let clear = user_regs_struct { rip: CLEAR_FLAGS, rsp: STACK.end(), ..self.registers };
        ptrace::setregs(self.pid, clear)?;
        self.resume().map(drop)
    }

    /// Lets the child run up to its next signal, which it never gets to see.
    fn resume(&mut self) -> io::Result<Signal> {
        ptrace::cont(self.pid, None)?;
        match wait(self.pid)? {
            WaitStatus::Stopped(_, signal) => Ok(signal),
            other => Err(io::Error::other(format!("the native process ended: {other:?}"))),
        }
    }

    /// The child's process number, for those who must interrupt it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Carries out `case`, whose flags must be among the [`settable_flags`].
    pub fn run(&mut self, case: &Case) -> io::Result<Outcome> {
        self.write_protected(case.before.rip, &case.code)?;
        for region in MEMORY {
            let bytes = case.memory.of(&region);
            match region.rights {
                Rights::ReadWrite => self.memory.write_all_at(bytes, region.start)?,
                _ => self.write_protected(region.start, bytes)?,
            }
        }
        let before = &case.before;
        // The x87 and SSE registers have the 64-bit layout only while the code segment is a 64-bit one.
        ptrace::setregs(self.pid, self.registers)?;
        ptrace::setregset::<NT_PRFPREG>(self.pid, to_floating(before, &self.floating))?;
        if is_wide() {
            self.change_extended(|area| put_upper(area, before))?;
        }
        ptrace::setregs(self.pid, to_registers(before))?;
        let signal = self.resume()?;
        let registers = ptrace::getregs(self.pid)?;
        let end = self.end(signal)?;
        ptrace::setregs(self.pid, self.registers)?;
        let floating = ptrace::getregset::<NT_PRFPREG>(self.pid)?;
        let mut upper = [[0; 2]; 16];
        if is_wide() {
            take_upper(&self.extended()?, &mut upper);
        }
        let mut memory = Memory(Vec::with_capacity(case.memory.0.len()));
        for region in MEMORY {
            let mut bytes = vec![0; region.size as usize];
            self.memory.read_exact_at(&mut bytes, region.start)?;
            memory.0.append(&mut bytes);
        }
        self.write_protected(before.rip, &vec![BREAKPOINT; case.code.len()])?;
        if registers.eflags & posada_vcpu::x86::rflags::ID != 0 {
            self.clear_flags()?;
        }
        let after = Registers { upper, ..from_registers(&registers, &floating) };
        Ok(Outcome { end, after, memory })
    }

    /// The area of `xsave` with the child's state.
    fn extended(&self) -> io::Result<Vec<u8>> {
        let mut area = vec![0; EXTENDED];
        let len = self.extended_request(PTRACE_GETREGSET, &mut area)?;
        area.truncate(len);
        Ok(area)
    }

    fn change_extended(&self, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut area = self.extended()?;
        change(&mut area);
        self.extended_request(PTRACE_SETREGSET, &mut area).map(drop)
    }

    #[allow(unsafe_code)]
    fn extended_request(&self, request: u32, area: &mut [u8]) -> io::Result<usize> {
        const NT_X86_XSTATE: usize = 0x202;
        let mut vector = nix::libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        let pid = self.pid.as_raw();
        // SAFETY: the vector describes the area, which lives longer than the call.
        let result = unsafe { nix::libc::ptrace(request, pid, NT_X86_XSTATE, &raw mut vector) };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(vector.iov_len) }
    }

    fn end(&self, signal: Signal) -> io::Result<End> {
        const KERNEL: i32 = 0x80;
        let info = ptrace::getsiginfo(self.pid)?;
        Ok(match (signal, info.si_code) {
            (Signal::SIGFPE, 1) => End::Divide,
            (Signal::SIGFPE, _) => End::FloatingPoint,
            (Signal::SIGTRAP, KERNEL) => End::Breakpoint,
            (Signal::SIGTRAP, _) => End::Debug,
            (Signal::SIGILL, _) => End::Invalid,
            (Signal::SIGSEGV, KERNEL) => End::Protection,
            (Signal::SIGSEGV, code @ (1 | 2)) => {
                End::Page { address: fault_address(&info), present: code == 2 }
            }
            (Signal::SIGBUS, KERNEL) => End::Segment,
            (Signal::SIGBUS, 1) => End::Alignment,
            (Signal::SIGUSR1, _) => End::Endless,
            (signal, code) => End::Other(signal as i32, code),
        })
    }
}

/// More than the area of any processor.
const EXTENDED: usize = 16 << 10;
/// Where the area says what is in it, and where the upper halves of the YMM registers are.
const PRESENT: usize = 512;
const UPPER: usize = 576;

fn put_upper(area: &mut [u8], r: &Registers) {
    area[PRESENT] |= 7;
    for (bytes, half) in area[UPPER..].chunks_exact_mut(8).zip(r.upper.iter().flatten()) {
        bytes.copy_from_slice(&half.to_le_bytes());
    }
}

fn take_upper(area: &[u8], upper: &mut [[u64; 2]; 16]) {
    if area[PRESENT] & 4 == 0 {
        return;
    }
    for (bytes, half) in area[UPPER..].as_chunks::<8>().0.iter().zip(upper.iter_mut().flatten()) {
        *half = u64::from_le_bytes(*bytes);
    }
}

/// The address in a SIGSEGV.
#[allow(unsafe_code)]
fn fault_address(info: &nix::libc::siginfo_t) -> u64 {
    // SAFETY: the kernel has filled in the address field: this is a SIGSEGV that a page fault has raised.
    unsafe { info.si_addr() as u64 }
}

fn to_registers(r: &Registers) -> user_regs_struct {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = r.gpr;
    let [es, cs, ss, ds, fs, gs] = r.selectors.map(u64::from);
    user_regs_struct {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        es,
        cs,
        ss,
        ds,
        fs,
        gs,
        rip: r.rip,
        eflags: r.rflags,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        orig_rax: u64::MAX,
    }
}

/// The layout of `fxsave` (AMD APM volume 1, section 11.4.4), but tags and registers as [`X87`] has them.
fn to_floating(r: &Registers, base: &user_fpregs_struct) -> user_fpregs_struct {
    let mut f = *base;
    (f.cwd, f.swd, f.ftw) = (r.x87.control, r.x87.status, u16::from(r.x87.occupied));
    (f.fop, f.rip, f.rdp, f.mxcsr) = (0, 0, 0, r.mxcsr);
    let top = usize::from(r.x87.status >> 11 & 7);
    for n in 0..8 {
        let register = r.x87.registers[(top + n) % 8];
        f.st_space[n * 4] = register.significand as u32;
        f.st_space[n * 4 + 1] = (register.significand >> 32) as u32;
        f.st_space[n * 4 + 2] = u32::from(register.sign_exponent);
        f.st_space[n * 4 + 3] = 0;
    }
    for (n, half) in r.xmm.iter().flatten().enumerate() {
        f.xmm_space[n * 2] = *half as u32;
        f.xmm_space[n * 2 + 1] = (half >> 32) as u32;
    }
    f
}

fn from_registers(r: &user_regs_struct, f: &user_fpregs_struct) -> Registers {
    // The pointers are not there: AMD's processors save them only while an exception waits.
    let mut x87 = X87 { control: f.cwd, status: f.swd, occupied: f.ftw as u8, ..X87::default() };
    let top = usize::from(f.swd >> 11 & 7);
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    for n in 0..8 {
        x87.registers[(top + n) % 8] = X87Register {
            significand: pair(f.st_space[n * 4], f.st_space[n * 4 + 1]),
            sign_exponent: f.st_space[n * 4 + 2] as u16,
        };
    }
    let half = |n: usize| pair(f.xmm_space[n * 2], f.xmm_space[n * 2 + 1]);
    Registers {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.eflags,
        selectors: [r.es, r.cs, r.ss, r.ds, r.fs, r.gs].map(|selector| selector as u16),
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        x87,
        xmm: std::array::from_fn(|n| [half(n * 2), half(n * 2 + 1)]),
        upper: [[0; 2]; 16],
        mxcsr: f.mxcsr,
    }
}

/// The flags that `ptrace` sets; the others are what a program of Linux has.
pub fn settable_flags(rflags: u64) -> u64 {
    use posada_vcpu::x86::rflags as f;
    const SETTABLE: u64 = f::ARITHMETIC | f::TF | f::DF | f::RF | f::AC | f::NT;
    rflags & SETTABLE | f::FIXED | f::IF
}

/// The segment registers of a program of Linux.
pub fn selectors(bits: u32) -> [u16; 6] {
    if bits == 64 {
        [0, selector::CODE64, selector::DATA, 0, 0, 0]
    } else {
        [selector::DATA, selector::CODE32, selector::DATA, selector::DATA, 0, 0]
    }
}
