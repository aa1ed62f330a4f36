//! The Linux system calls that the agent needs, on x86-64, and the few symbols that a C library would bring.
//!
//! Numbers are those of `arch/x86/entry/syscalls/syscall_64.tbl`; structures and constants those of the kernel's
//! `include/uapi`.

use core::arch::{asm, global_asm};
use core::ffi::CStr;

/// A Linux error number, positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    pub const NOENT: Self = Self(2);
    pub const INTR: Self = Self(4);
    pub const TOO_BIG: Self = Self(7);
    pub const NOEXEC: Self = Self(8);
    pub const AGAIN: Self = Self(11);
    pub const ACCES: Self = Self(13);
    pub const NOTDIR: Self = Self(20);
}

pub type Result<T> = core::result::Result<T, Errno>;

/// A file descriptor; negative means none, which poll(2) skips.
pub type Fd = i32;

pub const O_RDWR: usize = 0o2;
pub const O_NOCTTY: usize = 0o400;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_CLOEXEC: usize = 0o2_000_000;

pub const POLLIN: i16 = 0x1;
pub const POLLOUT: i16 = 0x4;
pub const POLLERR: i16 = 0x8;
pub const POLLHUP: i16 = 0x10;

pub const SIGKILL: u8 = 9;
pub const SIGPIPE: u8 = 13;

const TCGETS: usize = 0x5401;
const TCSETS: usize = 0x5402;
const TCSBRK: usize = 0x5409;
const TCFLSH: usize = 0x540b;
const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCSPTLCK: usize = 0x4004_5431;
const TIOCGPTPEER: usize = 0x5441;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: Fd,
    pub events: i16,
    pub revents: i16,
}

/// `struct termios` as TCGETS knows it (`asm-generic/termbits.h`).
#[repr(C)]
struct Termios {
    iflag: u32,
    oflag: u32,
    cflag: u32,
    lflag: u32,
    line: u8,
    cc: [u8; 19],
}

#[repr(C)]
struct WinSize {
    rows: u16,
    columns: u16,
    x_pixels: u16,
    y_pixels: u16,
}

/// One system call.
///
/// # Safety
/// Every argument that the kernel takes for a pointer must be valid for what that call does with it.
unsafe fn syscall(number: usize, a: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the kernel preserves every register but rax, rcx and r11; the caller answers for the pointers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Defines a function that is one system call without a pointer among its arguments.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) = $number:literal;)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: $type),*) -> Result<usize> {
            let mut arguments = [0_usize; 6];
            let given = [$($arg as usize),*];
            arguments[..given.len()].copy_from_slice(&given);
            // SAFETY: none of the arguments is a pointer.
            unsafe { syscall($number, arguments) }
        }
    )*};
}

calls! {
    close(fd: Fd) = 3;
    /// `dup2` on equal descriptors keeps their close-on-exec flag; the agent never calls it so.
    dup2(from: Fd, to: Fd) = 33;
    kill(process: i32, signal: u8) = 62;
    setsid(_unused: usize) = 112;
    pidfd_open(process: i32, flags: usize) = 434;
}

pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: exit_group takes no pointer and does not return.
        let _ = unsafe { syscall(231, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Makes a child, as fork(2): 0 in the child, its process id in the parent.
pub fn fork() -> Result<i32> {
    // SAFETY: no pointers. The agent has one thread, so the child may go on as the parent could.
    unsafe { syscall(57, [0; 6]) }.map(|id| id as i32)
}

pub fn open(path: &CStr, flags: usize) -> Result<Fd> {
    // SAFETY: `path` is a C string.
    unsafe { syscall(2, [path.as_ptr() as usize, flags, 0, 0, 0, 0]) }.map(|fd| fd as Fd)
}

pub fn chdir(path: &CStr) -> Result<()> {
    // SAFETY: `path` is a C string.
    unsafe { syscall(80, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

pub fn read(fd: Fd, into: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`.
    unsafe { syscall(0, [fd as usize, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) }
}

pub fn write(fd: Fd, from: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most `from.len()` bytes from `from`.
    unsafe { syscall(1, [fd as usize, from.as_ptr() as usize, from.len(), 0, 0, 0]) }
}

/// Waits, without limit, until one of `fds` is ready.
pub fn poll(fds: &mut [PollFd]) -> Result<usize> {
    // SAFETY: the kernel reads and writes `fds.len()` entries.
    unsafe { syscall(7, [fds.as_mut_ptr() as usize, fds.len(), usize::MAX, 0, 0, 0]) }
}

/// A pipe, closed on exec: its read end and its write end.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut ends: [Fd; 2] = [-1, -1];
    // SAFETY: the kernel writes two descriptors.
    unsafe { syscall(293, [ends.as_mut_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]) }?;
    Ok((ends[0], ends[1]))
}

pub fn set_nonblocking(fd: Fd) -> Result<()> {
    const F_GETFL: usize = 3;
    const F_SETFL: usize = 4;
    // SAFETY: fcntl takes no pointer for these two commands.
    unsafe {
        let flags = syscall(72, [fd as usize, F_GETFL, 0, 0, 0, 0])?;
        syscall(72, [fd as usize, F_SETFL, flags | O_NONBLOCK, 0, 0, 0]).map(drop)
    }
}

/// The wait status of child `process`, which has ended.
pub fn wait(process: i32) -> Result<i32> {
    let mut status = 0_i32;
    // SAFETY: the kernel writes one `int`.
    unsafe { syscall(61, [process as usize, (&raw mut status) as usize, 0, 0, 0, 0]) }?;
    Ok(status)
}

/// Lets go of every child that has ended.
pub fn reap() {
    const WNOHANG: usize = 1;
    // SAFETY: no status is asked for. -1 is any child.
    while matches!(unsafe { syscall(61, [usize::MAX, 0, WNOHANG, 0, 0, 0]) }, Ok(1..)) {}
}

/// A socket that listens on a port of this machine's, for its host (vsock(7)).
pub fn listen_on_vsock(port: u32) -> Result<Fd> {
    const AF_VSOCK: usize = 40;
    const SOCK_STREAM_CLOEXEC: usize = 1 | O_CLOEXEC;
    const BACKLOG: usize = 16;
    /// `struct sockaddr_vm`: family, zero, port, any context, flags, zeros.
    #[repr(C)]
    struct Address(u16, u16, u32, u32, [u8; 4]);
    let address = Address(AF_VSOCK as u16, 0, port, u32::MAX, [0; 4]);
    // SAFETY: the kernel reads the address alone, which has the size that it is told.
    unsafe {
        let socket = syscall(41, [AF_VSOCK, SOCK_STREAM_CLOEXEC, 0, 0, 0, 0])?;
        syscall(49, [socket, (&raw const address) as usize, size_of::<Address>(), 0, 0, 0])?;
        syscall(50, [socket, BACKLOG, 0, 0, 0, 0])?;
        Ok(socket as Fd)
    }
}

/// Waits for somebody to connect.
pub fn accept(listener: Fd) -> Result<Fd> {
    // SAFETY: nobody asks for the other's address.
    unsafe { syscall(288, [listener as usize, 0, 0, O_CLOEXEC, 0, 0]) }.map(|fd| fd as Fd)
}

/// Blocks SIGPIPE: a stream that has lost its other end is an error where it is written to.
pub fn block_sigpipe() {
    let set = 1_u64 << (SIGPIPE - 1);
    // SAFETY: the kernel reads an 8-byte signal set. SIG_BLOCK is 0.
    let _ = unsafe { syscall(14, [0, (&raw const set) as usize, 0, 8, 0, 0]) };
}

/// Gives every signal its default action and lets all through, as a login would find it. A shell starts programs in
/// the background with SIGINT and SIGQUIT ignored, and what is ignored stays so through exec.
pub fn reset_signals() {
    // `struct kernel_sigaction`: SIG_DFL, no flags, no restorer, an empty mask.
    let default = [0_u64; 4];
    for signal in 1..=64_usize {
        // SAFETY: the kernel reads one structure. It refuses SIGKILL and SIGSTOP, which need no reset.
        let _ = unsafe { syscall(13, [signal, (&raw const default) as usize, 0, 8, 0, 0]) };
    }
    let none = 0_u64;
    // SAFETY: the kernel reads an 8-byte signal set. SIG_SETMASK is 2.
    let _ = unsafe { syscall(14, [2, (&raw const none) as usize, 0, 8, 0, 0]) };
}

/// Replaces the program. Returns only if that fails.
///
/// # Safety
/// `arguments` and `environment` must point to null-terminated arrays of C strings.
pub unsafe fn execve(path: &CStr, arguments: *const *const u8, environment: *const *const u8) -> Errno {
    // SAFETY: as the caller states.
    match unsafe { syscall(59, [path.as_ptr() as usize, arguments as usize, environment as usize, 0, 0, 0]) }
    {
        Err(error) => error,
        Ok(_) => Errno(0),
    }
}

/// Fresh zeroed memory for `count` values, page-aligned, which stays until the process ends.
pub fn memory<T>(count: usize) -> Result<*mut T> {
    const PROT_READ_WRITE: usize = 0x3;
    const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    unsafe {
        let size = count * size_of::<T>();
        syscall(9, [0, size, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, usize::MAX, 0])
    }
    .map(|address| address as *mut T)
}

fn ioctl(fd: Fd, request: usize, argument: usize) -> Result<usize> {
    // SAFETY: private to this file, whose callers pass what the request asks for.
    unsafe { syscall(16, [fd as usize, request, argument, 0, 0, 0]) }
}

/// Makes terminal `fd` pass every byte as it is, both ways (as cfmakeraw(3) says), and throws away what it holds.
///
/// # Errors
/// ENOTTY if `fd` is no terminal, which then needs none of it.
pub fn make_raw(fd: Fd) -> Result<()> {
    const CS8: u32 = 0o60;
    const CREAD: u32 = 0o200;
    const CLOCAL: u32 = 0o4000;
    const BAUD_MASK: u32 = 0o10017;
    const VTIME: usize = 5;
    const VMIN: usize = 6;
    let mut termios = Termios { iflag: 0, oflag: 0, cflag: 0, lflag: 0, line: 0, cc: [0; 19] };
    ioctl(fd, TCGETS, (&raw mut termios) as usize)?;
    termios.iflag = 0;
    termios.oflag = 0;
    termios.lflag = 0;
    termios.cflag = (termios.cflag & BAUD_MASK) | CS8 | CREAD | CLOCAL;
    termios.cc[VMIN] = 1;
    termios.cc[VTIME] = 0;
    ioctl(fd, TCSETS, (&raw const termios) as usize)?;
    // TCIOFLUSH is 2.
    ioctl(fd, TCFLSH, 2).map(drop)
}

/// Waits until terminal `fd` has sent everything that was written to it.
pub fn drain(fd: Fd) {
    let _ = ioctl(fd, TCSBRK, 1);
}

pub fn set_size(fd: Fd, rows: u16, columns: u16) {
    let size = WinSize { rows, columns, x_pixels: 0, y_pixels: 0 };
    let _ = ioctl(fd, TIOCSWINSZ, (&raw const size) as usize);
}

/// Makes `fd` the controlling terminal of this session, taking it from another one if it must.
pub fn take_terminal(fd: Fd) -> Result<()> {
    ioctl(fd, TIOCSCTTY, 1).map(drop)
}

/// A new pseudo-terminal: its master and its slave, both closed on exec.
pub fn open_pty() -> Result<(Fd, Fd)> {
    let master = open(c"/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)?;
    let unlocked = 0_i32;
    ioctl(master, TIOCSPTLCK, (&raw const unlocked) as usize)?;
    let slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)?;
    Ok((master, slave as Fd))
}

// The kernel enters with the argument count at rsp (System V x86-64 psABI, 3.4.1).
global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "mov %rsp, %rdi",
    "and $-16, %rsp",
    "call {start}",
    "ud2",
    start = sym crate::start,
    options(att_syntax),
);

// What the compiler calls for copies, fills and comparisons. String instructions, for a loop might be compiled into a
// call of the very function it stands in.

/// # Safety
/// As C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid and do not overlap; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memmove.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: copying upwards never overwrites a byte that is still to be read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the ranges overlap with `to` above `from`: copy downwards, then clear the direction flag again.
    unsafe {
        asm!("std", "rep movsb", "cld",
             inout("rcx") count => _,
             inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
             options(nostack));
    }
    to
}

/// # Safety
/// As C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's range is valid; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut at = 0;
    while at < count {
        // SAFETY: `at` is below `count`; volatile reads keep the loop from becoming a call of memcmp.
        let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As bcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, count) }
}

/// # Safety
/// As C's strlen.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's string ends with a zero byte.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// The core library is built to unwind and names this symbol; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
