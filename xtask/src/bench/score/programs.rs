//! Whole programs from Debian's packages, with their libraries and inputs, in a folder that runs anywhere: on the host
//! by its own loader, and in a guest likewise.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use posada_image::{Initramfs, PackageFiles, Progress};

use super::inputs;

/// Packages that bring the programs.
const PACKAGES: [&str; 6] = ["gzip", "coreutils", "mawk", "python3-minimal", "sqlite3", "cpp"];

/// Where libraries are, and the loader among them.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The list that the scoreboard reads; written last, so a folder that has it is complete.
const LIST: &str = "rows";

/// Which version of this module made a folder.
const FORMAT: &str = "1";

/// Programs: the row's name, how many runs take half a second or so, the last part of the program's path, and
/// arguments. Paths are relative, for some outputs tell them.
const PROGRAMS: [(&str, u32, &str, &str); 6] = [
    ("gzip", 2, "bin/gzip", "-n -c text"),
    ("sha256sum", 4, "bin/sha256sum", "text text text text text text text text text text"),
    ("awk", 8, "bin/mawk", "-f count.awk text"),
    ("python3", 8, "bin/python3", "-S work.py"),
    ("sqlite3", 4, "bin/sqlite3", "-batch -init queries.sql :memory:"),
    ("cc", 2, "cc1", "-quiet -fpreprocessed -O2 program.i -o -"),
];

/// The folder of programs, made at `place` if it is not there yet; and what it was made from.
pub(crate) fn folder(place: &Path, progress: &mut dyn Progress) -> anyhow::Result<(PathBuf, String)> {
    let folder = place.join(format!("programs-{FORMAT}"));
    let packages = folder.join("packages");
    if !folder.join(LIST).is_file() {
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        make(&folder, progress).with_context(|| format!("making {}", folder.display()))?;
    }
    let title = fs::read_to_string(&packages).with_context(|| format!("reading {}", packages.display()))?;
    Ok((folder, title))
}

fn make(folder: &Path, progress: &mut dyn Progress) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    let scratch = tempfile::tempdir()?;
    let wanted =
        |path: &Path| path.starts_with("bin") || path.starts_with("lib") || path.starts_with("lib64");
    let all = PackageFiles::fetch(&PACKAGES, scratch.path(), wanted, progress)?;
    let write = |place: &Path, contents: &[u8]| -> anyhow::Result<()> {
        let path = folder.join(place);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    // The standard library of Python, and all shared libraries: which of these are needed, their loader tells.
    for path in all.files.keys() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let library = path.parent() == Some(Path::new(LIBRARIES)) && name.contains(".so");
        let python = path.starts_with("lib")
            && path.iter().nth(1).is_some_and(|part| is_python(&part.to_string_lossy()));
        if let Some(contents) = all.contents(path).filter(|_| library || python) {
            write(path, contents)?;
        }
    }
    let loader = folder.join(LIBRARIES).join(LOADER);
    let mut list = String::new();
    let mut needed = BTreeSet::from([LOADER.to_owned()]);
    for (name, batches, suffix, arguments) in PROGRAMS {
        let matches = |path: &&PathBuf| path.ends_with(suffix) && all.contents(path).is_some();
        let path = all.files.keys().find(matches).with_context(|| format!("no package has {suffix}"))?;
        write(path, all.contents(path).unwrap_or_default())?;
        needed.extend(libraries(folder, &loader, path)?);
        let program = path.display();
        let _ = writeln!(
            list,
            "{name} {batches} {{}}/{LIBRARIES}/{LOADER} --library-path {{}}/{LIBRARIES} {{}}/{program} {arguments}"
        );
    }
    for entry in fs::read_dir(folder.join(LIBRARIES))? {
        let entry = entry?;
        if !needed.contains(&*entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    let (text, program) = (inputs::text(), inputs::c());
    let inputs = [
        ("text", &*text),
        ("program.i", &program),
        ("count.awk", inputs::AWK),
        ("work.py", inputs::PYTHON),
        ("queries.sql", inputs::SQL),
    ];
    for (name, contents) in inputs {
        write(Path::new(name), contents.as_bytes())?;
    }
    let named = |name: &str| {
        all.packages
            .iter()
            .find(|package| package.name == name)
            .map(|package| format!("{name} {}", package.version))
    };
    let versions: Vec<_> = PACKAGES.into_iter().chain(["libc6"]).filter_map(named).collect();
    write(Path::new("packages"), versions.join(", ").as_bytes())?;
    write(Path::new(LIST), list.as_bytes())
}

/// `python3.11`, which is where its library is.
fn is_python(name: &str) -> bool {
    name.strip_prefix("python3.").is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The names of the libraries that a program of the folder is linked with.
fn libraries(folder: &Path, loader: &Path, program: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(loader)
        .arg("--library-path")
        .arg(folder.join(LIBRARIES))
        .arg("--list")
        .arg(folder.join(program))
        .env_clear()
        .output()
        .with_context(|| format!("starting {}", loader.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || text.contains("not found") {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} lacks libraries:\n{text}{said}", program.display());
    }
    Ok(parse_list(&text))
}

/// The names in the loader's list: `libz.so.1 => /some/where/libz.so.1 (0x…)`.
fn parse_list(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.trim().split_once(" => "));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// Puts a folder into an archive, at `place`; what Python compiled in the meantime is left out.
pub(crate) fn archive<W: std::io::Write>(
    archive: &mut Initramfs<W>,
    folder: &Path,
    place: &str,
) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let place = format!("{place}/{name}");
        if name == "__pycache__" {
            continue;
        }
        if path.is_dir() {
            self::archive(archive, &path, &place)?;
        } else {
            let contents = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            archive.file(&place, 0o755, &contents)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::row::{Group, ROWS};
    use super::*;

    #[test]
    fn libraries_are_what_the_loader_lists() {
        let text = "\tlinux-vdso.so.1 (0x7ff)\n\tlibz.so.1 => /a/libz.so.1 (0x7f0)\n\t/a/ld.so (0x7f1)\n";
        assert_eq!(parse_list(text), ["libz.so.1"]);
    }

    #[test]
    fn pythons_library_is_that_of_one_version() {
        assert!(is_python("python3.11") && !is_python("python3") && !is_python("python3.11-doc"));
    }

    #[test]
    fn every_program_is_a_row() {
        let rows: Vec<_> =
            ROWS.iter().filter(|row| row.group == Group::Programs).map(|row| row.name).collect();
        assert_eq!(rows, PROGRAMS.map(|(name, ..)| name));
    }
}
