//! What is to be run in the guest, and its encoding for the agent.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use thiserror::Error;

/// The guest's console: kernel messages, and the shell of a session without a command.
pub const CONSOLE: &str = "/dev/ttyS0";

/// The port that carries a session's frames: COM2, at 0x2f8.
pub const CHANNEL: &str = "/dev/ttyS1";

/// Where the agent finds the encoded session.
pub(crate) const SESSION_FILE: &str = "etc/posada/session";

/// The most that an encoded session may take: Linux gives arguments and environment 2 MiB at the default stack limit
/// (execve(2)).
const LIMIT: usize = 2 << 20;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Terminal {
    None,
    Relayed,
    Console,
}

/// One command for the guest: its arguments, environment, folder and terminal.
///
/// Arguments, variables and paths are byte strings, as Linux has them, and reach the command exactly.
///
/// ```
/// use posada_image::session::Session;
///
/// let session = Session::command(["sh", "-c", "echo \"$0\" 'a b'\n"]).env("LANG", "C").cwd("/tmp");
/// assert!(!session.is_shell());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    cwd: OsString,
    terminal: Terminal,
    size: Option<Size>,
}

/// A session that the guest could not be told of.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// There is no command.
    #[error("there is no command to run in the guest: give one after `--`")]
    NoCommand,
    /// Something holds a zero byte, which Linux ends its strings with.
    #[error("the guest's command cannot be passed on: {what} {value:?} contains a zero byte")]
    ZeroByte {
        /// "argument", "variable" or "folder".
        what: &'static str,
        /// The string in question.
        value: OsString,
    },
    /// A variable without a name, or with `=` in it.
    #[error("{name:?} cannot be the name of an environment variable: it is empty or contains `=`")]
    VariableName {
        /// The name.
        name: OsString,
    },
    /// Linux would refuse it (E2BIG).
    #[error(
        "the guest's command is too long: its arguments and environment take {size} bytes, Linux allows {LIMIT}; \
         pass the data on standard input instead"
    )]
    TooLong {
        /// Bytes in all.
        size: usize,
    },
}

impl Session {
    fn new(arguments: Vec<OsString>, terminal: Terminal) -> Self {
        let environment = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("SHELL", "/bin/sh"),
            ("USER", "root"),
            ("LOGNAME", "root"),
        ];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).into();
        Self { arguments, environment, cwd: "/root".into(), terminal, size: None }
    }

    /// A login shell on the guest's console, which the host shows as it is. The channel, if there is a second serial
    /// port at all, brings changes of the terminal's size and takes home the shell's exit status.
    pub fn shell() -> Self {
        Self::new(vec!["/bin/sh".into(), "-l".into()], Terminal::Console).env("TERM", "vt100")
    }

    /// A command whose standard streams are the host's, through pipes: bytes pass unchanged, standard error stays
    /// apart, and the end of standard input is passed on.
    ///
    /// The first argument is the program, looked for in the guest's `PATH` if it has no slash.
    pub fn command(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self::new(arguments.into_iter().map(Into::into).collect(), Terminal::None)
    }

    /// Gives a command a terminal in the guest, for use from a terminal on the host that is in raw mode: job control,
    /// Ctrl-C and full-screen programs work; standard error arrives as standard output.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        if self.terminal == Terminal::None {
            self.terminal = Terminal::Relayed;
        }
        self
    }

    /// Sets the size that the terminal starts with.
    #[must_use]
    pub fn size(mut self, size: Size) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets a variable of the command's environment, which starts with `PATH`, `HOME`, `SHELL`, `USER` and `LOGNAME`.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Sets the command's folder, `/root` otherwise.
    #[must_use]
    pub fn cwd(mut self, folder: impl Into<OsString>) -> Self {
        self.cwd = folder.into();
        self
    }

    /// The session for a guest that has a whole system: instead of a shell, a login, so that it counts as one there
    /// (login(1)); as root, without a password.
    pub(crate) fn on_a_system(&self) -> Self {
        let mut session = self.clone();
        if self.is_shell() {
            session.arguments = ["/bin/login", "-f", "root"].map(OsString::from).into();
        }
        session
    }

    /// Whether this is a shell on the console rather than a command on the channel.
    pub fn is_shell(&self) -> bool {
        self.terminal == Terminal::Console
    }

    /// The session file for the agent: fields, each ended by a zero byte (`guests/agent/src/session.rs`).
    ///
    /// # Errors
    /// [`SessionError`] if Linux could not run such a command.
    pub fn encode(&self) -> Result<Vec<u8>, SessionError> {
        if self.arguments.is_empty() {
            return Err(SessionError::NoCommand);
        }
        let mut file = Vec::new();
        let mut field = |name: &str, value: &[u8]| {
            file.extend_from_slice(name.as_bytes());
            file.push(b'=');
            file.extend_from_slice(value);
            file.push(0);
        };
        field("channel", CHANNEL.as_bytes());
        let terminal = match self.terminal {
            Terminal::None => "none",
            Terminal::Relayed => "pty",
            Terminal::Console => CONSOLE,
        };
        field("terminal", terminal.as_bytes());
        if let Some(size) = self.size {
            field("rows", size.rows.to_string().as_bytes());
            field("columns", size.columns.to_string().as_bytes());
        }
        field("cwd", checked("folder", &self.cwd)?);
        for (name, value) in &self.environment {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(SessionError::VariableName { name: name.clone() });
            }
            let mut pair = checked("variable", name)?.to_vec();
            pair.push(b'=');
            pair.extend_from_slice(checked("variable", value)?);
            field("env", &pair);
        }
        for argument in &self.arguments {
            field("arg", checked("argument", argument)?);
        }
        if file.len() > LIMIT { Err(SessionError::TooLong { size: file.len() }) } else { Ok(file) }
    }
}

fn checked<'a>(what: &'static str, value: &'a OsStr) -> Result<&'a [u8], SessionError> {
    if value.as_bytes().contains(&0) {
        return Err(SessionError::ZeroByte { what, value: value.to_owned() });
    }
    Ok(value.as_bytes())
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
