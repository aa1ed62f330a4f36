//! `posada console`: a guest's console, joined and left.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use posada_manage::protocol::Request;
use posada_manage::{Client, Found, Running};

use crate::keys::{Action, JOINED_HELP, Keys};
use crate::status;
use crate::terminal::{self, Raw};

pub(crate) fn run(name: &str) -> Result<u8> {
    let guest = Running::open()?.running(name)?;
    let mut stream = Client::of(&guest).console()?;
    let raw = Raw::enter()?;
    let is_terminal = raw.is_some();
    if is_terminal {
        eprintln!("posada: the console of `{name}`; Ctrl-A d leaves it, Ctrl-A h lists the keys");
    }
    let left = Arc::new(AtomicBool::new(false));
    let typed = stream.try_clone().context("joining the console")?;
    let (typist, leaving) = (guest.clone(), Arc::clone(&left));
    std::thread::spawn(move || pass_keys(&typist, typed, is_terminal, &leaving));
    let mut buffer = [0; 16 << 10];
    let mut stdout = io::stdout();
    let passed = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                if let Err(error) = stdout.write_all(&buffer[..count]).and_then(|()| stdout.flush()) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // As good as an end.
            Err(error) => {
                tracing::debug!(%error, "the supervisor's end of the console");
                break Ok(());
            }
        }
    };
    drop(raw);
    terminal::restore();
    if is_terminal {
        let why = match () {
            () if left.load(Ordering::Acquire) => "left; the guest goes on",
            () if guest.still_runs() => "cut off: the guest said more than this terminal took",
            () => "the guest has ended",
        };
        eprintln!("\nposada: {why}");
    }
    match passed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("writing the console"),
        _ => Ok(status::DONE),
    }
}

/// Passes on what is typed. The end of standard input ends nothing: the guest may have more to say.
fn pass_keys(guest: &Found, mut stream: UnixStream, has_keys: bool, left: &AtomicBool) {
    let (mut keys, mut buffer) = (Keys::default(), [0; 4096]);
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        let mut leaves = false;
        let typed = if has_keys {
            keys.filter(&buffer[..count], |action| match action {
                Action::Detach => leaves = true,
                Action::Help => eprint!("{JOINED_HELP}"),
                Action::Quit => ask(guest, Request::Kill),
                Action::PowerButton => ask(guest, Request::Stop),
                _ => eprint!("\r\nposada: that key is for the terminal that the guest was started from\r\n"),
            })
        } else {
            buffer[..count].to_vec()
        };
        if stream.write_all(&typed).is_err() {
            return;
        }
        if leaves {
            left.store(true, Ordering::Release);
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn ask(guest: &Found, request: Request) {
    if let Err(error) = Client::of(guest).ask(request) {
        eprint!("\r\nposada: {error}\r\n");
    }
}
