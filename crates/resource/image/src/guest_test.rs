//! The agent, run on this very host with a pseudo-terminal for its port.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::*;
use crate::session::{CHANNEL, CONSOLE, Ending, Relay, Size, Streams};

/// A pseudo-terminal: its master, its slave held open, and the slave's path.
struct Pty {
    master: File,
    slave: File,
    path: String,
}

fn pty() -> Pty {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    Pty { master: master.into(), slave: slave.into(), path }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    fn wait_for(&self, wanted: &[u8]) {
        while !self.bytes().windows(wanted.len()).any(|window| window == wanted) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader who has left.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the agent on a session whose guest devices are these.
fn start(session: &Session, channel: &str, console: &str) -> (Child, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (agent, file) = (folder.path().join("agent"), folder.path().join("session"));
    // Written by another process: a program that this one has open for writing cannot be run, and a test beside this
    // one that starts a program has, until it does, a copy of all descriptors.
    let mut install = Command::new("sh");
    install.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&agent).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(AGENT).unwrap();
    assert!(install.wait().unwrap().success());
    let fields = session.encode().unwrap();
    let mut text = Vec::new();
    for field in fields.split_inclusive(|&byte| byte == 0) {
        if field == format!("channel={CHANNEL}\0").as_bytes() {
            text.extend(format!("channel={channel}\0").as_bytes());
        } else if field == format!("terminal={CONSOLE}\0").as_bytes() {
            text.extend(format!("terminal={console}\0").as_bytes());
        } else {
            text.extend(field);
        }
    }
    fs::write(&file, text).unwrap();
    // As the guest's first process does it.
    let script = "trap '' INT QUIT; exec \"$0\" \"$1\"";
    let child = Command::new("sh").args(["-c", script]).args([&agent, &file]).stdin(Stdio::null()).spawn();
    (child.unwrap(), folder)
}

/// Runs a session to its end, with `meanwhile` beside it.
fn run_with(session: &Session, streams: Streams, meanwhile: impl FnOnce(&Relay)) -> Option<Ending> {
    let port = pty();
    let (mut child, _folder) = start(session, &port.path, "");
    let mut to_guest = port.master.try_clone().unwrap();
    let mut from_guest = port.master;
    let (relay, mut writer) = Relay::start(streams, move |bytes| to_guest.write_all(bytes));
    // Ends with EIO when the last one closes the slave.
    let copy = thread::spawn(move || io::copy(&mut from_guest, &mut writer));
    meanwhile(&relay);
    assert!(child.wait().unwrap().success());
    drop(port.slave);
    let _ = copy.join().unwrap();
    relay.finish().unwrap()
}

fn run(session: &Session, stdin: impl Read + Send + 'static) -> (Vec<u8>, Vec<u8>, Option<Ending>) {
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
    };
    let ending = run_with(session, streams, |_| {});
    (stdout.bytes(), stderr.bytes(), ending)
}

fn shell(script: &str) -> Session {
    Session::command(["sh", "-c", script]).cwd("/")
}

#[test]
fn standard_output_and_error_arrive_apart_and_the_exit_status_with_them() {
    let (stdout, stderr, ending) = run(&shell("echo out; echo err >&2; exit 200"), io::empty());
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(ending, Some(Ending::Exited(200)));
}

#[test]
fn every_byte_passes_both_ways_unchanged() {
    let bytes: Vec<u8> = (0..=255).cycle().take(200_000).collect();
    let (stdout, _, ending) = run(&Session::command(["cat"]).cwd("/"), io::Cursor::new(bytes.clone()));
    assert!(stdout == bytes, "{} bytes came back", stdout.len());
    assert_eq!(ending, Some(Ending::Exited(0)));
}

#[test]
fn a_command_that_reads_late_loses_nothing() {
    let bytes = vec![b'x'; 300_000];
    let (stdout, ..) = run(&shell("sleep 1; wc -c"), io::Cursor::new(bytes));
    assert_eq!(stdout, b"300000\n");
}

#[test]
fn a_command_that_does_not_read_to_the_end_ends_anyway() {
    let (stdout, _, ending) = run(&shell("head -c 3"), io::repeat(b'y'));
    assert_eq!((stdout.as_slice(), ending), (&b"yyy"[..], Some(Ending::Exited(0))));
    // It goes on after it has closed its standard input.
    let (stdout, ..) = run(&shell("exec <&-; sleep 0.2; echo on"), io::repeat(b'y'));
    assert_eq!(stdout, b"on\n");
}

#[test]
fn a_command_whose_reader_has_gone_gets_sigpipe() {
    let streams = Streams { stdin: None, stdout: Box::new(Gone), stderr: Box::new(io::sink()) };
    assert_eq!(run_with(&Session::command(["yes"]).cwd("/"), streams, |_| {}), Some(Ending::Signalled(13)));
}

#[test]
fn a_process_left_in_the_background_does_not_hold_up_the_end() {
    let (stdout, _, ending) = run(&shell("sleep 1000 & echo $!"), io::empty());
    assert_eq!(ending, Some(Ending::Exited(0)));
    let left = String::from_utf8(stdout).unwrap();
    Command::new("kill").arg(left.trim()).status().unwrap();
}

#[test]
fn arguments_environment_and_folder_are_exactly_those_of_the_session() {
    let session = Session::command(["sh", "-c", "pwd; env; printf '<%s>' \"$@\"", "sh", "", "a\nb\"", "="])
        .cwd("/usr")
        .env("ODD", "a=b\nc");
    let (stdout, ..) = run(&session, io::empty());
    let text = String::from_utf8(stdout).unwrap();
    assert!(text.starts_with("/usr\n") && text.ends_with("<><a\nb\"><=>"), "{text}");
    assert!(text.contains("\nODD=a=b\nc\n") && text.contains("\nHOME=/root\n"), "{text}");
    assert!(!text.contains("CARGO"), "the agent's own environment is not passed on: {text}");
}

#[test]
fn commands_that_cannot_be_started_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    let run = |name: &str| run(&Session::command([name]).cwd("/"), io::empty());
    assert_eq!(run("no-such-command").2, Some(Ending::NotStarted(2)));
    assert_eq!(run("/etc/passwd/x").2.unwrap().status(), 127);
    fs::write(&script, "echo script $0").unwrap();
    let script = script.to_str().unwrap();
    assert_eq!(run(script).2, Some(Ending::NotStarted(13)), "it is not executable");
    let (_, _, ending) = super::tests::run(&shell("true").cwd("/no/such/folder"), io::empty());
    assert_eq!(ending, Some(Ending::NotStarted(2)));
    // A script without an interpreter line is run by the shell, as execvp(3) does.
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run(script).0, format!("script {script}\n").into_bytes());
}

#[test]
fn signals_reach_the_command_and_end_it() {
    let stdout = Sink::default();
    let streams = Streams { stdin: None, stdout: Box::new(stdout.clone()), stderr: Box::new(io::sink()) };
    let ending = run_with(&shell("echo up; exec sleep 1000"), streams, |relay| {
        stdout.wait_for(b"up\n");
        relay.signal(15);
    });
    assert_eq!(ending, Some(Ending::Signalled(15)));
}

#[test]
fn a_command_starts_with_every_signal_at_its_default() {
    // The first process starts the agent in the background, where shells ignore SIGINT and SIGQUIT.
    let (stdout, ..) = run(&shell("grep -E 'Sig(Blk|Ign)' /proc/self/status"), io::empty());
    assert_eq!(stdout, b"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn a_command_on_a_terminal_sees_one_of_the_right_size() {
    let stdout = Sink::default();
    let streams = Streams {
        stdin: Some(Box::new(io::Cursor::new(b"typed\n"))),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(io::sink()),
    };
    let script =
        "stty size; read line; echo \"got $line\"; until stty size | grep '^5 6$'; do :; done; test -t 2";
    let session = shell(script).on_terminal().size(Size { rows: 40, columns: 90 });
    let ending = run_with(&session, streams, |relay| {
        stdout.wait_for(b"got typed\r\n");
        relay.resize(Size { rows: 5, columns: 6 });
    });
    assert_eq!(ending, Some(Ending::Exited(0)));
    let text = String::from_utf8(stdout.bytes()).unwrap();
    // What is typed is echoed when it arrives, before or after the first line.
    assert!(
        text.contains("40 90\r\n") && text.contains("typed\r\n") && text.ends_with("5 6\r\n"),
        "{text:?}"
    );
}

#[test]
fn the_end_of_standard_input_is_ctrl_d_on_a_terminal() {
    let (stdout, _, ending) = run(&Session::command(["cat"]).cwd("/").on_terminal(), io::Cursor::new(b"a\n"));
    assert_eq!(ending, Some(Ending::Exited(0)));
    assert!(stdout.ends_with(b"a\r\n"), "{stdout:?}");
}

#[test]
fn a_shell_runs_on_the_console_and_its_status_comes_over_the_channel() {
    let (console, port) = (pty(), pty());
    let (mut child, _folder) = start(&Session::shell().cwd("/"), &port.path, &console.path);
    let mut keyboard = console.master.try_clone().unwrap();
    let mut screen = console.master;
    let streams = Streams { stdin: None, stdout: Box::new(io::sink()), stderr: Box::new(io::sink()) };
    let mut to_guest = port.master.try_clone().unwrap();
    let mut from_guest = port.master;
    let (relay, mut writer) = Relay::start(streams, move |bytes| to_guest.write_all(bytes));
    let copy = thread::spawn(move || io::copy(&mut from_guest, &mut writer));
    let log = thread::spawn(move || {
        let mut log = Vec::new();
        let _ = screen.read_to_end(&mut log);
        log
    });
    relay.resize(Size { rows: 7, columns: 8 });
    keyboard.write_all(b"until stty size | grep '^7 8$'; do :; done; exit 9\n").unwrap();
    assert!(child.wait().unwrap().success());
    drop((port.slave, console.slave));
    let _ = copy.join().unwrap();
    let log = String::from_utf8_lossy(&log.join().unwrap()).into_owned();
    assert!(log.contains("7 8\r\n"), "{log}");
    assert_eq!(relay.finish().unwrap(), Some(Ending::Exited(9)));
}

#[test]
fn a_shell_runs_without_a_channel() {
    let console = pty();
    let (mut child, _folder) = start(&Session::shell().cwd("/"), "/no/such/port", &console.path);
    let mut keyboard = console.master;
    keyboard.write_all(b"exit 0\n").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_command_without_its_channel_is_refused() {
    let (mut child, _folder) = start(&shell("true"), "/no/such/port", "");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_port_that_hangs_up_takes_the_command_with_it() {
    let port = pty();
    let (mut child, _folder) = start(&shell("sleep 1000"), &port.path, "");
    let mut hello = [0; 15];
    let mut from_guest = port.master;
    from_guest.read_exact(&mut hello).unwrap();
    drop((from_guest, port.slave));
    assert!(child.wait().unwrap().success());
}
