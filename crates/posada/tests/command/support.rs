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
        let mut child = posada()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the command starts");
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
