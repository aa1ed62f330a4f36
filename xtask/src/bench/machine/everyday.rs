//! A whole Debian on a disk: how soon one is logged in, and what the guest takes afterwards, while nobody does anything.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use posada_image::session::Session;
use posada_image::{Image, Images, Progress};

use super::super::guest::{Guest, LEVEL};
use super::super::measure::{Reaped, cpu_time, tethered};
use super::super::memory;
use super::super::monitor::{Disk, Monitor, posada};
use super::Part;
use super::row::{IDLE, LOGIN, OWN, Value, Values};

const IMAGE: &str = "debian:bookworm";

/// What the shell of the one who is logged in says first.
const PROMPT: &[u8] = b"root@debian";

/// How long a boot may take.
const PATIENCE: Duration = Duration::from_mins(3);

/// How long the system may go on with what it begins at boot.
const SETTLE: Duration = Duration::from_secs(15);

/// How long it is watched then.
const WATCH: Duration = Duration::from_secs(20);

pub(super) struct Everyday {
    pub(super) guest: Guest,
    disk: PathBuf,
}

impl Everyday {
    /// Takes the image, building it if need be.
    pub(super) fn new(folder: &Path, progress: &mut dyn Progress) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let image = image(progress)?;
        let disk = image.disk().with_context(|| format!("{IMAGE} has no disk"))?;
        let initrd = folder.join("initrd");
        fs::write(&initrd, image.initrd_for_disk(None, false)?)
            .with_context(|| format!("writing {}", initrd.display()))?;
        let guest = Guest {
            folder: folder.to_owned(),
            kernel: image.kernel(),
            initrd,
            append: format!("{} mitigations=off", image.append(&Session::shell())),
            cpu: LEVEL.to_owned(),
            memory: image.memory(),
            title: format!("{IMAGE}, version {}", image.version()),
        };
        Ok(Self { guest, disk })
    }

    fn run(&self, monitor: &dyn Monitor, values: &mut Values) -> anyhow::Result<()> {
        let mut launch = monitor.launch(&self.guest)?;
        let disk = Disk { path: self.disk.clone(), format: "qcow2", snapshot: true };
        launch.command.args(monitor.devices(&[disk]).context("it has no disks")?);
        launch.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = Reaped(launch.command.spawn().context("starting it")?);
        let pid = child.0.id();
        let login = wait_for(&watch(child.0.stdout.take().context("no console")?), PROMPT)?;
        let took = (login - start).as_secs_f64();
        let processors = Some(cpu_time(pid)?.as_secs_f64() / took);
        values.insert(LOGIN.to_owned(), Value { value: took, processors });
        thread::sleep(SETTLE);
        let (before, began) = (cpu_time(pid)?, Instant::now());
        thread::sleep(WATCH);
        let used = cpu_time(pid)?.saturating_sub(before).as_secs_f64();
        values.insert(IDLE.to_owned(), Value::plain(100.0 * used / began.elapsed().as_secs_f64()));
        let own = memory::own_without_code(pid, self.guest.memory)?;
        values.insert(OWN.to_owned(), Value::plain(own as f64 / f64::from(1 << 20)));
        Ok(())
    }
}

impl Part for Everyday {
    fn name(&self) -> &'static str {
        "a whole Debian"
    }

    fn measure(&self, monitor: &dyn Monitor) -> (Values, Option<anyhow::Error>) {
        let mut values = Values::new();
        let failure = self.run(monitor, &mut values).err();
        (values, failure)
    }
}

/// The image: from the cache, or built by the command, which has a machine to build it in.
fn image(progress: &mut dyn Progress) -> anyhow::Result<Image> {
    let images = Images::open()?;
    if images.matching(IMAGE).is_err() {
        let status =
            tethered(posada::build()?).args(["run", IMAGE, "--", "true"]).stdin(Stdio::null()).status();
        if !status.context("starting posada")?.success() {
            bail!("{IMAGE} could not be built");
        }
    }
    Ok(images.get(IMAGE, progress)?)
}

/// Reads a console in a thread of its own, to the end.
fn watch(mut console: impl Read + Send + 'static) -> Receiver<(Instant, Vec<u8>)> {
    let (sender, pieces) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = console.read(&mut buffer) {
            // Whoever waits may have seen enough; the guest goes on.
            let _ = sender.send((Instant::now(), buffer[..n].to_vec()));
        }
    });
    pieces
}

/// When these words came.
fn wait_for(pieces: &Receiver<(Instant, Vec<u8>)>, words: &[u8]) -> anyhow::Result<Instant> {
    let begin = Instant::now();
    let mut seen = Vec::new();
    loop {
        let left = PATIENCE.saturating_sub(begin.elapsed());
        let Ok((when, piece)) = pieces.recv_timeout(left) else {
            let tail = &seen[seen.len().saturating_sub(500)..];
            bail!("nobody was logged in; the end of the console:\n{}", String::from_utf8_lossy(tail));
        };
        // The words may come in two pieces.
        let from = seen.len().saturating_sub(words.len());
        seen.extend(piece);
        if seen[from..].windows(words.len()).any(|window| window == words) {
            return Ok(when);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_come_in_pieces_are_found() {
        let pieces = watch(&b"Welcome\r\nroot@debian:~# "[..]);
        assert!(wait_for(&pieces, PROMPT).is_ok());
        let (sender, pieces) = channel();
        for piece in ["ro", "ot@deb", "ian"] {
            sender.send((Instant::now(), piece.into())).unwrap();
        }
        assert!(wait_for(&pieces, PROMPT).is_ok());
    }

    #[test]
    fn the_end_of_a_console_without_the_words_is_shown() {
        let error = wait_for(&watch(&b"Kernel panic"[..]), PROMPT).unwrap_err();
        assert!(error.to_string().contains("Kernel panic"), "{error}");
    }
}
