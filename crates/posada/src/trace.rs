//! `--trace`: what a guest does, for those who study it, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What can be traced. The names are the libraries' tracing targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Topic {
    /// Exceptions, interrupts taken, CPUID, model-specific registers
    Cpu,
    /// Ports and memory-mapped registers
    Io,
    /// Interrupt lines and controllers
    Irq,
}

impl Topic {
    fn target(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Io => "io",
            Self::Irq => "irq",
        }
    }
}

/// Sends warnings, and what was asked for, to standard error.
pub(crate) fn start(topics: &[Topic]) {
    let filter = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets(topics.iter().map(|topic| (topic.target(), LevelFilter::TRACE)));
    let format = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(format).with(filter).init();
}
