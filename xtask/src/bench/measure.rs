//! One run of one monitor, from outside: when its guest said what, and how much memory it took meanwhile. All monitors
//! are measured by this code.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use super::console::{Event, Lines};
use super::memory;

/// How often memory is looked at. Looking stops the monitor for about a millisecond.
const SAMPLE: Duration = Duration::from_millis(500);

/// How long a guest may say nothing of interest.
const PATIENCE: Duration = Duration::from_mins(3);

/// Which of a monitor's streams carries its guest's console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    Stdout,
    Stderr,
}

/// A monitor about to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) command: Command,
    pub(crate) console: Console,
    /// It wants a terminal as its standard input (and output, if that is not the console).
    pub(crate) terminal: bool,
    /// Guest memory in bytes; none if there is no guest.
    pub(crate) memory: Option<u64>,
}

/// A command that dies with this process, so that a benchmark that is broken off leaves no emulator behind.
pub(crate) fn tethered(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// What one run took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measurement {
    /// None if there is no guest.
    pub(crate) boot: Option<Boot>,
    pub(crate) workloads: BTreeMap<String, Work>,
    /// The most memory that it had for itself, in bytes.
    pub(crate) memory: u64,
}

/// What a boot took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Boot {
    /// From the start of the monitor to the shell.
    pub(crate) start_to_shell: Duration,
    /// From the kernel's first line to the shell.
    pub(crate) kernel_to_shell: Duration,
    /// The same, in time of the host's processors.
    pub(crate) kernel_to_shell_cpu: Duration,
}

/// What one workload took.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Work {
    pub(crate) wall: Duration,
    /// Of the host's processors, all threads of the monitor together.
    pub(crate) cpu: Duration,
    pub(crate) result: String,
}

/// Runs a monitor until its guest has done everything. Calls `report` at each event.
pub(crate) fn measure(launch: Launch, report: &mut dyn FnMut(&Event)) -> anyhow::Result<Measurement> {
    let (measurement, failure) = measure_partly(launch, report)?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(measurement),
    }
}

/// Runs a monitor until its guest has done everything, or can do no more. What was measured up to a failure is kept.
pub(crate) fn measure_partly(
    launch: Launch,
    report: &mut dyn FnMut(&Event),
) -> anyhow::Result<(Measurement, Option<anyhow::Error>)> {
    let Launch { mut command, console, terminal, memory } = launch;
    let (sender, events) = channel();
    // What else it says matters only if it fails.
    let (guests, others) = (Tail::default(), Tail::default());
    let master = if terminal {
        let (master, slave) = pseudoterminal().context("opening a pseudoterminal")?;
        command.stdin(slave.try_clone()?).stdout(slave);
        Some(master)
    } else {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        None
    };
    command.stderr(Stdio::piped());
    let start = Instant::now();
    let mut child =
        Reaped(command.spawn().with_context(|| format!("starting {}", command.get_program().display()))?);
    // This process keeps the terminal's other side open until the command is dropped.
    drop(command);
    if let Some(master) = master {
        others.follow(master, None);
    }
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    for (is_console, stream) in [
        (console == Console::Stdout, stdout.map(|s| Box::new(s) as Box<dyn Read + Send>)),
        (console == Console::Stderr, stderr.map(|s| Box::new(s) as Box<dyn Read + Send>)),
    ] {
        let Some(stream) = stream else { continue };
        if is_console { guests.follow(stream, Some(sender.clone())) } else { others.follow(stream, None) }
    }
    drop(sender);

    let pid = child.0.id();
    let mut timeline = Timeline::new(start);
    let mut memory_own = None;
    let mut last_event = start;
    let mut next_sample = start + SAMPLE;
    let explain = |what: &str| {
        let (guest, monitor) = (guests.text(), others.text());
        anyhow::anyhow!(
            "{what}\nthe end of its guest's console:\n{guest}\nand of what it said itself:\n{monitor}"
        )
    };
    let failure = loop {
        let wait = next_sample.saturating_duration_since(Instant::now());
        match events.recv_timeout(wait) {
            Ok((when, event)) => {
                last_event = when;
                report(&event);
                let done = event == Event::Done;
                timeline.add(when, cpu_time(pid).unwrap_or_default(), event);
                if done {
                    break None;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                next_sample = Instant::now() + SAMPLE;
                // There may be no guest RAM yet.
                memory_own = memory_own.max(memory.and_then(|ram| memory::own(pid, ram).ok()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                break Some(explain("it ended before its guest was done"));
            }
        }
        if last_event.elapsed() > PATIENCE {
            break Some(explain(&format!("its guest has done nothing of interest for {PATIENCE:?}")));
        }
    };
    let at_end = match memory {
        Some(ram) if failure.is_none() => memory::own(pid, ram)?,
        _ => 0,
    };
    let most = memory_own.unwrap_or(0).max(at_end);
    let measured = timeline.finish(most, memory.is_some());
    match (measured, failure) {
        (Ok(measurement), failure) => Ok((measurement, failure)),
        (Err(_), Some(failure)) => Err(failure),
        (Err(error), None) => Err(explain(&error.to_string())),
    }
}

/// A process that ends with its owner.
pub(crate) struct Reaped(pub(crate) Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A stream that a thread reads to its end.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Lines>>);

impl Tail {
    fn follow(&self, mut stream: impl Read + Send + 'static, events: Option<Sender<(Instant, Event)>>) {
        let lines = Arc::clone(&self.0);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose other side is closed says EIO.
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                let now = Instant::now();
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.take(&buffer[..n], &mut |event| {
                    if let Some(events) = &events {
                        // The receiver may have seen enough.
                        let _ = events.send((now, event));
                    }
                });
            }
        });
    }

    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tail()
    }
}

/// Both sides of a pseudoterminal: ours, and the one for a child.
fn pseudoterminal() -> io::Result<(fs::File, std::os::fd::OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master.into(), slave))
}

/// The processor time that a process has used, all threads together (proc(5), `stat`, fields 14 and 15).
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name that may hold anything, in parentheses.
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks =
        |index: usize| fields.split_whitespace().nth(index).and_then(|field| field.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else { bail!("no times") };
    Ok(Duration::from_secs(user + system) / rustix::param::clock_ticks_per_second() as u32)
}

/// Makes a measurement of events.
#[derive(Debug)]
struct Timeline {
    start: Instant,
    kernel: Option<(Instant, Duration)>,
    shell: Option<(Instant, Duration)>,
    running: Option<(String, Instant, Duration)>,
    workloads: BTreeMap<String, Work>,
}

impl Timeline {
    fn new(start: Instant) -> Self {
        Self { start, kernel: None, shell: None, running: None, workloads: BTreeMap::new() }
    }

    /// Takes an event, with the processor time that the monitor had used by then.
    fn add(&mut self, when: Instant, cpu: Duration, event: Event) {
        match event {
            // Linux says its first line again when a console takes over from an earlier one.
            Event::Kernel => self.kernel = self.kernel.or(Some((when, cpu))),
            Event::Shell => self.shell = Some((when, cpu)),
            Event::Begin(workload) => self.running = Some((workload, when, cpu)),
            Event::End { workload, result } => {
                if let Some((name, began, cpu_before)) = self.running.take()
                    && name == workload
                {
                    let work = Work { wall: when - began, cpu: cpu.saturating_sub(cpu_before), result };
                    self.workloads.insert(workload, work);
                }
            }
            Event::Done => {}
        }
    }

    /// With a guest, its boot must have been seen.
    fn finish(self, memory: u64, guest: bool) -> anyhow::Result<Measurement> {
        let mut boot = None;
        if guest {
            let (kernel, kernel_cpu) = self.kernel.context("the kernel's first line was not seen")?;
            let (shell, shell_cpu) = self.shell.context("the shell was not seen to start")?;
            boot = Some(Boot {
                start_to_shell: shell - self.start,
                kernel_to_shell: shell - kernel,
                kernel_to_shell_cpu: shell_cpu.saturating_sub(kernel_cpu),
            });
        }
        if let Some((name, work)) = self.workloads.iter().find(|(_, work)| work.result.is_empty()) {
            bail!("the workload {name} failed after {:.1?}: it printed nothing", work.wall);
        }
        Ok(Measurement { boot, workloads: self.workloads, memory })
    }
}

#[cfg(test)]
#[path = "measure_test.rs"]
mod tests;
