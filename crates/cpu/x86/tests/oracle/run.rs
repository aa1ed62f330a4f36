//! Runs many cases and gathers what they have in common.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use iced_x86::Code;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use posada_vcpu::Attention;

use super::compare::{self, Difference};
use super::coverage::Coverage;
use super::generate::Generator;
use super::guest::{Factory, Guest};
use super::known;
use super::native::Native;
use super::{Case, Outcome};

/// Cases that failed in the same way: the same form, the same things different.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: Code,
    pub bits: u32,
    /// What differed.
    pub what: Vec<String>,
    pub count: u64,
    /// Number and report of the first of them.
    pub first: (u64, String),
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub cases: u64,
    pub failed: u64,
    /// Cases whose difference is among the [`known`] ones.
    pub known: u64,
    pub coverage: Coverage,
    pub failures: Vec<Failure>,
}

impl Summary {
    fn fail(
        &mut self,
        index: u64,
        code: Code,
        bits: u32,
        what: Vec<String>,
        report: impl FnOnce() -> String,
    ) {
        self.failed += 1;
        let same = self.failures.iter_mut().find(|f| f.code == code && f.bits == bits && f.what == what);
        match same {
            Some(failure) => failure.count += 1,
            None => self.failures.push(Failure { code, bits, what, count: 1, first: (index, report()) }),
        }
    }

    /// Failures by form, those with the most of them first.
    pub fn by_form(&self) -> Vec<(Code, Vec<&Failure>)> {
        let mut forms: BTreeMap<Code, Vec<&Failure>> = BTreeMap::new();
        for failure in &self.failures {
            forms.entry(failure.code).or_default().push(failure);
        }
        forms.into_iter().collect()
    }
}

/// Who is carrying out a case.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runner {
    Native,
    Engine,
}

/// Interrupts what runs for too long, which then ends as [`super::End::Endless`].
struct Watchdog {
    /// Counts beginnings and ends of runs.
    steps: AtomicU64,
    running: Mutex<Option<Runner>>,
    pid: Pid,
    attention: Mutex<Arc<Attention>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(3);

    fn start(pid: Pid, attention: Arc<Attention>) -> Arc<Self> {
        let (steps, running) = (AtomicU64::new(0), Mutex::new(None));
        let watchdog = Arc::new(Self { steps, running, pid, attention: Mutex::new(attention) });
        let watched = Arc::downgrade(&watchdog);
        thread::spawn(move || Self::watch(&watched));
        watchdog
    }

    fn watch(watched: &Weak<Self>) {
        let mut before = 0;
        while let Some(watchdog) = watched.upgrade() {
            let now = watchdog.steps.load(Ordering::Relaxed);
            // While the lock is held the run cannot end, so that the signal is not left for the next one.
            let running = lock(&watchdog.running);
            if now == before && now == watchdog.steps.load(Ordering::Relaxed) {
                match *running {
                    Some(Runner::Native) => drop(kill(watchdog.pid, Signal::SIGUSR1)),
                    Some(Runner::Engine) => lock(&watchdog.attention).kick(),
                    None => {}
                }
            }
            before = now;
            drop(running);
            drop(watchdog);
            thread::sleep(Self::PATIENCE);
        }
    }

    fn watching<T>(&self, runner: Runner, run: impl FnOnce() -> T) -> T {
        self.steps.fetch_add(1, Ordering::Relaxed);
        *lock(&self.running) = Some(runner);
        let result = run();
        *lock(&self.running) = None;
        self.steps.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn set_attention(&self, attention: Arc<Attention>) {
        *lock(&self.attention) = attention;
    }
}

/// What came of one case.
#[derive(Clone, Debug)]
pub enum Verdict {
    Same,
    /// Its difference is among the [`known`] ones.
    Known,
    /// What it looked like natively, and what differs.
    Different(Box<Outcome>, Vec<Difference>),
}

/// The host's processor beside an engine.
pub struct Pair<'a> {
    factory: &'a Factory,
    native: Native,
    guest: Guest,
    watchdog: Arc<Watchdog>,
}

impl<'a> Pair<'a> {
    /// All comparisons must be made on the thread that calls this.
    pub fn new(factory: &'a Factory) -> std::io::Result<Self> {
        let (native, guest) = (Native::start()?, Guest::new(factory));
        let watchdog = Watchdog::start(native.pid(), guest.attention());
        Ok(Self { factory, native, guest, watchdog })
    }

    /// Runs a case natively and on the engine.
    pub fn compare(&mut self, case: &Case) -> std::io::Result<Verdict> {
        let Self { factory, native, guest, watchdog } = self;
        let expected = watchdog.watching(Runner::Native, || native.run(case))?;
        let got = watchdog.watching(Runner::Engine, || catch_unwind(AssertUnwindSafe(|| guest.run(case))));
        let what = match got {
            Ok(Ok(got)) => {
                let differences = compare::differences(case, &expected, &got);
                return Ok(match () {
                    () if differences.is_empty() => Verdict::Same,
                    () if known::reason(case, &expected, &differences).is_some() => Verdict::Known,
                    () => Verdict::Different(expected.into(), differences),
                });
            }
            Err(_) => "the engine panics".to_owned(),
            Ok(Err(error)) => format!("the engine fails: {error:?}"),
        };
        *guest = Guest::new(*factory);
        watchdog.set_attention(guest.attention());
        let failure = Difference { what, native: format!("{:?}", expected.end), engine: "none".to_owned() };
        Ok(Verdict::Different(expected.into(), vec![failure]))
    }
}

/// Runs the generator's cases natively and on the engine.
pub fn run(generator: &Generator, cases: Range<u64>, factory: &Factory) -> std::io::Result<Summary> {
    let mut pair = Pair::new(factory)?;
    let mut summary = Summary::default();
    for index in cases {
        let Some(case) = generator.case(index) else { continue };
        let code = case.instruction.code();
        summary.cases += 1;
        summary.coverage.count(code);
        match pair.compare(&case)? {
            Verdict::Same => {}
            Verdict::Known => summary.known += 1,
            Verdict::Different(expected, differences) => {
                let what = differences.iter().map(|difference| class(&difference.what)).collect();
                let report = || compare::report(&case, &expected, &differences);
                summary.fail(index, code, case.bits, what, report);
            }
        }
    }
    Ok(summary)
}

/// Registers of a kind and bytes of memory count as the same.
fn class(what: &str) -> String {
    let kind = what.trim_end_matches(|c: char| c.is_ascii_hexdigit());
    match what.split(' ').next() {
        Some("memory") => "memory".to_owned(),
        Some(word) if word.starts_with("xmm") => "xmm".to_owned(),
        _ if kind.starts_with("x87 register") => "x87 register".to_owned(),
        _ => what.to_owned(),
    }
}
