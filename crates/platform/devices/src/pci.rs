//! PCI: configuration space, the two ways to reach it, and the routing of accesses to functions.
//!
//! [`PciBus`] is bus 0 with its host bridge. A guest reaches the configuration space of its functions through the
//! ports 0xcf8 and 0xcfc (configuration mechanism #1, PCI 3.0 §3.2.2.3.2) or through memory (ECAM, PCI Express
//! 3.0 §7.2.2). What a function's base address registers claim, the bus finds: the board asks it about every
//! access that is nobody else's, and finds the function without going through all of them.
//!
//! A [`PciFunction`] embeds a [`ConfigSpace`], which knows which bits are writable, how a base address register
//! tells its size, and how capabilities are chained. [`Msix`] is the table of its message-signalled interrupts.

mod bus;
mod config;
mod host_bridge;
mod msix;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

pub use bus::{Address, PciBus, PciBusState};
pub use config::{Bar, BarKind, ConfigSpace, ConfigSpaceState, Identity};
pub use host_bridge::HostBridge;
pub use msix::{MessageBus, Msix, MsixState};

/// The configuration address port (32 bits).
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// The first of the four configuration data ports.
pub const CONFIG_DATA: u16 = 0xcfc;
/// Size of one bus's configuration space in ECAM, in bytes.
pub const ECAM_BUS_LEN: u64 = 1 << 20;
/// Capability ID of MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;
/// Capability ID of a vendor-specific capability, as virtio has.
pub const CAPABILITY_VENDOR: u8 = 0x09;

/// Who is told of a write without any lock: of its offset from where the doorbell begins, and its value. It runs on the
/// processor's thread, so all it does is wake somebody.
pub type Doorbell = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// One function of a PCI device.
pub trait PciFunction: Send {
    /// The function's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The function's configuration space, for changes.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// Reads `size` bytes (1, 2 or 4, not crossing a dword) of configuration space. A function overrides this for
    /// registers whose reading does something.
    fn read_config(&mut self, offset: u16, size: u8) -> u32 {
        self.config().read(offset, size)
    }

    /// Writes `size` bytes (1, 2 or 4, not crossing a dword) of configuration space. A function overrides this to
    /// take note of what it needs to know, and passes the write on to its [`ConfigSpace`].
    fn write_config(&mut self, offset: u16, size: u8, value: u32) {
        self.config_mut().write(offset, size, value);
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at `offset` in what base address register `bar` claims.
    fn read_bar(&mut self, bar: usize, offset: u64, size: u8) -> u64 {
        let _ = (bar, offset, size);
        u64::MAX
    }

    /// Writes `size` bytes (1, 2, 4 or 8) at `offset` in what base address register `bar` claims.
    fn write_bar(&mut self, bar: usize, offset: u64, size: u8, value: u64) {
        let _ = (bar, offset, size, value);
    }

    /// The part of what base address register `bar` claims, as offsets, whose writes go to a doorbell and not to
    /// [`write_bar`](Self::write_bar). It never changes.
    fn doorbell(&self, bar: usize) -> Option<(Range<u64>, Doorbell)> {
        let _ = bar;
        None
    }

    /// Waits until it has done what it was told of before, but not past `deadline`. The default has nothing left to do.
    fn settle(&mut self, deadline: Instant) {
        let _ = deadline;
    }

    /// Does nothing by itself until [`resume`](Self::resume): guest memory stays as it is, whatever there is to do. Returns
    /// when what it is at is finished. The default does nothing by itself anyhow.
    fn pause(&mut self) {}

    /// Goes on after a [`pause`](Self::pause), with all that it was told of meanwhile.
    fn resume(&mut self) {}

    /// The machine's reset. The default resets the configuration space.
    fn reset(&mut self) {
        self.config_mut().reset();
    }
}

/// All ones in the low `size` bytes: what a read that nobody answers gives.
fn ones(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

#[cfg(test)]
#[path = "pci_test.rs"]
mod tests;
