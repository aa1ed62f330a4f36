//! `posada stop|kill|pause|resume|balloon|stats|rm`: what is asked of guests that run.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use posada_image::Guests;
use posada_manage::protocol::{Answer, Request};
use posada_manage::{Client, Error, Found, Running};

use crate::arguments::{Balloon, OfSome, Rm, Stats, Stop};
use crate::list::{print, size};
use crate::status;

/// How long a guest may take that is ended at once.
const AT_ONCE: Duration = Duration::from_secs(20);

/// How long until a guest is asked again to end: one that is still starting does not hear of its power button.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Does `what` for each, says what fails, and goes on.
fn each(names: &[String], mut what: impl FnMut(&str) -> Result<()>) -> u8 {
    let mut status = status::DONE;
    for name in names {
        if let Err(error) = what(name) {
            eprintln!("posada: {error:#}");
            status = status::CANNOT_RUN;
        }
    }
    status
}

/// Waits until the guest has ended; whether it has.
fn wait_for_end(guest: &Found, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if !guest.still_runs() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(25));
    }
}

/// Ends a guest at once.
fn end(guest: &Found) -> Result<()> {
    match Client::of(guest).ask(Request::Kill) {
        // It has ended by itself meanwhile.
        Ok(_) | Err(Error::RunsNot { .. }) => {}
        Err(error) if wait_for_end(guest, Duration::from_millis(500)) => tracing::debug!(%error, "ended"),
        Err(error) => return Err(error.into()),
    }
    if !wait_for_end(guest, AT_ONCE) {
        let process = guest.started().map(|started| started.process);
        let id = process.map_or_else(|| "its supervisor".to_owned(), |id| format!("process {id}"));
        bail!("the guest `{}` does not end; kill -9 {id} ends it, its disks come to no harm", guest.name());
    }
    Ok(())
}

pub(crate) fn stop(arguments: &Stop) -> Result<u8> {
    let running = Running::open()?;
    Ok(each(&arguments.names, |name| {
        let guest = running.running(name)?;
        let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match Client::of(&guest).ask(Request::Stop) {
                Ok(_) | Err(Error::RunsNot { .. }) => {}
                Err(error) if wait_for_end(&guest, left.min(ASK_AGAIN)) => tracing::debug!(%error, "ended"),
                Err(error) => return Err(error.into()),
            }
            if wait_for_end(&guest, left.min(ASK_AGAIN)) {
                return Ok(());
            }
            if left.is_zero() {
                eprintln!("posada: `{name}` did not end within {} s, and is ended", arguments.timeout);
                return end(&guest);
            }
        }
    }))
}

pub(crate) fn kill(arguments: &OfSome) -> Result<u8> {
    let running = Running::open()?;
    Ok(each(&arguments.names, |name| end(&running.running(name)?)))
}

fn ask(arguments: &OfSome, request: Request) -> Result<u8> {
    let running = Running::open()?;
    Ok(each(&arguments.names, |name| {
        Client::of(&running.running(name)?).ask(request)?;
        Ok(())
    }))
}

pub(crate) fn pause(arguments: &OfSome) -> Result<u8> {
    ask(arguments, Request::Pause)
}

pub(crate) fn resume(arguments: &OfSome) -> Result<u8> {
    ask(arguments, Request::Resume)
}

pub(crate) fn balloon(arguments: &Balloon) -> Result<u8> {
    let guest = Running::open()?.running(&arguments.name)?;
    Client::of(&guest).ask(Request::Balloon { bytes: arguments.size.0 })?;
    Ok(status::DONE)
}

pub(crate) fn stats(arguments: &Stats) -> Result<u8> {
    let guest = Running::open()?.running(&arguments.name)?;
    let Answer::Stats(stats) = Client::of(&guest).ask(Request::Stats)? else {
        bail!("the guest `{}` was asked for figures and answered something else", arguments.name);
    };
    if arguments.json {
        return print(&(serde_json::to_string_pretty(&stats)? + "\n"));
    }
    let paused = if stats.paused { ", paused" } else { "" };
    let mut text = format!(
        "guest time      {:.1} s{paused}\nprocessor time  {:.1} s\nmemory          {}\n",
        stats.guest_time,
        stats.cpu_time,
        size(stats.memory)
    );
    if let Some(balloon) = stats.balloon.filter(|balloon| balloon.target != 0 || balloon.actual != 0) {
        let (actual, target) = (size(balloon.actual), size(balloon.target));
        let _ = writeln!(text, "balloon         {actual} of {target} asked for");
    }
    for disk in &stats.disks {
        let name = format!("disk {}", disk.serial);
        let (read, written) = (size(disk.read_bytes), size(disk.written_bytes));
        let _ = write!(
            text,
            "{name:<16}{read} in {} reads, {written} in {} writes, {} flushes",
            disk.reads, disk.writes, disk.flushes
        );
        if disk.discards != 0 {
            let _ = write!(text, ", {} in {} discards", size(disk.discarded_bytes), disk.discards);
        }
        if disk.errors != 0 {
            let _ = write!(text, ", {} errors", disk.errors);
        }
        text.push('\n');
    }
    for card in &stats.networks {
        let (sent, received) = (size(card.sent_bytes), size(card.received_bytes));
        let _ = writeln!(
            text,
            "network         {sent} in {} packets sent, {received} in {} packets received",
            card.sent_packets, card.received_packets
        );
    }
    for (cpu, report) in stats.processors.iter().enumerate() {
        let _ = write!(text, "processor {cpu}\n{report}");
    }
    print(&text)
}

pub(crate) fn rm(arguments: &Rm) -> Result<u8> {
    let (running, guests) = (Running::open()?, Guests::open()?);
    Ok(each(&arguments.names, |name| {
        let found = running.find(name)?;
        if let Some(guest) = found.as_ref().filter(|guest| guest.runs()) {
            if !arguments.force {
                bail!("the guest `{name}` runs: `posada stop {name}` first, or give --force");
            }
            end(guest)?;
        }
        if found.is_none() && guests.find(name)?.is_none() {
            return Err(Error::Unknown { name: name.to_owned() }.into());
        }
        // Nobody can start it meanwhile; what is left of the run goes with the place.
        let place = running.take(name)?;
        match guests.remove(name) {
            Ok(()) | Err(posada_image::Error::NoGuest { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        drop(place);
        Ok(())
    }))
}
