//! Debian's suites among the host's apt sources: which there are, and a list of sources with nothing but one of them.
//!
//! apt itself reads the host's sources, whatever their format: `apt-get indextargets` (apt-get(8)) tells every index
//! that they name, and what its `Release` file said. Only the keys (`Signed-By`, sources.list(5)) are not in that
//! answer; they are looked up in the file that the answer names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::Record;
use crate::error::{Error, Result};

/// What belongs to a suite beside itself: its fixes, which Debian publishes as suites of their own.
const COMPANIONS: [&str; 3] = ["-updates", "-security", "/updates"];

/// A source file of the host is not believed to be longer.
const MAX_SOURCES: usize = 1 << 20;

/// One repository's one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The repository's address, as in the host's sources: `http://deb.debian.org/debian/`.
    pub(crate) uri: String,
    /// The suite, as in the host's sources: `bookworm-updates`, or `stable`.
    pub(crate) release: String,
    /// Its components, `main` among them.
    pub(crate) components: BTreeSet<String>,
    /// `Signed-By` as in the host's sources: paths of key files, or fingerprints, or keys.
    pub(crate) signed_by: Option<String>,
    /// What the names of its files in the folder of lists begin with.
    pub(crate) lists: String,
    /// The release's number, if it has one: `12.15`.
    pub(crate) version: Option<String>,
}

/// Whether `name` can be a suite's. It goes into file names and command lines.
pub(crate) fn is_suite(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.starts_with(|first: char| first.is_ascii_lowercase()) && name.len() <= 40 && name.bytes().all(plain)
}

/// The sources that make up `suite`, of all those in `targets`, apt's answer.
///
/// # Errors
/// [`Error::NoSuite`] if the host's sources have none of this name.
pub(crate) fn choose(suite: &str, targets: &[Record], said: &str) -> Result<Vec<Source>> {
    let packages: Vec<&Record> = targets.iter().filter(|target| is_debian(target)).collect();
    let mut sources: Vec<Source> = Vec::new();
    for target in packages.iter().filter(|target| names(target).any(|name| belongs(name, suite))) {
        let (uri, release) = (field(target, "Repo-URI"), field(target, "Release"));
        let component = field(target, "Component");
        // A component of several parts would not be told from an option.
        if [uri, release, component].iter().any(|word| word.is_empty() || word.contains(char::is_whitespace))
        {
            continue;
        }
        if let Some(known) = sources.iter_mut().find(|known| known.uri == uri && known.release == release) {
            known.components.insert(component.to_owned());
            continue;
        }
        sources.push(Source {
            uri: uri.to_owned(),
            release: release.to_owned(),
            components: [component.to_owned()].into(),
            signed_by: signed_by(target, uri, release),
            lists: lists(target, component),
            version: target.get("Version").cloned(),
        });
    }
    let is_complete = packages
        .iter()
        .any(|target| names(target).any(|name| name == suite) && field(target, "Component") == "main");
    if is_complete {
        return Ok(sources);
    }
    let known: BTreeSet<&str> = packages
        .iter()
        .map(|target| codename(target))
        .filter(|name| is_suite(name) && !name.contains('-'))
        .collect();
    Err(Error::NoSuite {
        suite: suite.to_owned(),
        known: known.into_iter().map(|name| format!("debian:{name}")).collect::<Vec<_>>().join(", "),
        said: said.to_owned(),
    })
}

/// A source list (sources.list(5), deb822) with these sources and no others.
///
/// `key` maps the path of a key file to where that file is for whoever reads the list.
pub(crate) fn source_list(sources: &[Source], key: impl Fn(&str) -> String) -> String {
    let stanzas = sources.iter().map(|source| {
        let components = source.components.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        let mut stanza = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {components}\n",
            source.uri, source.release
        );
        if let Some(value) = &source.signed_by {
            let value: Vec<String> = key_files(value).map(|file| key(&file)).collect();
            let value =
                if value.is_empty() { source.signed_by.clone().unwrap_or_default() } else { value.join(" ") };
            stanza.push_str("Signed-By: ");
            stanza.push_str(&value.replace('\n', "\n "));
            stanza.push('\n');
        }
        stanza
    });
    stanzas.collect::<Vec<_>>().join("\n")
}

/// The key files that these sources name.
pub(crate) fn keys(sources: &[Source]) -> BTreeSet<PathBuf> {
    let values = sources.iter().filter_map(|source| source.signed_by.as_deref());
    values.flat_map(key_files).map(PathBuf::from).collect()
}

/// The paths in a value of `Signed-By`, which are separated by commas or spaces. None in an embedded key.
fn key_files(value: &str) -> impl Iterator<Item = String> {
    let is_list = value.starts_with('/');
    value
        .split([',', ' ', '\n', '\t'])
        .filter(move |word| is_list && word.starts_with('/'))
        .map(str::to_owned)
}

fn field<'a>(target: &'a Record, name: &str) -> &'a str {
    target.get(name).map_or("", String::as_str)
}

/// Whether this index is a package list of Debian's, for the guest's processor.
fn is_debian(target: &Record) -> bool {
    field(target, "Created-By") == "Packages"
        && field(target, "Architecture") == "amd64"
        && field(target, "Origin") == "Debian"
}

fn codename(target: &Record) -> &str {
    target.get("Codename").map_or(field(target, "Release"), String::as_str)
}

/// The names that a suite goes by: in the sources, and its codename.
fn names(target: &Record) -> impl Iterator<Item = &str> {
    [field(target, "Release"), codename(target)].into_iter()
}

fn belongs(name: &str, suite: &str) -> bool {
    name.strip_prefix(suite).is_some_and(|rest| rest.is_empty() || COMPANIONS.contains(&rest))
}

/// `deb.example_debian_dists_bookworm_` of `…/lists/deb.example_debian_dists_bookworm_main_binary-amd64_Packages`.
fn lists(target: &Record, component: &str) -> String {
    let file = field(target, "Filename");
    let file = file.rsplit('/').next().unwrap_or(file);
    let end = format!("{}_binary-", component.replace('/', "_"));
    file.find(&end).map_or(String::new(), |at| file[..at].to_owned())
}

/// The value of `Signed-By` for a source, from the file that defines it.
fn signed_by(target: &Record, uri: &str, release: &str) -> Option<String> {
    // `/etc/apt/sources.list.d/debian.sources:2`: the file, and a line or paragraph in it.
    let (path, _) = field(target, "Sourcesentry").rsplit_once(':')?;
    let text = fs::read_to_string(path).ok().filter(|text| text.len() <= MAX_SOURCES)?;
    let is_deb822 = Path::new(path).extension().is_some_and(|extension| extension == "sources");
    if is_deb822 { signed_by_deb822(&text, uri, release) } else { signed_by_line(&text, uri, release) }
}

fn is_same_uri(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Of a file with paragraphs of fields.
fn signed_by_deb822(text: &str, uri: &str, release: &str) -> Option<String> {
    let mut paragraphs = vec![BTreeMap::<String, String>::new()];
    let mut last = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields = paragraphs.last_mut()?;
        if line.trim().is_empty() {
            paragraphs.push(BTreeMap::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&last) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.to_ascii_lowercase();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    let has = |fields: &BTreeMap<String, String>, name: &str, is: &dyn Fn(&str) -> bool| {
        fields.get(name).is_some_and(|value| value.split_whitespace().any(is))
    };
    let found = paragraphs.into_iter().find(|fields| {
        has(fields, "uris", &|word| is_same_uri(word, uri)) && has(fields, "suites", &|word| word == release)
    });
    found?.remove("signed-by").filter(|value| !value.is_empty())
}

/// Of a file with lines: `deb [signed-by=/a/key.gpg arch=amd64] URI SUITE COMPONENT…`.
fn signed_by_line(text: &str, uri: &str, release: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb")?.trim_start();
        let (options, rest) = rest.strip_prefix('[')?.split_once(']')?;
        let mut words = rest.split_whitespace();
        let is_it = is_same_uri(words.next()?, uri) && words.next()? == release;
        let value = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        value.filter(|_| is_it).map(str::to_owned)
    })
}

#[cfg(test)]
#[path = "suites_test.rs"]
mod tests;
