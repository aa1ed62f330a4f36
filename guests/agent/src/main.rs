//! The guest's end of a session: runs one command and relays its streams to the host over a byte channel.
//!
//! `/init` starts it as `posada-agent SESSION-FILE`. It opens the session's channel (a serial port, put into raw mode),
//! starts the command on pipes, on a pseudo-terminal or on the guest's console, passes bytes both ways by the protocol
//! in `wire.rs`, reports how the command ended and exits.
//!
//! As `posada-agent --serve` it waits for the host on a socket instead (AF_VSOCK), and does the same for each session that
//! comes in by a connection, with the connection as its channel.
//!
//! It has no allocator and no library but `core`: everything lives in a few fixed buffers, so that it is a program of
//! some kilobytes which an interpreted processor starts at once.

#![no_std]
#![no_main]

mod relay;
mod session;
mod sys;
#[path = "../../../crates/resource/image/src/session/wire.rs"]
#[allow(dead_code)]
mod wire;

use core::ffi::CStr;

use relay::{Command, Relay};
use session::{Session, Terminal};
use sys::{Errno, Fd};

/// Called by `_start` with the kernel's initial stack.
extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel puts the argument count there, then that many pointers to C strings.
    let path = unsafe {
        if *stack < 2 {
            fail(b"which session file?", Errno::NOENT);
        }
        CStr::from_ptr(*stack.add(2) as *const _)
    };
    reserve_standard_descriptors();
    if path == c"--serve" {
        serve();
    }
    let session = match Session::load(path) {
        Ok(session) => session,
        Err(error) => fail(b"cannot read the session file", error),
    };
    let channel = open_channel(&session);
    run(&session, channel)
}

/// Runs a session's command, with its streams on the channel.
fn run(session: &Session, channel: Fd) -> ! {
    let command = match spawn(session) {
        Ok(command) => command,
        Err(error) => fail(b"cannot start a process", error),
    };
    sys::block_sigpipe();
    Relay::new(channel, command).run();
    sys::exit(0)
}

/// Runs every session that the host brings, each in a process of its own.
fn serve() -> ! {
    let listener = match sys::listen_on_vsock(wire::EXEC_PORT) {
        Ok(listener) => listener,
        Err(error) => fail(b"cannot listen for the host", error),
    };
    loop {
        let connection = match sys::accept(listener) {
            Ok(connection) => connection,
            Err(Errno::INTR) => continue,
            Err(error) => fail(b"cannot listen for the host any more", error),
        };
        if matches!(sys::fork(), Ok(0)) {
            let _ = sys::close(listener);
            match Session::receive(connection).and_then(|s| sys::set_nonblocking(connection).map(|()| s)) {
                Ok(session) => run(&session, connection),
                Err(error) => fail(b"the host's session is none", error),
            }
        }
        // The child has it, or nobody: then the host sees it close.
        let _ = sys::close(connection);
        sys::reap();
    }
}

/// Descriptors 0 to 2 must be taken, or a pipe of ours might get one of them.
fn reserve_standard_descriptors() {
    while let Ok(fd) = sys::open(c"/dev/null", sys::O_RDWR) {
        if fd > 2 {
            let _ = sys::close(fd);
            break;
        }
    }
}

/// Opens the channel. A session on the guest's own console can do without; any other cannot.
fn open_channel(session: &Session) -> Fd {
    let opened = session.channel.map(|path| {
        let fd = sys::open(path, sys::O_RDWR | sys::O_NOCTTY | sys::O_NONBLOCK | sys::O_CLOEXEC)?;
        match sys::make_raw(fd) {
            // ENOTTY: a channel that is no terminal is raw already.
            Ok(()) | Err(Errno(25)) => Ok(fd),
            Err(error) => Err(error),
        }
    });
    match (opened, session.terminal) {
        (Some(Ok(fd)), _) => fd,
        (_, Terminal::Device(_)) => -1,
        (Some(Err(error)), _) => fail(b"cannot open the session's channel", error),
        (None, _) => fail(b"the session names no channel", Errno::NOENT),
    }
}

/// Starts the session's command.
fn spawn(session: &Session) -> sys::Result<Command> {
    // The command's ends of its streams, and ours.
    let mut theirs: [Fd; 3] = [-1; 3];
    let mut ours: [Fd; 3] = [-1; 3];
    let mut terminal: Fd = -1;
    match session.terminal {
        Terminal::None => {
            (theirs[0], ours[0]) = sys::pipe()?;
            (ours[1], theirs[1]) = sys::pipe()?;
            (ours[2], theirs[2]) = sys::pipe()?;
        }
        Terminal::Pty => {
            let (master, slave) = sys::open_pty()?;
            theirs = [slave; 3];
            ours = [master, master, -1];
            terminal = master;
        }
        Terminal::Device(path) => {
            terminal = sys::open(path, sys::O_RDWR | sys::O_NOCTTY | sys::O_CLOEXEC)?;
            theirs = [terminal; 3];
        }
    }
    if terminal >= 0 && session.rows > 0 && session.columns > 0 {
        sys::set_size(terminal, session.rows, session.columns);
    }
    // Closed by a successful exec; otherwise it brings the error number.
    let (failure, report) = sys::pipe()?;
    let process = sys::fork()?;
    if process == 0 {
        let error = become_command(session, theirs);
        let _ = sys::write(report, &error.0.to_le_bytes());
        sys::exit(127);
    }
    let _ = sys::close(report);
    // A pseudo-terminal's slave stays open here as well: with its last descriptor the terminal would hang up, on a
    // command that closes its streams before it ends.
    if matches!(session.terminal, Terminal::None) {
        for fd in theirs {
            let _ = sys::close(fd);
        }
    }
    let mut number = [0; 4];
    let not_started =
        matches!(sys::read(failure, &mut number), Ok(4)).then(|| Errno(i32::from_le_bytes(number)));
    let _ = sys::close(failure);
    for fd in ours {
        if fd >= 0 {
            sys::set_nonblocking(fd)?;
        }
    }
    let exited = sys::pidfd_open(process, 0)? as Fd;
    let [stdin, stdout, stderr] = ours;
    let relayed = !matches!(session.terminal, Terminal::Device(_));
    Ok(Command { process, exited, stdin, stdout, stderr, relayed, terminal, not_started })
}

/// In the child: takes its streams and its folder, then becomes the command. Returns only if that fails.
fn become_command(session: &Session, streams: [Fd; 3]) -> Errno {
    let prepare = || {
        sys::reset_signals();
        sys::setsid(0)?;
        if !matches!(session.terminal, Terminal::None) {
            sys::take_terminal(streams[0])?;
        }
        for (number, fd) in streams.into_iter().enumerate() {
            sys::dup2(fd, number as Fd)?;
        }
        match session.cwd {
            Some(cwd) => sys::chdir(cwd),
            None => Ok(()),
        }
    };
    match prepare() {
        Ok(()) => session.exec(),
        Err(error) => error,
    }
}

/// Says on standard error, the guest's console, why the session cannot be, and ends.
fn fail(what: &[u8], error: Errno) -> ! {
    let tens = b'0' + (error.0 / 10 % 10) as u8;
    let ones = b'0' + (error.0 % 10) as u8;
    let hundreds = b'0' + (error.0 / 100 % 10) as u8;
    for part in [b"posada-agent: ", what, b" (error ", &[hundreds, tens, ones], b")\n"] {
        let _ = sys::write(2, part);
    }
    sys::exit(1)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail(b"a mistake in the agent itself", Errno(0))
}
