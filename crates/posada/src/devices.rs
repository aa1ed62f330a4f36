//! What is plugged into the machine: from the command line's words to devices.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use posada_pc::PcBuilder;
use posada_virtio::balloon::Balloon;
use posada_virtio::entropy::Entropy;
use posada_virtio::share::Share;
use posada_virtio::vsock::Vsock;

use crate::arguments::Run;

/// The context ID of the guest, the first that is nobody else's; to the host it is not visible.
const GUEST_CONTEXT: u32 = 3;

/// `FILE[,ro][,snapshot][,format=FORMAT]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Parts a value at its commas; a comma that is doubled belongs to the word.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(letter);
        }
    }
    words
}

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let path = words.next().filter(|path| !path.is_empty()).ok_or("name a file, such as disk.img")?;
        let mut spec = Self { path: path.into(), ..Self::default() };
        for word in words {
            match &*word {
                "ro" => spec.read_only = true,
                _ => return Err(format!("{word:?} is none of ro, snapshot, format=FORMAT; a comma in a name is doubled")),
            }
        }
        Ok(spec)
    }
}

/// `FOLDER:TAG[,ro]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShareSpec {
    pub path: PathBuf,
    pub tag: String,
    pub read_only: bool,
}

impl FromStr for ShareSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = words(text).into_iter();
        let place = words.next().unwrap_or_default();
        let (path, tag) = place
            .rsplit_once(':')
            .filter(|(path, tag)| !path.is_empty() && !tag.is_empty())
            .ok_or("name a folder and a tag, such as /home/me/project:project")?;
        let mut spec = Self { path: path.into(), tag: tag.into(), read_only: false };
        for word in words {
            match &*word {
                "ro" => spec.read_only = true,
                _ => return Err(format!("{word:?} is not ro; a comma in a name is doubled")),
            }
        }
        Ok(spec)
    }
}

/// Plugs in what the command line asks for.
pub(crate) fn plug(mut builder: PcBuilder, arguments: &Run) -> Result<PcBuilder> {
    for (index, spec) in arguments.disk.iter().enumerate() {
        let options = posada_storage::Options { read_only: spec.read_only };
        let disk = posada_storage::open(&spec.path, &options)
            .with_context(|| format!("opening the disk {}", spec.path.display()))?;
        builder = builder.disk(disk, format!("posada-{index}"));
    }
    builder = builder.device(Entropy).device(Balloon::new());
    for spec in &arguments.share {
        let share = Share::new(&spec.path, &*spec.tag, spec.read_only)
            .with_context(|| format!("sharing the folder {}", spec.path.display()))?;
        builder = builder.device(share);
    }
    if let Some(path) = &arguments.vsock {
        let vsock = Vsock::new(GUEST_CONTEXT, path)
            .with_context(|| format!("making the socket {} (does another guest use it?)", path.display()))?;
        builder = builder.device(vsock);
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_folders_are_names_and_words_after_commas() {
        let plain = DiskSpec { path: "a.img".into(), ..DiskSpec::default() };
        assert_eq!("a.img".parse(), Ok(plain.clone()));
        assert_eq!("a.img,ro".parse(), Ok(DiskSpec { read_only: true, ..plain.clone() }));
        assert_eq!("a,,b,ro".parse(), Ok(DiskSpec { path: "a,b".into(), read_only: true, ..plain }));
        let share = ShareSpec { path: "/a:b".into(), tag: "t".into(), read_only: true };
        assert_eq!("/a:b:t,ro".parse(), Ok(share));
        for text in ["", "/a", ":t", "/a:", "/a:t,rw"] {
            assert!(text.parse::<ShareSpec>().is_err(), "{text}");
        }
        for text in ["", ",ro", "a.img,", "a.img,rw"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }
}
