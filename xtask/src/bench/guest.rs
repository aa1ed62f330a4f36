//! What every monitor boots: the same kernel, the same initramfs, the same words on the command line.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use posada_image::session::Session;
use posada_image::{Image, Images, Initramfs, Progress};

use super::console::MARK;
use super::workload::Workload;

/// Guest memory, in bytes.
pub(crate) const MEMORY: u64 = 512 << 20;

/// The processor model that every monitor has.
pub(crate) const LEVEL: &str = "x86-64-v2";

/// Words after those of the image. `earlyprintk` shows the kernel's first line when it is printed; what is less than a
/// notice stays off the console, for a serial port that takes its time would otherwise be what is measured. Processors
/// that need no mitigation against speculation and those that do shall carry out the same instructions.
pub(crate) const APPEND: &str = "earlyprintk=ttyS0,115200 loglevel=6 mitigations=off";

/// Files and words for a boot.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Holds the files, and what monitors make of them.
    pub(crate) folder: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) append: String,
    /// The processor model, by its x86-64 psABI level.
    pub(crate) cpu: String,
    /// Guest memory, in bytes.
    pub(crate) memory: u64,
    /// The image and its version, for people.
    pub(crate) title: String,
}

impl Guest {
    /// Takes the `debian` image, fetching it if need be, and puts into `folder` the initramfs whose login shell runs
    /// the workloads.
    pub(crate) fn new(
        folder: &Path,
        workloads: &[&Workload],
        progress: &mut dyn Progress,
    ) -> anyhow::Result<Self> {
        let image = Images::open()?.get("debian", progress)?;
        let steps = workloads.iter().map(|workload| (workload.name, workload.script));
        Self::of(&image, folder, &script(steps), |_| Ok(()))
    }

    /// A guest of this image whose login shell runs a script, and which has whatever `more` puts into its initramfs.
    pub(crate) fn of(
        image: &Image,
        folder: &Path,
        script: &str,
        more: impl FnOnce(&mut Initramfs<&mut Vec<u8>>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let session = Session::shell();
        let mut initrd = image.initrd(&session)?;
        // Linux unpacks archives one after another; later files win.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        let mut archive = Initramfs::new(&mut initrd);
        archive.file("root/.profile", 0o644, script.as_bytes())?;
        more(&mut archive)?;
        archive.finish()?;
        let path = folder.join("initrd");
        fs::write(&path, initrd).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            kernel: image.kernel(),
            initrd: path,
            append: format!("{} {APPEND}", image.append(&session)),
            cpu: LEVEL.to_owned(),
            memory: MEMORY,
            title: format!("Linux {} with {}", image.version(), tools(image)),
        })
    }
}

/// The packages besides the kernel.
fn tools(image: &Image) -> String {
    let packages = image.packages().iter().filter(|package| !package.name.starts_with("linux-"));
    let names: Vec<_> = packages.map(|package| format!("{} {}", package.name, package.version)).collect();
    names.join(", ")
}

/// What the login shell reads first: names of workloads, and their commands.
pub(crate) fn script<'a>(workloads: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    use std::fmt::Write as _;
    let mut script = format!("echo '{MARK} shell'\nmkdir -p /tmp/bench && cd /tmp/bench\n");
    for (name, commands) in workloads {
        let _ = write!(
            script,
            "echo '{MARK} begin {name}'\nresult=$({commands})\necho \"{MARK} end {name} $result\"\n"
        );
    }
    // Whoever watches takes the measure of the monitor now, and ends it.
    let _ = write!(script, "echo '{MARK} done'\nexec sleep 3600\n");
    script
}

#[cfg(test)]
#[path = "guest_test.rs"]
mod tests;
