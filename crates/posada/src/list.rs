//! `posada ps|inspect|logs`: what is known of guests.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use posada_image::Guests;
use posada_manage::protocol::{Answer, Request};
use posada_manage::{Client, Error, Found, Running};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::arguments::{Logs, Ps};
use crate::status;
use crate::supervise::MESSAGES;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How it is, in a word or two.
fn state(guest: &Found) -> String {
    if guest.runs() {
        return match Client::of(guest).ask(Request::Status) {
            Ok(Answer::Status(status)) if status.paused => "paused",
            Ok(_) => "running",
            Err(_) if guest.started().is_none() => "starting",
            Err(_) => "silent",
        }
        .to_owned();
    }
    guest.ended().map_or_else(|| "killed".to_owned(), |ended| format!("ended ({})", ended.status))
}

fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let Some(time) = time else { return String::new() };
    let (date, hour, minute, second) = (time.date(), time.hour(), time.minute(), time.second());
    format!(
        "{}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day()
    )
}

/// All that is known of a guest, whether it runs or only has a disk.
fn describe(name: &str, found: Option<&Found>, guests: &Guests) -> Result<Value> {
    let kept = guests.find(name)?;
    let mut all = json!({ "name": name, "state": found.map_or_else(|| "stopped".to_owned(), state) });
    if let Some(guest) = &kept {
        all["image"] = guest.image_name().into();
        all["disk"] = guest.disk().to_string_lossy().into();
    }
    if let Some(started) = found.and_then(Found::started) {
        all["process"] = if found.is_some_and(Found::runs) { started.process.into() } else { Value::Null };
        all["started"] = date(started.at).into();
        all["detached"] = started.detached.into();
        all["what"] = started.what.clone().into();
        all["settings"] = started.settings.clone();
        all["vsock"] = started.vsock.as_ref().map(|path| path.to_string_lossy().into_owned()).into();
    }
    if let Some(found) = found {
        all["log"] = found.logs()[1].to_string_lossy().into();
        if let Some(ended) = found.ended() {
            all["ended"] = date(ended.at).into();
            all["status"] = ended.status.into();
        }
        if found.runs()
            && let Ok(Answer::Status(status)) = Client::of(found).ask(Request::Status)
        {
            all["guest_time"] = status.guest_time.into();
        }
    }
    Ok(all)
}

pub(crate) fn ps(arguments: &Ps) -> Result<u8> {
    let (running, guests) = (Running::open()?, Guests::open()?);
    let found = running.list()?;
    let mut names: BTreeSet<String> = found
        .iter()
        .filter(|guest| arguments.all || guest.runs())
        .map(|guest| guest.name().to_owned())
        .collect();
    if arguments.all {
        names.extend(guests.list()?.iter().map(|guest| guest.name().to_owned()));
    }
    let describe = |name: &String| describe(name, found.iter().find(|guest| guest.name() == name), &guests);
    let all = names.iter().map(describe).collect::<Result<Vec<Value>>>()?;
    if arguments.json {
        return print(&(serde_json::to_string_pretty(&all)? + "\n"));
    }
    let text = |guest: &Value, key: &str| match &guest[key] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut rows = vec![["NAME", "STATE", "PROCESS", "STARTED", "GUEST"].map(str::to_owned)];
    for guest in &all {
        let what = if guest["what"].is_string() { "what" } else { "image" };
        rows.push(["name", "state", "process", "started", what].map(|key| text(guest, key)));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 4] = std::array::from_fn(width);
    let mut table = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(table, "{cell:width$}  ");
        }
        table += &row[4];
        table.push('\n');
    }
    print(&table)
}

/// Writes to standard output, whose reader may have seen enough.
pub(crate) fn print(text: &str) -> Result<u8> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("writing the answer"),
        _ => Ok(status::DONE),
    }
}

pub(crate) fn inspect(name: &str) -> Result<u8> {
    let (found, guests) = (Running::open()?.find(name)?, Guests::open()?);
    if found.is_none() && guests.find(name)?.is_none() {
        return Err(Error::Unknown { name: name.to_owned() }.into());
    }
    print(&(serde_json::to_string_pretty(&describe(name, found.as_ref(), &guests)?)? + "\n"))
}

/// Bytes in a unit that people use.
pub(crate) fn size(bytes: u64) -> String {
    if bytes >> 30 > 0 {
        format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
    } else if bytes >> 20 > 0 {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{:.1} KiB", bytes as f64 / f64::from(1 << 10))
    }
}

pub(crate) fn logs(arguments: &Logs) -> Result<u8> {
    let name = &arguments.name;
    let found = Running::open()?.find(name)?.ok_or_else(|| Error::Unknown { name: name.clone() })?;
    let [older, log] = found.logs();
    let mut out = io::stdout().lock();
    let shown = || -> io::Result<()> {
        if let Some(mut older) = open(&older)? {
            io::copy(&mut older, &mut out)?;
        }
        let mut current = open(&log)?;
        loop {
            // Asked before reading: what is said last is read, too.
            let goes_on = arguments.follow && found.still_runs();
            if let Some(file) = &mut current {
                io::copy(file, &mut out)?;
                out.flush()?;
                if is_renamed(file, &log)? {
                    io::copy(file, &mut out)?;
                    current = open(&log)?;
                    continue;
                }
            } else {
                current = open(&log)?;
            }
            if !goes_on {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    };
    let mut shown = shown;
    match shown() {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(status::DONE),
        result => result.with_context(|| format!("reading the log {}", log.display()))?,
    }
    drop(out);
    // What the supervisor has to say is no part of it.
    if let Some(messages) = open(&log.with_file_name(MESSAGES)).ok().flatten() {
        let _ = io::copy(&mut messages.take(1 << 20), &mut io::stderr());
    }
    Ok(status::DONE)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this file is not the one of this name any more; it may be that there is none.
fn is_renamed(file: &mut File, path: &Path) -> io::Result<bool> {
    let is_read = file.stream_position()? >= file.metadata()?.len();
    match std::fs::metadata(path) {
        Ok(there) => Ok(is_read && there.ino() != file.metadata()?.ino()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_iso_8601() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(date(u64::MAX), "");
        assert_eq!([size(512), size(5 << 20), size(3 << 29)], ["0.5 KiB", "5.0 MiB", "1.5 GiB"]);
    }
}
