//! Builds a disk for real, and boots it: under QEMU, as Posada's own machine is no room of this crate's.
//!
//! Ignored by a plain `cargo test`; `cargo xtask test` runs it. Where there is no QEMU it says so and passes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use posada_image::session::{Ending, Relay, Session, Streams};
use posada_image::{Images, Machine, Progress, Task};

const QEMU: &str = "qemu-system-x86_64";

/// QEMU's own translator, which needs nothing of the host.
#[derive(Debug)]
struct Qemu;

impl Machine for Qemu {
    fn run(
        &self,
        task: Task<'_>,
        mut console: Box<dyn Write + Send>,
        mut report: Box<dyn Write + Send>,
    ) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let initrd = folder.path().join("initrd");
        fs::write(&initrd, &task.initrd)?;
        let listener = UnixListener::bind(folder.path().join("port"))?;
        let mut qemu = command(task.kernel, &initrd, task.append, task.disk, folder.path(), false).spawn()?;
        let mut stdout = qemu.stdout.take().unwrap();
        thread::spawn(move || io::copy(&mut stdout, &mut console));
        let (mut port, _) = listener.accept()?;
        io::copy(&mut port, &mut report)?;
        let status = qemu.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("QEMU ended with {status}"))) }
    }
}

/// A machine with the console on standard output, and the second serial port on a socket in `folder`.
fn command(kernel: &Path, initrd: &Path, append: &str, disk: &Path, folder: &Path, throw_away: bool) -> Command {
    let mut qemu = Command::new(QEMU);
    let snapshot = if throw_away { "on" } else { "off" };
    qemu.args(["-accel", "tcg", "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot", "-m", "1G"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", append, "-serial", "stdio", "-chardev"])
        .arg(format!("socket,id=port,path={}", folder.join("port").display()))
        .args(["-serial", "chardev:port", "-drive"])
        .arg(format!("if=virtio,discard=unmap,format={},snapshot={snapshot},file={}", format_of(disk), disk.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    qemu
}

fn format_of(disk: &Path) -> &'static str {
    let mut magic = [0; 4];
    let _ = File::open(disk).and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    if magic == *b"QFI\xfb" { "qcow2" } else { "raw" }
}

/// Says on standard output what is being done, and when.
struct Told {
    began: Instant,
    stages: Vec<(String, Option<u64>, u64)>,
}

impl Progress for Told {
    fn stage(&mut self, what: &str, total: Option<u64>) {
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f64());
        self.stages.push((what.to_owned(), total, 0));
    }

    fn advance(&mut self, amount: u64) {
        self.stages.last_mut().expect("a stage comes first").2 += amount;
    }

    fn done(&mut self) {
        println!("{:6.1} s  done", self.began.elapsed().as_secs_f64());
    }
}

#[test]
#[ignore = "fetches 70 MB through apt-get, and runs QEMU for some minutes"]
fn a_disk_is_built_and_boots() {
    if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no {QEMU}");
        return;
    }
    let name = std::env::var("POSADA_TEST_IMAGE").unwrap_or_else(|_| "debian:bookworm-slim".to_owned());
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("disks");
    let images = Images::at(&cache).with_machine(Arc::new(Qemu));
    let mut told = Told { began: Instant::now(), stages: Vec::new() };
    let image = images.get(&name, &mut told).unwrap();
    println!("{} {} in {}", image.name(), image.version(), image.disk().unwrap().display());
    if let Some(installing) = told.stages.iter().find(|(what, ..)| what.starts_with("Installing")) {
        assert_eq!(installing.1, Some(installing.2), "the bar reaches its end");
    }

    let folder = tempfile::tempdir().unwrap();
    let session = Session::command(["sh", "-c", "cat /etc/os-release; systemctl is-system-running; exit 3"]);
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, image.initrd(&session).unwrap()).unwrap();
    let listener = UnixListener::bind(folder.path().join("port")).unwrap();
    let began = Instant::now();
    let append = image.append(&session);
    let disk = image.disk().unwrap();
    let mut qemu = command(&image.kernel(), &initrd, &append, &disk, folder.path(), true).spawn().unwrap();
    let mut stdout = qemu.stdout.take().unwrap();
    thread::spawn(move || io::copy(&mut stdout, &mut io::stdout()));
    let (mut port, _) = listener.accept().unwrap();
    let mut to_guest = port.try_clone().unwrap();
    let streams = Streams { stdin: None, stdout: Box::new(io::stdout()), stderr: Box::new(io::stderr()) };
    let (relay, mut writer) = Relay::start(streams, move |bytes| to_guest.write_all(bytes));
    io::copy(&mut port, &mut writer).unwrap();
    assert!(qemu.wait().unwrap().success());
    println!("ended after {:?}", began.elapsed());
    assert_eq!(relay.finish().unwrap(), Some(Ending::Exited(3)));
    image.verify().unwrap();
}
