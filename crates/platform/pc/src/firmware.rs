//! What firmware does before it starts a kernel, done for it.
//!
//! There is no firmware here: a kernel starts in the state that its boot protocol names. What every protocol
//! takes for granted on top of that, a machine that firmware has set up, is set up here.

use posada_boot::bios::{self, DataArea};
use posada_boot::{MemoryMap, acpi, mp};
use posada_devices::{pic, pit};
use posada_memory::{Gpa, GuestRam};
use posada_vcpu::x86::{Msrs, Running, State};

use crate::Error;
use crate::board::Board;
use crate::layout::{EBDA, FIRMWARE, LOW_END_MAX, Layout, MP_TABLE, PCI_WINDOWS, PHYSICAL_BITS, SERIAL};

impl Board {
    /// Interrupt controllers with the vectors of a PC's BIOS and all inputs masked, the timer at 18.2 Hz, power
    /// management in ACPI mode, places for what PCI devices claim.
    pub(crate) fn set_up_as_firmware(&self) {
        // ICW1 to ICW4, then the mask.
        let initialization =
            [(pic::MASTER, [0x11, 0x08, 0x04, 0x01, 0xff]), (pic::SLAVE, [0x11, 0x70, 0x02, 0x01, 0xff])];
        self.wiring.with_pic(|pic| {
            for (port, words) in initialization {
                pic.write(port, words[0]);
                for word in &words[1..] {
                    pic.write(port + 1, *word);
                }
            }
        });
        let now = self.clock.now();
        let mut timer = self.pit();
        // Channel 0: square wave, longest period.
        for (register, value) in [(pit::CONTROL, 0x36), (pit::CHANNEL_0, 0), (pit::CHANNEL_0, 0)] {
            timer.write(register, value, now);
        }
        drop(timer);
        self.power().enable_acpi();
        let (memory, ports) = PCI_WINDOWS;
        self.pci.assign(memory, ports);
    }
}

/// Puts into RAM what firmware leaves there, and returns where the ACPI tables begin.
pub(crate) fn write_tables(ram: &GuestRam, layout: &Layout, cpus: u32) -> Result<Gpa, Error> {
    let mut serial = [0; 4];
    for (place, (port, _)) in serial.iter_mut().zip(SERIAL) {
        *place = port;
    }
    bios::write(ram, &DataArea { serial, extended: EBDA as u32 })?;
    let machine = layout.machine(cpus);
    mp::write(ram, &machine, &(MP_TABLE..bios::ROUTINES_START))?;
    Ok(acpi::write(ram, &machine, &(FIRMWARE.start..MP_TABLE))?)
}

/// The memory types that firmware sets: everything write-back but the display and the addresses of devices
/// (AMD APM volume 2, section 7.7).
pub(crate) fn set_memory_types(msrs: &mut Msrs) {
    const WRITE_BACK: u64 = 6;
    const ENABLED: u64 = 1 << 11;
    const FIXED_ENABLED: u64 = 1 << 10;
    const VALID: u64 = 1 << 11;
    /// The index of the range that starts at 0xa_0000 among the fixed ones.
    const DISPLAY: usize = 2;
    msrs.mtrr_def_type = ENABLED | FIXED_ENABLED | WRITE_BACK;
    msrs.mtrr_fixed = [0x0606_0606_0606_0606; 11];
    msrs.mtrr_fixed[DISPLAY] = 0;
    let mask = (1 << PHYSICAL_BITS) - (0x1_0000_0000 - LOW_END_MAX);
    msrs.mtrr_variable[0] = [LOW_END_MAX, mask | VALID];
}

/// The state of a processor that waits for the kernel to start it.
pub(crate) fn waiting_processor() -> State {
    let mut state = State::reset();
    set_memory_types(&mut state.msrs);
    state.activity.running = Running::WaitForStartUp;
    state
}

/// Loads the kernel and returns the boot processor's state.
pub(crate) fn boot(
    ram: &GuestRam,
    kernel: &posada_boot::Kernel,
    map: &MemoryMap,
    rsdp: Gpa,
) -> Result<State, Error> {
    let mut state = posada_boot::load(ram, kernel, map, Some(rsdp))?.state;
    set_memory_types(&mut state.msrs);
    Ok(state)
}
