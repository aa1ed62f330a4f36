//! Files of Debian packages, for those who run programs of them elsewhere than in a guest's own image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::{Apt, dependencies};
use crate::cache::{Package, sha256};
use crate::deb;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// More packages than this are not what anybody meant.
const MOST: usize = 128;

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackageFile {
    /// Its contents.
    Plain(Vec<u8>),
    /// A symbolic link, and where it points, as the package says it.
    Link(PathBuf),
}

/// Packages, and files of them by path; `usr/` is left out of paths.
#[derive(Debug, Clone, Default)]
pub struct PackageFiles {
    /// The packages.
    pub packages: Vec<Package>,
    /// The files.
    pub files: BTreeMap<PathBuf, PackageFile>,
}

impl PackageFiles {
    /// Fetches these packages and all that they depend on with the host's apt, and reads those of their files that are
    /// `wanted`. `folder` exists and is empty, and holds the packages afterwards.
    ///
    /// # Errors
    /// [`Error`], if there is no apt, no such package, or no network; or if a package is damaged.
    pub fn fetch(
        names: &[&str],
        folder: &Path,
        wanted: impl Fn(&Path) -> bool,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let state = folder.join("apt");
        fs::create_dir(&state).map_err(Error::io("create", &state))?;
        let mut apt = Apt::new(&state)?;
        apt.update(progress)?;
        let versions = with_dependencies(&apt, names)?;
        let names: Vec<String> = versions.keys().cloned().collect();
        let downloads = apt.downloads(&names)?;
        apt.download(&names.join(", "), &names, &downloads, folder, progress)?;
        apt.remove();
        progress.stage("Unpacking", None);
        let mut all = Self::default();
        for (name, version) in versions {
            let prefix = format!("{name}_");
            let found = downloads.iter().find(|download| download.file.starts_with(&prefix));
            let path = folder.join(found.map_or(&*name, |download| &download.file));
            deb::visit(&path, |entry| {
                if !wanted(entry.path) {
                    return Ok(());
                }
                if let Some(target) = entry.link {
                    all.files.insert(entry.path.to_owned(), PackageFile::Link(target.to_owned()));
                } else if entry.is_file {
                    let place = entry.path.to_owned();
                    all.files.insert(place, PackageFile::Plain(entry.read()?));
                }
                Ok(())
            })?;
            let sha256 = sha256(&path).map_err(Error::io("read", &path))?;
            all.packages.push(Package { name, version, sha256 });
        }
        progress.done();
        Ok(all)
    }

    /// The contents of a file, through links within its folder and from it.
    pub fn contents(&self, path: &Path) -> Option<&[u8]> {
        let mut path = path.to_owned();
        // Links may go in circles.
        for _ in 0..8 {
            match self.files.get(&path)? {
                PackageFile::Plain(contents) => return Some(contents),
                PackageFile::Link(target) => {
                    path = match target.strip_prefix("/") {
                        Ok(target) => target.strip_prefix("usr").unwrap_or(target).to_owned(),
                        Err(_) => path.with_file_name(target),
                    }
                }
            }
        }
        None
    }
}

/// The packages and whatever they depend on, with versions. Of alternatives, all that there are.
fn with_dependencies(apt: &Apt, names: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut waiting: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut seen = BTreeSet::new();
    let mut versions = BTreeMap::new();
    while let Some(name) = waiting.pop() {
        if !seen.insert(name.clone()) || versions.len() >= MOST {
            continue;
        }
        let record = match apt.record(&name) {
            Ok(record) => record,
            // A name that others provide.
            Err(Error::NoPackage { .. }) if !names.contains(&name.as_str()) => continue,
            Err(error) => return Err(error),
        };
        for field in ["Depends", "Pre-Depends"] {
            waiting.extend(dependencies(record.get(field).map_or("", String::as_str)));
        }
        versions.insert(name, record.get("Version").cloned().unwrap_or_default());
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_found_through_links_and_not_in_circles() {
        let file = |contents: &[u8]| PackageFile::Plain(contents.to_owned());
        let link = |target: &str| PackageFile::Link(target.into());
        let files = [
            ("lib/libz.so.1.2", file(b"z")),
            ("lib/libz.so.1", link("libz.so.1.2")),
            ("bin/z", link("/usr/lib/libz.so.1")),
            ("bin/round", link("round")),
        ];
        let files = files.into_iter().map(|(path, file)| (path.into(), file)).collect();
        let all = PackageFiles { packages: Vec::new(), files };
        assert_eq!(all.contents(Path::new("bin/z")), Some(&b"z"[..]));
        assert_eq!(all.contents(Path::new("bin/round")), None);
        assert_eq!(all.contents(Path::new("bin/other")), None);
    }
}
