//! The command line: of a command, or what follows `--` on a kernel's.

use std::path::PathBuf;

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Names of rows; all of them, if none is named.
    pub(crate) rows: Vec<String>,
    /// Do one of this many parts of the work.
    pub(crate) divide: u32,
    /// Print marks around rows.
    pub(crate) marks: bool,
    /// Print the names of rows, and what their units are.
    pub(crate) list: bool,
    /// The folder of whole programs.
    pub(crate) programs: Option<PathBuf>,
}

const USAGE: &str = "usage: scoreboard [--list] [--marks] [--divide N] [--programs FOLDER] [ROW,...]...";

impl Arguments {
    /// Reads words. As the first process of a guest, marks are printed in any case.
    pub(crate) fn parse(words: impl Iterator<Item = String>, first: bool) -> Result<Self, String> {
        let mut arguments = Self { divide: 1, marks: first, ..Self::default() };
        let mut words = words;
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"));
            match word.as_str() {
                "--marks" => arguments.marks = true,
                "--list" => arguments.list = true,
                "--programs" => arguments.programs = Some(value()?.into()),
                "--divide" => {
                    let number = value()?;
                    arguments.divide = number
                        .parse()
                        .ok()
                        .filter(|number| *number > 0)
                        .ok_or_else(|| format!("{number} is not a number from 1\n{USAGE}"))?;
                }
                _ if word.starts_with('-') => return Err(format!("{word} is not known\n{USAGE}")),
                _ => {
                    arguments.rows.extend(word.split(',').filter(|name| !name.is_empty()).map(str::to_owned));
                }
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments, String> {
        Arguments::parse(words.split_whitespace().map(str::to_owned), false)
    }

    #[test]
    fn without_words_everything_is_done_in_full() {
        assert_eq!(parse("").unwrap(), Arguments { divide: 1, ..Arguments::default() });
    }

    #[test]
    fn rows_are_words_or_parts_of_them() {
        let rows = parse("--divide 20 call,sieve sort").unwrap();
        assert_eq!((rows.divide, rows.rows), (20, ["call", "sieve", "sort"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        for (words, part) in
            [("--divide 0", "from 1"), ("--divide", "needs a value"), ("--fast", "not known")]
        {
            assert!(parse(words).unwrap_err().contains(part), "{words}");
        }
    }
}
