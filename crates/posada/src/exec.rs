//! `posada exec`: a command in a guest that runs.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use posada_image::session::{Relay, Session, Streams, wire};
use posada_manage::{Running, open_exec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::arguments::Exec;
use crate::guest::takes_terminal;
use crate::status;
use crate::terminal::{self, Raw};

pub(crate) fn run(arguments: &Exec) -> Result<u8> {
    let guest = Running::open()?.running(&arguments.name)?;
    let mut session = Session::command(&arguments.command);
    let on_terminal = takes_terminal();
    if on_terminal {
        session = session.on_terminal();
    }
    if let Some(size) = terminal::size() {
        session = session.size(size);
    }
    if let Some(term) = std::env::var_os("TERM").filter(|_| io::stdin().is_terminal()) {
        session = session.env("TERM", term);
    }
    let session = session.encode()?;
    let mut stream = open_exec(&guest, wire::EXEC_PORT, Duration::from_secs(arguments.wait))?;
    stream.write_all(&(session.len() as u32).to_le_bytes()).context("passing the command on")?;
    stream.write_all(&session).context("passing the command on")?;

    let raw = if on_terminal { Raw::enter()? } else { None };
    let mut to_guest = stream.try_clone().context("passing the command's streams")?;
    let (relay, mut port) = Relay::start(Streams::inherit(), move |bytes| to_guest.write_all(bytes));
    let relay = Arc::new(relay);
    pass_signals(&relay)?;
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => port.write_all(&buffer[..count]).context("passing the command's streams")?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "the guest's end of the stream");
                break;
            }
        }
        if relay.ending().is_some() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    let finished = match Arc::try_unwrap(relay) {
        Ok(relay) => relay.finish(),
        // A signal is being passed on.
        Err(relay) => Ok(relay.ending()),
    };
    drop(raw);
    terminal::restore();
    let Some(ending) = finished.context("passing the command's streams")? else {
        eprintln!("posada: the guest `{}` went away before the command ended", arguments.name);
        return Ok(status::NO_STATUS);
    };
    if let Some(complaint) = ending.complaint() {
        eprintln!("posada: {complaint}");
    }
    Ok(ending.status())
}

/// Passes signals on to the command, and the terminal's size.
fn pass_signals(relay: &Arc<Relay>) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH]).context("watching for signals")?;
    let relay = Arc::downgrade(relay);
    std::thread::spawn(move || {
        for signal in &mut signals {
            let Some(relay) = relay.upgrade() else { return };
            match (signal, terminal::size()) {
                (SIGWINCH, Some(size)) => relay.resize(size),
                (SIGWINCH, None) => {}
                _ => relay.signal(signal as u8),
            }
        }
    });
    Ok(())
}
