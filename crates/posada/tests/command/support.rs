//! Running the command as a person does.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long anything may take: far more than it does on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);

/// Where the tests' images are kept.
pub(crate) fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cache")
}

/// The command, with a cache of its own that all tests share.
pub(crate) fn posada() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posada"));
    command.env("XDG_CACHE_HOME", cache());
    command
}

/// Runs it with these arguments and this standard input.
pub(crate) fn run<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>, stdin: &[u8]) -> Output {
    let mut child = posada()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut input = child.stdin.take().expect("it is piped");
    let bytes = stdin.to_vec();
    let feeder = std::thread::spawn(move || {
        // The command may end without reading it all.
        let _ = input.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("it ends");
    feeder.join().expect("the feeder does not panic");
    output
}

/// Standard output and standard error as text, for messages of assertions.
pub(crate) fn told(output: &Output) -> String {
    format!(
        "{:?}\n--- standard output\n{}\n--- standard error\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a script in the guest of a machine with these options, which is to succeed, and returns its output.
pub(crate) fn script(options: &[&str], script: &str) -> String {
    let arguments = [&["run", "debian"], options, &["--", "sh", "-ec", script]].concat();
    let output = run(arguments, b"");
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    String::from_utf8(output.stdout).expect("the script writes text")
}

/// A guest's console, typed at and read from.
pub(crate) struct Console {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    /// Everything read so far.
    pub(crate) seen: String,
    /// How much of it has been waited for.
    passed: usize,
}

impl Console {
    pub(crate) fn open(arguments: &[&str]) -> Self {
        let mut command = posada();
        command.args(arguments);
        Self::start(command)
    }

    /// Starts a command that runs a guest; its standard error goes where the command says.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the command starts");
        let (sender, output) = channel();
        let mut stdout = child.stdout.take().expect("it is piped");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { stdin: child.stdin.take(), child, output, seen: String::new(), passed: 0 }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the guest says `text`, after what was waited for before.
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen[self.passed..].find(text) {
                self.passed += at + text.len();
                return;
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => panic!("no {text:?} in time; seen:\n{}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("ended before {text:?}; seen:\n{}", self.seen),
            }
        }
    }

    /// Waits for a whole line that begins with `text`, after what was waited for before, and returns the rest of it.
    pub(crate) fn expect_line(&mut self, text: &str) -> String {
        self.expect(text);
        let from = self.passed;
        self.expect("\n");
        self.seen[from..self.passed].trim_end().to_owned()
    }

    /// Reads what there is for as long as this takes.
    pub(crate) fn read_for(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while let Ok(bytes) = self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Kills the process, which cannot mind, and reads what it has still said.
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it can be waited for");
        while let Ok(bytes) = self.output.recv() {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        std::mem::take(&mut self.seen)
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status().expect("kill starts");
        assert!(sent.success());
    }

    pub(crate) fn send(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        stdin.write_all(text.as_bytes()).expect("it is read");
        stdin.flush().expect("it is read");
    }

    /// Closes standard input, waits for the end and returns the exit status.
    pub(crate) fn end(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().expect("it can be waited for").code()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
