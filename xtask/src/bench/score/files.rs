//! The scoreboard's program, and an initramfs in which it is the first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use posada_image::{Images, Initramfs};

use super::super::guest::{APPEND, Guest, LEVEL, MEMORY};
use super::super::progress::Progress;
use super::programs;
use super::row::{Group, Row};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Static and at fixed addresses, for the first instruction set of 64-bit processors: the same bits for everybody.
const FLAGS: &str =
    "-Ctarget-feature=+crt-static -Crelocation-model=static -Ctarget-cpu=x86-64 -Cstrip=symbols";

/// Where whole programs are in a guest.
const PROGRAMS: &str = "/programs";

/// What somebody needs to do the work.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    /// For a monitor.
    pub(crate) guest: Guest,
    /// For the host itself.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    rows: String,
    /// Where whole programs are on the host.
    programs: Option<PathBuf>,
}

impl Files {
    /// Compiles the program and makes the initramfs, in `folder`.
    pub(crate) fn new(folder: &Path, rows: &[&Row], progress: &mut Progress) -> anyhow::Result<Self> {
        let image = Images::open()?.get("debian", progress)?;
        progress.say("compiling the scoreboard".to_owned());
        let program = build("scoreboard")?;
        let initrd = folder.join("initrd");
        let mut archive = Initramfs::new(Vec::new());
        archive.character_device("dev/console", 0o600, (5, 1))?;
        let contents = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
        archive.file("init", 0o755, &contents)?;
        let mut title = format!("Linux {}", image.version());
        let mut tree = None;
        if rows.iter().any(|row| row.group == Group::Programs) {
            let (folder, packages) = programs::folder(&target()?, progress)?;
            programs::archive(&mut archive, &folder, PROGRAMS.trim_start_matches('/'))?;
            title = format!("{title}, with {packages}");
            tree = Some(folder);
        }
        fs::write(&initrd, archive.finish()?).with_context(|| format!("writing {}", initrd.display()))?;
        let guest = Guest {
            folder: folder.to_owned(),
            kernel: image.kernel(),
            initrd,
            // Programs keep their own errors from a console that is timed; the kernel its own news.
            append: format!("console=ttyS0 panic=-1 cryptomgr.notests {APPEND}"),
            cpu: LEVEL.to_owned(),
            memory: MEMORY,
            title,
        };
        let rows = rows.iter().map(|row| row.name).collect::<Vec<_>>().join(",");
        Ok(Self { guest, program, arguments: Vec::new(), rows, programs: tree })
    }

    /// The same for one of so many parts of the work, and for this processor model.
    pub(crate) fn with(&self, divide: u32, model: String) -> Self {
        let mut files = self.clone();
        let arguments = |programs: Option<&str>| {
            let mut words = vec!["--marks".to_owned(), "--divide".to_owned(), divide.to_string()];
            words.extend(programs.iter().flat_map(|folder| ["--programs", folder]).map(str::to_owned));
            words.push(self.rows.clone());
            words
        };
        let folder = self.programs.as_ref().map(|folder| folder.to_string_lossy());
        files.arguments = arguments(folder.as_deref());
        // The kernel gives the words after two hyphens to the first process.
        let words = arguments(folder.as_ref().map(|_| PROGRAMS)).join(" ");
        files.guest.append = format!("{} -- {words}", self.guest.append);
        files.guest.cpu = model;
        files
    }
}

/// Where things are made that last, beside what is built for the host.
fn target() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(2).context("this program is in no folder")?.join("guests"))
}

/// Compiles a package of `guests`, and returns its program.
pub(crate) fn build(name: &str) -> anyhow::Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests").join(name).join("Cargo.toml");
    let target = target()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET, "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS)
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("{} does not compile:\n{}", manifest.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(target.join(TARGET).join("release").join(name))
}
