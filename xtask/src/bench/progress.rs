//! What is being done, on a terminal; nothing in a pipe.

use indicatif::{ProgressBar, ProgressStyle};

use super::console::Event;

/// A line on the terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// For so many runs of so many workloads each.
    pub(crate) fn new(runs: u64, workloads: usize) -> Self {
        // Of every run, the kernel's first line, the shell and the end, and two events of each workload.
        let bar = ProgressBar::new(runs * (3 + 2 * workloads as u64));
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:30.cyan} {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Self(bar)
    }

    pub(crate) fn say(&self, what: String) {
        self.0.set_message(what);
    }

    pub(crate) fn at(&self, doing: &str, event: &Event) {
        self.0.inc(1);
        let what = match event {
            Event::Kernel => "booting",
            Event::Begin(workload) => workload,
            Event::Shell | Event::End { .. } | Event::Done => return,
        };
        self.say(format!("{doing}: {what}"));
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl posada_image::Progress for Progress {
    fn stage(&mut self, what: &str, _: Option<u64>) {
        self.say(what.to_owned());
    }

    fn advance(&mut self, _: u64) {}

    fn done(&mut self) {}
}
