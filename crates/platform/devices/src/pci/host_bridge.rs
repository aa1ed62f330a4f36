//! The host bridge at 00:00.0: the memory controller of a Q35.

use super::{ConfigSpace, Identity, PciFunction};

/// Offset of PCIEXBAR, where firmware finds or puts ECAM (Intel 3 Series data sheet, §5.1.15).
const PCIEXBAR: usize = 0x60;
/// Offset of the programmable attribute maps PAM0 to PAM6, which open the BIOS area for writing.
const PAM: usize = 0x90;
/// Offset of SMRAM control.
const SMRAM: usize = 0x9d;

/// The host bridge. It claims nothing; its registers are notes of what firmware programs.
#[derive(Clone, Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A host bridge that says that ECAM for 256 buses is at `ecam`, or nowhere.
    pub fn new(ecam: Option<u64>) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x8086,
            device: 0x29c0,
            class: [0x06, 0x00, 0x00],
            revision: 0,
            subsystem: (0, 0),
        });
        // Bit 0 enables, bits 2:1 (here 0) say 256 buses. The board does not move, so neither does this.
        let pciexbar = ecam.map_or(0, |base| base | 1);
        config.set(PCIEXBAR, &pciexbar.to_le_bytes());
        // Reset value of PAM0: bit fields that let reads and writes through are all zero. Software may set them.
        config.make_writable(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.make_writable(SMRAM, &[0x40]);
        Self { config }
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
}
