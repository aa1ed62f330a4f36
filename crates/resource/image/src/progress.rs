//! How long work is told to whoever waits for it.

/// Told of the stages of making an image. Drawing them is the caller's affair.
///
/// For each stage `stage` comes first, then `advance` any number of times; the next `stage`, or `done`, ends it. After
/// an error neither comes.
pub trait Progress {
    /// Work of a new kind begins: a phrase such as "Fetching linux-image-…", and how much there is to do, in bytes,
    /// if that is known.
    fn stage(&mut self, what: &str, total: Option<u64>);

    /// `amount` more bytes of the stage are done.
    fn advance(&mut self, amount: u64);

    /// All work is done.
    fn done(&mut self);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&mut self, _what: &str, _total: Option<u64>) {}

    fn advance(&mut self, _amount: u64) {}

    fn done(&mut self) {}
}
