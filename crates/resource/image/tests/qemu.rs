//! Sessions in a real guest: the `debian` image under QEMU, with the host's end of the protocol being ours.
//!
//! Ignored by a plain `cargo test`, for they fetch the image once; `cargo xtask test` runs them. Where there is no QEMU
//! they say so and pass.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posada_image::session::{Ending, Relay, Session, Size, Streams};
use posada_image::{Image, Images, Silent};

const QEMU: &str = "qemu-system-x86_64";

fn image() -> Image {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("posada");
    Images::at(cache).get("debian", &mut Silent).unwrap()
}

fn has_qemu() -> bool {
    let found = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: there is no {QEMU}");
    }
    found
}

/// A QEMU with the console on its standard streams and the session's port on a socket.
struct Guest {
    qemu: Child,
    folder: tempfile::TempDir,
    listener: UnixListener,
}

impl Guest {
    fn boot(session: &Session, memory: &str) -> Self {
        let image = image();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("port")).unwrap();
        let initrd = folder.path().join("initrd");
        fs::write(&initrd, image.initrd(session).unwrap()).unwrap();
        let qemu = Command::new(QEMU)
            .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-m", memory])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(initrd)
            .arg("-append")
            .arg(image.append(session))
            .args(["-serial", "stdio", "-chardev"])
            .arg(format!("socket,id=port,path={}", folder.path().join("port").display()))
            .args(["-serial", "chardev:port", "-monitor"])
            .arg(format!("unix:{},server=on,wait=off", folder.path().join("monitor").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { qemu, folder, listener }
    }

    /// Presses the power button, again and again until QEMU ends: what listens to it may not be up yet.
    fn press_power_button(&self) {
        let mut monitor = UnixStream::connect(self.folder.path().join("monitor")).unwrap();
        let mut answers = monitor.try_clone().unwrap();
        std::thread::spawn(move || io::copy(&mut answers, &mut io::sink()));
        std::thread::spawn(move || {
            while writeln!(monitor, "system_powerdown").is_ok() {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
    }
}

#[derive(Debug)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ending: Option<Ending>,
}

impl Outcome {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a session to its end.
fn run(session: &Session, stdin: impl Read + Send + 'static) -> Outcome {
    run_in(session, stdin, "256M", |_, _| {})
}

fn run_in(
    session: &Session,
    stdin: impl Read + Send + 'static,
    memory: &str,
    meanwhile: impl FnOnce(&Relay, &Sink),
) -> Outcome {
    let mut guest = Guest::boot(session, memory);
    let (mut port, _) = guest.listener.accept().unwrap();
    let mut to_guest = port.try_clone().unwrap();
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let streams = Streams {
        stdin: Some(Box::new(stdin)),
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
    };
    let (relay, mut from_guest) = Relay::start(streams, move |bytes| to_guest.write_all(bytes));
    let mut console = guest.qemu.stdout.take().unwrap();
    let console = std::thread::spawn(move || {
        let mut log = Vec::new();
        let _ = console.read_to_end(&mut log);
        String::from_utf8_lossy(&log).into_owned()
    });
    let copy = std::thread::spawn(move || io::copy(&mut port, &mut from_guest));
    meanwhile(&relay, &stdout);
    assert!(guest.qemu.wait().unwrap().success());
    let _ = copy.join().unwrap();
    let ending = relay.finish().unwrap();
    let console = console.join().unwrap();
    assert!(ending.is_some(), "the guest stopped without a word; its console:\n{console}");
    drop(guest.folder);
    let (stdout, stderr) = (stdout.0.lock().unwrap().clone(), stderr.0.lock().unwrap().clone());
    Outcome { stdout, stderr, ending }
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn a_command_prints_the_kernels_release_and_nothing_else() {
    if !has_qemu() {
        return;
    }
    let start = Instant::now();
    let outcome = run(&Session::command(["uname", "-r"]), io::empty());
    assert_eq!(outcome.text(), format!("{}\n", image().version()));
    assert!(outcome.stderr.is_empty(), "{outcome:?}");
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    println!("boot, command and power-off took {:?}", start.elapsed());
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn exit_status_standard_error_and_odd_arguments_pass_unchanged() {
    if !has_qemu() {
        return;
    }
    let odd = OsString::from_vec(b"a b\n\"'$HOME`\\ \xff\xfe*".to_vec());
    let script = "printf '[%s]' \"$@\"; printf 'e\\r\\n' >&2; pwd; exit 42";
    let mut arguments: Vec<OsString> = ["sh", "-c", script, "sh"].map(Into::into).into();
    arguments.extend([odd.clone(), OsString::new()]);
    let outcome = run(&Session::command(arguments).cwd("/etc"), io::empty());
    let expected = [b"[", odd.into_vec().as_slice(), b"][]/etc\n"].concat();
    assert_eq!(outcome.stdout, expected);
    assert_eq!(outcome.stderr, b"e\r\n");
    assert_eq!(outcome.ending, Some(Ending::Exited(42)));
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn a_quarter_megabyte_of_any_bytes_goes_in_and_comes_out_the_same() {
    if !has_qemu() {
        return;
    }
    let bytes: Vec<u8> =
        (0..1 << 18_u32).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let start = Instant::now();
    let outcome = run(&Session::command(["cat"]), io::Cursor::new(bytes.clone()));
    assert!(outcome.stdout == bytes, "{} bytes came back", outcome.stdout.len());
    assert_eq!(outcome.ending, Some(Ending::Exited(0)));
    println!("took {:?}", start.elapsed());
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn a_command_on_a_terminal_has_its_size_and_gets_signals() {
    if !has_qemu() {
        return;
    }
    let script = "tty; stty size; trap 'stty size; exit 7' TERM; echo ready; while :; do :; done";
    let session = Session::command(["sh", "-c", script])
        .on_terminal()
        .size(Size { rows: 11, columns: 22 })
        .env("TERM", "dumb");
    let outcome = run_in(&session, Never, "256M", |relay, stdout| {
        // The trap is set by then; before, the default action would end the shell.
        while !stdout.0.lock().unwrap().ends_with(b"ready\r\n") {
            std::thread::sleep(Duration::from_millis(20));
        }
        relay.resize(Size { rows: 33, columns: 44 });
        relay.signal(15);
    });
    assert_eq!(outcome.text(), "/dev/pts/0\r\n11 22\r\nready\r\n33 44\r\n");
    assert_eq!(outcome.ending, Some(Ending::Exited(7)));
}

/// A standard input at which nobody types.
struct Never;

impl Read for Never {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        loop {
            std::thread::park();
        }
    }
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn what_cannot_be_run_and_what_a_signal_ends_is_told() {
    if !has_qemu() {
        return;
    }
    let missing = run(&Session::command(["no-such-command"]), io::empty());
    assert_eq!(missing.ending, Some(Ending::NotStarted(2)));
    let forbidden = run(&Session::command(["/etc/passwd"]), io::empty());
    assert_eq!(forbidden.ending.unwrap().status(), 126);
    let killed = run(&Session::command(["sh", "-c", "kill -9 $$"]), io::empty());
    assert_eq!(killed.ending, Some(Ending::Signalled(9)));
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn modules_load_with_what_they_depend_on_in_128_megabytes() {
    if !has_qemu() {
        return;
    }
    let script = "for module in virtio_net virtio_blk xfs btrfs kvm_amd overlay; do \
                  modprobe $module && echo $module; done; lsmod | grep -c virtio; free -m | grep Mem >&2";
    let outcome = run_in(&Session::command(["sh", "-c", script]), io::empty(), "128M", |_, _| {});
    println!("{}", String::from_utf8_lossy(&outcome.stderr));
    let text = outcome.text();
    for module in ["virtio_net", "virtio_blk", "xfs", "btrfs", "overlay"] {
        assert!(text.lines().any(|line| line == module), "{module} did not load: {outcome:?}");
    }
}

/// A shell session up to its prompt, and what is needed to type into it and to see what it says.
struct Console {
    guest: Guest,
    keyboard: ChildStdin,
    screen: ChildStdout,
    relay: Relay,
    copy: std::thread::JoinHandle<io::Result<u64>>,
}

impl Console {
    fn boot() -> Self {
        let session = Session::shell().size(Size { rows: 30, columns: 100 }).env("TERM", "vt100");
        let mut guest = Guest::boot(&session, "256M");
        let (mut port, _) = guest.listener.accept().unwrap();
        let keyboard = guest.qemu.stdin.take().unwrap();
        let screen = guest.qemu.stdout.take().unwrap();
        let streams = Streams { stdin: None, stdout: Box::new(io::sink()), stderr: Box::new(io::sink()) };
        let mut to_guest = port.try_clone().unwrap();
        let (relay, mut from_guest) = Relay::start(streams, move |bytes| to_guest.write_all(bytes));
        let copy = std::thread::spawn(move || io::copy(&mut port, &mut from_guest));
        let mut console = Self { guest, keyboard, screen, relay, copy };
        console.until("~# ");
        console
    }

    fn enter(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    /// Reads up to and with `wanted`.
    fn until(&mut self, wanted: &str) {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(wanted.as_bytes()) {
            assert_eq!(self.screen.read(&mut byte).unwrap(), 1, "the console ended without {wanted:?}");
            seen.push(byte[0]);
        }
    }

    /// Waits for QEMU's end, and returns the session's.
    fn end(mut self) -> Option<Ending> {
        let _ = io::copy(&mut self.screen, &mut io::sink());
        assert!(self.guest.qemu.wait().unwrap().success());
        let _ = self.copy.join().unwrap();
        self.relay.finish().unwrap()
    }
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn the_shell_has_job_control_on_the_console_and_its_exit_status_comes_home() {
    if !has_qemu() {
        return;
    }
    let mut console = Console::boot();
    console.enter("stty size\n");
    console.until("30 100\r\n");
    // Ctrl-C ends the command and not the shell. It is the command that says when it can be interrupted.
    console.enter("sh -c 'echo go; exec sleep 1000'; echo status $?\n");
    console.until("\r\ngo\r\n");
    console.enter("\x03");
    console.until("~# ");
    console.relay.resize(Size { rows: 50, columns: 132 });
    console.enter("until stty size | grep 50; do sleep 1; done; exit 5\n");
    console.until("50 132\r\n");
    assert_eq!(console.end(), Some(Ending::Exited(5)));
}

#[test]
#[ignore = "boots a guest under QEMU"]
fn poweroff_and_the_power_button_end_a_guest() {
    if !has_qemu() {
        return;
    }
    let mut console = Console::boot();
    console.enter("poweroff\n");
    console.until("Power down");
    assert_eq!(console.end(), None, "the shell did not end of itself");

    let mut console = Console::boot();
    console.guest.press_power_button();
    console.until("Power down");
    console.end();

    let mut console = Console::boot();
    console.enter("reboot\n");
    console.until("Restarting system");
    console.end();
}
