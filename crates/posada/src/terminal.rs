//! The terminal: raw while a guest has it, and as it was on every way out.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, OnceLock, PoisonError};

use posada_image::session::Size;
use rustix::termios::{self, OptionalActions, OutputModes, Termios};

/// How the terminal was before it was made raw.
static BEFORE: OnceLock<Mutex<Option<Termios>>> = OnceLock::new();

fn before() -> std::sync::MutexGuard<'static, Option<Termios>> {
    BEFORE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the terminal on standard input raw as long as it lives: every key reaches the guest, Ctrl-C too.
pub(crate) struct Raw;

impl Raw {
    /// `None` where standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let modes = termios::tcgetattr(&stdin)?;
        let mut raw = modes.clone();
        raw.make_raw();
        // Output is left alone, so that our own messages keep their line ends.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        *before() = Some(modes);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, if it was changed. May be called at any time, any number of times.
pub(crate) fn restore() {
    if let Some(modes) = before().take() {
        // There is nobody to tell if the terminal has gone away.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &modes);
    }
}

/// Has a panic, on whichever thread, give the terminal back before its message.
pub(crate) fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

/// The terminal's size, where standard output is one.
pub(crate) fn size() -> Option<Size> {
    let size = termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row != 0 && size.ws_col != 0).then_some(Size { rows: size.ws_row, columns: size.ws_col })
}
