//! fio and iperf3 of Debian's packages, as the host has them installed, with the libraries that they are linked with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use posada_image::Initramfs;

/// Where all of it is in the guest.
const FOLDER: &str = "tools";
const LOADER: &str = "ld-linux-x86-64.so.2";

const PROGRAMS: [&str; 2] = ["fio", "iperf3"];

/// How a guest's shell starts one of the programs.
pub(super) fn command(program: &str) -> String {
    format!("/{FOLDER}/{LOADER} --library-path /{FOLDER} /{FOLDER}/{program}")
}

/// Puts them into an archive.
pub(super) fn archive(archive: &mut Initramfs<&mut Vec<u8>>) -> anyhow::Result<()> {
    let mut files = BTreeMap::new();
    for program in PROGRAMS {
        let path = find(program)?;
        files.extend(libraries(&path)?);
        files.insert(program.to_owned(), path);
    }
    for (name, path) in files {
        let contents = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        archive.file(&format!("{FOLDER}/{name}"), 0o755, &contents)?;
    }
    Ok(())
}

/// Their versions, for people.
pub(super) fn versions() -> anyhow::Result<String> {
    let version = |program: &&str| -> anyhow::Result<String> {
        let output = Command::new(find(program)?).arg("--version").stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().split(" (").next().unwrap_or_default().to_owned())
    };
    Ok(PROGRAMS.iter().map(version).collect::<anyhow::Result<Vec<_>>>()?.join(" and "))
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("there is no {program}"))
}

/// The shared libraries of a program by name, the loader among them, as ldd(1) has them.
fn libraries(program: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("starting ldd")?;
    if !output.status.success() {
        bail!("ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// `libz.so.1 => /lib/libz.so.1 (0x7f0)`; the loader stands by itself.
fn parse(text: &str) -> BTreeMap<String, PathBuf> {
    let files = text.lines().filter_map(|line| {
        let path = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some((path.rsplit('/').next()?.to_owned(), PathBuf::from(path)))
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_files_and_the_kernels_own_is_none() {
        let text = "\tlinux-vdso.so.1 (0x7ff)\n\tlibz.so.1 => /a/libz.so.1 (0x7f0)\n\t/a/ld.so (0x7f1)\n";
        let expected = [("ld.so", "/a/ld.so"), ("libz.so.1", "/a/libz.so.1")];
        assert_eq!(parse(text), expected.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into());
    }
}
