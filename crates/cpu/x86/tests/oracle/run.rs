//! Runs many cases and gathers what they have in common.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
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

/// Interrupts whatever runs for too long, natively or on the engine: both then say [`super::End::Endless`].
struct Watchdog {
    /// Counts runs; odd while one goes on.
    runs: AtomicU64,
    pid: Pid,
    attention: Mutex<Arc<Attention>>,
}

impl Watchdog {
    const PATIENCE: Duration = Duration::from_secs(3);

    fn start(pid: Pid, attention: Arc<Attention>) -> Arc<Self> {
        let watchdog = Arc::new(Self { runs: AtomicU64::new(0), pid, attention: Mutex::new(attention) });
        let watched = Arc::downgrade(&watchdog);
        thread::spawn(move || Self::watch(&watched));
        watchdog
    }

    fn watch(watched: &Weak<Self>) {
        let mut before = 0;
        while let Some(watchdog) = watched.upgrade() {
            let now = watchdog.runs.load(Ordering::Relaxed);
            if now == before && now % 2 == 1 {
                // Whichever of the two it is, and if it has just ended, no harm is done.
                let _ = kill(watchdog.pid, Signal::SIGUSR1);
                watchdog.attention.lock().unwrap_or_else(PoisonError::into_inner).kick();
            }
            before = now;
            drop(watchdog);
            thread::sleep(Self::PATIENCE);
        }
    }

    fn watching<T>(&self, run: impl FnOnce() -> T) -> T {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let result = run();
        self.runs.fetch_add(1, Ordering::Relaxed);
        result
    }

    fn set_attention(&self, attention: Arc<Attention>) {
        *self.attention.lock().unwrap_or_else(PoisonError::into_inner) = attention;
    }
}

/// Runs the generator's cases natively and on the engine.
pub fn run(generator: &Generator, cases: Range<u64>, factory: &Factory) -> std::io::Result<Summary> {
    let mut native = Native::start()?;
    let mut guest = Guest::new(factory);
    let watchdog = Watchdog::start(native.pid(), guest.attention());
    let mut summary = Summary::default();
    for index in cases {
        let Some(case) = generator.case(index) else { continue };
        let code = case.instruction.code();
        summary.cases += 1;
        summary.coverage.count(code);
        let expected = watchdog.watching(|| native.run(&case))?;
        let got = watchdog.watching(|| catch_unwind(AssertUnwindSafe(|| guest.run(&case))));
        let got = match got {
            Ok(Ok(got)) => got,
            failed => {
                let what = match failed {
                    Err(_) => "the engine panics".to_owned(),
                    Ok(error) => format!("the engine fails: {error:?}"),
                };
                let panic =
                    Difference { what, native: format!("{:?}", expected.end), engine: "none".to_owned() };
                let what = vec![panic.what.clone()];
                summary.fail(index, code, case.bits, what, || compare::report(&case, &expected, &[panic]));
                guest = Guest::new(factory);
                watchdog.set_attention(guest.attention());
                continue;
            }
        };
        let differences = compare::differences(&case, &expected, &got);
        if differences.is_empty() {
            continue;
        }
        if known::reason(&case, &expected, &differences).is_some() {
            summary.known += 1;
            continue;
        }
        let what = differences.iter().map(|difference| class(&difference.what)).collect();
        summary.fail(index, code, case.bits, what, || compare::report(&case, &expected, &differences));
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
