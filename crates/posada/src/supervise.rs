//! Guests that others can find: under a name, in the background or not.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use posada_manage::{Console, Entry, Machine, Running, Server};
use posada_pc::Handle;
use serde_json::Value;

use crate::arguments::Run;
use crate::{run, status, trace};

/// What a detached supervisor tells its starter when the guest runs.
const RUNS: &str = "runs";

/// Where a detached supervisor's own messages go, in its entry.
pub(crate) const MESSAGES: &str = "messages.log";

/// What makes a guest known to others.
pub(crate) struct Supervisor {
    pub entry: Entry,
    pub console: Console,
    settings: Value,
    server: Option<Server>,
}

/// `posada run`: in this process, or in one that goes on when this one has ended.
pub(crate) fn run(arguments: &Run, settings: Value) -> Result<u8> {
    if arguments.detach && arguments.supervisor.is_none() {
        return detach(arguments);
    }
    trace::start(&arguments.trace);
    let Some(name) = arguments.supervisor.as_ref().or(arguments.name.as_ref()) else {
        return run::run(arguments, None);
    };
    let entry = Running::open()?.take(name)?;
    let console = Console::new(Some(&entry.log())).context("making the console's log")?;
    let mut supervisor = Supervisor { entry, console, settings, server: None };
    let result = run::run(arguments, Some(&mut supervisor));
    let ended = *result.as_ref().unwrap_or(&status::CANNOT_RUN);
    if let Err(error) = &result {
        // Where it belongs, before the entry is given up.
        eprintln!("posada: {error:#}");
    }
    drop(supervisor.server.take());
    supervisor.entry.end(ended)?;
    Ok(ended)
}

impl Supervisor {
    /// Lets others find the guest, which is about to run.
    pub(crate) fn start(
        &mut self,
        arguments: &Run,
        vsock: PathBuf,
        handle: &Handle,
        stop: Arc<dyn Fn() + Send + Sync>,
        kill: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<()> {
        let what = match (&arguments.image, &arguments.kernel) {
            (Some(image), _) => image.clone(),
            (None, Some(kernel)) => kernel.display().to_string(),
            (None, None) => String::new(),
        };
        self.entry.start(what, self.settings.clone(), arguments.detach, vsock)?;
        let machine = Machine { handle: handle.clone(), console: self.console.clone(), stop, kill };
        self.server = Some(Server::start(&self.entry, machine)?);
        if arguments.detach { self.leave() } else { Ok(()) }
    }

    /// Tells the starter that the guest runs, and leaves its terminal, its session and its streams.
    fn leave(&self) -> Result<()> {
        let path = self.entry.folder().join(MESSAGES);
        let messages = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let messages = messages.with_context(|| format!("opening {}", path.display()))?;
        messages.set_len(0).with_context(|| format!("opening {}", path.display()))?;
        rustix::process::setsid().context("leaving the terminal's session")?;
        let mut starter = io::stdout();
        writeln!(starter, "{RUNS}").and_then(|()| starter.flush()).context("telling that the guest runs")?;
        let nothing = File::options().write(true).open("/dev/null").context("opening /dev/null")?;
        rustix::stdio::dup2_stdout(nothing).context("leaving standard output")?;
        rustix::stdio::dup2_stderr(messages).context("leaving standard error")?;
        Ok(())
    }
}

/// A name that no other guest is likely to have, for one of this image.
fn made_up_name(arguments: &Run) -> Result<String> {
    let image = arguments.image.as_deref().unwrap_or("guest");
    let word: String = image.chars().take_while(char::is_ascii_alphanumeric).take(20).collect();
    let mut number = [0; 4];
    getrandom::fill(&mut number).context("making up a name")?;
    let word = if word.is_empty() { "guest" } else { &word };
    Ok(format!("{word}-{:06x}", u32::from_le_bytes(number) >> 8))
}

/// Starts the supervisor as a process of its own, and waits until the guest runs or cannot.
fn detach(arguments: &Run) -> Result<u8> {
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => made_up_name(arguments)?,
    };
    let program = std::env::current_exe().context("finding this program")?;
    // The words of this command line: the program, `run`, and the rest.
    let mut words = std::env::args_os().skip(1);
    let mut supervisor = Command::new(program);
    supervisor.args(words.next()).arg(format!("--supervisor={name}")).args(words);
    supervisor.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = supervisor.spawn().context("starting the guest's supervisor")?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said).context("waiting for the guest's supervisor")?;
    }
    if said.trim_end() == RUNS {
        println!("{name}");
        return Ok(status::DONE);
    }
    // It has said why.
    let ended = child.wait().context("waiting for the guest's supervisor")?;
    let signalled = || ended.signal().map_or(status::CANNOT_RUN, |signal| 128 + signal as u8);
    Ok(ended.code().map_or_else(signalled, |code| code as u8))
}
