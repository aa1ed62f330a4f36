//! The guest's console, as far as benchmarks read it: lines, and the marks among them.

/// Begins every mark.
pub(crate) const MARK: &str = "posada-bench:";

/// How much of a console is kept to explain a failure, in bytes.
const TAIL: usize = 2000;

/// Something that is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The kernel's first line. Firmware and boot loader end here.
    Kernel,
    /// The shell has started, the first thing that a user could notice; or what is in its place.
    Shell,
    /// A workload begins.
    Begin(String),
    /// It has ended.
    End {
        /// Which.
        workload: String,
        /// What it printed: words.
        result: String,
    },
    /// All workloads have ended.
    Done,
}

impl Event {
    /// The event that a line of the console tells of, if any.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        if line.contains("Linux version ") {
            return Some(Self::Kernel);
        }
        // Something of the kernel's own may stand before a mark in the same line.
        let (_, mark) = line.split_once(MARK)?;
        let mut words = mark.split_whitespace();
        let (kind, name) = (words.next()?, words.next());
        let rest: Vec<_> = words.collect();
        match (kind, name, &*rest) {
            ("shell", None, _) => Some(Self::Shell),
            ("begin", Some(workload), []) => Some(Self::Begin(workload.to_owned())),
            ("end", Some(workload), result) => {
                Some(Self::End { workload: workload.to_owned(), result: result.join(" ") })
            }
            ("done", None, _) => Some(Self::Done),
            _ => None,
        }
    }
}

/// Cuts a stream of bytes into lines, and remembers its end.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
    tail: String,
}

impl Lines {
    /// Takes bytes in pieces of any size and reports the events of every line that they complete.
    pub(crate) fn take(&mut self, bytes: &[u8], report: &mut dyn FnMut(Event)) {
        for &byte in bytes {
            if byte != b'\n' {
                // No line of interest is this long, and a guest may send anything.
                if self.line.len() < TAIL {
                    self.line.push(byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            let line = line.trim_end_matches('\r');
            if let Some(event) = Event::parse(line) {
                report(event);
            }
            self.tail.push_str(line);
            self.tail.push('\n');
            if self.tail.len() > 2 * TAIL {
                let mut from = self.tail.len() - TAIL;
                while !self.tail.is_char_boundary(from) {
                    from += 1;
                }
                self.tail.drain(..from);
            }
            self.line.clear();
        }
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        format!("{}{}", self.tail, String::from_utf8_lossy(&self.line))
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
