//! The session file: what the host wants run, and how.
//!
//! Fields, each ended by a zero byte, which no argument, variable or path can contain:
//! `channel=PATH`, `terminal=none|pty|PATH`, `rows=N`, `columns=N`, `cwd=PATH`, `env=NAME=VALUE` (any number of times)
//! and `arg=STRING` (at least once). Unknown fields are skipped.

use core::ffi::CStr;

use crate::sys::{self, Errno, Fd};
use crate::wire;

/// What the command's standard streams are.
#[derive(Clone, Copy)]
pub enum Terminal {
    /// Three pipes: standard error stays apart, nothing is echoed or changed.
    None,
    /// A pseudo-terminal, relayed over the channel.
    Pty,
    /// A terminal of the guest itself, such as its serial console, which the channel does not relay.
    Device(&'static CStr),
}

/// A parsed session file. Everything points into memory that stays.
pub struct Session {
    pub channel: Option<&'static CStr>,
    pub terminal: Terminal,
    pub rows: u16,
    pub columns: u16,
    pub cwd: Option<&'static CStr>,
    arguments: *mut *const u8,
    argument_count: usize,
    environment: *mut *const u8,
    environment_count: usize,
}

impl Session {
    /// Reads and parses the file at `path`.
    pub fn load(path: &CStr) -> sys::Result<Self> {
        Self::parse(read_file(path)?)
    }

    /// Takes a session from a host that has just connected.
    pub fn receive(connection: Fd) -> sys::Result<Self> {
        let mut length = [0; 4];
        fill(connection, &mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > wire::MAX_SESSION {
            return Err(Errno::TOO_BIG);
        }
        // SAFETY: a fresh mapping of as many bytes which nothing else refers to; the last one stays zero.
        let memory = unsafe { core::slice::from_raw_parts_mut(sys::memory(length + 1)?, length + 1) };
        fill(connection, &mut memory[..length])?;
        Self::parse(memory)
    }

    fn parse(text: &'static [u8]) -> sys::Result<Self> {
        let fields = text.split(|&byte| byte == 0).count();
        // One slot more than there can be strings: the null at the end. Arguments get one slot in front as well.
        let slots = fields + 2;
        let mut session = Self {
            channel: None,
            terminal: Terminal::None,
            rows: 0,
            columns: 0,
            cwd: None,
            // SAFETY: the mapping holds `fields + 2` pointers.
            arguments: unsafe { sys::memory::<*const u8>(slots)?.add(1) },
            argument_count: 0,
            environment: sys::memory(slots)?,
            environment_count: 0,
        };
        let mut rest = text;
        while let Ok(field) = CStr::from_bytes_until_nul(rest) {
            rest = &rest[field.to_bytes_with_nul().len()..];
            session.take(field);
        }
        if session.argument_count == 0 { Err(Errno::NOENT) } else { Ok(session) }
    }

    fn take(&mut self, field: &'static CStr) {
        let bytes = field.to_bytes_with_nul();
        let Some(at) = bytes.iter().position(|&byte| byte == b'=') else { return };
        let (name, value) = (&bytes[..at], &bytes[at + 1..]);
        let Ok(value) = CStr::from_bytes_with_nul(value) else { return };
        match name {
            b"channel" => self.channel = Some(value),
            b"terminal" => {
                self.terminal = match value.to_bytes() {
                    b"none" => Terminal::None,
                    b"pty" => Terminal::Pty,
                    _ => Terminal::Device(value),
                }
            }
            b"rows" => self.rows = number(value.to_bytes()),
            b"columns" => self.columns = number(value.to_bytes()),
            b"cwd" => self.cwd = Some(value),
            b"env" => push(self.environment, &mut self.environment_count, value),
            b"arg" => push(self.arguments, &mut self.argument_count, value),
            _ => {}
        }
    }

    /// Becomes the session's command, as execvp(3) does. Returns only if it cannot.
    pub fn exec(&self) -> Errno {
        // SAFETY: `load` has seen to one argument at least.
        let command = unsafe { CStr::from_ptr((*self.arguments).cast()) };
        if command.to_bytes().contains(&b'/') {
            return self.exec_file(command);
        }
        let mut result = Errno::NOENT;
        let mut file = [0_u8; 4096];
        for folder in self.variable(b"PATH").unwrap_or(b"/bin:/sbin").split(|&byte| byte == b':') {
            let name = command.to_bytes_with_nul();
            let folder: &[u8] = if folder.is_empty() { b"." } else { folder };
            let length = folder.len() + 1 + name.len();
            if length > file.len() {
                continue;
            }
            file[..folder.len()].copy_from_slice(folder);
            file[folder.len()] = b'/';
            file[folder.len() + 1..length].copy_from_slice(name);
            let Ok(path) = CStr::from_bytes_until_nul(&file[..length]) else { continue };
            match self.exec_file(path) {
                Errno::NOENT | Errno::NOTDIR => {}
                // Go on: a later folder may hold one that can be run.
                Errno::ACCES => result = Errno::ACCES,
                error => return error,
            }
        }
        result
    }

    fn exec_file(&self, path: &CStr) -> Errno {
        // SAFETY: both arrays end with the null that their fresh memory holds.
        let error = unsafe { sys::execve(path, self.arguments, self.environment) };
        if error != Errno::NOEXEC {
            return error;
        }
        // A script without an interpreter line is the shell's to run: `sh path arguments…`.
        // SAFETY: the slot in front of the arguments was kept for this; the child has them to itself.
        unsafe {
            let arguments = self.arguments.sub(1);
            *self.arguments = path.as_ptr().cast();
            *arguments = c"sh".as_ptr().cast();
            sys::execve(c"/bin/sh", arguments, self.environment)
        }
    }

    fn variable(&self, name: &[u8]) -> Option<&'static [u8]> {
        (0..self.environment_count).find_map(|at| {
            // SAFETY: that many entries were stored.
            let entry = unsafe { CStr::from_ptr((*self.environment.add(at)).cast()) };
            entry.to_bytes().strip_prefix(name)?.strip_prefix(b"=")
        })
    }
}

fn push(array: *mut *const u8, count: &mut usize, value: &'static CStr) {
    // SAFETY: the array has a slot for every field of the file and one more.
    unsafe { *array.add(*count) = value.as_ptr().cast() };
    *count += 1;
}

fn number(digits: &[u8]) -> u16 {
    digits.iter().fold(0_u16, |value, digit| {
        value.saturating_mul(10).saturating_add(u16::from(digit.wrapping_sub(b'0')))
    })
}

/// Reads until `bytes` are full.
fn fill(fd: Fd, bytes: &mut [u8]) -> sys::Result<()> {
    let mut have = 0;
    while have < bytes.len() {
        match sys::read(fd, &mut bytes[have..])? {
            0 => return Err(Errno::NOENT),
            count => have += count,
        }
    }
    Ok(())
}

/// The whole of a file, in memory that stays, with a zero byte behind it.
fn read_file(path: &CStr) -> sys::Result<&'static [u8]> {
    // Linux takes at most a quarter of the stack, 2 MiB, for arguments and environment together (execve(2)).
    const LIMIT: usize = wire::MAX_SESSION + 1;
    let fd: Fd = sys::open(path, sys::O_CLOEXEC)?;
    // SAFETY: a fresh mapping of LIMIT bytes which nothing else refers to.
    let memory = unsafe { core::slice::from_raw_parts_mut(sys::memory(LIMIT)?, LIMIT) };
    let mut length = 0;
    while length < LIMIT - 1 {
        match sys::read(fd, &mut memory[length..LIMIT - 1])? {
            0 => break,
            count => length += count,
        }
    }
    let _ = sys::close(fd);
    Ok(&memory[..=length])
}
