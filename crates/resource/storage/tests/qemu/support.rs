//! Files in a folder of the test's own, and QEMU's tools.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use fastrand::Rng;
use posada_storage::{Disk, Format, Options, open};

pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command line of `qemu-img`, in this folder.
    pub(crate) fn try_qemu_img(&self, arguments: &str) -> Output {
        run("qemu-img", arguments.split_whitespace(), &self.0)
    }

    /// The same, which must succeed.
    pub(crate) fn qemu_img(&self, arguments: &str) -> String {
        let output = self.try_qemu_img(arguments);
        assert!(output.status.success(), "qemu-img {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs commands of `qemu-io` on an image.
    pub(crate) fn qemu_io(&self, image: &str, commands: &[&str]) {
        let arguments = commands.iter().flat_map(|command| ["-c", command]).chain([image]);
        let output = run("qemu-io", arguments, &self.0);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("failed"), "qemu-io {commands:?}: {output:?}");
    }

    /// QEMU finds the image in order.
    pub(crate) fn check(&self, image: &str) {
        let said = self.qemu_img(&format!("check {image}"));
        assert!(said.contains("No errors were found"), "{said}");
    }

    /// A raw file with `bytes`.
    pub(crate) fn raw(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub(crate) fn open(&self, name: &str) -> Arc<dyn Disk> {
        open(self.path(name), &Options::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn open_read_only(&self, name: &str) -> Arc<dyn Disk> {
        let options = Options { read_only: true, ..Options::default() };
        open(self.path(name), &options).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn open_as(&self, name: &str, format: Format) -> Arc<dyn Disk> {
        let options = Options { read_only: true, format: Some(format), snapshot: false };
        open(self.path(name), &options).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

fn run<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
    folder: &tempfile::TempDir,
) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder.path()).output().expect("qemu-utils is installed")
}

/// Everything that a disk holds.
pub(crate) fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.size() as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Bytes of which some parts are zeroes, some repeat, and some are random.
pub(crate) fn mixed(length: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        let end = (at + rng.usize(1..150_000)).min(length);
        match rng.u8(..4) {
            0 => {}
            1 => rng.fill(&mut bytes[at..end]),
            _ => {
                let pattern = rng.u16(..).to_le_bytes();
                bytes[at..end].iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern[at / 3 % 2]);
            }
        }
        at = end;
    }
    bytes
}

/// Random requests, to a disk and to an array that holds the same.
pub(crate) fn change(disk: &dyn Disk, model: &mut [u8], steps: u32, rng: &mut Rng) {
    for _ in 0..steps {
        let start = rng.usize(..model.len());
        let length = if rng.bool() { rng.usize(1..=4096) } else { rng.usize(1..=300_000) };
        let range = start..(start + length).min(model.len());
        let (offset, length) = (start as u64, range.len() as u64);
        match rng.u8(..8) {
            0 | 1 => {
                disk.write_zeroes(offset, length, rng.bool()).unwrap();
                model[range].fill(0);
            }
            2 => {
                disk.discard(offset, length).unwrap();
                disk.read(offset, &mut model[range]).unwrap();
            }
            3 => disk.flush().unwrap(),
            _ => {
                let data = mixed(range.len(), rng);
                disk.write(offset, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
        }
    }
}
