//! What is plugged into the machine: from the command line's words to devices.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use posada_pc::PcBuilder;

use crate::arguments::Run;

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

/// Plugs in what the command line asks for.
pub(crate) fn plug(mut builder: PcBuilder, arguments: &Run) -> Result<PcBuilder> {
    for (index, spec) in arguments.disk.iter().enumerate() {
        let options = posada_storage::Options { read_only: spec.read_only, ..Default::default() };
        let disk = posada_storage::open(&spec.path, &options)
            .with_context(|| format!("opening the disk {}", spec.path.display()))?;
        builder = builder.disk(disk, format!("posada-{index}"));
    }
    Ok(builder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_and_words_after_commas() {
        let plain = DiskSpec { path: "a.img".into(), ..DiskSpec::default() };
        assert_eq!("a.img".parse(), Ok(plain.clone()));
        assert_eq!("a.img,ro".parse(), Ok(DiskSpec { read_only: true, ..plain.clone() }));
        assert_eq!("a,,b,ro".parse(), Ok(DiskSpec { path: "a,b".into(), read_only: true, ..plain }));
        for text in ["", ",ro", "a.img,", "a.img,rw"] {
            assert!(text.parse::<DiskSpec>().is_err(), "{text}");
        }
    }
}
