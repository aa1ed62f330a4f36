//! Whole programs as rows.
//!
//! A folder holds them, with their libraries and inputs, and a list `rows` of them: a line for each, `NAME BATCHES
//! COMMAND ARGUMENT...`, in which `{}` stands for the folder. So the same bits run wherever the folder is.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::random::mix;
use crate::row::{Failure, Row};

/// The rows of a folder.
pub(crate) fn rows(folder: &Path) -> Result<Vec<Row>, String> {
    let list = folder.join("rows");
    let text = fs::read_to_string(&list).map_err(|error| format!("reading {}: {error}", list.display()))?;
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            row(line, &folder.to_string_lossy())
                .ok_or_else(|| format!("{}: not a row: {line}", list.display()))
        })
        .collect()
}

fn row(line: &str, folder: &str) -> Option<Row> {
    let (name, batches, command) = parse(line, folder)?;
    let home = folder.to_owned();
    Some(Row::new(name, "run", batches, 1, move || Ok(move || run(&command, &home))))
}

/// The name, the number of runs, and the words of the command.
fn parse<'a>(line: &'a str, folder: &str) -> Option<(&'a str, u32, Vec<String>)> {
    let mut words = line.split_whitespace();
    let (name, batches) = (words.next()?, words.next()?.parse().ok()?);
    let command: Vec<String> = words.map(|word| word.replace("{}", folder)).collect();
    (!command.is_empty()).then_some((name, batches, command))
}

/// Runs a command, and makes a checksum of its output.
fn run(command: &[String], folder: &str) -> Result<u64, Failure> {
    let (program, arguments) = command.split_first().ok_or(Failure::Absent("no-command"))?;
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .env("PYTHONHOME", folder)
        .env("PYTHONHASHSEED", "0")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Broken(format!("starting {program}: {error}")))?;
    if !output.status.success() || output.stdout.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Broken(format!("{program} ended with {}: {said}", output.status)));
    }
    Ok(checksum(&output.stdout))
}

fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(bytes.len() as u64, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_a_number_and_a_command() {
        let command = ["/a/bin/gzip", "-c", "/a/text"].map(str::to_owned).to_vec();
        assert_eq!(parse("gzip 5 {}/bin/gzip -c {}/text", "/a"), Some(("gzip", 5, command)));
        for line in ["gzip", "gzip many true", "gzip 5"] {
            assert_eq!(parse(line, "/a"), None, "{line}");
        }
    }

    #[test]
    fn the_checksum_is_of_all_bytes() {
        assert_eq!(checksum(b"123456789"), checksum(b"123456789"));
        assert_ne!(checksum(b"123456789"), checksum(b"123456788"));
        assert_ne!(checksum(b"1"), checksum(b"1\0"));
    }

    #[test]
    fn a_program_that_fails_is_told() {
        let command = ["/bin/sh", "-c", "echo no >&2; exit 3"].map(str::to_owned);
        let Err(Failure::Broken(what)) = run(&command, "/") else { panic!("it failed") };
        assert!(what.contains("exit status: 3") && what.contains("no"), "{what}");
    }
}
