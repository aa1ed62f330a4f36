//! Exit statuses of this command. Where a guest's command runs, its own status passes through.

/// The machine ended as it was asked to.
pub(crate) const DONE: u8 = 0;
/// The command line is wrong, as clap has it.
pub(crate) const WRONG: u8 = 2;
/// A triple fault: the guest's processor has shut down.
pub(crate) const TRIPLE_FAULT: u8 = 121;
/// The engine could not go on.
pub(crate) const ENGINE: u8 = 122;
/// The guest ended before its command did.
pub(crate) const NO_STATUS: u8 = 123;
/// The guest could not be started, or its output not written.
pub(crate) const CANNOT_RUN: u8 = 125;

/// For `--help`; the README has the same table.
pub(crate) const TABLE: &str = "\
Exit status:
  0          the guest powered off, or Ctrl-A x ended it
  N          with `-- COMMAND`, the command's own status (126: it could not be run, 127: not found,
             128 + S: signal S ended it); with --debug-exit, what the guest asks for
  2          the command line is wrong
  121        the guest's processor shut down after a triple fault; its registers are shown
  122        the engine failed
  123        the guest ended before its command did
  125        the guest could not be started, or its output not written: the message says why
  128 + S    signal S ended this command";
