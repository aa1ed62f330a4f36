//! Debian packages through the host's apt, without root and without changing the host.
//!
//! apt keeps its package lists and caches where `Dir::State` and `Dir::Cache` say (apt.conf(5)). Given a folder of our
//! own there, `apt-get update` and `apt-get download` work for any user. The host's sources, keys, proxies and pins
//! apply as they are. Hooks that the host runs after an update do not: they belong to the lists of the system.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use crate::cache;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// How much of an answer is kept; apt's longest, a package's record, is some kilobytes.
const MAX_ANSWER: u64 = 1 << 20;

/// How many of apt's last lines an error shows.
const LINES: usize = 8;

/// Options that a command line cannot express: lists are cleared in a file only.
const CONFIGURATION: &str = "\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Post-Invoke-Stats;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
";

/// Options that are the same for everyone.
const OPTIONS: [&str; 16] = [
    // The guest's architecture, whatever the host's.
    "APT::Architecture=amd64",
    "APT::Architectures=amd64",
    // For root, apt would download as user _apt, who may not enter our folder.
    "APT::Sandbox::User=root",
    "Acquire::Retries=3",
    // Only the package lists: no translations, sources, file lists, icons.
    "Acquire::Languages=none",
    "Acquire::PDiffs=false",
    "Acquire::IndexTargets::deb-src::Sources::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::DEP-11-icons-large::DefaultEnabled=false",
    "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false",
    // Some hosts have no cache of what the lists say, and so read them anew for each question.
    "Dir::Cache::pkgcache=pkgcache.bin",
    "Dir::Cache::srcpkgcache=srcpkgcache.bin",
    // Progress on standard output, as lines that begin with `dlstatus:`.
    "APT::Status-Fd=1",
];

/// The host's apt with state of our own.
pub(crate) struct Apt {
    get: Vec<OsString>,
    cache: Vec<OsString>,
    config: Vec<OsString>,
    options: Vec<OsString>,
    state: PathBuf,
    /// What went wrong while the lists were updated, for the errors that come of it.
    trouble: Vec<String>,
}

/// A package file that can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Download {
    /// The file's name, which apt gives it in the current folder.
    pub(crate) file: String,
    pub(crate) size: u64,
    /// Its SHA-256, in hexadecimal, if the list states one.
    pub(crate) sha256: Option<String>,
}

/// A package's record in the lists: its fields.
pub(crate) type Record = BTreeMap<String, String>;

impl Apt {
    /// The `apt-get` and `apt-cache` in `PATH`, with state in `folder`, which exists and is empty.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let find = |name: &str| {
            let mut folders = std::env::split_paths(&path);
            let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
            found.ok_or_else(|| Error::NoApt { tried: format!("{name} is in no folder of PATH") })
        };
        let programs = [find("apt-get")?, find("apt-cache")?, find("apt-config")?];
        Self::with(programs.map(|path| vec![path.into()]), folder)
    }

    /// With other programs in the place of `apt-get`, `apt-cache` and `apt-config`.
    pub(crate) fn with(programs: [Vec<OsString>; 3], folder: &Path) -> Result<Self> {
        let [get, cache, config] = programs;
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part)).map_err(Error::io("create", folder))?;
        }
        let configuration = folder.join("apt.conf");
        fs::write(&configuration, CONFIGURATION).map_err(Error::io("write", &configuration))?;
        // No package is installed, as far as this apt knows.
        let status = folder.join("status");
        fs::write(&status, "").map_err(Error::io("write", &status))?;

        let mut options: Vec<OsString> = vec!["-c".into(), configuration.into()];
        let mut set = |option: &str, value: &OsStr| {
            let mut argument = OsString::from(option);
            argument.push("=");
            argument.push(value);
            options.extend(["-o".into(), argument]);
        };
        let folders = [
            ("Dir::State", folder.to_owned()),
            ("Dir::State::Lists", folder.join("lists")),
            ("Dir::State::status", status),
            ("Dir::Cache", folder.to_owned()),
            ("Dir::Cache::Archives", folder.join("archives")),
        ];
        for (option, value) in &folders {
            set(option, value.as_os_str());
        }
        for option in OPTIONS {
            options.extend(["-o".into(), option.into()]);
        }
        Ok(Self { get, cache, config, options, state: folder.to_owned(), trouble: Vec::new() })
    }

    /// Fetches the package lists of all sources.
    ///
    /// A source that cannot be reached is no error here: the packages that matter may be in another one. What went
    /// wrong is told by [`record`](Self::record) if it turns out to matter.
    pub(crate) fn update(&mut self, progress: &mut dyn Progress) -> Result<()> {
        progress.stage("Fetching Debian's package lists", None);
        let answer = self.run(&self.get, &["-q", "update"], None, &mut |_| {})?;
        if !answer.status.success() || !answer.complaints.is_empty() {
            tracing::warn!(status = %answer.status, said = ?answer.complaints, "apt-get update had trouble");
            self.trouble = answer.complaints;
        }
        Ok(())
    }

    /// The record of the version of `package` that apt would install.
    pub(crate) fn record(&self, package: &str) -> Result<Record> {
        let answer =
            self.run(&self.cache, &["-q", "show", "--no-all-versions", "--", package], None, &mut |_| {})?;
        let record = parse_record(&answer.text);
        if answer.status.success() && record.contains_key("Version") {
            return Ok(record);
        }
        let said = if self.trouble.is_empty() { &answer.complaints } else { &self.trouble };
        Err(Error::NoPackage { package: package.to_owned(), said: indented(said) })
    }

    /// Where the files of these packages come from, and how large they are.
    pub(crate) fn downloads(&self, packages: &[String]) -> Result<Vec<Download>> {
        let doing = || format!("find {}", packages.join(" and "));
        let mut arguments = vec!["-q", "download", "--print-uris", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        let answer = self.run(&self.get, &arguments, None, &mut |_| {})?;
        let command = "apt-get download --print-uris".to_owned();
        if !answer.status.success() {
            let (status, said) = (answer.status, indented(&answer.complaints));
            return Err(Error::Apt { doing: doing(), command, status, said });
        }
        let downloads = parse_uris(&answer.text);
        if downloads.len() != packages.len() {
            return Err(Error::AptAnswer { doing: doing(), command, found: format!("{:?}", answer.text) });
        }
        Ok(downloads)
    }

    /// Everything that the sources name (`apt-get indextargets`), and the last of what went wrong with the lists.
    pub(crate) fn index_targets(&self) -> Result<(Vec<Record>, String)> {
        let answer = self.run(&self.get, &["-q", "indextargets"], None, &mut |_| {})?;
        if !answer.status.success() {
            return Err(Error::Apt {
                doing: "read apt's sources".to_owned(),
                command: "apt-get indextargets".to_owned(),
                status: answer.status,
                said: indented(&answer.complaints),
            });
        }
        Ok((parse_records(&answer.text), indented(&self.trouble)))
    }

    /// From now on, uses the sources in this text (sources.list(5), deb822) instead of the host's.
    pub(crate) fn restrict(&mut self, sources: &str) -> Result<()> {
        let folder = self.state.join("sources");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let file = folder.join("posada.sources");
        fs::write(&file, sources).map_err(Error::io("write", &file))?;
        let mut parts = OsString::from("Dir::Etc::sourceparts=");
        parts.push(&folder);
        self.options.extend(["-o".into(), "Dir::Etc::sourcelist=/dev/null".into(), "-o".into(), parts]);
        Ok(())
    }

    /// What a system without any package needs for these to be installed, them included: names and versions, in the
    /// order in which apt would install them. Patterns (apt-patterns(7)) stand for what they match.
    pub(crate) fn solve(&self, packages: &[&str]) -> Result<Vec<(String, String)>> {
        let mut arguments = vec!["-q", "-y", "-s", "-o", "APT::Install-Recommends=false", "install", "--"];
        arguments.extend(packages);
        let answer = self.run(&self.get, &arguments, None, &mut |_| {})?;
        let (doing, command) =
            ("choose the packages of the image".to_owned(), "apt-get install -s".to_owned());
        if !answer.status.success() {
            let said = if answer.complaints.is_empty() { &self.trouble } else { &answer.complaints };
            return Err(Error::Apt { doing, command, status: answer.status, said: indented(said) });
        }
        let solution = parse_solution(&answer.text);
        if solution.is_empty() {
            return Err(Error::AptAnswer { doing, command, found: format!("{:?}", answer.text) });
        }
        Ok(solution)
    }

    /// The values of these configuration options that are set, as lines for a file of apt's configuration.
    pub(crate) fn configuration(&self, options: &[&str]) -> Result<String> {
        let mut lines = String::new();
        // apt-config(8) writes assignments to variables of these names.
        let names: Vec<String> = (0..options.len()).map(|at| format!("v{at}")).collect();
        let pairs = names.iter().zip(options).flat_map(|(name, option)| [name.as_str(), *option]);
        let arguments: Vec<&str> = ["shell"].into_iter().chain(pairs).collect();
        let answer = self.run(&self.config, &arguments, None, &mut |_| {})?;
        for line in answer.text.lines() {
            let Some((name, value)) = line.split_once('=') else { continue };
            let option = name.strip_prefix('v').and_then(|at| options.get(at.parse::<usize>().ok()?));
            let value = value.trim_matches('\'');
            if let Some(option) = option.filter(|_| !value.contains(['"', '\'', '\\'])) {
                let _ = writeln!(lines, "{option} \"{value}\";");
            }
        }
        Ok(lines)
    }

    /// The folder of package lists.
    pub(crate) fn lists(&self) -> PathBuf {
        self.state.join("lists")
    }

    /// Fetches the files of these packages into `folder` and compares their lengths and digests. `what` tells people
    /// what they are.
    pub(crate) fn download(
        &self,
        what: &str,
        packages: &[String],
        downloads: &[Download],
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let total: u64 = downloads.iter().map(|download| download.size).sum();
        progress.stage(&format!("Fetching {what}"), Some(total));
        let mut arguments = vec!["-q", "download", "--"];
        arguments.extend(packages.iter().map(String::as_str));
        let mut done = 0;
        let answer = self.run(&self.get, &arguments, Some(folder), &mut |percent| {
            // In thousandths of a percent, for whole numbers.
            let now = total.saturating_mul((percent * 1000.0) as u64) / 100_000;
            progress.advance(now.saturating_sub(done));
            done = done.max(now);
        })?;
        if !answer.status.success() {
            return Err(Error::Apt {
                doing: format!("fetch {what}"),
                command: "apt-get download".to_owned(),
                status: answer.status,
                said: indented(&answer.complaints),
            });
        }
        progress.advance(total.saturating_sub(done));
        for download in downloads {
            let path = folder.join(&download.file);
            let size = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
            let digest = cache::sha256(&path).map_err(Error::io("read", &path))?;
            let expected = download.sha256.as_ref().unwrap_or(&digest);
            if size != download.size || digest != *expected {
                let problem = format!(
                    "it has {size} bytes with the SHA-256 {digest}, but Debian's list says {} bytes and {expected}",
                    download.size
                );
                return Err(Error::Package { path, problem });
            }
        }
        Ok(())
    }

    /// Removes the lists and whatever else apt keeps.
    pub(crate) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.state) {
            tracing::warn!(%error, path = %self.state.display(), "cannot remove apt's state");
        }
    }

    fn run(
        &self,
        program: &[OsString],
        arguments: &[&str],
        folder: Option<&Path>,
        percent: &mut dyn FnMut(f64),
    ) -> Result<Answer> {
        let (name, first) = program.split_first().expect("a program has a name");
        let mut command = Command::new(name);
        command.args(first).args(&self.options).args(arguments);
        // Untranslated answers, and no questions.
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(folder) = folder {
            command.current_dir(folder);
        }
        tracing::debug!(?command, "running apt");
        let path = PathBuf::from(name);
        let mut child = command.spawn().map_err(Error::io("run", &path))?;
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = child.stderr.take().expect("it is piped");
        let complaints = thread::spawn(move || complaints(stderr));
        let (text, mut lines) = read_answer(stdout, percent);
        let status = child.wait().map_err(Error::io("run", &path))?;
        let said = complaints.join().unwrap_or_default();
        // What matters is on standard error; the `Err:` lines of a source on standard output tell the rest.
        lines.extend(said);
        let complaints = lines.split_off(lines.len().saturating_sub(LINES));
        Ok(Answer { status, text, complaints })
    }
}

struct Answer {
    status: ExitStatus,
    /// Standard output without its progress.
    text: String,
    /// The last errors and warnings.
    complaints: Vec<String>,
}

/// Reads apt's standard output: progress goes to `percent`, the rest is returned, the errors in it once more.
fn read_answer(output: impl Read, percent: &mut dyn FnMut(f64)) -> (String, Vec<String>) {
    let mut text = String::new();
    let mut errors = Vec::new();
    for_each_line(output, |line| {
        if let Some(now) = progress(line) {
            percent(now);
        } else if !line.starts_with("dlstatus:") && (text.len() as u64) < MAX_ANSWER {
            text.push_str(line);
            text.push('\n');
            if line.starts_with("Err:") {
                errors.push(line.to_owned());
            }
        }
    });
    (text, errors)
}

fn complaints(output: impl Read) -> Vec<String> {
    let mut lines = Vec::new();
    for_each_line(output, |line| {
        if !line.trim().is_empty() {
            lines.push(line.to_owned());
        }
        if lines.len() > 2 * LINES {
            lines.drain(..LINES);
        }
    });
    lines
}

/// Reads to the end, so that the writer never waits; lines of any bytes and of any length are cut to what is sensible.
fn for_each_line(output: impl Read, mut line: impl FnMut(&str)) {
    const MAX_LINE: u64 = 64 * 1024;
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => line(String::from_utf8_lossy(&bytes).trim_end()),
        }
    }
}

/// The percentage in a line of progress, `dlstatus:1:12.6863:Retrieving file 1 of 2`.
fn progress(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

/// The first record of an answer, in the format of deb-control(5): `Field: value`, continued by lines that begin with a
/// space.
fn parse_record(text: &str) -> Record {
    parse_records(text).into_iter().next().unwrap_or_default()
}

/// All records of an answer, in the same format.
fn parse_records(text: &str) -> Vec<Record> {
    let mut records = vec![Record::new()];
    let mut last: Option<String> = None;
    for line in text.lines() {
        let Some(record) = records.last_mut() else { break };
        if line.trim().is_empty() {
            if !record.is_empty() {
                records.push(Record::new());
            }
            last = None;
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|field| record.get_mut(field)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            record.insert(field.to_owned(), value.trim().to_owned());
            last = Some(field.to_owned());
        }
    }
    records.retain(|record| !record.is_empty());
    records
}

/// The packages in the answer of a simulated installation, lines of `Inst NAME (VERSION RELEASE… [ARCHITECTURE])`.
fn parse_solution(text: &str) -> Vec<(String, String)> {
    let parse = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        let name = name.split(':').next()?;
        let version = rest.split([' ', ')']).next()?;
        (!name.is_empty() && !version.is_empty()).then(|| (name.to_owned(), version.to_owned()))
    };
    text.lines().filter_map(parse).collect()
}

/// The names of the packages in a `Depends` field, alternatives included, versions and architectures left out.
pub(crate) fn dependencies(depends: &str) -> Vec<String> {
    let names = depends
        .split([',', '|'])
        .filter_map(|part| part.split([' ', '(', ':', '[', '\n']).find(|name| !name.is_empty()));
    names.map(str::to_owned).collect()
}

/// The answers of `--print-uris`: `'URI' FILE SIZE SHA256:DIGEST`.
fn parse_uris(text: &str) -> Vec<Download> {
    let parse = |line: &str| {
        let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split_whitespace();
        let file = words.next()?;
        if file.contains('/') || file.starts_with('.') {
            return None;
        }
        let size = words.next()?.parse().ok()?;
        let sha256 = words.find_map(|word| word.strip_prefix("SHA256:")).map(str::to_ascii_lowercase);
        Some(Download { file: file.to_owned(), size, sha256 })
    };
    text.lines().filter_map(parse).collect()
}

fn indented(lines: &[String]) -> String {
    lines.iter().flat_map(|line| ["\n  ", line]).collect()
}

#[cfg(test)]
#[path = "apt_test.rs"]
mod tests;
