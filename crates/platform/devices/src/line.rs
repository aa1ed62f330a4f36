//! Interrupt lines.

/// An interrupt line as its device sees it: a wire that is asserted or not.
///
/// `true` means asserted, whatever the electrical polarity. Whether the level or its rise counts is the business
/// of the interrupt controller at the other end; an edge is `set(true)` then `set(false)`.
///
/// Any closure is a line:
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use posada_devices::{IrqLine, pic::Pic};
///
/// let pic = Arc::new(Mutex::new(Pic::new()));
/// let wired = Arc::clone(&pic);
/// let irq4 = move |level| wired.lock().unwrap().set_irq(4, level);
/// irq4.set(true);
/// ```
pub trait IrqLine: Send {
    /// Drives the line. Setting the level that it has already is allowed and has no effect.
    fn set(&self, level: bool);
}

impl<F: Fn(bool) + Send> IrqLine for F {
    fn set(&self, level: bool) {
        self(level);
    }
}

impl IrqLine for Box<dyn IrqLine> {
    fn set(&self, level: bool) {
        self.as_ref().set(level);
    }
}

/// A line that leads nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unconnected;

impl IrqLine for Unconnected {
    fn set(&self, _level: bool) {}
}

/// A line together with the level last driven, so that a device states its level as often as it likes and the
/// wire is told of changes only.
#[derive(Debug)]
pub(crate) struct Output<L> {
    line: L,
    level: bool,
}

impl<L: IrqLine> Output<L> {
    /// A line that is known to stand at `level`: it is not driven, since after a restore the interrupt
    /// controller's own state has the level already.
    pub(crate) fn at(line: L, level: bool) -> Self {
        Self { line, level }
    }

    /// Takes `level` for the line's without driving it, after a restore.
    pub(crate) fn assume(&mut self, level: bool) {
        self.level = level;
    }

    pub(crate) fn set(&mut self, level: bool) {
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }

    /// One rising edge, leaving the line asserted.
    pub(crate) fn edge(&mut self) {
        self.set(false);
        self.set(true);
    }

    pub(crate) fn level(&self) -> bool {
        self.level
    }
}

#[cfg(test)]
pub(crate) mod test_line {
    use super::IrqLine;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// A wire that remembers its level and counts its rising edges.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Probe(Arc<(AtomicBool, AtomicU32)>);

    impl Probe {
        pub(crate) fn level(&self) -> bool {
            self.0.0.load(Ordering::Relaxed)
        }
        pub(crate) fn edges(&self) -> u32 {
            self.0.1.load(Ordering::Relaxed)
        }
    }

    impl IrqLine for Probe {
        fn set(&self, level: bool) {
            if !self.0.0.swap(level, Ordering::Relaxed) && level {
                self.0.1.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
