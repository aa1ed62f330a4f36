//! Reads Debian binary packages.
//!
//! A `.deb` is an ar archive (deb(5)) of `debian-binary`, `control.tar` and `data.tar`, the tars compressed with xz,
//! zstd, gzip or not at all. The files of the package are in `data.tar`.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// No file of a kernel or busybox package comes near this; a header that claims more is broken or hostile.
const MAX_FILE: u64 = 256 << 20;

/// A file, folder or link of a package.
pub(crate) struct Entry<'a> {
    /// Its path without a leading `/`, and without a leading `usr/`: Debian is merging the two, release by release.
    pub(crate) path: &'a Path,
    /// Whether it is a plain file.
    pub(crate) is_file: bool,
    /// Where it points, if it is a symbolic link.
    pub(crate) link: Option<&'a Path>,
    contents: &'a mut dyn Read,
    size: u64,
}

impl Entry<'_> {
    /// The contents of a file.
    pub(crate) fn read(&mut self) -> io::Result<Vec<u8>> {
        if self.size > MAX_FILE {
            return Err(io::Error::other(format!("it claims to be {} bytes long", self.size)));
        }
        let mut contents = Vec::new();
        self.contents.take(MAX_FILE).read_to_end(&mut contents)?;
        Ok(contents)
    }
}

/// Calls `visit` for every entry of the package `path`, in the package's order.
///
/// # Errors
/// [`Error::Package`] if the file is no package, or a damaged one; whatever `visit` returns.
pub(crate) fn visit(path: &Path, mut visit: impl FnMut(&mut Entry<'_>) -> io::Result<()>) -> Result<()> {
    let package = |problem: String| Error::Package { path: path.to_owned(), problem };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut archive = ar::Archive::new(BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|error| package(format!("it is no ar archive ({error})")))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else { continue };
        let data: Box<dyn Read + '_> = match compression {
            "" => Box::new(member),
            ".gz" => Box::new(flate2::read::MultiGzDecoder::new(member)),
            ".xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(member)),
            ".zst" => Box::new(
                ruzstd::decoding::StreamingDecoder::new(member)
                    .map_err(|error| package(format!("its {name} is no zstd stream ({error})")))?,
            ),
            _ => return Err(package(format!("its {name} is compressed in a way that is not known here"))),
        };
        return visit_tar(data, &mut visit)
            .map_err(|error| package(format!("its {name} is damaged or unusual ({error})")));
    }
    Err(package("it has no data.tar".into()))
}

fn visit_tar(data: impl Read, visit: &mut impl FnMut(&mut Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut tar = tar::Archive::new(BufReader::with_capacity(256 * 1024, data));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = normal(&entry.path()?)?;
        let is_file = entry.header().entry_type().is_file();
        let size = entry.size();
        let link = if entry.header().entry_type().is_symlink() { entry.link_name()? } else { None };
        let link = link.map(std::borrow::Cow::into_owned);
        visit(&mut Entry { path: &path, is_file, link: link.as_deref(), contents: &mut entry, size })?;
    }
    Ok(())
}

/// Takes a leading `./` or `/`, and a leading `usr/`, off a path.
fn normal(path: &Path) -> io::Result<PathBuf> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("{} leaves the package's folder", path.display())));
            }
        }
    }
    let parts = match parts.split_first() {
        Some((first, rest)) if *first == "usr" => rest,
        _ => &parts,
    };
    Ok(parts.iter().collect())
}

#[cfg(test)]
#[path = "deb_test.rs"]
mod tests;
