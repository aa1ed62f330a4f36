//! The command line, and files that stand for a part of it.

use std::any::TypeId;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde_json::Value as Json;
use toml::Value;

use crate::arguments::Arguments;
use crate::devices::{DiskSpec, ShareSpec};
use crate::status;

/// A file longer than this describes no guest.
const MAX_FILE: u64 = 1 << 20;

/// The arguments of this process, with those of a file that they name; and all settings of a run, by their names. Ends
/// the process if they are wrong.
pub(crate) fn arguments() -> (Arguments, Json) {
    let words: Vec<OsString> = std::env::args_os().collect();
    parse(words).unwrap_or_else(|error| match error.downcast::<clap::Error>() {
        Ok(error) => error.exit(),
        Err(error) => {
            eprintln!("posada: {error:#}");
            std::process::exit(i32::from(status::WRONG))
        }
    })
}

fn parse(words: Vec<OsString>) -> Result<(Arguments, Json)> {
    let mut command = Arguments::command();
    let mut matches = command.try_get_matches_from_mut(&words)?;
    command.build();
    let run = command.find_subcommand("run").context("there is no `run`")?;
    if let Some(("run", given)) = matches.subcommand()
        && let Some(path) = given.get_one::<PathBuf>("config")
    {
        let table = read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let words = merge(words, run, given, &table, folder)
            .with_context(|| format!("in the configuration {}", path.display()))?;
        matches = Arguments::command().try_get_matches_from(words)?;
    }
    let settings = match matches.subcommand() {
        Some(("run", given)) => settings(run, given),
        _ => Json::Null,
    };
    Ok((Arguments::from_arg_matches(&matches)?, settings))
}

fn read(path: &Path) -> Result<toml::Table> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("opening the configuration {}", path.display()))?;
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .with_context(|| format!("reading the configuration {}", path.display()))?;
    text.parse().with_context(|| format!("reading the configuration {}", path.display()))
}

fn is_given(given: &ArgMatches, id: &str) -> bool {
    given.value_source(id) == Some(ValueSource::CommandLine)
}

/// The command line with a file's flags in it, where it does not say otherwise. Paths are relative to the file's folder.
fn merge(
    words: Vec<OsString>,
    run: &Command,
    given: &ArgMatches,
    table: &toml::Table,
    folder: &Path,
) -> Result<Vec<OsString>> {
    let (mut flags, mut command) = (Vec::new(), Vec::new());
    for (key, value) in table {
        let id = key.replace('-', "_");
        let arg = run.get_arguments().find(|arg| arg.get_id() == id.as_str() && !arg.is_hide_set());
        let Some(arg) = arg.filter(|arg| !["help", "config"].contains(&arg.get_id().as_str())) else {
            let keys: Vec<&str> = keys(run).collect();
            bail!("`{key}` is no key; the keys are {}", keys.join(", "));
        };
        let replaced = match &*id {
            "image" | "command" => is_given(given, "kernel"),
            "kernel" | "initrd" => is_given(given, "image"),
            _ => false,
        };
        let values = values(arg, value).with_context(|| format!("the key `{key}`"))?;
        let values: Vec<String> = values.into_iter().map(|value| placed(folder, arg, value)).collect();
        if replaced || is_given(given, &id) {
            continue;
        }
        match (&*id, arg.get_long()) {
            ("command", _) => command = values,
            (_, Some(long)) if is_flag(arg) => flags.extend(values.iter().map(|_| format!("--{long}"))),
            (_, Some(long)) => flags.extend(values.iter().map(|value| format!("--{long}={value}"))),
            (_, None) => flags.extend(values),
        }
    }
    let has_end = words.iter().any(|word| word == "--");
    let mut all: Vec<OsString> = words.iter().take(2).cloned().collect();
    all.extend(flags.into_iter().map(OsString::from));
    all.extend(words.into_iter().skip(2));
    if !command.is_empty() {
        all.extend((!has_end).then(|| OsString::from("--")));
        all.extend(command.into_iter().map(OsString::from));
    }
    Ok(all)
}

fn is_flag(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// The names of all settings.
fn keys(run: &Command) -> impl Iterator<Item = &str> {
    let known = |arg: &&Arg| !arg.is_hide_set() && !["help", "config"].contains(&arg.get_id().as_str());
    run.get_arguments().filter(known).map(|arg| arg.get_long().unwrap_or(arg.get_id().as_str()))
}

/// What a key's value is on the command line: for a flag, one word or none.
fn values(arg: &Arg, value: &Value) -> Result<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        _ => bail!("give a text or a number"),
    };
    match value {
        Value::Boolean(true) if is_flag(arg) => Ok(vec![String::new()]),
        Value::Boolean(false) if is_flag(arg) => Ok(Vec::new()),
        _ if is_flag(arg) => bail!("give true or false"),
        Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            values.iter().map(one).collect()
        }
        Value::Array(_) => bail!("give one value, not a list"),
        value => Ok(vec![one(value)?]),
    }
}

/// A key's value with its path, if it has one and that is relative, in `folder`. What has no sense is left to be complained
/// about.
fn placed(folder: &Path, arg: &Arg, value: String) -> String {
    let kind = arg.get_value_parser().type_id();
    let (path, has_words) = if kind == TypeId::of::<PathBuf>() {
        (Some(PathBuf::from(&value)), false)
    } else if kind == TypeId::of::<DiskSpec>() {
        (value.parse().ok().map(|spec: DiskSpec| spec.path), true)
    } else if kind == TypeId::of::<ShareSpec>() {
        (value.parse().ok().map(|spec: ShareSpec| spec.path), true)
    } else {
        (None, false)
    };
    if path.is_none_or(|path| path.is_absolute() || path.as_os_str().is_empty()) {
        return value;
    }
    let mut folder = folder.join("").to_string_lossy().into_owned();
    if has_words {
        folder = folder.replace(',', ",,");
    }
    folder + &value
}

/// All settings of a run, as JSON.
fn settings(run: &Command, given: &ArgMatches) -> Json {
    let mut settings = serde_json::Map::new();
    for arg in run.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help") {
        let id = arg.get_id().as_str();
        let key = arg.get_long().unwrap_or(id).to_owned();
        if is_flag(arg) {
            settings.insert(key, given.get_flag(id).into());
            continue;
        }
        let raw = given.get_raw(id).into_iter().flatten();
        let mut values: Vec<Json> = raw.map(|value| value.to_string_lossy().into()).collect();
        let value = match arg.get_action() {
            ArgAction::Append => values.into(),
            _ => values.pop().unwrap_or(Json::Null),
        };
        settings.insert(key, value);
    }
    if let Ok(folder) = std::env::current_dir() {
        settings.insert("folder".to_owned(), folder.to_string_lossy().into());
    }
    settings.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Command, Memory};

    fn run(file: &str, words: &str) -> Result<crate::arguments::Run> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest.toml");
        std::fs::write(&path, file).unwrap();
        let mut all = vec!["posada".into(), "run".into(), "--config".into(), path.into_os_string()];
        all.extend(words.split_whitespace().map(OsString::from));
        match parse(all)?.0.command {
            Command::Run(run) => Ok(*run),
            _ => panic!("it is a run"),
        }
    }

    #[test]
    fn every_flag_is_a_key_and_flags_count_more() {
        let file = "image = 'debian'\nmemory = '1G'\ncpus = 2\nno-reboot = true\nstats = false\n\
                    publish = ['8080:80', '2222:22']\ncommand = ['uname', '-r']\n";
        let from_file = run(file, "").unwrap();
        assert_eq!(from_file.image.as_deref(), Some("debian"));
        assert_eq!((from_file.memory, from_file.cpus), (Some(Memory(1 << 30)), 2));
        assert!(from_file.no_reboot && !from_file.stats);
        assert_eq!(from_file.publish.len(), 2);
        assert_eq!(from_file.command, ["uname", "-r"]);

        let both = run(file, "--memory 2G --publish 1:1 debian:bookworm -- ls -l").unwrap();
        assert_eq!((both.memory, both.cpus), (Some(Memory(2 << 30)), 2));
        assert_eq!((both.publish.len(), both.image.as_deref()), (1, Some("debian:bookworm")));
        assert_eq!(both.command, ["ls", "-l"]);
        let kernel = run(file, "--kernel vmlinuz").unwrap();
        assert!(kernel.image.is_none() && kernel.command.is_empty());
    }

    #[test]
    fn paths_are_in_the_folder_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a,b");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("guest.toml");
        let file = "kernel = 'k/vmlinuz'\ninitrd = ['i', '/abs/i']\ncdrom = 'd.iso'\nvsock = 'v.sock'\n\
                    disk = ['../a.img,ro', '/abs/b.img']\nshare = ['.:work,ro', '/abs:data']\nappend = 'quiet'\n";
        std::fs::write(&path, file).unwrap();
        let words = ["posada".into(), "run".into(), "--config".into(), path.into_os_string()];
        let more = ["--cdrom", "given.iso"].map(OsString::from);
        let Command::Run(run) = parse(words.into_iter().chain(more).collect()).unwrap().0.command else {
            panic!("it is a run")
        };
        assert_eq!(run.kernel, Some(folder.join("k/vmlinuz")));
        assert_eq!(run.initrd, [folder.join("i"), "/abs/i".into()]);
        assert_eq!(run.vsock, Some(folder.join("v.sock")));
        assert_eq!(
            [&run.disk[0].path, &run.disk[1].path],
            [&folder.join("../a.img"), Path::new("/abs/b.img")]
        );
        assert!(run.disk[0].read_only && run.share[0].read_only);
        assert_eq!([&run.share[0].path, &run.share[1].path], [&folder.join("."), Path::new("/abs")]);
        assert_eq!(run.append.as_deref(), Some("quiet"));
        // Those of the command line are relative to where that is given.
        assert_eq!(run.cdrom, [Path::new("given.iso")]);
    }

    #[test]
    fn a_file_in_the_current_folder_changes_no_path() {
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        let disk = run.get_arguments().find(|arg| arg.get_id() == "disk").unwrap();
        let share = run.get_arguments().find(|arg| arg.get_id() == "share").unwrap();
        let here = |arg, value: &str| placed(Path::new(""), arg, value.to_owned());
        assert_eq!([here(disk, "a,ro"), here(share, ".:t")], ["a,ro", ".:t"]);
        // What is none stays as it is.
        let there = |arg, value: &str| placed(Path::new("/f"), arg, value.to_owned());
        assert_eq!([there(disk, ",ro"), there(share, ":t"), there(disk, "")], [",ro", ":t", ""]);
    }

    #[test]
    fn what_a_file_cannot_say_is_an_error() {
        for (file, problem) in [
            ("colour = 1", "`colour` is no key; the keys are image, kernel"),
            ("supervisor = 'x'", "no key"),
            ("config = 'x'", "no key"),
            ("cpus = [1, 2]", "one value"),
            ("cpus = true", "a text or a number"),
            ("no-reboot = 'yes'", "true or false"),
            ("cpus = ", "configuration"),
            ("cpus = 'many'\nimage = 'debian'", "invalid value 'many'"),
        ] {
            let Err(error) = run(file, "") else { panic!("{file}") };
            assert!(format!("{error:#}").contains(problem), "{file}: {error:#}");
        }
    }

    #[test]
    fn settings_are_all_flags_by_their_names() {
        let words = ["posada", "run", "debian", "--disk", "a", "--disk", "b", "-d"].map(OsString::from);
        let settings = parse(words.to_vec()).unwrap().1;
        assert_eq!(settings["disk"], serde_json::json!(["a", "b"]));
        assert_eq!((&settings["detach"], &settings["cpus"]), (&true.into(), &"1".into()));
        assert_eq!(settings["memory"], Json::Null);
        assert_eq!(settings.get("supervisor"), None);
    }
}
