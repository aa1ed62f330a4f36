//! `posada run`: a machine from arguments, with this process's streams as its console.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use posada_image::session::{PortWriter, Relay, Session, Streams};
use posada_pc::{Engine, Handle, OnReset, OnTripleFault, Outcome, Pc, PcBuilder, Port};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::arguments::Run;
use crate::devices::Beside;
use crate::guest::takes_terminal;
use crate::keys::{Action, HELP, Keys};
use crate::supervise::Supervisor;
use crate::terminal::{self, Raw};
use crate::{devices, guest, status};

/// How much of the console is kept for when a command fails to run, in bytes.
const CONSOLE_TAIL: usize = 16 << 10;

/// What ended the run from outside.
#[derive(Default)]
struct Ending {
    quit: AtomicBool,
    /// The signal that ended the run, 0 for none.
    signal: AtomicU8,
}

/// Runs the guest; with a name, under supervision.
pub(crate) fn run(arguments: &Run, supervisor: Option<&mut Supervisor>) -> Result<u8> {
    let mut closed = true;
    let status = run_guest(arguments, supervisor, &mut closed)?;
    Ok(if closed || status != status::DONE { status } else { status::CANNOT_RUN })
}

/// Runs the guest, and notes in `closed` whether all that it wrote to its disks is there.
fn run_guest(arguments: &Run, supervisor: Option<&mut Supervisor>, closed: &mut bool) -> Result<u8> {
    let is_detached = arguments.detach;
    let session = guest::session(arguments);
    let guest = guest::choose(arguments, session.as_ref())?;
    let mut builder = PcBuilder::new(guest.kernel)
        .memory(guest.memory)
        .cpus(arguments.cpus)
        .cpu_model(&arguments.cpu)
        .engine(arguments.engine)
        .code_cache(arguments.code_cache.0)
        .sampled(arguments.stats)
        .debug_exit(arguments.debug_exit)
        .on_reset(if arguments.no_reboot || !arguments.command.is_empty() {
            OnReset::Exit
        } else {
            OnReset::Reboot
        })
        .on_triple_fault(if arguments.reset_on_triple_fault {
            OnTripleFault::Reset
        } else {
            OnTripleFault::Exit
        });

    let has_system = guest.disk.is_some();
    let mut beside = Beside::default();
    if let Some(disk) = guest.disk {
        beside.keep(&disk);
        builder = builder.disk(disk, "posada");
    }
    let entry = supervisor.as_ref().map(|supervisor| &supervisor.entry);
    builder = if arguments.engine == Engine::Lockstep {
        // A network card and entropy are not there either.
        devices::refuse(arguments, has_system)?;
        builder
    } else {
        devices::plug(builder, arguments, entry, &mut beside)?
    };

    // The relay needs the machine's handle, and the machine the relay's writer.
    let late: Arc<Mutex<Option<Handle>>> = Arc::default();
    let ending = Arc::new(Ending::default());
    let console = Console::default();
    let shown = supervisor.as_ref().map(|supervisor| supervisor.console.clone());
    let mut relay = None;
    if let Some(session) = &session {
        let streams = match shown.clone().filter(|_| is_detached && !session.is_shell()) {
            Some(shown) => Streams { stdin: None, stdout: Box::new(shown.clone()), stderr: Box::new(shown) },
            None => streams(session, &late, &ending),
        };
        let (new, writer) = start_relay(streams, &late);
        builder = builder.serial(Port::Com2, writer);
        relay = Some(new);
    }
    let on_console = session.as_ref().is_none_or(Session::is_shell);
    let own: Box<dyn Write + Send> = match (on_console, arguments.verbose) {
        (true, _) if is_detached => Box::new(io::sink()),
        (true, _) => Box::new(io::stdout()),
        (false, true) if !is_detached => Box::new(io::stderr()),
        (false, _) => Box::new(console.clone()),
    };
    // The log of a detached command is what it writes, and nothing else.
    builder = match shown.filter(|_| on_console || !is_detached) {
        Some(shown) => builder.serial(Port::Com1, Both(own, shown)),
        None => builder.serial(Port::Com1, own),
    };
    let mut pc = builder.build()?;
    let handle = pc.handle();
    *late.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.clone());

    let raw = if !is_detached && (on_console || takes_terminal()) { Raw::enter()? } else { None };
    let relay = relay.map(Arc::new);
    watch_signals(&handle, &ending, relay.clone())?;
    if let Some(supervisor) = supervisor {
        let command = relay.as_ref().filter(|_| !on_console).map(Arc::downgrade);
        let (stopped, killed) = (handle.clone(), (handle.clone(), Arc::clone(&ending)));
        let asked = AtomicBool::new(false);
        let stop = move || {
            stopped.press_power_button();
            // A button may be pressed again; a command is told once.
            let is_first = !asked.swap(true, Ordering::AcqRel);
            if let Some(command) = command.as_ref().and_then(Weak::upgrade).filter(|_| is_first) {
                command.signal(SIGTERM as u8);
            }
        };
        let kill = move || {
            killed.1.signal.store(SIGKILL as u8, Ordering::Release);
            killed.0.stop();
        };
        let vsock = devices::vsock_path(arguments, Some(&supervisor.entry))?;
        supervisor.start(arguments, vsock.unwrap_or_default(), &handle, Arc::new(stop), Arc::new(kill))?;
    }
    if on_console && !is_detached {
        let ends_input = session.is_some();
        let keys = raw.is_some();
        let (handle, ending) = (handle.clone(), Arc::clone(&ending));
        // While a whole system starts it throws away what is typed on its console. A person sees that; a pipe waits.
        let waits_for = relay.as_ref().filter(|_| has_system && !keys).map(Arc::downgrade);
        std::thread::spawn(move || {
            if let Some(relay) = waits_for {
                wait_until_ready(&relay);
            }
            pass_console(&handle, &ending, keys, ends_input);
        });
    }
    let began = Instant::now();
    let outcome = pc.run();
    let took = began.elapsed();
    pc.stop_devices();
    *closed = beside.close_disks();
    drop(beside);
    let signal = ending.signal.load(Ordering::Acquire);
    let quit = ending.quit.load(Ordering::Acquire);
    let finished = match relay.map(Arc::try_unwrap) {
        Some(Ok(relay)) => Some(relay.finish()),
        // The signal thread still holds it: it is on its way out with us.
        Some(Err(relay)) => Some(Ok(relay.ending())),
        None => None,
    };
    drop(raw);
    terminal::restore();
    if arguments.stats {
        report(&pc, took);
    }
    if signal != 0 {
        return Ok(128 + signal);
    }
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("posada: {error}");
            return Ok(status::ENGINE);
        }
    };
    if quit {
        return Ok(status::DONE);
    }
    match &outcome {
        Outcome::TripleFault { state, .. } => {
            console.show();
            eprintln!("posada: {outcome}; the guest's processor has shut down\n{state}");
            return Ok(status::TRIPLE_FAULT);
        }
        Outcome::DebugExit(status) => return Ok(*status),
        Outcome::PoweredOff | Outcome::Reset | Outcome::Stopped => {}
    }
    // How the shell ended on a console that is nobody's says nothing of the guest: systems end it when they power off.
    let Some(finished) = finished.filter(|_| !(is_detached && on_console)) else { return Ok(status::DONE) };
    match finished.context("passing the command's streams")? {
        Some(end) => {
            if let Some(complaint) = end.complaint() {
                eprintln!("posada: {complaint}");
            }
            Ok(end.status())
        }
        None if on_console => Ok(status::DONE),
        None => {
            console.show();
            eprintln!("posada: {outcome} before its command ended; --verbose shows its whole console");
            Ok(status::NO_STATUS)
        }
    }
}

/// Writes to both.
struct Both(Box<dyn Write + Send>, posada_manage::Console);

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.write_all(&bytes[..count])?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()?;
        self.0.flush()
    }
}

/// The streams of a session's command.
fn streams(session: &Session, late: &Arc<Mutex<Option<Handle>>>, ending: &Arc<Ending>) -> Streams {
    if session.is_shell() {
        Streams { stdin: None, stdout: Box::new(io::sink()), stderr: Box::new(io::sink()) }
    } else if takes_terminal() {
        let stdin = TypedKeys {
            keys: Keys::default(),
            left: VecDeque::new(),
            late: Arc::clone(late),
            ending: Arc::clone(ending),
        };
        Streams { stdin: Some(Box::new(stdin)), ..Streams::inherit() }
    } else {
        Streams::inherit()
    }
}

fn start_relay(streams: Streams, late: &Arc<Mutex<Option<Handle>>>) -> (Relay, PortWriter) {
    let late = Arc::clone(late);
    Relay::start(streams, move |bytes| {
        let handle = late.lock().unwrap_or_else(PoisonError::into_inner).clone();
        handle
            .ok_or_else(|| io::Error::other("the machine does not run yet"))?
            .send_serial(Port::Com2, bytes)
            .map_err(io::Error::other)
    })
}

/// Waits until the guest's agent has reported for duty, or the run is over.
fn wait_until_ready(relay: &Weak<Relay>) {
    while relay.upgrade().is_some_and(|relay| !relay.is_ready()) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Passes standard input to the console; at its end, if `ends_input`, sends Ctrl-D again and again, which ends a
/// shell.
fn pass_console(handle: &Handle, ending: &Ending, has_keys: bool, ends_input: bool) {
    const END_OF_TRANSMISSION: u8 = 4;
    let (mut keys, mut buffer) = (Keys::default(), [0; 4096]);
    loop {
        let sent = match io::stdin().read(&mut buffer) {
            // Every read after the end finds the end, and a Ctrl-D that comes between two modes of the terminal is lost.
            Ok(0) | Err(_) if ends_input => {
                while handle.send_serial(Port::Com1, &[END_OF_TRANSMISSION]).is_ok() {
                    std::thread::sleep(Duration::from_secs(1));
                }
                return;
            }
            Ok(0) | Err(_) => return,
            Ok(n) if has_keys => {
                let guests = keys.filter(&buffer[..n], |action| act(action, handle, ending));
                handle.send_serial(Port::Com1, &guests)
            }
            Ok(n) => handle.send_serial(Port::Com1, &buffer[..n]),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Does what a key of ours asks for.
fn act(action: Action, handle: &Handle, ending: &Ending) {
    match action {
        Action::Help => eprint!("{HELP}"),
        Action::Quit => {
            ending.quit.store(true, Ordering::Release);
            handle.stop();
        }
        Action::PowerButton => handle.press_power_button(),
        // This process is the guest's.
        Action::Detach => {}
        Action::Reset => handle.reset(),
        Action::Break => handle.send_break(Port::Com1),
        Action::Registers => {
            for (cpu, state) in handle.states().into_iter().flatten().enumerate() {
                eprintln!("\nprocessor {cpu}\n{state}");
            }
        }
        Action::Report => {
            for (cpu, report) in handle.reports().into_iter().flatten().enumerate() {
                eprint!("\nprocessor {cpu}\n{report}");
            }
        }
    }
}

/// A command's terminal: standard input without the keys that are ours.
struct TypedKeys {
    keys: Keys,
    left: VecDeque<u8>,
    late: Arc<Mutex<Option<Handle>>>,
    ending: Arc<Ending>,
}

impl Read for TypedKeys {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            let mut typed = [0; 1024];
            let n = io::stdin().read(&mut typed)?;
            if n == 0 {
                return Ok(0);
            }
            let handle = self.late.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let ending = &self.ending;
            let guests = self.keys.filter(&typed[..n], |action| {
                if let Some(handle) = &handle {
                    act(action, handle, ending);
                }
            });
            self.left.extend(guests);
        }
        self.left.read(buffer)
    }
}

/// Ends the run in good order on the first signal, and at once on the second; passes on changes of the
/// terminal's size.
fn watch_signals(handle: &Handle, ending: &Arc<Ending>, relay: Option<Arc<Relay>>) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH]).context("watching for signals")?;
    let (handle, ending, relay) = (handle.clone(), Arc::clone(ending), relay.map(|r| Arc::downgrade(&r)));
    std::thread::spawn(move || {
        for signal in &mut signals {
            if signal == SIGWINCH {
                let relay = relay.as_ref().and_then(Weak::upgrade);
                if let (Some(relay), Some(size)) = (relay, terminal::size()) {
                    relay.resize(size);
                }
                continue;
            }
            if ending.signal.swap(signal as u8, Ordering::AcqRel) != 0 {
                terminal::restore();
                std::process::exit(128 + signal);
            }
            handle.stop();
        }
    });
    Ok(())
}

/// The end of what the console said, for when it matters.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    fn show(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = io::stderr().write_all(kept.make_contiguous());
        kept.clear();
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(CONSOLE_TAIL);
        kept.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `--stats`.
fn report(pc: &Pc, took: Duration) {
    let seconds = took.as_secs_f64();
    match pc.instructions() {
        Some(count) => eprintln!(
            "posada: {count} instructions in {seconds:.2} s, {:.1} million a second",
            count as f64 / seconds / 1e6
        ),
        None => eprintln!("posada: {seconds:.2} s"),
    }
    for (cpu, report) in pc.reports().iter().enumerate() {
        eprint!("posada: processor {cpu}\n{report}");
    }
}
