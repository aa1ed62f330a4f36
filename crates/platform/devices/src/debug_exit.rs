//! The port by which a test guest ends its own machine with an exit status.
//!
//! It has the interface of QEMU's `isa-debug-exit`: a write of `v` ends the guest with exit status
//! `(v << 1) | 1`, which is never 0, so a guest that just stops is not taken for a success.

/// The port at which test guests expect the device.
pub const PORT: u16 = 0xf4;

/// The device. It has no state: nothing to save, nothing to reset.
///
/// ```
/// use posada_devices::debug_exit::DebugExit;
/// assert_eq!(DebugExit.write(0x10), 0x21);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugExit;

impl DebugExit {
    /// Reads as an absent device.
    pub fn read(&self) -> u32 {
        u32::MAX
    }

    /// The exit status that the guest asks for, as it appears to the caller of the process: eight bits.
    pub fn write(&self, value: u32) -> u8 {
        (value << 1 | 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::DebugExit;

    #[test]
    fn the_status_is_odd_and_keeps_the_value() {
        assert_eq!(DebugExit.write(0), 1);
        assert_eq!(DebugExit.write(1), 3);
        assert_eq!(DebugExit.write(0xffff_ffff), 0xff);
    }
}
