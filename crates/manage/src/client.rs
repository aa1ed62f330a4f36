//! The other end of the control socket, and the way into the guest.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::entry::{CONTROL, Found};
use crate::error::{Error, Result};
use crate::protocol::{Answer, Request, line, parse, read_line};
use crate::short_path;

/// How long a supervisor may take to answer: it waits for its processors.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the guest may take to accept a connection before it is tried again.
const ACCEPT: Duration = Duration::from_secs(3);

/// Asks the supervisor of one guest.
#[derive(Debug)]
pub struct Client<'a>(&'a Found);

impl<'a> Client<'a> {
    /// For the guest that was found.
    pub fn of(guest: &'a Found) -> Self {
        Self(guest)
    }

    fn problem(&self, problem: impl Display) -> Error {
        Error::Talk { name: self.0.name().to_owned(), problem: problem.to_string() }
    }

    fn talk(&self, request: Request) -> io::Result<(UnixStream, Vec<u8>)> {
        let (path, _folder) = short_path(self.0.folder(), CONTROL)?;
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        match stream.write_all(&line(&request)) {
            // One that does not listen has said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
        let answer = read_line(&stream)?;
        Ok((stream, answer))
    }

    fn ask_and_keep(&self, request: Request) -> Result<(UnixStream, Answer)> {
        let (stream, answer) = self.talk(request).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if !self.0.still_runs() => {
                Error::RunsNot { name: self.0.name().to_owned() }
            }
            io::ErrorKind::NotFound => self.problem("it has not started yet"),
            io::ErrorKind::WouldBlock => self.problem("its supervisor does not answer"),
            io::ErrorKind::UnexpectedEof => self.problem("its supervisor has just ended"),
            _ => self.problem(error),
        })?;
        match parse(&answer)
            .map_err(|error| self.problem(format!("its supervisor's answer is none: {error}")))?
        {
            Answer::Refused { problem } => Err(self.problem(problem)),
            answer => Ok((stream, answer)),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::RunsNot`] if it has ended; [`Error::Talk`] if it refuses, or does not answer.
    pub fn ask(&self, request: Request) -> Result<Answer> {
        Ok(self.ask_and_keep(request)?.1)
    }

    /// Joins the console: what is read is what the guest says, beginning with the end of what it has said; what is
    /// written reaches the guest.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn console(&self) -> Result<UnixStream> {
        let (stream, _) = self.ask_and_keep(Request::Console)?;
        stream.set_read_timeout(None).map_err(|error| self.problem(error))?;
        Ok(stream)
    }
}

/// Connects to a port of the guest's own sockets (AF_VSOCK), and waits up to `patience` for somebody to listen there.
///
/// # Errors
/// [`Error::Talk`] if nobody does, or the guest has no such way; [`Error::RunsNot`] if it ends meanwhile.
pub fn open_exec(guest: &Found, port: u32, patience: Duration) -> Result<UnixStream> {
    let problem = |problem: String| Error::Talk { name: guest.name().to_owned(), problem };
    let deadline = Instant::now() + patience;
    let path = guest.started().and_then(|started| started.vsock.clone());
    let path = path.ok_or_else(|| problem("it has not started yet".to_owned()))?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(problem(format!("{} is no socket", path.display())));
    };
    loop {
        let connect = || {
            let (path, _folder) = short_path(folder, name)?;
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ACCEPT))?;
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let greeting = read_line(&stream)?;
            stream.set_read_timeout(None)?;
            Ok::<_, io::Error>((stream, greeting))
        };
        let error = match connect() {
            Ok((stream, greeting)) if greeting.starts_with(b"OK ") => return Ok(stream),
            Ok((_, greeting)) => String::from_utf8_lossy(&greeting).into_owned(),
            Err(error) => error.to_string(),
        };
        if !guest.still_runs() {
            return Err(Error::RunsNot { name: guest.name().to_owned() });
        }
        if Instant::now() >= deadline {
            return Err(problem(format!(
                "nothing in it takes commands ({error}): it is still starting, or its image is not one of ours"
            )));
        }
        thread::sleep(Duration::from_millis(100));
    }
}
